"""Rearrangements made of slices: diagonals, and shifts that wrap around."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from needle.errors import ArgumentError, AxisError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_tensor
from needle.ops.joining import concat
from needle.ops.movement import flatten, reshape
from needle.ops.record import composite
from needle.ops.samples import Sample, bad, normal
from needle.ops.slicing import strided_slice
from needle.shapes import Axis, as_index, normalize_axis

if TYPE_CHECKING:
    from needle.tensor import Tensor


def _diagonal_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4),))
    yield Sample((normal(3, 4), 2), label="above")
    yield Sample((normal(3, 4), -1), label="below")
    yield Sample((normal(3, 4), 4), label="none left")
    yield Sample((normal(2, 3, 4), 1, -1, 0), label="axes")
    yield bad(AxisError, "axis 2", normal(3, 4), 0, 0, 2)
    yield bad(AxisError, "two axes", normal(3, 4), 0, 1, -1)


@composite(samples=_diagonal_samples, is_method=True, peer="diagonal")
def diagonal(x: TensorLike, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Tensor:
    """Take the diagonal ``x[i, i + offset]``, as a new last axis.

    Args:
        x: any shape with at least two axes.
        offset: above the main diagonal if positive, below if negative.
        axis1: axis of the rows.
        axis2: axis of the columns.

    Raises:
        AxisError: an axis does not exist, or both are the same.

    Example:
        >>> ndl.diagonal(ndl.asarray([[1, 2], [3, 4]]))
        Tensor([1, 4], dtype=int64)
    """
    t = as_tensor(x)
    first, second = (normalize_axis(a, t.ndim, "diagonal") for a in (axis1, axis2))
    if first == second:
        raise AxisError(f"diagonal: needs two axes, got {axis1} and {axis2}, which are the same")
    rest = [a for a in range(t.ndim) if a not in (first, second)]
    t = t.permute_dims((*rest, first, second))
    *lead, n, m = t.shape
    k = as_index(offset, "diagonal: offset")
    count = max(0, min(n, m - k) if k >= 0 else min(n + k, m))
    # In row-major order, the next element of a diagonal lies one row and one column on.
    flat = reshape(t, (*lead, n * m))
    start = (k if k >= 0 else -k * m) if count else 0
    stop = start + (count - 1) * (m + 1) + 1 if count else 0
    zeros, ones = (0,) * len(lead), (1,) * len(lead)
    return strided_slice(flat, (*zeros, start), (*lead, stop), (*ones, m + 1))


def _roll_samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4), 1, 1))
    yield Sample((normal(3, 4), -5, 0), label="around")
    yield Sample((normal(3, 4), 5), label="flat")
    yield Sample((normal(3, 4), (1, -1), (0, 1)), label="two axes")
    yield Sample((normal(3, 4), (1, 2), (0, 0)), label="one axis twice")
    yield Sample((normal(0, 4), 1, 0), label="empty")
    yield bad(AxisError, "axis 2", normal(3, 4), 1, 2)
    yield bad(ArgumentError, "one shift for each axis", normal(3, 4), (1, 2), (0,))


@composite(samples=_roll_samples, is_method=True, peer="roll")
def roll(x: TensorLike, shift: int | Sequence[int], axis: Axis = None) -> Tensor:
    """Shift along axes; what leaves at the end comes back in at the start.

    Args:
        x: any shape.
        shift: by how many places, or one number for each axis.
        axis: the axes; if not given, the tensor is rolled as if it were flat.

    Raises:
        AxisError: an axis does not exist.
        ArgumentError: not one shift for each axis.

    Example:
        >>> ndl.roll(ndl.arange(5), 2)
        Tensor([3, 4, 0, 1, 2], dtype=int64)
    """
    t = as_tensor(x)
    if axis is None:
        if isinstance(shift, (tuple, list)):
            raise ArgumentError("roll: several shifts need one shift for each axis: give the axes")
        return reshape(roll(flatten(t), shift, 0), t.shape)
    axes = tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)
    shifts = tuple(shift) if isinstance(shift, (tuple, list)) else (shift,) * len(axes)
    if len(shifts) != len(axes):
        raise ArgumentError(
            f"roll: needs one shift for each axis, got {len(shifts)} for {len(axes)} axes"
        )
    for by, a in zip(shifts, axes, strict=True):
        place = normalize_axis(a, t.ndim, "roll")
        extent = t.shape[place]
        cut = -as_index(by, "roll: shift") % extent if extent else 0
        if cut:
            zeros, ones = [0] * t.ndim, (1,) * t.ndim
            starts, stops = zeros.copy(), list(t.shape)
            starts[place] = stops[place] = cut
            t = concat(
                [
                    strided_slice(t, starts, t.shape, ones),
                    strided_slice(t, zeros, stops, ones),
                ],
                place,
            )
    return t


__all__ = ["diagonal", "roll"]
