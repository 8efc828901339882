"""Winograd: convolutions of float32 with kernels of 3×3, and their gradients by the input.

Which are computed so depends on the shape of one image and of the weight alone; see
`needle.ops.winograd_convolution`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.tracing import expand
from needle.ops.convolution_form import Convolution
from needle.ops.unfolding import Window
from needle.ops.winograd_convolution import (
    conv2d_by_winograd,
    conv2d_input_grad_by_winograd,
    pays,
)

_MOVES = ("stride", "pads", "dilation", "groups")


def winograd(graph: Graph) -> Graph:
    """Return the graph with convolutions by Winograd's algorithm, where that takes less time."""
    if any(_is_transformed(node) for node in graph.nodes):
        graph = graph.rebuild(_transform)
    return graph


def _is_transformed(node: Node) -> bool:
    lower = node.op.lower
    if not isinstance(lower, Convolution) or lower.is_special or lower.form == "weight_grad":
        return False
    first, weight = (v.shape for v in node.inputs)
    _, rows, columns, outs = node.result.shape
    window = Window((weight[0], weight[1]), **{name: node.attrs[name] for name in _MOVES})
    return pays(window, (rows, columns), first[3], outs, node.result.dtype)


def _transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    if not _is_transformed(node):
        return keep(node, inputs).results
    lower = node.op.lower
    assert isinstance(lower, Convolution)
    form = conv2d_by_winograd if lower.form == "forward" else conv2d_input_grad_by_winograd

    def transformed(first: Any, weight: Any) -> Any:
        return form(first, weight, node.attrs["pads"])

    return expand(transformed, inputs, {}, node)
