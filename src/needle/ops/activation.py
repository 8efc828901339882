"""Activation functions, element by element."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import float_dtype
from needle.errors import ArgumentError
from needle.ops.comparison import where
from needle.ops.elementwise import TensorLike, constant_like, elementwise, widened
from needle.ops.engine import apply, as_float_tensor, widen
from needle.ops.precision import Precision
from needle.ops.record import Kind, composite, op
from needle.ops.samples import (
    SPECIAL_VALUES,
    Array,
    Sample,
    bad,
    distinct,
    integers,
    normal,
    unary_samples,
)
from needle.ops.transcendental import erf, exp, tanh
from needle.shapes import Spec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from needle.tensor import Tensor


def _sigmoid(x: Array) -> Array:
    # Where e⁻ˣ overflows the result is 0: the kernels give the subnormal number that it should be.
    one = constant_like(x, 1)
    return one / (one + np.exp(-x))


@elementwise(
    widened(_sigmoid),
    to_float=True,
    vjp={"x": lambda g, out: g * (out * (1 - out))},
    lower=lambda b, x: b.sigmoid(x),
)
def sigmoid(x: TensorLike) -> Tensor:
    """Logistic sigmoid: ``1 / (1 + e⁻ˣ)``.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.sigmoid(ndl.asarray([0.0, 2.0]))
        Tensor([0.5     , 0.880797])
    """


def _relu(x: Array) -> Array:
    return np.maximum(x, constant_like(x, 0))


def _relu_samples() -> Iterable[Sample]:
    yield Sample((distinct(3, 4),))
    yield Sample((normal(4, 6)[::2, ::-3],), label="strided")
    yield Sample((normal(0, 2),), label="empty")
    yield Sample((integers(-3, 4, 5),), label="integers")
    yield Sample((SPECIAL_VALUES,), label="special", is_smooth=False)


@elementwise(
    _relu,
    takes=("integer", "float"),
    vjp={"x": lambda g, out: where(out > 0, g, 0.0)},
    samples=_relu_samples,
    peer="relu",
    lower=lambda b, x: b.rectified(x),
    chooses=True,
)
def relu(x: TensorLike) -> Tensor:
    """Rectified linear unit: ``max(x, 0)``; the derivative at 0 is taken as 0.

    Args:
        x: integers or floats of any shape. NaN stays NaN.

    Example:
        >>> ndl.relu(ndl.asarray([-1.0, 2.0]))
        Tensor([0., 2.])
    """


def _softplus(x: Array) -> Array:
    return np.maximum(x, constant_like(x, 0)) + np.log1p(np.exp(-np.abs(x)))


@elementwise(
    widened(_softplus),
    to_float=True,
    vjp={"x": lambda g, x: g * sigmoid(x)},
    peer="nn.functional.softplus",
    lower=lambda b, x: b.softplus(x),
    precision=Precision.FULL,
)
def softplus(x: TensorLike) -> Tensor:
    """Smooth rectifier: ``ln(1 + eˣ)``.

    Args:
        x: any shape; integers become float32. No overflow for large ``x``.

    Example:
        >>> ndl.softplus(ndl.asarray([0.0, 100.0]))
        Tensor([  0.693147, 100.      ])
    """


def _infer_activation(x: Spec, **attrs: Any) -> Spec:
    return Spec(x.shape, float_dtype(x.dtype))


def _wide(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``function`` of tensors computing in float32 where they are 16-bit floats."""

    @functools.wraps(function)
    def compute(*tensors: Tensor, **attrs: Any) -> Tensor:
        result = function(*map(widen, tensors), **attrs)
        return result.astype(tensors[0].dtype, copy=False)

    return compute


def _silu(x: Array) -> Array:
    return x * _sigmoid(x)


def _silu_vjp(g: Tensor, x: Tensor) -> Tensor:
    wide = widen(x)
    s = sigmoid(wide)
    return (widen(g) * (s * (wide * (1 - s) + 1))).astype(x.dtype, copy=False)


