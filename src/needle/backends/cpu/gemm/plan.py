"""Decisions before any code is emitted: tile shape, blocks, packing, and the split into tasks.

None of them changes a bit of the result. Figures are for one core with AVX-512 unless said.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TypeVar

from needle.backends.cpu.gemm.packing import can_turn
from needle.backends.cpu.gemm.spec import Extent, GemmSpec
from needle.backends.cpu.target import Target
from needle.dtypes import DType

#: Rows of C from which a large B is packed: copying an element costs 0.3 to 0.5 cycles, and its use
#: in a row of C 0.03.
PACKED_FROM_ROWS = 160
#: Bytes from which a B is large for that: it then does not stay in the L2 cache beside A and C
#: (512³: 916 µs, 850; 256×640·640×512: level; 256×1024·1024×256: 578, 450).
PACKED_FROM = 1 << 20
#: Rows of C from which B is packed if its vectors straddle cache lines, and come from the L2 cache:
#: the panel of a tile is larger than this in bytes.
UNALIGNED_FROM_ROWS = 64
L1_PANEL = 40 << 10
#: Bytes from which B is large: rows at wide strides then no longer stay in cache and TLB.
LARGE = 3 << 19
#: A large B that is not packed is used in blocks of k, one page each or several: for up to so many
#: rows of C blocks of the first length, else of the second.
SMALL_BLOCKS = (64, 64, 128)
#: Up to so many rows of C take B about as fast as it comes from memory: in blocks of so many k,
#: whose rows come side by side. What a single row multiplies is little enough that the processor
#: sees the next block coming; with more, memory is asked for it (12×768·768×3072: 830 µs, 370).
#: A transposed B is turned round on its way instead of packed (1×768·768×50257: 12.4 ms, 4.6).
FEW_ROWS = 16
STREAMED_K = 16
#: Vectors of a tile of a single row: wider ones are no faster, and where rows are short, the
#: processor foresees less of the next (1×1536·1536×384: 57 µs with 12, 45 with 4).
STREAMED_VECTORS = 4
#: Products of fewer multiply-adds than this are one task: two cores would not gain a microsecond.
PARALLEL_FROM = 150_000
#: To read an element of B from the L2 cache takes as long as so many multiply-adds.
READING = 4
#: To copy one into a panel.
PACKING = 12
#: k is summed in blocks of at most this, so that a block's panel of B stays in the L2 cache.
K_BLOCK = 768
#: Sums up to this long are not cut into blocks.
K_WHOLE = 1152
#: Bytes of packed panels of B that are used together, and stay in the L2 cache beside rows of A
#: (700×200·200×10000: 239 GFLOP/s with 4 MB, 290 with 512 kB; 1024³: 301, 321). Twice as many where
#: A is packed, too, and is so anew for each block of panels.
PACKED_BYTES = 512 << 10
#: Panels for which a kernel of run-time sizes has room, for sums of `K_WHOLE`.
MOST_PANELS = 16
#: Up to how many bytes of A are packed once, and stay in the L2 cache beside the panels. Then a
#: transposed A is packed if its sums are so long that a tile's lines do not stay in the L1 cache
#: (700×200 transposed, times 700×10000: 245 GFLOP/s, 266).
KEPT_BYTES = 1 << 20
KEPT_FROM_K = 512
#: Columns of C for which it pays to pack A.
WIDE = 256
#: Rows of A that are used together with them.
ROW_BLOCK = 192
#: Bytes between columns of a transposed A from which its blocks are copied: closer, they share
#: cache lines with the next tile's; further apart, they share sets of the cache.
APART = 1024
#: Bytes between the packed rows of one tile and those of the next: a cache line, so that tiles,
#: which are filled side by side, do not share sets of the cache (512³ with A transposed: 860 µs,
#: 750).
STRIP_GAP = 64
#: When B is packed, as a kernel of run-time sizes is told: if it begins more bytes than this beyond
#: an address that suits vectors.
ALWAYS, IF_OFF_LINE, NEVER = -1, 0, 63
#: What a run-time extent is taken for when tiles are chosen.
TYPICAL = 1024
#: How many tiles are worth a try: see `best_of_each`.
MOST_TILES = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How a product is computed.

    Attributes:
        rows, vectors: the largest tile.
        k_block: k is summed in blocks of at most this; None: in one; 0: given at run time.
        pack_a, pack_b: whether the operand is copied into tiles first; None: decided at run time
            (B, where all sizes are known, by its address; otherwise as `GemmKernel.sizes` says).
        row_tiles, column_tiles: tiles of a block, for which packed operands are kept.
        depth: the longest sum that is computed in one go.
        grid: into how many parts batch, rows and columns are split: the tasks.
        turns_b: whether columns of B that are contiguous are turned round in registers.
        ahead: how many rows of B ahead memory is asked for; 0: not at all.
        keeps_a: whether A is packed once, for all blocks of columns.
        packed_bytes: of how many bytes panels of B are used together, if k is not known.
    """

    rows: int
    vectors: int
    k_block: int | None
    pack_a: bool | None
    pack_b: bool | None
    row_tiles: int
    column_tiles: int
    depth: int
    grid: tuple[int, int, int]
    turns_b: bool = False
    ahead: int = 0
    keeps_a: bool = False
    packed_bytes: int = 0

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return math.prod(self.grid)

    def strip(self, itemsize: int) -> int:
        """Return the elements from the packed rows of one tile to those of the next."""
        return self.rows * self.depth + STRIP_GAP // itemsize

    def packed_elements(self, lanes: int, itemsize: int) -> tuple[int, int]:
        """Return how many elements of packed B and of packed A a task keeps."""
        b = self.column_tiles * self.vectors * lanes if self.pack_b is not False else 0
        a = self.row_tiles * self.strip(itemsize) if self.pack_a is not False else 0
        return b * self.depth, a

    @property
    def most_rows(self) -> int:
        """For how many rows partial sums are kept, where any number may come: see
        `_plan_of_any_rows`. In whole tiles, and some smaller ones for what is left over."""
        return PACKED_FROM_ROWS + self.rows * self.rows.bit_length()

    def workspace_bytes(self, spec: GemmSpec, lanes: int, m: int, n: int = 0) -> int:
        """Return the bytes that each task needs to itself: packed B, packed A, partial sums."""
        elements = sum(self.packed_elements(lanes, spec.dtype.itemsize))
        if self.k_block is not None:
            tiles = -(-m // self.rows) * self.column_tiles
            elements += tiles * self.rows * self.vectors * lanes
        total = elements * spec.dtype.itemsize
        return total + -total % 64


class Wish(NamedTuple):
    """What a plan is to have in place of what the model would choose; None leaves it to the model.

    Attributes:
        tile: rows and vectors.
        blocking: `Plan.k_block` and `Plan.pack_b`.
        pack_a: whether A is copied.
    """

    tile: tuple[int, int] | None = None
    blocking: tuple[int | None, bool | None] | None = None
    pack_a: bool | None = None


#: Leaves all to the model.
NO_WISH = Wish()


def make_plan(spec: GemmSpec, target: Target, threads: int = 1, wish: Wish = NO_WISH) -> Plan:
    """Return the plan for ``spec`` on a machine with ``threads`` threads to use.

    Args:
        spec: the product.
        target: the processor.
        threads: into about how many tasks to split the work, where it pays.
        wish: of a product all of whose sizes are known, in whole tiles.
    """
    lanes = target.lanes(spec.dtype)
    if is_dot(spec):
        return _dot_plan(spec, target, threads)
    if turns_b(spec):
        return _turned_plan(spec, target, threads)
    if spec.m is None and None not in (spec.n, spec.k, spec.b.row):
        return _plan_of_any_rows(spec, target)
    tasks = tasks_of(spec, threads)
    rows, vectors = wish.tile or choose_tile(spec.m, spec.n, spec.k, lanes, target, tasks)
    blocking = None
    if None not in (spec.m, spec.n, spec.k, spec.b.row, spec.b.column):
        extents = (spec.m or 0, spec.n or 0, spec.k or 0)
        blocking = wish.blocking or choose_blocks(spec, *extents, spec.b.row or 0)
    k_block, pack_b = blocking or (0, must_pack_b(spec) or None)
    streams = k_block == STREAMED_K
    if streams and spec.m == 1 and not wish.tile:
        vectors = min(vectors, STREAMED_VECTORS)
    pack_a: bool | None = must_pack_a(spec)
    if not pack_a and wish.pack_a is not None:
        pack_a = wish.pack_a
    elif not pack_a and blocking and None not in (spec.a.row, spec.a.column):
        extents = (spec.m or 0, spec.n or 0, spec.k or 0)
        pack_a = chooses_a(spec, *extents, spec.a.row or 0, spec.a.column or 0)
    elif not pack_a and spec.a.row is None:
        pack_a = None
    depth = (K_WHOLE if k_block == 0 else k_block) or max(spec.k or 0, 1)
    width = vectors * lanes
    row_tiles = max(1, ROW_BLOCK // rows)
    keeps_a = False
    if spec.m is not None:
        down = max(1, -(-spec.m // rows))
        strip = (rows * depth + STRIP_GAP) * spec.dtype.itemsize
        can_keep = k_block is None and down * strip <= KEPT_BYTES
        is_free = wish.pack_a is None and None not in (spec.a.row, spec.a.column)
        if can_keep and not pack_a and is_free:
            is_long = (spec.k or 0) >= KEPT_FROM_K and (spec.n or 0) >= WIDE
            pack_a = is_long and spec.a.row == 1 and spec.m > 1
        keeps_a = can_keep and pack_a is True
        row_tiles = down if keeps_a else min(row_tiles, down)
    packs_again = pack_a is not False and not keeps_a
    column_tiles = panels(depth * width * spec.dtype.itemsize, packs_again)
    if k_block == 0:
        column_tiles = max(column_tiles, MOST_PANELS)  # how many are used, each call decides
    if spec.n is not None:
        column_tiles = min(column_tiles, max(1, -(-spec.n // width)))
    grid = (1, 1, 1)
    if blocking and None not in spec.batch:
        extents = (spec.m or 0, spec.n or 0, spec.k or 0)
        batch = math.prod(e or 0 for e in spec.batch)
        grid = task_grid(extents, batch, (rows, vectors), lanes, threads, costs_of(bool(pack_b)))
    return Plan(
        rows,
        vectors,
        k_block,
        pack_a,
        pack_b,
        row_tiles,
        column_tiles,
        depth,
        grid,
        ahead=STREAMED_K if streams and spec.m != 1 else 0,
        keeps_a=keeps_a,
        packed_bytes=2 * PACKED_BYTES,
    )


def _plan_of_any_rows(spec: GemmSpec, target: Target) -> Plan:
    """Return the plan of a product all of whose sizes are known but the number of rows.

    k is cut into blocks only for few rows, where a large B is not packed: there must be room for
    the sums of all rows so far.
    """
    assert spec.n is not None
    assert spec.k is not None
    assert spec.b.row is not None
    lanes = target.lanes(spec.dtype)
    rows, vectors = choose_rows(spec.n, spec.k, lanes, target.registers, target.fma)
    depth = max(spec.k, 1)
    width = vectors * lanes
    column_tiles = panels(depth * width * spec.dtype.itemsize, must_pack_a(spec))
    column_tiles = min(column_tiles, max(1, -(-spec.n // width)))
    packs = must_pack_b(spec) or None
    is_large = spec.k * max(spec.b.row, spec.n) * spec.dtype.itemsize >= LARGE
    return Plan(
        rows,
        vectors,
        0 if is_large and not packs else None,
        must_pack_a(spec),
        packs,
        max(1, ROW_BLOCK // rows),
        column_tiles,
        depth,
        (1, 1, 1),
    )


def panels(nbytes: int, packs_a: bool) -> int:
    """Return how many packed panels of B, of so many bytes, are used together."""
    return max(1, PACKED_BYTES * (2 if packs_a else 1) // nbytes)


def is_dot(spec: GemmSpec) -> bool:
    """Whether a product is a matrix, its rows contiguous, times a vector, both in memory."""
    in_memory = not spec.a.load and not spec.b.load
    converted = spec.a.dtype != spec.dtype or spec.b.dtype != spec.dtype
    known = spec.k is not None or spec.b.row == 1
    # A single row of a transposed A is contiguous, too, but is to be summed as other rows are.
    by_rows = spec.a.column == 1 and spec.a.row != 1
    return spec.n == 1 and by_rows and in_memory and not converted and known


def _dot_plan(spec: GemmSpec, target: Target, threads: int) -> Plan:
    """Return the plan of `is_dot` products; the vector is copied if its elements are apart."""
    rows = 4 if target.registers >= 32 else 2
    known = None not in (spec.m, spec.k, *spec.batch)
    batch = math.prod(e or 0 for e in spec.batch)
    # A multiply-add takes one load here: as long as about 8 in a tile.
    work = (spec.m or 0, 8, spec.k or 0)
    grid = task_grid(work, batch, (rows, 1), 8, threads, costs_of(False)) if known else (1, 1, 1)
    return Plan(rows, 1, None, False, spec.b.row != 1, 1, 1, spec.k or 0, grid)


def turns_b(spec: GemmSpec) -> bool:
    """Whether a product is ``x · Wᵀ`` of few rows: B in memory, its columns contiguous."""
    in_memory = not spec.a.load and not spec.b.load
    converted = spec.a.dtype != spec.dtype or spec.b.dtype != spec.dtype
    is_turned = spec.b.row == 1 and spec.b.column != 1 and can_turn(spec.dtype)
    is_few = spec.m is not None and 0 < spec.m <= FEW_ROWS
    return is_turned and is_few and in_memory and not converted and spec.n not in (0, 1)


def _turned_plan(spec: GemmSpec, target: Target, threads: int) -> Plan:
    """Return the plan of `turns_b` products: all rows in one tile, all of k at once."""
    m, lanes = spec.m or 0, target.lanes(spec.dtype)
    # In registers are the sums, a block of B and what it is turned round with.
    rows = min(m, target.registers - 8 - 16 // spec.dtype.itemsize)
    grid = (1, 1, 1)
    if None not in (spec.n, spec.k, *spec.batch):
        batch = math.prod(e or 0 for e in spec.batch)
        extents = (m, spec.n or 0, spec.k or 0)
        grid = task_grid(extents, batch, (rows, 1), lanes, threads, costs_of(False))
    return Plan(rows, 1, None, False, False, 1, 1, spec.k or 0, grid, turns_b=True)


def must_pack_b(spec: GemmSpec) -> bool:
    """Whether B cannot be read where it is, whatever its extents."""
    is_computed = spec.b.load is not None or spec.b.dtype != spec.dtype
    return is_computed or spec.b.column not in (1, None)


def must_pack_a(spec: GemmSpec) -> bool:
    """Whether A cannot be read where it is, whatever its extents."""
    return spec.a.load is not None or spec.a.dtype != spec.dtype


def can_be_given_packed(spec: GemmSpec) -> bool:
    """Whether B can have been packed before, for many products with it: where they do not pack it
    themselves, and would read it at wide strides."""
    m, n, k, row = spec.m, spec.n, spec.k, spec.b.row
    if m is None or n is None or k is None or row is None or spec.batch:
        return False
    if must_pack_b(spec) or n == 1 or m >= PACKED_FROM_ROWS or k > K_WHOLE:
        return False
    nbytes = k * n * spec.dtype.itemsize
    is_streamed = m <= FEW_ROWS and nbytes >= LARGE
    return nbytes > L1_PANEL and not is_streamed


def chooses_a(spec: GemmSpec, m: int, n: int, k: int, a_row: int, a_column: int) -> bool:
    """Return whether to copy A: if it must be; or if the columns of a transposed A are far apart,
    which costs a cache miss for each k of each tile, and there are tiles enough to gain from it."""
    apart = a_row == 1 and m > 1 and a_column * spec.dtype.itemsize >= APART
    return must_pack_a(spec) or (apart and k >= 128 and n >= WIDE)


def choose_blocks(
    spec: GemmSpec, m: int, n: int, k: int, b_row: int
) -> tuple[int | None, bool | None]:
    """Return the length of blocks of k (None: one block), and whether to pack B (None: if it begins
    on an address where its vectors straddle cache lines)."""
    if spec.b.is_packed:
        return None, False
    packs: bool | None = must_pack_b(spec)
    size = spec.dtype.itemsize
    nbytes = k * max(b_row, n) * size
    is_large = nbytes >= LARGE
    if nbytes >= PACKED_FROM and m >= PACKED_FROM_ROWS:
        packs = True
    if not packs and k * 256 > L1_PANEL and n > 64 and m >= UNALIGNED_FROM_ROWS:
        packs = True if b_row * size % 64 else None if spec.b.may_be_off_line else False
    whole, block = K_WHOLE, K_BLOCK
    if is_large and not packs and m <= FEW_ROWS:
        whole = block = STREAMED_K
    elif is_large and not packs:
        few, short, long = SMALL_BLOCKS
        whole = block = short if m <= few else long
    if k <= whole:
        return None, packs
    length = -(-k // (-(-k // block)))
    return length + -length % 16, packs


def tasks_of(spec: GemmSpec, threads: int) -> int:
    """Return among how many tasks the tiles of one matrix are shared, if all sizes are known."""
    if threads <= 1 or None in (spec.m, spec.n, spec.k, *spec.batch):
        return 1
    m, n, k = spec.m or 0, spec.n or 0, spec.k or 0
    batch = math.prod(e or 0 for e in spec.batch)
    is_small = max(m, READING) * n * k * batch < PARALLEL_FROM
    return 1 if is_small or _splits_batch(batch, threads) else threads


def _splits_batch(batch: int, threads: int) -> bool:
    """Whether each task takes whole matrices of a batch."""
    return batch >= 4 * threads or batch % threads == 0


def choose_tile(
    m: Extent, n: Extent, k: Extent, lanes: int, target: Target, tasks: int = 1
) -> tuple[int, int]:
    """Return rows and vectors of the tile with which all tiles together take the least time."""
    return rank_tiles(m, n, k, lanes, target, tasks)[0]


@lru_cache(maxsize=4096)
def rank_tiles(
    m: Extent, n: Extent, k: Extent, lanes: int, target: Target, tasks: int = 1
) -> tuple[tuple[int, int], ...]:
    """Return rows and vectors of tiles: first those with which all tiles together take least time,
    then others that are worth a try.

    In registers are all sums, a row of B and one element of A.
    """
    costs: dict[tuple[int, int], float] = {}
    # Without a fused instruction the product takes a register, and copies of operands others.
    registers = target.registers - (1 if target.fma else 3)
    across = max(-(-(n if n is not None else TYPICAL) // lanes), 1)
    depth = TYPICAL if k is None else max(k, 1)
    most = (registers - 1) // 2 if m == 1 else 4
    for vectors in range(1, min(across, most) + 1):
        tallest = min((registers - vectors) // vectors, 28, max(m or TYPICAL, 1))
        for rows in sorted({split(m, r)[0][0] for r in range(1, tallest + 1)} if m else [tallest]):
            cost = 0.0
            kinds = 0
            for height, down in split(TYPICAL if m is None else m, rows):
                for width, count in split(across, vectors):
                    cost += down * count * tile_cycles(height, width, depth)
                    kinds += 1
            # Every kind of tile is a function more to compile.
            cost *= 1 + 0.003 * kinds
            if tasks > 1:
                cost *= _busiest(m or TYPICAL, across, (rows, vectors), tasks)
            costs[rows, vectors] = cost
    return best_of_each(costs, lambda tile: tile[1]) or ((1, 1),)


def _busiest(m: int, across: int, tile: tuple[int, int], tasks: int) -> float:
    """Return the share of all work that the busiest of some tasks has, split as is best."""
    return min(
        (
            largest_share(m, tile[0], rows) * largest_share(across, tile[1], tasks // rows)
            for rows in range(1, tasks + 1)
            if tasks % rows == 0
        ),
        default=1.0,
    )


def largest_share(extent: int, size: int, parts: int) -> float:
    """Return the largest share of an axis that a part has, if near-equal tiles of at most ``size``
    are dealt out; 1 if there are fewer tiles than parts.

    Example:
        >>> largest_share(100, 6, 2)  # 8 of 17 tiles, and 9
        0.52
    """
    tiles = -(-extent // size)
    if parts > tiles:
        return 1.0
    small, large = divmod(extent, tiles)
    bounds = [tiles * part // parts for part in range(parts + 1)]
    starts = [tile * small + min(tile, large) for tile in bounds]
    return max(b - a for a, b in itertools.pairwise(starts)) / extent


def best_of_each(costs: Mapping[T, float], vectors: Callable[[T], int]) -> tuple[T, ...]:
    """Return tiles that are worth a try: the cheapest, the cheapest ones of other numbers of
    vectors, then the next cheapest.

    Example:
        >>> best_of_each({(6, 4): 10.0, (5, 4): 11.0, (14, 2): 12.0}, lambda tile: tile[1])
        ((6, 4), (14, 2), (5, 4))
    """
    ranked = sorted(costs, key=costs.__getitem__)
    best = {vectors(tile): tile for tile in reversed(ranked)}
    heads = [tile for tile in ranked if best[vectors(tile)] == tile]
    return tuple(dict.fromkeys([*heads, *ranked]))[:MOST_TILES]


#: Numbers of rows for which the tile of an unknown number shall suit.
_TYPICAL_ROWS = (1, 8, 32, 64, 128, 1000)


@lru_cache(maxsize=1024)
def choose_rows(n: int, k: int, lanes: int, registers: int, fma: bool) -> tuple[int, int]:
    """Return rows and vectors of the tile that suits any number of rows; see `tile_rows`."""
    registers -= 1 if fma else 3
    across = max(-(-n // lanes), 1)
    candidates = [
        (rows, vectors)
        for vectors in range(1, min(across, 4) + 1)
        for rows in range(1, min((registers - vectors) // vectors, 28) + 1)
    ]

    def cost(m: int, rows: int, vectors: int) -> float:
        total = 0.0
        whole, rest = divmod(m, rows)
        for height in [rows] * whole + [1 << b for b in range(5) if rest >> b & 1]:
            for width, count in split(across, vectors):
                total += count * tile_cycles(height, width, max(k, 1))
        return total

    table = {c: [cost(m, *c) for m in _TYPICAL_ROWS] for c in candidates}
    best = [min(costs[i] for costs in table.values()) for i in range(len(_TYPICAL_ROWS))]
    return min(candidates, key=lambda c: sum(x / y for x, y in zip(table[c], best, strict=True)))


def tile_cycles(rows: int, vectors: int, k: int) -> float:
    """Return about how many cycles a tile takes.

    For each k: two multiply-adds a cycle, of which none waits less than 4 cycles for the last of
    its sum; and loads, in part hidden behind them. For each tile: the call, and the stores.
    """
    sums = rows * vectors
    return k * (max(sums / 2, 4.0) + 0.15 * (rows + vectors)) + 20 + sums


def split(extent: int, size: int) -> list[tuple[int, int]]:
    """Return near-equal parts of at most ``size`` as (part, how many), the larger ones first.

    Example:
        >>> split(33, 6)
        [(6, 3), (5, 3)]
    """
    if extent == 0:
        return []
    parts = -(-extent // size)
    small, large = divmod(extent, parts)
    found = [(small + 1, large), (small, parts - large)]
    return [(part, count) for part, count in found if count]


def task_grid(
    extents: tuple[int, int, int],
    batch: int,
    tile: tuple[int, int],
    lanes: int,
    threads: int,
    costs: tuple[float, float],
) -> tuple[int, int, int]:
    """Return into how many parts to split batch, rows and columns.

    The batch is split first, where it is large enough; then the axes whose split leaves the least
    to the busiest task: to multiply, to read its part of A, and to read or to pack that of B.

    Args:
        extents: m, n and k.
        batch: how many matrices.
        tile: rows and vectors of the largest tile.
        lanes: of a vector.
        threads: how many tasks can run at once.
        costs: of reading an element of A, and of reading or packing one of B, in multiply-adds.
    """
    m, n, k = extents
    if threads <= 1 or max(m, READING) * n * k * batch < PARALLEL_FROM:
        return (1, 1, 1)
    if _splits_batch(batch, threads):
        return (threads, 1, 1)
    across = -(-n // lanes)
    best, chosen = math.inf, (1, 1)
    for rows in range(1, threads + 1):
        columns = threads // rows
        if threads % rows or rows * tile[0] >= m + tile[0] or columns * tile[1] >= across + tile[1]:
            continue
        down, wide = largest_share(m, tile[0], rows), largest_share(across, tile[1], columns)
        # In multiply-adds, for each of the whole product.
        cost = down * wide + costs[0] * down / n + costs[1] * wide / m
        if cost < best:
            best, chosen = cost, (rows, columns)
    return (1, *chosen)


def costs_of(packs_b: bool) -> tuple[float, float]:
    """Return what `task_grid` takes for the costs of operands."""
    return READING, PACKING if packs_b else READING


def uses_masks(target: Target, dtype: DType) -> bool:
    """Whether loads and stores of part of a vector are single instructions."""
    return target.vector_bytes == 64 or (target.vector_bytes == 32 and dtype.itemsize in (4, 8))
