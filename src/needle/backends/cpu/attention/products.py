"""The products of tiles: scores, and sums of weighted rows. Their inner loops are those of gemm.

Queries lie along the lanes of tiles of scores: so maxima and sums over the keys are those of whole
vectors, and keys and values are read where they lie. Only a block of queries is copied, turned.
"""

from __future__ import annotations

from collections.abc import Callable

from needle.backends.cpu.attention.spec import QUERIES
from needle.backends.cpu.gemm.microkernel import Microkernel, Tile
from needle.backends.cpu.gemm.plan import uses_masks
from needle.backends.cpu.gemm.spec import Epilogue, Place
from needle.backends.cpu.gemm.tiling import tile_columns
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.target import Target
from needle.dtypes import DType

#: Rows of the tallest tile of sums.
TALLEST = 8


def not_negative(f: Function, x: Index) -> Operand:
    """Return the larger of x and 0."""
    value, zero = f.operand(x), f.operand(0)
    return f.select(f.compare("sgt", value, zero), value, zero)


def emit_scores(
    f: Function,
    dtype: DType,
    depth: int,
    rows: tuple[str, Index],
    panel: str,
    out: str,
    keys: Index,
    vectors: Index,
    shift: Index,
) -> None:
    """Emit ``out[key, query] = Σ rows[key, d] · panel[d, query]`` for a tile.

    Of a tile that the causal mask cuts, what it forbids is left out, but for the rest of vectors.

    Args:
        f: where to emit.
        dtype: of all.
        depth: how many d.
        rows: address, and elements from one key to the next.
        panel: address of turned queries, in rows of `QUERIES`.
        out: address of the tile, in rows of `QUERIES`.
        keys: how many keys.
        vectors: how many vectors of queries.
        shift: key r is allowed for query c if r + shift ≤ c.
    """
    key = ("attention scores", dtype, depth)
    name = f.module.memo.get(key)
    if name is None:
        name = f.module.memo[key] = _scores(f.module, dtype, depth)
    given = [f"ptr {rows[0]}", f.operand(rows[1]).typed, f"ptr {panel}", f"ptr {out}"]
    given += [f.operand(x).typed for x in (keys, vectors, shift)]
    f.emit(f"call void @{name}({', '.join(given)})")


def _scores(module: Module, dtype: DType, depth: int) -> str:
    arguments = {"a": "ptr", "a_row": "i64", "panel": "ptr", "out": "ptr"}
    arguments |= {"keys": "i64", "vectors": "i64", "shift": "i64"}
    f = Function(module, module.unique(f"scores_{depth}"), arguments, inline="noinline")
    lanes = f.target.lanes(dtype)
    step = f.argument("a_row")
    wide, tall, tall_alone = _score_tiles(f.target)

    def column(height: int, width: int, first: Index, keys: Operand) -> None:
        b, c = f.pointer("%panel", first, dtype), f.pointer("%out", first, dtype)

        def tile(rows: int, start: Index) -> None:
            kernel = Microkernel(
                Tile(rows, (lanes,) * width), dtype, depth, None, 1, QUERIES, QUERIES
            )
            a = f.pointer("%a", f.mul_index(start, step), dtype)
            there = f.pointer(c, f.mul_index(start, QUERIES), dtype)
            kernel.call(f, {"a": a, "b": b, "c": there}, a_row=step)

        def single(i: Index, _: list[Operand]) -> None:
            tile(1, i)

        def rest() -> None:
            # The last rows of a tile that overlaps the one before: the same bits again.
            f.branch(
                f.compare("sge", keys, f.operand(height)),
                lambda: tile(height, f.sub_index(keys, height)),
                lambda: f.loop(0, keys, 1, [], single),
            )

        whole = f.mul_index(f.binary("sdiv", keys, f.operand(height)), height)
        f.loop(0, whole, height, [], lambda i, _: tile(height, i))
        f.branch(f.compare("slt", f.operand(whole), keys), rest)

    vectors, keys, shift = f.argument("vectors"), f.argument("keys"), f.argument("shift")

    def alone(i: Index, _: list[Operand]) -> None:
        first = f.mul_index(i, lanes)
        seen = f.sub_index(f.add_index(first, lanes), shift)
        column(tall_alone, 1, first, f.operand(f.min_index(seen, keys)))

    def together() -> None:
        count = f.floordiv_index(vectors, wide)
        f.loop(0, count, 1, [], lambda i, _: column(tall, wide, f.mul_index(i, wide * lanes), keys))
        f.loop(f.mul_index(count, wide), vectors, 1, [], alone)

    is_cut = f.compare("sgt", f.operand(f.add_index(keys, shift)), f.operand(1))
    f.branch(is_cut, lambda: f.loop(0, vectors, 1, [], alone), together)
    return f.end()


def _score_tiles(target: Target) -> tuple[int, int, int]:
    """Return the vectors of wide tiles and their rows, and the rows of tiles of one vector."""
    if target.registers >= 32:
        return 4, 6, 12
    return (2, 6, 8) if target.fma else (2, 4, 8)


