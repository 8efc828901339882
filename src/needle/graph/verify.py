"""Check that a graph is one: what every pass must leave as it found it."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from needle.errors import GraphError, NeedleError
from needle.graph.ir import Graph, Node, Value
from needle.graph.text import node_text
from needle.shapes import Spec


def verify(graph: Graph) -> Graph:
    """Return ``graph`` after checking it.

    Values are defined once, before they are read; inputs are no results; the specs are what `infer`
    says; constants have their spec; donations pair an output and an input of equal shape and dtype,
    each at most once. Graphs in attributes are checked, too.

    Raises:
        GraphError: one of these does not hold; the message shows the node as text.

    Example:
        >>> from needle.graph import trace, verify
        >>> len(verify(trace(ndl.exp, ndl.zeros(2)).graph).nodes)
        1
    """
    known: set[int] = set()
    for value in graph.inputs:
        if value.node is not None or value.constant is not None:
            _fail(f"the input {value!r} is defined in the graph")
        _define(value, known, "the inputs")
    for node in graph.nodes:
        _verify_node(node, known)
    for i, value in enumerate(graph.outputs):
        if value.constant is not None:
            _verify_constant(value, f"output {i}")
        elif id(value) not in known:
            _fail(f"output {i}, {value!r}, is defined nowhere in the graph")
    _verify_donations(graph)
    return graph


def _fail(what: str, node: Node | None = None) -> NoReturn:
    if node is None:
        raise GraphError(what)
    place = f" (from {node.location})" if node.location else ""
    raise GraphError(f"{what}, in: {node_text(node)}{place}")


def _define(value: Value, known: set[int], where: str) -> None:
    if id(value) in known:
        _fail(f"{value!r} is defined twice, by {where}")
    known.add(id(value))


def _verify_node(node: Node, known: set[int]) -> None:
    for i, value in enumerate(node.inputs):
        if value.constant is not None:
            _verify_constant(value, f"input {i}", node)
        elif id(value) not in known:
            _fail(f"input {i}, {value!r}, is read before it is defined", node)
    for _, graph in node.graphs():
        verify(graph)
    try:
        specs = node.op.infer(*[v.spec for v in node.inputs], **node.attrs)
    except NeedleError as error:
        _fail(f"the op refuses its inputs: {error}", node)
    inferred = (specs,) if isinstance(specs, Spec) else tuple(specs)
    have = tuple(v.spec for v in node.results)
    if inferred != have:
        said, held = (", ".join(map(str, s)) for s in (inferred, have))
        _fail(f"infer says {said}, the results have {held}", node)
    for i, value in enumerate(node.results):
        if value.node is not node or value.index != i:
            _fail(f"result {i} does not know that this node defines it", node)
        _define(value, known, f"the node {node.op.name}")


def _verify_constant(value: Value, what: str, node: Node | None = None) -> None:
    array = value.constant
    if value.node is not None:
        _fail(f"{what} is a constant and a result", node)
    if not isinstance(array, np.ndarray):
        _fail(f"{what} is a constant that is no array but {type(array).__name__}", node)
    if (array.shape, array.dtype) != tuple(value.spec):
        _fail(f"{what}, {value.spec}, is a constant of {Spec(array.shape, array.dtype)}", node)


def _verify_donations(graph: Graph) -> None:
    taken: set[int] = set()
    for output, place in graph.donations.items():
        if not (0 <= output < len(graph.outputs) and 0 <= place < len(graph.inputs)):
            _fail(f"there is no output {output} or no input {place} to donate")
        if place in taken:
            _fail(f"input {place} is donated twice")
        taken.add(place)
        new, old = graph.outputs[output].spec, graph.inputs[place].spec
        if new != old:
            _fail(f"output {output}, {new}, cannot take over input {place}, {old}")
