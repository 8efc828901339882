"""What switches and loops have in common: the GradNode, and how results become tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from needle.config import modes
from needle.errors import GradientError, TraceError
from needle.gradnode import Edge, GradNode, connect
from needle.graph.cell import Cell
from needle.graph.ir import Node, Value
from needle.graph.tracing import Trace
from needle.tensor import Tensor, wrap


class Flow(Protocol):
    """Control flow that was recorded, and can be differentiated."""

    def vjp(
        self, cotangents: list[Tensor | None], needed: Sequence[Any], create_graph: bool
    ) -> list[Tensor | None]:
        """Return the cotangents of the inputs, from those of the results."""


class ControlNode(GradNode):
    """The node of control flow: it records the derivative as control flow again."""

    __slots__ = ("flow",)

    def __init__(self, name: str, edges: Sequence[Edge], count: int, flow: Flow) -> None:
        super().__init__(name, tuple(edges), count)
        self.flow: Flow | None = flow

    def free(self) -> None:
        super().free()
        self.flow = None

    def vjp(
        self, cotangents: list[Tensor | None], needed: Sequence[Any], create_graph: bool
    ) -> list[Tensor | None]:
        if self.flow is None:
            raise GradientError(
                f"{self.name}: the graph was freed by an earlier backward pass; "
                "pass retain_graph=True to the earlier one"
            )
        wanted = [edge is not None and edge is not False for edge in needed]
        return self.flow.vjp(cotangents, wanted, create_graph)


def current_trace(name: str) -> Trace:
    """Return the trace that records now.

    Raises:
        TraceError: there is none: a traced tensor was left behind.
    """
    trace = modes.state.trace
    if not isinstance(trace, Trace):
        raise TraceError(
            f"{name}: the backward pass of traced control flow runs outside of the traced function "
            "that it was recorded in; call backward or ndl.grad inside of that function"
        )
    return trace


def wrap_results(
    trace: Trace, node: Node, values: Sequence[Value], edges: Sequence[Edge], flow: ControlNode
) -> list[Tensor]:
    """Return results of a node as tensors.

    Args:
        trace: that records it.
        node: the node of the graph.
        values: its results.
        edges: for each result where its cotangent goes inside; None where it has none.
        flow: the node of the backward pass.
    """
    tensors = [wrap(Cell(trace, value)) for value in values]
    if modes.state.grad and any(edge is not None for edge in flow.edges):
        for i, (tensor, edge) in enumerate(zip(tensors, edges, strict=True)):
            if edge is not None:
                connect(tensor, flow, i)
        trace._origins[flow.id] = node.location, node.scope
    return tensors
