"""Operands that are read once: where C has few rows, a product takes as long as B takes to arrive.

So B is not copied, but multiplied on its way; and memory is asked early for what comes next.
"""

from __future__ import annotations

from collections.abc import Callable

from needle.backends.cpu.gemm.packing import LINE, joined, prefetch, transpose
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.dtypes import DType


def multiply_add(f: Function, x: Operand, y: Operand, z: Operand) -> Operand:
    """Return x · y + z, rounded once where the target can."""
    return f.fma(x, y, z) if x.is_float else f.add(f.mul(x, y), z)


def part(f: Function, x: Operand, lane: int, width: int) -> Operand:
    """Return ``width`` lanes of a vector from ``lane`` on; a width of 0 is a scalar."""
    return f.shuffle(x, x, range(lane, lane + width)) if width else f.extract(x, lane)


def turned_sum(
    f: Function,
    a: Callable[[int, Index], Operand],
    rows: int,
    b: tuple[str, DType, Index],
    k: Index,
    columns: Index,
) -> list[Operand]:
    """Emit the sums over k of a tile whose columns of B are contiguous, as of ``x · Wᵀ``.

    A block of as many columns as a vector has lanes is read along k, turned round in registers, and
    multiplied in the order in which a tile of any other product is: the sums have the same bits.

    Args:
        f: where to emit.
        a: ``a(row, k)``: emits an element of A.
        rows: of the tile.
        b: address, dtype, and elements from one column to the next.
        k: the extent of the sum.
        columns: how many of the columns exist.

    Returns:
        A vector of sums for each row.
    """
    base, dtype, step = b
    lanes = f.target.lanes(dtype)
    line, block = LINE // dtype.itemsize, 16 // dtype.itemsize
    # Columns that do not exist are read from the last that does: nothing uses what they give.
    last = f.sub_index(columns, 1)
    sources = [
        f.pointer(base, f.mul_index(f.min_index(j, last), step), dtype) for j in range(lanes)
    ]
    # What follows the block in memory is the next one: its lines are asked for as this is used.
    following = f.mul_index(step, lanes)

    def add(vector: Operand, k: Index, sums: list[Operand]) -> list[Operand]:
        return [
            multiply_add(f, f.splat(a(i, k), lanes), vector, total) for i, total in enumerate(sums)
        ]

    def turn(k: Index, sums: list[Operand]) -> list[Operand]:
        loaded = [f.load(source, k, dtype, block) for source in sources]
        turned = transpose(f, [joined(f, loaded[i::block]) for i in range(block)])
        for i, vector in enumerate(turned):
            sums = add(vector, f.add_index(k, i), sums)
        return sums

    def lines(k: Index, sums: list[Operand]) -> list[Operand]:
        for source in sources:
            prefetch(f, f.pointer(source, f.add_index(k, following), dtype), 1)
        for i in range(0, line, block):
            sums = turn(f.add_index(k, i), sums)
        return sums

    def single(k: Index, sums: list[Operand]) -> list[Operand]:
        vector = f.constant(0, dtype, lanes)
        for j, source in enumerate(sources):
            vector = f.insert(vector, f.load(source, k, dtype), j)
        return add(vector, k, sums)

    by_line, by_block = (f.mul_index(f.floordiv_index(k, n), n) for n in (line, block))
    sums = f.loop(0, by_line, line, [f.constant(0, dtype, lanes)] * rows, lines)
    sums = f.loop(by_line, by_block, block, sums, turn)
    return f.loop(by_block, k, 1, sums, single)
