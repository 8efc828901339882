"""GradNode: what an op leaves behind while gradients are recorded.

A node holds edges to the nodes (or leaves) of the op's inputs, and the values that its vjp rules
asked for, each with the count of writes that its storage had seen.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from needle.config import modes
from needle.dtypes import DType
from needle.errors import GradientError, ShapeError
from needle.extents import extents_in, is_same_shape
from needle.ops.engine import as_tensor
from needle.ops.movement import broadcast_to
from needle.ops.record import BoundRule, Kind, Op, SavePlan
from needle.ops.reduce import sum_to_shape
from needle.ops.samples import Array
from needle.shapes import Shape
from needle.tensor import Hook, Tensor, wrap

_next_id = itertools.count().__next__

#: Where a cotangent goes: a node and the index of its result, a leaf tensor, or nowhere.
Edge = tuple["GradNode", int] | Tensor | None


class SavedValueHook(Protocol):
    """Replaces values kept for the backward pass, to recompute or to move them.

    Attributes:
        recomputes: whether what runs under the hook has run before.
    """

    recomputes: bool

    def pack(self, data: Array, is_leaf: bool) -> Callable[[], Array] | None:
        """Return a function that gives ``data`` back, or None to keep it as it is."""


class SavedValue:
    """An array kept for the backward pass, with the version that it had."""

    __slots__ = ("data", "unpack", "version", "writes")

    def __init__(self, tensor: Tensor, op_name: str) -> None:
        self.data: Any = tensor._data
        self.unpack: Callable[[], Array] | None = None
        version = tensor._version
        if version is None:
            raise GradientError(
                f"{op_name}: a tensor made in inference_mode cannot be kept for a backward pass; "
                "clone() it outside, or use no_grad instead"
            )
        self.version = version
        self.writes = version[0]
        hook = modes.state.saved_value_hook
        if hook is not None:
            self.unpack = hook.pack(self.data, tensor._node is None and tensor._requires_grad)
            if self.unpack is not None:
                self.data = None

    def restore(self, op_name: str) -> Any:
        """Return the array.

        Raises:
            GradientError: it was overwritten since.
        """
        if self.unpack is not None:
            return self.unpack()
        if self.version[0] != self.writes:
            shape = list(self.data.shape)
            raise GradientError(
                f"{op_name}: a value of shape {shape} that its backward pass needs was overwritten "
                f"({self.version[0] - self.writes} in-place writes since); "
                "use an out-of-place op (x = x + y), or clone() before writing"
            )
        return self.data


class GradNode:
    """One recorded call: how to go from cotangents of its results to cotangents of its inputs.

    Attributes:
        name: name of the op.
        id: grows with every node; descending ids are a topological order.
        edges: for each input, where its cotangent goes.
        count: number of results.
        location: the user's line, recorded while anomalies are looked for.
    """

    __slots__ = ("__weakref__", "_hooks", "count", "edges", "id", "location", "name")

    def __init__(self, name: str, edges: tuple[Edge, ...], count: int) -> None:
        self.name = name
        self.id = _next_id()
        self.edges = edges
        self.count = count
        self.location: str | None = None
        self._hooks: dict[int, list[Hook]] | None = None

    def hooks_of(self, index: int) -> list[Hook]:
        """Return the list of hooks on the result ``index``."""
        if self._hooks is None:
            self._hooks = {}
        return self._hooks.setdefault(index, [])

    def vjp(
        self, cotangents: list[Tensor | None], needed: Sequence[Any], create_graph: bool
    ) -> list[Tensor | None]:
        """Return the cotangent of each input whose place in ``needed`` is not None or False."""
        raise NotImplementedError  # abstract: OpNode and FunctionNode define it

    def free(self) -> None:
        """Drop edges and kept values; a second backward pass through here is then an error."""
        self.edges = ()

    def __repr__(self) -> str:
        return f"<GradNode {self.name} #{self.id}>"


class OpNode(GradNode):
    """The node of an op: its cotangents come from the record's vjp rules."""

    __slots__ = ("attrs", "dtypes", "op", "out", "results", "saved", "shapes")

    def __init__(
        self,
        op: Op,
        inputs: tuple[Tensor, ...],
        attrs: dict[str, Any],
        results: tuple[Tensor, ...],
        plan: SavePlan,
    ) -> None:
        # Not through GradNode.__init__: a node is made for every recorded op.
        self.name = op.name
        self.id = _next_id()
        self.edges = tuple([edge_of(t, op.name) if t._requires_grad else None for t in inputs])
        self.count = len(results)
        self.location = None
        self._hooks = None
        self.op = op
        self.attrs = attrs
        self.shapes = [t._data.shape for t in inputs]
        self.dtypes = [t._data.dtype for t in inputs] if plan.dtypes else None
        self.saved: dict[int, SavedValue] | None = {
            i: SavedValue(inputs[i], op.name) for i in plan.inputs
        }
        self.out: dict[int, SavedValue] = {}
        if plan.out or plan.results:
            self.out = {
                k: SavedValue(r, op.name)
                for k, r in enumerate(results)
                if plan.out or k in plan.results
            }
        # Missing cotangents of a multi-result op become zeros of these.
        self.results = [(r._data.shape, r._data.dtype) for r in results] if self.count > 1 else None

    def free(self) -> None:
        super().free()
        self.saved = None
        self.out = {}

    def vjp(
        self, cotangents: list[Tensor | None], needed: Sequence[Any], create_graph: bool
    ) -> list[Tensor | None]:
        op = self.op
        if self.saved is None:
            raise GradientError(
                f"{op.name}: the graph was freed by an earlier backward pass; "
                "pass retain_graph=True to the earlier one"
            )
        g: Any = cotangents[0]
        if self.results is not None:
            g = tuple(
                _zeros(shape, dtype) if c is None else c
                for c, (shape, dtype) in zip(cotangents, self.results, strict=True)
            )
        rules, shapes = op.rules_at(len(self.shapes)), self.shapes
        is_elementwise = op.kind is Kind.ELEMENTWISE
        result: list[Tensor | None] = [None] * len(shapes)
        wanted = [
            (i, rule, self._arguments(rule, g, i, create_graph))
            for i, rule in enumerate(rules)
            if rule is not None and needed[i] is not None and needed[i] is not False
        ]
        found = None
        if op.backward is not None and not create_graph:
            found = op.backward([(rule, arguments) for _, rule, arguments in wanted])
        if found is None:
            together: dict[Any, Any] = {}  # what rules for several inputs have given
            found = []
            for _, rule, arguments in wanted:
                if rule.place < 0:
                    found.append(rule.function(*arguments))
                    continue
                if rule.function not in together:
                    together[rule.function] = rule.function(*arguments)
                found.append(together[rule.function][rule.place])
        for (i, _, _), c in zip(wanted, found, strict=True):
            if c is None:
                continue
            data = c._data
            is_array = data.__class__ is np.ndarray
            is_same = data.shape == shapes[i] if is_array else is_same_shape(data.shape, shapes[i])
            if not is_same:
                if not is_elementwise:
                    raise ShapeError(
                        f"vjp of {op.name} for {op.input_name(i)}: cotangent of shape "
                        f"{list(c.shape)} for an input of shape {list(shapes[i])}"
                    )
                c = sum_to_shape(c, shapes[i])
            result[i] = c
        return result

    def _arguments(self, rule: BoundRule, g: Any, i: int, create_graph: bool) -> list[Any]:
        arguments: list[Any] = []
        for source, key in rule.sources:
            if source == "g":
                arguments.append(g)
            elif source == "input":
                arguments.append(self._input(key, create_graph))
            elif source == "out":
                values = tuple(self._output(k, create_graph) for k in range(self.count))
                arguments.append(values if self.results is not None else values[0])
            elif source == "result":
                arguments.append(self._output(key, create_graph))
            elif source == "shape":
                arguments.append(self.shapes[key])
            elif source == "attr":
                arguments.append(self.attrs[key])
            elif source == "dtype":
                assert self.dtypes is not None
                arguments.append(self.dtypes[key])
            elif source == "i":
                arguments.append(i)
            elif source == "attrs":
                arguments.append(self.attrs)
            elif source == "inputs":
                rest = range(key, len(self.shapes))
                arguments.append(tuple(self._input(k, create_graph) for k in rest))
            elif source == "shapes":
                arguments.append(self.shapes[key:])
            else:
                assert self.dtypes is not None
                arguments.append(self.dtypes[key:])
        return arguments

    def _input(self, position: int, create_graph: bool) -> Tensor:
        assert self.saved is not None
        saved = self.saved[position]
        tensor = wrap(saved.restore(self.name))
        tensor._version = saved.version
        edge = self.edges[position]
        if create_graph and edge is not None:
            if isinstance(edge, Tensor):
                return edge
            connect(tensor, *edge)
        return tensor

    def _output(self, index: int, create_graph: bool) -> Tensor:
        saved = self.out[index]
        tensor = wrap(saved.restore(self.name))
        tensor._version = saved.version
        if create_graph:
            connect(tensor, self, index)
        return tensor


