"""State that lies in memory in another order than its axes are counted in.

The weights of convolutions have output channels first, and lie in memory with those last, as the
kernels read them (`nn.Conv2d`). A program's inputs are contiguous. So such a weight is an input
whose axes stand as they lie, and the first that is done with it is to count them as the function
does; where the program overwrites it, the last is to turn them round again. Both are transpositions
like others, and the pass "lay out" moves them to where they cancel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from needle.graph.ir import Graph, Node, Value
from needle.ops.movement import permute_dims
from needle.shapes import Shape, Spec


def take_in_order(graph: Graph, orders: Mapping[int, Shape]) -> None:
    """Make inputs those arrays whose axes stand in the order in which they lie in memory.

    Args:
        graph: is changed.
        orders: by the indices of inputs, the axes from the longest steps in memory to the shortest.
    """
    first: list[Node] = []
    for i, axes in orders.items():
        value = graph.inputs[i]
        graph.inputs[i] = given = Value(_permuted(value.spec, axes), name=value.name)
        inverse = tuple(int(a) for a in np.argsort(axes))
        node = Node(permute_dims.op, (given,), {"axes": inverse}, (value.spec,))
        # It takes the place of the input in all nodes that read that.
        node.results, value.node = (value,), node
        first.append(node)
    graph.nodes[:0] = first
    for output, place in graph.donations.items():
        if place in orders:
            axes, written = orders[place], graph.outputs[output]
            spec = _permuted(written.spec, axes)
            node = Node(permute_dims.op, (written,), {"axes": axes}, (spec,))
            graph.nodes.append(node)
            graph.outputs[output] = node.result


def _permuted(spec: Spec, axes: Shape) -> Spec:
    return Spec(tuple(spec.shape[a] for a in axes), spec.dtype)