def emit_accumulate(
    f: Function,
    dtype: DType,
    a: str,
    b: tuple[str, Index],
    c: tuple[str, Index],
    rows: Index,
    columns: int,
    depth: Index,
    shift: Index,
    *,
    by_query: bool,
    factors: str = "",
) -> None:
    """Emit ``c[i, j] = c[i, j] · factors[i] + Σ a[i, k] · b[k, j]``.

    Of a tile that the causal mask cuts, k for which it forbids all rows in registers are left out:
    their weights are 0.

    Args:
        f: where to emit.
        dtype: of all.
        a: address of a tile of scores, in rows of `QUERIES`.
        b: address, and elements from one k to the next.
        c: address, and elements from one i to the next.
        rows: how many i.
        columns: how many j.
        depth: how many k.
        shift: key r is allowed for query c if r + shift ≤ c.
        by_query: whether i counts queries and k keys, or the other way round.
        factors: address of a factor for each i; 1 without.
    """
    known = c[1] if isinstance(c[1], int) else None
    key = ("attention sums", dtype, columns, by_query, bool(factors), known)
    name = f.module.memo.get(key)
    if name is None:
        name = f.module.memo[key] = _accumulate(
            f.module, dtype, columns, by_query, bool(factors), known
        )
    given = [f"ptr {a}", f"ptr {b[0]}", f.operand(b[1]).typed, f"ptr {c[0]}"]
    given += [f.operand(x).typed for x in (c[1], rows, depth, shift)]
    given.append(f"ptr {factors or 'null'}")
    f.emit(f"call void @{name}({', '.join(given)})")


def _accumulate(
    module: Module, dtype: DType, columns: int, by_query: bool, rescales: bool, c_row: int | None
) -> str:
    arguments = {"a": "ptr", "b": "ptr", "b_row": "i64", "c": "ptr", "c_row": "i64"}
    arguments |= {"rows": "i64", "depth": "i64", "shift": "i64", "factors": "ptr"}
    f = Function(module, module.unique(f"sums_{columns}"), arguments, inline="noinline")
    lanes = f.target.lanes(dtype)
    epilogue = _epilogue(rescales, c_row)
    a_row, a_k = (1, QUERIES) if by_query else (QUERIES, 1)
    most = 4 if f.target.registers >= 32 else 2
    tiling = tile_columns(f, columns, lanes, most, uses_masks(f.target, dtype))
    step: Index = f.argument("c_row") if c_row is None else c_row

    def column(_: Index, first: Index, widths: tuple[int, ...], tail: Index) -> None:
        assert isinstance(tail, int)
        heights = _sum_tiles(f.target, len(widths))

        def tile(rows: int, start: Index) -> None:
            kernel = Microkernel(
                Tile(rows, widths, tail), dtype, None, a_row, a_k, None, c_row, epilogue=epilogue
            )
            first_k, depth = _seen(f, start, rows, by_query)
            place = f.add_index(f.mul_index(start, a_row), f.mul_index(first_k, a_k))
            b_k = f.argument("b_row")
            pointers = {
                "a": f.pointer("%a", place, dtype),
                "b": f.pointer("%b", f.add_index(first, f.mul_index(first_k, b_k)), dtype),
                "c": f.pointer("%c", f.add_index(f.mul_index(start, step), first), dtype),
                "extra": f.pointer("%factors", start, dtype) if rescales else "%factors",
            }
            kernel.call(f, pointers, k=depth, b_k=b_k, c_row=step, batch=0, row=0, column=0)

        def turn(height: int) -> Callable[[Index, list[Operand]], None]:
            return lambda i, _: tile(height, i)

        done: Index = 0
        rows = f.argument("rows")
        for height in heights:
            left = f.sub_index(rows, done)
            stop = f.add_index(done, f.mul_index(f.floordiv_index(left, height), height))
            f.loop(done, stop, height, [], turn(height))
            done = stop

    tiling.each(0, tiling.count, column)
    return f.end()


def _seen(f: Function, start: Index, rows: int, by_query: bool) -> tuple[Index, Index]:
    """Return the first k of a tile of sums, and how many, as the causal mask allows them."""
    depth, shift = f.argument("depth"), f.argument("shift")
    if by_query:  # keys, up to that of the last row
        last = f.sub_index(f.add_index(start, rows), shift)
        return 0, not_negative(f, f.min_index(last, depth))
    first = f.min_index(not_negative(f, f.add_index(start, shift)), depth)
    return first, f.sub_index(depth, first)


def _sum_tiles(target: Target, vectors: int) -> tuple[int, ...]:
    """Return the heights of tiles of sums, the largest first: as many rows as registers allow."""
    if target.registers >= 32:
        return (6, 4, 1) if vectors > 3 else (8, 1)
    return (4, 1)


def _epilogue(rescales: bool, c_row: int | None) -> Epilogue:
    """Return what adds a tile's sums to what is there, which may be multiplied by its row's factor.

    The kernel's pointers are those of the tile.
    """

    def store(f: Function, sums: Operand, at: Place, _: object) -> None:
        step: Index = f.argument("c_row") if c_row is None else c_row
        place = f.add_index(f.mul_index(at.row, step), at.column)
        before = f.load("%c", place, sums.dtype, at.lanes, at.mask)
        if rescales:
            factor = f.load("%extra", at.row, sums.dtype)
            sums = f.fma(before, f.splat(factor, at.lanes), sums)
        else:
            sums = f.add(before, sums)
        f.store(sums, "%c", place, at.mask)

    return Epilogue(store, ("attention", rescales, c_row), instructions=4)
