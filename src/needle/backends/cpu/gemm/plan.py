"""Decisions before any code is emitted: tile shape, blocks, packing, and the split into tasks.

None of them changes a bit of the result. Figures are for one core with AVX-512 unless said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from needle.backends.cpu.gemm.spec import Extent, GemmSpec
from needle.backends.cpu.target import Target
from needle.dtypes import DType

#: Products of fewer multiply-adds than this read a row-major B where it is.
PACKED_FROM = 300_000_000
#: Products of fewer multiply-adds than this are one task: two cores would not gain a microsecond.
PARALLEL_FROM = 150_000
#: k is summed in blocks of at most this, so that a block's panel of B stays in the L2 cache.
K_BLOCK = 768
#: Sums up to this long are not cut into blocks.
K_WHOLE = 1152
#: Bytes of packed panels of B that are used together: half an L2 cache.
PACKED_BYTES = 1 << 20
#: Rows of A that are used together with them.
ROW_BLOCK = 192
#: What a run-time extent is taken for when tiles are chosen.
TYPICAL = 1024


@dataclass(frozen=True)
class Plan:
    """How a product is computed.

    Attributes:
        rows, vectors: the largest tile.
        k_block: k is summed in blocks of at most this; None: in one.
        pack_a, pack_b: whether the operand is copied into tiles first. For B, None: decided when
            the kernel runs.
        row_tiles, column_tiles: tiles of a block, for which packed operands are kept.
        grid: into how many parts batch, rows and columns are split: the tasks.
    """

    rows: int
    vectors: int
    k_block: int | None
    pack_a: bool
    pack_b: bool | None
    row_tiles: int
    column_tiles: int
    grid: tuple[int, int, int]

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return math.prod(self.grid)

    def depth(self, spec: GemmSpec) -> int:
        """Return the longest sum that is computed in one go."""
        return self.k_block or max(spec.k or 0, 1)

    def packed_elements(self, spec: GemmSpec, lanes: int) -> tuple[int, int]:
        """Return how many elements of packed B and of packed A a task keeps."""
        b = self.column_tiles * self.vectors * lanes if self.pack_b is not False else 0
        a = self.row_tiles * self.rows if self.pack_a else 0
        return b * self.depth(spec), a * self.depth(spec)

    def workspace_bytes(self, spec: GemmSpec, lanes: int, m: int) -> int:
        """Return the bytes that each task needs to itself: packed B, packed A, partial sums."""
        elements = sum(self.packed_elements(spec, lanes))
        if self.k_block is not None:
            tiles = -(-m // self.rows) * self.column_tiles
            elements += tiles * self.rows * self.vectors * lanes
        total = elements * spec.dtype.itemsize
        return total + -total % 64


def make_plan(spec: GemmSpec, target: Target, threads: int = 1) -> Plan:
    """Return the plan for ``spec`` on a machine with ``threads`` threads to use."""
    lanes = target.lanes(spec.dtype)
    rows, vectors = choose_tile(spec.m, spec.n, lanes, target.registers)
    work = math.prod(TYPICAL if e is None else e for e in (spec.m, spec.n, spec.k))
    computed_b = spec.b.load is not None or spec.b.dtype != spec.dtype
    pack_b: bool | None = computed_b or spec.b.column not in (1, None)
    if not pack_b:
        static = None not in (spec.m, spec.n, spec.k, spec.b.column)
        pack_b = work >= PACKED_FROM if static else None
    k_block = K_BLOCK if spec.k is None else None
    if spec.k is not None and spec.k > K_WHOLE:
        k_block = -(-spec.k // (-(-spec.k // K_BLOCK)))
        k_block += -k_block % 8
    kept = k_block or max(spec.k or 0, 1)
    width = vectors * lanes
    column_tiles = max(1, PACKED_BYTES // (width * kept * spec.dtype.itemsize))
    if spec.n is not None:
        column_tiles = min(column_tiles, max(1, -(-spec.n // width)))
    row_tiles = max(1, ROW_BLOCK // rows)
    if spec.m is not None:
        row_tiles = min(row_tiles, max(1, -(-spec.m // rows)))
    pack_a = spec.a.load is not None or spec.a.dtype != spec.dtype
    return Plan(
        rows,
        vectors,
        k_block,
        pack_a,
        pack_b,
        row_tiles,
        column_tiles,
        task_grid(spec, (rows, vectors * lanes), threads, bool(pack_b)),
    )


@lru_cache(maxsize=4096)
def choose_tile(m: Extent, n: Extent, lanes: int, registers: int) -> tuple[int, int]:
    """Return rows and vectors of the tile with which all tiles together take the least time.

    All sums, a row of B and one element of A are in registers.
    """
    best, chosen = math.inf, (1, 1)
    most = -(-(n if n is not None else TYPICAL) // lanes)
    for vectors in range(1, min(max(most, 1), registers // 2 - 1) + 1):
        for rows in range(1, min((registers - 1 - vectors) // vectors, 28) + 1):
            if m is not None and rows > max(m, 1):
                break
            cost = 0.0
            kinds = 0
            for height, down in split(TYPICAL if m is None else m, rows):
                for width, across in split(most, vectors):
                    cost += down * across * tile_cycles(height, width)
                    kinds += 1
            # Every kind of tile is a function more to compile.
            cost *= 1 + 0.01 * kinds
            if cost < best:
                best, chosen = cost, (rows, vectors)
    return chosen


def tile_cycles(rows: int, vectors: int) -> float:
    """Return about how many cycles a tile takes for each k.

    Two multiply-adds and two loads a cycle; each sum waits 4 cycles for its last multiply-add; and
    about 1 % for what is done once per tile.
    """
    sums = rows * vectors
    return max(sums / 2, (rows + vectors) / 2, 4.0) + 0.15 + 0.01 * sums


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
    spec: GemmSpec, tile: tuple[int, int], threads: int, packs_b: bool
) -> tuple[int, int, int]:
    """Return into how many parts to split batch, rows and columns, for extents that are known.

    The batch is split first, where it is large enough; then the axis whose split leaves the least
    to the busiest task, columns when B is packed (each task packs what it uses).
    """
    extents = (spec.m, spec.n, spec.k, *spec.batch)
    if threads <= 1 or any(e is None for e in extents):
        return (1, 1, 1)
    m, n, k = spec.m or 0, spec.n or 0, spec.k or 0
    return static_grid(m, n, k, math.prod(e or 0 for e in spec.batch), tile, threads, packs_b)


def static_grid(
    m: int, n: int, k: int, batch: int, tile: tuple[int, int], threads: int, packs_b: bool
) -> tuple[int, int, int]:
    """Return `task_grid` of known extents; also for kernels whose extents are run-time values."""
    if threads <= 1 or m * n * k * batch < PARALLEL_FROM:
        return (1, 1, 1)
    if batch >= 4 * threads or batch % threads == 0:
        return (threads, 1, 1)
    down, across = -(-m // tile[0]), -(-n // tile[1])
    best, chosen = math.inf, (1, 1)
    for rows in range(1, threads + 1):
        if threads % rows:
            continue
        columns = threads // rows
        if rows > down or columns > across:
            continue
        busiest = math.ceil(down / rows) * math.ceil(across / columns)
        # A and B are read once for each part of the other axis; packing costs more than reading.
        shared = 0.02 * (columns - 1) + (0.06 if packs_b else 0.02) * (rows - 1)
        cost = busiest / (down * across) + shared / threads
        if cost < best:
            best, chosen = cost, (rows, columns)
    return (1, *chosen)


def uses_masks(target: Target, dtype: DType) -> bool:
    """Whether loads and stores of part of a vector are single instructions."""
    return target.vector_bytes == 64 or (target.vector_bytes == 32 and dtype.itemsize in (4, 8))
