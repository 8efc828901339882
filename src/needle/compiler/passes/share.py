"""Common subexpressions: what is computed twice in the same way is computed once.

All ops are functions of their inputs and attributes alone, random ones too: they take the state of
a generator and return the next. So two nodes of one op over the same values with the same
attributes are one, unless one of them computes again what would take memory to keep.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np

from needle.graph.ir import Graph, Node, Value, keep

#: Constants of up to so many bytes are compared.
COMPARED_BYTES = 1 << 16


def share(graph: Graph) -> Graph:
    """Return the graph with equal nodes, and equal constants, made one."""
    constants: dict[Hashable, Value] = {}
    seen: dict[Hashable, tuple[Value, ...]] = {}

    def only(value: Value) -> Value:
        if value.constant is None or value.nbytes > COMPARED_BYTES:
            return value
        return constants.setdefault((value.spec, value.constant.tobytes()), value)

    def transform(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        inputs = tuple(map(only, inputs))
        ids = [id(v) for v in inputs]
        if node.op.commutes:
            ids.sort()
        key = (id(node.op), tuple(ids), frozen(node.attrs), node.recomputation)
        if key not in seen:
            seen[key] = keep(node, inputs).results
        return seen[key]

    return graph.rebuild(transform)


def frozen(attribute: Any) -> Hashable:
    """Return a hashable that is equal for equal attributes only: 0.0 is not −0.0, nor 1 True."""
    if isinstance(attribute, Mapping):
        return tuple((name, frozen(v)) for name, v in sorted(attribute.items()))
    if isinstance(attribute, tuple | list):
        return tuple(map(frozen, attribute))
    if isinstance(attribute, bool | int | float | complex | str | bytes | None):
        return type(attribute).__name__, repr(attribute)
    if isinstance(attribute, np.ndarray):
        return attribute.dtype.name, attribute.shape, attribute.tobytes()
    try:
        hash(attribute)
    except TypeError:
        return id(attribute)
    return attribute
