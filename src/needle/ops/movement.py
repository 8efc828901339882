"""Movement: ops that rearrange axes and shapes, without touching an element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from needle.errors import AxisError, ShapeError
from needle.extents import is_single
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.record import Kind, composite, op
from needle.ops.samples import Sample, bad, normal
from needle.shapes import (
    Axis,
    Shape,
    Spec,
    as_shape,
    infer_reshape,
    normalize_axes,
    normalize_axis,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _reshape_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), (2, 6)))
    yield Sample((normal(3, 4), (2, -1)), label="-1")
    yield Sample((normal(3, 4).T, (12,)), label="transposed")
    yield Sample((normal(), (1, 1)), label="0-d")
    yield Sample((normal(0, 3), (3, 0)), label="empty")
    yield bad(ShapeError, "12 elements", normal(3, 4), (5, 2))


@op(
    kind=Kind.MOVEMENT,
    infer=lambda x, *, shape: Spec(infer_reshape(x.shape, shape), x.dtype),
    reference=lambda x, *, shape: x.reshape(shape),
    lower=lambda b, index, x, *, shape: x(b.unravel(b.ravel(index, b.shape), x.shape)),
    vjp={"x": lambda g, x_shape: g.reshape(x_shape)},
    samples=_reshape_samples,
    refuses=True,
    may_alias=True,
    peer="reshape",
    unpacks=True,
)
def reshape(x: TensorLike, shape: int | Sequence[int]) -> Tensor:
    """Arrange the elements, in row-major order, in another shape.

    Args:
        x: any shape.
        shape: new extents; one may be −1, to be computed. The method also takes them one by one.

    Raises:
        ShapeError: the number of elements differs.

    Example:
        >>> ndl.reshape(ndl.arange(4), (2, -1))
        Tensor([[0, 1],
                [2, 3]], dtype=int64)
    """
    t = as_tensor(x)
    return apply(reshape, t, shape=infer_reshape(t.shape, shape))


def _infer_permute(x: Spec, *, axes: Shape) -> Spec:
    return Spec(tuple(x.shape[a] for a in axes), x.dtype)


def _inverse(axes: Shape) -> Shape:
    inverse = [0] * len(axes)
    for place, axis in enumerate(axes):
        inverse[axis] = place
    return tuple(inverse)


def _permute_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 4), (2, 0, 1)))
    yield Sample((normal(2, 3), (-1, 0)), label="negative")
    yield Sample((normal(), ()), label="0-d")
    yield bad(AxisError, "permutation", normal(2, 3), (0, 0))
    yield bad(AxisError, "permutation", normal(2, 3), (0,))


@op(
    kind=Kind.MOVEMENT,
    infer=_infer_permute,
    reference=lambda x, *, axes: np.transpose(x, axes),
    lower=lambda b, index, x, *, axes: x(tuple(index[i] for i in _inverse(axes))),
    vjp={"x": lambda g, axes: g.permute_dims(_inverse(axes))},
    samples=_permute_samples,
    refuses=True,
    may_alias=True,
    aliases=("permute",),
    peer="permute",
    unpacks=True,
)
def permute_dims(x: TensorLike, axes: Sequence[int]) -> Tensor:
    """Reorder the axes: axis ``i`` of the result is axis ``axes[i]`` of ``x``.

    Args:
        x: any shape.
        axes: each axis of ``x`` once.

    Raises:
        AxisError: ``axes`` is no permutation of the axes of ``x``.

    Example:
        >>> ndl.permute_dims(ndl.zeros((2, 3, 4)), (2, 0, 1)).shape
        (4, 2, 3)
    """
    t = as_tensor(x)
    given = tuple(axes)
    if len(given) != t.ndim or len({normalize_axis(a, t.ndim, "permute_dims") for a in given}) != (
        t.ndim
    ):
        raise AxisError(
            f"permute_dims: {given} is no permutation of the {t.ndim} axes of shape {list(t.shape)}"
        )
    normal_axes = tuple(normalize_axis(a, t.ndim, "permute_dims") for a in given)
    return apply(permute_dims, t, axes=normal_axes)


@composite(
    samples=lambda: [
        Sample((normal(2, 3, 4), 0, -1)),
        bad(AxisError, "axis 3", normal(2, 3), 0, 3),
    ],
    aliases=("swapaxes",),
    is_method=True,
    peer="transpose",
)
def transpose(x: TensorLike, axis1: int, axis2: int) -> Tensor:
    """Exchange two axes.

    Args:
        x: any shape.
        axis1: one axis.
        axis2: the other.

    Raises:
        AxisError: an axis does not exist.

    Example:
        >>> ndl.transpose(ndl.zeros((2, 3, 4)), 0, 2).shape
        (4, 3, 2)
    """
    t = as_tensor(x)
    axes = list(range(t.ndim))
    i, j = (normalize_axis(a, t.ndim, "transpose") for a in (axis1, axis2))
    axes[i], axes[j] = axes[j], axes[i]
    return permute_dims(t, axes)


@composite(samples=lambda: [Sample((normal(2, 3, 4), 0, -1))], is_method=True, peer="moveaxis")
def moveaxis(x: TensorLike, source: int, destination: int) -> Tensor:
    """Move an axis to another place; the others keep their order.

    Args:
        x: any shape.
        source: the axis to move.
        destination: its place in the result.

    Raises:
        AxisError: an axis does not exist.

    Example:
        >>> ndl.moveaxis(ndl.zeros((2, 3, 4)), 0, -1).shape
        (3, 4, 2)
    """
    t = as_tensor(x)
    axes = list(range(t.ndim))
    moved = axes.pop(normalize_axis(source, t.ndim, "moveaxis"))
    axes.insert(normalize_axis(destination, t.ndim, "moveaxis"), moved)
    return permute_dims(t, axes)


def _infer_broadcast(x: Spec, *, shape: Shape) -> Spec:
    lead = len(shape) - x.ndim
    if lead < 0 or any(
        not is_single(n) and n != m for n, m in zip(x.shape, shape[lead:], strict=True)
    ):
        raise ShapeError(
            f"broadcast_to: {list(x.shape)} does not expand to {list(shape)}; only axes of "
            "extent 1 "
            "expand, and new axes come first"
        )
    return Spec(shape, x.dtype)


def _broadcast_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 1), (3, 4)))
    yield Sample((normal(4), (2, 3, 4)), label="new axes")
    yield Sample((normal(), (2, 2)), label="0-d")
    yield bad(ShapeError, "does not expand", normal(3), (4,))


def _sum_back(g: Tensor, x_shape: Shape) -> Tensor:
    lead = g.ndim - len(x_shape)
    axes = (*range(lead), *(lead + i for i, n in enumerate(x_shape) if is_single(n)))
    return g.sum(axis=axes, keepdims=True).reshape(x_shape)


@op(
    kind=Kind.MOVEMENT,
    infer=_infer_broadcast,
    reference=lambda x, *, shape: np.broadcast_to(x, shape),
    lower=lambda b, index, x, *, shape: x(b.broadcast(index, x.shape)),
    vjp={"x": _sum_back},
    per_axis=("shape",),
    samples=_broadcast_samples,
    refuses=True,
    may_alias=True,
    peer=lambda torch, x, shape: torch.broadcast_to(x, shape),
    unpacks=True,
)
def broadcast_to(x: TensorLike, shape: int | Sequence[int]) -> Tensor:
    """Repeat along axes of extent 1, without copying, until the shape is ``shape``.

    Args:
        x: any shape.
        shape: extents; each equals that of ``x`` (counted from the last), or ``x`` has 1 there.

    Raises:
        ShapeError: an axis of extent other than 1 would have to expand.

    Example:
        >>> ndl.broadcast_to(ndl.arange(2), (2, 2))
        Tensor([[0, 1],
                [0, 1]], dtype=int64)
    """
    t = as_tensor(x)
    return apply(broadcast_to, t, shape=as_shape(shape, "broadcast_to"))


@composite(
    samples=lambda: [
        Sample((normal(3, 1), (3, 4))),
        Sample((normal(3, 1), (2, -1, 4)), label="-1 keeps"),
    ],
    peer=lambda torch, x, shape: x.expand(shape),
    is_method=True,
    unpacks=True,
)
def expand(x: TensorLike, shape: Sequence[int]) -> Tensor:
    """Like `broadcast_to`, but −1 keeps an extent (PyTorch's function).

    Args:
        x: any shape.
        shape: extents, −1 for those of ``x``. The method also takes them one by one.

    Raises:
        ShapeError: an axis of extent other than 1 would have to expand.

    Example:
        >>> ndl.expand(ndl.zeros((3, 1)), (-1, 4)).shape
        (3, 4)
    """
    t = as_tensor(x)
    lead = len(shape) - t.ndim
    full = [t.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(shape)]
    return broadcast_to(t, full)


def _squeeze_samples() -> Iterable[Sample]:
    yield Sample((normal(1, 3, 1), 0))
    yield Sample((normal(1, 3, 1), (0, -1)), label="two")
    yield Sample((normal(1, 3, 1),), label="all")
    yield bad(ShapeError, "extent 3", normal(1, 3), 1)


@composite(
    samples=_squeeze_samples,
    is_method=True,
    peer=lambda torch, x, axis=None: torch.squeeze(x) if axis is None else torch.squeeze(x, axis),
)
def squeeze(x: TensorLike, axis: Axis = None) -> Tensor:
    """Remove axes of extent 1.

    Args:
        x: any shape.
        axis: the axes to remove; all of extent 1 if not given.

    Raises:
        ShapeError: an axis of another extent is named.
        AxisError: an axis does not exist.

    Example:
        >>> ndl.squeeze(ndl.zeros((1, 3, 1)), -1).shape
        (1, 3)
    """
    t = as_tensor(x)
    if axis is None:
        axes = tuple(i for i, n in enumerate(t.shape) if n == 1)
    else:
        axes = normalize_axes(axis, t.ndim, "squeeze")
    for a in axes:
        if t.shape[a] != 1:
            raise ShapeError(
                f"squeeze: axis {a} of shape {list(t.shape)} has extent {t.shape[a]}, not 1"
            )
    return reshape(t, tuple(n for i, n in enumerate(t.shape) if i not in axes))


@composite(
    samples=lambda: [
        Sample((normal(2, 3), 0)),
        Sample((normal(2, 3), -1), label="last"),
        bad(AxisError, "axis 3", normal(2, 3), 3),
    ],
    aliases=("unsqueeze",),
    is_method=True,
    peer="unsqueeze",
)
def expand_dims(x: TensorLike, axis: int) -> Tensor:
    """Insert an axis of extent 1.

    Args:
        x: any shape.
        axis: its place in the result.

    Raises:
        AxisError: there is no such place.

    Example:
        >>> ndl.expand_dims(ndl.zeros(3), 0).shape
        (1, 3)
    """
    t = as_tensor(x)
    place = normalize_axis(axis, t.ndim + 1, "expand_dims")
    return reshape(t, (*t.shape[:place], 1, *t.shape[place:]))


def _flatten_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 4),))
    yield Sample((normal(2, 3, 4), 1), label="from 1")
    yield Sample((normal(2, 3, 4), 0, 1), label="to 1")
    yield Sample((normal(),), label="0-d")


@composite(samples=_flatten_samples, is_method=True, peer="flatten")
def flatten(x: TensorLike, start_axis: int = 0, end_axis: int = -1) -> Tensor:
    """Merge neighbouring axes into one.

    Args:
        x: any shape.
        start_axis: the first axis to merge.
        end_axis: the last axis to merge.

    Raises:
        AxisError: an axis does not exist, or the first comes after the last.

    Example:
        >>> ndl.flatten(ndl.zeros((2, 3, 4)), 1).shape
        (2, 12)
    """
    t = as_tensor(x)
    if t.ndim == 0:
        return reshape(t, (1,))
    first = normalize_axis(start_axis, t.ndim, "flatten")
    last = normalize_axis(end_axis, t.ndim, "flatten")
    if first > last:
        raise AxisError(f"flatten: start_axis {start_axis} comes after end_axis {end_axis}")
    merged = 1
    for n in t.shape[first : last + 1]:
        merged *= n
    return reshape(t, (*t.shape[:first], merged, *t.shape[last + 1 :]))


def _repeat_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3), (2, 1)))
    yield Sample((normal(3), (2, 2)), label="new axis")


@composite(samples=_repeat_samples, peer="tile", is_method=True, unpacks=True)
def tile(x: TensorLike, repetitions: Sequence[int]) -> Tensor:
    """Repeat the whole tensor along its axes.

    Args:
        x: any shape.
        repetitions: how often along each axis, counted from the last.

    Example:
        >>> ndl.tile(ndl.arange(2), (2,))
        Tensor([0, 1, 0, 1], dtype=int64)
    """
    t = as_tensor(x)
    rank = max(t.ndim, len(repetitions))
    times = (1,) * (rank - len(repetitions)) + tuple(repetitions)
    t = reshape(t, (1,) * (rank - t.ndim) + t.shape)
    # [a, b] repeated is [1·a, 1·b] seen as [r, a, r, b] and merged pairwise.
    pairs = [extent for n in t.shape for extent in (1, n)]
    wide = [extent for r, n in zip(times, t.shape, strict=True) for extent in (r, n)]
    merged = [r * n for r, n in zip(times, t.shape, strict=True)]
    return reshape(broadcast_to(reshape(t, pairs), wide), merged)


__all__ = [
    "broadcast_to",
    "expand",
    "expand_dims",
    "flatten",
    "moveaxis",
    "permute_dims",
    "reshape",
    "squeeze",
    "tile",
    "transpose",
]
