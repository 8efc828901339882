"""Operands of products of pairs, in the order in which AMX and AVX-512-BF16 read them.

Both multiply pairs of neighbours along k. A panel holds 32 rows of A, or 32 columns of B, for all k
in turn: for each 32 of them two tiles of 1 kB, of the first 16 rows (columns) and of the others. A
tile has 16 lines of 64 bytes. A line of A is a row: 16 pairs. A line of B is a pair of k: its
elements in 16 columns ("VNNI"). Each is the other one with its words of 32 bits turned round, so
two ways to read memory and one to turn a tile serve all layouts.

Factors in float32 are rounded to bfloat16 on the way. What is beyond the last k is 0; what is
beyond the last row or column is whatever was there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from needle import dtypes
from needle.backends.cpu.gemm.packing import joined, transpose
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.dtypes import DType

#: Lines of a tile; k in a tile; bytes of a line, a tile, and a panel's two tiles.
SIDE, DEPTH, LINE, TILE, PANEL = 16, 32, 64, 1024, 2048


class Source(NamedTuple):
    """An operand in memory.

    Attributes:
        base: address of its first element.
        dtype: bfloat16, or float32 to be rounded.
        across: elements from one row of A, or column of B, to the next.
        along: elements from one k to the next.
    """

    base: str
    dtype: DType
    across: Index
    along: Index


def pack_panels(
    f: Function,
    source: Source,
    target: tuple[str, int],
    count: Index,
    k: Index,
    *,
    paired: bool,
) -> None:
    """Emit the packing of panels that stand side by side.

    Args:
        f: where to emit.
        source: the operand, from the first panel's first element on.
        target: where the first panel goes, ``PANEL`` bytes for each ``DEPTH`` of k; and the bytes
            from one panel to the next.
        count: how many rows (columns) there are, at least 1.
        k: how many k there are.
        paired: whether a line is a pair of k, as in panels of B.
    """

    def call(way: Callable[[Function, DType, bool], None]) -> Callable[[], None]:
        def emit() -> None:
            key = ("gemm panels", way.__name__, source.dtype, paired)
            name = f.module.memo.get(key)
            if name is None:
                name = f.module.unique(f"pack{way.__name__}")
                arguments = {"source": "ptr noalias readonly", "target": "ptr noalias"}
                arguments |= dict.fromkeys(("step", "across", "along", "count", "k"), "i64")
                g = Function(f.module, name, arguments, inline="noinline")
                way(g, source.dtype, paired)
                name = f.module.memo[key] = g.end()
            given = [f"ptr {source.base}", f"ptr {target[0]}"]
            sizes = (target[1], source.across, source.along, count, k)
            given += [f.operand(x).typed for x in sizes]
            f.emit(f"call void @{name}({', '.join(given)})")

        return emit

    def choose(
        stride: Index, if_one: Callable[[], None], otherwise: Callable[[], None]
    ) -> Callable[[], None]:
        if isinstance(stride, int):
            return if_one if stride == 1 else otherwise
        is_one = f.compare("eq", stride, f.operand(1))

        def branch() -> None:
            f.branch(is_one, if_one, otherwise)

        return branch

    natural = (source.across, source.along) if paired else (source.along, source.across)
    ways = (_from_pairs, _from_rows) if paired else (_from_rows, _from_pairs)
    rest = choose(natural[1], call(ways[1]), call(_from_elements))
    choose(natural[0], call(ways[0]), rest)()


def _each_strip(f: Function, visit: Callable[[Index, Operand], None]) -> None:
    """Emit ``visit(strip, count)`` for the rows (columns) of one tile after the other."""
    count = f.argument("count")
    strips = f.floordiv_index(f.add_index(count, SIDE - 1), SIDE)

    def strip(i: Index, _: list[Operand]) -> None:
        here = f.min_index(f.sub_index(count, f.mul_index(i, SIDE)), SIDE)
        visit(i, f.operand(here))

    f.loop(0, strips, 1, [], strip, runs=True)


def _each_depth(f: Function, visit: Callable[[Index, Operand | None], None]) -> None:
    """Emit ``visit(first k, lanes that exist)`` for all whole tiles along k, and the last one."""
    k = f.argument("k")
    whole = f.mul_index(f.floordiv_index(k, DEPTH), DEPTH)
    f.loop(0, whole, DEPTH, [], lambda at, _: visit(at, None))
    rest = f.operand(f.sub_index(k, whole))
    f.branch(
        f.compare("ne", rest, f.operand(0)),
        lambda: visit(whole, f.tail_mask(rest, DEPTH)),
    )


def _tile_at(f: Function, strip: Index, k: Index) -> str:
    """Return the address of a tile of the target, of the given strip and first k."""
    panel = f.mul_index(f.floordiv_index(strip, 2), f.argument("step"))
    offset = f.add_index(panel, f.mul_index(f.mod_index(strip, 2), TILE))
    offset = f.add_index(offset, f.mul_index(k, PANEL // DEPTH))
    return f.pointer("%target", offset, dtypes.uint8)


def _rounded(f: Function, base: str, offset: Index, dtype: DType, mask: Operand | None) -> Operand:
    """Load 32 neighbours as bfloat16."""
    return f.convert(f.load(base, offset, dtype, DEPTH, mask), dtypes.bfloat16)


def _from_rows(f: Function, dtype: DType, paired: bool) -> None:
    """Read where neighbours along k are neighbours in memory: a line is a row of 32 k."""
    across = f.argument("across")

    def strip(h: Index, here: Operand) -> None:
        first = f.pointer("%source", f.mul_index(f.mul_index(h, SIDE), across), dtype)
        if paired:
            _each_depth(f, lambda k, mask: turned(h, here, first, k, mask))
            return

        def row(r: Index, _: list[Operand]) -> None:
            start = f.pointer(first, f.mul_index(r, across), dtype)
            line = f.mul_index(r, DEPTH)
            _each_depth(
                f, lambda k, mask: f.store(_rounded(f, start, k, dtype, mask), to(h, k), line)
            )

        f.loop(0, here, 1, [], row, runs=True)

    def to(h: Index, k: Index) -> str:
        return _tile_at(f, h, k)

    def turned(h: Index, here: Operand, first: str, k: Index, mask: Operand | None) -> None:
        start = f.pointer(first, k, dtype)
        if dtype == dtypes.bfloat16 and mask is None:
            turn_words(f, start, f.mul_index(across, 2), to(h, k), here)
            return
        scratch = _scratch(f, 1)

        def row(r: Index, _: list[Operand]) -> None:
            line = f.pointer(start, f.mul_index(r, across), dtype)
            f.store(_rounded(f, line, 0, dtype, mask), scratch, f.mul_index(r, DEPTH))

        f.loop(0, here, 1, [], row, runs=True)
        turn_words(f, scratch, LINE, to(h, k), here)

    _each_strip(f, strip)


def _from_pairs(f: Function, dtype: DType, paired: bool) -> None:
    """Read where neighbours across k are neighbours in memory: a line is a pair of k.

    All panels for 32 k, then the next: 32 rows in memory are read from the left to the right, where
    panel by panel each row would be on another page.
    """
    along, k, count = (f.argument(name) for name in ("along", "k", "count"))
    order = [[i // 2 + SIDE * h + (i % 2) * 2 * SIDE for i in range(DEPTH)] for h in range(2)]
    scratch = "" if paired else _scratch(f, 2)
    whole = f.mul_index(f.floordiv_index(count, 2 * SIDE), 2 * SIDE)
    beyond = f.operand(f.sub_index(count, whole))
    some = f.tail_mask(beyond, 2 * SIDE)

    def pair(base: str, start: str, line: Index, known: int, exists: Operand | None) -> None:
        """Write a line of both tiles: ``known`` of its two k exist."""
        rows = [f.constant(0, dtypes.bfloat16, DEPTH)] * 2
        for i in range(known):
            row = f.add_index(f.mul_index(line, 2), i)
            rows[i] = _rounded(f, start, f.mul_index(row, along), dtype, exists)
        for h, lanes in enumerate(order):
            place = f.add_index(f.mul_index(line, DEPTH), h * TILE // 2)
            f.store(f.shuffle(rows[0], rows[1], lanes), base, place)

    def tiles(first: Index, column: Index, rest: Operand | None, exists: Operand | None) -> None:
        """Write the two tiles of a panel, ``rest`` of whose k exist."""
        strip = f.floordiv_index(column, SIDE)
        base = _tile_at(f, strip, first) if paired else scratch
        start = f.pointer("%source", f.add_index(f.mul_index(first, along), column), dtype)

        def lines(begin: Index, end: Index, known: int) -> None:
            f.loop(begin, end, 1, [], lambda i, _: pair(base, start, i, known, exists))

        if rest is None:
            lines(0, SIDE, 2)
        else:
            pairs, with_last = (f.floordiv_index(f.add_index(rest, i), 2) for i in range(2))
            lines(0, pairs, 2)
            lines(pairs, with_last, 1)
            lines(with_last, SIDE, 0)
        if not paired:
            for h in range(2):
                tile = f.pointer(scratch, h * TILE, dtypes.uint8)
                turn_words(
                    f, tile, LINE, _tile_at(f, f.add_index(strip, h), first), f.operand(SIDE)
                )

    def panels(first: Index, rest: Operand | None) -> None:
        f.loop(0, whole, 2 * SIDE, [], lambda column, _: tiles(first, column, rest, None))
        f.branch(f.compare("ne", beyond, f.operand(0)), lambda: tiles(first, whole, rest, some))

    deep = f.mul_index(f.floordiv_index(k, DEPTH), DEPTH)
    f.loop(0, deep, DEPTH, [], lambda at, _: panels(at, None))
    rest = f.operand(f.sub_index(k, deep))
    f.branch(f.compare("ne", rest, f.operand(0)), lambda: panels(deep, rest))


def _from_elements(f: Function, dtype: DType, paired: bool) -> None:
    """Read where no neighbours are neighbours in memory, one by one."""
    across, along, k = (f.argument(name) for name in ("across", "along", "k"))

    def strip(h: Index, here: Operand) -> None:
        first = f.pointer("%source", f.mul_index(f.mul_index(h, SIDE), across), dtype)

        def tile(at: Index, _: list[Operand]) -> None:
            place = _tile_at(f, h, at)
            base = _scratch(f, 1) if paired else place
            depth = f.min_index(f.sub_index(k, at), DEPTH)

            def row(r: Index, _: list[Operand]) -> None:
                start = f.add_index(f.mul_index(r, across), f.mul_index(at, along))
                line = f.mul_index(r, DEPTH)

                def element(i: Index, _: list[Operand]) -> None:
                    x = f.load(first, f.add_index(start, f.mul_index(i, along)), dtype)
                    f.store(f.convert(x, dtypes.bfloat16), base, f.add_index(line, i))

                f.store(f.constant(0, dtypes.bfloat16, DEPTH), base, line)
                f.loop(0, depth, 1, [], element, runs=True)

            f.loop(0, here, 1, [], row, runs=True)
            if paired:
                turn_words(f, base, LINE, place, here)

        f.loop(0, k, DEPTH, [], tile)

    _each_strip(f, strip)


def _scratch(f: Function, tiles: int) -> str:
    return f.at_entry(f"alloca [{tiles * TILE} x i8], align 64")


def turn_words(
    f: Function, source: str, step: Index, target: str, count: Operand, to_step: Index = LINE
) -> None:
    """Emit the turning of a tile: word (i, j) becomes word (j, i).

    Args:
        f: where to emit.
        source: the first line.
        step: bytes from one line to the next.
        target: the tile.
        count: how many lines exist; instead of others the last is read.
        to_step: bytes from one line of the target to the next.
    """
    key = "gemm turn pairs"
    name = f.module.memo.get(key)
    if name is None:
        name = f.module.unique("turn_pairs")
        arguments = {"source": "ptr readonly", "step": "i64", "target": "ptr", "count": "i64"}
        arguments["to_step"] = "i64"
        g = Function(f.module, name, arguments, inline="noinline")
        last = g.sub_index(g.argument("count"), 1)
        lines = [
            g.pointer(
                "%source", g.mul_index(g.min_index(i, last), g.argument("step")), dtypes.uint8
            )
            for i in range(SIDE)
        ]
        for block in range(0, SIDE, 4):
            loaded = [g.load(line, block, dtypes.uint32, 4) for line in lines]
            turned = transpose(g, [joined(g, loaded[i::4]) for i in range(4)])
            for i, row in enumerate(turned):
                place = g.mul_index(g.argument("to_step"), block + i)
                g.store(row, g.pointer("%target", place, dtypes.uint8), 0)
        name = f.module.memo[key] = g.end()
    given = [f"ptr {source}", f.operand(step).typed, f"ptr {target}", count.typed]
    given.append(f.operand(to_step).typed)
    f.emit(f"call void @{name}({', '.join(given)})")
