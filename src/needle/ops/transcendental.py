"""Exponentials, logarithms, roots, trigonometric and error functions, element by element."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from needle.ops.comparison import where
from needle.ops.elementwise import TensorLike, elementwise, widened
from needle.ops.precision import Precision
from needle.ops.samples import Array, binary_samples, unary_samples

if TYPE_CHECKING:
    from needle.tensor import Tensor

_positive = unary_samples(0.3, 4.0)


@elementwise(
    np.exp,
    to_float=True,
    vjp={"x": lambda g, out: g * out},
    lower=lambda b, x: b.exp(x),
    precision=Precision.FULL,
)
def exp(x: TensorLike) -> Tensor:
    """Exponential: ``eˣ``.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.exp(ndl.asarray([0.0, 1.0]))
        Tensor([1.      , 2.718282])
    """


@elementwise(
    np.expm1,
    to_float=True,
    vjp={"x": lambda g, out: g * (out + 1)},
    lower=lambda b, x: b.expm1(x),
    precision=Precision.FULL,
)
def expm1(x: TensorLike) -> Tensor:
    """Exponential minus one, exact near 0: ``eˣ − 1``.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.expm1(ndl.asarray([0.0, 0.5]))
        Tensor([0.      , 0.648721])
    """


@elementwise(
    np.log,
    to_float=True,
    vjp={"x": lambda g, x: g / x},
    samples=_positive,
    lower=lambda b, x: b.log(x),
    precision=Precision.FULL,
)
def log(x: TensorLike) -> Tensor:
    """Natural logarithm: ``ln x``; −∞ at 0, NaN below.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.log(ndl.asarray([1.0, 10.0]))
        Tensor([0.      , 2.302585])
    """


@elementwise(
    np.log1p,
    to_float=True,
    vjp={"x": lambda g, x: g / (x + 1)},
    samples=unary_samples(-0.7, 3.0),
    lower=lambda b, x: b.log1p(x),
    precision=Precision.FULL,
)
def log1p(x: TensorLike) -> Tensor:
    """Natural logarithm of one more, exact near 0: ``ln(1 + x)``.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.log1p(ndl.asarray([0.0, 1.0]))
        Tensor([0.      , 0.693147])
    """


@elementwise(
    np.log2,
    to_float=True,
    vjp={"x": lambda g, x: g / (x * math.log(2))},
    samples=_positive,
    lower=lambda b, x: b.log2(x),
    precision=Precision.FULL,
)
def log2(x: TensorLike) -> Tensor:
    """Logarithm to base 2.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.log2(ndl.asarray([1.0, 8.0]))
        Tensor([0., 3.])
    """


@elementwise(
    np.sqrt,
    to_float=True,
    vjp={"x": lambda g, out: g * 0.5 / out},
    samples=_positive,
    lower=lambda b, x: b.sqrt(x),
    precision=Precision.FULL,
    exact=True,
)
def sqrt(x: TensorLike) -> Tensor:
    """Square root: ``√x``; NaN below 0.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.sqrt(ndl.asarray([4.0, 2.0]))
        Tensor([2.      , 1.414214])
    """


def _rsqrt(x: Array) -> Array:
    return np.reciprocal(np.sqrt(x))


@elementwise(
    widened(_rsqrt),
    to_float=True,
    vjp={"x": lambda g, out: g * (out * out * out * -0.5)},
    samples=_positive,
    lower=lambda b, x: b.rsqrt(x),
    precision=Precision.FULL,
)
def rsqrt(x: TensorLike) -> Tensor:
    """Reciprocal of the square root: ``1 / √x``; ∞ at 0, NaN below.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.rsqrt(ndl.asarray([4.0, 0.25]))
        Tensor([0.5, 2. ])
    """


@elementwise(
    np.reciprocal,
    to_float=True,
    vjp={"x": lambda g, out: -g * out * out},
    samples=unary_samples(0.3, 3.0),
    lower=lambda b, x: b.reciprocal(x),
    precision=Precision.FULL,
    exact=True,
)
def reciprocal(x: TensorLike) -> Tensor:
    """Reciprocal: ``1 / x``.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.reciprocal(ndl.asarray([4.0, 0.5]))
        Tensor([0.25, 2.  ])
    """


@elementwise(
    widened(np.hypot),
    to_float=True,
    # At the origin the slope depends on the direction; 0 lies between all of them.
    vjp={
        "x": lambda g, out, x: where(out == 0, 0.0, g * x / where(out == 0, 1.0, out)),
        "y": lambda g, out, y: where(out == 0, 0.0, g * y / where(out == 0, 1.0, out)),
    },
    # Not at the origin, where PyTorch's derivative is NaN.
    samples=binary_samples(0.3, 3.0, special=(1.0, -1.0, np.inf, -np.inf, np.nan, 6.0, -100.0)),
    peer=lambda torch, x, y: torch.hypot(x, torch.as_tensor(y, dtype=x.dtype)),
    lower=lambda b, x, y: b.hypot(x, y),
    precision=Precision.FULL,
)
def hypot(x: TensorLike, y: TensorLike) -> Tensor:
    """Length of the hypotenuse: ``√(x² + y²)``, without overflow on the way.

    Args:
        x: any shape; integers become float32. The derivative at ``x = y = 0`` is taken as 0.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.hypot(ndl.asarray([3.0, 5.0]), ndl.asarray([4.0, 12.0]))
        Tensor([ 5., 13.])
    """


@elementwise(
    np.sin,
    to_float=True,
    vjp={"x": lambda g, x: g * x.cos()},
    lower=lambda b, x: b.sin(x),
)
def sin(x: TensorLike) -> Tensor:
    """Sine of an angle in radians.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.sin(ndl.asarray([0.0, 0.5]))
        Tensor([0.      , 0.479426])
    """


@elementwise(
    np.cos,
    to_float=True,
    vjp={"x": lambda g, x: -g * sin(x)},
    lower=lambda b, x: b.cos(x),
)
def cos(x: TensorLike) -> Tensor:
    """Cosine of an angle in radians.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.cos(ndl.asarray([0.0, 0.5]))
        Tensor([1.      , 0.877583])
    """


@elementwise(
    np.tan,
    to_float=True,
    vjp={"x": lambda g, out: g * (out * out + 1)},
    samples=unary_samples(-1.2, 1.2),
    lower=lambda b, x: b.tan(x),
    precision=Precision.FULL,
)
def tan(x: TensorLike) -> Tensor:
    """Tangent of an angle in radians.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.tan(ndl.asarray([0.0, 0.5]))
        Tensor([0.      , 0.546302])
    """


@elementwise(
    np.tanh,
    to_float=True,
    vjp={"x": lambda g, out: g * (1 - out * out)},
    lower=lambda b, x: b.tanh(x),
)
def tanh(x: TensorLike) -> Tensor:
    """Hyperbolic tangent: ``(eˣ − e⁻ˣ) / (eˣ + e⁻ˣ)``.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.tanh(ndl.asarray([0.0, 1.0]))
        Tensor([0.      , 0.761594])
    """


# Rational approximations on three intervals: W. J. Cody, "Rational Chebyshev approximations for the
# error function", Mathematics of Computation 23 (1969). Relative error below 1e-18 before rounding.
_ERF_P = (1.85777706184603153e-1, 3.16112374387056560e0, 1.13864154151050156e2,
          3.77485237685302021e2, 3.20937758913846947e3)  # fmt: skip
_ERF_Q = (1.0, 2.36012909523441209e1, 2.44024637934444173e2,
          1.28261652607737228e3, 2.84423683343917062e3)  # fmt: skip
_ERFC_P = (2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594e0,
           6.61191906371416295e1, 2.98635138197400131e2, 8.81952221241769090e2,
           1.71204761263407058e3, 2.05107837782607147e3, 1.23033935479799725e3)  # fmt: skip
_ERFC_Q = (1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2,
           1.62138957456669019e3, 3.29079923573345963e3, 4.36261909014324716e3,
           3.43936767414372164e3, 1.23033935480374942e3)  # fmt: skip


def _polynomial(x: Array, coefficients: tuple[float, ...]) -> Array:
    total = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total *= x
        total += x.dtype.type(c)
    return total


def _erf(x: Array) -> Array:
    x = np.asarray(x)
    kind = x.dtype.type
    a = np.abs(x)
    t = np.minimum(a, kind(0.46875)) ** 2
    inner = x * (_polynomial(t, _ERF_P) / _polynomial(t, _ERF_Q))
    # From 6 on erf is 1 to the last bit; the second interval serves until there in both precisions.
    b = np.clip(a, kind(0.46875), kind(6.0))
    outer = 1 - np.exp(-b * b) * (_polynomial(b, _ERFC_P) / _polynomial(b, _ERFC_Q))
    return np.where(a <= kind(0.46875), inner, np.copysign(outer, x)) + x * kind(0)


def _erf_of_infinity(x: Array) -> Array:
    # x·0 above carries NaN through, and would turn ±∞ into NaN.
    return _erf(np.clip(x, x.dtype.type(-10), x.dtype.type(10)))


@elementwise(
    widened(_erf_of_infinity),
    to_float=True,
    vjp={"x": lambda g, x: g * (exp(-(x * x)) * (2 / math.sqrt(math.pi)))},
    lower=lambda b, x: b.erf(x),
)
def erf(x: TensorLike) -> Tensor:
    """Error function: ``2/√π ∫₀ˣ exp(−t²) dt``.

    Args:
        x: any shape; integers become float32.

    Example:
        >>> ndl.erf(ndl.asarray([0.0, 1.0]))
        Tensor([0.      , 0.842701])
    """


__all__ = [
    "cos",
    "erf",
    "exp",
    "expm1",
    "hypot",
    "log",
    "log1p",
    "log2",
    "reciprocal",
    "rsqrt",
    "sin",
    "sqrt",
    "tan",
    "tanh",
]
