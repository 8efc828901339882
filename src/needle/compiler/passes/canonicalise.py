"""Canonical forms: of two ways to say the same, one, so that later passes look for one only.

- A constant of one number is a 0-d constant that is broadcast.
- Elementwise ops broadcast by themselves: they read the values below a `broadcast_to`, and where
  all of them are smaller than the result, it is computed small and broadcast afterwards.
- In ops that commute, the constant stands second.
- Tensors joined along a new axis have that axis before they are joined, not after.
"""

from __future__ import annotations

from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import apply, constant, fitted, number_of
from needle.ops.joining import concat
from needle.ops.movement import broadcast_to, reshape
from needle.ops.record import Kind
from needle.shapes import Shape, broadcast_shapes


def canonicalise(graph: Graph) -> Graph:
    """Return the graph in canonical form."""
    splats: dict[Value, Value] = {}
    users = graph.users()

    def spread(value: Value) -> Value:
        """Return a constant of one number as a broadcast 0-d constant."""
        if value.constant is None or not value.ndim or not value.size:
            return value
        if value not in splats:
            splats[value] = _as_splat(value)
        return splats[value]

    def transform(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        inputs = tuple(map(spread, inputs))
        if node.op.commutes and is_constant(inputs[0]) and not is_constant(inputs[1]):
            inputs = inputs[::-1]
        # The error of an op that refuses values says where they stand: not below a broadcast.
        if node.op.kind is Kind.ELEMENTWISE and node.op.fault is None:
            return (_unbroadcast(node, inputs),)
        if node.op is reshape.op and len(users[node.inputs[0]]) == 1:
            # What is reshaped again is one reshape, perhaps none: another pass sees to that.
            again = any(user.op is reshape.op for user in users.get(node.results[0], ()))
            stacked = None if again else _as_stack(node, inputs[0])
            if stacked is not None:
                return (stacked,)
        return keep(node, inputs).results

    return graph.rebuild(transform)


def _as_stack(node: Node, value: Value) -> Value | None:
    """Return a reshaped join of equal parts as a join along the axis that tells them apart.

    So it is the result that the parts are written to, and not what it is copied from.
    """
    join = value.node
    if join is None or join.op is not concat.op or len(join.inputs) < 2:
        return None
    axis, part = join.attrs["axis"], join.inputs[0].shape
    along = len(join.inputs)
    shape = (*part[:axis], along, *part[axis:])
    if node.results[0].shape != shape or any(v.shape != part for v in join.inputs):
        return None
    single = {"shape": (*part[:axis], 1, *part[axis:])}
    parts = tuple(apply(reshape.op, (v,), single, node) for v in join.inputs)
    return apply(concat.op, parts, {"axis": axis}, join)


def is_constant(value: Value) -> bool:
    """Whether ``value`` is a constant, or one number everywhere."""
    return value.constant is not None or number_of(value) is not None


def _as_splat(value: Value) -> Value:
    """Return a constant of one number (to the bit) as a broadcast 0-d constant."""
    assert value.constant is not None
    flat = value.constant.reshape(-1)
    first = flat[:1]
    if flat.tobytes() != first.tobytes() * flat.size:
        return value
    return constant(first.item(), value.dtype, value.shape)


def _source(value: Value) -> Value:
    """Return what ``value`` shows before broadcasting: below `broadcast_to`, and below a `reshape`
    that only puts axes of extent 1 in front."""
    while value.node is not None:
        op, below = value.node.op, value.node.inputs[:1]
        is_stretched = op is broadcast_to.op
        if not is_stretched and not (op is reshape.op and _is_lead(value.shape, below[0].shape)):
            break
        value = below[0]
    return value


def _is_lead(shape: Shape, source: Shape) -> bool:
    lead = len(shape) - len(source)
    return lead >= 0 and shape == (1,) * lead + source


def _unbroadcast(node: Node, inputs: tuple[Value, ...]) -> Value:
    """Return the node's result, computed from the values below the broadcasts of its inputs."""
    spec = node.results[0].spec
    sources = tuple(_source(v) for v in inputs)
    if all(a is b for a, b in zip(sources, inputs, strict=True)):
        return keep(node, inputs).result
    if broadcast_shapes(*(v.shape for v in sources)) == spec.shape:
        return keep(node, sources).result
    return fitted(apply(node.op, sources, node.attrs, node), spec, node)
