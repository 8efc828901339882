"""Gathering: elements, rows and classes chosen by tensors of integers, and sums back to them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.dtypes import DType, as_dtype
from needle.errors import (
    ArgumentError,
    AxisError,
    DTypeError,
    OutOfRangeError,
    ShapeError,
)
from needle.extents import is_single
from needle.ops.checks import expect_range
from needle.ops.comparison import equal, where
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_tensor
from needle.ops.movement import broadcast_to, expand_dims
from needle.ops.ordered import Scatter
from needle.ops.places import as_indices, check_range, take_at
from needle.ops.record import Kind, composite, op
from needle.ops.samples import Array, Sample, bad, bools, integers, normal
from needle.ops.slicing import pad, strided_slice
from needle.shapes import Shape, Spec, as_index, as_shape, normalize_axis

if TYPE_CHECKING:
    from needle.dtypes import DType
    from needle.tensor import Tensor


def _take_samples() -> Iterable[Sample]:
    yield Sample((normal(4, 5), np.array([1, 3, 1])), {"axis": 0})
    yield Sample((normal(4, 5), np.array([-1, 0])), {"axis": -1}, label="negative", has_peer=False)
    yield Sample((normal(4, 5), integers(0, 4, 2, 3)), {"axis": 0}, label="grid", has_peer=False)
    yield Sample((normal(6), np.array([5, 0])), label="no axis", has_peer=False)
    yield Sample((normal(4, 5), np.zeros(0, np.int64)), {"axis": 1}, label="none")
    yield bad(OutOfRangeError, "index 4", normal(4, 5), np.array([4]), axis=0)
    yield bad(AxisError, "say which axis", normal(4, 5), np.array([1]))
    yield bad(DTypeError, "must be integers", normal(4), normal(2))


@composite(
    samples=_take_samples,
    is_method=True,
    peer=lambda torch, x, indices, axis: torch.index_select(x, axis, indices),
)
def take(x: TensorLike, indices: TensorLike, axis: int | None = None) -> Tensor:
    """Take slices along an axis: ``take(x, i, axis=1)`` is ``x[:, i]``.

    Args:
        x: any shape with at least one axis.
        indices: integers of any shape, which takes the place of the axis; negative ones count from
            the end.
        axis: the axis; needed unless ``x`` has only one.

    Raises:
        OutOfRangeError: an index is outside of the axis.
        AxisError: the axis does not exist, or is not given and there are several.
        DTypeError: the indices are not integers.

    Example:
        >>> ndl.take(ndl.asarray([[1, 2], [3, 4], [5, 6]]), [2, 0], axis=0)
        Tensor([[5, 6],
                [1, 2]], dtype=int64)
    """
    t = as_tensor(x)
    if axis is None and t.ndim != 1:
        raise AxisError(f"take: say which axis of shape {list(t.shape)} the indices are for")
    place = normalize_axis(0 if axis is None else axis, t.ndim, "take")
    return take_at(t, (as_indices(indices, "take"),), (place,))


# One index for each element


def _infer_along(name: str) -> Any:
    def infer(x: Spec, indices: Spec, *, axis: int) -> Spec:
        if not dtypes.is_integer(indices.dtype):
            raise DTypeError(f"{name}: indices must be integers, got {indices.dtype.name}")
        same = indices.ndim == x.ndim and all(
            a == axis or n == m for a, (n, m) in enumerate(zip(x.shape, indices.shape, strict=True))
        )
        if not same:
            raise ShapeError(
                f"{name}: the shape of the indices, {list(indices.shape)}, must be that of the "
                f"tensor, {list(x.shape)}, but for axis {axis}"
            )
        return Spec(indices.shape, x.dtype)

    return infer


def _check_along(indices: Array, shape: Shape, axis: int) -> None:
    what = f"axis {axis} of extent {shape[axis]}"
    check_range(indices, shape[axis], "take_along_axis", what, signed=True)


def _take_along_axis(x: Array, indices: Array, *, axis: int) -> Array:
    try:
        return np.take_along_axis(x, indices, axis)
    except IndexError:
        _check_along(indices, x.shape, axis)
        raise


def _take_along_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), integers(0, 4, 3, 2)), {"axis": 1})
    yield Sample((normal(3, 4), integers(0, 3, 5, 4)), {"axis": 0}, label="first axis")
    yield Sample((normal(2, 3, 4), integers(0, 3, 2, 1, 4)), {"axis": 1}, label="middle axis")
    yield Sample((normal(3, 4), np.array([[-1]])), {"axis": 1}, label="broadcast", has_peer=False)
    yield Sample((normal(3, 4), np.zeros((3, 0), np.int64)), {"axis": 1}, label="empty")
    yield bad(OutOfRangeError, r"index 4 \(at position \[0, 0\]", normal(3, 4), np.full((3, 1), 4))
    yield bad(ShapeError, "same number of axes", normal(3, 4), np.array([0]))
    yield bad(ShapeError, "do not broadcast", normal(3, 4), np.zeros((2, 1), np.int64))
    yield bad(DTypeError, "must be integers", normal(3, 4), normal(3, 1))


def _lower_take_along(b: Any, index: Any, x: Any, indices: Any, *, axis: int) -> Any:
    extent = x.shape[axis]
    what = f"axis {axis} of extent {extent}"
    chosen = b.loaded(indices, index, extent, what, name="take_along_axis")
    return x((*index[:axis], chosen, *index[axis + 1 :]))


def _take_along_vjp(g: Tensor, x_shape: Shape, indices: Tensor, axis: int) -> Tensor:
    return untake_along_axis(g, indices, x_shape[axis], axis=axis)


@op(
    kind=Kind.INDEXING,
    infer=_infer_along("take_along_axis"),
    reference=_take_along_axis,
    lower=_lower_take_along,
    vjp={"x": _take_along_vjp},
    samples=_take_along_samples,
    peer=lambda torch, x, indices, axis=-1: torch.take_along_dim(x, indices, axis),
)
def take_along_axis(x: TensorLike, indices: TensorLike, *, axis: int = -1) -> Tensor:
    """Take one element for each index, along an axis: ``out[i, j] = x[i, indices[i, j]]``.

    What `argsort` and `argmax` return is made to be used here.

    Args:
        x: any shape with at least one axis.
        indices: integers with as many axes; all but the given axis broadcast against those of
            ``x``. Negative ones count from the end.
        axis: the axis.

    Raises:
        OutOfRangeError: an index is outside of the axis.
        ShapeError: the shapes do not fit.
        AxisError: the axis does not exist.
        DTypeError: the indices are not integers.

    Example:
        >>> x = ndl.asarray([[3, 1, 2], [6, 5, 4]])
        >>> ndl.take_along_axis(x, ndl.argsort(x, axis=1), axis=1)
        Tensor([[1, 2, 3],
                [4, 5, 6]], dtype=int64)
    """
    t, i = as_tensor(x), as_indices(indices, "take_along_axis")
    place = normalize_axis(axis, t.ndim, "take_along_axis")
    if i.ndim != t.ndim:
        raise ShapeError(
            f"take_along_axis: the indices need the same number of axes as the tensor, got "
            f"{list(i.shape)} for {list(t.shape)}"
        )
    t, i = _broadcast_but(t, i, place)
    result: Tensor = apply(take_along_axis, t, i, axis=place)
    return result


def _broadcast_but(t: Tensor, i: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Broadcast the shapes of a tensor and of indices against each other, but for one axis."""
    common = []
    for a, (n, m) in enumerate(zip(t.shape, i.shape, strict=True)):
        if a != axis and n != m and 1 not in (n, m):
            raise ShapeError(
                f"take_along_axis: indices {list(i.shape)} and tensor {list(t.shape)} do not "
                f"broadcast on axis {a}"
            )
        common.append(m if is_single(n) else n)
    shapes = [
        tuple(s[axis] if a == axis else n for a, n in enumerate(common)) for s in (t.shape, i.shape)
    ]
    t = t if t.shape == shapes[0] else broadcast_to(t, shapes[0])
    return t, i if i.shape == shapes[1] else broadcast_to(i, shapes[1])


