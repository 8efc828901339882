"""Decomposition: compound ops become the simpler ops that their records write them with.

A record's `decompose` is run on tensors that have no values, with an engine that notes each op as a
node. So what fuses is not the compound op, but its parts: the max, the exponentials and the sum of
a softmax each with what stands before and after it, and those of a loss with those of its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from needle.config import modes, no_grad
from needle.graph.ir import Graph, Node, Value, keep
from needle.ops.record import Op
from needle.shapes import Spec
from needle.tensor import Tensor, wrap


def decompose(graph: Graph) -> Graph:
    """Return the graph with each op whose record has a `decompose` replaced by what it makes."""

    def transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        if node.op.decompose is None:
            return keep(node, inputs).results
        return expand(node, inputs)

    return graph.rebuild(transform)


def expand(node: Node, inputs: Sequence[Value]) -> tuple[Value, ...]:
    """Return the values that the decomposition of ``node`` computes from ``inputs``.

    Decompositions may be made of compound ops, which are expanded, too.
    """
    function = node.op.decompose
    assert function is not None
    values = record(lambda *tensors: function(*tensors, **node.attrs), inputs, node)
    for value, expected in zip(values, node.results, strict=True):
        if value.spec != expected.spec:
            raise TypeError(
                f"{node.op.name} decomposes into {value.spec}, its record says {expected.spec}"
            )
    return values


def record(
    function: Callable[..., Any], inputs: Sequence[Value], like: Node | None = None
) -> tuple[Value, ...]:
    """Return the values that a function over tensors computes from ``inputs``, as new nodes.

    Args:
        function: written with ops; returns a tensor or a tuple of them.
        inputs: what its arguments stand for.
        like: the node that it replaces: gives the new nodes their place in the user's program, and
            compound ops among them are expanded.
    """
    with _Recorder(like) as recorder:
        outcome = function(*[recorder.tensor(v) for v in inputs])
        results = outcome if isinstance(outcome, tuple) else (outcome,)
        return tuple([recorder.value(t) for t in results])


class _Recorder:
    """While it is entered, ops on this thread make nodes: the least of a trace."""

    def __init__(self, like: Node | None) -> None:
        self._like = like
        self._values: dict[int, tuple[Tensor, Value]] = {}
        self._no_grad = no_grad()

    def __enter__(self) -> _Recorder:
        self._no_grad.__enter__()
        self._around, modes.state.trace = modes.state.trace, self
        return self

    def __exit__(self, *error: Any) -> None:
        modes.state.trace = self._around
        self._no_grad.__exit__(*error)

    def tensor(self, value: Value) -> Tensor:
        """Return a tensor, without values, that stands for ``value``."""
        t: Tensor = wrap(value.spec)
        self._values[id(t)] = (t, value)
        return t

    def value(self, tensor: Tensor) -> Value:
        """Return what ``tensor`` stands for; a constant if it comes from elsewhere."""
        if id(tensor) not in self._values:
            array = tensor._data
            value = Value(Spec(array.shape, array.dtype), constant=array)
            self._values[id(tensor)] = (tensor, value)
        return self._values[id(tensor)][1]

    def apply(self, op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
        specs = op.infer(*[Spec(t.shape, t.dtype) for t in inputs], **attrs)
        several = not isinstance(specs, Spec)
        node = Node(op, [self.value(t) for t in inputs], attrs, specs if several else (specs,))
        results: Sequence[Value] = node.results
        if self._like is not None:
            node.take_place(self._like)
            if op.decompose is not None:
                results = expand(node, node.inputs)
        tensors = tuple([self.tensor(v) for v in results])
        return tensors if several else tensors[0]
