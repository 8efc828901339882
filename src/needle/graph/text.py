"""Print a graph as a program that reads as Python."""

from __future__ import annotations

import itertools
import keyword
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from needle.graph.ir import Graph, Node, Value

_BUILTIN_TYPES = (bool, int, float, str)


class Names:
    """Gives each value of a graph a name: its own as far as it is one, else a number."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._taken: set[str] = set()
        self._numbers = itertools.count()
        self._constants = itertools.count()

    def __getitem__(self, value: Value) -> str:
        name = self._names.get(id(value))
        if name is None:
            if value.constant is not None:
                number = constant_text(value)
                name = number or f"c{next(self._constants)}"
            elif value.name:
                name = self._unique(identifier(value.name))
            else:
                name = self._unique(f"v{next(self._numbers)}")
            self._names[id(value)] = name
        return name

    def _unique(self, name: str) -> str:
        candidate = name
        for i in itertools.count(2):
            if candidate not in self._taken:
                break
            candidate = f"{name}_{i}"
        self._taken.add(candidate)
        return candidate


def identifier(name: str) -> str:
    """Return ``name`` (``0.weight``, ``batch[0]``) as an identifier."""
    plain = re.sub(r"\W+", "_", name).strip("_") or "v"
    if plain[0].isdigit():
        plain = f"_{plain}"
    return f"{plain}_" if keyword.iskeyword(plain) else plain


def spec_text(value: Value) -> str:
    """Return shape and dtype of a value, as an annotation: ``float32[2, 3]``."""
    return str(value.spec) if value.shape else f"{value.dtype.name}[()]"


def constant_text(value: Value) -> str:
    """Return a constant of one element as a number; empty for others."""
    array = value.constant
    if not isinstance(array, np.ndarray):  # a fault that the verifier shows
        return repr(array)
    return str(array[()]) if array.ndim == 0 else ""


def graph_text(graph: Graph, indent: str = "", name: str = "") -> str:
    """Return ``graph`` as a Python function.

    State that is overwritten is written to in the end, as ``weight[...] = v7``. Each line says at
    its end where in the user's program it comes from.

    Args:
        graph: what to print.
        indent: what each line begins with.
        name: instead of the graph's.
    """
    names = Names()
    parameters = [f"{names[v]}: {spec_text(v)}" for v in graph.inputs]
    head = f"{indent}def {name or graph.name}({', '.join(parameters)}):"
    if len(head) > 100:
        lines = [f"{indent}def {name or graph.name}("]
        lines += [f"{indent}    {p}," for p in parameters]
        lines.append(f"{indent}):")
    else:
        lines = [head]
    inner = indent + "    "
    for value in graph.constants():
        if not constant_text(value):
            lines.append(f"{inner}{names[value]}: {spec_text(value)} = {_abbreviated(value)}")
    body = [line for node in graph.nodes for line in _node_lines(node, names, inner)]
    width = min(72, max((len(code) for code, _ in body), default=0))
    for code, comment in body:
        lines.append(f"{code:<{width}}  # {comment}" if comment else code)
    for output, place in graph.donations.items():
        lines.append(f"{inner}{names[graph.inputs[place]]}[...] = {names[graph.outputs[output]]}")
    kept = [names[v] for i, v in enumerate(graph.outputs) if i not in graph.donations]
    lines.append(f"{inner}return {', '.join(kept)}".rstrip())
    return "\n".join(lines)


def node_text(node: Node, names: Names | None = None) -> str:
    """Return a node as a line of Python, ``v2: float32[3] = add(v0, v1)``."""
    names = names or Names()
    arguments = [names[v] for v in node.inputs]
    arguments += [f"{key}={_attribute(value, key)}" for key, value in node.attrs.items()]
    call = f"{node.op.name}({', '.join(arguments)})"
    if len(node.results) == 1:
        (value,) = node.results
        return f"{names[value]}: {spec_text(value)} = {call}"
    targets = ", ".join(names[v] for v in node.results)
    specs = ", ".join(spec_text(v) for v in node.results)
    return f"{targets} = {call}  # {specs}"


def _node_lines(node: Node, names: Names, indent: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a node, each with its comment; graphs in attributes come before it."""
    for name, graph in node.graphs():
        for line in graph_text(graph, indent, name).split("\n"):
            yield line, ""
    location = node.location.rpartition("/")[2]
    part = "recomputed" if node.recomputation else "backward" if node.is_backward else ""
    parts = (location, node.scope, part)
    yield indent + node_text(node, names), " ".join(part for part in parts if part)


def _attribute(value: Any, key: str) -> str:
    if isinstance(value, Graph):
        return key
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, (tuple, list)):
        inner = ", ".join(_attribute(part, f"{key}_{i}") for i, part in enumerate(value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value) if isinstance(value, _BUILTIN_TYPES) or value is None else str(value)


def _abbreviated(value: Value) -> str:
    array = value.constant
    text = np.array2string(array, threshold=6, edgeitems=2, separator=", ", max_line_width=10**6)  # type: ignore[arg-type]
    return " ".join(text.split())
