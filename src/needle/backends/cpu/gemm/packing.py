"""Copies of operands in the order in which the microkernel reads them.

A packed panel of B holds, for each k in turn, the columns of one tile. Packing turns a transposed B
round, converts 16-bit floats, and computes operands that are not in memory; and a large B packed
lies on few pages, its rows no longer at strides that share cache sets.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from needle.backends.cpu.gemm.spec import Extent
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.dtypes import DType


def pack_rows(
    f: Function,
    dtype: DType,
    widths: Sequence[int],
    tail: Index,
    k: Index,
    target: str,
    load: Callable[[Function, Index, int, int, Operand | None], Operand],
) -> None:
    """Emit the packing of one panel from loads of vectors along the rows of B.

    Args:
        f: where to emit.
        dtype: of the packed elements.
        widths: lanes of the vectors of the tile.
        tail: how many lanes of the last vector exist; 0 for all.
        k: rows of the panel.
        target: where the panel goes.
        load: ``load(f, k, column, lanes, mask)``: elements (k, column …) of the panel.
    """
    columns = [sum(w or 1 for w in widths[:j]) for j in range(len(widths))]
    masks: list[Operand | None] = [None] * len(widths)
    if tail != 0:
        masks[-1] = f.tail_mask(tail, widths[-1])
    total = sum(w or 1 for w in widths)

    def row(i: Index, _: list[Operand]) -> None:
        to = f.pointer(target, f.mul_index(i, total), dtype)
        for column, width, mask in zip(columns, widths, masks, strict=True):
            f.store(load(f, i, column, width, mask), to, column)

    f.loop(0, k, 1, [], row)


def pack_columns(module: Module, dtype: DType, lanes: int, stride: Extent, panel: Extent) -> str:
    """Return a function that packs ``lanes`` columns of a B whose columns are contiguous.

    ``void name(ptr source, ptr target, i64 k, i64 count[, i64 stride][, i64 panel])``: ``count``
    columns, ``stride`` elements apart, become the first ``lanes`` of each row of the panel, whose
    rows are ``panel`` elements. Squares of ``lanes`` × ``lanes`` are turned round in registers.
    """
    key = ("gemm pack columns", dtype, lanes, stride, panel)
    if key in module.memo:
        return module.memo[key]
    arguments = {"source": "ptr noalias readonly", "target": "ptr noalias"}
    arguments |= {"k": "i64", "count": "i64"}
    arguments |= {
        name: "i64" for name, value in (("stride", stride), ("panel", panel)) if value is None
    }
    name = module.memo[key] = module.unique("pack_columns")
    f = Function(module, name, arguments, inline="noinline")
    k, count = f.argument("k"), f.argument("count")
    step: Index = f.argument("stride") if stride is None else stride
    width: Index = f.argument("panel") if panel is None else panel
    # Columns that do not exist are read from the last that does: nothing uses what they give.
    last = f.sub_index(count, 1)
    sources = [
        f.pointer("%source", f.mul_index(f.min_index(j, last), step), dtype) for j in range(lanes)
    ]
    whole = f.mul_index(f.floordiv_index(k, lanes), lanes)

    def square(i: Index, _: list[Operand]) -> None:
        turned = transpose(f, [f.load(s, i, dtype, lanes) for s in sources])
        start = f.pointer("%target", f.mul_index(i, width), dtype)
        for u, row in enumerate(turned):
            f.store(row, start, f.mul_index(u, width))

    f.loop(0, whole, lanes, [], square)

    def single(i: Index, _: list[Operand]) -> None:
        row = f.constant(0, dtype, lanes)
        for j, source in enumerate(sources):
            row = f.insert(row, f.load(source, i, dtype), j)
        f.store(row, "%target", f.mul_index(i, width))

    f.loop(whole, k, 1, [], single)
    return f.end()


def transpose(f: Function, rows: list[Operand]) -> list[Operand]:
    """Return the columns of a square matrix given by its rows, n vectors of n lanes.

    In log2(n) stages: stage s exchanges blocks of 2^s × 2^s between rows that are 2^s apart. Blocks
    within 16 bytes first, which is what shuffles are fast at.
    """
    n = len(rows)
    size = 1
    while size < n:
        result = list(rows)
        for i in range(n):
            if i & size:
                continue
            x, y = rows[i], rows[i + size]
            low = [j if not j & size else n + j - size for j in range(n)]
            high = [j + size if not j & size else n + j for j in range(n)]
            result[i] = f.shuffle(x, y, low)
            result[i + size] = f.shuffle(x, y, high)
        rows = result
        size *= 2
    return rows
