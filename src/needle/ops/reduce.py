"""Reductions: ops that combine the elements along axes."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.dtypes import as_dtype, is_float
from needle.errors import AxisError, DTypeError, ShapeError
from needle.extents import is_single
from needle.ops import fold
from needle.ops.comparison import isfinite, where
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_float_tensor, as_tensor
from needle.ops.movement import broadcast_to, reshape
from needle.ops.precision import Precision
from needle.ops.record import Kind, composite, op
from needle.ops.samples import Sample, Samples, bad, bools, distinct, integers, normal, uniform
from needle.ops.slicing import pad
from needle.shapes import Axis, Shape, Spec, normalize_axes, normalize_axis, reduced_shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def reduction_samples(draw: Callable[..., Any] = normal) -> Samples:
    """Return samples for a reduction over some, all or no axes of what ``draw`` yields."""

    def samples() -> Iterable[Sample]:
        yield Sample((draw(3, 4),), label="all")
        yield Sample((draw(3, 4, 5),), {"axis": 1}, label="middle")
        yield Sample((draw(3, 4, 5),), {"axis": (0, -1)}, label="two")
        yield Sample((draw(3, 4),), {"axis": -1, "keepdims": True}, label="keepdims")
        yield Sample((draw(5, 4)[::2].T,), {"axis": 0}, label="strided")
        yield Sample((draw(1),), label="one")
        yield bad(AxisError, "axis 2", draw(3, 4), axis=2)
        yield bad(AxisError, "twice", draw(3, 4), axis=(0, -2))

    return samples


def _torch_reduction(name: str) -> Callable[..., Any]:
    """Spell a reduction in PyTorch, whose functions differ in whether they take no axes."""

    def peer(torch: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        axes = tuple(range(x.ndim)) if axis is None else axis
        return getattr(torch, name)(x, dim=axes, keepdim=keepdims)

    return peer


def infer_reduction(x: Spec, *, axes: Shape, keepdims: bool) -> Spec:
    """Return the spec of a reduction that keeps the dtype."""
    return Spec(reduced_shape(x.shape, axes, keepdims), x.dtype)


def kept(shape: Shape, axes: Shape) -> Shape:
    """Return ``shape`` with extent 1 at ``axes``: how a result broadcasts against the input."""
    return reduced_shape(shape, axes, True)


# Sums


def _sum_samples() -> Iterable[Sample]:
    yield from reduction_samples()()
    yield Sample((integers(0, 9, 3, 4),), label="integers")
    yield Sample((bools(3, 4),), {"axis": 0}, label="bool")
    yield Sample((normal(0, 3),), {"axis": 0}, label="empty")
    yield Sample((normal(3, 4),), {"axis": ()}, label="no axes", has_peer=False)


@op(
    kind=Kind.REDUCTION,
    infer=infer_reduction,
    reference=widened(lambda x, *, axes, keepdims: np.add.reduce(x, axes, keepdims=keepdims)),
    lower=fold.SUM,
    vjp={"x": lambda g, x_shape, axes: broadcast_to(reshape(g, kept(x_shape, axes)), x_shape)},
    samples=_sum_samples,
    refuses=True,
    peer=_torch_reduction("sum"),
)
def sum(x: TensorLike, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Sum over axes. 16-bit floats are added in float32.

    Args:
        x: any shape; bools and integers add up as int64 (unsigned ones as uint64).
        axis: the axes to sum over; all if not given.
        dtype: dtype of the result.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.sum(ndl.ones((2, 3)), axis=0)
        Tensor([2., 2., 2.])
    """
    t = as_tensor(x)
    if dtype is not None:
        t = t.astype(as_dtype(dtype), copy=False)
    elif t.dtype in dtypes.UNSIGNED:
        t = t.astype(dtypes.uint64, copy=False)
    elif not is_float(t.dtype):
        t = t.astype(dtypes.int64, copy=False)
    total = apply(sum, t, axes=normalize_axes(axis, t.ndim, "sum"), keepdims=keepdims)
    # What is asked for counts more than what autocast makes of it.
    return total if dtype is None else total.astype(t.dtype, copy=False)


