"""Sinking: transpositions and conversions move to where they cancel, or cost the least.

A transposition moves behind elementwise ops whose operands are all transposed alike: there it meets
one that undoes it, or a matrix product, which reads a transposed operand as it is.

Conversions move to where there are fewer bytes: a widening one behind the views of its result, a
narrowing one before the views of its input, and each behind a slice.
"""

from __future__ import annotations

from collections import Counter

from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import apply, is_view, number_of
from needle.ops.copying import astype
from needle.ops.movement import permute_dims, reshape
from needle.ops.record import Kind
from needle.shapes import Shape


def sink(graph: Graph) -> Graph:
    """Return the graph with transpositions and conversions moved."""
    uses = Counter(graph.read_values())

    def transform(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        moved = None
        if len(node.results) == 1:
            if node.op.kind is Kind.ELEMENTWISE:
                moved = _permuted_after(node, inputs)
            # What others read, too, would be converted twice.
            if moved is None and inputs and uses[node.inputs[0]] == 1:
                moved = _converted_elsewhere(node, inputs)
        return keep(node, inputs).results if moved is None else (moved,)

    return graph.rebuild(transform)


def _axes_of(value: Value) -> Shape | None:
    """Return the axes of the transposition that makes ``value``, if one does."""
    if value.node is None or value.node.op is not permute_dims.op:
        return None
    axes: Shape = value.node.attrs["axes"]
    return axes


def _permuted_after(node: Node, inputs: tuple[Value, ...]) -> Value | None:
    """Return an elementwise op of transposed operands as the transposition of its result."""
    if node.op.fault is not None:
        return None  # its error says where, in the user's terms
    found = {axes for v in inputs if (axes := _axes_of(v)) is not None}
    result = node.results[0]
    if len(found) != 1:
        return None
    (axes,) = found
    if len(axes) != result.ndim:
        return None
    sources = []
    for value in inputs:
        source = _before(value, axes)
        if source is None:
            return None
        sources.append(source)
    made = apply(node.op, tuple(sources), node.attrs, node)
    permuted = apply(permute_dims.op, (made,), {"axes": axes}, node)
    return permuted if permuted.shape == result.shape else None


def _before(value: Value, axes: Shape) -> Value | None:
    """Return what becomes ``value``, or broadcasts like it, by a transposition; None if that would
    need another one."""
    if value.node is not None and _axes_of(value) == axes:
        return value.node.inputs[0]
    if number_of(value) is not None or value.size == 1:
        return value if value.ndim == 0 else None
    long = [a for a, n in enumerate(value.shape) if n != 1]
    if len(long) != 1:
        return None
    # Elements in a row: along the axis of the source that becomes theirs.
    place = axes[long[0] + len(axes) - value.ndim]
    shape = tuple(value.size if a == place else 1 for a in range(len(axes)))
    return apply(reshape.op, (value,), {"shape": shape}, value.node)


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
