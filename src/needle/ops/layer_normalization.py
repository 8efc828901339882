"""Layer and root-mean-square normalisation: rows, with a weight and a bias for each column.

Both are one primitive, `affine_normalize`. Its two gradients are primitives as well, so that eager
execution reads and writes what is as large as the input once for each: with the weight, the bias
and the terms of the gradient as ops of their own, 4096×768 floats took 3 times as long forward, and
10 times with the backward pass. Only the input is kept; the statistics are cheaper taken again than
kept with the result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import accumulation_dtype
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.ops.arithmetic import square
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_float_tensor, as_tensor, widen
from needle.ops.movement import broadcast_to, expand_dims, reshape
from needle.ops.normalization import check_eps, shaped_parameter
from needle.ops.record import Kind, composite, op
from needle.ops.reduce import sum
from needle.ops.samples import Array, Sample, bad, normal
from needle.ops.transcendental import rsqrt
from needle.shapes import Shape, Spec, as_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from needle.tensor import Tensor


def _check(name: str, x: Spec, *parameters: Spec, normalized: int) -> None:
    """Raise unless ``x`` has rows of the parameters' shape."""
    last = x.shape[max(0, len(x.shape) - normalized) :]
    if not 0 < normalized < len(x.shape):
        raise ShapeError(
            f"{name}: needs at least one axis before the {normalized} that are normalised, got a "
            f"tensor of shape {list(x.shape)}"
        )
    for parameter in parameters:
        if parameter.shape != last:
            raise ShapeError(
                f"{name}: a parameter has shape {list(parameter.shape)}, the last axes of the "
                f"tensor {list(last)}; they must be equal"
            )
        if parameter.dtype != x.dtype:
            raise DTypeError(
                f"{name}: a parameter is {parameter.dtype.name}, the tensor {x.dtype.name}; "
                "convert one of them with astype()"
            )


def _normalized_array(x: Array, normalized: int, centred: bool, eps: float) -> tuple[Array, Array]:
    """Return x̂ = (x − mean) · r, or x · r, and r."""
    axes = tuple(range(x.ndim - normalized, x.ndim))
    count = x.dtype.type(math.prod(x.shape[-normalized:]))
    y = x - np.add.reduce(x, axis=axes, keepdims=True) / count if centred else x
    # In two passes: the mean of squares less the square of the mean cancels for large means.
    r = 1 / np.sqrt(
        np.add.reduce(np.square(y), axis=axes, keepdims=True) / count + type(count)(eps)
    )
    return y * r, r


def _normalized(x: Tensor, normalized: int, centred: bool, eps: float) -> tuple[Tensor, Tensor]:
    """Return x̂ = (x − mean) · r, or x · r, and r."""
    axes = _last(x.ndim, normalized)
    # Of no elements there is nothing to give back; 1 keeps Python from dividing by 0.
    count = max(1, math.prod(x.shape[-normalized:]))
    y = x - sum(x, axes, keepdims=True) / count if centred else x
    r = rsqrt(sum(square(y), axes, keepdims=True) / count + eps)
    return y * r, r


def _last(ndim: int, normalized: int) -> Shape:
    return tuple(range(ndim - normalized, ndim))


def _constant(value: float, like: Tensor, normalized: int) -> Tensor:
    """Return a parameter for rows of a tensor that is one number."""
    return broadcast_to(as_tensor(value, like.dtype), like.shape[-normalized:])


def _infer_affine(
    x: Spec, weight: Spec, bias: Spec, *, normalized: int, centred: bool, eps: float
) -> Spec:
    _check("affine_normalize", x, weight, bias, normalized=normalized)
    return Spec(x.shape, x.dtype)


def _affine(
    x: Array, weight: Array, bias: Array, *, normalized: int, centred: bool, eps: float
) -> Array:
    return _normalized_array(x, normalized, centred, eps)[0] * weight + bias


def _affine_by_parts(
    x: Tensor, weight: Tensor, bias: Tensor, *, normalized: int, centred: bool, eps: float
) -> Tensor:
    y, _ = _normalized(widen(x), normalized, centred, eps)
    result: Tensor = y * widen(weight) + widen(bias)
    return result.astype(x.dtype, copy=False)