def edge_of(tensor: Tensor, op_name: str) -> Edge:
    """Return where the cotangent of ``tensor`` goes.

    Raises:
        GradientError: the storage was overwritten through another tensor, so that the recorded
            history no longer describes the values.
    """
    node = tensor._node
    if node is None:
        return tensor if tensor._requires_grad else None
    version = tensor._version
    if version is not None and version[0] != tensor._history:
        check_history(tensor, op_name)
    return node, tensor._index


def check_history(tensor: Tensor, op_name: str) -> None:
    """Raise if the values of ``tensor`` were overwritten through a tensor that shares them."""
    version = tensor._version
    if tensor._node is not None and version is not None and version[0] != tensor._history:
        raise GradientError(
            f"{op_name}: the values of a tensor of shape {list(tensor.shape)} (result of "
            f"{tensor._node.name}) were overwritten through another tensor that shares its "
            "storage, so "
            "its recorded history is wrong; write through the tensor itself, or clone() first"
        )


class Watch:
    """Whether a recorded write has ever gone to storage that other tensors share.

    Only after that can a constant be stale: until then, ops need not ask.
    """

    __slots__ = ("is_needed",)

    def __init__(self) -> None:
        self.is_needed = False


watch = Watch()


def note_recorded_write(version: list[int]) -> None:
    """Remember the count of writes up to which constants that share the storage are stale."""
    version[1:2] = [version[0]]
    if sys.getrefcount(version) > _REFERENCES_OF_ONE:
        watch.is_needed = True