def _untake_along_axis(g: Array, indices: Array, *, extent: int, axis: int) -> Array:
    if g.dtype == dtypes.bool:
        raise DTypeError("untake_along_axis: bools do not add; convert with astype()")
    shape = (*g.shape[:axis], extent, *g.shape[axis + 1 :])
    _check_along(indices, shape, axis)
    # Checked, so they fit; NumPy makes floats of unsigned and signed integers together.
    places = np.moveaxis(indices, axis, -1).astype(np.int64, copy=False)
    values = np.moveaxis(g, axis, -1)
    lines = math.prod(values.shape[:-1])
    first = (np.arange(lines) * extent).reshape((*values.shape[:-1], 1))
    flat = np.where(places < 0, places + extent, places) + first
    total = np.zeros(lines * extent, dtype=g.dtype)
    np.add.at(total, flat.reshape(-1), values.reshape(-1))
    return np.moveaxis(total.reshape((*values.shape[:-1], extent)), -1, axis)


def _infer_untake_along(g: Spec, indices: Spec, *, extent: int, axis: int) -> Spec:
    if g.shape != indices.shape:
        raise ShapeError(
            f"untake_along_axis: needs one index for each value, got indices {list(indices.shape)} "
            f"for values {list(g.shape)}"
        )
    return Spec((*g.shape[:axis], extent, *g.shape[axis + 1 :]), g.dtype)


