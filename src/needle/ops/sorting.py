"""Sorting along an axis, and what sorted order gives: the largest elements, places to insert."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from needle.dtypes import int64, is_float
from needle.errors import ArgumentError, AxisError, ShapeError
from needle.ops.arithmetic import minimum
from needle.ops.comparison import isnan, where
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_tensor, promoted
from needle.ops.gather import take_along_axis
from needle.ops.movement import broadcast_to
from needle.ops.ordered import Sort
from needle.ops.places import take_at
from needle.ops.precision import Precision
from needle.ops.record import Kind, composite, op
from needle.ops.samples import Array, Sample, bad, distinct, integers, normal
from needle.shapes import Spec, as_index, normalize_axis

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
    reference=widened(_argsort),  # NumPy puts NaN anywhere among bfloat16
    lower=Sort("descending"),
    samples=_argsort_samples,
    peer=lambda torch, x, axis=-1, descending=False: torch.argsort(
        x, dim=axis, descending=descending, stable=True
    ),
    precision=Precision.FOLLOW,
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


def _sort_samples() -> Iterable[Sample]:
    yield Sample((distinct(3, 4),))
    yield Sample((distinct(3, 4),), {"axis": 0, "descending": True}, label="descending")
    yield Sample((integers(0, 3, 4, 9),), label="integers")
    yield Sample((np.array([2.0, np.nan, -np.inf, np.inf]),), label="special", is_smooth=False)
    yield Sample((distinct(2, 0),), label="empty")
    yield bad(AxisError, "axis 2", distinct(3, 4), axis=2)


@composite(
    samples=_sort_samples,
    is_method=True,
    peer=lambda torch, x, axis=-1, descending=False: torch.sort(
        x, dim=axis, descending=descending, stable=True
    )[0],
)
def sort(x: TensorLike, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """Sort along an axis. The gradient goes back to where each element came from.

    Args:
        x: any dtype, with at least one axis. NaN counts as larger than all else.
        axis: the axis.
        descending: largest first.
        stable: always true here: equal elements keep their order, in either direction.

    Raises:
        AxisError: the axis does not exist.

    Example:
        >>> ndl.sort(ndl.asarray([3.0, 1.0, 2.0]), descending=True)
        Tensor([3., 2., 1.])
    """
    t = as_tensor(x)
    order = argsort(t, axis=axis, descending=descending, stable=stable)
    return take_along_axis(t, order, axis=axis)


def _infer_top(x: Spec, *, k: int, axis: int, largest: bool) -> Spec:
    extent = x.shape[axis]
    if not 0 <= k <= extent:
        raise ArgumentError(
            f"topk: k must be 0 to {extent}, the extent of axis {axis} in shape {list(x.shape)}, "
            f"got {k}"
        )
    return Spec((*x.shape[:axis], k, *x.shape[axis + 1 :]), int64)


def _top_indices(x: Array, *, k: int, axis: int, largest: bool) -> Array:
    order = _argsort(x, axis=axis, descending=largest)
    return order[(slice(None),) * axis + (slice(k),)].copy()


@op(
    kind=Kind.SCAN,
    infer=_infer_top,
    reference=widened(_top_indices),
    lower=Sort("largest", "k"),
    samples=lambda: [
        Sample((distinct(3, 7), 3)),
        Sample((distinct(5, 4), 2), {"axis": 0, "largest": False}, label="smallest"),
        Sample((integers(0, 3, 4, 9), 5), label="ties", has_peer=False),
        bad(ArgumentError, "k must be 0 to 4", distinct(3, 4), 5),
    ],
    is_method=False,
    peer=lambda torch, x, k, axis=-1, largest=True: torch.topk(x, k, axis, largest)[1],
    precision=Precision.FOLLOW,
)
def top_indices(x: TensorLike, k: int, *, axis: int = -1, largest: bool = True) -> Tensor:
    """Indices of the k largest (or smallest) elements along an axis, best first.

    Args:
        x: any dtype, with at least one axis. NaN counts as larger than all else.
        k: how many.
        axis: the axis.
        largest: or else the smallest.

    Raises:
        ArgumentError: the axis has fewer than ``k`` elements.
        AxisError: the axis does not exist.

    Example:
        >>> ndl.top_indices(ndl.asarray([3, 9, 5]), 2)
        Tensor([1, 2], dtype=int64)
    """
    t = as_tensor(x)
    result: Tensor = apply(
        top_indices,
        t,
        k=as_index(k, "topk: k"),
        axis=normalize_axis(axis, t.ndim, "topk"),
        largest=bool(largest),
    )
    return result


def _topk_samples() -> Iterable[Sample]:
    yield Sample((distinct(3, 7), 3))
    yield Sample((distinct(5, 4), 2), {"axis": 0, "largest": False}, label="smallest")
    yield Sample((distinct(3, 4), 4), label="all")
    yield Sample((distinct(3, 4), 0), label="none")
    yield Sample((integers(0, 3, 4, 9), 5), label="ties", has_peer=False)
    yield Sample((np.array([2.0, np.nan, np.inf]), 2), label="special", is_smooth=False)
    yield bad(ArgumentError, "k must be 0 to 4, the extent of axis 1", distinct(3, 4), 5)
    yield bad(ArgumentError, "got -1", distinct(3, 4), -1)
    yield bad(AxisError, "axis 2", distinct(3, 4), 1, axis=2)


@composite(
    samples=_topk_samples,
    is_method=True,
    peer=lambda torch, x, k, axis=-1, largest=True: tuple(torch.topk(x, k, axis, largest)),
)
def topk(x: TensorLike, k: int, axis: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) elements along an axis, best first, and their indices.

    Args:
        x: any dtype, with at least one axis. NaN counts as larger than all else; of equal elements
            the one with the lowest index comes first.
        k: how many.
        axis: the axis.
        largest: or else the smallest.

    Returns:
        The values, with gradient, and the indices, int64.

    Raises:
        ArgumentError: the axis has fewer than ``k`` elements.
        AxisError: the axis does not exist.

    Example:
        >>> ndl.topk(ndl.asarray([3, 9, 5]), 2)
        (Tensor([9, 5], dtype=int64), Tensor([1, 2], dtype=int64))
    """
    t = as_tensor(x)
    indices = top_indices(t, k, axis=axis, largest=largest)
    return take_along_axis(t, indices, axis=axis), indices


