"""Copies and conversions: the elements stay where they are, in new storage or another dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import DType, accumulation_dtype, as_dtype, is_float
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, integers, normal
from needle.shapes import (
    Spec,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _astype_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), "float32"), is_smooth=False)
    yield Sample((normal(3, 4), "int64"), label="to integers", is_smooth=False)
    beyond = np.array([np.nan, np.inf, -np.inf, 300.7, -300.7, 6e4, -6e4])
    for dtype in ("int8", "uint8", "int32", "int64", "uint64"):
        label = f"beyond {dtype}"
        yield Sample((beyond, dtype), label=label, is_smooth=False, has_peer=False)
    yield Sample((integers(-3, 4, 3), "bool"), label="to bool")
    yield Sample((normal(3, 4), "float64"), label="same")


def _astype(x: Array, *, dtype: DType) -> Array:
    if dtype.kind not in "iu" or not is_float(x.dtype):
        return x.astype(dtype)
    # What floats become that no integer of the dtype is near to, C leaves open, and NumPy with it.
    x = x.astype(accumulation_dtype(x.dtype), copy=False)
    limits = np.iinfo(dtype)
    fits = (x > limits.min - 1) & (x < float(limits.max) + 1)
    if fits.all():
        return x.astype(dtype)
    nearest = np.where(x > 0, limits.max, np.where(x < 0, limits.min, 0)).astype(dtype)
    return np.where(fits, np.where(fits, x, x.dtype.type(0)).astype(dtype), nearest)


@op(
    kind=Kind.ELEMENTWISE,
    infer=lambda x, *, dtype: Spec(x.shape, dtype),
    reference=_astype,
    vjp={"x": lambda g, x_dtype: g.astype(x_dtype)},
    samples=_astype_samples,
    aliases=("cast",),
    peer=lambda torch, x, dtype: x.to(getattr(torch, dtype)),
    lower=lambda b, x, *, dtype: b.convert(x, dtype),
)
def astype(x: TensorLike, dtype: Any, *, copy: bool = True) -> Tensor:
    """Convert to another dtype; floats are cut towards zero to become integers.

    Floats beyond what the integers can be become the nearest of them, and NaN becomes 0.

    Args:
        x: any shape and dtype.
        dtype: the dtype to convert to.
        copy: whether to copy even when the dtype is that already.

    Raises:
        DTypeError: there is no such dtype.

    Example:
        >>> ndl.astype(ndl.asarray([1.7, -1.7]), "int64")
        Tensor([ 1, -1], dtype=int64)
    """
    t = as_tensor(x)
    target = as_dtype(dtype)
    if not copy and t.dtype == target:
        return t
    return apply(astype, t, dtype=target)


@op(
    kind=Kind.ELEMENTWISE,
    infer=lambda x: Spec(x.shape, x.dtype),
    reference=lambda x: x.copy(),
    vjp={"x": lambda g: g},
    samples=lambda: [Sample((normal(3, 4),)), Sample((normal(4, 6)[:, ::2],), label="strided")],
    aliases=("copy",),
    peer="clone",
    lower=lambda b, x: x,
    exact=True,
)
def clone(x: TensorLike) -> Tensor:
    """Copy, with its own storage and, unlike `detach`, with the gradient flowing back.

    Args:
        x: any shape and dtype.

    Example:
        >>> x = ndl.arange(3)
        >>> y = ndl.clone(x)
        >>> y += 1
        >>> x
        Tensor([0, 1, 2], dtype=int64)
    """
    return apply(clone, as_tensor(x))


__all__ = [
    "astype",
    "clone",
]
