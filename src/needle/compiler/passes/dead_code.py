"""Dead code: nodes that no output needs."""

from __future__ import annotations

from needle.graph.ir import Graph, sort


def remove_dead_code(graph: Graph) -> Graph:
    """Return the graph without the nodes that no output needs. Its inputs all stay.

    The nodes that stay keep their order.
    """
    needed = {id(node) for node in sort(graph.outputs)}
    nodes = [node for node in graph.nodes if id(node) in needed]
    return Graph(graph.inputs, nodes, graph.outputs, dict(graph.donations), graph.name)
