"""The Graph: a program of ops in static single assignment form.

A `Node` applies one op record to values and defines new values; a `Value` knows its shape, its
dtype and the node that defines it. Nodes stand in an order in which they can run. A graph is what a
trace makes, what every pass takes and returns, and what a backend compiles.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from needle.dtypes import DType
from needle.ops.record import Op
from needle.ops.samples import Array
from needle.shapes import Shape, Spec


class Value:
    """What a node, an input or a constant of a graph defines.

    Attributes:
        spec: shape and dtype.
        node: the node that defines it; None for inputs and constants.
        index: which of the node's results it is.
        name: what people call it: an argument's or a parameter's name; may be empty.
        constant: the values, for a constant; None otherwise.
    """

    __slots__ = ("constant", "index", "name", "node", "spec")

    def __init__(
        self,
        spec: Spec,
        node: Node | None = None,
        index: int = 0,
        name: str = "",
        constant: Array | None = None,
    ) -> None:
        self.spec = spec
        self.node = node
        self.index = index
        self.name = name
        self.constant = constant

    @property
    def shape(self) -> Shape:
        """Extent of each axis."""
        return self.spec.shape

    @property
    def dtype(self) -> DType:
        """Data type of the elements."""
        return self.spec.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.spec.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.spec.size

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.spec.nbytes

    def __repr__(self) -> str:
        what = self.name or (self.node.op.name if self.node is not None else "value")
        return f"<{what}: {self.spec}>"


class Node:
    """One application of an op.

    Attributes:
        op: the record.
        inputs: the values that it reads.
        attrs: the op's attributes; those of control flow hold graphs.
        results: the values that it defines.
        location: ``file:line`` of the user's code that it comes from; may be empty.
        scope: path of the module that applied it, such as ``encoder.layers.0``; may be empty.
        is_backward: whether the backward pass applied it.
        recomputation: number of the recomputation that it is part of, 0 for none: what computes a
            value again to save memory must neither be shared with what computed it first nor run
            along with it.
    """

    __slots__ = (
        "attrs",
        "inputs",
        "is_backward",
        "location",
        "op",
        "recomputation",
        "results",
        "scope",
    )

    def __init__(
        self,
        op: Op,
        inputs: Sequence[Value],
        attrs: Mapping[str, Any],
        specs: Sequence[Spec],
        location: str = "",
        scope: str = "",
        is_backward: bool = False,
        recomputation: int = 0,
    ) -> None:
        self.op = op
        self.inputs = tuple(inputs)
        self.attrs = dict(attrs)
        self.results = tuple(Value(spec, self, i) for i, spec in enumerate(specs))
        self.location = location
        self.scope = scope
        self.is_backward = is_backward
        self.recomputation = recomputation

    @property
    def result(self) -> Value:
        """The only result."""
        (value,) = self.results
        return value

    def take_place(self, other: Node) -> None:
        """Take over where in the user's program ``other`` comes from, which this node replaces."""
        self.location, self.scope = other.location, other.scope
        self.is_backward, self.recomputation = other.is_backward, other.recomputation

    def graphs(self) -> Iterator[tuple[str, Graph]]:
        """Yield the graphs among the attributes, each with its name: ``body``, ``branches_1``."""
        for name, attribute in self.attrs.items():
            if isinstance(attribute, Graph):
                yield name, attribute
            elif isinstance(attribute, tuple):
                for i, part in enumerate(attribute):
                    if isinstance(part, Graph):
                        yield f"{name}_{i}", part

    def __repr__(self) -> str:
        return f"<Node {self.op.name}({', '.join(map(repr, self.inputs))})>"


