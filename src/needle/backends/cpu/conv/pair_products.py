"""Sums of products of pairs of bfloat16, of 16·down rows × 16·across columns.

With AMX the sums stay in tile registers while tiles of rows and columns pass. With AVX-512-BF16
8×32 sums stay in vector registers. Elsewhere pairs are taken apart, converted, and added up one
after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from needle import dtypes
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
from needle.backends.cpu.llvm import Function, Index, Operand

#: Takes 32 products along: where they stand in a row, in bytes, their number, and the sums so far.
Visit: TypeAlias = "Callable[[Index, Index, list[Operand]], list[Operand]]"
#: Emits a visit for all products in order.
Each: TypeAlias = "Callable[[Sequence[Operand], Visit], list[Operand]]"

#: Sums are in half of the vector registers, where there are no tile registers.
_SHARE = 2


def sum_pairs(
    f: Function,
    sums: str,
    rows: tuple[Sequence[str], Index],
    strips: Sequence[str],
    each: Each,
    resumes: Operand | None = None,
) -> None:
    """Emit the sums of a tile, to memory: line by line, the floats of all strips side by side.

    Args:
        f: where to emit.
        sums: where they go.
        rows: where the products of each 16 rows begin; bytes from one row to the next.
        strips: where the tiles of each 16 columns begin, which follow each other.
        each: emits a visit for each 32 products.
        resumes: whether to add to the sums that are there.
    """
    emit = _sum_in_tiles if has_tiles(f.target) else _sum_in_vectors
    emit(f, sums, rows, strips, each, resumes)


def _sum_in_tiles(
    f: Function,
    sums: str,
    rows: tuple[Sequence[str], Index],
    strips: Sequence[str],
    each: Each,
    resumes: Operand | None,
) -> None:
    """Emit the sums: those of part (i, j) in tile register ``across·i + j``, rows and columns in
    those that are left."""
    starts, line = rows
    across = len(strips)
    parts = [(i, j) for i in range(len(starts)) for j in range(across)]
    of_a, of_b = len(parts), 8 - across
    step = across * LINE
    places = [f.pointer(sums, (i * SIDE * across + j) * LINE, dtypes.uint8) for i, j in parts]

    def clear() -> None:
        for number in range(len(parts)):
            clear_tile(f, number)

    def resume() -> None:
        for number, place in enumerate(places):
            load_tile(f, number, place, step)

    if resumes is None:
        clear()
    else:
        f.branch(resumes, resume, clear)

    def visit(at: Index, number: Index, _: list[Operand]) -> list[Operand]:
        b = f.mul_index(number, TILE)
        for i, j in parts:
            if i == 0:
                tile = f.pointer(strips[j], b, dtypes.uint8)
                load_tile(f, of_b + j, tile, LINE, streams=True)
            a = of_a + i % (of_b - of_a)
            if j == 0:
                load_tile(f, a, f.pointer(starts[i], at, dtypes.uint8), line)
            multiply_tiles(f, across * i + j, a, of_b + j)
        return []

    each([], visit)
    for number, place in enumerate(places):
        store_tile(f, number, place, step)


def _sum_in_vectors(
    f: Function,
    sums: str,
    rows: tuple[Sequence[str], Index],
    strips: Sequence[str],
    each: Each,
    resumes: Operand | None,
) -> None:
    """Emit the sums of a few rows after the other."""
    starts, line = rows
    across, words = len(strips), dtypes.uint32
    registers = f.target.registers * f.target.vector_bytes // (_SHARE * LINE)
    # Few enough at a time divide the 16 rows, for all are powers of 2.
    count = 1 << (min(max(registers // across, 1), 8).bit_length() - 1)

    def some(block: int, first: Index) -> None:
        a = f.pointer(starts[block], f.mul_index(first, line), dtypes.uint8)
        here = f.mul_index(f.add_index(first, block * SIDE), across * SIDE)
        to = f.pointer(sums, here, dtypes.float32)
        places = [i * SIDE for i in range(count * across)]
        zeros = [f.constant(0, dtypes.float32, SIDE)] * (count * across)

        def visit(at: Index, number: Index, sums: list[Operand]) -> list[Operand]:
            mine = f.pointer(a, at, dtypes.uint8)
            tiles = [f.pointer(s, f.mul_index(number, TILE), dtypes.uint8) for s in strips]
            return f.loop(0, SIDE, 1, sums, lambda p, sums: pair(mine, tiles, p, sums))

        def pair(a: str, tiles: list[str], p: Index, sums: list[Operand]) -> list[Operand]:
            columns = [f.load(tile, f.mul_index(p, SIDE), words, SIDE) for tile in tiles]
            added = []
            for r in range(count):
                row = f.pointer(a, f.mul_index(line, r), dtypes.uint8)
                mine = sums[r * across : (r + 1) * across]
                added += _added(f, mine, f.load(row, p, words), columns)
            return added

        begun = zeros
        if resumes is not None:
            begun = f.branch(
                resumes,
                lambda: [f.load(to, place, dtypes.float32, SIDE) for place in places],
                lambda: zeros,
            )
        for x, place in zip(each(begun, visit), places, strict=True):
            f.store(x, to, place)

    for block in range(len(starts)):
        f.loop(0, SIDE, count, [], lambda first, _, block=block: some(block, first))  # type: ignore[misc]


def _added(f: Function, sums: list[Operand], x: Operand, ys: list[Operand]) -> list[Operand]:
    """Return sums to which are added the products of a row's pair with one of each column: at once,
    or first the even ones."""
    if multiplies_pairs(f.target):
        word = f.splat(x, SIDE)
        return [add_pairs(f, total, word, y) for total, y in zip(sums, ys, strict=True)]
    for half in range(2):
        a = f.splat(_half(f, x, half), SIDE)
        sums = [f.fma(a, _half(f, y, half), total) for total, y in zip(sums, ys, strict=True)]
    return sums


def _half(f: Function, word: Operand, half: int) -> Operand:
    """Return the first or the second bfloat16 of words of 32 bits as float32."""
    if half:
        bits = f.binary("and", word, f.like(0xFFFF0000, word))
    else:
        bits = f.binary("shl", word, f.like(16, word))
    return f.bitcast(bits, dtypes.float32)


def stored_vectors(
    f: Function, across: int, mask: Operand | None
) -> list[tuple[int, int, Operand | None]]:
    """Return first column, lanes and mask of the vectors that a row of sums is stored as: 32 of 16
    bits are written to a line of the cache at once."""
    if across == 2 and mask is None and multiplies_pairs(f.target):
        return [(0, 2 * SIDE, None)]
    masks = [None] * (across - 1) + [mask]
    return [(SIDE * j, SIDE, mask) for j, mask in enumerate(masks)]


def convert_sums(f: Function, sums: Operand) -> Operand:
    """Return sums of pairs as bfloat16."""
    is_native = multiplies_pairs(f.target) and bool(sums.lanes)
    return round_sums(f, sums) if is_native else f.convert(sums, dtypes.bfloat16)
