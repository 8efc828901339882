"""Widening: sums of 16-bit floats that kernels do not hold in float32 by themselves.

That are those that lie in memory while they grow, and those of convolutions that are not computed
in pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle import dtypes
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.tracing import expand
from needle.ops.convolution_form import Convolution
from needle.ops.engine import engine
from needle.ops.ordered import Scan, Scatter


def widen(graph: Graph) -> Graph:
    """Return the graph with scans, scatters and convolutions of 16-bit floats done in float32."""
    if any(_is_narrow(node) for node in graph.nodes):
        graph = graph.rebuild(_widened)
    return graph


def _is_narrow(node: Node) -> bool:
    lower, dtype = node.op.lower, node.results[0].dtype
    is_sum = isinstance(lower, Scan | Scatter) and lower.is_sum
    if isinstance(lower, Convolution):
        is_sum = not lower.is_special
    return is_sum and dtypes.is_float(dtype) and dtypes.accumulation_dtype(dtype) != dtype


def _widened(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
    if not _is_narrow(node):
        return keep(node, inputs).results
    dtype = node.results[0].dtype
    wide = dtypes.accumulation_dtype(dtype)

    def in_wide(*tensors: Any, **attrs: Any) -> Any:
        given = tuple(t.astype(wide) if t.dtype == dtype else t for t in tensors)
        return engine.apply(node.op, given, attrs).astype(dtype)

    return expand(in_wide, inputs, node.attrs, node)
