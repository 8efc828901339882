"""Ops that go through elements in an order, or join tensors: what their records' ``lower`` is.

An element of their results is no function of a few elements of their inputs, so that they get
kernels of their own. The descriptions say what is particular to an op; the backend knows how to run
along an axis, how to scatter and how to sort.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scan:
    """Each element combined with the result before it, along the axis of the attribute ``axis``.

    Attributes:
        combine: from a builder, the result before and an element to the result.
        is_sum: whether 16-bit floats are held in float32 on the way.
    """

    combine: Callable[..., Any]
    is_sum: bool = False


@dataclass(frozen=True)
class Scatter:
    """Values that go to computed places of the result, one after the other in row-major order.

    Attributes:
        place: from an index builder, the index of a value, the inputs (functions of an index) and
            the attributes to the index of the element of the result where it goes.
        combine: from a builder, the element there and the value to the new element.
        values: which of the inputs holds the values.
        base: which of the inputs the result begins as; None for zeros.
        shift: which of the inputs, one number, is subtracted from all of the base; None for none.
        is_sum: whether 16-bit floats are held in float32 on the way.
    """

    place: Callable[..., Any]
    combine: Callable[..., Any]
    values: int = 0
    base: int | None = None
    shift: int | None = None
    is_sum: bool = False


@dataclass(frozen=True)
class Sort:
    """Indices in sorted order along the axis of the attribute ``axis``; equal ones keep theirs.

    NaN counts as larger than all else.

    Attributes:
        descending: the attribute that says whether the largest come first.
        count: the attribute that says how many of them are wanted; empty for all.
    """

    descending: str
    count: str = ""


@dataclass(frozen=True)
class Joined:
    """Inputs one after the other along the axis of the attribute ``axis``.

    A result that lies in memory is written part by part, each by whatever kernel computes it.

    Attributes:
        element: the lowering of one element, for results that are computed where they are read.
    """

    element: Callable[..., Any]

    def __call__(self, *arguments: Any, **attrs: Any) -> Any:
        """Lower one element."""
        return self.element(*arguments, **attrs)


#: What a record's ``lower`` may be for an op that is a kernel of its own.
Ordered = Scan | Scatter | Sort

__all__ = ["Joined", "Ordered", "Scan", "Scatter", "Sort"]
