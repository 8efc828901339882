"""Movement: ops that only move elements, copy them, or change their dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import DType, as_dtype
from needle.errors import ArgumentError, AxisError, ShapeError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor, promoted
from needle.ops.record import Kind, composite, op
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.shapes import (
    Axis,
    Shape,
    Spec,
    as_index,
    as_shape,
    infer_reshape,
    normalize_axes,
    normalize_axis,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


# dtype and copies


def _astype_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), "float32"))
    yield Sample((normal(3, 4), "int64"), label="to integers", is_smooth=False)
    yield Sample((integers(-3, 4, 3), "bool"), label="to bool")
    yield Sample((normal(3, 4), "float64"), label="same")


def _astype(x: Array, *, dtype: DType) -> Array:
    return x.astype(dtype)


@op(
    kind=Kind.ELEMENTWISE,
    infer=lambda x, *, dtype: Spec(x.shape, dtype),
    reference=_astype,
    vjp={"x": lambda g, x_dtype: g.astype(x_dtype)},
    samples=_astype_samples,
    aliases=("cast",),
    peer=lambda torch, x, dtype: x.to(getattr(torch, dtype)),
)
def astype(x: TensorLike, dtype: Any, *, copy: bool = True) -> Tensor:
    """Convert to another dtype; floats are cut towards zero to become integers.

    Args:
        x: any shape and dtype.
        dtype: the dtype to convert to.
        copy: whether to copy even when the dtype is that already.

    Raises:
        DTypeError: there is no such dtype.

    Example:
        >>> ndl.astype(ndl.asarray([1.7, -1.7]), "int64")
        Tensor([ 1, -1], dtype=int64)
    """
    t = as_tensor(x)
    target = as_dtype(dtype)
    if not copy and t.dtype == target:
        return t
    return apply(astype, t, dtype=target)


@op(
    kind=Kind.ELEMENTWISE,
    infer=lambda x: Spec(x.shape, x.dtype),
    reference=lambda x: x.copy(),
    vjp={"x": lambda g: g},
    samples=lambda: [Sample((normal(3, 4),)), Sample((normal(4, 6)[:, ::2],), label="strided")],
    aliases=("copy",),
    peer="clone",
)
def clone(x: TensorLike) -> Tensor:
    """Copy, with its own storage and, unlike `detach`, with the gradient flowing back.

    Args:
        x: any shape and dtype.

    Example:
        >>> x = ndl.arange(3)
        >>> y = ndl.clone(x)
        >>> y += 1
        >>> x
        Tensor([0, 1, 2], dtype=int64)
    """
    return apply(clone, as_tensor(x))


# shape


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
    vjp={"x": lambda g, x_shape: g.reshape(x_shape)},
    samples=_reshape_samples,
    refuses=True,
    may_alias=True,
    is_method=False,
    peer="reshape",
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
    vjp={"x": lambda g, axes: g.permute_dims(_inverse(axes))},
    samples=_permute_samples,
    refuses=True,
    may_alias=True,
    aliases=("permute",),
    peer="permute",
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
    if lead < 0 or any(n not in (1, m) for n, m in zip(x.shape, shape[lead:], strict=True)):
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
    axes = (*range(lead), *(lead + i for i, n in enumerate(x_shape) if n == 1))
    return g.sum(axis=axes, keepdims=True).reshape(x_shape)


@op(
    kind=Kind.MOVEMENT,
    infer=_infer_broadcast,
    reference=lambda x, *, shape: np.broadcast_to(x, shape),
    vjp={"x": _sum_back},
    samples=_broadcast_samples,
    refuses=True,
    may_alias=True,
    is_method=False,
    peer=lambda torch, x, shape: torch.broadcast_to(x, shape),
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
    is_method=False,
    peer=lambda torch, x, shape: x.expand(shape),
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


# slices and their adjoint


def slices(starts: Shape, stops: Shape, steps: Shape) -> tuple[slice, ...]:
    """Return Python's slices for the attributes of a `strided_slice`."""
    if -1 not in stops:
        return tuple(map(slice, starts, stops, steps))
    # A slice that runs backwards to the very first element has no stop that Python can name but
    # None.
    ends = [None if b < 0 else b for b in stops]
    return tuple(map(slice, starts, ends, steps))


def _infer_slice(x: Spec, *, starts: Shape, stops: Shape, steps: Shape) -> Spec:
    shape = tuple(len(range(a, b, s)) for a, b, s in zip(starts, stops, steps, strict=True))
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
    vjp={"x": _unslice_cotangent},
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


