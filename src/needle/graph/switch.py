"""Switch: one of several functions, chosen when the program runs, and its derivative.

The derivative is a switch over the derivatives of the branches, which compute again what they need
of the branch: kept values would have to be kept for all branches, whichever ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.gradnode import Edge
from needle.graph.flow import ControlNode, current_trace, wrap_results
from needle.graph.ir import Graph, Value
from needle.graph.pull import boundary, key_of, pull_back
from needle.graph.subtrace import Operand, Result, SubTrace, value_in, write_back
from needle.graph.tracing import Trace
from needle.ops.control import SWITCH
from needle.shapes import Spec
from needle.tensor import Tensor, wrap


@dataclass(eq=False)
class Branch:
    """One of the functions of a switch.

    Attributes:
        trace: where its nodes are.
        arguments: tensors that stand for the operands.
        results: what it returns.
        written: what cells of the trace around hold in the end, if it wrote to them.
    """

    trace: SubTrace
    arguments: list[Tensor]
    results: list[Result]
    written: dict[Any, Value]


class Switch:
    """A switch that is recorded.

    Args:
        name: what errors call it.
        around: the trace in which the branches were traced.
        index: which branch runs.
        operands: what they all take.
        branches: of equal operands and results.
    """

    def __init__(
        self,
        name: str,
        around: Trace,
        index: Operand,
        operands: Sequence[Operand],
        branches: Sequence[Branch],
    ) -> None:
        self.name = name
        self.around = around
        self.index = index
        self.operands = list(operands)
        self.branches = list(branches)
        #: Edges of what the branches have captured.
        self.captured: dict[Any, Edge] = {}
        for branch in branches:
            own = {id(t) for t in branch.arguments}
            edges = [result.edge for result in branch.results]
            for key, edge in boundary(edges, branch.trace.since).items():
                if key not in own:
                    self.captured.setdefault(key, edge)

    def record(self, trace: Trace) -> list[Tensor]:
        """Append the switch to ``trace``, and return its results."""
        written = {held: None for branch in self.branches for held in branch.written}
        extracted: list[tuple[Graph, list[Value]]] = []
        captured: dict[Value, None] = {}
        for branch in self.branches:
            inside = branch.trace
            outputs = [r.value for r in branch.results]
            for held in written:
                now = branch.written.get(held)
                outputs.append(inside.entry_value(held) if now is None else now)
            arguments = [t._data.value for t in branch.arguments]
            graph, free = inside.extract(arguments, outputs)
            outer = [inside.outer[v] for v in free]
            captured.update(dict.fromkeys(outer))
            extracted.append((graph, outer))
        graphs = []
        for graph, outer in extracted:
            count = len(graph.inputs) - len(outer)
            own = dict(zip(outer, graph.inputs[count:], strict=True))
            rest = [own.get(v) or Value(v.spec, name=v.name) for v in captured]
            graphs.append(
                Graph([*graph.inputs[:count], *rest], graph.nodes, graph.outputs, {}, graph.name)
            )
        inputs = [self.index.value(trace), *(o.value(trace) for o in self.operands)]
        inputs += [value_in(trace, self.around, v) for v in captured]
        node, _ = trace.append(SWITCH, inputs, {"branches": tuple(graphs)})
        count = len(self.branches[0].results)
        for held, value in zip(written, node.results[count:], strict=True):
            self._write(held, value)
        edges = [
            next((b.results[i].edge for b in self.branches if b.results[i].edge is not None), None)
            for i in range(count)
        ]
        into = [*(o.edge for o in self.operands), *self.captured.values()]
        flow = ControlNode(self.name, into, count, self)
        return wrap_results(trace, node, node.results[:count], edges, flow)

    def _write(self, held: Any, value: Value) -> None:
        for branch in self.branches:
            if held in branch.written:
                write_back(branch.trace, held, value)
                return

    def vjp(
        self, cotangents: list[Tensor | None], needed: Sequence[bool], create_graph: bool
    ) -> list[Tensor | None]:
        """Return the cotangents of operands and captured tensors: a switch over those of each
        branch."""
        trace = current_trace(self.name)
        live = {i: c for i, c in enumerate(cotangents) if c is not None}
        found = [self._pull(branch, live, create_graph) for branch in self.branches]
        specs = {
            i: Spec(total.shape, total.dtype)
            for _, pulled in found
            for i, total in enumerate(pulled)
            if total is not None and needed[i]
        }
        result: list[Tensor | None] = [None] * len(needed)
        if not specs:
            return result
        branches = []
        for branch, (arguments, pulled) in zip(self.branches, found, strict=True):
            with branch.trace:
                totals = [_or_zeros(pulled[i], spec) for i, spec in specs.items()]
                results = [Result.of(branch.trace, total) for total in totals]
            branches.append(Branch(branch.trace, arguments, results, {}))
        first = [Operand.of(trace, c, self.name) for c in live.values()]
        derivative = Switch(
            f"{self.name} backward", self.around, self.index, [*first, *self.operands], branches
        )
        for i, tensor in zip(specs, derivative.record(trace), strict=True):
            result[i] = tensor
        return result

    def _pull(
        self, branch: Branch, live: dict[int, Tensor], create_graph: bool
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Trace the derivative of a branch: what stands for its arguments, and the cotangents."""
        with branch.trace as inside:
            given = [inside.argument(branch.results[i].value.spec, create_graph) for i in live]
            seeds = [(branch.results[i].edge, g) for i, g in zip(live, given, strict=True)]
            found = pull_back(seeds, inside.since, inside, create_graph)
            keys = [*map(key_of, branch.arguments), *self.captured]
            return [*given, *branch.arguments], [found.get(key) for key in keys]


def _or_zeros(tensor: Tensor | None, spec: Spec) -> Tensor:
    return wrap(np.zeros(spec.shape, spec.dtype)) if tensor is None else tensor
