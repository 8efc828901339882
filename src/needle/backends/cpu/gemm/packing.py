"""Copies of operands in the order in which the microkernel reads them.

A packed panel of B holds, for each k in turn, the columns of one tile. Packing turns a transposed B
round, converts 16-bit floats, and computes operands that are not in memory; and a large matrix
packed lies on few pages, its rows no longer at strides that share sets of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from needle.backends.cpu.llvm import Function, Index, Operand
from needle.dtypes import DType

#: Bytes of a cache line.
LINE = 64
#: How many rows ahead memory is asked for those of a matrix that is cut into strips: they are on
#: pages of their own, so that the processor does not foresee them (1536×2048·2048×384, A transposed
#: and in no cache: 11.9 ms, 11.1).
AHEAD = 16


def prefetch(f: Function, address: str, level: int) -> None:
    """Emit a hint that the cache line at an address is soon read; any address will do.

    Args:
        f: where to emit.
        address: in the line.
        level: of the cache that it is to be brought to: 1, 2 or 3.
    """
    f.module.declare("llvm.prefetch.p0", "void", ["ptr", "i32", "i32", "i32"])
    f.emit(f"call void @llvm.prefetch.p0(ptr {address}, i32 0, i32 {4 - level}, i32 1)")


def ask_for(f: Function, address: str, count: int, dtype: DType, level: int = 1) -> None:
    """Emit the prefetch of ``count`` elements that stand side by side."""
    for at in range(0, count, max(1, LINE // dtype.itemsize)):
        prefetch(f, f.pointer(address, at, dtype), level)


def pack_computed(
    f: Function,
    load: Callable[[Index, Index, int, Operand | None], Operand],
    target: str,
    rows: Index,
    widths: Sequence[int],
    tail: Index,
) -> None:
    """Emit the packing of a panel of B that is computed: ``load(k, column, lanes, mask)``.

    Args:
        f: where to emit.
        load: computes elements (k, column …) of the panel.
        target: where the panel goes.
        rows: of the panel.
        widths: lanes of the vectors of a row.
        tail: how many lanes of the last vector exist; 0 for all.
    """
    masks: list[Operand | None] = [None] * len(widths)
    if tail != 0:
        masks[-1] = f.tail_mask(tail, widths[-1])
    total = sum(w or 1 for w in widths)

    def row(k: Index, _: list[Operand]) -> None:
        column = 0
        for width, mask in zip(widths, masks, strict=True):
            x = load(k, column, width, mask)
            f.store(x, target, f.add_index(f.mul_index(k, total), column))
            column += width or 1

    f.loop(0, rows, 1, [], row)


def copy_rows(
    f: Function,
    source: tuple[str, DType, Index],
    target: tuple[str, DType, Index],
    rows: Index,
    columns: Index,
) -> None:
    """Emit the copy of a matrix of which neighbours in a row are neighbours in memory.

    Args:
        f: where to emit.
        source: address, dtype, and elements from one row to the next.
        target: the same; elements are converted.
        rows: how many rows.
        columns: how many columns.
    """
    name = _copy_function(f, source[1], target[1], columns)
    given = [f"ptr {source[0]}", f"ptr {target[0]}"]
    given += [f.operand(x).typed for x in (source[2], target[2], rows)]
    if not isinstance(columns, int):
        given.append(columns.typed)
    f.emit(f"call void @{name}({', '.join(given)})")


def _copy_function(f: Function, source: DType, target: DType, columns: Index) -> str:
    known = columns if isinstance(columns, int) else None
    key = ("gemm copy", source, target, known)
    if key in f.module.memo:
        return f.module.memo[key]
    arguments = {"source": "ptr noalias readonly", "target": "ptr noalias"}
    arguments |= {"from_step": "i64", "to_step": "i64", "rows": "i64"}
    if known is None:
        arguments["columns"] = "i64"
    g = Function(f.module, f.module.unique("pack_rows"), arguments, inline="noinline")
    count: Index = g.argument("columns") if known is None else known
    lanes = f.target.lanes(target)

    def row(i: Index, _: list[Operand]) -> None:
        start = g.pointer("%source", g.mul_index(i, g.argument("from_step")), source)
        to = g.pointer("%target", g.mul_index(i, g.argument("to_step")), target)

        def copy(width: int) -> Callable[[Index, list[Operand]], None]:
            def at(j: Index, _: list[Operand]) -> None:
                g.store(g.convert(g.load(start, j, source, width), target), to, j)

            return at

        if isinstance(count, int) and count <= 8 * lanes:
            for at, width in _pieces(count, lanes):
                copy(width)(at, [])
            return
        whole = g.mul_index(g.floordiv_index(count, lanes), lanes)
        g.loop(0, whole, lanes, [], copy(lanes))
        g.loop(whole, count, 1, [], copy(0))

    g.loop(0, g.argument("rows"), 1, [], row)
    name = f.module.memo[key] = g.end()
    return name


def copy_strips(
    f: Function,
    source: tuple[str, DType, Index],
    target: tuple[str, DType, int],
    rows: Index,
    columns: int,
    strips: Index,
) -> None:
    """Emit the copy of a matrix into strips of ``columns`` columns, each contiguous.

    Args:
        f: where to emit.
        source: address, dtype, and elements from one row to the next.
        target: address, dtype, and elements from one strip to the next.
        rows: how many rows.
        columns: of a strip.
        strips: how many strips stand side by side.
    """
    step = target[2]
    key = ("gemm strips", source[1], target[1], step, columns)
    name = f.module.memo.get(key)
    if name is None:
        arguments = {"source": "ptr noalias readonly", "target": "ptr noalias"}
        arguments |= dict.fromkeys(("from_step", "rows", "strips"), "i64")
        g = Function(f.module, f.module.unique("pack_strips"), arguments, inline="noinline")

        # Row by row: the rows of a large matrix are on pages of their own.
        def row(i: Index, _: list[Operand]) -> None:
            start = g.pointer("%source", g.mul_index(i, g.argument("from_step")), source[1])
            to = g.pointer("%target", g.mul_index(i, columns), target[1])
            later = g.pointer(start, g.mul_index(g.argument("from_step"), AHEAD), source[1])

            def strip(j: Index, _: list[Operand]) -> None:
                coming = g.pointer(later, g.mul_index(j, columns), source[1])
                ask_for(g, coming, columns, source[1])
                this = g.pointer(start, g.mul_index(j, columns), source[1])
                there = g.pointer(to, g.mul_index(j, step), target[1])
                for at, width in _pieces(columns, g.target.lanes(target[1])):
                    g.store(g.convert(g.load(this, at, source[1], width), target[1]), there, at)

            g.loop(0, g.argument("strips"), 1, [], strip)

        g.loop(0, g.argument("rows"), 1, [], row)
        name = f.module.memo[key] = g.end()
    given = [f"ptr {source[0]}", f"ptr {target[0]}"]
    given += [f.operand(x).typed for x in (source[2], rows, strips)]
    f.emit(f"call void @{name}({', '.join(given)})")


def _pieces(count: int, lanes: int) -> list[tuple[int, int]]:
    """Return offsets and widths of vectors, the last ones narrower, that cover ``count`` elements
    exactly; width 0 is a scalar."""
    pieces = []
    at, width = 0, lanes
    while at < count:
        if count - at >= width:
            pieces.append((at, width if width > 1 else 0))
            at += width
        else:
            width //= 2
    return pieces


def copy_elements(
    f: Function,
    source: tuple[str, DType, Index, Index],
    target: tuple[str, DType, Index],
    rows: Index,
    columns: Index,
) -> None:
    """Emit the copy of a matrix of any strides (of rows, of columns), element by element."""
    key = ("gemm copy elements", source[1], target[1])
    name = f.module.memo.get(key)
    if name is None:
        arguments = {"source": "ptr noalias readonly", "target": "ptr noalias"}
        arguments |= dict.fromkeys(("row_step", "column_step", "to_step", "rows", "columns"), "i64")
        g = Function(f.module, f.module.unique("pack_elements"), arguments, inline="noinline")
        step = g.argument("column_step")

        def row(i: Index, _: list[Operand]) -> None:
            start = g.pointer("%source", g.mul_index(i, g.argument("row_step")), source[1])
            to = g.pointer("%target", g.mul_index(i, g.argument("to_step")), target[1])

            def element(j: Index, _: list[Operand]) -> None:
                x = g.load(start, g.mul_index(j, step), source[1])
                g.store(g.convert(x, target[1]), to, j)

            g.loop(0, g.argument("columns"), 1, [], element)

        g.loop(0, g.argument("rows"), 1, [], row)
        name = f.module.memo[key] = g.end()
    given = [f"ptr {source[0]}", f"ptr {target[0]}"]
    sizes = (source[2], source[3], target[2], rows, columns)
    given += [f.operand(x).typed for x in sizes]
    f.emit(f"call void @{name}({', '.join(given)})")


def can_turn(dtype: DType) -> bool:
    """Whether `turn` serves a dtype."""
    return dtype.itemsize in (4, 8)


def turn(
    f: Function,
    source: tuple[str, DType, Index],
    target: tuple[str, Index],
    k: Index,
    columns: Index,
) -> None:
    """Emit the packing of columns, as many as a vector has lanes, that are contiguous in memory.

    They become the first elements of each row of the panel.

    Args:
        f: where to emit.
        source: address, dtype, and elements from one column to the next.
        target: address, and elements from one row to the next.
        k: rows.
        columns: how many of the columns exist.
    """
    dtype = source[1]
    key = ("gemm turn", dtype)
    name = f.module.memo.get(key)
    if name is None:
        arguments = {"source": "ptr noalias readonly", "target": "ptr noalias"}
        arguments |= dict.fromkeys(("from_step", "to_step", "rows", "columns"), "i64")
        g = Function(f.module, f.module.unique("pack_turned"), arguments, inline="noinline")
        name = f.module.memo[key] = _turn_function(g, dtype)
    given = [f"ptr {source[0]}", f"ptr {target[0]}"]
    given += [f.operand(x).typed for x in (source[2], target[1], k, columns)]
    f.emit(f"call void @{name}({', '.join(given)})")


def _turn_function(f: Function, dtype: DType) -> str:
    """Emit the function of `turn`: blocks of 16 bytes square are turned round in registers."""
    lanes = f.target.lanes(dtype)
    block = 16 // dtype.itemsize
    rows, step = f.argument("rows"), f.argument("to_step")
    # Columns that do not exist are read from the last that does: nothing uses what they give.
    last = f.sub_index(f.argument("columns"), 1)
    sources = [
        f.pointer("%source", f.mul_index(f.min_index(j, last), f.argument("from_step")), dtype)
        for j in range(lanes)
    ]

    def blocks(k: Index, _: list[Operand]) -> None:
        """Turn ``block`` elements of each column: 16 bytes, side by side in vectors."""
        loaded = [f.load(source, k, dtype, block) for source in sources]
        turned = transpose(f, [joined(f, loaded[i::block]) for i in range(block)])
        for i, row in enumerate(turned):
            f.store(row, "%target", f.mul_index(f.add_index(k, i), step))

    def single(k: Index, _: list[Operand]) -> None:
        for j, source in enumerate(sources):
            x = f.load(source, k, dtype)
            f.store(x, "%target", f.add_index(f.mul_index(k, step), j))

    whole = f.mul_index(f.floordiv_index(rows, block), block)
    f.loop(0, whole, block, [], blocks)
    f.loop(whole, rows, 1, [], single)
    return f.end()


def joined(f: Function, parts: Sequence[Operand]) -> Operand:
    """Return vectors, a power of two of them, as one."""
    while len(parts) > 1:
        lanes = range(2 * parts[0].lanes)
        parts = [f.shuffle(parts[i], parts[i + 1], lanes) for i in range(0, len(parts), 2)]
    return parts[0]


def transpose(f: Function, rows: Sequence[Operand]) -> list[Operand]:
    """Return the columns of the blocks of 16 bytes square that stand side by side in ``rows``.

    All of it is shuffles of one instruction.
    """
    n, block = rows[0].lanes, len(rows)
    rows = list(rows)
    # Interleave neighbours, as elements, then as pairs.
    width = 1
    while width < block:
        low, high = _interleaved(n, block, width)
        result = list(rows)
        for i in range(block):
            if not i & width:
                x, y = rows[i], rows[i + width]
                result[i], result[i + width] = f.shuffle(x, y, low), f.shuffle(x, y, high)
        rows = result
        width *= 2
    # The bits of a column's number come out reversed.
    return [rows[i] for i in ((0, 2, 1, 3) if block == 4 else (0, 1))]


def _interleaved(n: int, block: int, width: int) -> tuple[list[int], list[int]]:
    """Return masks that interleave groups of ``width`` of the lower, upper halves of blocks."""
    low, high = [], []
    for start in range(0, n, block):
        for group in range(0, block // 2, width):
            for source in (0, n):
                low += [source + start + group + e for e in range(width)]
                high += [source + start + block // 2 + group + e for e in range(width)]
    return low, high
