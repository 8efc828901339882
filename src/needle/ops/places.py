"""Places: the ops that take elements from where integer tensors say, and add them back there.

Taking and adding into zeros are each other's adjoints, so that the family is closed under
differentiation. `needle.ops.indexing` and `needle.ops.gather` build the public functions on these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.dtypes import int64
from needle.errors import (
    ArgumentError,
    AxisError,
    DeviceError,
    DTypeError,
    OutOfRangeError,
    ShapeError,
)
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_tensor
from needle.ops.ordered import Scatter
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, bad, bools, integers, normal
from needle.shapes import Shape, Spec, as_shape, broadcast_shapes, normalize_axis

if TYPE_CHECKING:
    from needle.tensor import Tensor


def as_indices(value: Any, name: str) -> Tensor:
    """Return ``value`` as a tensor of int64.

    Raises:
        DTypeError: it holds floats or bools.
    """
    t = as_tensor(value)
    if t.dtype == int64:
        return t
    if not dtypes.is_integer(t.dtype) and not (t.size == 0 and isinstance(value, (list, tuple))):
        way_out = (
            "select with a mask by x[mask], or take its nonzero()"
            if t.dtype == dtypes.bool
            else "convert with astype('int64') if they are whole numbers"
        )
        raise DTypeError(f"{name}: indices must be integers, got {t.dtype.name}; {way_out}")
    result: Tensor = t.astype(int64)
    return result


def check_range(indices: Array, extent: int, name: str, what: str, *, signed: bool) -> None:
    """Raise an OutOfRangeError that names the first of ``indices`` outside of the extent."""
    low = -extent if signed else 0
    if not indices.size or (indices.min() >= low and indices.max() < extent):
        return
    place = tuple(int(i) for i in np.argwhere((indices < low) | (indices >= extent))[0])
    value = int(indices[place])
    where_ = f" (at position {list(place)} of the indices)" if place else ""
    valid = f"valid are {low} to {extent - 1}" if extent else "it has no elements"
    raise OutOfRangeError(f"{name}: index {value}{where_} is out of range for {what}; {valid}")


def check_places(indices: Sequence[Array], shape: Shape, axes: Shape, signed: bool) -> None:
    for index, axis in zip(indices, axes, strict=True):
        what = f"axis {axis} of extent {shape[axis]}"
        check_range(index, shape[axis], "index", what, signed=signed)


def front_of(axes: Shape) -> int:
    """Return where the axes of the indices stand in the result, by NumPy's rule.

    In the place of the indexed axes if those are neighbours, else in front.
    """
    return axes[0] if axes[-1] - axes[0] == len(axes) - 1 else 0


def taken_shape(name: str, shape: Shape, indices: Sequence[Spec], axes: Shape) -> Shape:
    """Return the shape of what the indices take, and check them."""
    if len(indices) != len(axes) or not axes:
        raise ArgumentError(
            f"{name}: needs one tensor of indices for each axis, got {len(indices)} for axes "
            f"{list(axes)}"
        )
    for spec in indices:
        if not dtypes.is_integer(spec.dtype):
            raise DTypeError(f"{name}: indices must be integers, got {spec.dtype.name}")
    places = broadcast_shapes(*(i.shape for i in indices), op=f"{name}: the indices'")
    rest = [n for a, n in enumerate(shape) if a not in axes]
    front = front_of(axes)
    return (*rest[:front], *places, *rest[front:])


def as_axes(axes: Sequence[int], ndim: int, name: str) -> Shape:
    given = tuple(normalize_axis(a, ndim, name) for a in axes)
    if list(given) != sorted(set(given)):
        raise AxisError(f"{name}: axes must be given in rising order, once each, got {list(axes)}")
    return given


# Taking elements, and adding them back


def _take_at(x: Array, *indices: Array, axes: Shape, signed: bool) -> Array:
    if not signed:
        check_places(indices, x.shape, axes, signed)
    try:
        if len(axes) == 1:
            return np.take(x, indices[0], axis=axes[0])
        key = [slice(None)] * (axes[-1] + 1)
        for axis, index in zip(axes, indices, strict=True):
            key[axis] = index  # type: ignore[call-overload]
        return np.asarray(x[tuple(key)])
    except IndexError:
        check_places(indices, x.shape, axes, signed)
        raise


def _take_at_samples() -> Iterable[Sample]:
    x = normal(4, 5, 3)
    i, j = integers(-4, 4, 2, 3), integers(-5, 5, 3)
    yield Sample((x, [i], [0]))
    yield Sample((x, [j], [-2]), label="middle axis")
    yield Sample((x, [i, j], [0, 1]), label="broadcast")
    yield Sample((x, [i, integers(0, 3, 3)], [0, 2]), label="apart")
    yield Sample((x, [np.array([1, 1, 1])], [0]), label="duplicates")
    yield Sample((x, [np.array(2)], [1]), label="0-d index")
    yield Sample((x, [np.zeros((0, 2), np.int64)], [1]), label="no indices")
    yield Sample((normal(4, 5).T, [i], [1]), label="transposed")
    yield bad(OutOfRangeError, r"index 4 \(at position \[1\]", x, [np.array([0, 4])], [0])
    yield bad(DTypeError, "must be integers", x, [normal(3)], [0])
    yield bad(ShapeError, "do not broadcast", x, [np.zeros(2, int), np.zeros(3, int)], [0, 1])
    yield bad(AxisError, "rising order", x, [np.zeros(2, int)] * 2, [1, 0])
    yield bad(ArgumentError, "one tensor of indices", x, [np.zeros(2, int)], [0, 1])


def place_at(
    b: Any, index: Any, indices: Sequence[Any], shape: Shape, axes: Shape, signed: bool
) -> tuple[Any, ...]:
    """Return where in ``shape`` the element at ``index`` of what the indices take stands."""
    front = front_of(axes)
    count = len(index) - (len(shape) - len(axes))
    place = index[front : front + count]
    rest = iter((*index[:front], *index[front + count :]))
    source = []
    for axis, extent in enumerate(shape):
        if axis in axes:
            chosen = indices[axes.index(axis)]
            what = f"axis {axis} of extent {extent}"
            at = b.broadcast(place, chosen.shape)
            source.append(b.loaded(chosen, at, extent, what, signed=signed))
        else:
            source.append(next(rest))
    return tuple(source)


def _lower_take_at(b: Any, index: Any, x: Any, *indices: Any, axes: Shape, signed: bool) -> Any:
    return x(place_at(b, index, indices, x.shape, axes, signed))


def _take_at_vjp(g: Tensor, x_shape: Shape, indices: tuple[Tensor, ...], axes: Shape) -> Tensor:
    return untake_at(g, indices, x_shape, axes)


@op(
    kind=Kind.INDEXING,
    infer=lambda x, *indices, axes, signed: Spec(
        taken_shape("take_at", x.shape, indices, axes), x.dtype
    ),
    reference=_take_at,
    lower=_lower_take_at,
    vjp={"x": _take_at_vjp},
    samples=_take_at_samples,
    refuses=True,
    is_method=False,
)
def take_at(
    x: TensorLike, indices: Sequence[Any], axes: Sequence[int], *, signed: bool = True
) -> Tensor:
    """Take the elements at the places that integer tensors give: what ``x[i, :, j]`` comes down to.

    The tensors of indices broadcast to one shape, which takes the place of the indexed axes if
    those are neighbours, and else comes first, as in NumPy.

    Args:
        x: any shape.
        indices: a tensor of integers for each axis in ``axes``.
        axes: the indexed axes, rising.
        signed: whether negative indices count from the end; otherwise they are errors.

    Raises:
        OutOfRangeError: an index is outside of its axis.
        DTypeError: indices that are not integers.
        ShapeError: the indices do not broadcast.
        AxisError: an axis does not exist, or the axes do not rise.
        ArgumentError: not one tensor of indices for each axis.

    Example:
        >>> x = ndl.asarray([[1, 2, 3], [4, 5, 6]])
        >>> ndl.take_at(x, [[0, 1], [2, 0]], (0, 1))
        Tensor([3, 4], dtype=int64)
    """
    t = as_tensor(x)
    result: Tensor = apply(
        take_at,
        t,
        *(as_indices(i, "take_at") for i in indices),
        axes=as_axes(axes, t.ndim, "take_at"),
        signed=signed,
    )
    return result


def flat_places(indices: Sequence[Array], shape: Shape, axes: Shape) -> Array:
    """Return the indices as one, in row-major order, into the indexed axes flattened."""
    check_places(indices, shape, axes, True)
    flat: Any = 0
    for index, axis in zip(np.broadcast_arrays(*indices), axes, strict=True):
        flat = flat * shape[axis] + np.where(index < 0, index + shape[axis], index)
    return np.ascontiguousarray(flat).reshape(-1)


#: Up to how many rows of one place are added pass by pass; more are added by ``reduceat``.
_FEW = 8


def add_rows(count: int, places: Array, rows: Array) -> Array:
    """Return zeros of ``count`` rows with each of ``rows`` added at its place, in order.

    NumPy's ``add.at`` adds element by element. This adds whole rows: in pass k the k-th row of
    every place, and those places that get many rows on their own. Rows of one place are always
    added in the same way, whatever else is added, so the result is the same every time.
    """
    width = rows.shape[1]
    result = np.zeros((count, width), dtype=rows.dtype)
    if not rows.size:
        return result
    if width == 1:
        np.add.at(result.reshape(-1), places, rows.reshape(-1))
        return result
    order = np.argsort(places, kind="stable")
    ordered = places[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    counts = np.diff(starts, append=len(places))
    many = np.flatnonzero(counts > _FEW)
    if many.size:
        picked = np.repeat(counts > _FEW, counts)
        ends = np.cumsum(counts[many])
        result[ordered[starts[many]]] = np.add.reduceat(
            rows[order[picked]], ends - counts[many], axis=0
        )
        starts, counts = starts[counts <= _FEW], counts[counts <= _FEW]
    for k in range(_FEW):
        starts, counts = starts[counts > k], counts[counts > k]
        if not starts.size:
            break
        nth = order[starts + k]
        if k == 0:
            result[places[nth]] = rows[nth]
        else:
            result[places[nth]] += rows[nth]
    return result


def _untake_at(g: Array, *indices: Array, shape: Shape, axes: Shape) -> Array:
    if g.dtype == dtypes.bool:
        raise DTypeError("untake_at: bools do not add; convert with astype()")
    flat = flat_places(indices, shape, axes)
    front = front_of(axes)
    places = g.ndim - (len(shape) - len(axes))
    rows = np.moveaxis(g, range(front, front + places), range(places))
    rest = tuple(n for a, n in enumerate(shape) if a not in axes)
    extents = tuple(shape[a] for a in axes)
    total = add_rows(math.prod(extents), flat, rows.reshape(len(flat), math.prod(rest)))
    return np.moveaxis(total.reshape(extents + rest), range(len(axes)), axes)


def _infer_untake_at(g: Spec, *indices: Spec, shape: Shape, axes: Shape) -> Spec:
    taken = taken_shape("untake_at", shape, indices, axes)
    if g.shape != taken:
        raise ShapeError(
            f"untake_at: from shape {list(shape)} these indices take {list(taken)}, but the values "
            f"have {list(g.shape)}"
        )
    return Spec(shape, g.dtype)


def _untake_at_samples() -> Iterable[Sample]:
    i = np.array([[0, 1, 1], [-1, 0, 0]])
    yield Sample((normal(2, 3, 5), [i], (4, 5), [0]))
    yield Sample((normal(5, 2, 3), [i], (5, 4), [1]), label="last axis")
    yield Sample((normal(2, 3), [i, 1 - i], (4, 5), [0, 1]), label="all axes")
    yield Sample((normal(2, 3, 5), [i, 1 - i], (4, 5, 3), [0, 2]), label="apart")
    yield Sample((normal(40, 3), [np.arange(40) % 3], (3, 3), [0]), label="many to a place")
    yield Sample((normal(0, 3), [np.zeros(0, np.int64)], (2, 3), [0]), label="no indices")
    yield Sample((normal(3), [np.array(1)], (2, 3), [0]), label="0-d index")
    yield bad(OutOfRangeError, "index 2", normal(1, 3), [np.array([2])], (2, 3), [0])
    yield bad(ShapeError, "these indices take", normal(2, 3), [np.array([1])], (2, 3), [0])


@op(
    kind=Kind.INDEXING,
    infer=_infer_untake_at,
    reference=widened(_untake_at),
    lower=Scatter(
        lambda b, index, g, *indices, shape, axes: place_at(b, index, indices, shape, axes, True),
        lambda b, old, new: b.add(old, new),
        is_sum=True,
    ),
    vjp={"g": lambda g, indices, axes: take_at(g, indices, axes)},
    samples=_untake_at_samples,
    is_method=False,
)
def untake_at(
    g: TensorLike, indices: Sequence[Any], shape: Sequence[int], axes: Sequence[int]
) -> Tensor:
    """Add values into zeros at the places that `take_at` takes them from: its adjoint.

    Values of one place add up, in their order: the result does not change from run to run. 16-bit
    floats are added in float32.

    Args:
        g: of the shape that `take_at` has with these indices.
        indices: a tensor of integers for each axis in ``axes``.
        shape: shape of the result.
        axes: the indexed axes, rising.

    Raises:
        OutOfRangeError: an index is outside of its axis.
        ShapeError: ``g`` has another shape than what the indices take.

    Example:
        >>> ndl.untake_at(ndl.asarray([1.0, 2.0, 3.0]), [[0, 3, 0]], (4,), (0,))
        Tensor([4., 0., 0., 2.])
    """
    extents = as_shape(shape, "untake_at")
    result: Tensor = apply(
        untake_at,
        as_tensor(g),
        *(as_indices(i, "untake_at") for i in indices),
        shape=extents,
        axes=as_axes(axes, len(extents), "untake_at"),
    )
    return result


# Finding elements


def _infer_nonzero(x: Spec) -> Spec:
    raise DeviceError(
        "nonzero: the shape of the result depends on the values, which a meta tensor has not; "
        "select with where(mask, x, other) instead of x[mask]"
    )


@op(
    kind=Kind.INDEXING,
    infer=_infer_nonzero,
    reference=lambda x: tuple(np.nonzero(x)),
    samples=lambda: [
        Sample((bools(3, 4),)),
        Sample((integers(-1, 2, 2, 3, 4),), label="integers"),
        Sample((np.array([0.0, -0.0, np.nan, 1.0]),), label="special"),
        Sample((bools(0, 3),), label="empty"),
        bad(ShapeError, "0-d", normal()),
    ],
    refuses=True,
    peer=lambda torch, x: torch.nonzero(x, as_tuple=True),
)
def nonzero(x: TensorLike) -> tuple[Tensor, ...]:
    """Indices of the elements that are not zero, in row-major order.

    Args:
        x: any dtype, with at least one axis.

    Returns:
        A tensor of int64 for each axis (the array API's form; PyTorch stacks them to a matrix).

    Raises:
        ShapeError: ``x`` has no axes.
        DeviceError: ``x`` is on the meta device: the shape of the result depends on the values.

    Example:
        >>> ndl.nonzero(ndl.asarray([[0, 5], [7, 0]]))
        (Tensor([0, 1], dtype=int64), Tensor([1, 0], dtype=int64))
    """
    t = as_tensor(x)
    if t.ndim == 0:
        raise ShapeError("nonzero: a 0-d tensor has no axes to index; reshape it to (1,)")
    result: Any = apply(nonzero, t)
    return result


__all__ = ["nonzero", "take_at", "untake_at"]
