"""Convolutions as correlations: what a result reads, as lines of pixels down and across.

The forward form is one correlation. The gradient by the input is one for each remainder of places
modulo the strides, over the cotangent, with the taps turned round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from needle.backends.cpu.conv.spec import ConvSpec
from needle.ops.unfolding import Sweep, phases


@dataclass(frozen=True)
class Line:
    """Results along one axis, and what they read.

    Result i stands at ``start + i·step``; its tap t, of the source, at ``i·stride + offset +
    t·dilation``, and of the kernel at ``first + t·turn``.

    Attributes:
        start, step, extent: of the results.
        stride, offset, dilation: of what is read.
        first, turn, taps: which taps of the kernel, in the order of summation.
    """

    start: int
    step: int
    extent: int
    stride: int
    offset: int
    dilation: int
    first: int
    turn: int
    taps: int

    @property
    def last(self) -> int:
        """Where the last tap of result 0 reads."""
        return self.offset + (self.taps - 1) * self.dilation


@dataclass(frozen=True)
class Phase:
    """Results that read the same taps."""

    down: Line
    across: Line

    @property
    def taps(self) -> int:
        """How many taps."""
        return self.down.taps * self.across.taps


@dataclass(frozen=True)
class Seen:
    """What all results together read along an axis, relative to the image: ``low … high − 1``.

    Attributes:
        low: where the first tap of the first result reads: negative in the padding.
        span: elements that one result reads, with what lies between.
        stride: from one result to the next.
        extent: results.
    """

    low: int
    span: int
    stride: int
    extent: int

    @property
    def high(self) -> int:
        """Where reading ends."""
        return self.low + self.length(self.extent)

    def length(self, results: int) -> int:
        """Return how many elements so many neighbouring results read."""
        return (results - 1) * self.stride + self.span


@dataclass(frozen=True)
class Correlations:
    """A forward convolution or a gradient by the input, as correlations.

    Attributes:
        phases: the correlations.
        source: shape of the images that are read.
        result: shape of the images that are written.
        groups: into which channels fall.
        down, across: what is read.
    """

    phases: tuple[Phase, ...]
    source: tuple[int, ...]
    result: tuple[int, ...]
    groups: int
    down: Seen
    across: Seen

    @property
    def depth(self) -> int:
        """Channels that a group reads."""
        return self.source[3] // self.groups

    @property
    def outs(self) -> int:
        """Channels that a group writes."""
        return self.result[3] // self.groups

    @property
    def is_padded(self) -> bool:
        """Whether something outside of the images is read."""
        _, height, width, _ = self.source
        inside = self.down.low >= 0 and self.across.low >= 0
        return not inside or self.down.high > height or self.across.high > width

    @property
    def products(self) -> int:
        """How many products are summed."""
        pixels = sum(p.down.extent * p.across.extent * p.taps for p in self.phases)
        return self.source[0] * pixels * self.depth * self.result[3]


def correlations(spec: ConvSpec) -> Correlations:
    """Return the correlations of a forward convolution or of a gradient by the input; of a gradient
    by the weight, the forward convolution's."""
    down, across = spec.sweeps
    if spec.form != "input_grad":
        rows, columns = [_whole(down)], [_whole(across)]
        source, result = spec.x_shape, spec.y_shape
    else:
        rows, columns = (_adjoint(s, n) for s, n in ((down, spec.height), (across, spec.width)))
        source, result = spec.y_shape, spec.x_shape
    return Correlations(
        tuple(Phase(a, b) for a in rows for b in columns),
        source,
        result,
        spec.groups,
        _seen(rows),
        _seen(columns),
    )


def _whole(sweep: Sweep) -> Line:
    return Line(0, 1, sweep.extent, sweep.stride, sweep.offset, sweep.dilation, 0, 1, sweep.taps)


def _adjoint(sweep: Sweep, size: int) -> list[Line]:
    """Return a line for each remainder modulo the stride; without taps, where none reads."""
    step = sweep.stride // math.gcd(sweep.stride, sweep.dilation)
    found = {
        p.inputs.start: Line(
            p.inputs.start,
            sweep.stride,
            p.sweep.extent,
            1,
            p.sweep.offset,
            p.sweep.dilation,
            p.taps.start,
            -step,
            p.sweep.taps,
        )
        for p in phases(sweep, size)
    }
    for start in range(min(sweep.stride, size)):
        extent = -(-(size - start) // sweep.stride)
        found.setdefault(start, Line(start, sweep.stride, extent, 1, 0, 1, 0, 1, 0))
    return [found[start] for start in sorted(found)]


def _seen(lines: list[Line]) -> Seen:
    reading = [line for line in lines if line.taps]
    extent = max((line.extent for line in lines), default=0)
    if not reading:
        return Seen(0, 0, 1, extent)
    low = min(line.offset for line in reading)
    span = max(line.last for line in reading) - low + 1
    return Seen(low, span, reading[0].stride, extent)
