"""Standardisation with a weight and a bias: what batch and group normalisation come down to.

Two primitives: with the statistics of the elements, and with given ones. Their vjp rules are
written with ops, so that derivatives of any order exist; eager execution runs a primitive as one
kernel, and all its rules together as another, so that the statistics of the gradient are taken
once. A row is what lies behind the first axis; parameters have
no such axis, and a mean over it is divided by a count that is an operand: so one program serves
batches of all sizes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import accumulation_dtype
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.ops.arithmetic import square
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_float_tensor, as_tensor, widen
from needle.ops.movement import reshape
from needle.ops.normalization import check_eps
from needle.ops.record import Kind, op
from needle.ops.reduce import sum, sum_to_shape
from needle.ops.samples import Array, Sample, bad, normal
from needle.ops.transcendental import rsqrt
from needle.shapes import Axis, Shape, Spec, broadcast_shapes, normalize_axes, reduced_shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _statistics_shape(shape: Shape, axes: Shape) -> Shape:
    """Return the shape of means: with all axes; without the first, where the mean is over it."""
    kept = reduced_shape(shape, axes, True)
    return kept[1:] if 0 in axes else kept


def _infer(
    x: Spec, weight: Spec, bias: Spec, count: Spec, *, axes: Shape, eps: float
) -> tuple[Spec, Spec, Spec]:
    _check_parameters("affine_standardize", x, weight, bias)
    statistic = Spec(_statistics_shape(x.shape, axes), accumulation_dtype(x.dtype))
    return Spec(x.shape, x.dtype), statistic, statistic


def _check_parameters(name: str, x: Spec, *parameters: Spec) -> None:
    """Raise unless parameters have the dtype of ``x``, and broadcast to its rows."""
    if len(x.shape) < 2:
        raise ShapeError(
            f"{name}: needs at least one axis besides the first, got a tensor of shape "
            f"{list(x.shape)}"
        )
    for parameter in parameters:
        if len(parameter.shape) != len(x.shape) - 1 or (
            broadcast_shapes(x.shape[1:], parameter.shape, op=name) != x.shape[1:]
        ):
            raise ShapeError(
                f"{name}: a parameter has shape {list(parameter.shape)}, which does "
                f"not broadcast to that of a row, {list(x.shape[1:])}"
            )
        if parameter.dtype != x.dtype:
            raise DTypeError(
                f"{name}: a parameter is {parameter.dtype.name}, the tensor {x.dtype.name}; "
                "convert one of them with astype()"
            )


def _reference(
    x: Array, weight: Array, bias: Array, count: Array, *, axes: Shape, eps: float
) -> tuple[Array, Array, Array]:
    wide = x.astype(accumulation_dtype(x.dtype), copy=False)
    kind = wide.dtype.type
    average = np.add.reduce(wide, axis=axes, keepdims=True) / kind(count)
    y = wide - average
    # In two passes: the mean of squares less the square of the mean cancels for large means.
    variance = np.add.reduce(np.square(y), axis=axes, keepdims=True) / kind(count)
    y = y * (1 / np.sqrt(variance + kind(eps)) * weight) + bias
    shape = _statistics_shape(x.shape, axes)
    return y.astype(x.dtype, copy=False), average.reshape(shape), variance.reshape(shape)


def _spread(statistic: Tensor, like: Tensor) -> Tensor:
    """Return means of `_statistics_shape`, or a parameter, with as many axes as the tensor."""
    if statistic.ndim == like.ndim:
        return statistic
    return reshape(statistic, (1, *statistic.shape))


def _by_parts(
    x: Tensor, weight: Tensor, bias: Tensor, count: Tensor, *, axes: Shape, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide, n = widen(x), widen(count)
    average = sum(wide, axes, keepdims=True) / n
    centred = wide - average
    variance = sum(square(centred), axes, keepdims=True) / n
    scale = rsqrt(variance + eps) * _spread(widen(weight), x)
    y = centred * scale + _spread(widen(bias), x)
    shape = _statistics_shape(x.shape, axes)
    statistics = reshape(average, shape), reshape(variance, shape)
    return y.astype(x.dtype, copy=False), *statistics


Results = tuple["Tensor", "Tensor", "Tensor"]


def _vjp_x(
    g: Results,
    x: Tensor,
    weight: Tensor,
    count: Tensor,
    out_1: Tensor,
    out_2: Tensor,
    axes: Shape,
    eps: float,
) -> Tensor:
    """With ``r = 1/√(var + ε)`` and ``u = g · weight``: ``r · (u − m(u) − x̂ · m(u · x̂))``, and
    what comes from mean and variance."""
    n = widen(count)
    mean, variance, g_mean, g_variance = (_spread(t, x) for t in (out_1, out_2, *g[1:]))
    u = widen(g[0]) * _spread(widen(weight), x)
    r = rsqrt(variance + eps)
    centred = widen(x) - mean
    along_x = sum(u * centred, axes, keepdims=True)
    along_one = sum(u, axes, keepdims=True)
    slope = (g_variance * 2 - along_x * (r * r * r)) / n
    result: Tensor = u * r + centred * slope + (g_mean - along_one * r) / n
    return result.astype(x.dtype, copy=False)


def _vjp_weight(
    g: Results, x: Tensor, out_1: Tensor, out_2: Tensor, weight_shape: Shape, eps: float
) -> Tensor:
    mean, variance = _spread(out_1, x), _spread(out_2, x)
    product = widen(g[0]) * ((widen(x) - mean) * rsqrt(variance + eps))
    return _summed(product, weight_shape).astype(x.dtype, copy=False)


def _vjp_bias(g: Results, bias_shape: Shape) -> Tensor:
    return _summed(widen(g[0]), bias_shape).astype(g[0].dtype, copy=False)


def _summed(x: Tensor, shape: Shape) -> Tensor:
    return reshape(sum_to_shape(x, (1, *shape)), shape)


def _samples() -> Iterable[Sample]:
    parameters = normal(3, 1, seed=1), normal(3, 1, seed=2)
    yield Sample((normal(4, 3, 5), *parameters, (0, 2)), label="of channels")
    yield Sample((normal(2, 2, 3, 4), normal(2, 3, 1), normal(2, 3, 1), (2, 3)), label="of groups")
    yield Sample((normal(4, 3, 1), *parameters, (0, 2), 0.1), label="eps")
    yield Sample((normal(0, 2, 3), normal(2, 3), normal(2, 3), 2), label="empty")
    yield bad(ShapeError, "that of a row", normal(4, 3, 5), normal(3), normal(3, 1), 0)
    yield bad(ShapeError, "at least one axis", normal(4), normal(), normal(), 0)
    yield bad(ArgumentError, "eps", normal(4, 3, 5), *parameters, 0, -1.0)


def _torch_peer(torch: Any, x: Any, weight: Any, bias: Any, axis: Any, eps: float = 1e-5) -> Any:
    axes = axis if isinstance(axis, tuple) else (axis,)
    average = x.mean(axis, keepdim=True)
    variance = ((x - average) ** 2).mean(axis, keepdim=True)
    y = (x - average) / (variance + eps).sqrt() * weight + bias
    shape = _statistics_shape(tuple(x.shape), axes)
    return y, average.reshape(shape), variance.reshape(shape)


@op(
    kind=Kind.NORMALIZATION,
    infer=_infer,
    reference=_reference,
    decompose=_by_parts,
    vjp={"x": _vjp_x, "weight": _vjp_weight, "bias": _vjp_bias},
    samples=_samples,
    flops=lambda x, weight, bias, count, out, **attrs: 8 * x.size,
    is_method=False,
    peer=_torch_peer,
)
def affine_standardize(
    x: TensorLike, weight: TensorLike, bias: TensorLike, axis: Axis, eps: float = 1e-5
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the elements along axes mean 0 and variance 1, then scale and shift them:
    ``(x − mean) / √(variance + ε) · weight + bias``.

    Args:
        x: floats, [N, …].
        weight: of a shape that broadcasts to that of a row, ``x.shape[1:]``, with as many axes.
        bias: like the weight.
        axis: the axes of the elements that are normalised together.
        eps: ε, added to the variance; not negative.

    Returns:
        The result, of the shape and dtype of ``x``, and the mean and the (biased) variance, with
        extent 1 at ``axis`` and without the first axis if that is one of them; in float32 for
        16-bit floats. Gradients flow through all three.

    Raises:
        ShapeError: a parameter does not fit.
        DTypeError: a parameter has another dtype.
        AxisError: an axis does not exist or is given twice.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> x, one, zero = ndl.asarray([[1.0], [3.0]]), ndl.ones(1), ndl.zeros(1)
        >>> y, mean, variance = ndl.affine_standardize(x, one, zero, 0, eps=0.0)
        >>> y.tolist(), mean, variance
        ([[-1.0], [1.0]], Tensor([2.]), Tensor([1.]))
    """
    t = as_float_tensor(x)
    check_eps(eps, "affine_standardize")
    axes = normalize_axes(axis, t.ndim, "affine_standardize")
    elements = 1
    for a in axes:
        elements *= t.shape[a]
    # Of no elements there is nothing to give back; 1 keeps from dividing by 0.
    count = as_tensor(float(max(1, elements)), accumulation_dtype(t.dtype))
    result: Any = apply(
        affine_standardize,
        t,
        as_float_tensor(weight),
        as_float_tensor(bias),
        count,
        axes=axes,
        eps=eps,
    )
    return result


