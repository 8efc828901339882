"""The inner loops of the gradient by the weight: sums over pixels, held in registers.

A *row* is a tap of one input channel; the table says where it reads in the copy of the images. A
row's sum with an output channel is one chain of fused multiply-adds over the pixels in their order,
or, where few output channels share a group, one chain for each lane of the vectors of a line of
pixels. Sums are read from a buffer and go back to it, so pixels may be given in parts: no bit
depends on how many at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.conv.microkernel import VECTORS
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.target import Target
from needle.dtypes import DType

ARGUMENTS = {
    **dict.fromkeys(("image", "cotangent", "table"), "ptr noalias readonly"),
    "sums": "ptr noalias",
    **dict.fromkeys(("images", "lines", "columns", "image_step", "line_step", "jump"), "i64"),
}


def row_counts(target: Target, vectors: int) -> tuple[int, ...]:
    """Return the numbers of rows that tiles of so many vectors have, the largest first."""
    many = {1: 12, 2: 12, 3: 8, 4: 6}
    few = {1: 10, 2: 6, 3: 4, 4: 2}
    largest = (many if target.registers >= 32 else few)[vectors]
    return (largest, *(n for n in (8, 4, 2, 1) if n < largest))


@dataclass(frozen=True)
class OutTile:
    """A tile of ``rows`` rows × ``vectors`` vectors of output channels.

    The cotangent's channels lie along the lanes: [pixel, channel]. Rows of the buffer of sums are
    `VECTORS` vectors long.
    """

    rows: int
    vectors: int
    dtype: DType

    def function(self, module: Module) -> str:
        """Return the name of the function, with `ARGUMENTS`; it is emitted once."""
        name = module.memo.get(self)
        if name is None:
            name = module.memo[self] = self._emit(module)
        return name

    def _emit(self, module: Module) -> str:
        name = module.unique(f"weight_{self.rows}x{self.vectors}")
        f = Function(module, name, ARGUMENTS, inline="noinline")
        dtype, lanes = self.dtype, f.target.lanes(self.dtype)
        images = _seen(f, self.rows, dtype)
        sums = [
            f.load("%sums", (row * VECTORS + v) * lanes, dtype, lanes)
            for row in range(self.rows)
            for v in range(self.vectors)
        ]

        def pixel(place: Operand, x: Index, carried: list[Operand]) -> list[Operand]:
            seen, *sums = carried
            at = f.add_index(place, x)
            g = [
                f.load("%cotangent", f.add_index(seen, v * lanes), dtype, lanes)
                for v in range(self.vectors)
            ]
            result = []
            for row, image in enumerate(images):
                w = f.splat(f.load(image, at, dtype), lanes)
                for v, y in enumerate(g):
                    result.append(f.fma(w, y, sums[row * self.vectors + v]))
            after = f.add(seen, f.operand(self.vectors * lanes))
            return [after, *result]

        def line(place: Operand, carried: list[Operand]) -> list[Operand]:
            inside = functools.partial(pixel, place)
            return f.loop(0, f.argument("columns"), 1, carried, inside, runs=True)

        _, *sums = _lines(f, [f.operand(0), *sums], line)
        for place, x in enumerate(sums):
            row, v = divmod(place, self.vectors)
            f.store(x, "%sums", (row * VECTORS + v) * lanes)
        return f.end()


@dataclass(frozen=True)
class PixelTile:
    """A tile of ``rows`` rows × one output channel, pixels along the lanes.

    The cotangent lies as it is given: ``jump`` is from one image of it to the next. Each row of the
    buffer of sums is a vector.
    """

    rows: int
    dtype: DType

    def function(self, module: Module) -> str:
        """Return the name of the function, with `ARGUMENTS`; it is emitted once."""
        name = module.memo.get(self)
        if name is None:
            name = module.memo[self] = self._emit(module)
        return name

    def _emit(self, module: Module) -> str:
        name = module.unique(f"weight_pixels_{self.rows}")
        f = Function(module, name, ARGUMENTS, inline="noinline")
        dtype, lanes = self.dtype, f.target.lanes(self.dtype)
        images = _seen(f, self.rows, dtype)
        columns = f.argument("columns")
        whole = f.mul_index(f.floordiv_index(columns, lanes), lanes)
        mask = f.tail_mask(f.sub_index(columns, whole), lanes)
        sums = [f.load("%sums", row * lanes, dtype, lanes) for row in range(self.rows)]

        def line(place: Operand, carried: list[Operand]) -> list[Operand]:
            seen, *sums = carried

            def add(x: Index, sums: list[Operand], mask: Operand | None) -> list[Operand]:
                g = f.load("%cotangent", f.add_index(seen, x), dtype, lanes, mask)
                at = f.add_index(place, x)
                # Masked lanes are 0 · 0: what lies behind the line is not touched.
                return [
                    f.fma(f.load(image, at, dtype, lanes, mask), g, y)
                    for image, y in zip(images, sums, strict=True)
                ]

            sums = f.loop(0, whole, lanes, sums, lambda x, sums: add(x, sums, None))
            has_tail = f.compare("ult", f.operand(whole), columns)
            sums = f.branch(has_tail, lambda: add(whole, sums, mask), lambda: sums)
            return [f.add(seen, columns), *sums]

        _, *sums = _lines(f, [f.operand(0), *sums], line, f.argument("jump"))
        for row, x in enumerate(sums):
            f.store(x, "%sums", row * lanes)
        return f.end()


def _seen(f: Function, rows: int, dtype: DType) -> list[str]:
    """Return the address of the first pixel that each row sees."""
    return [f.pointer("%image", f.load("%table", row, dtypes.int64), dtype) for row in range(rows)]


def _lines(
    f: Function,
    carried: list[Operand],
    line: Callable[[Operand, list[Operand]], list[Operand]],
    jump: Index = 0,
) -> list[Operand]:
    """Emit all lines of all images; ``line`` gets the place of a line, and what is carried.

    The first value carried is a place in the cotangent, to which each image adds ``jump``.
    """

    def image(m: Index, carried: list[Operand]) -> list[Operand]:
        start = f.mul_index(m, f.argument("image_step"))

        def one(y: Index, carried: list[Operand]) -> list[Operand]:
            place = f.add_index(start, f.mul_index(y, f.argument("line_step")))
            return line(f.operand(place), carried)

        first, *rest = f.loop(0, f.argument("lines"), 1, carried, one, runs=True)
        return [f.operand(f.add_index(first, jump)), *rest]

    return f.loop(0, f.argument("images"), 1, carried, image, runs=True)
