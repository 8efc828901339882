"""The inner product of pairs: a tile of C, 32×32 at most, over the panels of A and B.

With AMX four tiles of 16×16 sums stay in the tile registers while pairs of tiles of A and B pass.
With AVX-512-BF16 8×32 sums stay in vector registers.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.gemm.microkernel import emit_call
from needle.backends.cpu.gemm.pair_instructions import (
    add_pairs,
    clear_tile,
    has_tiles,
    load_tile,
    multiply_tiles,
    round_sums,
    store_tile,
)
from needle.backends.cpu.gemm.spec import Epilogue, Extent, Place
from needle.backends.cpu.gemm.vnni import LINE, PANEL, SIDE, TILE
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.vector_math import MathFunction
from needle.dtypes import DType

#: Rows of sums that AVX-512-BF16 holds in registers: with 32 columns, 16 registers.
ROWS = 8


@dataclass(frozen=True)
class PairTile:
    """A function that computes a tile of C; `call` emits a call of it.

    What is None here is an argument of the function.

    Attributes:
        down, across: 16 rows or columns each, 1 or 2 times.
        tail: how many lanes of the last vector exist; 0 for all.
        c_row: stride of C.
        dtype: of C, if there is no epilogue.
        resumes: whether the sum may be part of a longer one; see `Microkernel`.
        epilogue: what is done with the sums; None stores them to C.
    """

    down: int
    across: int
    tail: Extent
    c_row: Extent
    dtype: DType = dtypes.float32
    resumes: bool = False
    epilogue: Epilogue | None = None

    @property
    def key(self) -> Hashable:
        """What the function is memoised by."""
        shape = (self.down, self.across, self.tail, self.c_row, self.dtype, self.resumes)
        return ("gemm pairs", shape, self.epilogue.key if self.epilogue else None)

    def _arguments(self) -> dict[str, str]:
        arguments = {"a": "ptr readonly", "b": "ptr readonly", "c": "ptr"}
        arguments |= {"tail_a": "ptr readonly"}
        arguments |= dict.fromkeys(("a_line", "a_next", "a_half", "depth", "rows"), "i64")
        if self.epilogue:
            arguments |= {"extra": "ptr", "batch": "i64", "row": "i64", "column": "i64"}
        if self.resumes:
            arguments |= {"partial": "ptr", "first": "i1", "last": "i1"}
        sizes = {"tail": self.tail, "c_row": self.c_row}
        return arguments | {name: "i64" for name, size in sizes.items() if size is None}

    def call(self, f: Function, pointers: dict[str, str], **values: Index) -> None:
        """Emit a call.

        Args:
            f: the caller.
            pointers: ``a``, ``b``: the panels; ``tail_a``: two tiles of A that follow on its last
                ones, or null; ``c`` at the tile's first element (without an epilogue), ``extra``;
                ``partial``, 4 kB for sums, if it resumes.
            values: ``a_line``, ``a_next``, ``a_half``: bytes from one line of A to the next, from
                one tile along k, and from one down to the other; ``depth``: how many tiles along k
                stand in ``a``; ``rows`` that exist; batch, row, column, first, last, and the sizes
                that are not known.
        """
        name = f.module.memo.get(self.key)
        if name is None:
            name = f.module.memo[self.key] = _Emitter(self, f.module).emit()
        emit_call(f, name, self._arguments(), pointers, values)


class _Emitter:
    """Emits the function of one `PairTile`."""

    def __init__(self, tile: PairTile, module: Module) -> None:
        self.tile = tile
        name = module.unique(f"pairs_{tile.down * SIDE}x{tile.across * SIDE}")
        self.f = f = MathFunction(module, name, tile._arguments(), inline="noinline")
        self.rows = f.argument("rows")
        tail = f.argument("tail") if tile.tail is None else tile.tail
        self.mask = None if tail == 0 else f.tail_mask(tail, SIDE)
        self.parts = [(i, j) for i in range(tile.down) for j in range(tile.across)]

    def emit(self) -> str:
        f, tile = self.f, self.tile
        sums = f.at_entry(f"alloca [{2 * PANEL} x i8], align 64")
        if not tile.resumes:
            self._sum(sums, None)
            self._finish(sums)
            return f.end()
        sums = "%partial"
        self._sum(sums, f.argument("first", dtypes.bool))
        f.branch(f.argument("last", dtypes.bool), lambda: self._finish(sums))
        return f.end()

    def _sum(self, sums: str, first: Operand | None) -> None:
        """Emit the sums over the panels into 32 lines of 32 floats; onto what is there, unless
        ``first``."""
        if has_tiles(self.f.target):
            self._sum_in_tiles(sums, first)
        else:
            self._sum_in_vectors(sums, first)

    # AMX

    def _place(self, sums: str, i: int, j: int) -> str:
        """Return where the sums of a part of the tile stand."""
        return self.f.pointer(sums, i * PANEL + j * LINE, dtypes.uint8)

    def _sum_in_tiles(self, sums: str, first: Operand | None) -> None:
        f = self.f

        def clear() -> None:
            for i, j in self.parts:
                clear_tile(f, 2 * i + j)

        def resume() -> None:
            for i, j in self.parts:
                load_tile(f, 2 * i + j, self._place(sums, i, j), 2 * LINE)

        if first is None:
            clear()
        else:
            f.branch(first, clear, resume)

        def step(a: str, line: Index, half: Index, k: Index) -> None:
            b = f.pointer("%b", f.mul_index(k, PANEL), dtypes.uint8)
            loaded: set[int] = set()
            for i, j in self.parts:
                if j not in loaded:
                    tile = f.pointer(b, j * TILE, dtypes.uint8)
                    load_tile(f, 6 + j, tile, LINE, streams=True)
                if j == 0:
                    part = f.pointer(a, f.mul_index(i, half), dtypes.uint8)
                    load_tile(f, 4 + i, part, line)
                loaded.add(j)
                multiply_tiles(f, 2 * i + j, 4 + i, 6 + j)

        depth, lines, half, following = self._steps_of_a()

        def whole(k: Index, _: list[Operand]) -> None:
            a = f.pointer("%a", f.mul_index(k, following), dtypes.uint8)
            step(a, lines, half, k)

        f.loop(0, depth, 1, [], whole)
        f.branch(self._has_tail(), lambda: step("%tail_a", LINE, TILE, depth))
        for i, j in self.parts:
            store_tile(f, 2 * i + j, self._place(sums, i, j), 2 * LINE)

    def _steps_of_a(self) -> tuple[Operand, ...]:
        """Return how many tiles of A there are along k, and the bytes between lines and tiles."""
        return tuple(self.f.argument(n) for n in ("depth", "a_line", "a_half", "a_next"))

    def _has_tail(self) -> Operand:
        return Operand(self.f.value("icmp ne ptr %tail_a, null"), dtypes.bool)

    # AVX-512-BF16

    def _sum_in_vectors(self, sums: str, first: Operand | None) -> None:
        f, across = self.f, self.tile.across
        depth, lines, half, following = self._steps_of_a()

        def rows(at: Index, _: list[Operand]) -> None:
            # A line of sums has 32 floats, one of a tile 16 pairs.
            here = f.pointer(sums, f.mul_index(at, 2 * SIDE), dtypes.float32)
            places = [r * 2 * SIDE + SIDE * j for r in range(ROWS) for j in range(across)]
            zeros = [f.constant(0, dtypes.float32, SIDE) for _ in places]

            def resume() -> Sequence[Operand]:
                return [f.load(here, place, dtypes.float32, SIDE) for place in places]

            def start(base: str, half: Index, line: Index) -> str:
                tile = f.mul_index(f.floordiv_index(at, SIDE), half)
                return f.pointer(
                    base,
                    f.add_index(tile, f.mul_index(f.mod_index(at, SIDE), line)),
                    dtypes.uint8,
                )

            a, tail = start("%a", half, lines), start("%tail_a", TILE, LINE)

            def whole(k: Index, sums: list[Operand]) -> list[Operand]:
                part = f.pointer(a, f.mul_index(k, following), dtypes.uint8)
                return panels(part, lines, k, sums)

            begun = zeros if first is None else f.branch(first, lambda: zeros, resume)
            done = f.loop(0, depth, 1, begun, whole)
            done = f.branch(self._has_tail(), lambda: panels(tail, LINE, depth, done), lambda: done)
            for x, place in zip(done, places, strict=True):
                f.store(x, here, place)

        def panels(a: str, line: Index, k: Index, begun: list[Operand]) -> list[Operand]:
            b = f.pointer("%b", f.mul_index(k, PANEL), dtypes.uint8)
            return f.loop(0, SIDE, 1, begun, lambda p, s: pair(a, line, b, p, s))

        def pair(a: str, line: Index, b: str, p: Index, sums: list[Operand]) -> list[Operand]:
            words = dtypes.uint32
            columns = [
                f.load(b, f.add_index(f.mul_index(p, SIDE), j * TILE // 4), words, SIDE)
                for j in range(across)
            ]
            result = []
            for r in range(ROWS):
                row = f.pointer(a, f.mul_index(line, r), dtypes.uint8)
                x = f.splat(f.load(row, p, words), SIDE)
                for j, y in enumerate(columns):
                    result.append(add_pairs(f, sums[r * across + j], x, y))
            return result

        f.loop(0, self.rows, ROWS, [], rows)

    # What becomes of the sums

    def _vectors(self) -> list[tuple[int, int, Operand | None]]:
        """Return first column, lanes and mask of the vectors that a row is stored as.

        A whole row is one: 32 results of 16 bits are written to a line of the cache at once.
        """
        if self.tile.across == 2 and self.mask is None:
            return [(0, 2 * SIDE, None)]
        first: list[tuple[int, int, Operand | None]] = [(0, SIDE, None)]
        return [*first[: self.tile.across - 1], (SIDE * (self.tile.across - 1), SIDE, self.mask)]

    def _finish(self, sums: str) -> None:
        """Emit the epilogue, or the storing, of all rows that exist."""
        f, tile = self.f, self.tile
        epilogue = tile.epilogue
        state = epilogue.begin(f) if epilogue and epilogue.begin else None
        c_row = f.argument("c_row") if tile.c_row is None else tile.c_row

        def row(r: Index, _: list[Operand]) -> None:
            start = f.pointer(sums, f.mul_index(r, 2 * SIDE), dtypes.float32)
            for at, lanes, mask in self._vectors():
                x = f.load(start, at, dtypes.float32, lanes)
                if epilogue is None:
                    c = f.pointer("%c", f.mul_index(r, c_row), tile.dtype)
                    y = round_sums(f, x) if tile.dtype == dtypes.bfloat16 else x
                    f.store(y, c, at, mask)
                    continue
                here = f.add_index(f.argument("row"), r)
                column = f.add_index(f.argument("column"), at)
                place = Place(f.argument("batch"), here, column, lanes, mask)
                epilogue.store(f, x, place, state)

        f.loop(0, self.rows, 1, [], row, runs=True)
        if epilogue and epilogue.end:
            epilogue.end(f, state)
