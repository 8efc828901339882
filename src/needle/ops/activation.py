"""Activation functions, element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from needle.errors import ArgumentError
from needle.ops.comparison import where
from needle.ops.elementwise import TensorLike, constant_like, elementwise, widened
from needle.ops.engine import as_float_tensor
from needle.ops.precision import Precision
from needle.ops.record import composite
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
from needle.ops.transcendental import erf, tanh

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _sigmoid(x: Array) -> Array:
    # Where e⁻ˣ overflows the result is 0; it would be below the smallest normal number.
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


@composite(
    samples=unary_samples(), is_method=True, peer="nn.functional.silu", precision=Precision.FULL
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
    t = as_float_tensor(x)
    return t * sigmoid(t)


def _gelu_samples() -> Iterable[Sample]:
    yield from unary_samples()()
    yield Sample((normal(3, 4),), {"approximate": "tanh"}, label="tanh")
    yield bad(ArgumentError, "approximate", normal(3), approximate="erf")


@composite(
    samples=_gelu_samples, is_method=True, peer="nn.functional.gelu", precision=Precision.FULL
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
    t = as_float_tensor(x)
    if approximate == "none":
        return t * (erf(t * math.sqrt(0.5)) * 0.5 + 0.5)
    if approximate == "tanh":
        return t * 0.5 * (tanh((t + t * t * t * 0.044715) * math.sqrt(2 / math.pi)) + 1)
    raise ArgumentError(f"gelu: approximate must be 'none' or 'tanh', got {approximate!r}")


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
