"""Samples: the inputs that exercise an op, from which its tests are generated.

A sample holds NumPy arrays where the public function takes tensors. Floating arrays are float64;
the tests cast them to each dtype that they check, and shift nothing: a sample says itself where it
    is differentiable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Sample:
    """One call of a public function.

    Attributes:
        args: positional arguments; each array becomes a tensor.
        kwargs: keyword arguments.
        label: what is special about it; empty for an ordinary one.
        is_smooth: whether gradients are defined and continuous around the values, so that they can
            be compared with finite differences (False for special values and ties).
        has_peer: whether PyTorch accepts and means the same.
        error: the exception that the call must raise, for a sample of bad input.
        match: a regular expression that the exception's message must contain.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    label: str = ""
    is_smooth: bool = True
    has_peer: bool = True
    error: type[Exception] | None = None
    match: str = ""


Samples = Callable[[], Iterable[Sample]]

SPECIAL_VALUES = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-3, -1e-3, 6.0, -6.0, 100.0, -100.0]
)


def normal(*shape: int, seed: int = 0) -> Array:
    """Return standard normal float64 values, the same at each call."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape)


def uniform(low: float, high: float, *shape: int, seed: int = 0) -> Array:
    """Return uniform float64 values, the same at each call."""
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape)


def integers(low: int, high: int, *shape: int, seed: int = 0) -> Array:
    """Return int64 values in ``[low, high)``, the same at each call."""
    return np.random.default_rng([seed, *shape]).integers(low, high, shape)


def bools(*shape: int, seed: int = 0) -> Array:
    """Return random bools, the same at each call."""
    return np.random.default_rng([seed, *shape]).random(shape) < 0.5


def distinct(*shape: int, seed: int = 0) -> Array:
    """Return float64 values that all differ by at least 0.1: no ties, for max and sort."""
    size = int(np.prod(shape))
    order = np.random.default_rng([seed, *shape]).permutation(size)
    return (order.reshape(shape) - size / 2) * 0.1 + 0.03


def bad(error: type[Exception], match: str, *args: Any, **kwargs: Any) -> Sample:
    """Return a sample of bad input, which must raise ``error`` with a message that matches."""
    label = f"bad: {match}"
    return Sample(args, kwargs, label=label, is_smooth=False, error=error, match=match)


def unary_samples(
    low: float = -3.0, high: float = 3.0, special: Sequence[float] | Array = SPECIAL_VALUES
) -> Samples:
    """Return samples for an elementwise function that is smooth on ``(low, high)``."""

    def draw() -> Iterable[Sample]:
        yield Sample((uniform(low, high, 3, 4),))
        yield Sample((uniform(low, high),), label="0-d")
        yield Sample((uniform(low, high, 0, 3),), label="empty")
        yield Sample((uniform(low, high, 4, 6)[::2, ::-3],), label="strided")
        yield Sample((uniform(low, high, 3, 4).T,), label="transposed")
        yield Sample((np.asarray(special, dtype=np.float64),), label="special", is_smooth=False)

    return draw


def binary_samples(
    low: float = -3.0,
    high: float = 3.0,
    special: Sequence[float] | Array = SPECIAL_VALUES,
    second: tuple[float, float] | None = None,
) -> Samples:
    """Return samples for an elementwise function of two; ``second`` is the range of the second."""

    def draw() -> Iterable[Sample]:
        low2, high2 = second or (low, high)

        def pair(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[Array, Array]:
            return uniform(low, high, *a), uniform(low2, high2, *b, seed=1)

        yield Sample(pair((3, 4), (3, 4)))
        yield Sample(pair((3, 4), (4,)), label="broadcast rows")
        yield Sample(pair((3, 1), (1, 4)), label="broadcast both")
        yield Sample(pair((), (2, 3)), label="0-d")
        yield Sample(pair((0, 3), (3,)), label="empty")
        x, y = pair((3, 4), (4, 3))
        yield Sample((x, y.T), label="transposed")
        yield Sample((uniform(low, high, 2, 3), (low2 + high2) / 2 + 0.75), label="Python number")
        values = np.asarray(special, dtype=np.float64)
        yield Sample((values[:, None], values), label="special", is_smooth=False)
        from needle.errors import ShapeError

        yield bad(ShapeError, "do not broadcast", *pair((3, 4), (3,)))

    return draw
