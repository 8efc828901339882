"""Arithmetic, element by element: + − × ÷, powers, rounding, extrema."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.errors import ArgumentError
from needle.ops.comparison import where
from needle.ops.elementwise import TensorLike, elementwise, widened
from needle.ops.engine import as_tensor
from needle.ops.precision import Precision
from needle.ops.record import composite
from needle.ops.samples import (
    Array,
    Sample,
    bad,
    binary_samples,
    bools,
    distinct,
    integers,
    normal,
    unary_samples,
    uniform,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from needle.tensor import Tensor

NUMBERS = ("integer", "float")


@elementwise(
    np.add,
    commutes=True,
    vjp={"x": lambda g: g, "y": lambda g: g},
    lower=lambda b, x, y: b.add(x, y),
)
def add(x: TensorLike, y: TensorLike) -> Tensor:
    """Sum of two tensors: ``x + y``.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.add(ndl.arange(3), 0.5)
        Tensor([0.5, 1.5, 2.5])
    """


@elementwise(
    np.subtract,
    takes=NUMBERS,
    aliases=("sub",),
    vjp={"x": lambda g: g, "y": lambda g: -g},
    lower=lambda b, x, y: b.sub(x, y),
)
def subtract(x: TensorLike, y: TensorLike) -> Tensor:
    """Difference of two tensors: ``x − y``.

    Args:
        x: integers or floats of any shape.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.
        DTypeError: both are bool (use ``logical_xor``).

    Example:
        >>> ndl.subtract(ndl.arange(3), 1)
        Tensor([-1,  0,  1], dtype=int64)
    """


@elementwise(
    np.multiply,
    commutes=True,
    aliases=("mul",),
    vjp={"x": lambda g, y: g * y, "y": lambda g, x: g * x},
    lower=lambda b, x, y: b.mul(x, y),
)
def multiply(x: TensorLike, y: TensorLike) -> Tensor:
    """Product of two tensors, element by element: ``x · y``.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.multiply(ndl.arange(3), ndl.arange(3))
        Tensor([0, 1, 4], dtype=int64)
    """


@elementwise(
    np.divide,
    to_float=True,
    aliases=("div", "true_divide"),
    vjp={"x": lambda g, y: g / y, "y": lambda g, out, y: -g * out / y},
    samples=binary_samples(second=(0.5, 3.0)),
    lower=lambda b, x, y: b.div(x, y),
    exact=True,
)
def divide(x: TensorLike, y: TensorLike) -> Tensor:
    """Quotient of two tensors: ``x / y``; integers are converted to float32 first.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``. Division by zero gives ±inf or NaN.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.divide(1, ndl.arange(1, 3))
        Tensor([1. , 0.5])
    """


def _integer_pairs() -> Iterable[Sample]:
    yield Sample((integers(-9, 10, 3, 4), integers(1, 5, 4)), label="integers")
    yield Sample((integers(-9, 10, 3), -2), label="negative divisor")
    yield Sample((uniform(-9, 9, 3, 4), uniform(0.5, 3, 4)), label="floats", is_smooth=False)
    divisor = uniform(1, 3, 4)
    quotient = integers(-3, 4, 3, 4) + uniform(0.3, 0.7, 3, 4)  # far from the steps
    yield Sample((quotient * divisor, divisor), label="between steps")
    yield Sample((uniform(-9, 9, 0), 2.0), label="empty", is_smooth=False)
    yield Sample((np.array([5.0, np.inf, np.nan, -5.0]), 3.0), label="special", is_smooth=False)
    yield bad(ArgumentError, "zero", integers(1, 5, 3), 0)


def _division_by_zero(name: str) -> Callable[..., Exception]:
    # NumPy answers 0 for an integer divided by zero, with a warning; a silently wrong result.
    def fault(value: object = 0, place: object = ()) -> Exception:
        return ArgumentError(f"{name}: an integer is divided by zero; test the divisor first")

    return fault


def _nonzero(function: np.ufunc, name: str) -> object:
    fault = _division_by_zero(name)

    def compute(x: Array, y: Array) -> Array:
        if x.dtype.kind in "iu" and not y.all():
            raise fault()
        return function(x, y)

    return compute


def _lower_floor_divide(b: Any, x: Any, y: Any) -> Any:
    if not x.is_float:
        b.refuse(b.equal(y, b.like(0, y)), y)
    return b.floor_divide(x, y)


def _lower_remainder(b: Any, x: Any, y: Any) -> Any:
    if not x.is_float:
        b.refuse(b.equal(y, b.like(0, y)), y)
    return b.remainder(x, y)


@elementwise(
    _nonzero(np.floor_divide, "floor_divide"),  # type: ignore[arg-type]
    takes=NUMBERS,
    vjp={"x": lambda g, x: x * 0, "y": lambda g, y: y * 0},
    samples=_integer_pairs,
    lower=_lower_floor_divide,
    fault=_division_by_zero("floor_divide"),
)
def floor_divide(x: TensorLike, y: TensorLike) -> Tensor:
    """Quotient rounded towards minus infinity: ``⌊x / y⌋``. Its derivative is zero.

    Args:
        x: integers or floats of any shape.
        y: a shape that broadcasts with ``x``.

    Raises:
        ArgumentError: an integer is divided by zero.
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.floor_divide(ndl.asarray([7, -7]), 2)
        Tensor([ 3, -4], dtype=int64)
    """


@elementwise(
    _nonzero(np.remainder, "remainder"),  # type: ignore[arg-type]
    takes=NUMBERS,
    vjp={"x": lambda g: g, "y": lambda g, x, y: -g * floor_divide(x, y)},
    samples=_integer_pairs,
    lower=_lower_remainder,
    fault=_division_by_zero("remainder"),
)
def remainder(x: TensorLike, y: TensorLike) -> Tensor:
    """Remainder with the sign of the divisor: ``x − ⌊x / y⌋ · y``.

    Args:
        x: integers or floats of any shape.
        y: a shape that broadcasts with ``x``.

    Raises:
        ArgumentError: an integer is divided by zero.
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.remainder(ndl.asarray([7, -7]), 3)
        Tensor([1, 2], dtype=int64)
    """


def _negative_power(value: object = -1, place: object = ()) -> Exception:
    return ArgumentError("pow: integers to negative powers are no integers; convert x to float")


def _power(x: Array, y: Array) -> Array:
    if x.dtype.kind == "i" and (y < 0).any():
        raise _negative_power()
    return np.power(x, y)


def _lower_power(b: Any, x: Any, y: Any) -> Any:
    if y.is_signed:
        b.refuse(b.less(y, b.like(0, y)), y)
    return b.power(x, y)


def _power_samples() -> Iterable[Sample]:
    yield from binary_samples(0.3, 3.0, second=(-2.0, 2.0))()
    yield Sample((uniform(-2, 2, 3, 4), 2), label="square")
    yield Sample((uniform(-2, 2, 3, 4), 3.0), label="cube")
    yield Sample((uniform(0.2, 2, 5), -1), label="reciprocal")
    yield Sample((2.0, uniform(-2, 2, 3)), label="number base", has_peer=False)
    yield Sample((integers(-4, 5, 3, 4), 3), label="integers")
    yield bad(ArgumentError, "negative powers", integers(1, 5, 3), integers(-3, 0, 3))


@elementwise(
    _power,
    takes=NUMBERS,
    aliases=("power",),
    # Where the exponent is 0 the derivative is 0, also at x = 0 where x**(y − 1) is infinite; where
    # the base is 0, the derivative by a positive exponent is 0, not 0 · log 0.
    vjp={
        "x": lambda g, x, y: g * where(y == 0, 0.0, y * x ** where(y == 0, 1.0, y - 1)),
        "y": lambda g, out, x: g * out * where(x == 0, 0.0, where(x == 0, 1.0, x).log()),
    },
    samples=_power_samples,
    lower=_lower_power,
    fault=_negative_power,
    precision=Precision.FULL,
    exact=False,
)
def pow(x: TensorLike, y: TensorLike) -> Tensor:
    """Power: ``x ** y``.

    Args:
        x: integers or floats of any shape.
        y: a shape that broadcasts with ``x``. A negative base with a fractional exponent gives NaN.

    Raises:
        ArgumentError: integers with negative exponents.
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.pow(ndl.asarray([1.0, 2.0, 3.0]), 2)
        Tensor([1., 4., 9.])
    """


@elementwise(
    np.negative,
    takes=NUMBERS,
    aliases=("neg",),
    vjp={"x": lambda g: -g},
    lower=lambda b, x: b.neg(x),
    chooses=True,
)
def negative(x: TensorLike) -> Tensor:
    """Negation: ``−x``.

    Args:
        x: integers or floats of any shape.

    Example:
        >>> ndl.negative(ndl.arange(3))
        Tensor([ 0, -1, -2], dtype=int64)
    """


@elementwise(
    np.absolute,
    takes=NUMBERS,
    aliases=("absolute",),
    vjp={"x": lambda g, x: g * x.sign()},
    lower=lambda b, x: b.absolute(x),
    chooses=True,
)
def abs(x: TensorLike) -> Tensor:
    """Absolute value: ``|x|``; the derivative at 0 is taken as 0.

    Args:
        x: integers or floats of any shape.

    Example:
        >>> ndl.abs(ndl.asarray([-1.5, 2.0]))
        Tensor([1.5, 2. ])
    """


@elementwise(
    np.square,
    takes=NUMBERS,
    vjp={"x": lambda g, x: g * (x * 2)},
    lower=lambda b, x: b.mul(x, x),
)
def square(x: TensorLike) -> Tensor:
    """Square: ``x²``.

    Args:
        x: integers or floats of any shape.

    Example:
        >>> ndl.square(ndl.asarray([-1.5, 2.0]))
        Tensor([2.25, 4.  ])
    """


def _torch_sign(torch: Any, x: Any) -> Any:
    return torch.where(x != x, x, torch.sign(x))  # PyTorch's own is 0 for NaN


@elementwise(
    widened(np.sign),
    takes=NUMBERS,
    vjp={"x": lambda g: g * 0},
    peer=_torch_sign,
    lower=lambda b, x: b.sign(x),
)
def sign(x: TensorLike) -> Tensor:
    """Sign: −1, 0 or 1; NaN stays NaN. Its derivative is zero.

    Args:
        x: integers or floats of any shape.

    Example:
        >>> ndl.sign(ndl.asarray([-1.5, 0.0, 2.0]))
        Tensor([-1.,  0.,  1.])
    """


@elementwise(
    np.floor,
    takes=NUMBERS,
    vjp={"x": lambda g: g * 0},
    lower=lambda b, x: b.floor(x),
)
def floor(x: TensorLike) -> Tensor:
    """Largest integer not above: ``⌊x⌋``, in the dtype of ``x``. Its derivative is zero.

    Args:
        x: integers or floats of any shape.

    Example:
        >>> ndl.floor(ndl.asarray([-1.5, 2.7]))
        Tensor([-2.,  2.])
    """


@elementwise(
    np.ceil,
    takes=NUMBERS,
    vjp={"x": lambda g: g * 0},
    lower=lambda b, x: b.ceil(x),
)
def ceil(x: TensorLike) -> Tensor:
    """Smallest integer not below: ``⌈x⌉``, in the dtype of ``x``. Its derivative is zero.

    Args:
        x: integers or floats of any shape.

    Example:
        >>> ndl.ceil(ndl.asarray([-1.5, 2.2]))
        Tensor([-1.,  3.])
    """


@elementwise(
    np.trunc,
    takes=NUMBERS,
    vjp={"x": lambda g: g * 0},
    lower=lambda b, x: b.trunc(x),
)
def trunc(x: TensorLike) -> Tensor:
    """The integer next to ``x`` towards zero, in the dtype of ``x``. Its derivative is zero.

    Args:
        x: integers or floats of any shape.

    Example:
        >>> ndl.trunc(ndl.asarray([-1.5, 2.7]))
        Tensor([-1.,  2.])
    """


def _round(x: Array) -> Array:
    return np.rint(x) if x.dtype.kind not in "iu" else x.copy()  # NumPy would return floats


def _round_samples() -> Iterable[Sample]:
    yield from unary_samples()()
    yield Sample((integers(-9, 10, 5),), label="integers")


@elementwise(
    _round,
    takes=NUMBERS,
    vjp={"x": lambda g: g * 0},
    samples=_round_samples,
    peer="round",
    lower=lambda b, x: b.round_even(x),
)
def round(x: TensorLike) -> Tensor:
    """Nearest integer, halves to the even one, in the dtype of ``x``. Its derivative is zero.

    Args:
        x: integers or floats of any shape.

    Example:
        >>> ndl.round(ndl.asarray([0.5, 1.5, -1.2]))
        Tensor([ 0.,  2., -1.])
    """


def _extremum_samples() -> Iterable[Sample]:
    yield from binary_samples()()
    yield Sample((np.array([1.0, 2.0]), np.array([1.0, 3.0])), label="tie", is_smooth=False)
    yield Sample((bools(3, 4), bools(4)), label="bool")


def _torch_extremum(name: str) -> Callable[..., Any]:
    def peer(torch: Any, x: Any, y: Any) -> Any:
        return getattr(torch, name)(x, torch.as_tensor(y, dtype=x.dtype))

    return peer


# Where both are equal each gets half, so that the derivatives still add up to one. A NaN among the
# two is the result; it passes the cotangent on, and does not hide behind a zero.
@elementwise(
    np.maximum,
    vjp={
        "x": lambda g, x, y: where(x == y, g * 0.5, where(x < y, 0.0, g)),
        "y": lambda g, x, y: where(x == y, g * 0.5, where(y < x, 0.0, g)),
    },
    samples=_extremum_samples,
    peer=_torch_extremum("maximum"),
    lower=lambda b, x, y: b.maximum(x, y),
    chooses=True,
)
def maximum(x: TensorLike, y: TensorLike) -> Tensor:
    """The larger of two, element by element; NaN if one is NaN.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``. Where both are equal each gets half of the gradient.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.maximum(ndl.arange(3), 1)
        Tensor([1, 1, 2], dtype=int64)
    """


@elementwise(
    np.minimum,
    vjp={
        "x": lambda g, x, y: where(x == y, g * 0.5, where(x > y, 0.0, g)),
        "y": lambda g, x, y: where(x == y, g * 0.5, where(y > x, 0.0, g)),
    },
    samples=_extremum_samples,
    peer=_torch_extremum("minimum"),
    lower=lambda b, x, y: b.minimum(x, y),
    chooses=True,
)
def minimum(x: TensorLike, y: TensorLike) -> Tensor:
    """The smaller of two, element by element; NaN if one is NaN.

    Args:
        x: any shape and dtype.
        y: a shape that broadcasts with ``x``. Where both are equal each gets half of the gradient.

    Raises:
        ShapeError: the shapes do not broadcast.

    Example:
        >>> ndl.minimum(ndl.arange(3), 1)
        Tensor([0, 1, 1], dtype=int64)
    """


def _clip_samples() -> Iterable[Sample]:
    yield Sample((distinct(3, 4), -0.4, 0.3))
    yield Sample((distinct(3, 4), None, 0.3), label="max only")
    yield Sample((distinct(3, 4), -0.2), label="min only")
    yield Sample((distinct(3, 4), normal(4) - 2, normal(4) + 2), label="tensor bounds")
    yield Sample((integers(-9, 9, 5), -3, 4), label="integers")
    yield Sample((np.array([np.nan, np.inf, -np.inf]), -1.0, 1.0), label="special", is_smooth=False)
    yield bad(ArgumentError, "min and max", distinct(3))


@composite(samples=_clip_samples, aliases=("clamp",), is_method=True, peer="clamp")
def clip(x: TensorLike, min: TensorLike | None = None, max: TensorLike | None = None) -> Tensor:
    """Limit to an interval: ``min`` where ``x < min``, ``max`` where ``x > max``, else ``x``.

    Args:
        x: any shape, integers or floats. NaN stays NaN.
        min: lower bound, or None for none; broadcasts with ``x``.
        max: upper bound, or None for none; broadcasts with ``x``.

    Raises:
        ArgumentError: neither bound is given.

    Example:
        >>> ndl.clip(ndl.arange(5), 1, 3)
        Tensor([1, 1, 2, 3, 3], dtype=int64)
    """
    if min is None and max is None:
        raise ArgumentError("clip: min and max are both None; give at least one bound")
    result = as_tensor(x)
    if min is not None:
        result = where(result < min, min, result)
    if max is not None:
        result = where(result > max, max, result)
    return result


__all__ = [
    "abs",
    "add",
    "ceil",
    "clip",
    "divide",
    "floor",
    "floor_divide",
    "maximum",
    "minimum",
    "multiply",
    "negative",
    "pow",
    "remainder",
    "round",
    "sign",
    "square",
    "subtract",
    "trunc",
]
