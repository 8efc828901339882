"""Trace a function to a Graph: its arguments, what it captured, what it returns and writes."""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle import tree
from needle.arrays import to_array
from needle.config import modes
from needle.errors import TraceError
from needle.graph.cell import Cell
from needle.graph.ir import Graph, Node, Value
from needle.graph.tracing import Capture, GradSlot, Trace
from needle.ops.movement import broadcast_to
from needle.ops.samples import Array
from needle.shapes import Spec
from needle.tensor import Tensor


@dataclass(eq=False)
class Source:
    """Where the array of a captured input is found at each call.

    Attributes:
        array: the array at the time of the trace.
        tensor: the tensor that has it, or None for an array that no tensor keeps.
        owner: the tensor whose `grad` it is, if it is one.
        tensors: all tensors that share it.
    """

    array: Array
    tensor: Tensor | None = None
    owner: Tensor | None = None
    tensors: Sequence[Tensor] = ()

    def find(self) -> Any:
        """Return the array that the input has now."""
        if self.owner is not None:
            grad = self.owner._grad
            return None if grad is None else grad._data
        return self.array if self.tensor is None else self.tensor._data


@dataclass(eq=False)
class Result:
    """What a leaf of the function's result is at each call: one of these.

    Attributes:
        output: index of the graph's output that holds its values.
        argument: index of the argument that was returned as it is.
        constant: an object that is always the same: a tensor of the state, a Python number.
        requires_grad: whether gradients flow through it, for an output.
    """

    output: int | None = None
    argument: int | None = None
    constant: Any = None
    requires_grad: bool = False


@dataclass(eq=False)
class GradUpdate:
    """What becomes of the `grad` of a tensor.

    Attributes:
        tensor: the tensor, or None for an argument.
        argument: index of the argument.
        output: index of the output with the values; None to set `grad` to None, or not to keep it.
        is_dropped: whether there is a gradient whose values are not kept.
    """

    tensor: Tensor | None
    argument: int | None
    output: int | None
    is_dropped: bool = False
    spec: Spec | None = None


@dataclass(eq=False)
class Traced:
    """A traced function.

    Attributes:
        graph: inputs are the tensors among the arguments, in the order of the flattened arguments,
            then what was captured; outputs are results, then overwritten inputs, then gradients.
        sources: for each captured input where its array comes from.
        results: for each leaf of what the function returned.
        structure: of what the function returned.
        grads: the gradients that the function has set.
        entry: tensors whose `grad` the function has read, with whether it was None.
        arguments: how many of the inputs are arguments.
    """

    graph: Graph
    sources: list[Source]
    results: list[Result]
    structure: tree.TreeDef
    grads: list[GradUpdate]
    entry: list[tuple[Tensor | int, bool]]
    arguments: int

    @property
    def captured(self) -> list[Tensor | None]:
        """The tensors that were captured, in the order of the inputs; None for a bare array."""
        return [source.tensor for source in self.sources]

    def arrays(self, *args: Any, **kwargs: Any) -> list[Array]:
        """Return an array for each input of the graph: those of the arguments, and the state's."""
        leaves, _ = tree.flatten((args, kwargs))
        given = [to_array(leaf, None) for leaf in leaves if is_array(leaf)]
        return [*given, *(source.find() for source in self.sources)]


def is_array(leaf: Any) -> bool:
    """Whether a leaf of the arguments is traced, and no constant."""
    return isinstance(leaf, (Tensor, np.ndarray, np.generic))


