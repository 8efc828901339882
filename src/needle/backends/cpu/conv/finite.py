"""Whether weights, or a cotangent, are finite: only then products with zeros may be left out."""

from __future__ import annotations

from collections.abc import Sequence

from needle.backends.cpu.llvm import Function, Index, Operand
from needle.dtypes import DType


class FiniteCheck:
    """Sums products of elements with zero: 0, or NaN if one of them is infinite or NaN.

    Args:
        f: the function that it is emitted into.
        dtype: of the elements.
    """

    def __init__(self, f: Function, dtype: DType) -> None:
        self.f = f
        self.dtype = dtype
        self.lanes = f.target.lanes(dtype)
        self.zero = f.constant(0, dtype, self.lanes)
        self.sums = f.at_entry(f"alloca {self.zero.type}, align {f.target.vector_bytes}")
        self.reset()

    def reset(self) -> None:
        """Emit the beginning of another check."""
        self.f.store(self.zero, self.sums, 0)

    def add(
        self, panel: str, rows: Index, widths: Sequence[int], tail: int, step: int | None = None
    ) -> None:
        """Emit the check of a panel.

        Args:
            panel: where it is.
            rows: how many it has.
            widths: lanes of the vectors of a row; 0 for a scalar.
            tail: how many lanes of the last vector exist; 0 for all.
            step: elements from one row to the next; None: they follow each other.
        """
        f, dtype = self.f, self.dtype
        columns = [sum(w or 1 for w in widths[:j]) for j in range(len(widths))]
        masks: list[Operand | None] = [None] * len(widths)
        if tail:
            masks[-1] = f.tail_mask(tail, widths[-1])

        step = step or sum(w or 1 for w in widths)

        def row(i: Index, sums: list[Operand]) -> list[Operand]:
            start = f.pointer(panel, f.mul_index(i, step), dtype)
            loaded = [
                f.load(start, column, dtype, width, mask)
                for column, width, mask in zip(columns, widths, masks, strict=True)
            ]
            return [f.fma(x, f.like(0, x), s) for x, s in zip(loaded, sums, strict=True)]

        zeros = [f.constant(0, dtype, width) for width in widths]
        for x, width in zip(f.loop(0, rows, 1, zeros, row), widths, strict=True):
            before = f.load(self.sums, 0, dtype, width)
            f.store(f.add(before, x), self.sums, 0)

    def is_finite(self) -> Operand:
        """Return whether all elements that were checked are finite."""
        f = self.f
        total = f.fold(f.load(self.sums, 0, self.dtype, self.lanes), f.add)
        return f.compare("oeq", total, f.like(0, total))
