"""Updates: copies of a tensor with some elements replaced, what ``x[i] = v`` comes down to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.errors import DTypeError, OutOfRangeError, ShapeError
from needle.ops.comparison import equal, where
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.movement import broadcast_to, reshape
from needle.ops.ordered import Scatter
from needle.ops.places import (
    as_axes,
    as_indices,
    check_places,
    flat_places,
    front_of,
    place_at,
    take_at,
    taken_shape,
)
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, bad, normal
from needle.ops.slicing import slices, strided_slice, unslice
from needle.shapes import Shape, Spec, as_shape, broadcast_shapes

if TYPE_CHECKING:
    from needle.tensor import Tensor


def _last_at(*indices: Array, shape: Shape) -> Array:
    flat = flat_places(indices, shape, tuple(range(len(shape))))
    order = np.arange(len(flat))
    last = np.empty(math.prod(shape), dtype=np.int64)
    last[flat] = order
    return (last[flat] == order).reshape(np.broadcast_shapes(*(i.shape for i in indices)))


def _last_at_by_parts(*indices: Tensor, shape: Shape) -> Tensor:
    """Write the numbers of the indices to their places: the last ones stay."""
    axes = range(len(shape))
    places = broadcast_shapes(*(i.shape for i in indices))
    order = as_tensor(np.arange(math.prod(places)).reshape(places))
    empty = broadcast_to(as_tensor(0, dtypes.int64), shape)
    return equal(take_at(update_at(empty, order, indices, axes), indices, axes), order)


@op(
    kind=Kind.INDEXING,
    infer=lambda *indices, shape: Spec(
        taken_shape("last_at", shape, indices, tuple(range(len(shape)))), dtypes.bool
    ),
    reference=_last_at,
    decompose=_last_at_by_parts,
    samples=lambda: [
        Sample(([np.array([0, 2, 0, 1, -1])], (3,))),
        Sample(([np.array([[0], [1]]), np.array([0, 1, 0])], (2, 2)), label="two axes"),
        Sample(([np.zeros((0, 2), np.int64)], (3,)), label="empty"),
        bad(OutOfRangeError, "index 3", [np.array([3])], (3,)),
    ],
    is_method=False,
)
def last_at(indices: Sequence[Any], shape: Sequence[int]) -> Tensor:
    """Whether no later index, in row-major order, names the same place.

    Args:
        indices: a tensor of integers for each axis; they broadcast.
        shape: extents of the axes.

    Raises:
        OutOfRangeError: an index is outside of its axis.

    Example:
        >>> ndl.last_at([[0, 2, 0]], (3,))
        Tensor([False,  True,  True], dtype=bool)
    """
    result: Tensor = apply(
        last_at,
        *(as_indices(i, "last_at") for i in indices),
        shape=as_shape(shape, "last_at"),
    )
    return result


def _update_slice(x: Array, v: Array, *, starts: Shape, stops: Shape, steps: Shape) -> Array:
    result = x.copy()
    result[slices(starts, stops, steps)] = v
    return result


def _infer_update_slice(x: Spec, v: Spec, *, starts: Shape, stops: Shape, steps: Shape) -> Spec:
    taken = strided_slice.op.infer(x, starts=starts, stops=stops, steps=steps).shape
    if v.shape != taken:
        raise ShapeError(
            f"update_slice: the slice has shape {list(taken)}, the values {list(v.shape)}"
        )
    if v.dtype != x.dtype:
        raise DTypeError(f"update_slice: values of {v.dtype.name} for a tensor of {x.dtype.name}")
    return x


def _update_slice_by_parts(
    x: Tensor, v: Tensor, *, starts: Shape, stops: Shape, steps: Shape
) -> Tensor:
    inside = broadcast_to(as_tensor(True), v.shape)
    place = (x.shape, starts, stops, steps)
    return where(unslice(inside, *place), unslice(v, *place), x)


def _zeros(like: Tensor, shape: Shape) -> Tensor:
    return broadcast_to(as_tensor(0.0, like.dtype), shape)


def _update_slice_vjp(
    g: Tensor, v_shape: Shape, starts: Shape, stops: Shape, steps: Shape
) -> Tensor:
    return update_slice(g, _zeros(g, v_shape), starts, stops, steps)


@op(
    kind=Kind.INDEXING,
    infer=_infer_update_slice,
    reference=_update_slice,
    decompose=_update_slice_by_parts,
    vjp={
        "x": _update_slice_vjp,
        "v": lambda g, starts, stops, steps: strided_slice(g, starts, stops, steps),
    },
    samples=lambda: [
        Sample((normal(5, 6), normal(3, 3), (1, 0), (4, 6), (1, 2))),
        Sample((normal(5), normal(3), (4,), (-1,), (-2,)), label="backwards"),
        Sample((normal(5), normal(0), (2,), (2,), (1,)), label="empty"),
        bad(ShapeError, "the values", normal(5), normal(2), (0,), (3,), (1,)),
    ],
    is_method=False,
)
def update_slice(
    x: TensorLike,
    v: TensorLike,
    starts: Sequence[int],
    stops: Sequence[int],
    steps: Sequence[int],
) -> Tensor:
    """Copy ``x`` with a slice of it replaced by ``v``: what ``x[1:4] = v`` comes down to.

    Args:
        x: any shape.
        v: of the slice's shape; converted to the dtype of ``x``.
        starts: first index for each axis.
        stops: index that is not reached any more, −1 for before the first; see `strided_slice`.
        steps: distance between indices, not 0.

    Raises:
        ShapeError: ``v`` has another shape than the slice.

    Example:
        >>> ndl.update_slice(ndl.zeros(5), ndl.ones(2), (0,), (4,), (2,))
        Tensor([1., 0., 1., 0., 0.])
    """
    t = as_tensor(x)
    result: Tensor = apply(
        update_slice,
        t,
        as_tensor(v).astype(t.dtype, copy=False),
        starts=tuple(starts),
        stops=tuple(stops),
        steps=tuple(steps),
    )
    return result


def write_at(x: Array, v: Array, indices: Sequence[Array], axes: Shape) -> None:
    """Write ``v`` into ``x``, where the last value of each place stays."""
    check_places(indices, x.shape, axes, True)
    key: list[Any] = [slice(None)] * (axes[-1] + 1)
    # NumPy walks contiguous indices in row-major order, so the last value is the one that stays.
    for axis, index in zip(axes, np.broadcast_arrays(*indices), strict=True):
        key[axis] = np.ascontiguousarray(index).reshape(index.shape)
    x[tuple(key)] = v


def _update_at(x: Array, v: Array, *indices: Array, axes: Shape) -> Array:
    result = x.copy()
    write_at(result, v, indices, axes)
    return result


def _infer_update_at(x: Spec, v: Spec, *indices: Spec, axes: Shape) -> Spec:
    taken = taken_shape("update_at", x.shape, indices, axes)
    if v.shape != taken:
        raise ShapeError(
            f"update_at: the indices take {list(taken)}, the values have {list(v.shape)}"
        )
    if v.dtype != x.dtype:
        raise DTypeError(f"update_at: values of {v.dtype.name} for a tensor of {x.dtype.name}")
    return x


def _update_at_vjp(g: Tensor, v_shape: Shape, indices: tuple[Tensor, ...], axes: Shape) -> Tensor:
    return update_at(g, _zeros(g, v_shape), indices, axes)


def _update_at_value_vjp(
    g: Tensor, x_shape: Shape, v_shape: Shape, indices: tuple[Tensor, ...], axes: Shape
) -> Tensor:
    """Give each value the cotangent of its place, unless a later value replaced it."""
    stays = last_at(indices, tuple(x_shape[a] for a in axes))
    after = len(v_shape) - front_of(axes) - stays.ndim
    mask = reshape(stays, stays.shape + (1,) * after)
    return where(mask, take_at(g, indices, axes), 0.0)


def _update_at_samples() -> Iterable[Sample]:
    x = normal(4, 5, 3)
    i, j = np.array([[0, 1, 2], [3, 0, -3]]), np.array([1, 0, -1])
    yield Sample((x, normal(2, 3, 5, 3), [i], [0]))
    yield Sample((x, normal(2, 3, 3), [i, j], [0, 1]), label="two axes")
    yield Sample((x, normal(2, 3, 5), [i, j], [0, 2]), label="apart")
    yield Sample((x, normal(3, 5, 3), [np.array([1, 2, 1])], [0]), label="the last stays")
    yield Sample((x, normal(4, 0, 3), [np.zeros(0, np.int64)], [1]), label="no indices")
    yield bad(OutOfRangeError, "index 4", x, normal(1, 5, 3), [np.array([4])], [0])
    yield bad(ShapeError, "the values have", x, normal(2), [np.array([1])], [0])


@op(
    kind=Kind.INDEXING,
    infer=_infer_update_at,
    reference=_update_at,
    lower=Scatter(
        lambda b, index, x, v, *indices, axes: place_at(b, index, indices, x.shape, axes, True),
        lambda b, old, new: new,
        values=1,
        base=0,
    ),
    vjp={
        "x": _update_at_vjp,
        "v": _update_at_value_vjp,
    },
    samples=_update_at_samples,
    is_method=False,
)
def update_at(x: TensorLike, v: TensorLike, indices: Sequence[Any], axes: Sequence[int]) -> Tensor:
    """Copy ``x`` with the elements at some places replaced: what ``x[i, :, j] = v`` comes down to.

    Where indices name a place twice, the last value stays, and only that one gets a gradient.

    Args:
        x: any shape.
        v: of the shape that `take_at` has with these indices; converted to the dtype of ``x``.
        indices: a tensor of integers for each axis in ``axes``.
        axes: the indexed axes, rising.

    Raises:
        OutOfRangeError: an index is outside of its axis.
        ShapeError: ``v`` has another shape than what the indices take.

    Example:
        >>> ndl.update_at(ndl.zeros(4), ndl.asarray([1.0, 2.0, 3.0]), [[0, 3, 0]], (0,))
        Tensor([3., 0., 0., 2.])
    """
    t = as_tensor(x)
    result: Tensor = apply(
        update_at,
        t,
        as_tensor(v).astype(t.dtype, copy=False),
        *(as_indices(i, "update_at") for i in indices),
        axes=as_axes(axes, t.ndim, "update_at"),
    )
    return result


def _update_rest(x: Array, v: Array, shift: Array, *indices: Array, axes: Shape) -> Array:
    result = np.asarray(x - shift)
    write_at(result, v, indices, axes)
    return result


def _infer_update_rest(x: Spec, v: Spec, shift: Spec, *indices: Spec, axes: Shape) -> Spec:
    if shift.ndim or shift.dtype != x.dtype:
        raise ShapeError(
            f"update_rest: the shift must be one number of {x.dtype.name}, got shape "
            f"{list(shift.shape)} of {shift.dtype.name}"
        )
    if not dtypes.is_float(x.dtype):
        raise DTypeError(f"update_rest: needs floats, got {x.dtype.name}")
    return _infer_update_at(x, v, *indices, axes=axes)


def _update_rest_samples() -> Iterable[Sample]:
    i, j = np.array([[0, 1, 2], [3, 0, -3]]), np.array([1, 0, -1])
    yield Sample((normal(4, 5), normal(2, 3, 5), normal(), [i], [0]))
    yield Sample((normal(4, 5, 3), normal(3, 3), normal(), [j, j], [0, 1]), label="two axes")
    yield Sample((normal(4, 5), normal(2, 3, 5), np.array(0.0), [i], [0]), label="no shift")
    yield Sample((normal(4, 3), normal(0, 3), normal(), [np.zeros(0, int)], [0]), label="no index")
    yield bad(OutOfRangeError, "index 4", normal(4), normal(1), normal(), [np.array([4])], [0])
    yield bad(ShapeError, "one number", normal(4), normal(1), normal(1), [np.array([1])], [0])


@op(
    kind=Kind.INDEXING,
    infer=_infer_update_rest,
    reference=_update_rest,
    lower=Scatter(
        lambda b, at, x, v, shift, *indices, axes: place_at(b, at, indices, x.shape, axes, True),
        lambda b, old, new: new,
        values=1,
        base=0,
        shift=2,
    ),
    vjp={
        "x": _update_at_vjp,
        "v": _update_at_value_vjp,
        "shift": lambda g, v_shape, indices, axes: (
            -update_at(g, _zeros(g, v_shape), indices, axes).sum()
        ),
    },
    samples=_update_rest_samples,
    is_method=False,
)
def update_rest(
    x: TensorLike, v: TensorLike, shift: TensorLike, indices: Sequence[Any], axes: Sequence[int]
) -> Tensor:
    """Replace the elements of ``x`` at some places, and subtract a number from all others.

    What a step of an optimizer comes down to if only the elements at these places have gradients:
    the number is what it subtracts for a gradient of 0, hardly ever anything else than 0.

    Args:
        x: floats of any shape.
        v: of the shape that `take_at` has with these indices; converted to the dtype of ``x``.
        shift: one number; converted to the dtype of ``x``.
        indices: a tensor of integers for each axis in ``axes``.
        axes: the indexed axes, rising.

    Raises:
        OutOfRangeError: an index is outside of its axis.
        ShapeError: ``v`` has another shape than what the indices take, or ``shift`` has axes.
        DTypeError: ``x`` holds no floats.

    Example:
        >>> ndl.update_rest(ndl.ones(4), ndl.asarray([5.0, 6.0]), 0.5, [[3, 0]], (0,))
        Tensor([6. , 0.5, 0.5, 5. ])
    """
    t = as_tensor(x)
    result: Tensor = apply(
        update_rest,
        t,
        as_tensor(v).astype(t.dtype, copy=False),
        as_tensor(shift).astype(t.dtype, copy=False),
        *(as_indices(i, "update_rest") for i in indices),
        axes=as_axes(axes, t.ndim, "update_rest"),
    )
    return result


__all__ = ["last_at", "update_at", "update_rest", "update_slice"]
