"""Matrix times vector: products of one column, whose sums are taken along the vectors.

A tile has one row for its lanes to share, so its lanes are useless when B has one column. Here the
lanes of a few vectors take turns over k: lane i of vector v sums the elements k ≡ i + v·lanes,
until the vectors are added, and then halves to halves. This order depends on k and the target only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from needle.backends.cpu.gemm.packing import copy_elements
from needle.backends.cpu.gemm.plan import uses_masks
from needle.backends.cpu.gemm.spec import Epilogue, Extent, GemmSpec, Place
from needle.backends.cpu.gemm.streaming import multiply_add
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType

#: Vectors that take turns: with fewer, a single row would wait for its last multiply-add.
VECTORS = 4


@dataclass(frozen=True)
class DotKernel:
    """A function that multiplies ``rows`` rows with a vector; what is None is an argument of it."""

    rows: int
    dtype: DType
    k: Extent
    a_row: Extent
    c_row: Extent
    epilogue: Epilogue | None = None

    def call(self, f: Function, pointers: dict[str, str], **values: Index) -> None:
        """Emit a call; see `Microkernel.call`, of which this takes a part."""
        epilogue = self.epilogue.key if self.epilogue else None
        key = ("gemm dot", self.rows, self.dtype, self.k, self.a_row, self.c_row, epilogue)
        name = f.module.memo.get(key)
        if name is None:
            name = f.module.memo[key] = self._emit(f.module)
        given = []
        for argument, kind in self._arguments().items():
            if kind == "i64":
                given.append(f.operand(values[argument]).typed)
            else:
                given.append(f"ptr {pointers[argument]}")
        f.emit(f"call void @{name}({', '.join(given)})")

    def _sizes(self) -> dict[str, Extent]:
        return {"k": self.k, "a_row": self.a_row, "c_row": self.c_row}

    def _arguments(self) -> dict[str, str]:
        arguments = {"a": "ptr noalias readonly", "b": "ptr noalias readonly", "c": "ptr"}
        if self.epilogue:
            arguments |= {"extra": "ptr", "batch": "i64", "row": "i64"}
        return arguments | {name: "i64" for name, size in self._sizes().items() if size is None}

    def _emit(self, module: Module) -> str:
        name = module.unique(f"dot_{self.rows}")
        f = MathFunction(module, name, self._arguments(), inline="noinline")
        sizes = {
            name: f.argument(name) if size is None else size for name, size in self._sizes().items()
        }
        sums = self._sums(f, sizes["k"], [f.mul_index(i, sizes["a_row"]) for i in range(self.rows)])
        state = self.epilogue.begin(f) if self.epilogue and self.epilogue.begin else None
        for i, total in enumerate(sums):
            if self.epilogue:
                row = f.add_index(f.argument("row"), i)
                place = Place(f.argument("batch"), row, 0, 0, None)
                self.epilogue.store(f, total, place, state)
            else:
                f.store(total, "%c", f.mul_index(i, sizes["c_row"]))
        if self.epilogue and self.epilogue.end:
            self.epilogue.end(f, state)
        return f.end()

    def _sums(self, f: MathFunction, k: Index, rows: Sequence[Index]) -> list[Operand]:
        """Emit the sums of all rows: several vectors in each turn, then one, then the rest."""
        lanes = f.target.lanes(self.dtype)
        zeros = [f.constant(0, self.dtype, lanes)] * (VECTORS * self.rows)

        def step(at: Index, sums: list[Operand], width: int, mask: Operand | None) -> list[Operand]:
            y = f.load("%b", at, self.dtype, width, mask)
            rest = []
            for offset, total in zip(rows, sums, strict=True):
                x = f.load("%a", f.add_index(offset, at), self.dtype, width, mask)
                rest.append(multiply_add(f, x, y, total))
            return rest

        def turn(i: Index, sums: list[Operand]) -> list[Operand]:
            result = []
            for v in range(VECTORS):
                part = sums[v * self.rows : (v + 1) * self.rows]
                result += step(f.add_index(i, v * lanes), part, lanes, None)
            return result

        full, whole = (
            f.mul_index(f.floordiv_index(k, size), size) for size in (VECTORS * lanes, lanes)
        )
        sums = f.loop(0, full, VECTORS * lanes, zeros, turn)
        first = sums[: self.rows]
        first = f.loop(full, whole, lanes, first, lambda i, s: step(i, s, lanes, None))
        masks = uses_masks(f.target, self.dtype)
        if masks:
            first = f.loop(
                whole,
                k,
                lanes,
                first,
                lambda i, s: step(i, s, lanes, f.tail_mask(f.sub_index(k, i), lanes)),
            )
        totals = []
        for i in range(self.rows):
            parts = [first[i], *sums[self.rows + i :: self.rows]]
            while len(parts) > 1:
                parts = [f.add(x, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
            totals.append(f.fold(parts[0], f.add))
        if not masks:
            totals = f.loop(whole, k, 1, totals, lambda i, s: step(i, s, 0, None))
        return totals


def gather_vector(f: Function, spec: GemmSpec, b: str, step: Index, k: Index) -> str:
    """Emit the copy of a vector whose elements are apart to the workspace; return where it is."""
    if step == 1:
        return b
    source = (b, spec.dtype, step, 1)
    copy_elements(f, source, ("%workspace", spec.dtype, 1), k, 1)
    return "%workspace"