def _infer_searchsorted(x: Spec, values: Spec, *, side: str) -> Spec:
    if x.ndim != 1:
        raise ShapeError(f"searchsorted: needs a sorted vector, got shape {list(x.shape)}")
    return Spec(values.shape, int64)


def _searchsorted_by_parts(x: Tensor, values: Tensor, *, side: str) -> Tensor:
    """Search by halves, for all values at once: each step decides on one more bit of the place."""
    n = x.shape[0]
    place = broadcast_to(as_tensor(0, int64), values.shape)
    step = 1 << (n.bit_length() - 1) if n else 0
    while step:
        reached = place + step
        before = take_at(x, (minimum(reached, n) - 1,), (0,))
        goes_on = before < values if side == "left" else before <= values
        if is_float(x.dtype):  # NaN comes after all numbers
            is_nan = isnan(values)
            goes_on = goes_on | (is_nan if side == "right" else is_nan & ~isnan(before))
        place = where(goes_on & (reached <= n), reached, place)
        step >>= 1
    return place


def _searchsorted_samples() -> Iterable[Sample]:
    x = np.array([1.0, 2.0, 2.0, 3.5])
    yield Sample((x, np.array([[0.0, 2.0], [3.0, 9.0]])))
    yield Sample((x, np.array([1.0, 2.0, 3.5])), {"side": "right"}, label="right")
    yield Sample((np.array([1, 4]), 4), label="integers", has_peer=False)
    edges = np.array([np.nan, np.inf, -np.inf, 2.0, 9.0])
    ends = np.array([-np.inf, 1.0, 2.0, np.inf, np.nan, np.nan])
    yield Sample((ends, edges), label="special", has_peer=False)
    yield Sample((ends, edges), {"side": "right"}, label="special, right", has_peer=False)
    yield Sample((normal(0), edges), label="in nothing")
    yield bad(ShapeError, "a sorted vector", normal(2, 3), normal(2))
    yield bad(ArgumentError, "side", x, x, side="middle")


@op(
    kind=Kind.INDEXING,
    infer=_infer_searchsorted,
    reference=widened(lambda x, values, *, side: np.searchsorted(x, values, side=side)),
    decompose=_searchsorted_by_parts,
    samples=_searchsorted_samples,
    is_method=False,
    peer=lambda torch, x, values, side="left": torch.searchsorted(x, values, side=side),
)
def searchsorted(x: TensorLike, values: TensorLike, *, side: str = "left") -> Tensor:
    """Where values would have to be inserted into a sorted vector to keep it sorted.

    Args:
        x: a vector, sorted in ascending order.
        values: any shape.
        side: ``"left"``: before equal elements, ``"right"``: after them.

    Returns:
        int64 indices in 0 … n, of the shape of ``values``.

    Raises:
        ShapeError: ``x`` is no vector.
        ArgumentError: there is no such side.

    Example:
        >>> ndl.searchsorted(ndl.asarray([1.0, 2.0, 3.0]), ndl.asarray([2.0, 2.5]))
        Tensor([1, 2], dtype=int64)
    """
    if side not in ("left", "right"):
        raise ArgumentError(f"searchsorted: side must be 'left' or 'right', got {side!r}")
    t, v = promoted(x, values)
    result: Tensor = apply(searchsorted, t, v, side=side)
    return result


__all__ = ["argsort", "searchsorted", "sort", "top_indices", "topk"]
