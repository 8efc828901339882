"""Pairing: convolutions of bfloat16 whose kernels multiply pairs.

Their weights are laid out in tiles of pairs, by ops of the graph. The gradient by the input is such
a convolution, too, if the kernel moves pixel by pixel; that by the weight sums pairs of pixels
then. What is left (gradients of other strides, groups of few channels) is computed in float32; see
`needle.compiler.passes.widen`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from needle import dtypes
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.tracing import expand
from needle.ops.convolution_form import Convolution
from needle.ops.paired_convolution import (
    SIDE,
    conv2d_in_pairs,
    conv2d_input_grad_in_pairs,
    conv2d_weight_grad_in_pairs,
)

_FORMS: dict[str, Callable[..., Any]] = {
    "forward": conv2d_in_pairs,
    "input_grad": conv2d_input_grad_in_pairs,
    "weight_grad": conv2d_weight_grad_in_pairs,
}
#: Gradients by weights of fewer channels are computed in float32: most of a tile would be empty.
_LEAST_CHANNELS = 4


def pair(graph: Graph) -> Graph:
    """Return the graph with convolutions of bfloat16 in pairs, where there are kernels for that."""
    if any(_is_paired(node) for node in graph.nodes):
        graph = graph.rebuild(_transform)
    return graph


def _is_paired(node: Node) -> bool:
    lower = node.op.lower
    if not isinstance(lower, Convolution) or lower.is_special:
        return False
    if node.result.dtype != dtypes.bfloat16 or not all(v.size for v in node.inputs):
        return False
    groups = node.attrs["groups"]
    if lower.form != "forward" and node.attrs["stride"] != (1, 1):
        return False
    if lower.form == "weight_grad":
        return groups == 1 and min(v.shape[3] for v in node.inputs) >= _LEAST_CHANNELS
    # Of few channels, most of a tile would be empty.
    weight = node.inputs[1]
    return groups == 1 or min(weight.shape[2], weight.shape[3] // groups) >= SIDE


def _transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    if not _is_paired(node):
        return keep(node, inputs).results
    lower = node.op.lower
    assert isinstance(lower, Convolution)
    return expand(_FORMS[lower.form], inputs, node.attrs, node)
