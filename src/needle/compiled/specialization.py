"""A specialisation: a function compiled for one signature, and how it is called."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle import tree
from needle.compiled.dropped import dropped_grad
from needle.compiled.executable import Executable
from needle.compiled.history import History
from needle.compiled.preparation import fixed_inputs, preparation_of
from needle.compiled.storage import check_apart, is_behaved, root_of
from needle.config import State, changes, modes
from needle.errors import ArgumentError, TraceError
from needle.graph.surroundings import MISSING, is_plain
from needle.graph.traced import GradUpdate, Traced, is_array
from needle.graph.tracing import Watched
from needle.ops.samples import Array
from needle.tensor import Tensor, initialise


class Specialization:
    """A traced function with its executable.

    Args:
        traced: the trace.
        leaves: the flattened arguments that it was traced with.
        is_flat: whether the leaves are the positional arguments themselves; otherwise, the
            arguments must be flattened at each call.
        build: makes an executable of a graph, of which some inputs are known to stay what they are
            for many calls.

    Attributes:
        executable: what runs the graph.
        calls: how often it was called.
        seconds: how long it took to trace and to compile it.
        has_effects: whether a call does more than to compute results.
        reads_grads: whether the function reads gradients that it has not set.
        is_odd: whether arrays of the state are not as compiled code can read them.
    """

    def __init__(
        self,
        traced: Traced,
        leaves: Sequence[Any],
        is_flat: bool,
        build: Callable[..., Executable],
    ) -> None:
        self.traced = traced
        self.executable = build(traced.graph, fixed_inputs(traced))
        self._preparation = preparation_of(self.executable, traced)
        self.calls = 0
        self.seconds = 0.0
        #: The `Family` that it is made of, if it shares its program with other extents.
        self.family: Any = None
        self._token: object = None
        state = modes.state
        self._grad, self._inference = state.grad, state.inference
        self._autocast = state.autocast
        graph = traced.graph
        n = traced.arguments
        self._donations = graph.donations
        self._written_arguments = sorted(i for i in graph.donations.values() if i < n)
        self._written_state = sorted(i - n for i in graph.donations.values() if i >= n)
        #: For each tensor among the leaves its place; the inverse of `Result.argument`.
        self._places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]
        self._plan = _plan(leaves) if is_flat else None
        #: Captured inputs whose array is a gradient, which is another one at each call.
        self._moving = [(i, s) for i, s in enumerate(traced.sources) if s.owner is not None]
        self.reads_grads = bool(traced.entry or self._moving)
        self._requires_grad = [tuple(t._requires_grad for t in s.tensors) for s in traced.sources]
        self._lock = threading.RLock() if graph.donations or traced.grads or traced.after else None
        self._single = self._single_output()
        #: Gradients: those that become the same object at each call, and those with values.
        self._fixed_grads = [
            (g, None if g.spec is None else dropped_grad(g.spec, graph.name))
            for g in traced.grads
            if g.output is None
        ]
        self._valued_grads = [(g, g.output) for g in traced.grads if g.output is not None]
        self.has_effects = bool(graph.donations or traced.grads or traced.after)
        backward = traced.backward
        self._history = None if backward is None else History(traced, backward, build)
        # Set by `bind`.
        self._state: list[Array] = []
        self._versions: list[list[int]] = []
        self.is_odd = False
        self._written_roots: set[int] = set()
        self._cells: list[tuple[Any, Any]] = []
        self._names: list[tuple[dict[str, Any], str, Any]] = []
        self._contents: list[tuple[Any, Any]] = []
        self._has_surroundings = False

    def _single_output(self) -> int | None:
        results = self.traced.results
        if self.traced.structure == tree.LEAF and results[0].output is not None:
            is_plain = self.traced.backward is None and not results[0].requires_grad
            return results[0].output if is_plain else None
        return None

    @property
    def specializations(self) -> list[Specialization]:
        """Itself: there are several where a function has several paths."""
        return [self]

    # Does it fit?

    def is_valid(self) -> bool:
        """Whether what was captured is still what it was traced with; binds its arrays."""
        if self._token is changes.token and self._fits_surroundings():
            return True
        token = changes.token
        if not self.bind():
            return False
        self._token = token
        return True

    def changed(self) -> list[Watched]:
        """Return what the function depends on, besides tensors, that is not as in the trace."""
        return [w for w in self.traced.watched if w.probe() != w.value]

    def bind(self) -> bool:
        """Take the arrays that the state has now; False if the trace does not fit them."""
        traced = self.traced
        arrays: list[Array] = []
        specs = [v.spec for v in traced.graph.inputs[traced.arguments :]]
        for source, spec, flags in zip(traced.sources, specs, self._requires_grad, strict=True):
            array = source.find()
            if array.__class__ is not np.ndarray:
                return False
            if source.order is not None:
                given = array.transpose(source.order) if array.ndim == len(source.order) else array
                if not given.flags.c_contiguous:
                    return False  # it lies in memory in another order than it did
            else:
                given = array
            if given.shape != spec.shape or array.dtype != spec.dtype:
                return False
            if tuple([t._requires_grad for t in source.tensors]) != flags:
                return False
            if any(t._data is not array for t in source.tensors) and source.owner is None:
                return False
            arrays.append(given)
        if self.changed():
            return False
        names = [v.name for v in traced.graph.inputs[traced.arguments :]]
        check_apart(arrays, self._written_state, names)
        for i in self._written_state:
            if not arrays[i].flags.writeable:
                raise ArgumentError(
                    f"{traced.graph.name}: {names[i] or 'a tensor'} is overwritten, but its array "
                    "is read-only; clone() it first"
                )
        versions = [
            source.tensors[0]._version
            for source in (traced.sources[i] for i in self._written_state)
            if source.tensors
        ]
        self._versions = [v for v in versions if v is not None]
        self.is_odd = not all(is_behaved(a) for a in arrays)
        self._written_roots = {id(root_of(arrays[i])) for i in self._written_state}
        self._state = arrays
        if self._preparation is not None:
            self._preparation.bind(arrays)
        self._look_around()
        return True

    def _look_around(self) -> None:
        """Take what the function finds around it, for a quick comparison at each call."""
        references = self.traced.references
        full = [r for r in references if not r.name and r.value() is not MISSING]
        self._cells = [(r.holder, r.value()) for r in full]
        self._names = [(r.holder, r.name, r.value()) for r in references if r.name]
        values = [r.value() for r in references]
        self._contents = [
            (v, v.copy()) for v in values if isinstance(v, (list, dict, set)) and is_plain(v)
        ]
        self._has_surroundings = bool(self._cells or self._names or self._contents)

    def _fits_surroundings(self) -> bool:
        """Whether the function would find around it what it found before."""
        for cell, value in self._cells:
            if cell.cell_contents is not value:
                return False
        for names, name, value in self._names:
            if names.get(name) is not value:
                return False
        for content, copy in self._contents:  # noqa: SIM110 - twice as fast
            if content != copy:
                return False
        return True

    def _fits_grads(self, leaves: Sequence[Any]) -> bool:
        """Whether the gradients that the function reads are there, or missing, as in the trace."""
        for tensor, was_none in self.traced.entry:
            owner = leaves[self._places[tensor]] if isinstance(tensor, int) else tensor
            if (owner._grad is None) is not was_none:
                return False
        for i, source in self._moving:
            array = source.find()
            spec = self.traced.graph.inputs[self.traced.arguments + i].spec
            if array.__class__ is np.ndarray and (array.shape, array.dtype) != tuple(spec):
                return False
        return True

    def accept(self, args: tuple[Any, ...], state: State) -> list[Array] | None:
        """Return the arrays of positional arguments; None if something is not as in the trace."""
        plan = self._plan
        if (
            plan is None
            or self._token is not changes.token
            or state.grad is not self._grad
            or state.inference is not self._inference
            or state.autocast is not self._autocast
            or state.anomaly
            or len(args) != len(plan)
        ):
            return None
        arrays: list[Array] = []
        for leaf, (shape, dtype, requires_grad, is_leaf) in zip(args, plan, strict=True):
            if shape is None:
                if leaf is not dtype:
                    return None
                continue
            if leaf.__class__ is not Tensor:
                return None
            data = leaf._data
            if (
                data.__class__ is not np.ndarray
                or data.dtype is not dtype
                or data.shape != shape
                or leaf._requires_grad is not requires_grad
                or (leaf._node is None) is not is_leaf
                or not data.flags.carray
            ):
                return None
            arrays.append(data)
        if self.is_odd or (self._has_surroundings and not self._fits_surroundings()):
            return None
        if self.reads_grads and not self._fits_grads(args):
            return None
        if self._written_roots or self._written_arguments:
            self.check_arguments(arrays)
        arrays += self._state
        for i, source in self._moving:
            arrays[self.traced.arguments + i] = source.find()
        return arrays

    def check_arguments(self, arrays: list[Array]) -> None:
        """Raise if an argument shares memory with what the function overwrites."""
        for i, array in enumerate(arrays):
            base = array.base
            if id(array if base is None else base) in self._written_roots:
                raise TraceError(
                    f"{self.traced.graph.name}: the argument {self._name(i)} shares its memory "
                    "with state that the function overwrites; pass a clone() of it"
                )
        if self._written_arguments:
            names = [v.name for v in self.traced.graph.inputs]
            check_apart([*arrays, *self._state], self._written_arguments, names)

    def _name(self, i: int) -> str:
        return self.traced.graph.inputs[i].name

    # Calls

    def call(self, leaves: Sequence[Any], arrays: list[Array]) -> Any:
        """Run on arrays that `accept` returned, and do what the function does besides."""
        self.calls += 1
        preparation = self._preparation
        run = self.executable.run if preparation is None else preparation.run
        if not self.has_effects:
            outputs = run(arrays)
            if self._single is not None:
                return initialise(
                    Tensor.__new__(Tensor), outputs[self._single], not modes.state.inference
                )
            return self._results(leaves, arrays, outputs)
        assert self._lock is not None
        with self._lock:
            try:
                outputs = run(arrays)
            finally:
                for version in self._versions:
                    version[0] += 1
                for i in self._written_arguments:
                    _bump(leaves[self._places[i]])
            self._set_grads(leaves, outputs)
            result = self._results(leaves, arrays, outputs)
            for callback in self.traced.after:
                callback()
        return result

    def given(self, arrays: Sequence[Array]) -> list[Array]:
        """Return the arrays of the arguments, and those that the state has now."""
        given = [*arrays, *self._state]
        for i, source in self._moving:
            given[self.traced.arguments + i] = source.find()
        return given

    def call_any(
        self, leaves: Sequence[Any], arrays: list[Array], live: Sequence[Array] = ()
    ) -> Any:
        """Run on any arrays for the arguments: of any layout, read-only where only read.

        Args:
            leaves: of the arguments.
            arrays: of the arguments.
            live: what the program takes besides arguments and state: see `branches`.
        """
        for i in self._written_arguments:
            if not arrays[i].flags.writeable:
                raise ArgumentError(
                    f"{self.traced.graph.name}: the argument {self._name(i)} is overwritten, but "
                    "its array is read-only; pass a copy"
                )
        self.check_arguments(arrays)
        given = [*self.given(arrays), *live]
        behaved = [a if is_behaved(a) else np.array(a, order="C", copy=True) for a in given]
        result = self.call(leaves, behaved)
        for place in self._donations.values():
            if behaved[place] is not given[place]:
                np.copyto(given[place], behaved[place])
        return result

    def _set_grads(self, leaves: Sequence[Any], outputs: list[Array]) -> None:
        for update, fixed in self._fixed_grads:
            self._tensor(leaves, update)._grad = fixed
        for update, output in self._valued_grads:
            grad = initialise(Tensor.__new__(Tensor), outputs[output], True)
            self._tensor(leaves, update)._grad = grad

    def _tensor(self, leaves: Sequence[Any], update: GradUpdate) -> Any:
        if update.tensor is not None:
            return update.tensor
        assert update.argument is not None
        return leaves[self._places[update.argument]]

    def _results(self, leaves: Sequence[Any], arrays: list[Array], outputs: list[Array]) -> Any:
        values: list[Any] = []
        is_tracked = not modes.state.inference
        for result in self.traced.results:
            if result.output is not None:
                tensor = initialise(Tensor.__new__(Tensor), outputs[result.output], is_tracked)
                tensor._requires_grad = result.requires_grad
                values.append(tensor)
            elif result.argument is not None:
                values.append(leaves[self._places[result.argument]])
            else:
                values.append(result.constant)
        if self._history is not None:
            arguments = [leaves[i] for i in self._places]
            self._history.attach(values, arguments, arrays, outputs)
        return tree.unflatten(self.traced.structure, values)

    def __repr__(self) -> str:
        graph = self.traced.graph
        arguments = ", ".join(f"{v.name}: {v.spec}" for v in graph.inputs[: self.traced.arguments])
        state = len(graph.inputs) - self.traced.arguments
        return (
            f"<{graph.name}({arguments}): {len(graph.nodes)} ops, {state} tensors of state, "
            f"{self.calls} calls>"
        )


def _plan(leaves: Sequence[Any]) -> list[tuple[Any, Any, bool, bool]]:
    """Return what is compared of each positional argument: a tensor's spec, or the object."""
    plan: list[tuple[Any, Any, bool, bool]] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            data = leaf._data
            plan.append((data.shape, data.dtype, leaf._requires_grad, leaf._node is None))
        elif is_array(leaf):
            plan.append((leaf.shape, None, False, True))  # never equal: arrays are converted first
        else:
            plan.append((None, leaf, False, True))
    return plan


def _bump(leaf: Any) -> None:
    """Count a write to the storage of an argument."""
    if isinstance(leaf, Tensor) and leaf._version is not None:
        if leaf._history == leaf._version[0]:
            leaf._history += 1
        leaf._version[0] += 1


def changed_error(name: str) -> TraceError:
    """Return the error for a function that does not fit its own trace."""
    return TraceError(
        f"{name}: what it depends on was changed while it was traced, by the function itself or by "
        "another thread"
    )