def _place_along(b: Any, index: Any, g: Any, indices: Any, *, extent: int, axis: int) -> Any:
    what = f"axis {axis} of extent {extent}"
    chosen = b.loaded(indices, index, extent, what, name="take_along_axis")
    return (*index[:axis], chosen, *index[axis + 1 :])


def _untake_along_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), integers(0, 5, 3, 4), 5), {"axis": 1})
    yield Sample((normal(3, 4), integers(-2, 2, 3, 4), 2), {"axis": 0}, label="duplicates")
    yield Sample((normal(2, 0), np.zeros((2, 0), np.int64), 3), {"axis": 1}, label="empty")
    yield bad(OutOfRangeError, "index 2", normal(1, 1), np.array([[2]]), 2, axis=1)
    yield bad(ShapeError, "one index for each", normal(3, 4), integers(0, 3, 3, 3), 5, axis=1)


@op(
    kind=Kind.INDEXING,
    infer=_infer_untake_along,
    reference=widened(_untake_along_axis),
    lower=Scatter(_place_along, lambda b, old, new: b.add(old, new), is_sum=True),
    vjp={"g": lambda g, indices, axis: take_along_axis(g, indices, axis=axis)},
    samples=_untake_along_samples,
    is_method=False,
)
def untake_along_axis(g: TensorLike, indices: TensorLike, extent: int, *, axis: int = -1) -> Tensor:
    """Add values into zeros at indices along an axis: the adjoint of `take_along_axis`.

    ``out[i, indices[i, j]] += g[i, j]``, in row-major order; 16-bit floats are added in float32.

    Args:
        g: any shape with at least one axis.
        indices: integers of the same shape.
        extent: extent of the axis in the result.
        axis: the axis.

    Raises:
        OutOfRangeError: an index is outside of the extent.
        ShapeError: the shapes differ.

    Example:
        >>> ndl.untake_along_axis(ndl.asarray([1.0, 2.0, 3.0]), [0, 3, 0], 4)
        Tensor([4., 0., 0., 2.])
    """
    t = as_tensor(g)
    result: Tensor = apply(
        untake_along_axis,
        t,
        as_indices(indices, "untake_along_axis"),
        extent=as_shape(extent, "untake_along_axis")[0],
        axis=normalize_axis(axis, t.ndim, "untake_along_axis"),
    )
    return result