@op(
    kind=Kind.ELEMENTWISE,
    infer=_infer_activation,
    reference=widened(_silu),
    decompose=_wide(lambda x: x * sigmoid(x)),
    vjp={"x": _silu_vjp},
    samples=unary_samples(),
    peer="nn.functional.silu",
    precision=Precision.FULL,
)
def silu(x: TensorLike) -> Tensor:
    """Sigmoid linear unit: ``x · sigmoid(x)`` (also called swish).

    Source: S. Elfwing, E. Uchibe, K. Doya, "Sigmoid-weighted linear units", 2017.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.silu(ndl.asarray([0.0, 2.0]))
        Tensor([0.      , 1.761594])
    """
    return apply(silu, as_float_tensor(x))


#: The argument of the tanh in GELU's approximation is ``_SCALE · (x + _CUBIC · x³)``.
_SCALE, _CUBIC = math.sqrt(2 / math.pi), 0.044715


def _gelu(x: Array, *, approximate: str) -> Array:
    half, one = constant_like(x, 0.5), constant_like(x, 1)
    if approximate == "none":
        return x * (erf.op.reference(x * constant_like(x, math.sqrt(0.5))) * half + half)
    inner = (x + x * x * x * constant_like(x, _CUBIC)) * constant_like(x, _SCALE)
    return x * half * (np.tanh(inner) + one)


def _gelu_by_parts(x: Tensor, *, approximate: str) -> Tensor:
    if approximate == "none":
        return x * (erf(x * math.sqrt(0.5)) * 0.5 + 0.5)
    return x * 0.5 * (tanh((x + x * x * x * _CUBIC) * _SCALE) + 1)


def _gelu_vjp(g: Tensor, x: Tensor, approximate: str) -> Tensor:
    wide = widen(x)
    if approximate == "none":
        density = exp(wide * wide * -0.5) * (1 / math.sqrt(2 * math.pi))
        slope = (erf(wide * math.sqrt(0.5)) * 0.5 + 0.5) + wide * density
    else:
        t = tanh((wide + wide * wide * wide * _CUBIC) * _SCALE)
        inner = (wide * wide * (3 * _CUBIC) + 1) * _SCALE
        slope = (t + 1) * 0.5 + wide * 0.5 * (1 - t * t) * inner
    return (widen(g) * slope).astype(x.dtype, copy=False)


def _gelu_samples() -> Iterable[Sample]:
    yield from unary_samples()()
    yield Sample((normal(3, 4),), {"approximate": "tanh"}, label="tanh")
    yield bad(ArgumentError, "approximate", normal(3), approximate="erf")


@op(
    kind=Kind.ELEMENTWISE,
    infer=_infer_activation,
    reference=widened(_gelu),
    decompose=_wide(_gelu_by_parts),
    vjp={"x": _gelu_vjp},
    samples=_gelu_samples,
    flops=lambda x, out, **attrs: 8 * x.size,
    peer="nn.functional.gelu",
    precision=Precision.FULL,
)
def gelu(x: TensorLike, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit: ``x · Φ(x)``, Φ the normal distribution function.

    With ``approximate="tanh"``: ``x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))``.

    Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016.

    Args:
        x: any shape; integers become float32.
        approximate: "none" or "tanh".

    Raises:
        ArgumentError: another value of ``approximate``.

    Example:
        >>> ndl.gelu(ndl.asarray([0.0, 1.0]))
        Tensor([0.      , 0.841345])
    """
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")
    return apply(gelu, as_float_tensor(x), approximate=approximate)


def _leaky_samples() -> Iterable[Sample]:
    yield Sample((distinct(3, 4),))
    yield Sample((distinct(3, 4), 0.2), label="slope")


@composite(samples=_leaky_samples, is_method=True, peer="nn.functional.leaky_relu")
def leaky_relu(x: TensorLike, negative_slope: float = 0.01) -> Tensor:
    """Rectifier that lets a little through below 0: ``x`` where positive, else ``slope · x``.

    Args:
        x: any shape; integers become float32.
        negative_slope: the slope below 0.

    Example:
        >>> ndl.leaky_relu(ndl.asarray([-1.0, 2.0]))
        Tensor([-0.01,  2.  ])
    """
    t = as_float_tensor(x)
    return where(t > 0, t, t * negative_slope)


__all__ = ["gelu", "leaky_relu", "relu", "sigmoid", "silu", "softplus"]
