"""Copies and conversions: the elements stay where they are, in new storage or another dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from needle.dtypes import DType, as_dtype
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
    yield Sample((integers(-3, 4, 3), "bool"), label="to bool")
    yield Sample((normal(3, 4), "float64"), label="same")


def _astype(x: Array, *, dtype: DType) -> Array:
    return x.astype(dtype)


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
