"""The backward pass of a traced function whose results are differentiated outside of it.

The rules run over the traced results, with cotangents that are inputs, right after the function has
returned. What they apply becomes a graph of its own: from the cotangents, and what the forward
graph saves, to gradients.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from needle.autograd import run_backward
from needle.config import modes
from needle.errors import GradientError
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.tracing import Trace
from needle.shapes import Spec
from needle.tensor import Tensor


@dataclass(eq=False)
class Backward:
    """The backward pass of a traced function.

    Attributes:
        graph: inputs are a cotangent for each root, then what was saved; outputs are the gradients
            of the targets.
        roots: the indices of the function's results that are differentiated.
        targets: what gradients go to: tensors of the state, or the indices of arguments.
        saved: for each saved input the index of the forward graph's output that it is, or the
            index of the forward graph's input, counted from −1 downwards.
    """

    graph: Graph
    roots: list[int]
    targets: list[Tensor | int]
    saved: list[int]


class BackwardTrace:
    """The trace of a backward pass that follows that of a function.

    Args:
        run: the trace of the function, which has returned.
        roots: index and tensor of each result that is the end of a recorded graph.
        stand_ins: the tensors that stand for the arguments.
    """

    def __init__(
        self, run: Trace, roots: Sequence[tuple[int, Tensor]], stand_ins: Sequence[Tensor]
    ) -> None:
        self.run = run
        self.roots = [i for i, _ in roots]
        begin = len(run.nodes)
        outputs = [t for _, t in roots]
        self.cotangents: list[Value] = []
        seeds: list[Tensor] = []
        for t in outputs:
            seed = run.argument(Spec(t.shape, t.dtype), False, f"cotangent{len(seeds)}")
            seeds.append(seed)
            self.cotangents.append(seed._data.value)
        leaves = [t for c in run.captures.values() if not c.is_number for t in c.tensors()]
        targets = [t for t in leaves if t._requires_grad and t._node is None]
        places = {id(t): i for i, t in enumerate(stand_ins)}
        targets += [t for t in stand_ins if t._requires_grad]
        found = _without_hooks(targets, outputs, seeds)
        self.gradients: list[Value] = []
        #: An argument's index, or a reference to a tensor of the state.
        self.targets: list[int | weakref.ref[Tensor]] = []
        for target, gradient in zip(targets, found, strict=True):
            if gradient is not None:
                self.gradients.append(run.cell_of(gradient).read())
                self.targets.append(places.get(id(target), weakref.ref(target)))
        self.nodes = run.nodes[begin:]
        del run.nodes[begin:]

    def finish(
        self, forward: Graph, constants: Sequence[Node], shared: dict[int, int]
    ) -> Backward | None:
        """Return the backward pass, and make outputs of ``forward`` of what it saves.

        Args:
            forward: the graph of the function.
            constants: nodes that stand for constant arrays, which both passes compute.
            shared: outputs of ``forward`` by the ids of their values, which can be saved as well.
        """
        targets, gradients = [], []
        for key, gradient in zip(self.targets, self.gradients, strict=True):
            target = key if isinstance(key, int) else key()
            if target is not None:
                targets.append(target)
                gradients.append(gradient)
        if not targets:
            return None
        nodes = [*constants, *self.nodes]
        inputs = [*self.cotangents]
        known = {id(v) for node in nodes for v in node.results} | {id(v) for v in inputs}
        places = {id(v): i for i, v in enumerate(forward.inputs)}
        donated = {id(forward.inputs[i]) for i in forward.donations.values()}
        new: dict[Value, Value] = {}
        saved: list[int] = []
        for value in (*(v for node in nodes for v in node.inputs), *gradients):
            if id(value) in known or value in new or value.constant is not None:
                continue
            new[value] = Value(value.spec, name=value.name)
            inputs.append(new[value])
            place = places.get(id(value))
            if place is not None and id(value) not in donated:
                saved.append(-1 - place)
                continue
            if id(value) not in shared:
                shared[id(value)] = len(forward.outputs)
                forward.outputs.append(value)
            saved.append(shared[id(value)])
        graph = with_inputs(nodes, inputs, gradients, new, f"{forward.name}_backward")
        return Backward(graph, self.roots, targets, saved)


def with_inputs(
    nodes: Sequence[Node],
    inputs: list[Value],
    outputs: Sequence[Value],
    new: dict[Value, Value],
    name: str,
) -> Graph:
    """Return a graph of ``nodes``, which reads the new inputs instead of what they stand for."""
    made: list[Node] = []
    for node in nodes:
        copy = keep(node, tuple(new.get(v, v) for v in node.inputs))
        new.update(zip(node.results, copy.results, strict=True))
        made.append(copy)
    return Graph(inputs, made, [new.get(v, v) for v in outputs], {}, name)


def _without_hooks(
    targets: Sequence[Tensor], outputs: Sequence[Tensor], seeds: Sequence[Tensor]
) -> list[Tensor | None]:
    """Run the backward pass; the hooks of the targets run outside, when they get the gradients."""
    hooks: list[Any] = [t._hooks for t in targets]
    for t in targets:
        t._hooks = None
    try:
        return run_backward(outputs, seeds, targets, retain_graph=True, create_graph=False)
    finally:
        for t, kept in zip(targets, hooks, strict=True):
            t._hooks = kept


def trace_backward(
    run: Trace, roots: Sequence[tuple[int, Tensor]], stand_ins: Sequence[Tensor]
) -> BackwardTrace | None:
    """Trace the backward pass of ``roots``; None if nobody can ask for one.

    That is so when gradients are not recorded, and when the function has overwritten what the pass
    needs, as a training step does with the parameters.
    """
    if not roots or not modes.state.grad:
        return None
    begin = len(run.nodes)
    try:
        return BackwardTrace(run, roots, stand_ins)
    except GradientError:
        del run.nodes[begin:]
        return None
