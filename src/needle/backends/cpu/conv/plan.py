"""Decisions before any code is emitted: tiles, blocks of images or rows, packing, and tasks.

None of them changes a bit of the result.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

from needle.backends.cpu.conv.blocking import Blocking
from needle.backends.cpu.conv.phase import Correlations, Line, Phase, correlations
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm.plan import PARALLEL_FROM, best_of_each, split
from needle.backends.cpu.target import Target

#: Bytes of images that are copied, and used, together: they stay in the L2 cache beside weights.
BLOCK_BYTES = 384 << 10
#: Bytes up to which a block has more rows, if what neighbouring blocks share is much of it.
MOST_BYTES = 1280 << 10
#: Bytes of the images of a block, if their weights come from the L3 cache: few weights for each
#: element that is read, which may come from there, too.
IMAGES_BYTES = 2560 << 10
#: Pixels of a block from which weights that come from the L3 cache cost little.
BLOCK_PIXELS = 512
#: Bytes of weights that stay in the L2 cache from block to block.
RESIDENT_BYTES = 384 << 10
#: Pixels of a task from which weights are copied into panels: copying an element costs about half
#: a cycle, its use for a pixel 0.03. If they come from beyond the L2 cache, again for each tile,
#: fewer are enough: rows of 512 channels, 2 KiB apart, fall into a few sets of the caches.
PACKED_FROM_PIXELS, FAR_FROM_PIXELS = 160, 24
#: Products ahead of which weights are asked for that come from beyond the L2 cache, each row on
#: another page: no prefetcher of the processor follows that. Twice as far, rows that lie a power of
#: two apart would push each other out of the L1 cache before they are used.
AHEAD = 8
#: Products of an element from which the channels of a group are copied to lie side by side.
COPIED_FROM = 64
#: Cycles to copy an element: of a weight, and of an image; and to read one where it lies.
PACK_CYCLES, COPY_CYCLES, READ_CYCLES = 0.4, 0.25, 0.15
#: Cycles that an element of an image and a vector of weights take besides, for each product.
A_CYCLES, B_CYCLES = 0.05, 0.2
#: Sums of most tiles: LLVM takes longer for larger ones, which are hardly faster.
MOST_ROWS = 28


@dataclass(frozen=True)
class Shape:
    """The largest tile: images × rows × columns of pixels, and vectors of channels."""

    images: int
    rows: int
    columns: int
    vectors: int


@dataclass(frozen=True)
class DensePlan(Blocking):
    """How correlations are computed as products of matrices.

    Attributes:
        work: what.
        shapes: the tiles of each phase.
        images: of a block.
        rows: of a block's results, in each phase: all of them if there are several images.
        copies: whether a block is copied first, zeros around it.
        packs: whether weights are copied into panels first.
        skips: whether rows of the kernel are left out where they see zeros alone.
        by_group: whether a group's channels are copied at a time.
        by_place: whether a tile is computed for all channels of a task, before the next is.
        grid: into how many parts blocks and channels are split: the tasks.
        split_groups: whether channels are split by groups, or by panels of a group.
        ahead: how many products ahead weights are asked for that are read where they lie.
    """

    work: Correlations
    shapes: tuple[Shape, ...]
    images: int
    rows: int
    copies: bool
    packs: bool
    skips: bool
    by_group: bool
    by_place: bool
    grid: tuple[int, int]
    split_groups: bool
    ahead: int = 0

    @property
    def copy_pitch(self) -> tuple[int, int, int]:
        """Elements of the copy from one image to the next, one row, one pixel."""
        channels = self.work.depth if self.by_group else self.work.source[3]
        row = self.work.across.length(self.work.across.extent) * channels
        return self.work.down.length(self.rows) * row, row, channels

    def panel_starts(self, lanes: int) -> list[int]:
        """Return where the panels of each phase begin, in elements, and where the last ends."""
        columns = -(-self.work.outs // lanes) * lanes * self.work.groups
        sizes = [p.taps * self.work.depth * columns for p in self.work.phases]
        return [0, *itertools.accumulate(sizes)]

    def packed_elements(self, lanes: int) -> int:
        """Return how many elements a task keeps of weights; whole cache lines."""
        total = self.panel_starts(lanes)[-1] if self.packs else 0
        return total + -total % 64

    def workspace(self, lanes: int, itemsize: int) -> int:
        """Return the bytes that each task needs to itself."""
        copied = self.images * self.copy_pitch[0] if self.copies else 0
        return (self.packed_elements(lanes) + copied + -copied % 64) * itemsize


class Wish(NamedTuple):
    """What a plan is to have in place of what the model would choose; None leaves it to the model.

    Attributes:
        tile: which of the tiles of `rank_shapes`; the last if there are fewer.
        block: by how much to multiply what is copied, and used, together.
        copies, packs, by_place: as in the plans.
        parts: by how much to multiply the parts that input channels are cut into, of gradients by
            the weight.
    """

    tile: int = 0
    block: float = 1.0
    copies: bool | None = None
    packs: bool | None = None
    by_place: bool | None = None
    parts: int = 1


#: Leaves all to the model.
NO_WISH = Wish()


def plan_dense(spec: ConvSpec, target: Target, threads: int, wish: Wish = NO_WISH) -> DensePlan:
    """Return the plan of a convolution with channels enough to be a product of matrices."""
    work = correlations(spec)
    lanes = target.lanes(spec.dtype)
    itemsize = spec.dtype.itemsize
    taps = math.prod(spec.kernel)
    by_group = work.groups > 1 and taps * work.outs >= COPIED_FROM
    copies = work.is_padded or spec.prologue is not None or by_group
    skipped = [_seen_rows(p.down, work.source[1]) for p in work.phases]
    shapes = tuple(
        _choose_shape(work, p, seen, lanes, target.registers, wish.tile)
        for p, seen in zip(work.phases, skipped, strict=True)
    )
    if math.lcm(*(s.images for s in shapes)) > MOST_ROWS:
        shapes = tuple(replace(s, images=1) for s in shapes)
    images, rows = _choose_block(work, by_group, itemsize, threads, wish.block)
    # Only the last tiles of an axis may be smaller: see `dense`.
    if images < work.source[0]:
        images += -images % math.lcm(*(s.images for s in shapes))
    if rows < work.down.extent:
        rows += -rows % math.lcm(*(s.rows for s in shapes))
    groups = work.groups > 1
    plan = DensePlan(
        work, shapes, images, rows, copies, True, False, by_group, False, (1, 1), groups
    )
    grid = _choose_grid(plan, lanes, threads)
    pixels = work.source[0] * work.down.extent * work.across.extent // grid[0]
    weights = taps * work.depth * work.result[3] * itemsize // (work.groups * grid[1])
    is_far = weights > RESIDENT_BYTES
    from_pixels = FAR_FROM_PIXELS if is_far else PACKED_FROM_PIXELS
    packs = pixels >= from_pixels if wish.packs is None else wish.packs
    packs = packs or spec.form == "input_grad"
    skips = packs and any(_share_seen(seen) < 1 for seen in skipped)
    by_place = weights <= RESIDENT_BYTES if wish.by_place is None else wish.by_place
    by_place = by_place and work.groups == 1
    ahead = AHEAD if is_far and not packs else 0
    return replace(plan, packs=packs, grid=grid, skips=skips, by_place=by_place, ahead=ahead)


def _seen_rows(line: Line, height: int) -> tuple[tuple[int, int], ...]:
    """Return, for each row of results, which rows of the kernel see the image: first, last + 1."""
    found = []
    for row in range(line.extent):
        first = row * line.stride + line.offset
        low = min(max(0, -(first // line.dilation)), line.taps)
        found.append((low, max(low, min(line.taps, -(-(height - first) // line.dilation)))))
    return tuple(found)


def _share_seen(seen: tuple[tuple[int, int], ...]) -> float:
    """Return the share of all rows of the kernel that see the image."""
    taps = max((high for _, high in seen), default=0)
    every = taps * len(seen)
    return sum(high - low for low, high in seen) / every if every else 1.0


def _choose_block(
    work: Correlations, by_group: bool, itemsize: int, threads: int, scale: float
) -> tuple[int, int]:
    """Return how many images make a block, and how many rows of results."""
    n, extent = work.source[0], max(work.down.extent, 1)
    channels = work.depth if by_group else work.source[3]
    row_bytes = work.across.length(work.across.extent) * channels * itemsize
    shared = work.down.span - work.down.stride
    for room in (BLOCK_BYTES, 2 * BLOCK_BYTES, MOST_BYTES):
        most_rows = int(room * scale) // max(row_bytes, 1)
        fitting = (most_rows - work.down.span) // work.down.stride + 1
        if fitting * work.down.stride >= 3 * shared:
            break
    fitting = max(1, fitting)
    bands = max(1, -(-extent // fitting))
    parallel = threads > 1 and work.products >= PARALLEL_FROM
    if parallel and n * bands < 8 * threads:
        # Few images are shared out by their rows, as far as copying what rows share is little.
        most = max(bands, extent // max(2 * shared, 4))
        even = [b for b in range(bands, most + 1) if n * b % threads == 0]
        bands = even[0] if even else bands
    if bands > 1:
        return 1, -(-extent // bands)
    taps = max((p.taps for p in work.phases), default=1)
    weights = taps * work.depth * work.outs * (1 if by_group else work.groups) * itemsize
    pixels = max(work.down.extent * work.across.extent, 1)
    wanted = int(scale) if weights <= RESIDENT_BYTES else -(-int(BLOCK_PIXELS * scale) // pixels)
    image_bytes = max(work.down.length(extent) * row_bytes, 1)
    images = max(1, min(wanted, IMAGES_BYTES // image_bytes, n))
    # Blocks of few pixels would be called more often than they are worth.
    images = max(images, min(n, -(-64 // pixels)))
    if parallel:
        blocks = -(-n // images)
        blocks += -blocks % threads
        images = max(1, -(-n // blocks))
    return images, extent


def _choose_grid(plan: DensePlan, lanes: int, threads: int) -> tuple[int, int]:
    """Return into how many parts to split blocks and channels."""
    work = plan.work
    if threads <= 1 or work.products < PARALLEL_FROM:
        return 1, 1
    parts = work.groups if plan.split_groups else -(-work.outs // lanes)
    weights = max((p.taps for p in work.phases), default=0) * work.depth * work.result[3]
    reading = math.prod(work.source) * READ_CYCLES
    if plan.copies:
        reading = plan.blocks * plan.images * plan.copy_pitch[0] * COPY_CYCLES
    best, chosen = math.inf, (1, 1)
    for blocks in range(1, threads + 1):
        channels = threads // blocks
        if threads % blocks or blocks > plan.blocks or channels > parts:
            continue
        share = -(-plan.blocks // blocks) / plan.blocks
        if plan.bands == 1:
            share = min(1.0, -(-plan.blocks // blocks) * plan.images / work.source[0])
        busiest = share * -(-parts // channels) / parts
        cost = work.products / (2 * lanes) * busiest
        cost += PACK_CYCLES * weights / channels + reading / blocks
        if cost < best:
            best, chosen = cost, (blocks, channels)
    return chosen


def _choose_shape(
    work: Correlations,
    phase: Phase,
    seen: tuple[tuple[int, int], ...],
    lanes: int,
    registers: int,
    tile: int,
) -> Shape:
    extents = (work.source[0], phase.down.extent, phase.across.extent)
    products = max(phase.taps * work.depth, 1)
    if _share_seen(seen) == 1:
        seen = ()
    ranked = rank_shapes(extents, work.outs, products, lanes, registers, seen)
    return ranked[min(tile, len(ranked) - 1)]


@lru_cache(maxsize=4096)
def rank_shapes(
    extents: tuple[int, int, int],
    outs: int,
    products: int,
    lanes: int,
    registers: int,
    seen: tuple[tuple[int, int], ...] = (),
    overlaps: bool = False,
) -> tuple[Shape, ...]:
    """Return tiles: first those with which all tiles together take the least time, then others that
    are worth a try.

    Args:
        extents: images, rows and columns of pixels.
        outs: channels of the result.
        products: that are summed for an element.
        lanes: of a vector.
        registers: vectors in registers: all sums, a row of the weights, one element of the image.
        seen: for each row of pixels, which part of the products (first, last + 1) is computed;
            empty if it is all for each.
        overlaps: whether neighbours along a row read the same in neighbouring steps.
    """
    costs: dict[Shape, float] = {}
    across = max(-(-outs // lanes), 1)
    n, height, width = (max(e, 1) for e in extents)
    for vectors in range(1, min(across, 4) + 1):
        most = min((registers - 1 - vectors) // vectors, MOST_ROWS)
        for box in _boxes(n, height, width, most, bool(seen)):
            cost = 0.0
            kinds = 0
            shares = _shares(seen, height, box[1])
            for tile, count, is_last in _tiles((n, height, width), box):
                summed = products * shares[is_last]
                for wide, panels in split(across, vectors):
                    free = registers - 2 - wide * (tile + 1)
                    loads = -(-tile // box[1]) if overlaps and free >= wide else tile
                    cost += count * panels * tile_cycles(tile, wide, summed, loads)
                    kinds += 1
            # Every kind of tile is a function more to compile.
            costs[Shape(*box, vectors)] = cost * (1 + 0.01 * kinds)
    return best_of_each(costs, lambda shape: shape.vectors) or (Shape(1, 1, 1, 1),)


def _boxes(
    n: int, height: int, width: int, most: int, side_by_side: bool
) -> Iterator[tuple[int, int, int]]:
    """Yield boxes of at most so many pixels: parts of a row, whole rows, whole images; perhaps one
    row of several images."""
    seen = set()
    for size in range(1, min(most, width) + 1):
        columns = split(width, size)[0][0]
        if columns in seen:
            continue
        seen.add(columns)
        if columns < width:
            yield 1, 1, columns
            continue
        for rows in range(1, min(most // columns, height) + 1):
            if rows < height:
                yield 1, rows, columns
                if rows > 1 or not side_by_side:
                    continue
            for images in range(1 + (rows < height), min(most // (columns * rows), n) + 1):
                yield images, rows, columns


def _tiles(
    extents: tuple[int, int, int], box: tuple[int, int, int]
) -> Iterator[tuple[int, int, bool]]:
    """Yield the sizes of all tiles, how many there are, and whether they have the rows that are
    left: along rows tiles are near-equal, else whole ones and what is left."""
    axes = [[(b, e // b), (e % b, 1)] for e, b in zip(extents[:2], box[:2], strict=True)]
    for images, rows, columns in itertools.product(*axes, split(extents[2], box[2])):
        count = images[1] * rows[1] * columns[1]
        size = images[0] * rows[0] * columns[0]
        if count and size:
            yield size, count, rows is axes[1][1]


def _shares(seen: tuple[tuple[int, int], ...], height: int, rows: int) -> tuple[float, float]:
    """Return the share of products that is computed: in tiles of so many rows, and in that of the
    rows that are left."""
    if not seen:
        return 1.0, 1.0
    taps = max(high for _, high in seen)
    whole = height // rows * rows
    starts = range(0, whole, rows)
    first = sum(seen[r][1] - seen[r + rows - 1][0] for r in starts) / (taps * max(len(starts), 1))
    return first, (seen[whole][1] - seen[-1][0]) / taps if whole < height else 1.0


def tile_cycles(rows: int, vectors: int, products: float, loads: int) -> float:
    """Return about how many cycles a tile takes.

    For each product: two multiply-adds or loads a cycle, of which none waits less than 4 cycles for
    the last of its sum; and weights, in part from the L2 cache. For each tile: the call, stores.
    ``loads`` is how many elements are read, besides a row of vectors.
    """
    sums = rows * vectors
    each = max(sums / 2, (loads + vectors) / 2, 4.0) + A_CYCLES * rows + B_CYCLES * vectors
    return products * each + 20 + sums