def _affine_vjp_x(
    g: Tensor, x: Tensor, weight: Tensor, normalized: int, centred: bool, eps: float
) -> Tensor:
    options = {"normalized": normalized, "centred": centred, "eps": eps}
    return apply(affine_normalize_slope, g, x, weight, **options)


def _affine_vjp_weight(g: Tensor, x: Tensor, normalized: int, centred: bool, eps: float) -> Tensor:
    options = {"normalized": normalized, "centred": centred, "eps": eps}
    return apply(affine_normalize_weight_slope, g, x, **options)


def _affine_vjp_bias(g: Tensor, normalized: int) -> Tensor:
    return sum(g, tuple(range(g.ndim - normalized)))


def _affine_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), normal(4, seed=1), normal(4, seed=2)))
    yield Sample((normal(2, 3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)), label="two axes")
    yield Sample((normal(2, 3, 4), normal(4, seed=1), normal(4, seed=2), False), label="no mean")
    yield Sample((normal(3, 4), normal(4, seed=1), normal(4), True, 0.1), label="eps")
    yield Sample((normal(0, 4), normal(4), normal(4)), label="empty")
    yield bad(ShapeError, "must be equal", normal(3, 4), normal(3), normal(4))
    yield bad(ShapeError, "must be equal", normal(3, 4), normal(4), normal(3))
    yield bad(ShapeError, "at least one axis", normal(4), normal(4), normal(4))
    yield bad(ArgumentError, "eps", normal(3, 4), normal(4), normal(4), True, -1.0)


def _torch_affine(
    torch: Any, x: Any, weight: Any, bias: Any, centred: bool = True, eps: float = 1e-5
) -> Any:
    axes = tuple(range(-weight.ndim, 0))
    y = x - x.mean(axes, keepdim=True) if centred else x
    return y / ((y * y).mean(axes, keepdim=True) + eps).sqrt() * weight + bias


@op(
    kind=Kind.NORMALIZATION,
    infer=_infer_affine,
    reference=widened(_affine),
    decompose=_affine_by_parts,
    vjp={"x": _affine_vjp_x, "weight": _affine_vjp_weight, "bias": _affine_vjp_bias},
    samples=_affine_samples,
    flops=lambda x, weight, bias, out, **attrs: 8 * x.size,
    is_method=False,
    peer=_torch_affine,
)
def affine_normalize(
    x: TensorLike, weight: TensorLike, bias: TensorLike, centred: bool = True, eps: float = 1e-5
) -> Tensor:
    """Normalise the last axes, then scale and shift; what `layer_norm` and `rms_norm` come down to.

    ``(x − mean) / √(mean((x − mean)²) + ε) · weight + bias``, without the means of ``x`` where it
    is not ``centred``.

    Args:
        x: [rows, …, *columns]. 16-bit floats are computed in float32.
        weight: of the last axes' shape, and the dtype of ``x``.
        bias: like the weight.
        centred: whether the mean is taken away.
        eps: ε, not negative.

    Raises:
        ShapeError: the parameters have not the shape of the last axes, or there are no others.
        DTypeError: the parameters have another dtype.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> ndl.affine_normalize(ndl.asarray([[1.0, 3.0]]), ndl.ones(2), ndl.ones(2), eps=0.0)
        Tensor([[0., 2.]])
    """
    check_eps(eps, "affine_normalize")
    w = as_float_tensor(weight)
    options = {"normalized": w.ndim, "centred": centred, "eps": eps}
    return apply(affine_normalize, as_float_tensor(x), w, as_float_tensor(bias), **options)


def _infer_slope(
    cotangent: Spec, x: Spec, weight: Spec, *, normalized: int, centred: bool, eps: float
) -> Spec:
    _check("affine_normalize_slope", x, weight, normalized=normalized)
    _check_cotangent("affine_normalize_slope", cotangent, x)
    return Spec(x.shape, x.dtype)


