"""Where everything lies in a correlation: decided once for shapes, before anything runs.

The copy of an image has zeros around it, and its rows and columns are sorted by their remainders
modulo the strides: [channel, remainder across, remainder down, row, column]. What a tap sees of
output pixel (i, j) then lies at ``place of the tap + i · width + j``, whatever the stride: the
pixels are one line, in which each row of the result is followed by a few places of no meaning. No
place needs a check of bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from needle.ops.samples import Array
from needle.ops.unfolding import Sweep

#: A copy larger than this is made of bands of rows, so that it stays in the second-level cache.
COPY_BYTES = 3 << 18
#: Multiply-adds below which a second thread does not pay.
PARALLEL_FROM = 150_000


@dataclass(frozen=True)
class Slots:
    """How a copy sorts rows and columns, so that each tap sees what it reads side by side.

    Attributes:
        down, across: how the kernel moves.
        rows_seen, columns_seen: for each row and column of the kernel, how many steps of the stride
            after the first it reads, and the remainder.
        remainders_down, remainders_across: which there are.
    """

    down: Sweep
    across: Sweep
    rows_seen: list[tuple[int, int]]
    columns_seen: list[tuple[int, int]]
    remainders_down: list[int]
    remainders_across: list[int]

    @classmethod
    def of(cls, down: Sweep, across: Sweep) -> Slots:
        """Return what the sweeps of a kernel need."""
        rows = [divmod(i * down.dilation, down.stride) for i in range(down.taps)]
        columns = [divmod(j * across.dilation, across.stride) for j in range(across.taps)]
        ups, sides = (sorted({remainder for _, remainder in seen}) for seen in (rows, columns))
        return cls(down, across, rows, columns, ups, sides)

    @property
    def planes(self) -> int:
        """How many planes the copy of a channel has: one for each pair of remainders."""
        return len(self.remainders_down) * len(self.remainders_across)

    @property
    def tail_rows(self) -> int:
        """How many rows the copy has besides those of the result."""
        return max(row for row, _ in self.rows_seen)

    @property
    def columns(self) -> int:
        """How long a row of the copy is."""
        return self.across.extent + max(column for column, _ in self.columns_seen)

    def table(self, width: int) -> list[int]:
        """Return what the copy is made by, for images of ``width`` columns: the remainders down;
        for each remainder across the first and last + 1 columns of the copy that are in the image,
        and the column of the image that the first of them is."""
        table = list(self.remainders_down)
        for side in self.remainders_across:
            inside, seen = self.across._replace(extent=self.columns).inside(side, width)
            table += [inside.start, inside.stop, seen.start]
        return table

    def places(self, plane: int) -> list[int]:
        """Return where each tap reads in the copy of a channel, whose planes are so large."""
        ups, sides = self.remainders_down, self.remainders_across
        return [
            (sides.index(side) * len(ups) + ups.index(up)) * plane + row * self.columns + column
            for row, up in self.rows_seen
            for column, side in self.columns_seen
        ]


@dataclass(frozen=True)
class Geometry:
    """What a kernel is told, as int64 in this order; strides and places are in elements.

    Attributes:
        units: parts of the work: images × groups × bands × splits, the last fastest.
        groups, bands, splits: how an image is divided: by channels read, by rows of the result, by
            channels of the result.
        depth, outs: channels that a group reads and writes; ``split_outs`` of them in a split.
        height, width: of the image.
        rows, columns: of the result; ``band_rows`` of them in a band.
        stride, across: between outputs, down and across.
        first: row of the image that the first tap of the first output reads, perhaps negative.
        slots, remainders: how many remainders there are down and across.
        slot_rows, slot_columns: rows and columns of each in the copy.
        taps: taps of a group, all channels taken together.
        weight_row, weight_group: between the weights of channels of the result, and of groups.
        out_image, out_channel, out_row, out_column: between places of the result.
        copy: elements of the copy, with what is read past its end.
    """

    units: int
    groups: int
    bands: int
    splits: int
    depth: int
    outs: int
    split_outs: int
    height: int
    width: int
    rows: int
    columns: int
    band_rows: int
    stride: int
    across: int
    first: int
    slots: int
    remainders: int
    slot_rows: int
    slot_columns: int
    taps: int
    weight_row: int
    weight_group: int
    out_image: int
    out_channel: int
    out_row: int
    out_column: int
    copy: int

    @staticmethod
    def names() -> list[str]:
        """Return the names in their order."""
        return [f.name for f in fields(Geometry)]

    def values(self) -> list[int]:
        """Return the values in their order."""
        return [getattr(self, name) for name in self.names()]


def make_geometry(
    x: tuple[int, ...],
    kernels: tuple[int, ...],
    kernel_strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    sweeps: tuple[Sweep, Sweep],
    itemsize: int,
    threads: int,
) -> tuple[Geometry, Array]:
    """Return the geometry of a correlation, and its tables.

    Args:
        x: shape of the images, [N, C, H, W], which have no gaps.
        kernels: shape of the kernels, [groups, O/groups, C/groups, kh, kw].
        kernel_strides: of the kernels, between elements.
        out_strides: of the result [N, O, rows, columns], between elements.
        sweeps: how the kernel moves down and across.
        itemsize: bytes of an element.
        threads: how many share the work.

    Returns:
        The geometry, and int64 tables one after the other: `Slots.table`; for each tap the place
        where it reads, and that of its weight.
    """
    (n, _, height, width), (groups, outs, depth, kh, kw) = x, kernels
    down, across = sweeps
    slots = Slots.of(down, across)
    tail_rows, slot_columns = slots.tail_rows, slots.columns
    row_bytes = depth * slots.planes * slot_columns * itemsize
    fitting = max(1, COPY_BYTES // row_bytes - tail_rows)
    bands = -(-down.extent // fitting)
    work = n * down.extent * across.extent * groups * outs * depth * kh * kw
    units = n * groups * bands
    splits = 1
    if work >= PARALLEL_FROM:
        # Few images are shared out by their rows as far as copying what rows share is little.
        wanted = -(-4 * threads // (n * groups)) if units < 4 * threads else bands
        bands = max(bands, min(wanted, down.extent // max(1, 2 * tail_rows, 8)))
        units = n * groups * bands
        if units < 2 * threads:
            splits = max(1, min(-(-2 * threads // units), outs // 8))
    band_rows = -(-down.extent // bands)
    bands = -(-down.extent // band_rows)
    split_outs = -(-outs // splits)
    splits = -(-outs // split_outs)
    slot_rows = band_rows + tail_rows
    plane = slot_rows * slot_columns
    channel = plane * slots.planes
    places = slots.places(plane)
    by_group, by_out, by_channel, by_row, by_column = kernel_strides
    weights = [i * by_row + j * by_column for i in range(kh) for j in range(kw)]
    channels = np.arange(depth, dtype=np.int64)[:, None]
    taps = np.stack(
        [
            (channels * channel + np.array(places, np.int64)).ravel(),
            (channels * by_channel + np.array(weights, np.int64)).ravel(),
        ],
        axis=1,
    )
    geometry = Geometry(
        units=n * groups * bands * splits,
        groups=groups,
        bands=bands,
        splits=splits,
        depth=depth,
        outs=outs,
        split_outs=split_outs,
        height=height,
        width=width,
        rows=down.extent,
        columns=across.extent,
        band_rows=band_rows,
        stride=down.stride,
        across=across.stride,
        first=down.offset,
        slots=len(slots.remainders_down),
        remainders=len(slots.remainders_across),
        slot_rows=slot_rows,
        slot_columns=slot_columns,
        taps=len(taps),
        weight_row=by_out,
        weight_group=by_group,
        out_image=out_strides[0],
        out_channel=out_strides[1],
        out_row=out_strides[2],
        out_column=out_strides[3],
        copy=depth * channel,
    )
    table = np.array(slots.table(width), np.int64)
    return geometry, np.concatenate([table, taps.ravel()])


def tasks_of(geometry: Geometry, threads: int) -> int:
    """Return how many tasks share the units."""
    work = geometry.units * geometry.split_outs * geometry.taps
    work *= geometry.band_rows * geometry.columns
    return 1 if work < PARALLEL_FROM else min(threads, geometry.units)
