"""What a trace gives: the graph, and what its inputs and outputs are in the user's program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle import tree
from needle.arrays import to_array
from needle.extents import Formula
from needle.graph.differentiate import Backward
from needle.graph.ir import Graph
from needle.graph.surroundings import Reference
from needle.graph.tracing import Watched
from needle.ops.samples import Array
from needle.shapes import Shape, Spec
from needle.tensor import Tensor


@dataclass(eq=False)
class Source:
    """Where the array of a captured input is found at each call.

    Attributes:
        array: the array at the time of the trace.
        tensor: the tensor that has it, or None for an array that no tensor keeps.
        owner: the tensor whose `grad` it is, if it is one.
        tensors: all tensors that share it.
        number: what it holds, for a number that depends on an extent that varies.
        order: the axes in the order in which they lie in memory, which is that of the input; None
            if they lie as they are counted. See `needle.graph.order`.
    """

    array: Array
    tensor: Tensor | None = None
    owner: Tensor | None = None
    tensors: Sequence[Tensor] = ()
    number: Formula | None = None
    order: Shape | None = None

    def find(self) -> Any:
        """Return the array that the input has now."""
        if self.owner is not None:
            grad = self.owner._grad
            return None if grad is None else grad._data
        return self.array if self.tensor is None else self.tensor._data

    def given(self) -> Any:
        """Return the array as the input takes it: its axes as they lie in memory."""
        return self.find() if self.order is None else self.find().transpose(self.order)


@dataclass(eq=False)
class Result:
    """What a leaf of the function's result is at each call: one of these.

    Attributes:
        output: index of the graph's output that holds its values.
        argument: index of the argument that was returned as it is.
        constant: an object that is always the same: a tensor of the state, a Python number.
        requires_grad: whether it is a new leaf that requires a gradient.
    """

    output: int | None = None
    argument: int | None = None
    constant: Any = None
    requires_grad: bool = False


@dataclass(eq=False)
class GradUpdate:
    """What becomes of the `grad` of a tensor.

    Attributes:
        tensor: the tensor, or None for an argument.
        argument: index of the argument.
        output: index of the output with the values; None to set `grad` to None, or not to keep it.
        is_dropped: whether there is a gradient whose values are not kept.
    """

    tensor: Tensor | None
    argument: int | None
    output: int | None
    is_dropped: bool = False
    spec: Spec | None = None


@dataclass(eq=False)
class Traced:
    """A traced function.

    Attributes:
        graph: inputs are the tensors among the arguments, in the order of the flattened arguments,
            then what was captured; outputs are results, then overwritten inputs, then gradients.
        sources: for each captured input where its array comes from.
        results: for each leaf of what the function returned.
        structure: of what the function returned.
        grads: the gradients that the function has set.
        entry: tensors whose `grad` the function has read, with whether it was None.
        watched: what else the graph depends on.
        references: names by which the function takes something from around it.
        after: what is to be called after each run.
        backward: how gradients go from the results to arguments and state; None where they do not.
        arguments: how many of the inputs are arguments.
    """

    graph: Graph
    sources: list[Source]
    results: list[Result]
    structure: tree.TreeDef
    grads: list[GradUpdate]
    entry: list[tuple[Tensor | int, bool]]
    watched: list[Watched]
    references: list[Reference]
    after: list[Callable[[], Any]]
    backward: Backward | None
    arguments: int

    @property
    def captured(self) -> list[Tensor | None]:
        """The tensors that were captured, in the order of the inputs; None for a bare array."""
        return [source.tensor for source in self.sources]

    def arrays(self, *args: Any, **kwargs: Any) -> list[Array]:
        """Return an array for each input of the graph: those of the arguments, and the state's."""
        leaves, _ = tree.flatten((args, kwargs))
        given = [to_array(leaf, None) for leaf in leaves if is_array(leaf)]
        return [*given, *(source.given() for source in self.sources)]


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is traced, and no constant.

    A float64 scalar of NumPy is a Python float here as everywhere: it takes the dtype of the tensor
    beside it.
    """
    return isinstance(leaf, (Tensor, np.ndarray, np.generic)) and not isinstance(leaf, float)
