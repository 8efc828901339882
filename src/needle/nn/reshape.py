"""Layers that only change the shape."""

from __future__ import annotations

from needle.nn.module import Module
from needle.ops.movement import flatten
from needle.shapes import as_index
from needle.tensor import Tensor


class Flatten(Module):
    """Merges neighbouring axes into one, by default all but the batch's.

    Args:
        start_axis: the first axis to merge.
        end_axis: the last axis to merge.

    Example:
        >>> ndl.nn.Flatten()(ndl.zeros((5, 3, 2, 2))).shape
        (5, 12)
    """

    def __init__(self, start_axis: int = 1, end_axis: int = -1) -> None:
        self.start_axis = as_index(start_axis, "Flatten: start_axis")
        self.end_axis = as_index(end_axis, "Flatten: end_axis")

    def forward(self, x: Tensor) -> Tensor:
        """Merge the axes.

        Args:
            x: any shape that has them.

        Raises:
            AxisError: an axis does not exist, or the first comes after the last.
        """
        return flatten(x, self.start_axis, self.end_axis)

    def extra_repr(self) -> str:
        """Return the axes, if they are not the usual ones."""
        usual = (self.start_axis, self.end_axis) == (1, -1)
        return "" if usual else f"start_axis={self.start_axis}, end_axis={self.end_axis}"
