"""Constant folding: what depends on constants alone is computed when compiling."""

from __future__ import annotations

import numpy as np

from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import array_of, is_view

#: Results of up to so many bytes are kept as constants. Larger ones only where they are no larger
#: than what they are computed from: a constant must be stored, and read from memory.
FOLDED_BYTES = 4096


def fold_constants(graph: Graph) -> Graph:
    """Return the graph with nodes of constant inputs replaced by constants, if those are small.

    A node whose reference refuses the values stays, to raise its error when it runs.
    """

    def transform(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        return _folded(node, inputs) or keep(node, inputs).results

    return graph.rebuild(transform)


def _folded(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...] | None:
    size = sum(v.nbytes for v in node.results)
    # A view of constants costs nothing, and says more than the numbers: which of them are equal.
    if not inputs or (is_view(node.op) and size > sum(v.nbytes for v in inputs)):
        return None
    found = [array_of(v) for v in inputs]
    arrays = [a for a in found if a is not None]
    if len(arrays) != len(inputs):
        return None
    known = sum(v.nbytes for v in inputs if v.constant is not None)
    if size > max(known, FOLDED_BYTES):
        return None
    try:
        with np.errstate(all="ignore"):
            outcome = node.op.reference(*arrays, **node.attrs)
    except (ValueError, TypeError, IndexError, ArithmeticError):
        return None
    several = outcome if isinstance(outcome, tuple) else (outcome,)
    return tuple(
        Value(v.spec, constant=np.ascontiguousarray(a, dtype=v.dtype).reshape(v.shape))
        for v, a in zip(node.results, several, strict=True)
    )
