"""Slices, their adjoint, reversal and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.errors import ArgumentError, AxisError, ShapeError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.record import Kind, composite, op
from needle.ops.samples import Array, Sample, bad, normal
from needle.shapes import (
    Axis,
    Shape,
    Spec,
    as_index,
    normalize_axes,
    steps_in,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def slices(starts: Shape, stops: Shape, steps: Shape) -> tuple[slice, ...]:
    """Return Python's slices for the attributes of a `strided_slice`."""
    if -1 not in stops:
        return tuple(map(slice, starts, stops, steps))
    # A slice that runs backwards to the very first element has no stop that Python can name but
    # None.
    ends = [None if b < 0 else b for b in stops]
    return tuple(map(slice, starts, ends, steps))


def _infer_slice(x: Spec, *, starts: Shape, stops: Shape, steps: Shape) -> Spec:
    shape = tuple(steps_in(a, b, s) for a, b, s in zip(starts, stops, steps, strict=True))
    return Spec(shape, x.dtype)


def _unslice_cotangent(
    g: Tensor, x_shape: Shape, starts: Shape, stops: Shape, steps: Shape
) -> Tensor:
    return unslice(g, x_shape, starts, stops, steps)


def _slice_samples() -> Iterable[Sample]:
    yield Sample((normal(5, 6), (1, 0), (4, 6), (1, 2)))
    yield Sample((normal(5, 6), (4, 5), (-1, 0), (-1, -2)), label="backwards")
    yield Sample((normal(5), (2,), (2,), (1,)), label="empty")
    yield bad(ShapeError, "one start", normal(5), (0, 0), (1, 1), (1, 1))


@op(
    kind=Kind.MOVEMENT,
    infer=_infer_slice,
    reference=lambda x, *, starts, stops, steps: x[slices(starts, stops, steps)],
    lower=lambda b, index, x, *, starts, stops, steps: x(
        tuple(i * step + start for i, start, step in zip(index, starts, steps, strict=True))
    ),
    vjp={"x": _unslice_cotangent},
    per_axis=("starts", "stops", "steps"),
    samples=_slice_samples,
    refuses=True,
    may_alias=True,
    is_method=False,
)
def strided_slice(
    x: TensorLike, starts: Sequence[int], stops: Sequence[int], steps: Sequence[int]
) -> Tensor:
    """Take every ``step``-th element from ``start`` to before ``stop`` along each axis.

    What ``x[1:4, ::2]`` comes down to; all numbers count from the front.

    Args:
        x: any shape.
        starts: first index for each axis.
        stops: index that is not reached any more; −1 for a backward slice that includes index 0.
        steps: distance between indices, negative for backwards; not 0.

    Raises:
        ShapeError: not one start, stop and step for each axis.

    Example:
        >>> ndl.strided_slice(ndl.arange(6), (1,), (6,), (2,))
        Tensor([1, 3, 5], dtype=int64)
    """
    t = as_tensor(x)
    if not len(starts) == len(stops) == len(steps) == t.ndim:
        raise ShapeError(
            f"strided_slice: needs one start, stop and step for each of the {t.ndim} axes"
        )
    return apply(strided_slice, t, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))


def _unslice(x: Array, *, shape: Shape, starts: Shape, stops: Shape, steps: Shape) -> Array:
    result = np.zeros(shape, dtype=x.dtype)
    result[slices(starts, stops, steps)] = x
    return result


def _lower_unslice(
    b: Any, index: Any, x: Any, *, shape: Shape, starts: Shape, stops: Shape, steps: Shape
) -> Any:
    conditions, source = [], []
    for i, start, step, extent in zip(index, starts, steps, x.shape, strict=True):
        distance = (i - start) if step > 0 else (start - i)
        size = abs(step)
        conditions.append((distance, 0, extent * size))
        if size > 1:
            conditions.append((distance % size, 0, 1))
        source.append(distance // size)
    return b.where(conditions, lambda: x(tuple(source)), lambda: b.fill(0))


@op(
    kind=Kind.MOVEMENT,
    infer=lambda x, *, shape, starts, stops, steps: Spec(shape, x.dtype),
    reference=_unslice,
    lower=_lower_unslice,
    vjp={"x": lambda g, starts, stops, steps: strided_slice(g, starts, stops, steps)},
    per_axis=("shape", "starts", "stops", "steps"),
    samples=lambda: [
        Sample((normal(3, 3), (5, 6), (1, 0), (4, 6), (1, 2))),
        Sample((normal(2), (5,), (4,), (0,), (-2,)), label="backwards"),
    ],
    is_method=False,
)
def unslice(
    x: TensorLike,
    shape: Sequence[int],
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int],
) -> Tensor:
    """Put ``x`` into zeros at the places that a slice takes: the adjoint of `strided_slice`.

    Args:
        x: of the slice's shape.
        shape: shape of the result.
        starts: first index for each axis.
        stops: index that is not reached any more.
        steps: distance between indices; not 0.

    Example:
        >>> ndl.unslice(ndl.ones(2), (5,), (0,), (4,), (2,))
        Tensor([1., 0., 1., 0., 0.])
    """
    return apply(
        unslice,
        as_tensor(x),
        shape=tuple(shape),
        starts=tuple(starts),
        stops=tuple(stops),
        steps=tuple(steps),
    )


