"""Gradients by the weights of groups of few channels: sums over pixels, channels in lanes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from needle.backends.cpu.conv.channels import (
    COPY_BYTES,
    copy_elements,
    segments,
    strip_size,
    zero_elements,
)
from needle.backends.cpu.conv.finish import Box, Finish
from needle.backends.cpu.conv.parts import first_and_last, share
from needle.backends.cpu.conv.phase import Correlations, correlations
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.spread import SpreadCopy
from needle.backends.cpu.conv.strip import Reading, StripSums, strips
from needle.backends.cpu.conv.sums_plan import Summed, blocks_of
from needle.backends.cpu.gemm.plan import PARALLEL_FROM, split
from needle.backends.cpu.gemm.tiling import max_index
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.backends.cpu.target import Target

#: Sums that are computed together: enough for none to wait for its last multiply-add.
SUMS = 12


@dataclass(frozen=True)
class ChannelSumsPlan:
    """How gradients by the weights of few channels are computed.

    Attributes:
        work: the forward convolution.
        blocks: of pixels.
        strip: results of a strip, at most.
        kernel_rows: rows of the kernel whose sums are computed together, at most.
        bands: bands of an image that are copied together.
        copies: whether what is read is copied, spread over the lanes.
        grid: into how many parts vectors of channels and kernel rows are split: the tasks.
    """

    work: Correlations
    blocks: Summed
    strip: int
    kernel_rows: int
    bands: int
    copies: bool
    grid: tuple[int, int]

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return math.prod(self.grid)

    @property
    def copied_rows(self) -> int:
        """Rows of results for which an image is copied at a time."""
        return min(self.bands * self.blocks.rows, self.work.down.extent)

    def source_elements(self, lanes: int) -> int:
        """Return the elements of the copy, or of the row of zeros; whole cache lines."""
        if self.copies:
            total = self.blocks.images * copy_elements(self.work, self.copied_rows, lanes)
        else:
            total = zero_elements(self.work, self.strip, lanes)
        return total + -total % 64

    def workspace(self, spec: ConvSpec, lanes: int) -> int:
        """Return the elements that each task needs to itself."""
        channels = -(-spec.out_channels // lanes) * lanes
        return self.source_elements(lanes) + math.prod(spec.w_shape[:3]) * channels


def plan_channel_sums(spec: ConvSpec, target: Target, threads: int) -> ChannelSumsPlan:
    """Return the plan of a gradient by the weight of `is_by_channel`."""
    work = correlations(spec)
    lanes = target.lanes(spec.dtype)
    kh, kw = spec.kernel
    blocks = blocks_of(spec.images, *spec.counts)
    together = max(1, SUMS // (kw * work.depth))
    vectors = sum(count for _, count, _, _ in segments(spec.out_channels, target, spec))
    grid = (1, 1)
    if threads > 1 and work.products >= PARALLEL_FROM:
        grid = (min(threads, vectors), min(kh, threads // min(threads, vectors)))
        together = min(together, -(-kh // grid[1]))
    groups = -(-kh // together)
    band = copy_elements(work, 1, lanes) // work.down.length(1) * spec.dtype.itemsize
    fitting = (COPY_BYTES // band - work.down.span) // (work.down.stride * blocks.rows)
    return ChannelSumsPlan(
        work,
        blocks,
        min(strip_size(work, target), max(4, target.registers - SUMS - 2)),
        -(-kh // groups),
        min(max(1, fitting), blocks.bands) if work.depth > 1 else 1,
        work.depth > 1,
        (grid[0], min(grid[1], groups)),
    )


class ChannelSums:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: ChannelSumsPlan) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.work = plan.work
        self.dtype = spec.dtype
        self.lanes = f.target.lanes(spec.dtype)
        elements = plan.source_elements(self.lanes)
        self.partial = f.pointer("%workspace", elements, spec.dtype)
        blocks = plan.blocks
        self.resumes = spec.images > blocks.images or blocks.bands > 1
        # The block: its first image, and the first row that was copied with it.
        self.image: Index = 0
        self.copied: Index = 0

    def emit(self) -> None:
        """Emit the task."""
        f, plan = self.f, self.plan
        blocks = plan.blocks
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        own = (f.floordiv_index(task, plan.grid[1]), f.mod_index(task, plan.grid[1]))
        if not plan.copies:
            zero = f.constant(0, self.dtype, self.lanes)
            count = zero_elements(self.work, plan.strip, self.lanes)
            f.loop(0, count, self.lanes, [], lambda i, _: f.store(zero, "%workspace", i))
        bands = max(blocks.bands, 1)

        def some_images(n: Index, _: list[Operand]) -> None:
            self.image = n

            def some_bands(b: Index, _: list[Operand]) -> None:
                self.copied = f.mul_index(b, blocks.rows)
                last = f.min_index(f.add_index(b, plan.bands), bands)
                self._vectors(own, (b, last))

            f.loop(0, bands, plan.bands, [], some_bands)

        # At least once: sums of nothing are to be stored, too.
        f.loop(0, max(self.spec.images, 1), blocks.images, [], some_images)

    def _vectors(self, own: tuple[Index, Index], bands: tuple[Index, Index]) -> None:
        """Emit the loops over vectors of channels, blocks, and groups of kernel rows."""
        f, plan, spec = self.f, self.plan, self.spec
        runs = list(segments(spec.out_channels, f.target, spec))
        low, high = share(f, sum(run[1] for run in runs), own[0], plan.grid[0])
        number = 0
        for start, count, lanes, tail in runs:

            def vector(
                v: Index, _: list[Operand], first: int = number, start: int = start,
                lanes: int = lanes, tail: int = tail,
            ) -> None:  # fmt: skip
                place = f.mul_index(f.sub_index(v, first), lanes)
                channel = f.add_index(start, place)
                if plan.copies:
                    self._copy(channel, lanes, tail)
                f.loop(*bands, 1, [], lambda b, _: self._rows(b, own[1], (channel, lanes, tail)))

            begin, end = max_index(f, low, number), f.min_index(high, number + count)
            f.loop(begin, end, 1, [], vector)
            number += count

    def _images(self) -> Index:
        f = self.f
        return f.min_index(self.plan.blocks.images, f.sub_index(self.spec.images, self.image))

    def _copy(self, channel: Index, lanes: int, tail: int) -> None:
        f, plan, work = self.f, self.plan, self.work
        top = f.add_index(f.mul_index(self.copied, work.down.stride), work.down.low)
        copy = SpreadCopy(work, lanes, tail, self.dtype)
        rows = work.down.length(plan.copied_rows)
        pitch = copy_elements(work, plan.copied_rows, lanes)

        def image(i: Index, _: list[Operand]) -> None:
            to = f.pointer("%workspace", f.mul_index(i, pitch), self.dtype)
            copy.call(f, to, f.add_index(self.image, i), top, rows, channel)

        f.loop(0, self._images(), 1, [], image)

    def _rows(self, band: Index, own: Index, vector: tuple[Index, int, int]) -> None:
        """Emit the loops over groups of kernel rows, for a block and a vector."""
        f, plan, spec = self.f, self.plan, self.spec
        groups = -(-spec.kernel[0] // plan.kernel_rows)
        low, high = share(f, groups, own, plan.grid[1])
        number = done = 0
        for size, count in split(spec.kernel[0], plan.kernel_rows):

            def group(
                g: Index, _: list[Operand], size: int = size, number: int = number, done: int = done
            ) -> None:
                first = f.add_index(done, f.mul_index(f.sub_index(g, number), size))
                self._sums(band, (first, size), vector)

            begin, end = max_index(f, low, number), f.min_index(high, number + count)
            f.loop(begin, end, 1, [], group)
            number, done = number + count, done + count * size

    def _sums(
        self, band: Index, kernel_rows: tuple[Index, int], vector: tuple[Index, int, int]
    ) -> None:
        """Emit the call that computes sums of a block."""
        f, plan, spec, work = self.f, self.plan, self.spec, self.work
        channel, lanes, tail = vector
        first, size = kernel_rows
        phase = work.phases[0]
        down, across = replace(phase.down, taps=size), phase.across
        _, height, width, channels = work.source
        rows, columns = spec.counts
        row = f.mul_index(band, plan.blocks.rows)
        top = f.add_index(f.mul_index(row, down.stride), f.mul_index(first, down.dilation))
        pitch, image = (width * channels, channels, 0), height * width * channels
        inside, limit = (height, width) if work.is_padded else (None, None)
        source = f.pointer(
            "%image", f.add_index(f.mul_index(self.image, image), channel), self.dtype
        )
        if plan.copies:
            length = work.across.length(work.across.extent)
            pitch = (length * work.depth * lanes, work.depth * lanes, lanes)
            image = copy_elements(work, plan.copied_rows, lanes)
            inside = limit = None
            source = "%workspace"
            top = f.sub_index(top, f.mul_index(self.copied, down.stride))
            across = replace(across, offset=0)
        else:
            top = f.add_index(top, down.offset)
        readings = tuple(
            (Reading(strip, down, across, work.depth, pitch, inside), begin, count)
            for strip, begin, count in strips(across, plan.strip, limit)
        )
        counts = (size, spec.kernel[1], spec.depth)
        tap = spec.depth * spec.out_channels
        result = (spec.kernel[1] * tap, tap, spec.out_channels)
        box = Box(counts)
        products = plan.blocks.images * plan.blocks.rows * columns
        finish = Finish(box, box.offsets(result), (lanes,), self.dtype, products, spec.epilogue)
        g = (rows * columns * spec.out_channels, columns * spec.out_channels, spec.out_channels)
        kernel = StripSums(readings, g, image, lanes, tail, finish, self.resumes)
        pixel = f.mul_index(f.add_index(f.mul_index(self.image, rows), row), columns)
        pixel = f.add_index(f.mul_index(pixel, spec.out_channels), channel)
        before = f.mul_index(first, spec.kernel[1] * spec.depth * (lanes or 1))
        every = f.mul_index(channel, math.prod(spec.w_shape[:3]))
        out = "%out"
        if spec.epilogue is None:
            place = f.add_index(f.mul_index(first, result[0]), channel)
            out = f.pointer("%out", place, self.dtype)
        ends = first_and_last(f, plan.blocks, spec.images, self.image, band)
        kernel.call(
            f,
            source=source,
            zeros="%workspace",
            cotangent=f.pointer("%weight", pixel, self.dtype),
            top=top,
            images=self._images(),
            rows=f.min_index(plan.blocks.rows, f.sub_index(rows, row)),
            partial=f.pointer(self.partial, f.add_index(every, before), self.dtype),
            first=ends[0],
            last=ends[1],
            out=out,
            extra="%extra",
            image=first,
            row=0,
            column=0,
            channel=channel,
        )
