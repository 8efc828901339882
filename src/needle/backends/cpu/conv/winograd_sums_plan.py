"""Decisions about gradients by weights in Winograd's form: blocks of tiles, parts, and tasks.

The sum over tiles is cut into pieces and blocks by shapes alone; within a block it is one chain.
No other decision changes a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm.plan import PARALLEL_FROM
from needle.backends.cpu.target import Target
from needle.ops.winograd import ELEMENTS, tiles_of
from needle.ops.winograd_sums import CHANNELS, pieces_of

#: Bytes of a block of transformed tiles, which the L2 cache holds beside the sums.
BLOCK_BYTES = 192 << 10
#: Fewest tiles of a block: sums are read and written once for each block.
FEWEST_TILES = 32
#: Fewest channels of a part that is made for the sake of threads.
FEWEST_CHANNELS = 32
#: Elements by which neighbouring matrices of a block are apart from a power of two: 16 of them are
#: written side by side, and would push each other out of the L1 cache.
APART = 16


@dataclass(frozen=True)
class WinogradSumsPlan:
    """How a gradient by the weight is summed in Winograd's form.

    Attributes:
        tiles: of an image, down and across.
        images: of a block; 1, if an image has several blocks.
        rows: of tiles, of a block.
        pieces: of the images, each of which has sums of its own.
        inputs, outputs: channels of a part, at most.
        tasks: among which pieces and parts are shared.
    """

    tiles: tuple[int, int]
    images: int
    rows: int
    pieces: int
    inputs: int
    outputs: int
    tasks: int

    @property
    def block(self) -> int:
        """Tiles of a block, at most."""
        return self.images * self.rows * self.tiles[1]

    def pitch(self, channels: int) -> int:
        """Return the elements from one of a block's 16 matrices to the next."""
        lines = -(-self.block * channels // APART)
        return (lines | 1) * APART

    def sizes(self, spec: ConvSpec, lanes: int) -> tuple[int, int, int, int]:
        """Return the elements of a row of zeros, of the transformed blocks of image and cotangent,
        and of the sums."""
        row = max(math.prod(shape[2:]) for shape in (spec.x_shape, spec.y_shape))
        outs = -(-self.outputs // lanes) * lanes
        return (
            _whole_lines(row),
            ELEMENTS * self.pitch(self.inputs),
            ELEMENTS * self.pitch(self.outputs),
            _whole_lines(ELEMENTS * self.inputs * outs),
        )

    def workspace(self, spec: ConvSpec, lanes: int) -> int:
        """Return the elements that each task needs to itself."""
        return sum(self.sizes(spec, lanes))


def _whole_lines(elements: int) -> int:
    return elements + -elements % 64


def plan_winograd_sums(spec: ConvSpec, target: Target, threads: int) -> WinogradSumsPlan:
    """Return the plan of a gradient by the weight."""
    down, across = tiles_of(spec.counts)
    pieces = pieces_of(spec.images, spec.in_channels, spec.out_channels)
    work = spec.images * down * across * ELEMENTS * spec.in_channels * spec.out_channels
    wanted = threads if work >= PARALLEL_FROM else 1
    # Threads may split channels further, but blocks, whose sums are chains, stay as they are.
    each = ELEMENTS * sum(_parts(spec, 1)) * spec.dtype.itemsize
    fitting = max(FEWEST_TILES, BLOCK_BYTES // each)
    rows = max(1, min(down, fitting // across))
    bands = -(-down // rows)
    rows = -(-down // bands)
    images = 1
    if bands == 1:
        most = max(1, spec.images // pieces)
        images = max(1, min(most, fitting // (down * across)))
    inputs, outputs = _parts(spec, -(-wanted // pieces))
    units = pieces * -(-spec.in_channels // inputs) * -(-spec.out_channels // outputs)
    tasks = min(wanted, units)
    return WinogradSumsPlan((down, across), images, rows, pieces, inputs, outputs, tasks)


def _parts(spec: ConvSpec, wanted: int) -> tuple[int, int]:
    """Return the channels of a part, of image and cotangent: few enough for their sums to stay in
    the cache, and for ``wanted`` parts, as long as they are not too few to be worth it."""
    extents = (spec.in_channels, spec.out_channels)
    parts = [-(-n // CHANNELS) for n in extents]
    while math.prod(parts) < wanted:
        widths = [-(-n // p) for n, p in zip(extents, parts, strict=True)]
        wider = widths.index(max(widths))
        if widths[wider] < 2 * FEWEST_CHANNELS:
            break
        parts[wider] *= 2
    inputs, outputs = (-(-n // p) for n, p in zip(extents, parts, strict=True))
    return inputs, outputs
