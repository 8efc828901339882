"""Sinking: conversions move to where there are fewer bytes.

A widening one moves behind the views of its result, a narrowing one before the views of its input,
and each behind a slice.
"""

from __future__ import annotations

from collections import Counter

from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import apply, is_view
from needle.ops.copying import astype


def sink(graph: Graph) -> Graph:
    """Return the graph with conversions moved."""
    uses = Counter(graph.read_values())

    def transform(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        moved = None
        # What others read, too, would be converted twice.
        if len(node.results) == 1 and inputs and uses[node.inputs[0]] == 1:
            moved = _converted_elsewhere(node, inputs)
        return keep(node, inputs).results if moved is None else (moved,)

    return graph.rebuild(transform)


def _converted_elsewhere(node: Node, inputs: tuple[Value, ...]) -> Value | None:
    """Return a view of a conversion as the conversion of a view, or the other way round."""
    inner = inputs[0].node
    if inner is None:
        return None
    source, result = inner.inputs[0] if inner.inputs else inputs[0], node.results[0]
    if is_view(node.op) and inner.op is astype.op:
        is_wider = result.dtype.itemsize > source.dtype.itemsize
        if result.size < source.size or (is_wider and result.size == source.size):
            seen = apply(node.op, (source,), node.attrs, node)
            return apply(astype.op, (seen,), inner.attrs, inner)
    if node.op is astype.op and is_view(inner.op):
        is_narrower = result.dtype.itemsize < source.dtype.itemsize
        if is_narrower and result.size == source.size:
            converted = apply(astype.op, (source,), node.attrs, node)
            return apply(inner.op, (converted,), inner.attrs, inner)
    return None
