"""Decisions about convolutions of pairs: how images are read, blocks, tiles and tasks.

None of them changes a bit of the result: in which order products are summed is `PairOrder`'s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from needle.backends.cpu.conv.blocking import Blocking
from needle.backends.cpu.conv.pair_sums_plan import shared_zeros
from needle.backends.cpu.conv.phase import Correlations, correlations
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm.plan import PARALLEL_FROM
from needle.ops.paired_convolution import DEPTH, SIDE, PairOrder

#: Bytes of images that are copied, and used, together: they stay in the L2 cache beside weights.
BLOCK_BYTES = 384 << 10
#: Bytes of gathered pixels, while weights stay in the L2 cache; else, so that weights are used for
#: many pixels each time that they arrive.
GATHERED_BYTES, MOST_GATHERED = 96 << 10, 768 << 10
#: Bytes of weights that stay in the L2 cache from block to block.
RESIDENT_BYTES = 768 << 10
#: Pixels of a block from which weights that come from the L3 cache cost little.
BLOCK_PIXELS = 512
#: Cycles of a tile of 16×16 sums for 32 products; to gather as many of a pixel; to copy a byte; for
#: a byte of the weight to arrive.
TILE_CYCLES, GATHER_CYCLES, COPY_CYCLES, WEIGHT_CYCLES = 16, 4, 0.05, 0.1


@dataclass(frozen=True)
class PairConvPlan(Blocking):
    """How a convolution of pairs is computed.

    Pixels of the result stand in a line, which is cut into tiles. If images are read where they
    lie, in rows one after the other (`is_line`), the line has places between rows, and between
    images, where windows straddle both: these are computed, and not stored. Otherwise the products
    of each pixel are gathered, side by side.

    Attributes:
        work: what.
        order: of the products.
        is_line: whether images are read as a line.
        copies: whether a block is copied first, zeros around it.
        images: of a block.
        rows: of a block's results: all of them if there are several images.
        down: tiles of 16 pixels that are computed together.
        across: strips of 16 channels that are computed together.
        chunk: pixels that are gathered at a time.
        by_place: whether pixels meet all weights of a task, before the next pixels do.
        grid: into how many parts blocks and channels are split: the tasks.
    """

    work: Correlations
    order: PairOrder
    is_line: bool
    copies: bool
    images: int
    rows: int
    down: int
    across: int
    chunk: int
    by_place: bool
    grid: tuple[int, int]

    @property
    def strips(self) -> int:
        """Strips of 16 output channels of a group."""
        return -(-self.work.outs // SIDE)

    @property
    def panels(self) -> int:
        """Panels of `across` strips of a group."""
        return -(-self.strips // self.across)

    @property
    def parts(self) -> int:
        """Into how many parts channels may be split: groups, or panels."""
        return self.work.groups if self.work.groups > 1 else self.panels

    @property
    def shared(self) -> tuple[int, int]:
        """Rows, and columns, of zeros in the copy that are the end of one image, or row, and the
        beginning of the next."""
        if not self.copies:
            return 0, 0
        down, across = shared_zeros(self.work)
        return (down if self.rows == self.work.down.extent else 0), across

    @property
    def pitch(self) -> tuple[int, int]:
        """Rows from one image to the next, and columns from one row, in what is read."""
        work = self.work
        if not self.copies:
            return work.source[1], work.source[2]
        down, across = self.shared
        rows, columns = work.down.length(self.rows), work.across.length(work.across.extent)
        return rows - down, columns - across

    @property
    def line(self) -> tuple[int, int]:
        """Rows of results from one image to the next, and columns from one row."""
        rows, columns = self.work.down.extent, self.work.across.extent
        if not self.is_line:
            return rows, columns
        down, across = self.pitch
        return (down if self.images > 1 else rows), across

    def places(self, images: int, rows: int) -> int:
        """Return how long the line of so many images, and rows of each, is."""
        down, across = self.line
        return (((images - 1) * down) + rows - 1) * across + self.work.across.extent

    @property
    def step(self) -> int:
        """Bytes from one gathered pixel to the next: an odd number of cache lines, so that tiles
        do not meet in few sets of the L1 cache."""
        return (self.order.tiles | 1) * 2 * DEPTH

    @property
    def edge(self) -> int:
        """Pixels of a tile."""
        return self.down * SIDE

    @property
    def copied(self) -> int:
        """Elements of the copy, with what tiles read beyond the last pixel; whole cache lines."""
        if not self.copies:
            return 0
        (rows, columns), (down, across) = self.pitch, self.shared
        pixels = (self.images * rows + down) * columns + across
        total = (pixels + (self.edge if self.is_line else 0)) * self.work.source[3]
        return total + -total % DEPTH

    @property
    def workspace(self) -> int:
        """Bytes that each task needs to itself: the copy, gathered pixels."""
        gathered = 0 if self.is_line else -(-self.chunk // self.edge) * self.edge * self.step
        return 2 * self.copied + gathered


def plan_pairs(spec: ConvSpec, threads: int) -> PairConvPlan:
    """Return the plan of a convolution of pairs: of some, that which should take least time."""
    return rank_pairs(spec, threads)[0]


def rank_pairs(spec: ConvSpec, threads: int) -> list[PairConvPlan]:
    """Return plans of a convolution of pairs, those first which should take least time."""
    work = correlations(spec)
    order = PairOrder(spec.kernel, spec.depth)
    strips = -(-work.outs // SIDE)
    across = min(strips, 2)
    plan = PairConvPlan(
        work, order, False, work.is_padded, 1, 1, 4 // across, across, 1, True, (1, 1)
    )
    parallel = threads if work.products >= PARALLEL_FROM else 1
    found = [
        candidate
        for is_line in ((False, True) if _has_lines(spec, order) else (False,))
        for grid in _grids(parallel, plan.parts)
        if (candidate := _divided(replace(plan, is_line=is_line, grid=grid))) is not None
    ]
    return sorted(found, key=_cycles)


def _has_lines(spec: ConvSpec, order: PairOrder) -> bool:
    """Whether the products of neighbouring pixels begin at one distance, and 32 are neighbours."""
    is_dense = spec.groups == 1 and (spec.dilation[1] == 1 or spec.kernel[1] == 1)
    return spec.stride == (1, 1) and order.is_by_row and (is_dense or spec.depth % DEPTH == 0)


def _grids(threads: int, parts: int) -> Iterator[tuple[int, int]]:
    """Yield ways to split blocks and channels among threads; and not to split them."""
    yield 1, 1
    for blocks in range(1, threads + 1):
        if threads > 1 and threads % blocks == 0 and threads // blocks <= parts:
            yield blocks, threads // blocks


def _divided(plan: PairConvPlan) -> PairConvPlan | None:
    """Return the plan with blocks of images, or of rows; None if these are too few for its grid."""
    work, wanted = plan.work, plan.grid[0]
    n, extent = work.source[0], max(work.down.extent, 1)
    # What is read as a line is copied, for tiles read beyond the last pixel.
    plan = replace(plan, copies=plan.copies or plan.is_line, images=1, rows=extent)
    is_resident = _weight_bytes(plan) <= RESIDENT_BYTES
    plan = replace(plan, by_place=is_resident)
    image_bytes = 2 * math.prod(plan.pitch) * work.source[3]
    bands = max(-(-image_bytes // BLOCK_BYTES), -(-wanted // n))
    if bands > 1:
        rows = -(-extent // min(bands, extent))
        plan = replace(plan, rows=rows)
        if plan.blocks < wanted:
            return None
    else:
        pixels = extent * work.across.extent
        images = -(-(4 * SIDE if is_resident else BLOCK_PIXELS) // max(pixels, 1))
        images = max(1, min(images, BLOCK_BYTES // max(image_bytes, 1), -(-n // wanted)))
        blocks = -(-n // images)
        blocks += -blocks % wanted
        plan = replace(plan, images=-(-n // blocks))
    room = (GATHERED_BYTES if is_resident else MOST_GATHERED) // plan.step
    most = plan.places(plan.images, plan.rows)
    chunk = max(plan.edge, min(room, most) // plan.edge * plan.edge)
    return replace(plan, chunk=chunk)


def _weight_bytes(plan: PairConvPlan) -> float:
    """Return the bytes of a task's share of the weights."""
    tiles = plan.work.groups * plan.strips * plan.order.tiles
    return tiles * 2 * DEPTH * SIDE / plan.grid[1]


def _cycles(plan: PairConvPlan) -> float:
    """Return about how long the busiest task takes."""
    work, tiles = plan.work, plan.order.tiles
    images, rows = min(plan.images, work.source[0]), min(plan.rows, work.down.extent)
    blocks = -(-plan.blocks // plan.grid[0])
    parts = -(-plan.parts // plan.grid[1])
    panels = parts * plan.panels if work.groups > 1 else parts
    places = plan.places(images, rows)
    computed = -(-places // plan.edge) * plan.down * panels * plan.across * tiles * TILE_CYCLES
    gathered = 0.0
    if not plan.is_line:
        groups = parts if work.groups > 1 else 1
        gathered = places * groups * (tiles * GATHER_CYCLES + 8)
    copied = 2 * images * math.prod(plan.pitch) * work.source[3] * COPY_CYCLES
    each = computed + gathered + (copied if plan.copies else 0)
    uses = 1 if plan.by_place else blocks
    return blocks * each + _weight_bytes(plan) * WEIGHT_CYCLES * uses
