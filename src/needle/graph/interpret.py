"""Interpret a graph over the references of its ops: what compiled code is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from needle.config import modes
from needle.errors import NeedleError
from needle.graph.ir import Graph, Node, Value
from needle.ops.record import Kind
from needle.ops.samples import Array


def interpret(graph: Graph, arrays: Sequence[Array]) -> list[Array]:
    """Return the outputs of ``graph``; nothing is overwritten, donations are not carried out.

    Args:
        graph: what to run.
        arrays: one for each input.

    Returns:
        An array for each output. It may share memory with an input.

    Raises:
        NeedleError: an op refused its inputs; the message names the user's line.

    Example:
        >>> import numpy as np
        >>> from needle.graph import interpret, trace
        >>> graph = trace(lambda x: x * 2, ndl.zeros(2)).graph
        >>> interpret(graph, [np.array([1.0, 2.0], dtype=np.float32)])
        [array([2., 4.], dtype=float32)]
    """
    held: dict[Value, Any] = dict(zip(graph.inputs, arrays, strict=True))
    last = _last_uses(graph)
    for i, node in enumerate(graph.nodes):
        results = run_node(node, [_get(held, v) for v in node.inputs])
        held.update(zip(node.results, results, strict=True))
        for value in last.get(i, ()):
            held.pop(value, None)
    return [_get(held, value) for value in graph.outputs]


def _get(held: dict[Value, Any], value: Value) -> Any:
    return held[value] if value.constant is None else value.constant


def run_node(node: Node, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """Return the results of one node, from the reference of its op."""
    try:
        if node.op.is_ufunc:
            result = modes.state.quiet(node.op.reference, *arrays)
        elif node.op.kind is Kind.CONTROL:  # interprets graphs of its own
            result = node.op.reference(*arrays, **node.attrs)
        else:
            result = modes.state.quiet(node.op.reference, *arrays, **node.attrs)
    except NeedleError as error:
        if node.location:
            error.message = f"{error.message} (at {node.location})"
        raise
    results = result if isinstance(result, tuple) else (result,)
    return tuple([np.asarray(r) for r in results])


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    """Return for each node, by its place, the values that nobody reads after it."""
    last: dict[Value, int] = {}
    for i, node in enumerate(graph.nodes):
        for value in (*node.inputs, *node.results):
            last[value] = i
    for value in graph.outputs:
        last.pop(value, None)
    uses: dict[int, list[Value]] = {}
    for value, i in last.items():
        uses.setdefault(i, []).append(value)
    return uses


class Interpreter:
    """An executable that interprets: ``compile(..., backend="interpret")``.

    Args:
        graph: what to run.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def run(self, arrays: list[Array]) -> list[Array]:
        """Return the outputs; a donated input is overwritten, and is the output."""
        graph = self.graph
        outputs = interpret(graph, arrays)
        donated = set(graph.donations.values())
        # No output may live in the memory of an input, of a constant, or of another output: all
        # new values are there before the first input is overwritten.
        known = [*arrays, *(v.constant for v in graph.constants())]
        for i, array in enumerate(outputs):
            if any(np.may_share_memory(array, other) for other in known):
                outputs[i] = array = array.copy()
            known.append(array)
        for output, place in graph.donations.items():
            np.copyto(arrays[place], outputs[output])
            outputs[output] = arrays[place]
        assert donated or not graph.donations
        return outputs
