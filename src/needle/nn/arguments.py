"""Checks of the arguments that make layers."""

from __future__ import annotations

from typing import Any

from needle.errors import ArgumentError, ArgumentTypeError
from needle.shapes import as_index


def as_extent(value: Any, what: str, *, minimum: int = 1) -> int:
    """Return ``value`` as an int of at least ``minimum``, or raise an error that calls it ``what``.

    Raises:
        ArgumentTypeError: it is no integer.
        ArgumentError: it is smaller.
    """
    number = as_index(value, what)
    if number < minimum:
        raise ArgumentError(f"{what} must be at least {minimum}, got {number}")
    return number


def as_probability(value: Any, what: str) -> float:
    """Return ``value`` as a float in [0, 1], or raise an error that calls it ``what``.

    Raises:
        ArgumentTypeError: it is no number.
        ArgumentError: it lies outside.
    """
    if not isinstance(value, (int, float)):
        raise ArgumentTypeError(f"{what} must be a number, got {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ArgumentError(f"{what} must lie in 0 … 1, got {value}")
    return float(value)
