"""The end of a trace: tell state from constants, and say what becomes of it."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np

from needle import tree
from needle.arrays import memory_order
from needle.errors import TraceError
from needle.extents import Formula
from needle.graph.cell import Cell, describe
from needle.graph.differentiate import BackwardTrace, trace_backward
from needle.graph.ir import Graph, Node, Value
from needle.graph.order import take_in_order
from needle.graph.surroundings import Reference, Same, difference
from needle.graph.traced import GradUpdate, Result, Source, Traced
from needle.graph.tracing import Capture, GradSlot, Restart, Trace, Watched
from needle.ops.movement import broadcast_to
from needle.ops.samples import Array
from needle.random import default_generator
from needle.shapes import Spec
from needle.tensor import Tensor


class End:
    """Makes a `Traced` of a trace whose function has returned."""

    def __init__(
        self, run: Trace, inputs: list[Value], places: dict[int, int], stand_ins: list[Tensor]
    ) -> None:
        self.run = run
        self.inputs = inputs
        self.places = places
        self.stand_ins: list[Tensor] = stand_ins
        self.outputs: list[Value] = []
        self.donations: list[tuple[int, Value]] = []
        self.results: list[Result] = []
        self.pending: list[tuple[int, weakref.ref[Tensor]]] = []
        self.grads: list[GradUpdate] = []
        self.entry: list[tuple[Tensor | int, bool]] = []
        self.owners: dict[int, Tensor] = {}
        self.backward: BackwardTrace | None = None

    def _output(self, value: Value) -> int:
        self.outputs.append(value)
        return len(self.outputs) - 1

    def take_results(self, returned: Any, differentiable: bool) -> tree.TreeDef:
        """Note what the function returned and wrote, and return the structure of its result."""
        leaves, structure = tree.flatten(returned)
        for leaf in leaves:
            self._add_result(leaf)
        self._add_writes()
        if differentiable:
            roots = [
                (i, leaf)
                for i, leaf in enumerate(leaves)
                if self.results[i].output is not None and _is_recorded(leaf)
            ]
            self.backward = trace_backward(self.run, roots, self.stand_ins)
        return structure

    def _add_result(self, leaf: Any) -> None:
        if not isinstance(leaf, Tensor):
            self.results.append(Result(constant=leaf))
            return
        place = self.places.get(id(leaf))
        if place is not None:
            self.results.append(Result(argument=place))
            return
        if leaf._data.__class__ is np.ndarray:
            # Whether it is state or was made just now is known when all else is released.
            self.pending.append((len(self.results), weakref.ref(leaf)))
        index = self._output(self.run.cell_of(leaf).read())
        is_leaf = leaf._requires_grad and leaf._node is None
        self.results.append(Result(output=index, requires_grad=is_leaf))

    def _add_writes(self) -> None:
        """Make what was overwritten an output that takes over the storage."""
        for stand_in, value in zip(self.stand_ins, self.inputs, strict=True):
            now = stand_in._data.last()
            if now is not value:
                self.donations.append((self._output(now), value))
        for capture in self.run.captures.values():
            if capture.is_written:
                self.donations.append((self._output(capture.cell.last()), capture.value))

    def add_grads(self, keep_grads: bool) -> None:
        """Make gradients that were set outputs."""
        for slot in self.run.grads.values():
            owner = slot.owner
            place = self.places.get(id(owner))
            if slot.is_read:
                self.entry.append((owner if place is None else place, slot.before is None))
            if slot.before is not None and slot.before._data.__class__ is np.ndarray:
                self.owners[id(slot.before._data)] = owner
            if slot.is_set and not self._is_unchanged(slot):
                tensor = owner if place is None else None
                self.grads.append(self._grad(slot, tensor, place, keep_grads))

    def _is_unchanged(self, slot: GradSlot) -> bool:
        now, before = slot.now, slot.before
        if now is None or before is None or now is before:
            return now is before and slot.is_read
        return now._data is before._data

    def _grad(
        self, slot: GradSlot, tensor: Tensor | None, place: int | None, keep_grads: bool
    ) -> GradUpdate:
        if slot.now is None:
            return GradUpdate(tensor, place, None)
        spec = Spec(slot.now.shape, slot.now.dtype)
        capture = self.run.captures.get(id(slot.owner._data))
        is_written = capture is not None and capture.is_written
        if place is not None:
            is_written = self.stand_ins[place]._data.last() is not self.inputs[place]
        if not keep_grads and is_written:
            return GradUpdate(tensor, place, None, True, spec)
        value = self.run.cell_of(slot.now).read()
        return GradUpdate(tensor, place, self._output(value), False, spec)

    def check_history(self) -> None:
        """Raise if state was overwritten with values through which gradients flow."""
        for tensor, before in self.run.touched():
            if tensor._node is not None and tensor._node is not before["_node"]:
                raise TraceError(
                    f"{self.run.name}: a tensor of shape {list(tensor.shape)} from outside was "
                    f"overwritten with the result of {tensor._node.name}, through which gradients "
                    "flow; a call of the compiled function cannot continue in the history of the "
                    "one before: write value.detach()"
                )

    def check_effects(self, is_second: bool) -> None:
        """Look at what the function depends on besides tensors, and whether it has changed it.

        Args:
            is_second: whether it did so in the trace before, too.

        Raises:
            TraceError: it does so each time.
            Restart: it has done so once.
        """
        for watched in self.run.watched.values():
            watched.value = watched.probe()
            if isinstance(watched.value, dict):
                self._check_attributes(watched)
        for watched in self.run.watched.values():
            if watched.before is None or watched.before == watched.value:
                continue
            cause = _cause(watched.value)
            if not is_second and not cause:
                raise Restart(has_effects=True)
            raise TraceError(
                f"{self.run.name}: it changes {watched.what} each time it runs "
                f"({difference(watched.before, watched.value)}{cause}), but once "
                "it is compiled, its Python does not run again; return the value and change "
                f"{watched.what} outside, or keep it in a tensor that is updated in place, such as "
                "an nn.Buffer"
            )

    def _check_attributes(self, watched: Watched) -> None:
        for name, value in watched.value.items():
            tensor = value.value if isinstance(value, Same) else None
            if isinstance(tensor, Tensor) and tensor._data.__class__ is Cell:
                raise TraceError(
                    f"{self.run.name}: {watched.what} keeps a traced tensor in its attribute "
                    f"{name!r} ({describe(tensor._data.value.node)}), which has no values after "
                    "the call; make the attribute an nn.Buffer, which is updated in each call, or "
                    "return the tensor"
                )

    def finish(self, structure: tree.TreeDef, references: list[Reference]) -> Traced:
        """Tell state from constants, and return the traced function."""
        run = self.run
        run.close_parts()
        run.grads.clear()  # what they hold is in `self.grads`; nobody else may hold it
        for index, ref in self.pending:
            tensor = ref()
            if tensor is not None:
                self.results[index] = Result(constant=tensor)
            del tensor
        reads = [(array, ref(), use, location) for array, ref, use, location in run.reads]
        run.reads.clear()
        run.label(default_generator().state, "random_state")
        constants: list[Node] = []
        sources: list[Source] = []
        inputs = list(self.inputs)
        for array, tensor, use, location in reads:
            if tensor is not None and tensor._data is array:
                raise TraceError(
                    f"{use} at {location}: while {run.name} is traced, the values of a tensor from "
                    f"outside ({tensor.dtype.name}{list(tensor.shape)}) were read into Python, and "
                    "would stay what they are now in all later calls; compute with the tensor "
                    "itself, or read it outside and pass the number as an argument"
                )
        del reads
        for capture in run.captures.values():
            if capture.is_number:
                continue
            source = self._source(capture)
            if source is None:
                constants += _as_constant(capture)
            else:
                sources.append(source)
                inputs.append(capture.value)
                capture.value.name = self._name_of(source)
        for formula, value in run.numbers.values():
            sources.append(number_source(formula, value))
            inputs.append(value)
        place = {id(value): i for i, value in enumerate(inputs)}
        donations = {out: place[id(value)] for out, value in self.donations if id(value) in place}
        outputs = self._without_dead(donations)
        name = run.name if run.name.isidentifier() else "lambda_"
        graph = Graph(inputs, [*constants, *run.nodes], outputs, donations, name)
        backward = None
        if self.backward is not None:
            shared = {id(outputs[r.output]): r.output for r in self.results if r.output is not None}
            backward = self.backward.finish(graph, constants, shared)
        orders = {
            len(self.inputs) + i: source.order
            for i, source in enumerate(sources)
            if source.order is not None
        }
        take_in_order(graph, orders)
        if backward is not None:
            cotangents = len(backward.roots)
            saved = enumerate(backward.saved, cotangents)
            take_in_order(backward.graph, {i: orders[-1 - s] for i, s in saved if -1 - s in orders})
        watched = [w for w in run.watched.values() if w.is_guard]
        after = list(run.after)
        run.close()
        return Traced(
            graph,
            sources,
            self.results,
            structure,
            self.grads,
            self.entry,
            watched,
            references,
            after,
            backward,
            len(self.inputs),
        )

    def _source(self, capture: Capture) -> Source | None:
        """Return where the array of a capture comes from, or None for a constant."""
        owner = self.owners.get(id(capture.array))
        tensors = capture.tensors()
        if owner is not None or tensors:
            tensor = tensors[0] if tensors else None
            order = None if tensor is None or owner is not None else memory_order(capture.array)
            return Source(capture.array, tensor, owner, tensors, order=order)
        if capture.array.__class__ is Cell or is_held(capture):
            return Source(capture.array)
        return None

    def _name_of(self, source: Source) -> str:
        if source.owner is not None:
            ref, name = self.run.labels.get(id(source.owner), (None, ""))
            return f"{name}.grad" if ref is not None and ref() is source.owner else ""
        for tensor in source.tensors:
            ref, name = self.run.labels.get(id(tensor), (None, ""))
            if ref is not None and ref() is tensor:
                return name
        return ""

    def _without_dead(self, donations: dict[int, int]) -> list[Value]:
        """Drop outputs that nobody gets: writes to what turned out to be temporary."""
        wanted = set(donations)
        wanted.update(r.output for r in self.results if r.output is not None)
        wanted.update(g.output for g in self.grads if g.output is not None)
        kept = sorted(wanted)
        new = {old: i for i, old in enumerate(kept)}
        moved = {new[out]: place for out, place in donations.items()}
        donations.clear()
        donations.update(moved)
        items: list[Result | GradUpdate] = [*self.results, *self.grads]
        for item in items:
            if item.output is not None:
                item.output = new[item.output]
        return [self.outputs[i] for i in kept]


def number_source(formula: Formula, value: Value) -> Source:
    """Return where an input finds a number that depends on an extent that varies."""
    array = np.asarray(formula.at(formula.symbol.hint), value.dtype)
    return Source(array, number=formula)


def _is_recorded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is the end of a recorded graph that no backward pass has freed."""
    return tensor._node is not None and bool(tensor._node.edges)


