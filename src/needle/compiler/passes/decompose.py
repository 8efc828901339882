"""Decomposition: compound ops become the simpler ops that their records write them with.

So what fuses is not the compound op, but its parts: the max, the exponentials and the sum of a
softmax each with what stands before and after it, and those of a loss with those of its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.tracing import expand


def decompose(graph: Graph) -> Graph:
    """Return the graph with each op whose record has a `decompose` replaced by what it makes.

    Decompositions may be made of compound ops themselves.
    """
    while any(node.op.decompose is not None for node in graph.nodes):
        graph = graph.rebuild(_expanded)
    return graph


def _expanded(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    function = node.op.decompose
    if function is None:
        return keep(node, inputs).results
    values = expand(function, inputs, node.attrs, node)
    for value, expected in zip(values, node.results, strict=True):
        if value.spec != expected.spec:
            raise TypeError(
                f"{node.op.name} decomposes into {value.spec}, its record says {expected.spec}"
            )
    return values
