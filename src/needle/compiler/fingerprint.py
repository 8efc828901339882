"""Fingerprints: equal for graphs that compile to the same code."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from needle.errors import GraphError
from needle.graph.ir import Graph, Value


def fingerprint(graph: Graph) -> str:
    """Return a digest of all of a graph that code depends on; names and lines are not part of it.

    Example:
        >>> from needle.compiler.fingerprint import fingerprint
        >>> from needle.graph import trace
        >>> def graph(function):
        ...     return trace(function, ndl.ones(3)).graph
        >>> fingerprint(graph(lambda x: x + 1)) == fingerprint(graph(lambda y: y + 1))
        True
    """
    digest = hashlib.sha256()
    _add(digest, graph)
    return digest.hexdigest()


def _add(digest: Any, graph: Graph) -> None:
    numbers: dict[Value, int] = {}

    def number(value: Value) -> str:
        if value in numbers:
            return str(numbers[value])
        numbers[value] = len(numbers)
        if value.constant is None:
            return f"new {value.spec}"
        content = np.ascontiguousarray(value.constant).tobytes()
        return f"constant {value.spec} {hashlib.sha256(content).hexdigest()}"

    def line(text: str) -> None:
        digest.update(text.encode() + b"\n")

    line("inputs " + "; ".join(number(v) for v in graph.inputs))
    for node in graph.nodes:
        line(f"{node.op.name} {node.recomputation} " + "; ".join(number(v) for v in node.inputs))
        line(attribute_text(node.attrs))
        line("; ".join(number(v) for v in node.results))
    line("outputs " + "; ".join(number(v) for v in graph.outputs))
    line(f"donations {sorted(graph.donations.items())}")


def attribute_text(value: Any) -> str:
    """Return an attribute as text that tells it from all others."""
    if isinstance(value, Graph):
        return f"graph {fingerprint(value)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {attribute_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(attribute_text(v) for v in value) + ")"
    if isinstance(value, enum.Enum):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str | np.dtype | np.generic):
        return repr(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    raise GraphError(f"an attribute of a node is a {type(value).__name__}: {value!r:.60}")