def _cause(value: Any) -> str:
    """Return the op whose result stands in a frozen value, for an error."""
    if isinstance(value, Same) and isinstance(value.value, Tensor):
        data = value.value._data
        return f": {describe(data.value.node)}" if data.__class__ is Cell else ""
    parts: Any = value.values() if isinstance(value, dict) else value
    if isinstance(parts, (tuple, frozenset)) or isinstance(value, dict):
        for part in reversed(tuple(parts)):
            found = _cause(part)
            if found:
                return found
    return ""


def _references(capture: Capture) -> tuple[int, int]:
    """Return how many references there are to the array of a capture, and to its base."""
    base = capture.array.base
    return sys.getrefcount(capture.array), 0 if base is None else sys.getrefcount(base)


class _Sample:
    """Holds an array as a `Capture` does."""

    def __init__(self, array: Array) -> None:
        self.array = array


#: The references to an array, and to its base, where nobody but the capture holds them.
_ALONE = _references(_Sample(np.zeros((2, 2)).T))  # type: ignore[arg-type]


def is_held(capture: Capture) -> bool:
    """Whether anybody but the trace holds the array of a capture, or the memory below it."""
    array, base = _references(capture)
    if array > _ALONE[0]:
        return True
    owner = capture.array.base
    return owner is not None and (not isinstance(owner, np.ndarray) or base > _ALONE[1])


def _as_constant(capture: Capture) -> list[Node]:
    """Make the input of a capture a constant; one of equal elements is a number, repeated."""
    array, value = capture.array, capture.value
    if array.size > 1:
        first = array[(0,) * array.ndim]
        flat = np.ascontiguousarray(array).reshape(-1)
        if (flat.view(np.uint8).reshape(flat.size, -1) == flat[:1].view(np.uint8)).all():
            number = Value(Spec((), value.spec.dtype), constant=np.asarray(first))
            node = Node(broadcast_to.op, (number,), {"shape": value.spec.shape}, (value.spec,))
            node.location = capture.location
            node.results = (value,)
            value.node = node
            return [node]
    value.constant = array
    return []
