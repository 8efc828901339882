"""A tile of a convolution of pairs: sums of 16·down pixels × 16·across channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.conv.finish import call_function
from needle.backends.cpu.conv.pair_products import (
    Visit,
    convert_sums,
    stored_vectors,
    sum_pairs,
)
from needle.backends.cpu.conv.parts import positive
from needle.backends.cpu.conv.spec import Epilogue, Place
from needle.backends.cpu.gemm.vnni import SIDE, TILE
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction

#: Tiles along the products that are emitted one after the other; more are run in loops.
INLINE = 8


@dataclass(frozen=True)
class Steps:
    """Where the tiles of a pixel's products stand, in bytes from its first product.

    Attributes:
        rows: of the kernel, or 1; ``row`` bytes from one to the next.
        row: see there.
        inner: loops within a row, from the outside in: how many turns, and bytes from one to the
            next.
        last: where one more tile of the row stands, if it does not follow on the others.
    """

    rows: int
    row: int
    inner: tuple[tuple[int, int], ...]
    last: int | None = None

    @property
    def row_tiles(self) -> int:
        """Tiles of a row."""
        count = 0 if self.last is None else 1
        within = 1
        for turns, _ in self.inner:
            within *= turns
        return count + within

    def each(
        self,
        f: Function,
        sums: Sequence[Operand],
        visit: Callable[[Index, Index, list[Operand]], list[Operand]],
    ) -> list[Operand]:
        """Emit ``visit(bytes, number of the tile, sums so far)`` for all tiles in order."""
        is_inline = self.rows * self.row_tiles <= INLINE

        def loop(
            turns: int, sums: list[Operand], body: Callable[[Index, list[Operand]], list[Operand]]
        ) -> list[Operand]:
            if not is_inline:
                return f.loop(0, turns, 1, sums, body)
            for i in range(turns):
                sums = body(i, sums)
            return sums

        def within(level: int, at: Index, number: Index, sums: list[Operand]) -> list[Operand]:
            if level == len(self.inner):
                return visit(at, number, sums)
            turns, step = self.inner[level]
            tiles = 1
            for deeper, _ in self.inner[level + 1 :]:
                tiles *= deeper

            def turn(i: Index, sums: list[Operand]) -> list[Operand]:
                here = f.add_index(at, f.mul_index(i, step))
                return within(level + 1, here, f.add_index(number, f.mul_index(i, tiles)), sums)

            return loop(turns, sums, turn)

        def row(i: Index, sums: list[Operand]) -> list[Operand]:
            at, number = f.mul_index(i, self.row), f.mul_index(i, self.row_tiles)
            sums = within(0, at, number, sums)
            if self.last is not None:
                last = f.add_index(number, self.row_tiles - 1)
                sums = visit(f.add_index(at, self.last), last, sums)
            return sums

        return loop(self.rows, list(sums), row)


@dataclass(frozen=True)
class PairConvTile:
    """A function that computes a tile; `call` emits a call of it.

    Attributes:
        down, across: 16 pixels, and channels, so many times.
        tail: how many channels of the last strip exist; 0 for all.
        steps: where products are.
        line: bytes from the products of a pixel to those of the next.
        strip: bytes from one strip of weights to the next.
        line_columns, line_rows: columns from one row of the line to the next, rows from one image.
        result: the result's shape.
        epilogue: what is done with the sums; None stores them, as bfloat16.
    """

    down: int
    across: int
    tail: int
    steps: Steps
    line: int
    strip: int
    line_columns: int
    line_rows: int
    result: tuple[int, ...]
    epilogue: Epilogue | None

    def call(self, f: Function, **given: str | Index) -> None:
        """Emit a call.

        Args:
            f: the caller.
            given: ``a``, the products of the first pixel; ``b``, the weights of the first strip;
                ``out``, ``extra``; how many ``pixels`` of the line there are; the ``image``,
                ``row`` and ``column`` of the first, and the first ``channel``.
        """
        pointers = dict.fromkeys(("a", "b"), "ptr readonly") | dict.fromkeys(
            ("out", "extra"), "ptr"
        )
        numbers = ("pixels", "image", "row", "column", "channel")
        arguments = pointers | dict.fromkeys(numbers, "i64")
        epilogue = self.epilogue.key if self.epilogue else None
        shape = (self.down, self.across, self.tail, self.steps, self.line, self.strip)
        places = (self.line_columns, self.line_rows, self.result)
        key = ("pairs of a convolution", shape, places, epilogue)
        call_function(f, key, arguments, given, lambda m: _Emitter(self, m, arguments).emit())


class _Emitter:
    """Emits the function of one `PairConvTile`."""

    def __init__(self, tile: PairConvTile, module: Module, arguments: dict[str, str]) -> None:
        self.tile = tile
        name = module.unique(f"convolve_pairs_{tile.down * SIDE}x{tile.across * SIDE}")
        self.f = f = MathFunction(module, name, arguments, inline="noinline")
        self.mask = f.tail_mask(tile.tail, SIDE) if tile.tail else None

    def emit(self) -> str:
        f, tile = self.f, self.tile
        sums = f.at_entry(f"alloca [{tile.down * tile.across * TILE} x i8], align 64")
        rows = [f.pointer("%a", i * SIDE * tile.line, dtypes.uint8) for i in range(tile.down)]
        strips = [f.pointer("%b", j * tile.strip, dtypes.uint8) for j in range(tile.across)]

        def each(sums: Sequence[Operand], visit: Visit) -> list[Operand]:
            return tile.steps.each(f, sums, visit)

        sum_pairs(f, sums, (rows, tile.line), strips, each)
        self._finish(sums)
        return f.end()

    # What becomes of the sums

    def _finish(self, sums: str) -> None:
        """Emit the epilogue, or the storing, of the pixels that there are."""
        f, tile = self.f, self.tile
        epilogue = tile.epilogue
        state = epilogue.begin(f) if epilogue and epilogue.begin else None
        _, rows, columns, channels = tile.result

        def store(r: Index, at: tuple[Index, Index, Index]) -> None:
            image, row, column = at
            start = f.pointer(sums, f.mul_index(r, SIDE * tile.across), dtypes.float32)
            for first, lanes, mask in stored_vectors(f, tile.across, self.mask):
                x = f.load(start, first, dtypes.float32, lanes)
                channel = f.add_index(f.argument("channel"), first)
                if epilogue is not None:
                    epilogue.store(f, x, Place(image, row, column, channel, lanes, mask), state)
                    continue
                place = f.add_index(f.mul_index(image, rows), row)
                place = f.add_index(f.mul_index(place, columns), column)
                place = f.add_index(f.mul_index(place, channels), channel)
                f.store(convert_sums(f, x), "%out", place, mask)

        # Row by row of the line, so that along a row nothing but the column changes.
        first = f.argument("column")
        after = f.add_index(f.add_index(first, f.argument("pixels")), tile.line_columns - 1)

        def line(i: Index, _: list[Operand]) -> None:
            begin = f.sub_index(f.mul_index(i, tile.line_columns), first)
            end = f.min_index(f.add_index(begin, columns), f.argument("pixels"))
            below = f.add_index(f.argument("row"), i)
            image = f.add_index(f.argument("image"), f.floordiv_index(below, tile.line_rows))
            row = f.mod_index(below, tile.line_rows)

            def pixels() -> None:
                def pixel(r: Index, _: list[Operand]) -> None:
                    store(r, (image, row, f.sub_index(r, begin)))

                f.loop(positive(f, begin), end, 1, [], pixel)

            if tile.line_rows > rows:
                f.branch(f.compare("slt", f.operand(row), f.operand(rows)), pixels)
            else:
                pixels()

        f.loop(0, f.floordiv_index(after, tile.line_columns), 1, [], line, runs=True)
        if epilogue and epilogue.end:
            epilogue.end(f, state)
