"""A tile of a convolution of pairs: sums of 16·down pixels × 16·across channels.

With AMX the sums stay in tile registers while tiles of pixels and weights pass. With AVX-512-BF16
8×32 sums stay in vector registers. Elsewhere pairs are taken apart, converted, and added up one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.conv.finish import call_function
from needle.backends.cpu.conv.spec import Epilogue, Place
from needle.backends.cpu.gemm.pair_instructions import (
    add_pairs,
    clear_tile,
    has_tiles,
    load_tile,
    multiplies_pairs,
    multiply_tiles,
    round_sums,
    store_tile,
)
from needle.backends.cpu.gemm.vnni import LINE, SIDE, TILE
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction

#: Tiles along the products that are emitted one after the other; more are run in loops.
INLINE = 8
#: Bytes of sums that are in registers at a time, where there are no tile registers: half of them.
_SHARE = 2


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
        if has_tiles(f.target):
            self._sum_in_tiles(sums)
        else:
            self._sum_in_vectors(sums)
        self._finish(sums)
        return f.end()

    def _bytes(self, base: str, offset: Index) -> str:
        return self.f.pointer(base, offset, dtypes.uint8)

    def _sum_in_tiles(self, sums: str) -> None:
        """Emit the sums: those of part (i, j) in tile register ``across·i + j``, pixels and weights
        in those that are left."""
        f, tile = self.f, self.tile
        down, across = tile.down, tile.across
        parts = [(i, j) for i in range(down) for j in range(across)]
        of_a, of_b = len(parts), 8 - across
        for number in range(len(parts)):
            clear_tile(f, number)

        def step(at: Index, number: Index, _: list[Operand]) -> list[Operand]:
            b = f.mul_index(number, TILE)
            for i, j in parts:
                if i == 0:
                    place = f.add_index(b, j * tile.strip)
                    load_tile(f, of_b + j, self._bytes("%b", place), LINE, streams=True)
                a = of_a + i % (of_b - of_a)
                if j == 0:
                    here = self._bytes("%a", f.add_index(at, i * SIDE * tile.line))
                    load_tile(f, a, here, tile.line)
                multiply_tiles(f, across * i + j, a, of_b + j)
            return []

        tile.steps.each(f, [], step)
        for number, (i, j) in enumerate(parts):
            place = (i * SIDE * across + j) * LINE
            store_tile(f, number, self._bytes(sums, place), across * LINE)

    def _sum_in_vectors(self, sums: str) -> None:
        """Emit the sums of a few pixels after the other."""
        f, tile = self.f, self.tile
        across, words = tile.across, dtypes.uint32
        registers = f.target.registers * f.target.vector_bytes // (_SHARE * LINE)
        count = min(max(registers // across, 1), 8)

        def pixels(first: Index, _: list[Operand]) -> None:
            a = self._bytes("%a", f.mul_index(first, tile.line))

            def step(at: Index, number: Index, sums: list[Operand]) -> list[Operand]:
                here = self._bytes(a, at)
                b = self._bytes("%b", f.mul_index(number, TILE))
                return f.loop(0, SIDE, 1, sums, lambda p, sums: pair(here, b, p, sums))

            def pair(a: str, b: str, p: Index, sums: list[Operand]) -> list[Operand]:
                place = f.mul_index(p, SIDE)
                strips = [
                    f.load(b, f.add_index(place, j * tile.strip // 4), words, SIDE)
                    for j in range(across)
                ]
                added = []
                for r in range(count):
                    row = self._bytes(a, r * tile.line)
                    x = f.load(row, p, words)
                    mine = sums[r * across : (r + 1) * across]
                    added += self._added(mine, x, strips)
                return added

            zeros = [f.constant(0, dtypes.float32, SIDE)] * (count * across)
            for i, x in enumerate(tile.steps.each(f, zeros, step)):
                line = f.add_index(f.mul_index(first, across), i)
                f.store(x, sums, f.mul_index(line, SIDE))

        # Few enough at a time divide the pixels of a tile, for all are powers of 2.
        count = 1 << (count.bit_length() - 1)
        f.loop(0, tile.down * SIDE, count, [], pixels)

    def _added(self, sums: list[Operand], x: Operand, ys: list[Operand]) -> list[Operand]:
        """Return sums to which are added the products of a pixel's pair with one of each channel:
        at once, or first the even ones."""
        f = self.f
        if multiplies_pairs(f.target):
            word = f.splat(x, SIDE)
            return [add_pairs(f, total, word, y) for total, y in zip(sums, ys, strict=True)]
        for half in range(2):
            a = f.splat(self._half(x, half), SIDE)
            sums = [f.fma(a, self._half(y, half), total) for total, y in zip(sums, ys, strict=True)]
        return sums

    def _half(self, word: Operand, half: int) -> Operand:
        """Return the first or the second bfloat16 of words of 32 bits as float32."""
        f = self.f
        if half:
            bits = f.binary("and", word, f.constant(0xFFFF0000, word.dtype, word.lanes))
        else:
            bits = f.binary("shl", word, f.constant(16, word.dtype, word.lanes))
        return f.bitcast(bits, dtypes.float32)

    # What becomes of the sums

    def _vectors(self) -> list[tuple[int, int, Operand | None]]:
        """Return first channel, lanes and mask of the vectors that a pixel is stored as: 32 of 16
        bits are written to a line of the cache at once."""
        tile = self.tile
        if tile.across == 2 and self.mask is None and multiplies_pairs(self.f.target):
            return [(0, 2 * SIDE, None)]
        masks = [None] * (tile.across - 1) + [self.mask]
        return [(SIDE * j, SIDE, mask) for j, mask in enumerate(masks)]

    def _finish(self, sums: str) -> None:
        """Emit the epilogue, or the storing, of the pixels that there are."""
        f, tile = self.f, self.tile
        epilogue = tile.epilogue
        state = epilogue.begin(f) if epilogue and epilogue.begin else None
        _, rows, columns, channels = tile.result

        def store(r: Index, at: Sequence[Operand]) -> None:
            image, row, column = at
            start = f.pointer(sums, f.mul_index(r, SIDE * tile.across), dtypes.float32)
            for first, lanes, mask in self._vectors():
                x = f.load(start, first, dtypes.float32, lanes)
                channel = f.add_index(f.argument("channel"), first)
                if epilogue is not None:
                    epilogue.store(f, x, Place(image, row, column, channel, lanes, mask), state)
                    continue
                place = f.add_index(f.mul_index(image, rows), row)
                place = f.add_index(f.mul_index(place, columns), column)
                place = f.add_index(f.mul_index(place, channels), channel)
                f.store(convert_sums(f, x), "%out", place, mask)

        def pixel(r: Index, at: list[Operand]) -> list[Operand]:
            image, row, column = at
            if tile.line_columns > columns or tile.line_rows > rows:
                exists = f.compare("slt", column, f.operand(columns))
                within = f.compare("slt", row, f.operand(rows))
                f.branch(f.binary("and", exists, within), lambda: store(r, at))
            else:
                store(r, at)
            column = f.operand(f.add_index(column, 1))
            ends = f.compare("eq", column, f.operand(tile.line_columns))
            column = f.select(ends, f.operand(0), column)
            row = f.select(ends, f.operand(f.add_index(row, 1)), row)
            below = f.compare("eq", row, f.operand(tile.line_rows))
            row = f.select(below, f.operand(0), row)
            image = f.select(below, f.operand(f.add_index(image, 1)), image)
            return [image, row, column]

        first = [f.argument(name) for name in ("image", "row", "column")]
        f.loop(0, f.argument("pixels"), 1, first, pixel, runs=True)
        if epilogue and epilogue.end:
            epilogue.end(f, state)


def convert_sums(f: Function, sums: Operand) -> Operand:
    """Return sums of pairs as bfloat16."""
    is_native = multiplies_pairs(f.target) and bool(sums.lanes)
    return round_sums(f, sums) if is_native else f.convert(sums, dtypes.bfloat16)
