"""Winograd: convolutions of float32 with kernels of 3×3, and their gradients.

Which are computed so depends on shapes alone; see `needle.ops.winograd`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.tracing import expand
from needle.ops import winograd_convolution, winograd_sums
from needle.ops.convolution_form import Convolution
from needle.ops.unfolding import Window

_MOVES = ("stride", "pads", "dilation", "groups")
_FORMS: dict[str, Callable[..., Any]] = {
    "forward": winograd_convolution.conv2d_by_winograd,
    "input_grad": winograd_convolution.conv2d_input_grad_by_winograd,
    "weight_grad": winograd_sums.conv2d_weight_grad_by_winograd,
}


def winograd(graph: Graph) -> Graph:
    """Return the graph with convolutions by Winograd's algorithm, where that takes less time."""
    if any(_is_transformed(node) for node in graph.nodes):
        graph = graph.rebuild(_transform)
    return graph


def _is_transformed(node: Node) -> bool:
    lower = node.op.lower
    if not isinstance(lower, Convolution) or lower.is_special:
        return False
    first, second = (v.shape for v in node.inputs)
    result, dtype = node.result.shape, node.result.dtype
    kernel = (result if lower.form == "weight_grad" else second)[:2]
    window = Window((kernel[0], kernel[1]), *(node.attrs[name] for name in _MOVES))
    if lower.form == "weight_grad":
        return winograd_sums.pays(window, first, second, dtype)
    counts = (result[1], result[2])
    return winograd_convolution.pays(window, counts, first[3], result[3], dtype)


def _transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    if not _is_transformed(node):
        return keep(node, inputs).results
    lower = node.op.lower
    assert isinstance(lower, Convolution)
    return expand(_FORMS[lower.form], inputs, node.attrs, node)