@op(
    kind=Kind.MOVEMENT,
    infer=lambda x, *, shape, starts, stops, steps: Spec(shape, x.dtype),
    reference=_unslice,
    vjp={"x": lambda g, starts, stops, steps: strided_slice(g, starts, stops, steps)},
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


# padding


Pads = Sequence[tuple[int, int]]


def _infer_pad(x: Spec, *, pads: Pads, value: float) -> Spec:
    return Spec(tuple(n + a + b for n, (a, b) in zip(x.shape, pads, strict=True)), x.dtype)


def _pad(x: Array, *, pads: Pads, value: float) -> Array:
    result = np.full(_infer_pad(x, pads=pads, value=value).shape, value, dtype=x.dtype)  # type: ignore[arg-type]
    result[tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, pads, strict=True))] = x
    return result


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
    vjp={"x": _unpad},
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


# joining and splitting


def _infer_concat(*xs: Spec, axis: int) -> Spec:
    first = xs[0]
    for i, x in enumerate(xs):
        same = x.ndim == first.ndim and all(
            n == m for a, (n, m) in enumerate(zip(x.shape, first.shape, strict=True)) if a != axis
        )
        if not same:
            raise ShapeError(
                f"concat: shapes must be equal but for axis {axis}; the first tensor has "
                f"{list(first.shape)}, number {i} has {list(x.shape)}"
            )
    shape = list(first.shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    return Spec(tuple(shape), first.dtype)


def _concat_vjp(g: Tensor, i: int, xs_shape: Sequence[Shape], axis: int) -> Tensor:
    start = sum(s[axis] for s in xs_shape[:i])
    starts, stops = [0] * g.ndim, list(g.shape)
    starts[axis], stops[axis] = start, start + xs_shape[i][axis]
    return strided_slice(g, starts, stops, [1] * g.ndim)


def _concat_samples() -> Iterable[Sample]:
    yield Sample(([normal(2, 3), normal(1, 3)],))
    yield Sample(([normal(2, 3), normal(2, 1), normal(2, 0)],), {"axis": 1}, label="axis 1")
    yield Sample(([normal(2), integers(0, 5, 3)],), label="promotion")
    yield bad(ShapeError, "equal but for axis", [normal(2, 3), normal(2, 2)])
    yield bad(ArgumentError, "at least one", [])


@op(
    kind=Kind.MOVEMENT,
    infer=_infer_concat,
    reference=lambda *xs, axis: np.concatenate(xs, axis=axis),
    vjp={"xs": _concat_vjp},
    samples=_concat_samples,
    aliases=("cat", "concatenate"),
    is_method=False,
    peer=lambda torch, xs, axis=0: torch.cat(xs, axis),
)
def concat(xs: Sequence[TensorLike], axis: int | None = 0) -> Tensor:
    """Join tensors along an existing axis.

    Args:
        xs: tensors of shapes that are equal but for that axis; dtypes are promoted.
        axis: the axis; None flattens all first.

    Raises:
        ShapeError: the shapes differ in another axis.
        ArgumentError: no tensors.

    Example:
        >>> ndl.concat([ndl.arange(2), ndl.arange(3)])
        Tensor([0, 1, 0, 1, 2], dtype=int64)
    """
    if not len(xs):
        raise ArgumentError("concat: needs at least one tensor")
    tensors = promoted(*xs)
    if axis is None:
        tensors = tuple(flatten(t) for t in tensors)
        axis = 0
    if tensors[0].ndim == 0:
        raise ShapeError("concat: 0-d tensors have no axis to join along; use stack")
    place = normalize_axis(axis, tensors[0].ndim, "concat")
    return apply(concat, *tensors, axis=place)


def _stack_samples() -> Iterable[Sample]:
    yield Sample(([normal(2, 3), normal(2, 3, seed=1)],))
    yield Sample(([normal(2), normal(2)],), {"axis": -1}, label="last")
    yield Sample(([normal(), normal()],), label="0-d")
    yield bad(ShapeError, "equal shapes", [normal(2), normal(3)])


@composite(samples=_stack_samples, peer=lambda torch, xs, axis=0: torch.stack(xs, axis))
def stack(xs: Sequence[TensorLike], axis: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis.

    Args:
        xs: tensors of equal shapes; dtypes are promoted.
        axis: place of the new axis in the result.

    Raises:
        ShapeError: the shapes differ.
        ArgumentError: no tensors.

    Example:
        >>> ndl.stack([ndl.arange(2), ndl.arange(2)], axis=1)
        Tensor([[0, 0],
                [1, 1]], dtype=int64)
    """
    if not len(xs):
        raise ArgumentError("stack: needs at least one tensor")
    tensors = promoted(*xs)
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ShapeError(
                f"stack: needs equal shapes; the first tensor has {list(tensors[0].shape)}, "
                f"number {i} has {list(t.shape)}"
            )
    return concat([expand_dims(t, axis) for t in tensors], axis)


def _split_samples() -> Iterable[Sample]:
    yield Sample((normal(6, 2), 3))
    yield Sample((normal(2, 7), 3), {"axis": 1}, label="rest")
    yield Sample((normal(2, 7), [2, 5]), {"axis": -1}, label="sizes")
    yield bad(ShapeError, "add up", normal(7), [2, 4])
    yield bad(ArgumentError, "positive", normal(7), 0)


@composite(
    samples=_split_samples,
    is_method=True,
    peer=lambda torch, x, size, axis=0: torch.split(x, size, axis),
)
def split(x: TensorLike, size: int | Sequence[int], axis: int = 0) -> tuple[Tensor, ...]:
    """Cut into pieces along an axis (PyTorch's convention).

    Args:
        x: any shape with at least one axis.
        size: extent of each piece, the last being smaller if it does not divide; or the list of
            extents.
        axis: the axis to cut.

    Raises:
        ShapeError: the extents do not add up to that of ``x``.
        ArgumentError: an extent is not positive.

    Example:
        >>> [piece.tolist() for piece in ndl.split(ndl.arange(5), 2)]
        [[0, 1], [2, 3], [4]]
    """
    t = as_tensor(x)
    place = normalize_axis(axis, t.ndim, "split")
    extent = t.shape[place]
    if isinstance(size, int):
        if size <= 0:
            raise ArgumentError(f"split: the size of a piece must be positive, got {size}")
        sizes = [min(size, extent - start) for start in range(0, extent, size)] or [0]
    else:
        sizes = [as_index(n, "split: size") for n in size]
        if sum(sizes) != extent or any(n < 0 for n in sizes):
            raise ShapeError(f"split: sizes {sizes} do not add up to {extent}, the axis' extent")
    pieces = []
    start = 0
    for n in sizes:
        starts, stops = [0] * t.ndim, list(t.shape)
        starts[place], stops[place] = start, start + n
        pieces.append(strided_slice(t, starts, stops, [1] * t.ndim))
        start += n
    return tuple(pieces)


def _chunk_samples() -> Iterable[Sample]:
    yield Sample((normal(6, 2), 3))
    yield Sample((normal(2, 7), 3), {"axis": 1}, label="rest")
    yield bad(ArgumentError, "positive", normal(7), 0)


@composite(
    samples=_chunk_samples,
    is_method=True,
    peer=lambda torch, x, n, axis=0: torch.chunk(x, n, axis),
)
def chunk(x: TensorLike, chunks: int, axis: int = 0) -> tuple[Tensor, ...]:
    """Cut into at most ``chunks`` pieces of equal extent along an axis, the last maybe smaller.

    Args:
        x: any shape with at least one axis.
        chunks: how many pieces.
        axis: the axis to cut.

    Raises:
        ArgumentError: ``chunks`` is not positive.

    Example:
        >>> [piece.tolist() for piece in ndl.chunk(ndl.arange(5), 2)]
        [[0, 1, 2], [3, 4]]
    """
    t = as_tensor(x)
    if chunks <= 0:
        raise ArgumentError(f"chunk: the number of pieces must be positive, got {chunks}")
    extent = t.shape[normalize_axis(axis, t.ndim, "chunk")]
    return split(t, max(1, -(-extent // chunks)), axis)


def _repeat_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3), (2, 1)))
    yield Sample((normal(3), (2, 2)), label="new axis")


@composite(samples=_repeat_samples, peer="tile")
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
    "astype",
    "broadcast_to",
    "chunk",
    "clone",
    "concat",
    "expand",
    "expand_dims",
    "flatten",
    "flip",
    "moveaxis",
    "pad",
    "permute_dims",
    "reshape",
    "split",
    "squeeze",
    "stack",
    "strided_slice",
    "tile",
    "transpose",
    "unslice",
]