def _front_part(t: Tensor, shape: Shape) -> Tensor:
    """Return the part of ``t`` that has ``shape``, from the first element on."""
    if t.shape == shape:
        return t
    return strided_slice(t, (0,) * t.ndim, shape, (1,) * t.ndim)


def _check_pytorch_indices(name: str, t: Tensor, i: Tensor, axis: int, what: str) -> None:
    if i.ndim != t.ndim or any(
        n > m for a, (n, m) in enumerate(zip(i.shape, t.shape, strict=True)) if a != axis
    ):
        raise ShapeError(
            f"{name}: the indices must have as many axes as {what} and be no larger but on axis "
            f"{axis}, got {list(i.shape)} for {list(t.shape)}"
        )


def _gather_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), 1, integers(0, 4, 3, 2)))
    yield Sample((normal(3, 4), 0, integers(0, 3, 5, 2)), label="fewer columns")
    yield Sample((normal(3, 4), -1, integers(0, 4, 2, 7)), label="fewer rows")
    yield bad(OutOfRangeError, "index 4", normal(3, 4), 1, np.full((3, 1), 4))
    yield bad(ShapeError, "no larger but on axis 1", normal(3, 4), 1, integers(0, 4, 4, 1))


@composite(samples=_gather_samples, is_method=True, peer="gather")
def gather(x: TensorLike, axis: int, indices: TensorLike) -> Tensor:
    """Take one element for each index, along an axis: PyTorch's function and order of arguments.

    ``out[i, j] = x[i, indices[i, j]]`` for axis 1, for the rows that ``indices`` has.

    Args:
        x: any shape with at least one axis.
        axis: the axis.
        indices: integers with as many axes as ``x``, no larger than it but on that axis.

    Raises:
        OutOfRangeError: an index is outside of the axis.
        ShapeError: the shape of the indices does not fit.

    Example:
        >>> ndl.gather(ndl.asarray([[1, 2], [3, 4]]), 1, ndl.asarray([[0, 0], [1, 0]]))
        Tensor([[1, 1],
                [4, 3]], dtype=int64)
    """
    t, i = as_tensor(x), as_indices(indices, "gather")
    place = normalize_axis(axis, t.ndim, "gather")
    _check_pytorch_indices("gather", t, i, place, "the tensor")
    t = _front_part(t, tuple(t.shape[a] if a == place else n for a, n in enumerate(i.shape)))
    return take_along_axis(t, i, axis=place)


def _scatter_add_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), 1, integers(0, 4, 3, 2), normal(3, 2)))
    yield Sample((normal(3, 4), 0, integers(0, 3, 5, 4), normal(5, 4)), label="duplicates")
    yield Sample((normal(3, 4), 1, integers(0, 4, 2, 2), normal(5, 6)), label="smaller")
    yield bad(OutOfRangeError, "index 4", normal(3, 4), 1, np.full((3, 1), 4), normal(3, 1))
    yield bad(ShapeError, "values", normal(3, 4), 1, integers(0, 4, 3, 2), normal(3, 1))
    yield bad(ShapeError, "the tensor", normal(3, 4), 1, integers(0, 4, 4, 1), normal(4, 1))


@composite(samples=_scatter_add_samples, is_method=True, peer="scatter_add")
def scatter_add(x: TensorLike, axis: int, indices: TensorLike, src: TensorLike) -> Tensor:
    """Add values at indices along an axis: PyTorch's function and order of arguments.

    A copy of ``x`` with ``out[i, indices[i, j]] += src[i, j]`` for axis 1. Values of one place are
    added in row-major order, so that the result is the same every time.

    Args:
        x: any shape with at least one axis.
        axis: the axis.
        indices: integers with as many axes as ``x``, no larger than it but on that axis.
        src: the values, at least as large as ``indices``; converted to the dtype of ``x``.

    Raises:
        OutOfRangeError: an index is outside of the axis.
        ShapeError: the shapes do not fit.

    Example:
        >>> ndl.scatter_add(ndl.zeros(3), 0, ndl.asarray([0, 2, 0]), ndl.ones(3))
        Tensor([2., 0., 1.])
    """
    t, i, values = as_tensor(x), as_indices(indices, "scatter_add"), as_tensor(src)
    place = normalize_axis(axis, t.ndim, "scatter_add")
    _check_pytorch_indices("scatter_add", t, i, place, "the tensor")
    _check_pytorch_indices("scatter_add", values, i, -1, "the values")
    values = _front_part(values.astype(t.dtype, copy=False), i.shape)
    added = untake_along_axis(values, i, t.shape[place], axis=place)
    if added.shape != t.shape:
        added = pad(added, [(0, n - m) for n, m in zip(t.shape, added.shape, strict=True)])
    result: Tensor = t + added
    return result