def _references(version: list[int]) -> int:
    return sys.getrefcount(version)


#: What `note_recorded_write` counts where a single tensor has the storage.
_REFERENCES_OF_ONE = _references(wrap(np.zeros(0))._version or [])


def check_constants(inputs: Sequence[Tensor], op_name: str) -> None:
    """Raise if a tensor without history should have got one, by a write through another tensor.

    A view of zeros, say, into which values with gradients were then written through the base.
    """
    for t in inputs:
        version = t._version
        if t._requires_grad or version is None or len(version) < 2 or t._history >= version[1]:
            continue
        raise GradientError(
            f"{op_name}: into the storage of a tensor of shape {list(t.shape)}, values with "
            "gradients were written through another tensor that shares it; this one was made "
            "before, and does not know of the gradients. Take the view after the write, write "
            "with x[i] = value, or detach() if the gradients shall not flow"
        )


def connect(tensor: Tensor, node: GradNode, index: int) -> None:
    """Make ``tensor`` the result ``index`` of ``node``."""
    tensor._node = node
    tensor._index = index
    tensor._requires_grad = True
    tensor._history = tensor._version[0] if tensor._version is not None else 0


def _zeros(shape: Shape, dtype: DType) -> Tensor:
    """Return zeros; of a shape that varies, by an op of the trace."""
    if extents_in(shape):
        return broadcast_to(as_tensor(0, dtype), shape)
    return wrap(np.zeros(shape, dtype))
