"""Decisions about convolutions by Winograd's algorithm: blocks of tiles, tasks, register tiles.

None of them changes a bit of the result. Per tile and input channel the transformation takes 32
additions (24 with what neighbours share), per tile and output channel 24, where 16 · C products
are left of 36 · C. What is transformed is written and read once, so a block of it stays in the L2
cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from needle.backends.cpu.conv.plan import MOST_ROWS, tile_cycles
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm.plan import PARALLEL_FROM, split
from needle.backends.cpu.target import Target
from needle.ops.winograd import ELEMENTS, TILE, tiles_of
from needle.ops.winograd_convolution import panel_width, transformed_shape

#: Bytes of weights that stay in the L2 cache from block to block, and of a block of tiles beside
#: them: transformed, of all input channels, and products, of a panel; and without them.
RESIDENT_BYTES, BLOCK_BYTES, MOST_BYTES = 1 << 20, 512 << 10, 1 << 20
#: Cycles for a tile of a vector of channels: to transform it, and what its products make.
INPUT_CYCLES, OUTPUT_CYCLES = 24, 32
#: Cycles for a byte of the weight to arrive, if it comes from beyond the L2 cache; of a call.
WEIGHT_CYCLES, CALL_CYCLES = 0.065, 20
#: Bytes of a block that stay in the L1 cache, and cycles to write or read a line of others: blocks
#: of 16 tiles are up to a third faster than such of 256 (16 channels of 32²: 219 GFLOP/s, 170).
NEAR_BYTES, LINE_CYCLES = 40 << 10, 1.0


@dataclass(frozen=True)
class WinogradPlan:
    """How a convolution is computed by Winograd's algorithm.

    Attributes:
        source: shape of the images.
        result: shape of the result.
        down, across: tiles of an image.
        width: output channels of a panel.
        vectors: of output channels, of a register tile.
        rows_held: most tiles of the image, of a register tile.
        images: of a block.
        rows: rows of tiles of a block: all of them if there are several images.
        grid: into how many parts blocks and panels are split: the tasks.
    """

    source: tuple[int, ...]
    result: tuple[int, ...]
    down: int
    across: int
    width: int
    vectors: int
    rows_held: int
    images: int
    rows: int
    grid: tuple[int, int]

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return math.prod(self.grid)

    @property
    def bands(self) -> int:
        """How many blocks an image has."""
        return -(-self.down // self.rows)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.source[0] // self.images) * self.bands

    @property
    def panels(self) -> int:
        """Panels of output channels."""
        return -(-self.result[3] // self.width)

    @property
    def tiles(self) -> int:
        """Tiles of a block."""
        return self.images * self.rows * self.across

    @property
    def transformed(self) -> int:
        """Elements from one number of transformed tiles to the next: an odd number of cache lines,
        so that the 16 numbers of a tile do not meet in few sets of the L1 cache."""
        return _odd_lines(self.tiles * self.source[3])

    @property
    def products(self) -> int:
        """Elements from one number of the products to the next."""
        return _odd_lines(self.tiles * self.width)

    @property
    def places(self) -> tuple[int, int, int, int]:
        """Where in the workspace transformed tiles, products and a row of zeros begin, and its
        end."""
        products = ELEMENTS * self.transformed
        zeros = products + ELEMENTS * self.products
        return 0, products, zeros, zeros + _odd_lines(self.source[2] * self.source[3])

    @property
    def workspace(self) -> int:
        """Elements that each task needs to itself; whole cache lines."""
        return self.places[3]


def _odd_lines(elements: int) -> int:
    return (-(-elements // 16) | 1) * 16


def plan_winograd(spec: ConvSpec, target: Target, threads: int) -> WinogradPlan:
    """Return the plan of a convolution: of some, that which should take least time."""
    down, across = tiles_of(spec.counts)
    width = panel_width(spec.out_channels)
    lanes = target.lanes(spec.dtype)
    vectors = width // lanes if target.registers >= 32 and width // lanes <= 3 else 2
    held = min((target.registers - 1 - vectors) // vectors, MOST_ROWS)
    plan = WinogradPlan(
        spec.x_shape, spec.y_shape, down, across, width, vectors, held, 1, 1, (1, 1)
    )
    work = math.prod(spec.y_shape) * spec.in_channels * ELEMENTS // TILE**2
    parallel = threads if work >= PARALLEL_FROM else 1
    found = [
        candidate
        for grid in _grids(parallel, plan.panels)
        for candidate in _blocked(replace(plan, grid=grid))
    ]
    return min(found, key=lambda plan: _cycles(plan, lanes))


def _grids(threads: int, panels: int) -> Iterator[tuple[int, int]]:
    """Yield ways to split blocks and panels among threads; and not to split them."""
    yield 1, 1
    for blocks in range(1, threads + 1):
        if threads > 1 and threads % blocks == 0 and threads // blocks <= panels:
            yield blocks, threads // blocks


def _blocked(plan: WinogradPlan) -> Iterator[WinogradPlan]:
    """Yield the plan with blocks of several sizes that stay in the L2 cache."""
    n, rows = plan.source[0], plan.down
    each = ELEMENTS * 4 * (plan.source[3] + plan.width)
    most = (BLOCK_BYTES if _weight_bytes(plan) <= RESIDENT_BYTES else MOST_BYTES) // each
    most = max(most, plan.across)
    for bands in range(1, rows + 1):
        part = -(-rows // bands)
        if part * plan.across <= most and (bands == 1 or part < -(-rows // (bands - 1))):
            yield replace(plan, rows=part)
    image = rows * plan.across
    for images in range(2, min(n, most // image) + 1):
        yield replace(plan, images=images, rows=rows)


def _weight_bytes(plan: WinogradPlan) -> int:
    """Return the bytes of a task's share of the weight."""
    shape = transformed_shape(plan.source[3], plan.result[3])
    return math.prod(shape[1:]) * -(-shape[0] // plan.grid[1]) * 4


def _cycles(plan: WinogradPlan, lanes: int) -> float:
    """Return about how long the busiest task takes."""
    channels, across = plan.source[3], plan.across
    blocks = -(-plan.blocks // plan.grid[0])
    panels = -(-plan.panels // plan.grid[1])
    # What the last block has less of counts, if there is one.
    every = plan.source[0] * plan.down * across
    tiles = min(plan.tiles, every)
    multiplied = _multiplied(tiles, plan.rows_held, plan.vectors, channels)
    columns = plan.width // lanes
    multiplied *= ELEMENTS * panels * (columns / plan.vectors)
    finished = tiles * panels * columns * OUTPUT_CYCLES
    transformed = tiles * -(-channels // lanes) * INPUT_CYCLES
    far = max(0.0, 1 - NEAR_BYTES / (tiles * ELEMENTS * 4 * (channels + plan.width)))
    lines = tiles * (-(-channels // lanes) + panels * columns) * ELEMENTS
    moved = 2 * lines * far * LINE_CYCLES
    weight = _weight_bytes(plan)
    arriving = weight * WEIGHT_CYCLES * (1 if weight <= RESIDENT_BYTES else blocks)
    share = max(every / plan.grid[0], tiles) / tiles if plan.bands == 1 else blocks
    return arriving + min(blocks, max(share, 1.0)) * (
        multiplied + finished + transformed + moved + CALL_CYCLES * plan.images * plan.rows
    )


@lru_cache(maxsize=4096)
def _multiplied(tiles: int, held: int, vectors: int, channels: int) -> float:
    """Return about how many cycles one of the products of a block and a panel takes."""
    return sum(
        count * tile_cycles(rows, vectors, channels, rows) for rows, count in split(tiles, held)
    )
