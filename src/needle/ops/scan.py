"""Scans: ops that run along an axis, each result depending on all before it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.dtypes import as_dtype, is_float
from needle.errors import AxisError
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_tensor
from needle.ops.ordered import Scan
from needle.ops.record import Kind, op
from needle.ops.samples import Sample, bad, integers, normal
from needle.ops.slicing import flip, pad
from needle.shapes import normalize_axis

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _cumulative_samples() -> Iterable[Sample]:
    yield Sample((normal(5),))
    yield Sample((normal(3, 4),), {"axis": 0}, label="axis 0")
    yield Sample((integers(0, 9, 3, 4),), {"axis": -1}, label="integers")
    yield Sample((normal(3),), {"include_initial": True}, label="initial", has_peer=False)
    yield Sample((normal(0),), label="empty")
    yield bad(AxisError, "say which", normal(3, 4))


def _torch_cumulative(torch: Any, x: Any, axis: int = 0) -> Any:
    return torch.cumsum(x, axis)


def _reverse_cumulative(g: Tensor, axis: int) -> Tensor:
    return flip(cumulative_sum(flip(g, axis), axis=axis), axis)


@op(
    kind=Kind.SCAN,
    infer=lambda x, *, axis: x,
    reference=widened(lambda x, *, axis: np.cumsum(x, axis=axis, dtype=x.dtype)),
    lower=Scan(lambda b, before, x: b.add(before, x), is_sum=True),
    vjp={"x": _reverse_cumulative},
    samples=_cumulative_samples,
    aliases=("cumsum",),
    peer=_torch_cumulative,
)
def cumulative_sum(
    x: TensorLike, axis: int | None = None, *, dtype: Any = None, include_initial: bool = False
) -> Tensor:
    """Sum of each element and all before it along an axis.

    Args:
        x: at least one axis; bools and integers add up as int64.
        axis: the axis; may be left out for a single axis.
        dtype: dtype of the result.
        include_initial: whether the result starts with 0, and so is longer by one.

    Raises:
        AxisError: the axis does not exist, or is left out with several axes.

    Example:
        >>> ndl.cumulative_sum(ndl.arange(4))
        Tensor([0, 1, 3, 6], dtype=int64)
    """
    t = as_tensor(x)
    if axis is None:
        if t.ndim != 1:
            raise AxisError(f"cumulative_sum: of {t.ndim} axes, say which one with axis=")
        axis = 0
    place = normalize_axis(axis, t.ndim, "cumulative_sum")
    if dtype is not None:
        t = t.astype(as_dtype(dtype), copy=False)
    elif not is_float(t.dtype):
        t = t.astype(dtypes.uint64 if t.dtype in dtypes.UNSIGNED else dtypes.int64, copy=False)
    if include_initial:
        t = pad(t, [(1, 0) if i == place else (0, 0) for i in range(t.ndim)])
    return apply(cumulative_sum, t, axis=place)


__all__ = ["cumulative_sum"]