def sum_to_shape(x: Tensor, shape: Shape) -> Tensor:
    """Sum over the axes along which ``shape`` was broadcast: the adjoint of broadcasting."""
    lead = x.ndim - len(shape)
    stretched = [
        lead + i for i, n in enumerate(shape) if is_single(n) and not is_single(x.shape[lead + i])
    ]
    if stretched:
        x = sum(x, (*range(lead), *stretched), keepdims=True)
        return reshape(x, shape) if lead else x
    return sum(x, tuple(range(lead))) if lead else x


def _count(shape: Shape, axes: Shape) -> int:
    return math.prod(shape[a] for a in axes)


@composite(samples=reduction_samples(), is_method=True, peer=_torch_reduction("mean"))
def mean(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Arithmetic mean over axes: ``Σ x / n``. NaN over no elements.

    Args:
        x: any shape; integers become float32.
        axis: the axes to average over; all if not given.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.mean(ndl.arange(4))
        Tensor(1.5)
    """
    t = as_float_tensor(x)
    n = _count(t.shape, normalize_axes(axis, t.ndim, "mean"))
    return sum(t, axis, keepdims=keepdims) / n


def _variance_samples() -> Iterable[Sample]:
    yield from reduction_samples(lambda *shape: normal(*(n + 1 for n in shape)))()
    yield Sample((normal(3, 4),), {"axis": 0, "correction": 1}, label="unbiased")


def _torch_variance(name: str) -> Callable[..., Any]:
    def peer(
        torch: Any, x: Any, axis: Any = None, correction: float = 0, keepdims: bool = False
    ) -> Any:
        return getattr(torch, name)(x, dim=axis, correction=correction, keepdim=keepdims)

    return peer


@composite(samples=_variance_samples, is_method=True, peer=_torch_variance("var"))
def var(
    x: TensorLike, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False
) -> Tensor:
    """Variance over axes: ``Σ (x − mean)² / (n − correction)``.

    Args:
        x: any shape; integers become float32.
        axis: the axes; all if not given.
        correction: subtracted from the number of elements; 1 gives the unbiased estimate. 0, as in
            the array API standard, where PyTorch has 1.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.var(ndl.arange(4)), ndl.var(ndl.arange(4), correction=1)
        (Tensor(1.25), Tensor(1.666667))
    """
    t = as_float_tensor(x)
    n = _count(t.shape, normalize_axes(axis, t.ndim, "var"))
    centred = t - mean(t, axis, keepdims=True)
    return sum(centred * centred, axis, keepdims=keepdims) / builtins.max(n - correction, 0)


@composite(samples=_variance_samples, is_method=True, peer=_torch_variance("std"))
def std(
    x: TensorLike, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False
) -> Tensor:
    """Standard deviation over axes: the square root of `var`.

    Args:
        x: any shape; integers become float32.
        axis: the axes; all if not given.
        correction: subtracted from the number of elements; 1 gives the unbiased estimate.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.std(ndl.asarray([1.0, 3.0]))
        Tensor(1.)
    """
    return var(x, axis, correction=correction, keepdims=keepdims).sqrt()


# Products


def _torch_prod(torch: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    for a in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(dim=a, keepdim=keepdims)
    return x


def _prod_samples() -> Iterable[Sample]:
    yield from reduction_samples(lambda *shape: uniform(0.5, 1.5, *shape))()
    yield Sample((np.array([[2.0, 0.0, 3.0], [0.0, 0.0, 1.0]]),), {"axis": 1}, label="zeros")
    yield Sample((integers(1, 4, 3, 4),), label="integers")
    yield Sample((normal(0, 3),), {"axis": 0}, label="empty")


@composite(samples=_prod_samples, is_method=True, peer=_torch_prod, precision=Precision.FULL)
def prod(x: TensorLike, axis: Axis = None, *, dtype: Any = None, keepdims: bool = False) -> Tensor:
    """Product over axes; 1 over no elements.

    Multiplies halves with each other until one is left, so that derivatives of any order are right
    where factors are zero, too (``out / x`` is not).

    Args:
        x: any shape; bools and integers multiply as int64.
        axis: the axes; all if not given.
        dtype: dtype of the result.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.prod(ndl.arange(1, 5))
        Tensor(24, dtype=int64)
    """
    t = as_tensor(x)
    axes = normalize_axes(axis, t.ndim, "prod")
    if dtype is not None:
        t = t.astype(as_dtype(dtype), copy=False)
    elif not is_float(t.dtype):
        t = t.astype(dtypes.uint64 if t.dtype in dtypes.UNSIGNED else dtypes.int64, copy=False)
    rest = tuple(i for i in range(t.ndim) if i not in axes)
    shape = reduced_shape(t.shape, axes, keepdims)
    t = reshape(
        t.permute_dims((*axes, *rest)), (_count(t.shape, axes), *(t.shape[i] for i in rest))
    )
    if t.shape[0] == 0:
        t = pad(t, ((0, 1), *((0, 0) for _ in rest)), 1.0)
    while t.shape[0] > 1:
        n = t.shape[0]
        if n % 2:
            t = pad(t, ((0, 1), *((0, 0) for _ in rest)), 1.0)
        half = (n + 1) // 2
        t = t[:half] * t[half:]
    return reshape(t, shape)


# Extrema


def _extremum_samples() -> Iterable[Sample]:
    yield from reduction_samples(distinct)()
    yield Sample((integers(0, 9, 3, 4),), label="integers")
    yield Sample((np.array([1.0, 3.0, 3.0]),), label="tie", is_smooth=False)
    yield Sample((np.array([1.0, np.nan, -np.inf]),), label="special", is_smooth=False)
    yield bad(ShapeError, "no elements", normal(0, 3), axis=0)


def _infer_extremum(name: str) -> Callable[..., Spec]:
    def infer(x: Spec, *, axes: Shape, keepdims: bool) -> Spec:
        if builtins.any(x.shape[a] == 0 for a in axes):
            raise ShapeError(f"{name}: no elements to choose from in shape {list(x.shape)}")
        return infer_reduction(x, axes=axes, keepdims=keepdims)

    return infer


def _extremum_vjp(g: Tensor, x: Tensor, out: Tensor, axes: Shape) -> Tensor:
    """Share the cotangent equally between the elements that attain the extremum."""
    shape = kept(x.shape, axes)
    attained = (x == reshape(out, shape)).astype(x.dtype)
    return attained * reshape(g, shape) / sum(attained, axes, keepdims=True)


@op(
    kind=Kind.REDUCTION,
    infer=_infer_extremum("max"),
    reference=lambda x, *, axes, keepdims: np.maximum.reduce(x, axes, keepdims=keepdims),
    lower=fold.MAX,
    vjp={"x": _extremum_vjp},
    samples=_extremum_samples,
    refuses=True,
    aliases=("amax",),
    peer=_torch_reduction("amax"),
    precision=Precision.FOLLOW,
)
def max(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Largest element along axes; NaN if there is one.

    Args:
        x: any shape and dtype. Elements that tie share the gradient equally.
        axis: the axes; all if not given.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        ShapeError: an axis has no elements.
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.max(ndl.asarray([[1, 5], [7, 2]]), axis=1)
        Tensor([5, 7], dtype=int64)
    """
    t = as_tensor(x)
    return apply(max, t, axes=normalize_axes(axis, t.ndim, "max"), keepdims=keepdims)


@op(
    kind=Kind.REDUCTION,
    infer=_infer_extremum("min"),
    reference=lambda x, *, axes, keepdims: np.minimum.reduce(x, axes, keepdims=keepdims),
    lower=fold.MIN,
    vjp={"x": _extremum_vjp},
    samples=_extremum_samples,
    refuses=True,
    aliases=("amin",),
    peer=_torch_reduction("amin"),
    precision=Precision.FOLLOW,
)
def min(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Smallest element along axes; NaN if there is one.

    Args:
        x: any shape and dtype. Elements that tie share the gradient equally.
        axis: the axes; all if not given.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        ShapeError: an axis has no elements.
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.min(ndl.asarray([[1, 5], [7, 2]]), axis=1)
        Tensor([1, 2], dtype=int64)
    """
    t = as_tensor(x)
    return apply(min, t, axes=normalize_axes(axis, t.ndim, "min"), keepdims=keepdims)


def _arg_samples() -> Iterable[Sample]:
    yield Sample((distinct(3, 4),), label="flat")
    yield Sample((distinct(3, 4, 5),), {"axis": 1}, label="middle")
    yield Sample((distinct(3, 4),), {"axis": -1, "keepdims": True}, label="keepdims")
    yield Sample((np.array([1.0, 3.0, 3.0]),), label="tie: the first", has_peer=False)
    yield Sample((integers(0, 9, 7),), label="integers", has_peer=False)
    yield bad(AxisError, "axis 2", normal(3, 4), axis=2)
    yield bad(ShapeError, "no elements", normal(0))


def _infer_arg(name: str) -> Callable[..., Spec]:
    def infer(x: Spec, *, axis: int, keepdims: bool) -> Spec:
        if x.shape[axis] == 0:
            raise ShapeError(f"{name}: no elements to choose from in shape {list(x.shape)}")
        return Spec(reduced_shape(x.shape, (axis,), keepdims), dtypes.int64)

    return infer


def _arg_extremum(function: Any, x: Any, axis: int | None, keepdims: bool) -> Tensor:
    t = as_tensor(x)
    name = function.op.name
    if axis is None:
        rank = t.ndim
        result = apply(function, reshape(t, (t.size,)), axis=0, keepdims=False)
        return reshape(result, (1,) * rank) if keepdims else result
    result = apply(function, t, axis=normalize_axis(axis, t.ndim, name), keepdims=keepdims)
    return result


def _torch_arg(name: str) -> Callable[..., Any]:
    def peer(torch: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return getattr(torch, name)(x, dim=axis, keepdim=keepdims)

    return peer


@op(
    kind=Kind.REDUCTION,
    infer=_infer_arg("argmax"),
    reference=lambda x, *, axis, keepdims: np.argmax(x, axis=axis, keepdims=keepdims),
    lower=fold.ARGMAX,
    samples=_arg_samples,
    peer=_torch_arg("argmax"),
    precision=Precision.FOLLOW,
)
def argmax(x: TensorLike, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """Index of the largest element along an axis, the first of several.

    Args:
        x: any shape and dtype; NaN counts as the largest.
        axis: the axis; if not given, the index into the flattened tensor.
        keepdims: whether the axis stays, with extent 1.

    Returns:
        int64 indices.

    Raises:
        ShapeError: there are no elements.
        AxisError: the axis does not exist.

    Example:
        >>> ndl.argmax(ndl.asarray([[1, 5], [7, 2]]), axis=1)
        Tensor([1, 0], dtype=int64)
    """
    return _arg_extremum(argmax, x, axis, keepdims)


@op(
    kind=Kind.REDUCTION,
    infer=_infer_arg("argmin"),
    reference=lambda x, *, axis, keepdims: np.argmin(x, axis=axis, keepdims=keepdims),
    lower=fold.ARGMIN,
    samples=_arg_samples,
    peer=_torch_arg("argmin"),
    precision=Precision.FOLLOW,
)
def argmin(x: TensorLike, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """Index of the smallest element along an axis, the first of several.

    Args:
        x: any shape and dtype; NaN counts as the smallest.
        axis: the axis; if not given, the index into the flattened tensor.
        keepdims: whether the axis stays, with extent 1.

    Returns:
        int64 indices.

    Raises:
        ShapeError: there are no elements.
        AxisError: the axis does not exist.

    Example:
        >>> ndl.argmin(ndl.asarray([[1, 5], [7, 2]]), axis=1)
        Tensor([0, 1], dtype=int64)
    """
    return _arg_extremum(argmin, x, axis, keepdims)


# Logic


def _infer_logic(x: Spec, *, axes: Shape, keepdims: bool) -> Spec:
    if x.dtype != dtypes.bool:
        raise DTypeError(f"takes bool tensors, got {x.dtype.name}")
    return infer_reduction(x, axes=axes, keepdims=keepdims)


def _logic_samples() -> Iterable[Sample]:
    yield from reduction_samples(bools)()
    yield Sample((integers(0, 2, 3, 4),), {"axis": 0}, label="integers")


def _torch_logic(name: str) -> Callable[..., Any]:
    def peer(torch: Any, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return getattr(torch, name)(x, dim=axis, keepdim=keepdims)

    return peer


def _as_bool(x: Any) -> Tensor:
    t = as_tensor(x)
    return t if t.dtype == dtypes.bool else t != 0


@op(
    kind=Kind.REDUCTION,
    infer=_infer_logic,
    reference=lambda x, *, axes, keepdims: np.any(x, axis=axes, keepdims=keepdims),
    lower=fold.ANY,
    samples=_logic_samples,
    peer=_torch_logic("any"),
    precision=Precision.FOLLOW,
)
def any(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Whether at least one element along the axes is true (not zero).

    Args:
        x: any shape and dtype.
        axis: the axes; all if not given.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.any(ndl.asarray([[True, False], [False, False]]), axis=1)
        Tensor([ True, False], dtype=bool)
    """
    t = _as_bool(x)
    return apply(any, t, axes=normalize_axes(axis, t.ndim, "any"), keepdims=keepdims)


@op(
    kind=Kind.REDUCTION,
    infer=_infer_logic,
    reference=lambda x, *, axes, keepdims: np.all(x, axis=axes, keepdims=keepdims),
    lower=fold.ALL,
    samples=_logic_samples,
    peer=_torch_logic("all"),
    precision=Precision.FOLLOW,
)
def all(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Whether all elements along the axes are true (not zero).

    Args:
        x: any shape and dtype.
        axis: the axes; all if not given.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.all(ndl.asarray([[True, True], [False, True]]), axis=1)
        Tensor([ True, False], dtype=bool)
    """
    t = _as_bool(x)
    return apply(all, t, axes=normalize_axes(axis, t.ndim, "all"), keepdims=keepdims)


# Logarithm of a sum of exponentials


def _logsumexp_samples() -> Iterable[Sample]:
    yield from reduction_samples()()
    yield Sample((np.array([[1000.0, 1000.5], [-np.inf, 1.0]]),), {"axis": 1}, label="large")
    yield Sample((np.array([-np.inf, -np.inf]),), label="special", is_smooth=False)


@composite(samples=_logsumexp_samples, is_method=True, peer=_torch_reduction("logsumexp"))
def logsumexp(x: TensorLike, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Logarithm of the sum of exponentials, without overflow: ``ln Σ eˣ``.

    Args:
        x: any shape; integers become float32.
        axis: the axes; all if not given.
        keepdims: whether the axes stay, with extent 1.

    Raises:
        AxisError: an axis does not exist or is given twice.

    Example:
        >>> ndl.logsumexp(ndl.asarray([1000.0, 0.0]))
        Tensor(1000.)
    """
    t = as_float_tensor(x)
    axes = normalize_axes(axis, t.ndim, "logsumexp")
    largest = max(t.detach(), axes, keepdims=True)
    # Where all are −∞ (or one is +∞) the shift would make ∞ − ∞.
    shift = where(isfinite(largest), largest, 0.0)
    result = sum((t - shift).exp(), axes, keepdims=True).log() + shift
    return result if keepdims else reshape(result, reduced_shape(t.shape, axes, False))


__all__ = [
    "all",
    "any",
    "argmax",
    "argmin",
    "logsumexp",
    "max",
    "mean",
    "min",
    "prod",
    "std",
    "sum",
    "var",
]
