"""Pairing: convolutions of bfloat16 whose kernels multiply pairs.

Their weights are laid out in tiles of pairs, by ops of the graph. The gradient by the input is such
a convolution, too, if the kernel moves pixel by pixel. What is left (gradients by weights, groups
of few channels) is computed in float32; see `needle.compiler.passes.widen`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from needle import dtypes
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.tracing import expand
from needle.ops.convolution_form import Convolution
from needle.ops.paired_convolution import SIDE, conv2d_in_pairs, conv2d_input_grad_in_pairs

_FORMS: dict[str, Callable[..., Any]] = {
    "forward": conv2d_in_pairs,
    "input_grad": conv2d_input_grad_in_pairs,
}


def pair(graph: Graph) -> Graph:
    """Return the graph with convolutions of bfloat16 in pairs, where there are kernels for that."""
    if any(_is_paired(node) for node in graph.nodes):
        graph = graph.rebuild(_transform)
    return graph


def _is_paired(node: Node) -> bool:
    lower = node.op.lower
    if not isinstance(lower, Convolution) or lower.in_pairs or lower.form not in _FORMS:
        return False
    if node.result.dtype != dtypes.bfloat16 or not all(v.size for v in node.inputs):
        return False
    groups, weight = node.attrs["groups"], node.inputs[1]
    # Of few channels, most of a tile would be empty.
    if groups > 1 and min(weight.shape[2], weight.shape[3] // groups) < SIDE:
        return False
    return lower.form == "forward" or node.attrs["stride"] == (1, 1)


def _transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    if not _is_paired(node):
        return keep(node, inputs).results
    lower = node.op.lower
    assert isinstance(lower, Convolution)
    return expand(_FORMS[lower.form], inputs, node.attrs, node)