def _check_cotangent(name: str, cotangent: Spec, x: Spec) -> None:
    if cotangent.shape != x.shape:
        raise ShapeError(
            f"{name}: the cotangent has shape {list(cotangent.shape)}, the tensor "
            f"{list(x.shape)}; they must be equal"
        )


def _slope(
    cotangent: Array, x: Array, weight: Array, *, normalized: int, centred: bool, eps: float
) -> Array:
    y, r = _normalized_array(x, normalized, centred, eps)
    axes = tuple(range(x.ndim - normalized, x.ndim))
    count = x.dtype.type(math.prod(weight.shape))
    g = cotangent * weight
    along_y = np.add.reduce(g * y, axis=axes, keepdims=True) / count
    centre = np.add.reduce(g, axis=axes, keepdims=True) / count if centred else x.dtype.type(0)
    return (g - centre - y * along_y) * r


def _slope_by_parts(
    cotangent: Tensor, x: Tensor, weight: Tensor, *, normalized: int, centred: bool, eps: float
) -> Tensor:
    """The gradient of the mean of squares is a multiple of x̂, that of the mean is constant."""
    y, r = _normalized(widen(x), normalized, centred, eps)
    axes = _last(x.ndim, normalized)
    count = max(1, math.prod(weight.shape))
    g = widen(cotangent) * widen(weight)
    rest = g - y * (sum(g * y, axes, keepdims=True) / count)
    if centred:
        rest = rest - sum(g, axes, keepdims=True) / count
    result: Tensor = rest * r
    return result.astype(x.dtype, copy=False)


def _slope_of_one(h: Tensor, x: Tensor, options: dict[str, Any]) -> Tensor:
    """Return the slope for the cotangent h and the weight 1: of h it is linear and symmetric."""
    one = _constant(1.0, x, options["normalized"])
    return apply(affine_normalize_slope, h, x, one, **options)


def _slope_vjp_cotangent(
    g: Tensor, x: Tensor, weight: Tensor, normalized: int, centred: bool, eps: float
) -> Tensor:
    options = {"normalized": normalized, "centred": centred, "eps": eps}
    result: Tensor = _slope_of_one(g, x, options) * weight
    return result


def _slope_vjp_weight(
    g: Tensor, cotangent: Tensor, x: Tensor, normalized: int, centred: bool, eps: float
) -> Tensor:
    options = {"normalized": normalized, "centred": centred, "eps": eps}
    product = _slope_of_one(g, x, options) * cotangent
    return sum(product, tuple(range(x.ndim - normalized)))


def _slope_vjp_x(
    g: Tensor,
    out: Tensor,
    cotangent: Tensor,
    x: Tensor,
    weight: Tensor,
    normalized: int,
    centred: bool,
    eps: float,
) -> Tensor:
    """With D the slope for the weight 1, h what comes in, u = g · weight, and means m over a row:

    ``Σ h · D(u) = n · r · (c − a · b)``, where ``a = m(h · x̂)``, ``b = m(u · x̂)`` and
    ``c = m(h · u) − m(h) · m(u)``. The derivative of r is −r² · x̂ / n, of a it is D(h) / n, of b
    D(u) / n; c is constant.
    """
    options = {"normalized": normalized, "centred": centred, "eps": eps}
    y, r = _normalized(widen(x), normalized, centred, eps)
    axes = _last(x.ndim, normalized)

    def average(value: Tensor) -> Tensor:
        total: Tensor = sum(value, axes, keepdims=True) / max(1, math.prod(weight.shape))
        return total

    h, u = widen(g), widen(cotangent) * widen(weight)
    a, b, c = average(h * y), average(u * y), average(h * u)
    if centred:
        c = c - average(h) * average(u)
    slopes = b * widen(_slope_of_one(g, x, options)) + a * widen(out)
    result: Tensor = -r * ((c - a * b) * r * y + slopes)
    return result.astype(x.dtype, copy=False)


def _slope_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), normal(3, 4, seed=1), normal(4, seed=2)))
    yield Sample((normal(2, 3, 4), normal(2, 3, 4, seed=1), normal(3, 4)), label="two axes")
    yield Sample((normal(3, 4), normal(3, 4, seed=1), normal(4, seed=2), False), label="no mean")
    yield Sample((normal(0, 4), normal(0, 4), normal(4)), label="empty")
    yield bad(ShapeError, "must be equal", normal(3, 4), normal(2, 4), normal(4))
    yield bad(ShapeError, "must be equal", normal(3, 4), normal(3, 4), normal(3))


