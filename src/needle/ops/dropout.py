"""Dropout, as a pure function of random bits; `needle.nn.functional.dropout` draws them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.ops.comparison import where
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_float_tensor, as_tensor
from needle.ops.record import composite
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.shapes import broadcast_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def check_probability(p: float, name: str) -> None:
    """Raise unless ``p`` is a probability.

    Raises:
        ArgumentError: it is not from 0 to 1.
    """
    if not 0 <= p <= 1:
        raise ArgumentError(
            f"{name}: p, the probability of an element to be zeroed, must be from 0 to 1, got {p}"
        )


def _bits(*shape: int) -> Array:
    return integers(0, 2**32, *shape).astype(np.uint32)


def _samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), _bits(3, 4), 0.5))
    yield Sample((normal(2, 3, 2, 2), _bits(2, 3, 1, 1), 0.3), label="whole channels")
    yield Sample((normal(3, 4), _bits(3, 4), 0.0), label="none")
    yield Sample((normal(3, 4), _bits(3, 4), 1.0), label="all")
    yield Sample((normal(0, 4), _bits(0, 4), 0.5), label="empty")
    yield bad(ArgumentError, "from 0 to 1", normal(3), _bits(3), 1.5)
    yield bad(ArgumentError, "from 0 to 1", normal(3), _bits(3), float("nan"))
    yield bad(DTypeError, "uint32", normal(3), integers(0, 9, 3), 0.5)
    yield bad(ShapeError, "bits", normal(3), _bits(2, 3), 0.5)


def _torch_drop(torch: Any, x: Any, bits: Any, p: float = 0.5) -> Any:
    kept = bits.to(torch.int64) >= round(p * 2**32)
    return torch.where(kept, x / (1 - p) if p < 1 else x, torch.zeros((), dtype=x.dtype))


@composite(samples=_samples, peer=_torch_drop)
def drop(x: TensorLike, bits: TensorLike, p: float = 0.5) -> Tensor:
    """Zero the elements whose random bits are below ``p · 2³²``; scale the others by ``1/(1 − p)``.

    The mean stays what it was, so nothing is to be scaled at evaluation. Bits are compared as
    integers: which elements are kept depends on neither dtype nor rounding.

    Source: N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
    Overfitting", 2014.

    Args:
        x: any shape; integers become float32.
        bits: uniform uint32 words, as `random_bits` gives them, of a shape that broadcasts to that
            of ``x``.
        p: probability of an element to be zeroed; 1 zeroes all.

    Raises:
        ArgumentError: ``p`` is not from 0 to 1.
        DTypeError: the bits are not uint32.
        ShapeError: the bits do not broadcast to the shape of ``x``.

    Example:
        >>> bits = ndl.asarray([0, 2**31, 2**32 - 1], dtype="uint32")
        >>> ndl.drop(ndl.ones(3), bits, 0.5)
        Tensor([0., 2., 2.])
    """
    check_probability(p, "drop")
    t, words = as_float_tensor(x), as_tensor(bits)
    if words.dtype != dtypes.uint32:
        raise DTypeError(f"drop: the bits must be uint32, got {words.dtype.name}")
    if broadcast_shapes(t.shape, words.shape, op="drop: x and bits") != t.shape:
        raise ShapeError(
            f"drop: bits of shape {list(words.shape)} are more than x of {list(t.shape)} needs"
        )
    threshold = round(p * 2**32)
    if threshold == 2**32:  # one more than a word holds
        return where(as_tensor(False), t, 0.0)
    return where(words >= as_tensor(threshold, dtypes.uint32), t * (1 / (1 - p)), 0.0)


__all__ = ["drop"]