@composite(
    samples=lambda: [
        Sample((normal(3, 4), 0)),
        Sample((normal(3, 4),), label="all"),
        bad(AxisError, "axis 2", normal(3, 4), 2),
    ],
    is_method=True,
    peer=lambda torch, x, axis=None: torch.flip(
        x, tuple(range(x.ndim)) if axis is None else (axis,)
    ),
)
def flip(x: TensorLike, axis: Axis = None) -> Tensor:
    """Reverse the order along axes.

    Args:
        x: any shape.
        axis: the axes to reverse; all if not given.

    Raises:
        AxisError: an axis does not exist.

    Example:
        >>> ndl.flip(ndl.arange(3))
        Tensor([2, 1, 0], dtype=int64)
    """
    t = as_tensor(x)
    axes = normalize_axes(axis, t.ndim, "flip")
    turned = [i in axes for i in range(t.ndim)]
    return strided_slice(
        t,
        [n - 1 if back else 0 for n, back in zip(t.shape, turned, strict=True)],
        [-1 if back else n for n, back in zip(t.shape, turned, strict=True)],
        [-1 if back else 1 for back in turned],
    )


Pads = Sequence[tuple[int, int]]


def _infer_pad(x: Spec, *, pads: Pads, value: float) -> Spec:
    return Spec(tuple(n + a + b for n, (a, b) in zip(x.shape, pads, strict=True)), x.dtype)


def _pad(x: Array, *, pads: Pads, value: float) -> Array:
    result = np.full(_infer_pad(x, pads=pads, value=value).shape, value, dtype=x.dtype)  # type: ignore[arg-type]
    result[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, pads, strict=True))] = x
    return result


def _lower_pad(b: Any, index: Any, x: Any, *, pads: Pads, value: float) -> Any:
    source = tuple(i - before for i, (before, _) in zip(index, pads, strict=True))
    conditions = [(i, 0, n) for i, n in zip(source, x.shape, strict=True)]
    return b.where(conditions, lambda: x(source), lambda: b.fill(value))


def _unpad(g: Tensor, x_shape: Shape, pads: Pads) -> Tensor:
    starts = [a for a, _ in pads]
    return strided_slice(
        g, starts, [a + n for a, n in zip(starts, x_shape, strict=True)], [1] * g.ndim
    )


def _pad_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3), ((1, 2), (0, 1))))
    yield Sample((normal(2, 3), ((0, 0), (1, 1)), 7.5), label="value")
    yield Sample((normal(3), 2), label="one number")
    yield bad(ArgumentError, "negative", normal(3), ((-1, 0),))
    yield bad(ShapeError, "one pair", normal(2, 3), ((1, 1),))


@op(
    kind=Kind.MOVEMENT,
    infer=_infer_pad,
    reference=_pad,
    lower=_lower_pad,
    vjp={"x": _unpad},
    per_axis=("pads",),
    samples=_pad_samples,
    is_method=False,
)
def pad(x: TensorLike, pads: int | Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """Surround with a constant.

    Args:
        x: any shape.
        pads: for each axis how many elements before and after, or one number for all.
        value: what the new elements are.

    Raises:
        ShapeError: not one pair for each axis.
        ArgumentError: a negative number.

    Example:
        >>> ndl.pad(ndl.ones(2), ((1, 2),))
        Tensor([0., 1., 1., 0., 0.])
    """
    t = as_tensor(x)
    if isinstance(pads, int):
        pads = ((pads, pads),) * t.ndim
    if len(pads) != t.ndim or any(len(p) != 2 for p in pads):
        raise ShapeError(
            f"pad: needs one pair (before, after) for each of the {t.ndim} axes, got {pads!r}"
        )
    exact = tuple((as_index(a, "pad: width"), as_index(b, "pad: width")) for a, b in pads)
    if any(n < 0 for pair in exact for n in pair):
        raise ArgumentError(f"pad: negative width in {pads!r}; slice to remove elements")
    return apply(pad, t, pads=exact, value=value)


__all__ = [
    "flip",
    "pad",
    "strided_slice",
    "unslice",
]
