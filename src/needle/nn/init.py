"""Initial values of parameters.

Each initialiser comes twice: ``kaiming_uniform(shape, …)`` returns a new tensor, and
``kaiming_uniform_(tensor, …)``, PyTorch's spelling, overwrites one. Dense weights are [in, out],
convolutions' [out, in / groups, *kernel]; `fans` knows both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, cast

from needle import creation, dtypes, inplace, random
from needle.config import no_grad
from needle.devices import META, Device, as_device
from needle.dtypes import DType, as_dtype
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError
from needle.nn.quantile import normal_quantile
from needle.random import Generator
from needle.shapes import Shape, as_shape
from needle.tensor import Tensor

P = ParamSpec("P")
ShapeLike = int | Sequence[int]


@dataclass(frozen=True)
class _Defaults:
    dtype: DType | None = None
    device: Device | None = None
    generator: Generator | None = None


_NONE = _Defaults()
_defaults: ContextVar[_Defaults] = ContextVar("needle.nn.init.defaults", default=_NONE)


@contextmanager
def defaults(
    *, dtype: Any = None, device: Any = None, generator: Generator | None = None
) -> Iterator[None]:
    """Set what modules made inside of the ``with`` block use where they are not told otherwise.

    Args:
        dtype: dtype of floating parameters and buffers.
        device: where they live; ``"meta"`` builds a model of any size at once, without values.
        generator: what initial values are drawn from.

    Example:
        >>> with ndl.nn.defaults(device="meta", dtype="bfloat16"):
        ...     layer = ndl.nn.Linear(100_000, 100_000)
        >>> layer.weight.device.type, layer.weight.dtype.name
        ('meta', 'bfloat16')
    """
    outer = _defaults.get()
    token = _defaults.set(
        _Defaults(
            outer.dtype if dtype is None else as_dtype(dtype),
            outer.device if device is None else as_device(device),
            outer.generator if generator is None else generator,
        )
    )
    try:
        yield
    finally:
        _defaults.reset(token)


def _resolve(dtype: Any, device: Any) -> tuple[DType, Device]:
    chosen = _defaults.get()
    return (
        as_dtype(dtype) if dtype is not None else chosen.dtype or dtypes.DEFAULT_FLOAT,
        as_device(device) if device is not None else as_device(chosen.device),
    )


def _generator(generator: Generator | None) -> Generator | None:
    if generator is not None and not isinstance(generator, Generator):
        raise ArgumentTypeError(
            f"generator must be a needle.Generator, got {type(generator).__name__}; "
            "write ndl.Generator(seed)"
        )
    return generator if generator is not None else _defaults.get().generator


def _settled(values: Tensor) -> Tensor:
    """Return values in aligned memory of their own: parameters stay where they are made."""
    if values.device is META:
        return values
    with no_grad():
        return inplace.copy_(creation.zeros(values.shape, dtype=values.dtype), values)


def fans(shape: Sequence[int], layout: str | None = None) -> tuple[int, int]:
    """Return fan-in and fan-out: how many inputs an output sums over, and the other way round.

    Args:
        shape: shape of a weight.
        layout: "dense" for [in, out], "conv" for [out, in / groups, *kernel], "conv_transpose" for
            [in, out / groups, *kernel]; by the number of axes if not given: 2 are dense, more conv.

    Raises:
        ShapeError: fewer than two axes.
        ArgumentError: there is no such layout.

    Example:
        >>> ndl.nn.init.fans((784, 128)), ndl.nn.init.fans((64, 3, 7, 7))
        ((784, 128), (147, 3136))
    """
    if len(shape) < 2:
        raise ShapeError(
            f"fans: a weight has at least two axes, got shape {list(shape)}; "
            "initialise biases and scales with zeros, ones or constant"
        )
    chosen = layout or ("dense" if len(shape) == 2 else "conv")
    if chosen not in ("dense", "conv", "conv_transpose"):
        raise ArgumentError(
            f"fans: layout must be 'dense', 'conv' or 'conv_transpose', got {layout!r}"
        )
    area = math.prod(shape[2:])
    first, second = shape[0] * area, shape[1] * area
    return (second, first) if chosen == "conv" else (first, second)


def gain(nonlinearity: str, a: float | None = None) -> float:
    """Return the factor that keeps the variance through an activation (PyTorch's calculate_gain).

    Args:
        nonlinearity: "linear", "sigmoid", "tanh", "relu", "leaky_relu" or "selu".
        a: slope below 0 of leaky_relu; 0.01 if not given.

    Raises:
        ArgumentError: no factor is known for it.

    Example:
        >>> round(ndl.nn.init.gain("relu"), 4)
        1.4142
    """
    slope = 0.01 if a is None else a
    gains = {
        "linear": 1.0,
        "sigmoid": 1.0,
        "tanh": 5 / 3,
        "relu": math.sqrt(2),
        "leaky_relu": math.sqrt(2 / (1 + slope**2)),
        "selu": 3 / 4,
    }
    if nonlinearity not in gains:
        raise ArgumentError(
            f"gain: none is known for {nonlinearity!r}; there are {', '.join(gains)}. For GELU and "
            "SiLU 'relu' comes close"
        )
    return gains[nonlinearity]


def _in_place(
    function: Callable[Concatenate[ShapeLike, P], Tensor],
) -> Callable[Concatenate[Tensor, P], Tensor]:
    """Return the form that overwrites a tensor."""

    @functools.wraps(function)
    def fill(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> Tensor:
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(
                f"{function.__name__}_: needs a tensor to overwrite, got {type(tensor).__name__}; "
                f"{function.__name__}(shape) makes a new one"
            )
        kwargs["dtype"], kwargs["device"] = tensor.dtype, tensor.device
        values = function(tensor.shape, *args, **kwargs)
        with no_grad():
            return inplace.assign(tensor, values, fill.__name__)

    fill.__name__ = fill.__qualname__ = f"{function.__name__}_"
    fill.__doc__ = (
        f"Overwrite a tensor as `{function.__name__}` would fill a new one, and return it.\n\n"
        f"    Args:\n        tensor: what to overwrite, of any device and floating dtype.\n"
        f"        args: as for `{function.__name__}`, without the shape.\n"
        f"        kwargs: as for `{function.__name__}`.\n    "
    )
    return cast("Callable[Concatenate[Tensor, P], Tensor]", fill)


# Constants


def constant(shape: ShapeLike, value: float, *, dtype: Any = None, device: Any = None) -> Tensor:
    """All elements ``value``.

    Args:
        shape: shape of the result.
        value: the number.
        dtype: a dtype; the default one if not given.
        device: where the result lives.

    Example:
        >>> ndl.nn.init.constant(2, 0.5)
        Tensor([0.5, 0.5])
    """
    target, place = _resolve(dtype, device)
    return creation.full(as_shape(shape, "constant"), value, dtype=target, device=place)


def zeros(shape: ShapeLike, *, dtype: Any = None, device: Any = None) -> Tensor:
    """All elements 0: biases, running means.

    Args:
        shape: shape of the result.
        dtype: a dtype; the default one if not given.
        device: where the result lives.

    Example:
        >>> ndl.nn.init.zeros(2)
        Tensor([0., 0.])
    """
    return constant(shape, 0, dtype=dtype, device=device)


def ones(shape: ShapeLike, *, dtype: Any = None, device: Any = None) -> Tensor:
    """All elements 1: scales, running variances.

    Args:
        shape: shape of the result.
        dtype: a dtype; the default one if not given.
        device: where the result lives.

    Example:
        >>> ndl.nn.init.ones(2)
        Tensor([1., 1.])
    """
    return constant(shape, 1, dtype=dtype, device=device)


# Distributions


def uniform(
    shape: ShapeLike,
    low: float = 0.0,
    high: float = 1.0,
    *,
    dtype: Any = None,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform in [low, high).

    Args:
        shape: shape of the result.
        low: lower bound.
        high: upper bound.
        dtype: a floating dtype; the default one if not given.
        device: where the result lives.
        generator: what to draw from.

    Example:
        >>> bool((ndl.nn.init.uniform(100, -1, 1) >= -1).all())
        True
    """
    target, place = _resolve(dtype, device)
    return _settled(random.uniform(shape, low, high, target, _generator(generator), device=place))


def normal(
    shape: ShapeLike,
    mean: float = 0.0,
    std: float = 1.0,
    *,
    dtype: Any = None,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal with a mean and a standard deviation.

    Args:
        shape: shape of the result.
        mean: mean.
        std: standard deviation, at least 0.
        dtype: a floating dtype; the default one if not given.
        device: where the result lives.
        generator: what to draw from.

    Example:
        >>> ndl.nn.init.normal((2, 3), std=0.02).shape
        (2, 3)
    """
    target, place = _resolve(dtype, device)
    return _settled(random.normal(shape, mean, std, target, _generator(generator), device=place))


def truncated_normal(
    shape: ShapeLike,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    *,
    dtype: Any = None,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal, given that the value lies in [a, b]: ``mean + std · Φ⁻¹(u)``.

    u is uniform between the values of Φ at the bounds, so that one draw is enough however far out
    the bounds are. ``std`` is that of the normal distribution before truncation, as in PyTorch.

    Args:
        shape: shape of the result.
        mean: mean of the normal distribution.
        std: its standard deviation, more than 0.
        a: lower bound of the values (not in units of ``std``).
        b: upper bound.
        dtype: a floating dtype; the default one if not given.
        device: where the result lives.
        generator: what to draw from.

    Raises:
        ArgumentError: ``a ≥ b``; ``std`` is not positive; bounds beyond 38 standard deviations.

    Example:
        >>> x = ndl.nn.init.truncated_normal(1000, std=0.5, a=-1, b=1)
        >>> bool((x >= -1).all()), bool((x <= 1).all())
        (True, True)
    """
    if not a < b or not std > 0:
        raise ArgumentError(
            f"truncated_normal: needs a < b and std > 0, got a={a}, b={b}, std={std}"
        )
    target, place = _resolve(dtype, device)
    low, high = (a - mean) / std, (b - mean) / std
    # Φ has its precision in the lower tail; the upper one is its mirror image.
    flip = -1.0 if low > 0 else 1.0
    if flip < 0:
        low, high = -high, -low
    cdf = [0.5 * math.erfc(-z / math.sqrt(2)) for z in (low, high)]
    if cdf[1] < math.ulp(0.0):
        raise ArgumentError(
            f"truncated_normal: [{a}, {b}] lies too far out, {abs(high):.0f} standard deviations "
            f"from the mean {mean}, where float64 has no probabilities any more"
        )
    u = random.uniform(shape, cdf[0], cdf[1], dtypes.float64, _generator(generator), device=place)
    z = normal_quantile(u.clip(math.ulp(0.0), 1 - 2**-53)) * flip
    # Rounding, in Φ⁻¹ or to a narrow dtype, may step over a bound.
    return _settled((z * std + mean).clip(a, b).astype(target).clip(a, b))


# Scaled by fan


def xavier_uniform(
    shape: ShapeLike,
    gain: float = 1.0,
    *,
    layout: str | None = None,
    dtype: Any = None,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform in ±``gain · √(6 / (fan_in + fan_out))``: keeps the variance forward and backward.

    Source: X. Glorot, Y. Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", 2010.

    Args:
        shape: shape of a weight.
        gain: factor for the activation that follows, see `gain`.
        layout: see `fans`.
        dtype: a floating dtype; the default one if not given.
        device: where the result lives.
        generator: what to draw from.

    Raises:
        ShapeError: fewer than two axes.

    Example:
        >>> bool((abs(ndl.nn.init.xavier_uniform((50, 100))) <= 0.2).all())
        True
    """
    bound = gain * math.sqrt(6 / max(1, sum(fans(as_shape(shape, "xavier_uniform"), layout))))
    return uniform(shape, -bound, bound, dtype=dtype, device=device, generator=generator)


def xavier_normal(
    shape: ShapeLike,
    gain: float = 1.0,
    *,
    layout: str | None = None,
    dtype: Any = None,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal with standard deviation ``gain · √(2 / (fan_in + fan_out))``.

    Source: as `xavier_uniform`.

    Args:
        shape: shape of a weight.
        gain: factor for the activation that follows, see `gain`.
        layout: see `fans`.
        dtype: a floating dtype; the default one if not given.
        device: where the result lives.
        generator: what to draw from.

    Raises:
        ShapeError: fewer than two axes.

    Example:
        >>> ndl.nn.init.xavier_normal((50, 100)).shape
        (50, 100)
    """
    std = gain * math.sqrt(2 / max(1, sum(fans(as_shape(shape, "xavier_normal"), layout))))
    return normal(shape, 0.0, std, dtype=dtype, device=device, generator=generator)


def _kaiming_std(
    shape: ShapeLike, a: float, mode: str, nonlinearity: str, layout: str | None
) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"kaiming: mode must be 'fan_in' or 'fan_out', got {mode!r}")
    fan = fans(as_shape(shape, "kaiming"), layout)[mode == "fan_out"]
    return gain(nonlinearity, a) / math.sqrt(max(1, fan))


def kaiming_uniform(
    shape: ShapeLike,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    layout: str | None = None,
    dtype: Any = None,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Uniform in ±``gain · √(3 / fan)``: keeps the variance through rectifiers.

    Source: K. He, X. Zhang, S. Ren, J. Sun, "Delving deep into rectifiers", 2015.

    Args:
        shape: shape of a weight.
        a: slope below 0 of the rectifier that follows.
        mode: "fan_in" keeps the variance of values, "fan_out" that of gradients.
        nonlinearity: what follows, see `gain`.
        layout: see `fans`.
        dtype: a floating dtype; the default one if not given.
        device: where the result lives.
        generator: what to draw from.

    Raises:
        ShapeError: fewer than two axes.
        ArgumentError: another mode, or an unknown nonlinearity.

    Example:
        >>> bool((abs(ndl.nn.init.kaiming_uniform((600, 10))) <= 0.1).all())
        True
    """
    bound = math.sqrt(3) * _kaiming_std(shape, a, mode, nonlinearity, layout)
    return uniform(shape, -bound, bound, dtype=dtype, device=device, generator=generator)


def kaiming_normal(
    shape: ShapeLike,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    *,
    layout: str | None = None,
    dtype: Any = None,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """Normal with standard deviation ``gain / √fan``.

    Source: as `kaiming_uniform`.

    Args:
        shape: shape of a weight.
        a: slope below 0 of the rectifier that follows.
        mode: "fan_in" keeps the variance of values, "fan_out" that of gradients.
        nonlinearity: what follows, see `gain`.
        layout: see `fans`.
        dtype: a floating dtype; the default one if not given.
        device: where the result lives.
        generator: what to draw from.

    Raises:
        ShapeError: fewer than two axes.
        ArgumentError: another mode, or an unknown nonlinearity.

    Example:
        >>> ndl.nn.init.kaiming_normal((64, 3, 7, 7), mode="fan_out").shape
        (64, 3, 7, 7)
    """
    std = _kaiming_std(shape, a, mode, nonlinearity, layout)
    return normal(shape, 0.0, std, dtype=dtype, device=device, generator=generator)


def orthogonal(
    shape: ShapeLike,
    gain: float = 1.0,
    *,
    dtype: Any = None,
    device: Any = None,
    generator: Generator | None = None,
) -> Tensor:
    """A random matrix with orthonormal rows or columns (whichever are fewer), times ``gain``.

    The Q of the QR decomposition of a normal matrix, with the signs of R's diagonal, which makes it
    uniform over all such matrices (F. Mezzadri, 2007). Source: A. Saxe, J. McClelland, S. Ganguli,
    "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks", 2013.

    Args:
        shape: at least two axes; all but the first are merged for the decomposition.
        gain: factor for the activation that follows, see `gain`.
        dtype: a floating dtype; the default one if not given.
        device: where the result lives.
        generator: what to draw from.

    Raises:
        ShapeError: fewer than two axes.

    Example:
        >>> q = ndl.nn.init.orthogonal((2, 3), dtype="float64")
        >>> bool((abs(q @ q.T - ndl.eye(2)) < 1e-12).all())
        True
    """
    import numpy as np

    extents: Shape = as_shape(shape, "orthogonal")
    if len(extents) < 2:
        raise ShapeError(f"orthogonal: needs at least two axes, got shape {list(extents)}")
    target, place = _resolve(dtype, device)
    if place is META or 0 in extents:
        return creation.zeros(extents, dtype=target, device=place)
    rows, columns = extents[0], math.prod(extents[1:])
    tall = (max(rows, columns), min(rows, columns))
    sample = random.normal(tall, dtype=dtypes.float64, generator=_generator(generator)).numpy()
    q, r = np.linalg.qr(sample)
    q = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    if rows < columns:
        q = q.T
    return _settled(creation.asarray((gain * q).reshape(extents), dtype=target))


constant_ = _in_place(constant)
zeros_ = _in_place(zeros)
ones_ = _in_place(ones)
uniform_ = _in_place(uniform)
normal_ = _in_place(normal)
truncated_normal_ = _in_place(truncated_normal)
trunc_normal_ = truncated_normal_  # PyTorch's name
xavier_uniform_ = _in_place(xavier_uniform)
xavier_normal_ = _in_place(xavier_normal)
kaiming_uniform_ = _in_place(kaiming_uniform)
kaiming_normal_ = _in_place(kaiming_normal)
orthogonal_ = _in_place(orthogonal)

__all__ = [
    "constant",
    "constant_",
    "defaults",
    "fans",
    "gain",
    "kaiming_normal",
    "kaiming_normal_",
    "kaiming_uniform",
    "kaiming_uniform_",
    "normal",
    "normal_",
    "ones",
    "ones_",
    "orthogonal",
    "orthogonal_",
    "trunc_normal_",
    "truncated_normal",
    "truncated_normal_",
    "uniform",
    "uniform_",
    "xavier_normal",
    "xavier_normal_",
    "xavier_uniform",
    "xavier_uniform_",
    "zeros",
    "zeros_",
]
