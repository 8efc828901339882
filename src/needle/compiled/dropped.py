"""Gradients that a compiled step has used up and not kept."""

from __future__ import annotations

from typing import NoReturn

from needle.dtypes import DType
from needle.errors import TraceError
from needle.graph.cell import Absent
from needle.shapes import Shape, Spec
from needle.tensor import Tensor, wrap


class DroppedGrad(Absent):
    """Stands for the values of a gradient that a compiled function has not kept.

    A step that goes on to update the parameter needs its gradient only in between, and writing it
    to memory would cost as much as the update.
    """

    __slots__ = ("dtype", "function", "shape")

    def __init__(self, spec: Spec, function: str) -> None:
        self.shape: Shape = spec.shape
        self.dtype: DType = spec.dtype
        self.function = function

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return Spec(self.shape, self.dtype).size

    @property
    def nbytes(self) -> int:
        """Bytes that the elements would take."""
        return Spec(self.shape, self.dtype).nbytes

    def refuse(self, use: str) -> NoReturn:
        raise TraceError(
            f"{use}: the values of this gradient were not kept: the compiled function "
            f"{self.function} used them up in the same call, to update the parameter. Compile it "
            "with keep_grads=True to have them, or call zero_grad() before the next backward pass "
            "if they shall not be added to"
        )


def dropped_grad(spec: Spec, function: str) -> Tensor:
    """Return a tensor that stands for a gradient that was not kept."""
    return wrap(DroppedGrad(spec, function))