def _torch_slope(torch: Any, cotangent: Any, x: Any, weight: Any, *rest: Any) -> Any:
    def run(x: Any) -> Any:
        return _torch_affine(torch, x, weight, torch.zeros_like(weight), *rest)

    return torch.autograd.functional.vjp(run, x, cotangent, create_graph=True)[1]


@op(
    kind=Kind.NORMALIZATION,
    infer=_infer_slope,
    reference=widened(_slope),
    decompose=_slope_by_parts,
    vjp={"cotangent": _slope_vjp_cotangent, "x": _slope_vjp_x, "weight": _slope_vjp_weight},
    samples=_slope_samples,
    flops=lambda cotangent, x, weight, out, **attrs: 14 * x.size,
    is_method=False,
    peer=_torch_slope,
)
def affine_normalize_slope(
    cotangent: TensorLike,
    x: TensorLike,
    weight: TensorLike,
    centred: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """Gradient of `affine_normalize` by x: ``r · (u − m(u) − x̂ · m(u · x̂))``, ``u = g · weight``.

    r is what the rows are multiplied by, x̂ the normalised rows, m the mean of a row; without
    ``m(u)`` where the rows are not ``centred``.

    Args:
        cotangent: g, of the shape of ``x``.
        x: [rows, …, *columns].
        weight: of the last axes' shape, and the dtype of ``x``.
        centred: whether the mean was taken away.
        eps: ε, not negative.

    Raises:
        ShapeError: shapes that do not fit.
        DTypeError: dtypes that differ.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> x = ndl.asarray([[1.0, 3.0]])
        >>> ndl.affine_normalize_slope(ndl.ones((1, 2)), x, ndl.ones(2), eps=0.0)
        Tensor([[0., 0.]])
    """
    check_eps(eps, "affine_normalize_slope")
    w = as_float_tensor(weight)
    options = {"normalized": w.ndim, "centred": centred, "eps": eps}
    return apply(
        affine_normalize_slope, as_float_tensor(cotangent), as_float_tensor(x), w, **options
    )


def _infer_weight_slope(
    cotangent: Spec, x: Spec, *, normalized: int, centred: bool, eps: float
) -> Spec:
    _check("affine_normalize_weight_slope", x, normalized=normalized)
    _check_cotangent("affine_normalize_weight_slope", cotangent, x)
    return Spec(x.shape[-normalized:], x.dtype)


def _weight_slope(
    cotangent: Array, x: Array, *, normalized: int, centred: bool, eps: float
) -> Array:
    product = cotangent * _normalized_array(x, normalized, centred, eps)[0]
    result: Array = np.add.reduce(product, axis=tuple(range(x.ndim - normalized)))
    return result


def _weight_slope_by_parts(
    cotangent: Tensor, x: Tensor, *, normalized: int, centred: bool, eps: float
) -> Tensor:
    y, _ = _normalized(widen(x), normalized, centred, eps)
    total = sum(widen(cotangent) * y, tuple(range(x.ndim - normalized)))
    return total.astype(x.dtype, copy=False)


def _weight_slope_vjp_cotangent(
    g: Tensor, x: Tensor, normalized: int, centred: bool, eps: float
) -> Tensor:
    options = {"normalized": normalized, "centred": centred, "eps": eps}
    # x + −0 is x for all x.
    return apply(affine_normalize, x, g, _constant(-0.0, x, normalized), **options)


def _weight_slope_vjp_x(
    g: Tensor, cotangent: Tensor, x: Tensor, normalized: int, centred: bool, eps: float
) -> Tensor:
    options = {"normalized": normalized, "centred": centred, "eps": eps}
    return apply(affine_normalize_slope, cotangent, x, g, **options)


def _weight_slope_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), normal(3, 4, seed=1)))
    yield Sample((normal(2, 3, 4), normal(2, 3, 4, seed=1), 2), label="two axes")
    yield Sample((normal(3, 4), normal(3, 4, seed=1), 1, False), label="no mean")
    yield Sample((normal(0, 4), normal(0, 4)), label="empty")
    yield bad(ShapeError, "must be equal", normal(3, 4), normal(2, 4))
    yield bad(ShapeError, "at least one axis", normal(3, 4), normal(3, 4), 2)


