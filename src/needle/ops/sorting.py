"""Sorting along an axis."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from needle.dtypes import int64
from needle.errors import AxisError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, bad, distinct, integers
from needle.shapes import Spec, normalize_axis

if TYPE_CHECKING:
    from needle.tensor import Tensor


def _argsort_samples() -> Iterable[Sample]:
    yield Sample((distinct(3, 4),))
    yield Sample((distinct(3, 4),), {"axis": 0, "descending": True}, label="descending")
    yield Sample((integers(0, 3, 4, 9),), label="ties")
    yield Sample((integers(0, 3, 4, 9),), {"descending": True}, label="ties descending")
    yield Sample((np.array([2.0, np.nan, -np.inf, np.inf, -0.0, 0.0]),), label="special")
    yield Sample((distinct(5, 4)[::2].T,), {"axis": 0}, label="strided")
    yield Sample((distinct(2, 0),), label="empty")
    yield bad(AxisError, "axis 2", distinct(3, 4), axis=2)


def _argsort(x: Array, *, axis: int, descending: bool) -> Array:
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    # Sorting backwards keeps the first of equal elements first only if they lie backwards, too.
    order = np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
    return x.shape[axis] - 1 - order


@op(
    kind=Kind.SCAN,
    infer=lambda x, *, axis, descending: Spec(x.shape, int64),
    reference=_argsort,
    samples=_argsort_samples,
    peer=lambda torch, x, axis=-1, descending=False: torch.argsort(
        x, dim=axis, descending=descending, stable=True
    ),
)
def argsort(
    x: TensorLike, *, axis: int = -1, descending: bool = False, stable: bool = True
) -> Tensor:
    """Indices that sort along an axis: ``take_along_axis(x, argsort(x, axis=a), a)`` is sorted.

    Args:
        x: any dtype, with at least one axis. NaN counts as larger than all else.
        axis: the axis.
        descending: largest first.
        stable: always true here: equal elements keep their order, in either direction.

    Raises:
        AxisError: the axis does not exist.

    Example:
        >>> ndl.argsort(ndl.asarray([3.0, 1.0, 2.0]))
        Tensor([1, 2, 0], dtype=int64)
    """
    t = as_tensor(x)
    result: Tensor = apply(
        argsort, t, axis=normalize_axis(axis, t.ndim, "argsort"), descending=bool(descending)
    )
    return result


__all__ = ["argsort"]
