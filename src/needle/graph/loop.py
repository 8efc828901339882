"""Loops: a body that is run again and again, and its derivative.

The derivative of a loop is a loop in the other direction. It carries the cotangents of the carried
values, scans those of the stacks, and adds up those of what the body has captured. What it needs of
the forward turns, the forward loop stacks for it: results are added to the forward loop's node when
the derivative is recorded. What only moves elements, and what is the same in all turns, is computed
again instead.

The cotangents of the derivative are those of a loop, too. To it, the carried values of the forward
loop are stacks that it scans, so these are results with cotangents of their own.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.errors import GradientError
from needle.gradnode import Edge
from needle.graph.cell import Cell
from needle.graph.flow import ControlNode, current_trace, wrap_results
from needle.graph.ir import Node, Value
from needle.graph.pull import boundary, pull_back
from needle.graph.subtrace import Operand, Part, Result, SubTrace, value_in, write_back
from needle.graph.tracing import Trace
from needle.ops.control import LOOP
from needle.ops.record import Kind
from needle.shapes import Spec
from needle.tensor import Tensor, wrap


@dataclass(eq=False)
class Argument:
    """An argument of a loop's body: a carried value, or a slice of what is scanned.

    Attributes:
        tensor: stands for it.
        operand: what it is at first, or the stack of all slices.
    """

    tensor: Tensor
    operand: Operand

    @property
    def value(self) -> Value:
        """Its value in the body."""
        value: Value = self.tensor._data.value
        return value

    @property
    def spec(self) -> Spec:
        """Shape and dtype."""
        return self.value.spec


@dataclass
class Turns:
    """How often a body runs.

    Attributes:
        length: at most so often; None for no bound.
        reverse: whether the last slice comes first.
        count: how often, for a number that is known when the program runs.
        test: says whether to go on, of the carried values.
    """

    length: int | None
    reverse: bool = False
    count: Operand | None = None
    test: Part | None = None


class Loop:
    """A loop that is recorded.

    Args:
        name: what errors call it.
        trace: where the nodes of the body are.
        carries: arguments of the body that it returns anew.
        scanned: arguments of the body that are slices.
        results: what the body returns: carried values, then slices of new stacks.
        written: what cells of the trace around hold after a turn, if the body writes to them.
        turns: how often it runs.
        parent: the loop that this one is the derivative of.
    """

    def __init__(
        self,
        name: str,
        trace: SubTrace,
        carries: Sequence[Argument],
        scanned: Sequence[Argument],
        results: Sequence[Result],
        written: dict[Cell, Value],
        turns: Turns,
        parent: Loop | None = None,
    ) -> None:
        self.name = name
        self.trace = trace
        self.carries = list(carries)
        self.scanned = list(scanned)
        self.results = list(results)
        self.written = written
        self.turns = turns
        self.parent = parent
        self.stacked = len(results) - len(carries)
        #: Nodes of the trace from here on were made later than this loop.
        self.end = len(trace.nodes)
        self._begin = 0 if parent is None else parent.end
        #: What changes from turn to turn, and is no slice.
        self._state = {
            **{a.value: None for a in carries},
            **{trace.entry_value(held): None for held in written},
        }
        self._slices = {a.value: a.operand for a in scanned}
        #: Values of the body that are stacked for derivatives, by the number of the result.
        self._saved: dict[Value, int] = {}
        self._place_inputs()

    def _place_inputs(self) -> None:
        """Find what cotangents flow to: first values, stacks, captured tensors."""
        outside = boundary((r.edge for r in self.results), self.trace.since)
        for argument in self.carries:
            outside.pop(id(argument.tensor), None)
        leaves = dict(self._leaves())
        self._stacks = {key: leaves[key] for key in outside if key in leaves}
        self._captured = {key: edge for key, edge in outside.items() if key not in leaves}

    def _leaves(self) -> Iterator[tuple[Hashable, Edge]]:
        """Yield what is another tensor in each turn, with the edge of the stack of all of them."""
        for argument in self.scanned:
            yield id(argument.tensor), argument.operand.edge
        loop = self.parent
        if loop is not None:
            flow = loop._flow()
            for j, argument in enumerate(loop.carries):
                edge = None if flow is None else (flow, len(loop.results) + j)
                yield id(argument.tensor), edge
            yield from loop._leaves()

    # Recording

    def record(self, trace: Trace) -> list[Tensor]:
        """Append the loop to ``trace``, and return its results: carried values, then stacks."""
        self._recorder = trace
        inputs, attrs = self._build()
        self._node, _ = trace.append(LOOP, inputs, attrs)
        values = self._node.results
        for held, value in zip(self.written, values[len(self.carries) :], strict=False):
            write_back(self.trace, held, value)
        first = [a.operand.edge for a in self.carries]
        edges = [*first, *self._stacks.values(), *self._captured.values()]
        # The carried values of all turns have cotangents, too, should a derivative read them.
        count = len(self.results) + len(self.carries)
        flow = ControlNode(self.name, edges, count, self)
        self._flow = weakref.ref(flow)
        wants = [r.edge for r in self.results]
        for j, argument in enumerate(self.carries):
            if wants[j] is None and argument.tensor._requires_grad:
                wants[j] = argument.tensor  # after no turn at all, it is what it was at first
        public = [*values[: len(self.carries)], *values[self._first_stack :]]
        return wrap_results(trace, self._node, public, wants, flow)

    @property
    def _first_stack(self) -> int:
        """Number of the first stack among the results of the node."""
        return len(self._state) + (self.turns.test is not None)

    def _build(self) -> tuple[list[Value], dict[str, Any]]:
        """Return inputs and attributes of the node."""
        trace, turns, recorder = self.trace, self.turns, self._recorder
        around = trace.around
        count = len(self.carries)
        outputs = [r.value for r in self.results[:count]]
        outputs += self.written.values()
        outputs += [r.value for r in self.results[count:]]
        outputs += self._saved
        slices = self._needed_slices(outputs)
        body, free = trace.extract([*self._state, *slices], outputs)
        inputs = [a.operand.value(recorder) for a in self.carries]
        inputs += [
            value_in(recorder, around, trace.outer[trace.entry_value(held)])
            for held in self.written
        ]
        inputs += [self._stack_of(v).value(recorder) for v in slices]
        inputs += [value_in(recorder, around, trace.outer[v]) for v in free]
        test = None
        if turns.test is not None:
            inside = turns.test.trace
            state = [a._data.value for a in turns.test.arguments]
            state += [inside.entry_value(held) for held in self.written]
            test, free = inside.extract(state, [turns.test.results[0].value])
            inputs += [value_in(recorder, around, inside.outer[v]) for v in free]
        if turns.count is not None:
            inputs.append(turns.count.value(recorder))
        return inputs, {
            "body": body,
            "test": test,
            "carries": len(self._state),
            "scanned": len(slices),
            "length": turns.length,
            "reverse": turns.reverse,
            "counted": turns.count is not None,
        }

    # What a derivative reads of the turns

    def _needed_slices(self, outputs: Sequence[Value]) -> list[Value]:
        """Return what the body reads that is another value in each turn, and not carried: slices of
        what is scanned, and what the loops that this one is derived from have computed."""
        fixed = self._fixed()
        needed: dict[Value, None] = {}
        seen: set[Value] = set(self._state)
        stack = list(reversed(outputs))
        while stack:
            value = stack.pop()
            if value in seen or value.constant is not None:
                continue
            seen.add(value)
            node = value.node
            if node is None:
                if self._changes(value):
                    needed[value] = None
            elif self.trace.position(node) >= self._begin or value in fixed or _only_moves(node):
                stack.extend(reversed(node.inputs))
            else:
                needed[value] = None
        return list(needed)

    def _fixed(self) -> set[Value]:
        """Return what earlier loops compute from captured values alone."""
        changing = {v for v in self.trace.outer if self._changes(v)}
        fixed: set[Value] = set()
        for node in self.trace.nodes[: self._begin]:
            if all(
                v.constant is not None
                or v in fixed
                or (v.node is None and v in self.trace.outer and v not in changing)
                for v in node.inputs
            ):
                fixed.update(node.results)
        return fixed

    def _changes(self, value: Value) -> bool:
        """Whether a value that no node defines is another one in each turn."""
        if value in self._state or value in self._slices:
            return True
        return self.parent is not None and self.parent._changes(value)

    def _stack_of(self, value: Value) -> Operand:
        """Return the stack of what ``value`` is in the turns; the loop may have to make it."""
        if value in self._slices:
            return self._slices[value]
        node = value.node
        if value not in self._state and (node is None or self.trace.position(node) < self._begin):
            assert self.parent is not None
            return self.parent._stack_of(value)
        if value not in self._saved:
            self._save(value)
        result = self._node.results[self._saved[value]]
        return Operand(Cell(self._recorder, result))

    def _save(self, value: Value) -> None:
        """Have the loop that is recorded already stack what ``value`` is in each turn."""
        node = self._node
        self._saved[value] = len(node.results)
        inputs, node.attrs = self._build()
        node.inputs = tuple(inputs)
        spec = Spec((self.turns.length or 0, *value.shape), value.dtype)
        node.results = (*node.results, Value(spec, node, len(node.results)))

    # The derivative

    def vjp(
        self, cotangents: list[Tensor | None], needed: Sequence[bool], create_graph: bool
    ) -> list[Tensor | None]:
        """Return the cotangents of first values, stacks and captured tensors."""
        turns = self.turns
        if turns.length is None:
            place = f" at {self._node.location}" if self._node.location else ""
            raise GradientError(
                f"{self.name}{place}: the backward pass needs what each turn has carried, and room "
                "for that has to be planned; say how many turns there are at most: "
                "while_loop(..., max_steps=n)"
            )
        trace = current_trace(self.name)
        derivative, kept = self._derivative(trace, cotangents, needed, create_graph)
        tensors = derivative.record(trace)
        result: list[Tensor | None] = [None] * len(needed)
        for i, number in kept.items():
            result[i] = tensors[number]
        return result

    def _derivative(
        self,
        trace: Trace,
        cotangents: list[Tensor | None],
        needed: Sequence[bool],
        create_graph: bool,
    ) -> tuple[Loop, dict[int, int]]:
        """Return the loop of the derivative, and which of its results is the cotangent of which
        input."""
        inside, count = self.trace, len(self.carries)

        def given(spec: Spec, tensor: Tensor | None) -> Argument:
            if tensor is None:
                tensor = wrap(np.zeros(spec.shape, spec.dtype))
            return Argument(
                inside.argument(spec, create_graph), Operand.of(trace, tensor, self.name)
            )

        # The cotangents that turns hand on, those of the stacks, those of the carried values where
        # a derivative has read them.
        carried = {
            j: given(a.spec, cotangents[j])
            for j, a in enumerate(self.carries)
            if a.tensor._requires_grad
        }
        stacks = {
            i: Argument(
                inside.argument(result.value.spec, create_graph),
                Operand.of(trace, tensor, self.name),
            )
            for i, result in enumerate(self.results)
            if i >= count and (tensor := cotangents[i]) is not None
        }
        read = {
            j: Argument(inside.argument(a.spec, create_graph), Operand.of(trace, tensor, self.name))
            for j, a in enumerate(self.carries)
            if (tensor := cotangents[len(self.results) + j]) is not None
        }
        with inside:
            seeds = [
                (self.results[i].edge, a.tensor) for i, a in (*carried.items(), *stacks.items())
            ]
            found = pull_back(seeds, inside.since, inside, create_graph)
            first: list[Result] = []
            sums: list[Argument] = []
            kept: dict[int, int] = {}
            for j in carried:
                total = found.get(id(self.carries[j].tensor))
                if j in read:
                    total = read[j].tensor if total is None else total + read[j].tensor
                if total is None:
                    total = wrap(np.zeros(self.carries[j].spec.shape, self.carries[j].spec.dtype))
                kept[j] = len(first)
                first.append(Result.of(inside, total))
            last = count + len(self._stacks)
            for place, key in enumerate(self._captured, last):
                total = found.get(key)
                if total is None or not needed[place]:
                    continue
                total_so_far = given(Spec(total.shape, total.dtype), None)
                sums.append(total_so_far)
                kept[place] = len(first)
                first.append(Result.of(inside, total_so_far.tensor + total))
            slices: list[Result] = []
            for place, key in enumerate(self._stacks, count):
                total = found.get(key)
                if total is not None and needed[place]:
                    kept[place] = len(first) + len(slices)
                    slices.append(Result.of(inside, total))
        loop = Loop(
            f"{self.name} backward",
            inside,
            [*carried.values(), *sums],
            [*stacks.values(), *read.values()],
            [*first, *slices],
            {},
            Turns(self.turns.length, not self.turns.reverse, self._count()),
            self,
        )
        return loop, kept

    def _count(self) -> Operand | None:
        """Return how many turns there were, if that is not known when compiling."""
        if self.turns.test is None:
            return self.turns.count
        return Operand(Cell(self._recorder, self._node.results[len(self._state)]))


def _only_moves(node: Node) -> bool:
    """Whether the result is another view of one input that is no larger: not worth keeping."""
    (first, *rest) = node.inputs or (None,)
    return (
        node.op.kind is Kind.MOVEMENT
        and first is not None
        and not rest
        and node.results[0].size >= first.size
    )
