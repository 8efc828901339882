"""Graphs inside of graphs: what makes them fit to be called by native code.

The code of such a graph finds its inputs and outputs through pointers, and has nothing else. So its
constants become inputs, unless they stand in the code; each of its outputs is computed into memory
of its own, and is no input, no constant and no other output; and what is passed in lies in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from needle.compiler.access import View, is_dense, is_literal
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import apply
from needle.ops.control import LOOP, SWITCH, split_loop
from needle.ops.copying import clone
from needle.ops.record import Kind


def prepare_inner(graph: Graph) -> Graph:
    """Return the graph with all graphs inside of it ready for code; see the module."""
    if all(node.op.kind is not Kind.CONTROL for node in graph.nodes):
        return graph

    def transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        prepare = _PREPARE.get(node.op)
        if prepare is None:
            return keep(node, inputs).results
        given, attrs = prepare(inputs, node.attrs)
        made = Node(node.op, [_stored(v) for v in given], attrs, [v.spec for v in node.results])
        made.take_place(node)
        return made.results

    return graph.rebuild(transform)


def _stored(value: Value) -> Value:
    return apply(clone.op, (value,), {}) if is_literal(value) else value


def _ready(graph: Graph) -> tuple[Graph, list[Value]]:
    """Return a graph without constants and with outputs of its own, and the constants, which are
    its last inputs."""
    graph = prepare_inner(graph)
    constants = [v for v in graph.constants() if not is_literal(v)]
    new = {v: Value(v.spec, name=v.name) for v in constants}
    for node in graph.nodes:
        kept = keep(node, tuple(new.get(v, v) for v in node.inputs))
        new.update(zip(node.results, kept.results, strict=True))
    outputs: list[Value] = []
    nodes = [new[v].node for v in (n.results[0] for n in graph.nodes)]
    for value in (new.get(v, v) for v in graph.outputs):
        if value.node is None or value in outputs:
            value = apply(clone.op, (value,), {})
            nodes.append(value.node)
        outputs.append(value)
    inputs = [*graph.inputs, *(new[v] for v in constants)]
    return Graph(inputs, [n for n in nodes if n is not None], outputs, {}, graph.name), constants


def _prepare_switch(
    inputs: Sequence[Value], attrs: dict[str, Any]
) -> tuple[list[Value], dict[str, Any]]:
    ready = [_ready(branch) for branch in attrs["branches"]]
    more = list(dict.fromkeys(c for _, constants in ready for c in constants))
    branches = []
    for graph, constants in ready:
        own = graph.inputs[len(graph.inputs) - len(constants) :]
        place = dict(zip(constants, own, strict=True))
        first = graph.inputs[: len(graph.inputs) - len(constants)]
        rest = [place.get(c) or Value(c.spec) for c in more]
        branches.append(Graph([*first, *rest], graph.nodes, graph.outputs, {}, graph.name))
    return [*inputs, *more], {"branches": tuple(branches)}


def _prepare_loop(
    inputs: Sequence[Value], attrs: dict[str, Any]
) -> tuple[list[Value], dict[str, Any]]:
    first, stacks, constants, others, count = split_loop(inputs, **attrs)
    body, more = _ready(attrs["body"])
    test = attrs["test"]
    given = [*first, *stacks, *constants, *more, *others]
    if test is not None:
        test, more = _ready(test)
        given += more
    if count is not None:
        given.append(count)
    return given, {**attrs, "body": body, "test": test}


_PREPARE: dict[Any, Callable[..., tuple[list[Value], dict[str, Any]]]] = {
    SWITCH: _prepare_switch,
    LOOP: _prepare_loop,
}


def is_addressable(node: Node, place: int, view: View) -> bool:
    """Whether the code of control flow can read an input where a view of it lies.

    Inner graphs take rows of elements without gaps. A loop steps along the first axis of what it
    scans by itself.
    """
    value = node.inputs[place]
    if is_literal(view.base):
        return False
    free = 0
    if node.op is LOOP:
        carries, scanned = node.attrs["carries"], node.attrs["scanned"]
        free = int(carries <= place < carries + scanned)
    return value.size == 0 or is_dense(value.shape[free:], view.strides[free:])