@dataclass(eq=False)
class Graph:
    """A program: from the values of its inputs to those of its outputs.

    Attributes:
        inputs: values given by the caller, in order.
        nodes: in an order in which they can run.
        outputs: values returned to the caller; an input, a constant or one value twice may be
            among them.
        donations: from the index of an output to the index of the input whose storage it takes
            over: how state is updated in place. Shape and dtype are equal.
        name: of the function that was traced.
    """

    inputs: list[Value]
    nodes: list[Node]
    outputs: list[Value]
    donations: dict[int, int] = field(default_factory=dict)
    name: str = "graph"

    def __str__(self) -> str:
        from needle.graph.text import graph_text

        return graph_text(self)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Return the outputs for ``arrays``, by the references of the ops; see `interpret`."""
        from needle.graph.interpret import interpret

        return interpret(self, arrays)

    def constants(self) -> list[Value]:
        """Return the constants that nodes and outputs read, each once, in order of first use."""
        found: dict[int, Value] = {}
        for value in self.read_values():
            if value.constant is not None:
                found.setdefault(id(value), value)
        return list(found.values())

    def read_values(self) -> Iterable[Value]:
        """Yield each value as often as it is read, by nodes and then as an output."""
        for node in self.nodes:
            yield from node.inputs
        yield from self.outputs

    def users(self) -> dict[Value, list[Node]]:
        """Return the nodes that read each value; a node that reads it twice is there twice."""
        users: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in node.inputs:
                users.setdefault(value, []).append(node)
        return users

    def rebuild(self, transform: Callable[[Node, tuple[Value, ...]], Sequence[Value]]) -> Graph:
        """Return the graph with each node replaced by what ``transform`` says.

        Args:
            transform: from a node and its inputs in the new graph to the values that replace its
                results. It may make any number of nodes; they are found from the values, and those
                that nothing reads are left out.
        """
        new: dict[Value, Value] = {}
        for node in self.nodes:
            inputs = tuple(new.get(v, v) for v in node.inputs)
            replaced = transform(node, inputs)
            new.update(zip(node.results, replaced, strict=True))
        outputs = [new.get(v, v) for v in self.outputs]
        return Graph(self.inputs, sort(outputs), outputs, dict(self.donations), self.name)

    def draw(self, groups: Sequence[tuple[str, Collection[Node]]] = ()) -> str:
        """Return a picture as SVG; see `needle.graph.draw.draw`."""
        from needle.graph.draw import draw

        return draw(self, groups)

    def _repr_svg_(self) -> str:
        return self.draw()


def everywhere(graph: Graph, transform: Callable[[Graph], Graph]) -> Graph:
    """Return what ``transform`` makes of ``graph``, and before of all graphs inside of it.

    Args:
        graph: stays as it is.
        transform: from a graph to one of as many inputs and outputs of the same specs.
    """

    def changed(attribute: Any) -> Any:
        if isinstance(attribute, Graph):
            return everywhere(attribute, transform)
        if isinstance(attribute, tuple) and any(isinstance(part, Graph) for part in attribute):
            return tuple(map(changed, attribute))
        return attribute

    def inside(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
        if not any(node.graphs()):
            return keep(node, inputs).results
        copy = keep(node, inputs, is_new=True)
        copy.attrs = {name: changed(attribute) for name, attribute in node.attrs.items()}
        return copy.results

    if any(any(node.graphs()) for node in graph.nodes):
        graph = graph.rebuild(inside)
    return transform(graph)


def keep(node: Node, inputs: tuple[Value, ...], is_new: bool = False) -> Node:
    """Return ``node`` reading ``inputs``: itself if it does already, else (or if it shall be new) a
    copy."""
    if not is_new and all(a is b for a, b in zip(inputs, node.inputs, strict=True)):
        return node
    return Node(
        node.op,
        inputs,
        node.attrs,
        [v.spec for v in node.results],
        node.location,
        node.scope,
        node.is_backward,
        node.recomputation,
    )


def sort(outputs: Iterable[Value]) -> list[Node]:
    """Return the nodes that ``outputs`` need, in an order in which they can run."""
    order: list[Node] = []
    done: set[int] = set()
    stack: list[tuple[Node, bool]] = [(v.node, False) for v in outputs if v.node is not None]
    stack.reverse()
    while stack:
        node, ready = stack.pop()
        if id(node) in done:
            continue
        if ready:
            done.add(id(node))
            order.append(node)
            continue
        stack.append((node, True))
        needed = [v.node for v in node.inputs if v.node is not None and id(v.node) not in done]
        stack.extend((n, False) for n in reversed(needed))
    return order
