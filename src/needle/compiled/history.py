"""Gradients through compiled functions: one node for the whole function, with a compiled pass."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle.compiled.executable import Executable
from needle.compiled.storage import root_of
from needle.errors import GradientError
from needle.gradnode import GradNode, SavedValue, connect, edge_of
from needle.graph.differentiate import Backward
from needle.graph.ir import Graph
from needle.graph.traced import Traced
from needle.ops.samples import Array
from needle.shapes import Shape
from needle.tensor import Tensor, wrap


class History:
    """Gives the results of a compiled function their history.

    Args:
        traced: the function.
        backward: its backward pass, compiled when it is first needed.
        build: makes an executable of a graph.
    """

    def __init__(
        self, traced: Traced, backward: Backward, build: Callable[[Graph], Executable]
    ) -> None:
        self.name = traced.graph.name
        self.backward = backward
        self._build = build
        self.specs = [v.spec for v in backward.graph.inputs[: len(backward.roots)]]
        self._sources = traced.sources
        self._arguments = traced.arguments
        #: For each saved value the order in which its axes lie in memory, if it is no usual one.
        self.orders = [self._order(place) for place in backward.saved]
        #: Results by the index of their output: what is saved may be what is returned.
        self._results = {r.output: i for i, r in enumerate(traced.results) if r.output is not None}
        self._executable: Executable | None = None
        self._lock = threading.Lock()

    def _order(self, place: int) -> Shape | None:
        index = -1 - place - self._arguments
        return self._sources[index].order if place < 0 <= index else None

    @property
    def executable(self) -> Executable:
        """What runs the backward pass."""
        with self._lock:
            if self._executable is None:
                self._executable = self._build(self.backward.graph)
            return self._executable

    def attach(
        self,
        results: Sequence[Any],
        arguments: Sequence[Any],
        arrays: Sequence[Array],
        outputs: Sequence[Array],
    ) -> None:
        """Make the differentiable ones of ``results`` results of a node.

        Args:
            results: the leaves of what the function returns.
            arguments: the tensors and arrays among its arguments.
            arrays: what the program was run on.
            outputs: what it gave.
        """
        saved: list[SavedValue | Array] = []
        for place in self.backward.saved:
            if place >= 0:
                index = self._results.get(place)
                saved.append(
                    outputs[place] if index is None else SavedValue(results[index], self.name)
                )
            else:
                saved.append(self._saved_input(-1 - place, arguments, arrays))
        targets = [arguments[t] if isinstance(t, int) else t for t in self.backward.targets]
        edges = tuple([edge_of(t, self.name) for t in targets])
        node = CompiledNode(self.name, edges, len(self.backward.roots))
        node.history = self
        node.saved = saved
        for i, root in enumerate(self.backward.roots):
            connect(results[root], node, i)

    def _saved_input(
        self, place: int, arguments: Sequence[Any], arrays: Sequence[Array]
    ) -> SavedValue | Array:
        if place < self._arguments:
            tensor = arguments[place]
        else:
            tensor = self._sources[place - self._arguments].tensor
        # Not of what had to be copied, since it lies at odd places.
        if isinstance(tensor, Tensor) and root_of(tensor._data) is root_of(arrays[place]):
            return SavedValue(tensor, self.name)
        return arrays[place]


class CompiledNode(GradNode):
    """The node of a call of a compiled function: its cotangents come from a compiled graph."""

    __slots__ = ("history", "saved")

    history: History
    saved: list[SavedValue | Array] | None

    def free(self) -> None:
        super().free()
        self.saved = None

    def vjp(
        self, cotangents: list[Tensor | None], needed: Sequence[Any], create_graph: bool
    ) -> list[Tensor | None]:
        if create_graph:
            raise GradientError(
                f"{self.name}: the backward pass of a compiled function is not recorded; call "
                "ndl.grad(..., create_graph=True) inside of the function that is compiled, or call "
                "the function itself, without compile"
            )
        if self.saved is None:
            raise GradientError(
                f"{self.name}: the graph was freed by an earlier backward pass; "
                "pass retain_graph=True to the earlier one"
            )
        arrays = [
            np.zeros(spec.shape, spec.dtype) if c is None else np.asarray(c._data, order="C")
            for c, spec in zip(cotangents, self.history.specs, strict=True)
        ]
        for saved, order in zip(self.saved, self.history.orders, strict=True):
            if isinstance(saved, SavedValue):
                array = saved.restore(self.name)
                arrays.append(
                    array if order is None else np.ascontiguousarray(array.transpose(order))
                )
            else:
                arrays.append(saved)
        gradients = self.history.executable.run(arrays)
        return [
            wrap(gradient) if is_needed is not None and is_needed is not False else None
            for gradient, is_needed in zip(gradients, needed, strict=True)
        ]
