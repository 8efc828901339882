"""Tiles of images, transformed as Winograd's form of convolution takes them: adds alone.

A tile's transform is 16 numbers for each channel. They go to 16 matrices, tiles × channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from needle.backends.cpu.gemm.plan import uses_masks
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType
from needle.ops.winograd import SIDE

ARGUMENTS = {
    "source": "ptr noalias readonly",
    "zeros": "ptr noalias readonly",
    "target": "ptr noalias",
    "first": "i64",
    "rows": "i64",
}


@dataclass(frozen=True)
class TileTransform:
    """Transforms rows of tiles of an image; what they see outside of it are zeros.

    Attributes:
        side: rows, and columns, of a tile: 4 of pixels, or 2 of results; a tile begins 2 after the
            one before it.
        low: the column where the first tile begins; negative in the padding.
        across: tiles of a row.
        channels: how many are transformed.
        shape: rows, columns and channels of the image.
        pitch: elements from one of the 16 matrices to the next.
        dtype: of all.
    """

    side: int
    low: int
    across: int
    channels: int
    shape: tuple[int, ...]
    pitch: int
    dtype: DType

    def call(
        self, f: Function, source: str, zeros: str, target: str, first: Index, rows: Index
    ) -> None:
        """Emit the transformation.

        Args:
            f: the caller.
            source: the image, at the first channel.
            zeros: a row of them, as long as one of the image.
            target: the first matrix, at the first tile.
            first: the row of the image where the first tile begins.
            rows: how many rows of tiles.
        """
        name = f.module.memo.get(self)
        if name is None:
            name = f.module.memo[self] = self._emit(f.module)
        places = ", ".join(f.operand(x).typed for x in (first, rows))
        f.emit(f"call void @{name}(ptr {source}, ptr {zeros}, ptr {target}, {places})")

    def _emit(self, module: Module) -> str:
        name = module.unique("transform_tiles")
        f = MathFunction(module, name, ARGUMENTS, inline="noinline")
        height, columns, every = self.shape

        def row(i: Index, _: list[Operand]) -> None:
            lines = []
            for a in range(self.side):
                number = f.add_index(f.argument("first"), f.add_index(f.mul_index(i, 2), a))
                inside = f.compare("ult", f.operand(number), f.operand(height))
                number = f.select(inside, f.operand(number), f.operand(0))
                line = f.pointer("%source", f.mul_index(number, columns * every), self.dtype)
                lines.append(f.value(f"select i1 {inside.text}, ptr {line}, ptr %zeros"))
            target = f.pointer("%target", f.mul_index(i, self.across * self.channels), self.dtype)
            self._vectors(f, lambda *vector: self._row(f, lines, target, vector))

        f.loop(0, f.argument("rows"), 1, [], row)
        return f.end()

    def _vectors(self, f: Function, visit: Callable[[Index, int, Operand | None], None]) -> None:
        """Emit ``visit(channel, lanes, mask)`` for vectors that cover the channels."""
        lanes = f.target.lanes(self.dtype)
        whole = self.channels // lanes * lanes
        rest = self.channels - whole
        f.loop(0, whole, lanes, [], lambda c, _: visit(c, lanes, None))
        if rest and uses_masks(f.target, self.dtype):
            visit(whole, lanes, f.tail_mask(rest, lanes))
        elif rest:
            f.loop(whole, self.channels, 1, [], lambda c, _: visit(c, 0, None))

    def _row(
        self,
        f: Function,
        lines: Sequence[str],
        target: str,
        vector: tuple[Index, int, Operand | None],
    ) -> None:
        """Emit a row of tiles for a vector of channels. What tiles share is computed once."""
        channel, lanes, mask = vector
        _, columns, every = self.shape
        shared = self.side - 2

        def column(place: Index) -> list[Operand]:
            if isinstance(place, int) and not 0 <= place < columns:
                seen = [f.constant(0, self.dtype, lanes)] * self.side
            else:
                at = f.add_index(f.mul_index(place, every), channel)
                seen = [f.load(line, at, self.dtype, lanes, mask) for line in lines]
            return self._transformed(f, seen)

        def tile(j: Index, carried: list[Operand]) -> list[Operand]:
            begin = f.add_index(f.mul_index(j, 2), self.low)
            # Transformed columns: those of the tile before, and two of its own.
            every_column = [carried[b * SIDE : (b + 1) * SIDE] for b in range(shared)]
            every_column += [column(f.add_index(begin, b)) for b in range(shared, self.side)]
            to = f.add_index(f.mul_index(j, self.channels), channel)
            for a in range(SIDE):
                row = self._transformed(f, [c[a] for c in every_column])
                for b, x in enumerate(row):
                    f.store(x, target, f.add_index(to, (a * SIDE + b) * self.pitch), mask)
            return [x for c in every_column[2 : 2 + shared] for x in c]

        # Tiles whose own columns are all inside, in a loop; before and after it, one by one.
        own = [[2 * j + self.low + b for b in range(shared, self.side)] for j in range(self.across)]
        inside = [j for j, c in enumerate(own) if c[0] >= 0 and c[-1] < columns]
        begin, end = (inside[0], inside[-1] + 1) if inside else (self.across, self.across)
        carried = [x for b in range(shared) for x in column(self.low + b)]
        for j in range(begin):
            carried = tile(j, carried)
        carried = f.loop(begin, end, 1, carried, tile)
        for j in range(end, self.across):
            carried = tile(j, carried)

    def _transformed(self, f: Function, x: Sequence[Operand]) -> list[Operand]:
        """Return what `PIXELS`, or `RESULTS`, makes of the elements of a tile's row or column."""
        if self.side == SIDE:
            return [f.sub(x[0], x[2]), f.add(x[1], x[2]), f.sub(x[2], x[1]), f.sub(x[3], x[1])]
        return [x[0], f.add(x[0], x[1]), f.sub(x[0], x[1]), x[1]]
