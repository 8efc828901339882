"""Convolutions of groups of few channels: plans, and the loops around the strips.

Of a depthwise convolution, images are read where they lie. Where groups have several channels, a
vector of results is read from a copy that has, for each channel of a group in turn, that channel's
elements in the lanes of the group's results; zeros are around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from needle.backends.cpu.conv.blocking import Bands
from needle.backends.cpu.conv.finish import Box, Finish
from needle.backends.cpu.conv.parts import place_of, share
from needle.backends.cpu.conv.phase import Correlations, Phase, correlations
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.conv.spread import SpreadCopy
from needle.backends.cpu.conv.strip import Reading, Strip, StripKernel, strips
from needle.backends.cpu.gemm.plan import PARALLEL_FROM, uses_masks
from needle.backends.cpu.gemm.tiling import max_index
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.backends.cpu.target import Target

#: Most results of a strip.
STRIP = 14
#: Bytes of a block of an image, or of its copy.
COPY_BYTES = 192 << 10


@dataclass(frozen=True)
class ChannelPlan(Bands):
    """How channels are convolved by lanes.

    Attributes:
        work: what.
        strip: results of a strip, at most.
        rows: of results, that make a block of an image.
        copies: whether what is read is copied, spread over the lanes.
        turns: whether weights are copied, too: those of gradients, of several channels.
        grid: into how many parts blocks and vectors of channels are split: the tasks.
    """

    work: Correlations
    strip: int
    rows: int
    copies: bool
    turns: bool
    grid: tuple[int, int]

    def weight_elements(self) -> int:
        """Return the elements of the copy of the weights; whole cache lines."""
        taps = sum(p.taps for p in self.work.phases)
        total = taps * self.work.depth * self.work.result[3] if self.turns else 0
        return total + -total % 64

    def workspace(self, lanes: int) -> int:
        """Return the elements that each task needs to itself: weights, a copy or a row of zeros."""
        if self.copies:
            other = copy_elements(self.work, self.rows, lanes)
        else:
            other = zero_elements(self.work, self.strip, lanes)
        return self.weight_elements() + other + -other % 64


def copy_elements(work: Correlations, rows: int, lanes: int) -> int:
    """Return the elements of the copy of so many rows of results."""
    columns = work.across.length(work.across.extent)
    return work.down.length(rows) * columns * work.depth * lanes


def zero_elements(work: Correlations, strip: int, lanes: int) -> int:
    """Return the elements of a row of zeros that stands for what a strip reads."""
    return work.across.length(strip) * work.source[3] + lanes


def is_by_channel(spec: ConvSpec, target: Target) -> bool:
    """Whether a convolution has groups of so few channels that they are convolved by lanes."""
    inside, outside = spec.depth, spec.out_channels // spec.groups
    if spec.groups == 1 or inside != outside:
        return False
    if inside == 1:
        return spec.prologue is None
    lanes = target.lanes(spec.dtype)
    fits = outside <= lanes // 2 and lanes % outside == 0
    whole = spec.out_channels % lanes == 0 or uses_masks(target, spec.dtype)
    return fits and whole and spec.prologue is None


def plan_channels(spec: ConvSpec, target: Target, threads: int) -> ChannelPlan:
    """Return the plan of a convolution, or gradient by the input, of `is_by_channel`."""
    work = correlations(spec)
    lanes = target.lanes(spec.dtype)
    strip = strip_size(work, target)
    copies = work.depth > 1
    extent = max(work.down.extent, 1)
    vectors = len(list(segments(work.result[3], target, spec)))
    row = work.across.length(work.across.extent) * work.source[3] * spec.dtype.itemsize
    if copies:
        row = copy_elements(work, 1, lanes) // work.down.length(1) * spec.dtype.itemsize
    fitting = (COPY_BYTES // max(row, 1) - work.down.span) // work.down.stride + 1
    bands = -(-extent // max(fitting, 1))
    grid = (1, 1)
    n = max(work.source[0], 1)
    if threads > 1 and work.products >= PARALLEL_FROM:
        if n * bands % threads and n * bands < 8 * threads:
            bands = min(extent, max(bands, -(-4 * threads // n)))
        blocks = min(threads, n * bands)
        grid = (blocks, min(vectors, threads // blocks))
    rows = -(-extent // bands)
    turns = spec.form == "input_grad" and work.depth > 1
    return ChannelPlan(work, strip, rows, copies, turns, grid)


def strip_size(work: Correlations, target: Target) -> int:
    """Return how many results of a strip, with the weights of a kernel row, stay in registers."""
    weights = max((p.across.taps for p in work.phases), default=1) * work.depth
    return max(4, min(STRIP, target.registers - weights - 2))


def segments(channels: int, target: Target, spec: ConvSpec) -> Iterator[tuple[int, int, int, int]]:
    """Yield runs of equal vectors that cover channels: the first channel, how many vectors, their
    lanes (0 for a scalar), and how many of these exist, if not all do (else 0)."""
    lanes = target.lanes(spec.dtype)
    whole = channels // lanes
    if whole:
        yield 0, whole, lanes, 0
    at, rest = whole * lanes, channels % lanes
    if rest and uses_masks(target, spec.dtype):
        yield at, 1, lanes, rest
        return
    while rest:
        lanes //= 2
        if rest >= lanes:
            yield at, 1, lanes if lanes > 1 else 0, 0
            at, rest = at + lanes, rest - lanes


_Vector: TypeAlias = "Callable[[Index, int, int], None]"
_Vectors: TypeAlias = "Callable[[_Vector], None]"
_Rows: TypeAlias = "Callable[[int, Index], None]"


class Channels:
    """Emits the body of a kernel's function."""

    def __init__(self, f: Function, spec: ConvSpec, plan: ChannelPlan) -> None:
        self.f = f
        self.spec = spec
        self.plan = plan
        self.work = plan.work
        self.dtype = spec.dtype
        self.lanes = f.target.lanes(spec.dtype)
        self.source = f.pointer("%workspace", plan.weight_elements(), spec.dtype)

    def emit(self) -> None:
        """Emit the task."""
        f, plan, work = self.f, self.plan, self.work
        task: Index = f.argument("task") if plan.tasks > 1 else 0
        part, own = f.floordiv_index(task, plan.grid[1]), f.mod_index(task, plan.grid[1])
        blocks = work.source[0] * plan.bands
        first, last = share(f, blocks, part, plan.grid[0])
        if plan.turns:
            self._turn_weights()
        if not plan.copies:
            zero = f.constant(0, self.dtype, self.lanes)
            count = zero_elements(work, plan.strip, self.lanes)
            f.loop(0, count, self.lanes, [], lambda i, _: f.store(zero, self.source, i))

        def block(b: Index, _: list[Operand]) -> None:
            image = f.floordiv_index(b, plan.bands)
            row = f.mul_index(f.mod_index(b, plan.bands), plan.rows)
            self._block(image, row, own)

        f.loop(first, last, 1, [], block)

    def _block(self, image: Index, row: Index, own: Index) -> None:
        """Emit a band of rows: vector by vector where it is copied, else row by row."""
        f, plan, work = self.f, self.plan, self.work
        runs = list(segments(work.result[3], f.target, self.spec))
        every = sum(count for _, count, _, _ in runs)
        mine = share(f, every, own, plan.grid[1])

        def vectors(visit: _Vector) -> None:
            """Emit what is done for each vector of the task's part of the channels."""
            number = 0
            for start, count, lanes, tail in runs:

                def vector(
                    v: Index, _: list[Operand], first: int = number, start: int = start,
                    lanes: int = lanes, tail: int = tail,
                ) -> None:  # fmt: skip
                    place = f.mul_index(f.sub_index(v, first), lanes)
                    visit(f.add_index(start, place), lanes, tail)

                low, high = max_index(f, mine[0], number), f.min_index(mine[1], number + count)
                f.loop(low, high, 1, [], vector)
                number += count

        last = f.min_index(f.add_index(row, plan.rows), work.down.extent)

        def rows(visit: _Rows) -> None:
            for number, phase in enumerate(work.phases):
                stop = f.min_index(last, phase.down.extent)

                def one(r: Index, _: list[Operand], number: int = number) -> None:
                    visit(number, r)

                f.loop(row, stop, 1, [], one)

        if plan.copies:

            def spread(channel: Index, lanes: int, tail: int) -> None:
                top = f.add_index(f.mul_index(row, work.down.stride), work.down.low)
                copy = SpreadCopy(work, lanes, tail, self.dtype)
                copy.call(f, self.source, image, top, work.down.length(plan.rows), channel)
                rows(lambda n, r: self._row(n, (image, r, row), lambda v: v(channel, lanes, tail)))

            vectors(spread)
            return
        rows(lambda n, r: self._row(n, (image, r, row), vectors))

    def _row(self, number: int, at: tuple[Index, Index, Index], vectors: _Vectors) -> None:
        """Emit the strips of a row of results, each for all of the task's channels.

        Args:
            number: of the phase.
            at: the image; the row; the first row of the block.
            vectors: emits what is done for each vector of channels.
        """
        f, plan, work = self.f, self.plan, self.work
        phase = work.phases[number]
        across = phase.across
        limit = work.source[2] if work.is_padded and not plan.copies else None
        if plan.copies:
            across = replace(across, offset=across.offset - work.across.low)
        for strip, begin, count in strips(across, plan.strip, limit):

            def one(k: Index, _: list[Operand], strip: Strip = strip, begin: int = begin) -> None:
                column = f.add_index(begin, f.mul_index(k, strip.size))
                vectors(lambda *vector: self._strip(number, strip, (*at, column), vector))

            f.loop(0, count, 1, [], one)

    def _strip(
        self,
        number: int,
        strip: Strip,
        at: tuple[Index, Index, Index, Index],
        vector: tuple[Index, int, int],
    ) -> None:
        """Emit a strip for a vector of channels: its first channel, lanes and tail."""
        f, plan, work = self.f, self.plan, self.work
        phase = work.phases[number]
        image, row, top_row, column = at
        channel, lanes, tail = vector
        down, across = phase.down, phase.across
        _, height, width, channels = work.source
        inside = height if work.is_padded and not plan.copies else None
        pitch = (width * channels, channels, 0)
        source, top = "%image", f.add_index(f.mul_index(row, down.stride), down.offset)
        offset = f.add_index(f.mul_index(image, height * width * channels), channel)
        if plan.copies:
            columns = work.across.length(work.across.extent)
            pitch = (columns * work.depth * lanes, work.depth * lanes, lanes)
            source, offset = self.source, 0
            low = f.add_index(f.mul_index(top_row, work.down.stride), work.down.low)
            top = f.sub_index(top, low)
            across = replace(across, offset=across.offset - work.across.low)
        weight, by = self._weights(number, channel)
        reading = Reading(strip, down, across, work.depth, pitch, inside)
        box = Box((1, 1, strip.size), (1, 1, across.step))
        out = box.offsets((0, 0, across.step * work.result[3]))
        products = phase.taps * work.depth
        finish = Finish(box, out, (lanes,), self.dtype, products, self.spec.epilogue)
        kernel = StripKernel(reading, by, lanes, tail, finish)
        place = f.add_index(offset, reading.first(f, column))
        start = f.pointer(source, place, self.dtype)
        where = (image, row, column, channel)
        self._call(kernel, phase, where, source=start, top=top, weight=weight)

    def _call(
        self,
        kernel: StripKernel,
        phase: Phase,
        at: tuple[Index, Index, Index, Index],
        **given: str | Index,
    ) -> None:
        f = self.f
        image, row, column, channel = at
        row, column = place_of(f, row, phase.down), place_of(f, column, phase.across)
        out = "%out"
        if self.spec.epilogue is None:
            _, height, width, channels = self.work.result
            place = f.add_index(f.mul_index(image, height), row)
            place = f.add_index(f.mul_index(place, width), column)
            place = f.add_index(f.mul_index(place, channels), channel)
            out = f.pointer("%out", place, self.dtype)
        places = {"image": image, "row": row, "column": column, "channel": channel}
        kernel.call(f, zeros=self.source, out=out, extra="%extra", **places, **given)

    # Weights

    def _weights(self, number: int, channel: Index) -> tuple[str, tuple[int, int, int]]:
        """Return where the weights of a phase's first tap are, and their distances."""
        f, work, spec = self.f, self.work, self.spec
        phase = work.phases[number]
        down, across = phase.down, phase.across
        channels = work.result[3]
        if self.plan.turns:
            before = sum(p.taps for p in work.phases[:number]) * work.depth * channels
            start = f.add_index(before, channel)
            tap = work.depth * channels
            by = (across.taps * tap, tap, channels)
            return f.pointer("%workspace", start, self.dtype), by
        tap = spec.depth * spec.out_channels
        row = spec.kernel[1] * tap
        start = f.add_index(down.first * row + across.first * tap, channel)
        by = (down.turn * row, across.turn * tap, spec.out_channels)
        return f.pointer("%weight", start, self.dtype), by

    def _turn_weights(self) -> None:
        """Emit the copy of the weights of gradients: for each tap and channel of the cotangent, a
        row of the channels of the image."""
        f, work, spec = self.f, self.work, self.spec
        inside, outside = spec.depth, work.depth
        channels = work.result[3]
        before = 0
        for phase in work.phases:
            for i in range(phase.down.taps):
                for j in range(phase.across.taps):
                    row = phase.down.first + i * phase.down.turn
                    column = phase.across.first + j * phase.across.turn
                    tap = (row * spec.kernel[1] + column) * inside * spec.out_channels

                    def group(g: Index, _: list[Operand], tap: int = tap, to: int = before) -> None:
                        for o in range(outside):
                            for c in range(inside):
                                place = f.add_index(f.mul_index(g, outside), o)
                                at = f.add_index(tap + c * spec.out_channels, place)
                                x = f.load("%weight", at, self.dtype)
                                place = f.add_index(f.mul_index(g, inside), c)
                                f.store(x, "%workspace", f.add_index(to + o * channels, place))

                    f.loop(0, spec.groups, 1, [], group)
                    before += outside * channels