# With given statistics


def _infer_scaled(x: Spec, weight: Spec, bias: Spec) -> Spec:
    _check_parameters("scale_and_shift", x, weight, bias)
    return Spec(x.shape, x.dtype)


def _scaled(x: Array, weight: Array, bias: Array) -> Array:
    return x * weight + bias


def _scaled_by_parts(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    result: Tensor = widen(x) * _spread(widen(weight), x) + _spread(widen(bias), x)
    return result.astype(x.dtype, copy=False)


def _scaled_vjp_x(g: Tensor, weight: Tensor) -> Tensor:
    result: Tensor = g * _spread(weight, g)
    return result


def _scaled_vjp_weight(g: Tensor, x: Tensor, weight_shape: Shape) -> Tensor:
    return _summed(widen(g) * widen(x), weight_shape).astype(x.dtype, copy=False)


def _scaled_vjp_bias(g: Tensor, bias_shape: Shape) -> Tensor:
    return _summed(widen(g), bias_shape).astype(g.dtype, copy=False)


def _scaled_samples() -> Iterable[Sample]:
    yield Sample((normal(4, 3, 5), normal(3, 1, seed=1), normal(3, 1, seed=2)))
    yield Sample((normal(4, 3), normal(3, seed=1), normal(1)), label="one bias")
    yield Sample((normal(0, 3), normal(3), normal(3)), label="empty")
    yield bad(ShapeError, "that of a row", normal(4, 3, 5), normal(3), normal(3, 1))
    yield bad(ShapeError, "at least one axis", normal(4), normal(), normal())


@op(
    kind=Kind.NORMALIZATION,
    infer=_infer_scaled,
    reference=widened(_scaled),
    decompose=_scaled_by_parts,
    vjp={"x": _scaled_vjp_x, "weight": _scaled_vjp_weight, "bias": _scaled_vjp_bias},
    samples=_scaled_samples,
    flops=lambda x, weight, bias, out: 2 * x.size,
    is_method=False,
    peer=lambda torch, x, weight, bias: x * weight + bias,
)
def scale_and_shift(x: TensorLike, weight: TensorLike, bias: TensorLike) -> Tensor:
    """Scale and shift rows by parameters that all of them share: ``x · weight + bias``.

    Args:
        x: floats, [N, …].
        weight: of a shape that broadcasts to that of a row, ``x.shape[1:]``, with as many axes.
        bias: like the weight.

    Raises:
        ShapeError: a parameter does not fit.
        DTypeError: a parameter has another dtype.

    Example:
        >>> x = ndl.asarray([[1.0, 3.0], [5.0, 7.0]])
        >>> ndl.scale_and_shift(x, ndl.asarray([1.0, 10.0]), ndl.ones(2)).tolist()
        [[2.0, 31.0], [6.0, 71.0]]
    """
    inputs = as_float_tensor(x), as_float_tensor(weight), as_float_tensor(bias)
    return apply(scale_and_shift, *inputs)


__all__ = ["affine_standardize", "scale_and_shift"]
