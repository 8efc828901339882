"""Decisions about gradients by weights of pairs: blocks of pixels, tiles and tasks.

Blocks depend on shapes alone, not on tasks, for sums run over them in order.
"""

from __future__ import annotations

from dataclasses import dataclass

from needle.backends.cpu.conv.blocking import Blocking
from needle.backends.cpu.conv.phase import Correlations, Seen, correlations
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm.plan import PARALLEL_FROM
from needle.backends.cpu.gemm.vnni import DEPTH, LINE, SIDE, TILE

#: Bytes of a block: copies of images and of the cotangent, and both turned round.
BLOCK_BYTES = 1 << 20
#: Places of a block from which sums of earlier blocks are read and written in little of its time.
BLOCK_PLACES = 1024


@dataclass(frozen=True)
class PairSumsPlan(Blocking):
    """How the gradient by the weight is computed, of a kernel that moves pixel by pixel.

    The images of a block are copied as one line of pixels, as in `PairConvPlan`, and turned round:
    the pixels of a channel side by side. The cotangent is laid along the same line, zeros where no
    result stands, in tiles of pairs of pixels. A tap of the kernel then reads the line from another
    pixel on. An item is a tap and 16 input channels; a tile of sums has a few items.

    Attributes:
        work: the forward correlation.
        images: of a block.
        rows: of a block's results: all of them if there are several images.
        down: items of a tile.
        across: strips of 16 output channels of a tile.
        grid: into how many parts items, and output channels, are split: the tasks.
    """

    work: Correlations
    images: int
    rows: int
    down: int
    across: int
    grid: tuple[int, int]

    @property
    def shared(self) -> tuple[int, int]:
        """Rows, and columns, of zeros that are the end of one image, or row, and the beginning of
        the next."""
        work = self.work
        down, across = shared_zeros(work)
        return (down if self.rows == work.down.extent else 0), across

    @property
    def line(self) -> tuple[int, int]:
        """Rows of the line for each image, and columns of a row."""
        down, across = self.shared
        rows = self.work.down.length(self.rows) - down if self.images > 1 else self.rows
        return rows, self.work.across.length(self.work.across.extent) - across

    @property
    def image_rows(self) -> int:
        """Rows from one image to the next in the copy."""
        return self.work.down.length(self.rows) - self.shared[0]

    @property
    def places(self) -> int:
        """Places of a block's line, of which 32 are summed at a time."""
        rows, columns = self.line
        count = self.images * rows * columns
        return count + -count % DEPTH

    @property
    def reach(self) -> int:
        """How many places the last tap reads beyond the first."""
        phase = self.work.phases[0]
        down = (phase.down.taps - 1) * phase.down.dilation
        across = (phase.across.taps - 1) * phase.across.dilation
        return down * self.line[1] + across

    @property
    def seen(self) -> int:
        """Places of images that are turned round."""
        count = self.places + self.reach
        return count + -count % DEPTH

    @property
    def channel(self) -> int:
        """Bytes from one channel of turned images to the next: an odd number of cache lines."""
        return (2 * self.seen // LINE | 1) * LINE

    @property
    def strips(self) -> tuple[int, int]:
        """Strips of 16 channels, of images and of the result."""
        inside, outside = (-(-n // SIDE) for n in (self.work.depth, self.work.outs))
        return inside, outside

    @property
    def items(self) -> int:
        """Taps × strips of input channels."""
        return self.work.phases[0].taps * self.strips[0]

    @property
    def panels(self) -> int:
        """Panels of output channels."""
        return -(-self.strips[1] // self.across)

    @property
    def copied(self) -> tuple[int, int]:
        """Elements of the copies of images and cotangent, and what is read beyond them; whole cache
        lines."""
        depth, outs = self.work.depth, self.work.outs
        down, across = self.shared
        columns = self.line[1]
        written = ((self.images * self.image_rows) + down) * columns + across
        images = max(written, self.seen) * depth + DEPTH
        cotangent = (self.places + DEPTH) * outs + DEPTH
        return images + -images % DEPTH, cotangent + -cotangent % DEPTH

    @property
    def turned(self) -> tuple[int, int]:
        """Bytes of the turned images, and of the tiles of the cotangent."""
        inside, outside = self.strips
        return inside * SIDE * self.channel, outside * (self.places // DEPTH) * TILE

    @property
    def workspace(self) -> int:
        """Bytes that each task needs to itself: copies, both turned, sums of earlier blocks."""
        sums = 0
        if self.blocks > 1:
            sums = (self.items + self.down) * self.panels * self.across * TILE
        return 2 * sum(self.copied) + sum(self.turned) + sums


def shared_zeros(work: Correlations) -> tuple[int, int]:
    """Return how many rows, and columns, of zeros may be both the end of one image, or row, and the
    beginning of the next; not more than leaves a place for each result."""
    _, height, width, _ = work.source

    def shared(seen: Seen, size: int) -> int:
        return max(0, min(-seen.low, seen.high - size, seen.span - 1))

    return shared(work.down, height), shared(work.across, width)


def plan_pair_sums(spec: ConvSpec, threads: int) -> PairSumsPlan:
    """Return the plan of a gradient by the weight."""
    work = correlations(spec)
    across = min(-(-work.outs // SIDE), 2)
    down, extent = 4 // across, max(work.down.extent, 1)
    whole = PairSumsPlan(work, 1, extent, down, across, (1, 1))
    # Copied once and turned once, two bytes each.
    line = 4 * whole.line[1] * (work.depth + work.outs)
    rows, images = extent, 1
    if line * whole.image_rows > BLOCK_BYTES:
        bands = -(-extent // max(BLOCK_BYTES // line - work.down.span + 1, 1))
        rows = -(-extent // bands)
    else:
        wanted = -(-BLOCK_PLACES // (whole.image_rows * whole.line[1]))
        images = min(wanted, BLOCK_BYTES // (line * whole.image_rows), work.source[0])
    grid = (1, 1)
    if threads > 1 and work.products >= PARALLEL_FROM:
        grid = (1, threads) if whole.panels >= threads else (min(threads, whole.items), 1)
    return PairSumsPlan(work, max(images, 1), rows, down, across, grid)
