"""Operations on the bits of integers and bools, element by element."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from needle.ops.elementwise import TensorLike, elementwise
from needle.ops.samples import Sample, bools, integers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor

BITS = ("bool", "integer")


def _bit_samples() -> Iterable[Sample]:
    yield Sample((integers(-9, 9, 3, 4), integers(-9, 9, 4)))
    yield Sample((bools(3, 4), bools(4)), label="bool")
    yield Sample((integers(0, 9, 3, 4).astype(np.uint8), 3), label="uint8")


def _shift_samples() -> Iterable[Sample]:
    yield Sample((integers(-9, 9, 3, 4), integers(0, 5, 4)))
    yield Sample((integers(0, 9, 3, 4).astype(np.int32), 3), label="int32")


@elementwise(
    np.bitwise_and,
    commutes=True,
    takes=BITS,
    samples=_bit_samples,
    lower=lambda b, x, y: b.bit_and(x, y),
)
def bitwise_and(x: TensorLike, y: TensorLike) -> Tensor:
    """Bits set in both: ``x & y``.

    Args:
        x: integers or bools.
        y: a shape that broadcasts with ``x``.

    Raises:
        DTypeError: an operand is floating.

    Example:
        >>> ndl.bitwise_and(6, ndl.asarray([3, 4]))
        Tensor([2, 4], dtype=int64)
    """


@elementwise(
    np.bitwise_or,
    commutes=True,
    takes=BITS,
    samples=_bit_samples,
    lower=lambda b, x, y: b.bit_or(x, y),
)
def bitwise_or(x: TensorLike, y: TensorLike) -> Tensor:
    """Bits set in either: ``x | y``.

    Args:
        x: integers or bools.
        y: a shape that broadcasts with ``x``.

    Raises:
        DTypeError: an operand is floating.

    Example:
        >>> ndl.bitwise_or(6, ndl.asarray([3, 4]))
        Tensor([7, 6], dtype=int64)
    """


@elementwise(
    np.bitwise_xor,
    commutes=True,
    takes=BITS,
    samples=_bit_samples,
    lower=lambda b, x, y: b.bit_xor(x, y),
)
def bitwise_xor(x: TensorLike, y: TensorLike) -> Tensor:
    """Bits set in one but not both: ``x ^ y``.

    Args:
        x: integers or bools.
        y: a shape that broadcasts with ``x``.

    Raises:
        DTypeError: an operand is floating.

    Example:
        >>> ndl.bitwise_xor(6, ndl.asarray([3, 4]))
        Tensor([5, 2], dtype=int64)
    """


def _invert_samples() -> Iterable[Sample]:
    yield Sample((integers(-9, 9, 3, 4),))
    yield Sample((bools(3, 4),), label="bool")


@elementwise(
    np.invert,
    takes=BITS,
    aliases=("invert",),
    samples=_invert_samples,
    peer="bitwise_not",
    lower=lambda b, x: b.invert(x),
)
def bitwise_invert(x: TensorLike) -> Tensor:
    """All bits flipped: ``~x``; for bools, negation.

    Args:
        x: integers or bools.

    Raises:
        DTypeError: the operand is floating.

    Example:
        >>> ndl.bitwise_invert(ndl.asarray([0, 1]))
        Tensor([-1, -2], dtype=int64)
    """


@elementwise(
    np.left_shift,
    takes=("integer",),
    samples=_shift_samples,
    lower=lambda b, x, y: b.left_shift(x, y),
)
def bitwise_left_shift(x: TensorLike, y: TensorLike) -> Tensor:
    """Bits moved up: ``x · 2^y``.

    Args:
        x: integers.
        y: how far, at least 0 and below the number of bits; broadcasts with ``x``.

    Raises:
        DTypeError: an operand is not integer.

    Example:
        >>> ndl.bitwise_left_shift(1, ndl.arange(4))
        Tensor([1, 2, 4, 8], dtype=int64)
    """


@elementwise(
    np.right_shift,
    takes=("integer",),
    samples=_shift_samples,
    lower=lambda b, x, y: b.right_shift(x, y),
)
def bitwise_right_shift(x: TensorLike, y: TensorLike) -> Tensor:
    """Bits moved down, the sign kept: ``⌊x / 2^y⌋``.

    Args:
        x: integers.
        y: how far, at least 0 and below the number of bits; broadcasts with ``x``.

    Raises:
        DTypeError: an operand is not integer.

    Example:
        >>> ndl.bitwise_right_shift(8, ndl.arange(4))
        Tensor([8, 4, 2, 1], dtype=int64)
    """


__all__ = [
    "bitwise_and",
    "bitwise_invert",
    "bitwise_left_shift",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
]
