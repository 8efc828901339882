"""Decisions about gradients by the weight: blocks of pixels, tiles of taps and channels, and tasks.

The sum over pixels is cut into blocks by the shape of the cotangent alone; within a block it is one
chain. No other decision changes a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from needle.backends.cpu.conv.phase import Seen
from needle.backends.cpu.conv.plan import (
    BLOCK_BYTES,
    COPY_CYCLES,
    NO_WISH,
    READ_CYCLES,
    Shape,
    Wish,
    rank_shapes,
)
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm.plan import PARALLEL_FROM
from needle.backends.cpu.target import Target

#: Pixels that are summed in one chain, about. What is read of them stays in the caches near the
#: core, and errors of rounding grow more slowly than in one chain over all.
PIXELS = 256
#: Input channels that are copied, and used, together: what a block of pixels sees of them stays in
#: the L1 cache or near it.
CHANNELS = 32
#: Bytes of a pixel of the cotangent from which its panels are copied: at wide strides, lines share
#: sets of the L1 cache. Copying pays from so many products of an element.
APART = 1024
PACKED_FROM = 160
#: The same of an image, from so many products of an element.
COPIED_FROM = 256
#: Share of the products with rows of an image below which those with rows outside are left out: to
#: check that this is allowed takes time, too.
SKIPPED_BELOW = 0.97
#: Fewer channels are not worth a part of their own.
FEWEST_CHANNELS = 8


@dataclass(frozen=True)
class Summed:
    """Blocks of pixels.

    Attributes:
        images: of a block; 1, if an image has several.
        rows: of the cotangent, of a block.
        bands: blocks of an image.
    """

    images: int
    rows: int
    bands: int


def blocks_of(images: int, rows: int, columns: int) -> Summed:
    """Return the blocks of a cotangent of these extents: whole images, or whole rows of one.

    Example:
        >>> blocks_of(32, 56, 56)
        Summed(images=1, rows=4, bands=14)
    """
    pixels = max(rows * columns, 1)
    if pixels >= PIXELS:
        bands = -(-rows // max(1, PIXELS // max(columns, 1)))
        rows_each = -(-rows // bands)
        return Summed(1, rows_each, -(-rows // rows_each))
    together = max(1, min(images, PIXELS // pixels))
    count = max(1, -(-images // together))
    return Summed(max(1, -(-images // count)), max(rows, 1), 1)


@dataclass(frozen=True)
class DenseSumsPlan:
    """How a gradient by the weight is computed.

    Attributes:
        blocks: of pixels.
        shape: the largest tile: rows and columns of the kernel × input channels, and vectors of
            output channels.
        channels: input channels of a group that are used together, at most.
        bands: bands of an image that are copied together.
        copies: whether what is read is copied first, zeros around it.
        packs: whether a panel of a block of the cotangent is copied first.
        skips: whether rows of the cotangent are left out where a tap sees zeros alone.
        down, across: what is read.
        grid: into how many parts are split: output channels or groups, input channels, and rows of
            the kernel: the tasks.
        split_groups: whether groups are split, or panels of a group.
    """

    blocks: Summed
    shape: Shape
    channels: int
    bands: int
    copies: bool
    packs: bool
    skips: bool
    down: Seen
    across: Seen
    grid: tuple[int, int, int]
    split_groups: bool

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return math.prod(self.grid)

    @property
    def copied_rows(self) -> int:
        """Rows of the cotangent for which an image is copied at a time."""
        return min(self.bands * self.blocks.rows, self.down.extent)

    def part_elements(self) -> int:
        """Return the elements of the copy of a part of the input channels."""
        row = self.across.length(self.across.extent) * self.channels
        return self.blocks.images * self.down.length(self.copied_rows) * row

    def copy_elements(self, spec: ConvSpec) -> int:
        """Return the elements of a task's copies; whole cache lines."""
        if not self.copies:
            return 0
        parts = -(-spec.depth // self.channels)
        total = -(-parts // self.grid[1]) * self.part_elements()
        return total + -total % 64

    def shares(self, spec: ConvSpec, lanes: int) -> tuple[int, int, int, int]:
        """Return what a task has at most: groups, panels of a group, parts of the input channels,
        rows of the kernel."""
        outs = spec.out_channels // spec.groups
        groups, panels = spec.groups, panel_count(outs, lanes, self.shape.vectors)
        parts = -(-spec.depth // self.channels)
        first, second, third = self.grid
        if self.split_groups:
            groups = -(-groups // first)
        else:
            panels = -(-panels // first)
        return groups, panels, -(-parts // second), -(-spec.kernel[0] // third)

    def partial_elements(self, spec: ConvSpec, lanes: int) -> int:
        """Return the elements that a task needs for sums of blocks; whole cache lines."""
        if self.is_one_block(spec):
            return 0
        tile = spec.kernel[1] * self.channels * self.shape.vectors * lanes
        total = math.prod(self.shares(spec, lanes)) * tile
        return total + -total % 64

    def packed_elements(self, spec: ConvSpec, lanes: int) -> int:
        """Return the elements of a panel of a block of the cotangent; whole cache lines."""
        pixels = self.blocks.images * self.blocks.rows * spec.counts[1]
        return pixels * self.shape.vectors * lanes if self.packs else 0

    def is_one_block(self, spec: ConvSpec) -> bool:
        """Whether one block has all pixels."""
        return spec.images <= self.blocks.images and self.blocks.bands <= 1

    def workspace(self, spec: ConvSpec, lanes: int) -> int:
        """Return the bytes that each task needs to itself."""
        elements = self.copy_elements(spec) + self.partial_elements(spec, lanes)
        elements += self.packed_elements(spec, lanes)
        return (elements + -elements % 64) * spec.dtype.itemsize


def plan_dense_sums(
    spec: ConvSpec, target: Target, threads: int, wish: Wish = NO_WISH
) -> DenseSumsPlan:
    """Return the plan of a gradient by the weight."""
    lanes = target.lanes(spec.dtype)
    counts, (kh, kw) = spec.counts, spec.kernel
    blocks = blocks_of(spec.images, *counts)
    down, across = (
        Seen(s.offset, (s.taps - 1) * s.dilation + 1, s.stride, s.extent) for s in spec.sweeps
    )
    inside = down.low >= 0 and across.low >= 0
    is_padded = not inside or down.high > spec.height or across.high > spec.width
    outs = spec.out_channels // spec.groups
    pixels = blocks.images * blocks.rows * counts[1]
    channels = max(spec.depth, 1)
    products = spec.images * math.prod(counts) * kh * kw * spec.depth * spec.out_channels
    wide = threads > 1 and products >= PARALLEL_FROM
    # Pixels far apart share sets of the cache, and pages have few of them.
    is_apart = spec.in_channels * spec.dtype.itemsize >= APART
    pays = kh * kw * outs >= COPIED_FROM * math.prod(spec.stride)
    pays = is_apart and pays if wish.copies is None else wish.copies
    copies = is_padded or spec.prologue is not None or pays
    parts = -(-channels // CHANNELS) if copies else 1
    panels = spec.groups if spec.groups > 1 else -(-outs // lanes)
    if wide and panels < 2 * threads:
        parts = max(parts, min(threads, channels // FEWEST_CHANNELS))
    parts = min(parts * wish.parts, channels)
    channels = -(-channels // parts)
    # A row's taps read the same pixels in neighbouring steps.
    overlaps = spec.stride[1] == spec.dilation[1]
    rest = (outs, max(pixels, 1), lanes, target.registers, (), overlaps)
    ranked = rank_shapes((kh, kw, channels), *rest)
    shape = ranked[min(wish.tile, len(ranked) - 1)]
    row = across.length(across.extent) * spec.depth * spec.dtype.itemsize
    most_rows = int(BLOCK_BYTES * wish.block) // max(row, 1)
    fitting = (most_rows - down.span) // (down.stride * blocks.rows)
    bands = min(max(1, fitting), blocks.bands)
    is_far = spec.out_channels * spec.dtype.itemsize >= APART
    packs = kh * kw * spec.depth >= PACKED_FROM and is_far if wish.packs is None else wish.packs
    plan = DenseSumsPlan(
        blocks,
        shape,
        channels,
        bands,
        copies,
        packs,
        _seen_share(spec) < SKIPPED_BELOW,
        down,
        across,
        (1, 1, 1),
        spec.groups > 1,
    )
    if not wide:
        return plan
    grid = _choose_grid(plan, spec, lanes, threads)
    if grid[2] > 1 and shape.images > 1:  # a tile's kernel rows are those of one task
        ranked = rank_shapes((1, kw, channels), *rest)
        shape = ranked[min(wish.tile, len(ranked) - 1)]
    return replace(plan, shape=shape, grid=grid)


def _choose_grid(
    plan: DenseSumsPlan, spec: ConvSpec, lanes: int, threads: int
) -> tuple[int, int, int]:
    """Return into how many parts to split output channels, input channels, and kernel rows."""
    outs = spec.out_channels // spec.groups
    panels = panel_count(outs, lanes, plan.shape.vectors)
    columns = spec.groups if plan.split_groups else panels
    parts = -(-spec.depth // plan.channels)
    pixels = spec.images * math.prod(spec.counts)
    work = pixels * math.prod(spec.w_shape) / (2 * lanes)
    image = float(pixels * math.prod(spec.stride) * spec.in_channels)
    image *= COPY_CYCLES if plan.copies else READ_CYCLES
    cotangent = pixels * spec.out_channels * READ_CYCLES
    best, chosen = math.inf, (1, 1, 1)
    for first in range(1, min(columns, threads) + 1):
        for second in range(1, min(parts, threads // first) + 1):
            third = min(spec.kernel[0], threads // (first * second))
            shares = [
                -(-n // t) / n
                for n, t in ((columns, first), (parts, second), (spec.kernel[0], third))
            ]
            mine = shares[1] * (shares[0] if plan.split_groups else 1)
            cost = work * math.prod(shares) + image * mine + cotangent * shares[0]
            if cost < best:
                best, chosen = cost, (first, second, third)
    return chosen


def _seen_share(spec: ConvSpec) -> float:
    """Return the share of the products that are with rows of the image, not with those outside."""
    down = spec.sweeps[0]
    seen = (down.inside(t * down.dilation, spec.height)[0] for t in range(down.taps))
    count: int = sum(s.stop - s.start for s in seen)
    return count / max(1, down.taps * down.extent)


def panel_count(outs: int, lanes: int, vectors: int) -> int:
    """Return how many panels so many output channels make."""
    across = -(-outs // lanes)
    return -(-across // vectors)