# Classes and words


def _one_hot(labels: Array, *, num_classes: int, dtype: DType) -> Array:
    check_range(labels, num_classes, "one_hot", f"{num_classes} classes", signed=False)
    result = np.zeros((labels.size, num_classes), dtype=dtype)
    result[np.arange(labels.size), labels.reshape(-1)] = 1
    return result.reshape((*labels.shape, num_classes))


def _one_hot_by_parts(labels: Tensor, *, num_classes: int, dtype: DType) -> Tensor:
    message = f"one_hot: index {{value}}{{place}} is out of range for {num_classes} classes"
    checked = expect_range(labels, 0, num_classes, message + "; {valid}").astype(dtypes.int32)
    classes = as_tensor(np.arange(num_classes, dtype=np.int32))
    return equal(expand_dims(checked, -1), classes).astype(dtype, copy=False)


def _one_hot_samples() -> Iterable[Sample]:
    yield Sample((np.array([0, 2, 1, 2]), 3))
    yield Sample((integers(0, 4, 2, 3), 4), {"dtype": "float32"}, label="float", has_peer=False)
    yield Sample((np.array(1), 3), label="0-d")
    yield Sample((np.zeros(0, np.int64), 3), label="empty")
    yield bad(OutOfRangeError, r"index 3 \(at position \[1\]", np.array([0, 3]), 3)
    yield bad(OutOfRangeError, "index -1.*valid are 0 to 2", np.array([-1]), 3)
    yield bad(DTypeError, "must be integers, got float", normal(3), 3)
    yield bad(ArgumentError, "num_classes", np.array([0]), -1)


@op(
    kind=Kind.INDEXING,
    infer=lambda labels, *, num_classes, dtype: Spec((*labels.shape, num_classes), dtype),
    reference=_one_hot,
    decompose=_one_hot_by_parts,
    samples=_one_hot_samples,
    is_method=False,
    peer=lambda torch, labels, num_classes: torch.nn.functional.one_hot(labels, num_classes),
)
def one_hot(labels: TensorLike, num_classes: int, *, dtype: Any = None) -> Tensor:
    """Write each label k as a row of zeros with a one at place k.

    Args:
        labels: integers in 0 … ``num_classes − 1``, of any shape.
        num_classes: extent of the new last axis.
        dtype: of the result; int64 if not given, as in PyTorch.

    Raises:
        OutOfRangeError: a label is no class; says which, and where.
        DTypeError: the labels are not integers.
        ArgumentError: ``num_classes`` is negative.

    Example:
        >>> ndl.one_hot([0, 2], 3, dtype="float32")
        Tensor([[1., 0., 0.],
                [0., 0., 1.]])
    """
    classes = as_index(num_classes, "one_hot: num_classes")
    if classes < 0:
        raise ArgumentError(f"one_hot: num_classes must not be negative, got {classes}")
    result: Tensor = apply(
        one_hot,
        as_indices(labels, "one_hot"),
        num_classes=classes,
        dtype=dtypes.int64 if dtype is None else as_dtype(dtype),
    )
    return result


