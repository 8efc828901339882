"""The last transformation of Winograd's algorithm: from the products of tiles to results.

See `needle.ops.winograd_convolution`. It takes a row of tiles, channels along the lanes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from needle.backends.cpu.conv.finish import PLACE, Box, Finish, call_function
from needle.backends.cpu.conv.spec import Epilogue
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType
from needle.ops.winograd import ELEMENTS, SIDE, TILE


def pieces(count: int, lanes: int, masks: bool) -> tuple[tuple[int, ...], int]:
    """Return the widths of vectors that cover so many channels (0: a scalar), and how many lanes of
    the last exist, if not all do (0: all)."""
    whole, tail = divmod(count, lanes)
    if tail and masks:
        return (lanes,) * (whole + 1), tail
    widths = [lanes] * whole
    while tail:
        lanes //= 2
        if tail >= lanes:
            widths.append(lanes if lanes > 1 else 0)
            tail -= lanes
    return tuple(widths), 0


def _outputs(m: Sequence[Operand], f: Function) -> list[Operand]:
    """Emit Aᵀ times four operands."""
    return [f.add(f.add(m[0], m[1]), m[2]), f.add(f.sub(m[1], m[2]), m[3])]


@dataclass(frozen=True)
class OutputTransform:
    """Finishes Aᵀ m A of a row of tiles, for a panel of output channels.

    Attributes:
        widths: lanes of the vectors of a panel; 0 for a scalar.
        tail: how many lanes of the last exist; 0 for all.
        width: elements of the products from one tile to the next.
        step: from one of the 16 numbers to the next.
        rows: of the result that a tile has: 1 at the edge of an odd extent.
        columns: of the result, of the whole row.
        pitch: elements of the result from one row to the next, and one pixel.
        channels: of the image: how many products were added up.
        dtype: of all.
        epilogue: what is done with the results; None stores them.
    """

    widths: tuple[int, ...]
    tail: int
    width: int
    step: int
    rows: int
    columns: int
    pitch: tuple[int, int]
    channels: int
    dtype: DType
    epilogue: Epilogue | None

    @property
    def _key(self) -> Hashable:
        return (replace(self, epilogue=None), self.epilogue.key if self.epilogue else None)

    def _finish(self, columns: int) -> Finish:
        box = Box((1, self.rows, columns))
        out = box.offsets((0, *self.pitch))
        return Finish(box, out, self.widths, self.dtype, self.channels, self.epilogue)

    def call(self, f: Function, pointers: dict[str, str], **values: Index) -> None:
        """Emit it: from the first number of the first tile.

        Args:
            f: the caller.
            pointers: ``products``; ``out`` and ``extra``, as they are with an epilogue, else
                ``out`` at the first result.
            values: with an epilogue ``image``, ``row``, ``column``, ``channel``.
        """
        arguments = {"products": "ptr noalias readonly", **self._finish(TILE).arguments()}
        given = {**pointers, **values}
        call_function(f, self._key, arguments, given, lambda m: self._emit(m, arguments))

    def _emit(self, module: Module, arguments: dict[str, str]) -> str:
        f = MathFunction(module, module.unique("finish_tiles"), arguments, inline="noinline")
        masks: list[Operand | None] = [None] * len(self.widths)
        if self.tail:
            masks[-1] = f.tail_mask(self.tail, self.widths[-1])
        state = self._finish(TILE).begin(f)

        def tile(t: Index, columns: int) -> None:
            finish = self._finish(columns)
            sums = self._sums(f, t, finish)
            if self.epilogue is None:
                at = f.mul_index(t, TILE * self.pitch[1])
                finish.put(f, sums, masks, f.pointer("%out", at, self.dtype))
                return
            first: dict[str, Index] = {name: f.argument(name) for name in PLACE}
            first["column"] = f.add_index(first["column"], f.mul_index(t, TILE))
            finish.store(f, sums, masks, state, first)

        whole, rest = divmod(self.columns, TILE)
        f.loop(0, whole, 1, [], lambda t, _: tile(t, TILE))
        if rest:
            tile(whole, rest)
        self._finish(TILE).end(f, state)
        return f.end()

    def _sums(self, f: Function, t: Index, finish: Finish) -> list[Operand]:
        """Emit the results of a tile: for each pixel a row of vectors."""
        start = f.pointer("%products", f.mul_index(t, self.width), self.dtype)
        by_vector = []
        for column, lanes in zip(finish.columns, self.widths, strict=True):
            numbers = [
                f.load(start, number * self.step + column, self.dtype, lanes)
                for number in range(ELEMENTS)
            ]
            down = [_outputs(numbers[j::SIDE], f) for j in range(SIDE)]
            rows = [_outputs([d[i] for d in down], f) for i in range(self.rows)]
            by_vector.append([x for row in rows for x in row[: finish.box.counts[2]]])
        return [vector[i] for i in range(finish.box.size) for vector in by_vector]
