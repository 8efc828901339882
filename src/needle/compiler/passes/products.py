"""Sums of products over the turns of a loop: one product after it instead of one in each turn.

    for t: w += x[t].T @ g[t]        becomes        w += concat(x).T @ concat(g)

That is how the gradient of a weight comes about that a loop reads. In the loop, each turn reads and
writes the whole sum, for a product of few terms; after it, the sum stays in registers for all of
them. Both factors have to be there for all turns: often they are stacked anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from needle.dtypes import float32, float64
from needle.graph.ir import Graph, Node, Value, keep, sort
from needle.graph.rewrite import apply, number_of
from needle.ops.arithmetic import add
from needle.ops.contraction import matmul
from needle.ops.control import LOOP
from needle.ops.movement import permute_dims, reshape

#: How many times as many bytes as the sum has may be stacked in each turn.
MOST_STACKED = 2


class Product(NamedTuple):
    """A sum that a loop carries.

    Attributes:
        place: which carried value it is.
        left: the first factor of each turn, transposed.
        right: the second factor of each turn.
    """

    place: int
    left: Value
    right: Value


def sum_products(graph: Graph) -> Graph:
    """Return the graph with sums of products moved out of loops of a known number of turns."""

    def transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        if node.op is LOOP and node.attrs["test"] is None and not node.attrs["counted"]:
            found = _find(node)
            if found:
                return _move_out(node, inputs, found)
        return keep(node, inputs).results

    return graph.rebuild(transform)


def _find(node: Node) -> list[Product]:
    """Return the sums of products that a loop carries."""
    body: Graph = node.attrs["body"]
    users = body.users()
    found = []
    for j in range(node.attrs["carries"]):
        state, after = body.inputs[j], body.outputs[j]
        total = after.node
        if total is None or total.op is not add.op or state not in total.inputs:
            continue
        others = [v for v in total.inputs if v is not state]
        if len(users[state]) != 1 or len(others) != 1 or body.outputs.count(after) != 1:
            continue
        if after in users or state in body.outputs:
            continue
        product = others[0].node
        if product is None or product.op is not matmul.op or after.dtype not in (float32, float64):
            continue
        left, right = product.inputs
        if left.ndim != 2 or right.ndim != 2 or left.node is None:
            continue
        if left.node.op is not permute_dims.op or left.node.inputs[0].ndim != 2:
            continue
        left = left.node.inputs[0]
        if left.nbytes + right.nbytes <= MOST_STACKED * after.nbytes:
            found.append(Product(j, left, right))
    return found


def _move_out(node: Node, inputs: Sequence[Value], found: Sequence[Product]) -> list[Value]:
    """Return what replaces the results of a loop without the sums."""
    body: Graph = node.attrs["body"]
    count, scanned = node.attrs["carries"], node.attrs["scanned"]
    moved = {p.place for p in found}
    kept = [j for j in range(count) if j not in moved]
    stacks = dict(
        zip(body.inputs[count : count + scanned], inputs[count : count + scanned], strict=True)
    )
    # The factors that are no slices become slices of new stacks.
    slices = list(body.outputs[count:])
    for p in found:
        slices += [v for v in (p.left, p.right) if v not in stacks and v not in slices]
    outputs = [*(body.outputs[j] for j in kept), *slices]
    places = [*kept, *range(count, len(body.inputs))]
    inner = Graph([body.inputs[i] for i in places], sort(outputs), outputs, {}, body.name)
    loop = Node(
        node.op,
        [inputs[i] for i in places],
        {**node.attrs, "body": inner, "carries": len(kept)},
        [
            *(node.results[j].spec for j in kept),
            *(v.spec._replace(shape=(node.attrs["length"], *v.shape)) for v in slices),
        ],
    )
    loop.take_place(node)
    made = loop.results[len(kept) :]
    stacks.update(zip(slices, made, strict=True))
    results = {node.results[j]: r for j, r in zip(kept, loop.results, strict=False)}
    results.update(zip(node.results[count:], made, strict=False))

    def rows(value: Value) -> Value:
        stack = stacks[value]
        shape = (stack.shape[0] * stack.shape[1], stack.shape[2])
        return apply(reshape.op, (stack,), {"shape": shape}, node)

    for p in found:
        left = apply(permute_dims.op, (rows(p.left),), {"axes": (1, 0)}, node)
        total = apply(matmul.op, (left, rows(p.right)), {}, node)
        if number_of(inputs[p.place]) != 0:
            total = apply(add.op, (inputs[p.place], total), {}, node)
        results[node.results[p.place]] = total
    return [results[v] for v in node.results]