def _torch_weight_slope(torch: Any, cotangent: Any, x: Any, normalized: int = 1, *rest: Any) -> Any:
    one = torch.ones(x.shape[-normalized:], dtype=x.dtype)
    product = cotangent * _torch_affine(torch, x, one, torch.zeros_like(one), *rest)
    return product.sum(tuple(range(x.ndim - normalized)))


@op(
    kind=Kind.REDUCTION,
    infer=_infer_weight_slope,
    reference=widened(_weight_slope),
    decompose=_weight_slope_by_parts,
    vjp={"cotangent": _weight_slope_vjp_cotangent, "x": _weight_slope_vjp_x},
    samples=_weight_slope_samples,
    flops=lambda cotangent, x, out, **attrs: 8 * x.size,
    is_method=False,
    peer=_torch_weight_slope,
)
def affine_normalize_weight_slope(
    cotangent: TensorLike,
    x: TensorLike,
    normalized: int = 1,
    centred: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """Gradient of `affine_normalize` by the weight: ``Σ g · x̂`` over the rows.

    Args:
        cotangent: g, of the shape of ``x``.
        x: [rows, …, *columns].
        normalized: the number of last axes that are normalised.
        centred: whether the mean was taken away.
        eps: ε, not negative.

    Raises:
        ShapeError: shapes that do not fit.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> x = ndl.asarray([[1.0, 3.0], [5.0, 9.0]])
        >>> ndl.affine_normalize_weight_slope(ndl.ones((2, 2)), x, eps=0.0)
        Tensor([-2.,  2.])
    """
    check_eps(eps, "affine_normalize_weight_slope")
    return apply(
        affine_normalize_weight_slope,
        as_float_tensor(cotangent),
        as_float_tensor(x),
        normalized=normalized,
        centred=centred,
        eps=eps,
    )


def _affine_of(
    t: Tensor, last: Shape, weight: Any, bias: Any, centred: bool, eps: float, name: str
) -> Tensor:
    """Normalise a tensor over its last axes, with the parameters that are given."""
    x = widen(t)
    rows = expand_dims(x, 0) if x.ndim == len(last) else x
    w = (
        _constant(1.0, x, len(last))
        if weight is None
        else shaped_parameter(weight, x, last, "normalized_shape", last, f"{name}: weight")
    )
    b = (
        _constant(-0.0, x, len(last))  # x + −0 is x for all x
        if bias is None
        else shaped_parameter(bias, x, last, "normalized_shape", last, f"{name}: bias")
    )
    options = {"normalized": len(last), "centred": centred, "eps": eps}
    y = apply(affine_normalize, rows, w, b, **options)
    y = y if rows is x else reshape(y, x.shape)
    return y.astype(t.dtype, copy=False)


def _normalized_shape(shape: Shape, normalized_shape: Any, name: str) -> Shape:
    """Return ``normalized_shape`` as a shape that the last axes have."""
    last = as_shape(normalized_shape, name)
    if not last or shape[-len(last) :] != last:
        raise ShapeError(
            f"{name}: expected the last axes to be {list(last)} (normalized_shape), got a tensor "
            f"of shape {list(shape)}"
        )
    return last


def _layer_norm_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), 4))
    yield Sample((normal(2, 3, 4), (3, 4), normal(3, 4, seed=1), normal(3, 4, seed=2)))
    yield Sample((normal(2, 3, 4), (4,), normal(4)), label="no bias")
    yield Sample((normal(3, 4), 4, None, normal(4), 0.1), label="eps")
    yield Sample((normal(0, 4), 4, normal(4), normal(4)), label="empty")
    yield bad(ShapeError, "normalized_shape", normal(3, 4), 3)
    yield bad(ShapeError, "normalized_shape", normal(4), (3, 4))
    yield bad(ShapeError, "weight must have shape", normal(3, 4), 4, normal(3))
    yield bad(ArgumentError, "eps", normal(3, 4), 4, None, None, -1.0)


