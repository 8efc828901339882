"""Winograd sums: gradients by 3×3 weights with 4 products for 9, where that pays."""

from __future__ import annotations

from collections.abc import Sequence

from needle import dtypes
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.tracing import expand
from needle.ops.convolution_form import Convolution
from needle.ops.winograd_sums import ELEMENTS, conv2d_weight_grad_winograd, pieces_of, tiles_of

#: What it costs to transform a tile, for each channel, and to transform a sum, in products.
_TRANSFORM, _SUM = 110, 25
#: Share of the products of the definition below which it pays.
_SHARE = 0.9


def winograd_sums(graph: Graph) -> Graph:
    """Return the graph with gradients by weights in Winograd's form; float32 only."""
    if any(_is_chosen(node) for node in graph.nodes):
        graph = graph.rebuild(_transform)
    return graph


def _is_chosen(node: Node) -> bool:
    lower, attrs = node.op.lower, node.attrs
    if not isinstance(lower, Convolution) or lower.form != "weight_grad":
        return False
    if lower.by_winograd or node.result.dtype != dtypes.float32:
        return False
    moves_by_one = attrs["stride"] == attrs["dilation"] == (1, 1) and attrs["groups"] == 1
    return attrs["kernel"] == (3, 3) and moves_by_one and _pays(*(v.shape for v in node.inputs))


def _pays(cotangent: tuple[int, ...], x: tuple[int, ...]) -> bool:
    """Whether fewer products are worth the transformations: decided by shapes alone."""
    images, rows, columns, outs = cotangent
    channels = x[3]
    if 0 in cotangent or 0 in x:
        return False
    down, across = tiles_of((rows, columns))
    tiles, pairs = images * down * across, channels * outs
    cost = tiles * (ELEMENTS * pairs + _TRANSFORM * (channels + outs))
    cost += _SUM * ELEMENTS * pieces_of(images, channels, outs) * pairs
    return cost < _SHARE * 9 * images * rows * columns * pairs


def _transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    if not _is_chosen(node):
        return keep(node, inputs).results
    return expand(conv2d_weight_grad_winograd, inputs, node.attrs, node)
