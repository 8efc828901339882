"""SubTrace: the trace of a function that a traced program runs as a part, such as a loop's body.

It stays usable after the function has returned: the backward pass enters it again and appends what
the vjp rules compute. From one list of nodes both graphs are then cut out, that of the function and
that of its derivative, with `extract`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from needle import tree
from needle.config import no_grad
from needle.dtypes import DType, is_float
from needle.eager import user_line
from needle.errors import TraceError
from needle.extents import Formula
from needle.gradnode import Edge, GradNode, edge_of
from needle.graph.cell import Cell
from needle.graph.ir import Graph, Node, Value
from needle.graph.tracing import Capture, Trace
from needle.ops.engine import as_tensor
from needle.shapes import Spec
from needle.tensor import Tensor, wrap
from needle.writes import put_back


class SubTrace(Trace):
    """The record of a function that runs inside of a traced one.

    Tensors from outside are captured by the trace around first, so that they are values there, and
    become inputs of the part.

    Args:
        name: of the function.
        around: the trace that it runs inside of.

    Attributes:
        outer: for each captured value what it is in the trace around.
        since: all GradNodes made inside have higher ids.
    """

    around: Trace

    def __init__(self, name: str, around: Trace) -> None:
        super().__init__(name, around)
        self.like, self.scope = around.like, around.scope
        self.watched, self.labels, self.reads = around.watched, around.labels, around.reads
        self._roots, self._stack, self._paths = around._roots, around._stack, around._paths
        around.parts.append(self)
        self.outer: dict[Value, Value] = {}
        self.since = GradNode(name, (), 0).id
        self._cells: dict[Cell, Value] = {}
        self._positions: dict[Node, int] = {}
        #: What the counters of writes stood at when the function returned.
        self._versions: list[tuple[Tensor, list[int]]] = []

    # What is captured

    def capture(self, tensor: Tensor) -> Capture:
        data = tensor._data
        around = self.around
        if data.__class__ is Cell and data.trace is around:
            held = data
        else:
            held = around.capture(tensor).cell
        capture = self.captures.get(id(data))
        if capture is None:
            value = held.read()
            inside = Value(value.spec, name=value.name, constant=value.constant)
            self.outer[inside] = value
            cell = Cell(self, inside, held._is_contiguous)
            capture = self.captures[id(data)] = Capture(held, cell, user_line())
            self._cells[held] = inside
        capture.note(tensor)
        return capture

    def number(self, formula: Formula, dtype: DType) -> Tensor:
        return self.around.number(formula, dtype)

    def entry_value(self, held: Cell) -> Value:
        """Return the value inside of what a cell of the trace around held at the beginning."""
        value = self._cells.get(held)
        if value is None:
            outer = held.read()
            value = self._cells[held] = Value(outer.spec, name=outer.name)
            self.outer[value] = outer
        return value

    def read_grad(self, tensor: Tensor) -> Tensor | None:
        slot = self._slot(tensor)
        if slot is None or slot.is_set:
            return super().read_grad(tensor)
        data = tensor._data
        inside = data.__class__ is Cell and data.trace is self
        return tensor._grad if inside else self.around.read_grad(tensor)

    # Entering, leaving, entering again

    def __enter__(self) -> SubTrace:
        super().__enter__()
        self.is_closed = False
        now = [(t, list(t._version or ())) for t, _ in self._versions]
        for tensor, version in self._versions:
            assert tensor._version is not None
            put_back(tensor._version, version)
        self._versions = now
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        now = [(t, list(t._version or ())) for t, _ in self._versions]
        changed = [t for t, _, version in self._touched.values() if version is not None]
        now += [(t, list(t._version or ())) for t in changed]
        super().__exit__(kind, *rest)
        for tensor, version in self._versions:
            assert tensor._version is not None
            put_back(tensor._version, version)
        self._versions = now
        self.is_closed = True

    def close(self) -> None:
        # What it shares with the trace around stays.
        self.is_closed = True
        self.close_parts()
        self.arguments.clear()
        self.captures.clear()
        self.grads.clear()
        self._origins.clear()
        self.outer.clear()
        self._cells.clear()
        self._versions.clear()

    def written(self) -> dict[Cell, Value]:
        """Return what the cells of the trace around hold now, if the function wrote to them.

        Raises:
            TraceError: one of them is seen through another tensor, too, or was overwritten with
                values through which gradients flow.
        """
        found = {c.array: c.cell.read() for c in self.captures.values() if c.is_written}
        roots = [capture.array.root for capture in self.captures.values()]
        for held in found:
            if sum(root is held.root for root in roots) > 1:
                raise TraceError(
                    f"{self.name} overwrites a tensor from outside, {held.value.spec}, which it "
                    "also sees through another tensor that shares its storage; clone() one of the "
                    "two, or pass it in and return what it becomes"
                )
        for tensor, before, _ in self._touched.values():
            if tensor._node is not None and tensor._node is not before["_node"]:
                raise TraceError(
                    f"{self.name} overwrites a tensor from outside, of shape "
                    f"{list(tensor.shape)}, with values through which gradients flow; pass it in "
                    "and return what it becomes, or write value.detach()"
                )
        return found

    def check_effects(self) -> None:
        """Raise if the function did what cannot be a part of a graph.

        Raises:
            TraceError: it has set gradients, or left something to be done after the call.
        """
        for slot in self.grads.values():
            if slot.is_set and slot.now is not slot.before:
                raise TraceError(
                    f"{self.name} sets the grad of a tensor of shape {list(slot.owner.shape)}, by "
                    "backward() perhaps; a part of a graph can only return values: call ndl.grad, "
                    "and return the gradients"
                )
        if self.after:
            raise TraceError(
                f"{self.name} does something that is no tensor program, to be done after each "
                "call; do it outside"
            )

    # Cutting out graphs

    def position(self, node: Node) -> int:
        """Return the place of a node among those of the trace."""
        if len(self._positions) < len(self.nodes):
            for i in range(len(self._positions), len(self.nodes)):
                self._positions[self.nodes[i]] = i
        return self._positions[node]

    def extract(
        self, inputs: Sequence[Value], outputs: Sequence[Value]
    ) -> tuple[Graph, list[Value]]:
        """Return a graph of its own that computes ``outputs`` from ``inputs``.

        Args:
            inputs: any values of the trace; what they are computed from is left out.
            outputs: the values wanted.

        Returns:
            The graph, and the captured values that are its inputs after the given ones.
        """
        new = {v: Value(v.spec, name=v.name) for v in inputs}
        needed: set[Node] = set()
        free: list[Value] = []
        seen = set(inputs)
        stack = list(reversed(outputs))
        while stack:
            value = stack.pop()
            if value in seen or value.constant is not None:
                continue
            seen.add(value)
            if value.node is None:
                free.append(value)
                new[value] = Value(value.spec, name=value.name)
            elif value.node not in needed:
                needed.add(value.node)
                stack.extend(reversed(value.node.inputs))
        nodes = []
        for node in sorted(needed, key=self.position):
            copy = Node(
                node.op,
                [new.get(v, v) for v in node.inputs],
                node.attrs,
                [v.spec for v in node.results],
            )
            copy.take_place(node)
            nodes.append(copy)
            for old, result in zip(node.results, copy.results, strict=True):
                new.setdefault(old, result)
        name = self.name if self.name.isidentifier() else "lambda_"
        graph = Graph(
            [new[v] for v in (*inputs, *free)], nodes, [new.get(v, v) for v in outputs], {}, name
        )
        return graph, free


@dataclass(eq=False)
class Result:
    """A tensor that a part returns.

    Attributes:
        value: what it holds.
        edge: where its cotangent goes; None if it has none.
    """

    value: Value
    edge: Edge

    @classmethod
    def of(cls, trace: SubTrace, tensor: Tensor) -> Result:
        """Return a tensor of ``trace``, or one from outside, as a result."""
        wants = tensor._requires_grad and is_float(tensor.dtype)
        edge = edge_of(tensor, trace.name) if wants else None
        return cls(trace.cell_of(tensor).read(), edge)


@dataclass(eq=False)
class Part:
    """A function as it was traced: what stands for its arguments, and what it returned.

    Attributes:
        trace: where its nodes are.
        arguments: tensors that stand for the arguments.
        results: the tensors that it returned, in the order of `tree.flatten`.
        leaves: all leaves of what it returned, numbers as tensors.
        structure: of what it returned.
        written: what cells of the trace around hold in the end, if it wrote to them.
    """

    trace: SubTrace
    arguments: list[Tensor]
    results: list[Result]
    leaves: list[Any]
    structure: tree.TreeDef
    written: dict[Cell, Value]


class Wanted(NamedTuple):
    """What a tensor is that shall stand for an argument."""

    spec: Spec
    requires_grad: bool = False


def trace_part(
    function: Callable[..., Any],
    name: str,
    around: Trace,
    leaves: Sequence[Any],
    structure: tree.TreeDef,
) -> Part:
    """Trace ``function`` as a part of what ``around`` records.

    Args:
        function: called with the arguments that ``leaves`` and ``structure`` make up.
        name: what errors call it.
        around: the trace that goes on.
        leaves: of the tuple of arguments; a tensor stands for each `Wanted`.
        structure: of the tuple of arguments.
    """
    trace = SubTrace(name, around)
    with trace:
        stand_ins = [trace.argument(*leaf) if isinstance(leaf, Wanted) else leaf for leaf in leaves]
        returned = function(*tree.unflatten(structure, stand_ins))
        found, shape = tree.flatten(returned)
        found = [as_tensor(leaf) if is_tensor_like(leaf) else leaf for leaf in found]
        results = [Result.of(trace, leaf) for leaf in found if isinstance(leaf, Tensor)]
        written = trace.written()
        trace.check_effects()
    arguments = [leaf for leaf in stand_ins if isinstance(leaf, Tensor)]
    return Part(trace, arguments, results, found, shape, written)


def is_tensor_like(leaf: Any) -> bool:
    """Whether a leaf of arguments or results becomes a tensor; else it is a constant."""
    return isinstance(leaf, (Tensor, np.ndarray, np.generic, bool, int, float))


@dataclass(eq=False)
class Operand:
    """A tensor of the trace around as it was when a part began to read it.

    Attributes:
        cell: what it held.
        edge: where its cotangent goes; None if it wants none.
    """

    cell: Cell
    edge: Edge = None

    @classmethod
    def of(cls, trace: Trace, tensor: Tensor, name: str) -> Operand:
        """Return a tensor as it is now."""
        wants = tensor._requires_grad and is_float(tensor.dtype)
        value = trace.cell_of(tensor).read()
        return cls(Cell(trace, value), edge_of(tensor, name) if wants else None)

    def value(self, trace: Trace) -> Value:
        """Return its value in ``trace``: the one that it belongs to, or one inside of that."""
        return value_in(trace, self.cell.trace, self.cell.value)

    @property
    def spec(self) -> Spec:
        """Shape and dtype."""
        return self.cell.value.spec


def value_in(trace: Trace, owner: Trace, value: Value) -> Value:
    """Return in ``trace`` what ``value`` is in ``owner``, which is the same trace or around it."""
    if trace is owner or value.constant is not None:
        return value
    with no_grad():
        return trace.cell_of(wrap(Cell(owner, value))).read()


def write_back(trace: SubTrace, held: Cell, value: Value) -> None:
    """Store in a cell of the trace around what a part has written there."""
    around, versions = trace.around, set()
    for capture in trace.captures.values():
        if capture.array is not held:
            continue
        for tensor in [ref() for ref in capture.holders]:
            if tensor is None:
                continue
            if tensor._data is not held:
                around.touch(tensor)
            if tensor._version is not None and id(tensor._version) not in versions:
                versions.add(id(tensor._version))
                tensor._version[0] += 1
    held.write(value, user_line())