def _torch_layer_norm(
    torch: Any, x: Any, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    last = (shape,) if isinstance(shape, int) else shape
    # PyTorch's second derivative fails where there is no weight.
    weight = torch.ones(last, dtype=x.dtype) if weight is None else weight
    return torch.nn.functional.layer_norm(x, last, weight, bias, eps)


@composite(samples=_layer_norm_samples, peer=_torch_layer_norm)
def layer_norm(
    x: TensorLike,
    normalized_shape: int | Sequence[int],
    weight: TensorLike | None = None,
    bias: TensorLike | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalisation: ``(x − mean) / √(variance + ε) · weight + bias`` over the last axes.

    Source: J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016.

    Args:
        x: [..., *normalized_shape]. 16-bit floats are computed in float32.
        normalized_shape: extents of the last axes, over which mean and variance are taken.
        weight: of ``normalized_shape``; 1 if not given.
        bias: of ``normalized_shape``; 0 if not given.
        eps: ε, added to the variance; not negative.

    Raises:
        ShapeError: ``x`` does not end in ``normalized_shape``, or a parameter has another shape.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> ndl.layer_norm(ndl.asarray([[1.0, 3.0], [5.0, 9.0]]), 2, eps=0.0)
        Tensor([[-1.,  1.],
                [-1.,  1.]])
    """
    t = as_float_tensor(x)
    last = _normalized_shape(t.shape, normalized_shape, "layer_norm")
    check_eps(eps, "layer_norm")
    return _affine_of(t, last, weight, bias, True, eps, "layer_norm")


def _rms_norm_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), 4))
    yield Sample((normal(2, 3, 4), (3, 4), normal(3, 4, seed=1)))
    yield Sample((normal(3, 4), 4, None, 0.1), label="eps")
    yield Sample((normal(0, 4), 4), label="empty")
    yield bad(ShapeError, "normalized_shape", normal(3, 4), 3)
    yield bad(ShapeError, "weight must have shape", normal(3, 4), 4, normal(3))
    yield bad(ArgumentError, "eps", normal(3, 4), 4, None, -1.0)


def _torch_rms_norm(torch: Any, x: Any, shape: Any, *rest: Any) -> Any:
    last = (shape,) if isinstance(shape, int) else shape
    return torch.nn.functional.rms_norm(x, last, *rest)


@composite(samples=_rms_norm_samples, peer=_torch_rms_norm)
def rms_norm(
    x: TensorLike,
    normalized_shape: int | Sequence[int],
    weight: TensorLike | None = None,
    eps: float | None = None,
) -> Tensor:
    """Root-mean-square normalisation: ``x / √(mean(x²) + ε) · weight`` over the last axes.

    Source: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019.

    Args:
        x: [..., *normalized_shape]. 16-bit floats are computed in float32.
        normalized_shape: extents of the last axes, over which the mean is taken.
        weight: of ``normalized_shape``; 1 if not given.
        eps: ε, not negative; the distance from 1 to the next number if not given (of float32 for
            16-bit floats), as in PyTorch.

    Raises:
        ShapeError: ``x`` does not end in ``normalized_shape``, or the weight has another shape.
        ArgumentError: ``eps`` is negative.

    Example:
        >>> ndl.rms_norm(ndl.asarray([3.0, 3.0]), 2, eps=0.0)
        Tensor([1., 1.])
    """
    t = as_float_tensor(x)
    last = _normalized_shape(t.shape, normalized_shape, "rms_norm")
    small = float(np.finfo(accumulation_dtype(t.dtype)).eps) if eps is None else eps
    check_eps(small, "rms_norm")
    return _affine_of(t, last, weight, None, False, small, "rms_norm")


__all__ = [
    "affine_normalize",
    "affine_normalize_slope",
    "affine_normalize_weight_slope",
    "layer_norm",
    "rms_norm",
]
