"""How a reduction combines elements: what its record's ``lower`` is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.dtypes import DType, is_float


@dataclass(frozen=True)
class Fold:
    """An associative combination with an identity.

    Attributes:
        identity: from a dtype to the value that changes nothing.
        combine: from a builder and two values to their combination. For a fold that gives places,
            from a builder, a value and its place, another value and its place, to the value and
            the place that win.
        gives_place: whether the result is where along the axis the winning element stands.
    """

    identity: Callable[[DType], Any]
    combine: Callable[..., Any]
    gives_place: bool = False


def lowest(dtype: DType) -> Any:
    """Return the value below all others."""
    if dtype.kind == "b":
        return False
    return -np.inf if is_float(dtype) else np.iinfo(dtype).min


def highest(dtype: DType) -> Any:
    """Return the value above all others."""
    if dtype.kind == "b":
        return True
    return np.inf if is_float(dtype) else np.iinfo(dtype).max


def _winner(is_better: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """Return what chooses the better element: NaN before numbers, the first of equal ones."""

    def combine(b: Any, x: Any, place: Any, y: Any, other: Any) -> tuple[Any, Any]:
        wins = is_better(b, y, x)
        if x.is_float:
            x_is_nan, y_is_nan = b.compare("uno", x, x), b.compare("uno", y, y)
            wins = b.binary("or", wins, b.binary("and", y_is_nan, b.logical_not(x_is_nan)))
            ties = b.binary("and", x_is_nan, y_is_nan)
            ties = b.binary("or", ties, b.compare("oeq", x, y))
            # A number that beats does not beat a NaN.
            kept = b.binary("and", x_is_nan, b.logical_not(y_is_nan))
            wins = b.binary("and", wins, b.logical_not(kept))
        else:
            ties = b.compare("eq", x, y)
        earlier = b.compare("slt", other, place)
        wins = b.binary("or", wins, b.binary("and", ties, earlier))
        return b.select(wins, y, x), b.select(wins, other, place)

    return combine


SUM = Fold(lambda dtype: 0, lambda b, x, y: b.add(x, y))
MAX = Fold(lowest, lambda b, x, y: b.maximum(x, y))
MIN = Fold(highest, lambda b, x, y: b.minimum(x, y))
ANY = Fold(lambda dtype: False, lambda b, x, y: b.binary("or", x, y))
ALL = Fold(lambda dtype: True, lambda b, x, y: b.binary("and", x, y))
ARGMAX = Fold(lowest, _winner(lambda b, x, y: b.less(y, x)), gives_place=True)
ARGMIN = Fold(highest, _winner(lambda b, x, y: b.less(x, y)), gives_place=True)