def _embedding_samples() -> Iterable[Sample]:
    yield Sample((integers(0, 5, 2, 3), normal(5, 4)))
    yield Sample((np.array([1, 1, 1]), normal(5, 4)), label="duplicates")
    yield Sample((np.zeros((0, 2), np.int64), normal(5, 4)), label="empty")
    yield Sample((np.array([0, 3]), normal(5, 4), -5), label="padding", is_smooth=False)
    yield bad(OutOfRangeError, r"index 5 \(at position \[1\]", np.array([0, 5]), normal(5, 4))
    yield bad(OutOfRangeError, "index -1.*valid are 0 to 4", np.array([-1]), normal(5, 4))
    yield bad(ShapeError, "weight", np.array([0]), normal(5))
    yield bad(OutOfRangeError, "padding_idx 5", np.array([0]), normal(5, 4), 5)


@composite(
    samples=_embedding_samples,
    peer=lambda torch, indices, weight, padding_idx=None: torch.nn.functional.embedding(
        indices, weight, padding_idx
    ),
)
def embedding(indices: TensorLike, weight: TensorLike, padding_idx: int | None = None) -> Tensor:
    """Look up rows of a table: ``out[..., :] = weight[indices[...], :]``.

    Args:
        indices: integers in 0 … n − 1, of any shape.
        weight: the table, [n, d].
        padding_idx: a row that gets no gradient.

    Raises:
        OutOfRangeError: an index has no row (negative ones, too); says which, and where.
        ShapeError: the table is no matrix.
        DTypeError: the indices are not integers.

    Example:
        >>> ndl.embedding([2, 0], ndl.asarray([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]))
        Tensor([[4., 5.],
                [0., 1.]])
    """
    i, table = as_indices(indices, "embedding"), as_tensor(weight)
    if table.ndim != 2:
        raise ShapeError(
            f"embedding: weight must be a matrix [number of rows, width], got {list(table.shape)}"
        )
    rows = take_at(table, (i,), (0,), signed=False)
    if padding_idx is None:
        return rows
    n = table.shape[0]
    index = as_index(padding_idx, "embedding: padding_idx")
    if not -n <= index < n:
        raise OutOfRangeError(f"embedding: padding_idx {index} is outside of {n} rows")
    return where(expand_dims(i == index % n, -1), rows.detach(), rows)


def _masked_fill_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), bools(3, 4), -2.5))
    yield Sample((normal(3, 4), bools(4), float("-inf")), label="−∞", is_smooth=False)
    yield Sample((integers(0, 9, 3, 4), bools(3, 1), 7), label="integers")
    yield bad(ShapeError, "does not broadcast", normal(4), bools(3, 4), 0.0)
    yield bad(DTypeError, "must be bool", normal(4), integers(0, 2, 4), 0.0)


@composite(samples=_masked_fill_samples, is_method=True, peer="masked_fill")
def masked_fill(x: TensorLike, mask: TensorLike, value: TensorLike) -> Tensor:
    """Replace elements by a value where a mask is true.

    Args:
        x: any shape.
        mask: bools that broadcast to the shape of ``x``.
        value: a number or a 0-d tensor; converted to the dtype of ``x``.

    Raises:
        ShapeError: the mask does not broadcast to the shape of ``x``.
        DTypeError: the mask is not bool.

    Example:
        >>> ndl.masked_fill(ndl.asarray([1.0, 2.0]), ndl.asarray([True, False]), 0.0)
        Tensor([0., 2.])
    """
    t, m = as_tensor(x), as_tensor(mask)
    lead = t.ndim - m.ndim
    if lead < 0 or any(
        not is_single(n) and n != k for n, k in zip(m.shape, t.shape[lead:], strict=True)
    ):
        raise ShapeError(
            f"masked_fill: the mask of shape {list(m.shape)} does not broadcast to {list(t.shape)}"
        )
    is_number = isinstance(value, (bool, int, float))
    fill = as_tensor(value, t.dtype) if is_number else as_tensor(value).astype(t.dtype, copy=False)
    if fill.ndim:
        raise ShapeError(f"masked_fill: the value must be one number, got shape {list(fill.shape)}")
    return where(m, fill, t)


__all__ = [
    "embedding",
    "gather",
    "masked_fill",
    "one_hot",
    "scatter_add",
    "take",
    "take_along_axis",
    "untake_along_axis",
]