def trace(
    function: Callable[..., Any], *args: Any, keep_grads: bool = True, **kwargs: Any
) -> Traced:
    """Run ``function`` on tensors without values, and return the graph of what it did.

    Tensors, NumPy arrays and scalars among the arguments (also in lists, tuples and dicts) become
    inputs of the graph, and so do the tensors from outside that the function uses. Nothing else is
    changed by the trace, except for state that is made when it is first needed, such as an
    optimizer's.

    Args:
        function: what to trace.
        args: its arguments; of the tensors, only shape, dtype and `requires_grad` matter.
        keep_grads: whether gradients are outputs when the function has also overwritten the tensor
            that they belong to.
        kwargs: its keyword arguments.

    Raises:
        TraceError: the function does what a graph cannot hold.

    Example:
        >>> from needle.graph import trace
        >>> print(trace(lambda x: x * 2 + 1, ndl.ones(3)).graph)
        def lambda_(x: float32[3]):
            v0: float32[3] = multiply(x, 2.0)  ...
            v1: float32[3] = add(v0, 1.0)  ...
            return v1
    """
    leaves, structure = tree.flatten((args, kwargs))
    names = _argument_names(function, args, kwargs)
    run = Trace(function_name(function), modes.state.trace)
    places: dict[int, int] = {}
    inputs: list[Value] = []
    with run:
        for i, leaf in enumerate(leaves):
            if is_array(leaf):
                leaves[i] = stand_in = _stand_in(run, leaf, names[i])
                places[id(stand_in)] = len(inputs)
                inputs.append(stand_in._data.value)
        stand_ins = [leaf for leaf in leaves if id(leaf) in places]
        new_args, new_kwargs = tree.unflatten(structure, leaves)
        del leaves
        returned, result_structure = tree.flatten(function(*new_args, **new_kwargs))
        del new_args, new_kwargs
        end = _End(run, inputs, places, stand_ins)
        for leaf in returned:
            end.add_result(leaf)
        end.add_writes()
        end.add_grads(keep_grads)
        end.check_history()
    # Whatever is alive after this line, somebody else holds.
    del returned, stand_ins
    return end.finish(result_structure)


def _stand_in(run: Trace, leaf: Any, name: str) -> Tensor:
    if isinstance(leaf, Tensor):
        data = leaf._data
        stand_in = run.argument(Spec(data.shape, data.dtype), leaf._requires_grad, name)
        stand_in._grad = leaf._grad
        return stand_in
    array = to_array(leaf, None)
    return run.argument(Spec(array.shape, array.dtype), False, name)


class _End:
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

    def _output(self, value: Value) -> int:
        self.outputs.append(value)
        return len(self.outputs) - 1

    def add_result(self, leaf: Any) -> None:
        """Note a leaf of what the function returned."""
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
        self.results.append(Result(output=index, requires_grad=leaf._requires_grad))

    def add_writes(self) -> None:
        """Make what was overwritten an output that takes over the storage."""
        for stand_in, value in zip(self.stand_ins, self.inputs, strict=True):
            now = stand_in._data.read()
            if now is not value:
                self.donations.append((self._output(now), value))
        for capture in self.run.captures.values():
            if capture.is_written:
                self.donations.append((self._output(capture.cell.read()), capture.value))

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
        if not keep_grads and capture is not None and capture.is_written:
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

    def finish(self, structure: tree.TreeDef) -> Traced:
        """Tell state from constants, and return the traced function."""
        run = self.run
        for index, ref in self.pending:
            tensor = ref()
            if tensor is not None:
                self.results[index] = Result(constant=tensor)
            del tensor
        reads = [(array, ref(), use, location) for array, ref, use, location in run.reads]
        run.reads.clear()
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
        place = {id(value): i for i, value in enumerate(inputs)}
        donations = {out: place[id(value)] for out, value in self.donations if id(value) in place}
        outputs = self._without_dead(donations)
        name = run.name if run.name.isidentifier() else "lambda_"
        graph = Graph(inputs, [*constants, *run.nodes], outputs, donations, name)
        run.close()
        return Traced(
            graph, sources, self.results, structure, self.grads, self.entry, len(self.inputs)
        )

    def _source(self, capture: Capture) -> Source | None:
        """Return where the array of a capture comes from, or None for a constant."""
        owner = self.owners.get(id(capture.array))
        tensors = capture.tensors()
        if owner is not None or tensors:
            tensor = tensors[0] if tensors else None
            return Source(capture.array, tensor, owner, tensors)
        if capture.array.__class__ is Cell or is_held(capture):
            return Source(capture.array)
        return None

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


def function_name(function: Callable[..., Any]) -> str:
    """Return what errors and graphs call ``function``."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def _argument_names(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str]:
    """Return a name for each leaf of the arguments: ``x``, ``batch[0]``, ``options['p']``."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    labels: list[str] = []
    for i in range(len(args)):
        if i < len(parameters) and parameters[i].kind is not inspect.Parameter.VAR_POSITIONAL:
            labels.append(parameters[i].name)
        else:
            rest = [p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
            first = parameters.index(rest[0]) if rest else 0
            labels.append(f"{rest[0].name if rest else 'arg'}[{i - first}]")
    names: list[str] = []
    for label, value in (*zip(labels, args, strict=True), *kwargs.items()):
        names += _leaf_names(label, value)
    return names


def _leaf_names(label: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        parts: Any = [(f"{label}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{label}[{i}]", part) for i, part in enumerate(value)]
    else:
        return [label]
    return [name for inner, part in parts for name in _leaf_names(inner, part)]
