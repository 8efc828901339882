"""How the gradient by the weight is divided: decided once for shapes, before anything runs.

The pixels of all images are cut into blocks: some images, or a band of rows of one. A block is
copied as for a correlation, and added to the sums of a unit: those of one group of channels, with
as many output channels as a tile has. Where that makes few units, the blocks are shared out
between chunks, whose sums are added in the end. How many chunks there are depends on shapes, never
on the number of threads, and so does the order of every sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from needle.backends.cpu.conv.geometry import COPY_BYTES, PARALLEL_FROM, Slots
from needle.backends.cpu.conv.microkernel import VECTORS
from needle.ops.samples import Array
from needle.ops.unfolding import Sweep

#: Bytes of the cotangent in a block: what every tile reads anew stays in the first-level cache.
PANEL_BYTES = 1 << 15
#: Units that a large gradient is divided into: more than there are threads, so that all have work.
UNITS = 16
#: Bytes that all sums may take before blocks are no longer shared out between chunks.
SUMS_BYTES = 1 << 22


@dataclass(frozen=True)
class WeightGeometry:
    """What the kernel is told, as int64 in this order; steps and places are in elements.

    Attributes:
        pieces: parts of the gradient: groups × blocks of output channels, the last fastest.
        chunks: parts of the pixels, each with sums of its own for each piece.
        groups: of the convolution; ``out_blocks`` blocks of output channels each.
        out_blocks: see above.
        by_pixels: 1 if pixels lie along the lanes, 0 if output channels do.
        in_place: 1 if the images are read where they lie.
        images: of the batch; ``block_images`` of them in a block.
        block_images: see above.
        bands: of an image; ``band_rows`` rows of the result each.
        band_rows: see above.
        depth, outs: channels that a group reads and writes.
        height, width: of the image.
        rows, columns: of the result.
        stride, across: between outputs, down and across.
        first: row of the image that the first tap of the first output reads, perhaps negative.
        slots, remainders: how many remainders there are down and across.
        slot_rows, slot_columns: rows and columns of each in the copy.
        taps: rows of the tables: channels × taps.
        image_step, line_step: where images and lines of a block lie.
        start: what comes before the first pixel of an image that is read in place.
        copy: elements of the copy, with what is written past its end.
        panel: elements of the cotangent's copy.
        lane_sums: elements of a unit's sums while pixels lie along the lanes.
        sums: elements of a unit's sums.
    """

    pieces: int
    chunks: int
    groups: int
    out_blocks: int
    by_pixels: int
    in_place: int
    images: int
    block_images: int
    bands: int
    band_rows: int
    depth: int
    outs: int
    height: int
    width: int
    rows: int
    columns: int
    stride: int
    across: int
    first: int
    slots: int
    remainders: int
    slot_rows: int
    slot_columns: int
    taps: int
    image_step: int
    line_step: int
    start: int
    copy: int
    panel: int
    lane_sums: int
    sums: int

    @staticmethod
    def names() -> list[str]:
        """Return the names in their order."""
        return [f.name for f in fields(WeightGeometry)]

    def values(self) -> list[int]:
        """Return the values in their order."""
        return [getattr(self, name) for name in self.names()]

    @property
    def work(self) -> int:
        """Multiply-adds."""
        pixels = self.images * self.rows * self.columns
        return self.groups * self.outs * self.taps * pixels


def make_weight_geometry(
    x: tuple[int, ...], outs: int, groups: int, sweeps: tuple[Sweep, Sweep], lanes: int, size: int
) -> tuple[WeightGeometry, Array]:
    """Return the geometry of a gradient, and its tables.

    Args:
        x: shape of the images, [N, C, H, W], which have no gaps.
        outs: output channels of a group.
        groups: groups of channels.
        sweeps: how the kernel moves down and across.
        lanes: of a vector.
        size: bytes of an element.

    Returns:
        The geometry, and int64 tables one after the other: `Slots.table`; for each channel and tap
        the place where it reads.
    """
    (n, channels, height, width), (down, across) = x, sweeps
    depth, rows, columns = channels // groups, down.extent, across.extent
    slots = Slots.of(down, across)
    # Few output channels would leave most lanes of a vector idle.
    by_pixels = 4 * outs <= lanes
    width_outs = 1 if by_pixels else lanes * min(VECTORS, -(-outs // lanes))
    in_place = _is_inside(down, height) and _is_inside(across, width)
    in_place = in_place and (down.stride, across.stride) == (1, 1)

    pixels = max(1, PANEL_BYTES // (width_outs * size))
    fitting = max(1, COPY_BYTES // (depth * slots.planes * slots.columns * size) - slots.tail_rows)
    band_rows = min(rows, max(1, pixels // columns), fitting)
    bands = -(-rows // band_rows)
    band_rows = -(-rows // bands)
    slot_rows = band_rows + slots.tail_rows
    one = slot_rows * slots.columns
    block_images = 1
    if bands == 1:
        most = COPY_BYTES // (depth * slots.planes * one * size)
        block_images = max(1, min(n, pixels // (rows * columns), most))
    plane = block_images * one
    blocks = -(-n // block_images) * bands

    taps = depth * down.taps * across.taps
    sums = taps * VECTORS * lanes
    pieces = groups * (1 if by_pixels else -(-outs // width_outs))
    work = n * rows * columns * groups * outs * taps
    most = min(blocks, UNITS // pieces, SUMS_BYTES // (pieces * sums * size), work // PARALLEL_FROM)

    if in_place:
        places = [
            i * down.dilation * width + j * across.dilation
            for i in range(down.taps)
            for j in range(across.taps)
        ]
        channel, steps = height * width, (channels * height * width, width)
    else:
        places = slots.places(plane)
        channel, steps = plane * slots.planes, (one, slots.columns)
    table = np.arange(depth, dtype=np.int64)[:, None] * channel + np.array(places, np.int64)
    geometry = WeightGeometry(
        pieces=pieces,
        chunks=max(1, most),
        groups=groups,
        out_blocks=pieces // groups,
        by_pixels=int(by_pixels),
        in_place=int(in_place),
        images=n,
        block_images=block_images,
        bands=bands,
        band_rows=band_rows,
        depth=depth,
        outs=outs,
        height=height,
        width=width,
        rows=rows,
        columns=columns,
        stride=down.stride,
        across=across.stride,
        first=down.offset,
        slots=len(slots.remainders_down),
        remainders=len(slots.remainders_across),
        slot_rows=slot_rows,
        slot_columns=slots.columns,
        taps=taps,
        image_step=steps[0],
        line_step=steps[1],
        start=down.offset * width + across.offset,
        copy=0 if in_place else _rounded(depth * slots.planes * plane + lanes),
        panel=0 if by_pixels else _rounded(block_images * band_rows * columns * width_outs),
        lane_sums=_rounded(taps * outs * lanes) if by_pixels else 0,
        sums=sums,
    )
    return geometry, np.concatenate([np.array(slots.table(width), np.int64), table.ravel()])


def _is_inside(sweep: Sweep, size: int) -> bool:
    """Whether nothing outside of ``size`` inputs is read."""
    last = sweep.offset + (sweep.extent - 1) * sweep.stride + (sweep.taps - 1) * sweep.dilation
    return sweep.offset >= 0 and last < size


def _rounded(elements: int) -> int:
    """Return a number of elements that ends on a cache line, whatever their size."""
    return math.ceil(elements / 64) * 64
