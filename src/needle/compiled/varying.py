"""One program for all extents of a `Dim`.

A function with a declared `Dim` is traced with an `Extent` in the place of the number, and compiled
once. For each extent that is met there is a `Specialization` as for any other signature; it is made
of the trace and the program in less than a millisecond, and only the shapes in it are its own.
Where it cannot be done, each extent gets a trace and a program of its own, and `reason` says why.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.backends import cpu
from needle.backends.cpu.threads import get_num_threads
from needle.compiled.dim import Dim, extent_of, generalise
from needle.compiled.executable import Executable, build
from needle.compiled.preparation import fixed_inputs
from needle.compiled.specialization import Specialization
from needle.compiler.passes.dead_code import remove_dead_code
from needle.compiler.passes.decompose import decompose
from needle.compiler.rows import VariesError
from needle.errors import NeedleError
from needle.extents import NeedsNumberError, Symbol, with_extent
from needle.graph.differentiate import Backward
from needle.graph.finish import number_source
from needle.graph.ir import Graph, Node, Value, everywhere
from needle.graph.traced import Source, Traced
from needle.shapes import Shape

if TYPE_CHECKING:
    from needle.backends.cpu.varying import VaryingProgram

#: How many programs there may be for one signature, where what the function asks about the extent
#: has different answers; and how often it is tried in vain.
MOST_PROGRAMS, MOST_FAILURES = 4, 2
#: For how many extents of one program what was made is kept.
MOST_EXTENTS = 256

#: From the leaves of the arguments, with the shapes to trace them with, to the trace.
Tracer = Callable[[Sequence[Shape | None]], Traced]


class Family:
    """A trace for any extent, its program, and what was made for single extents.

    Args:
        traced: with `Extent`s in its shapes; is changed.
        symbol: the extent.
    """

    def __init__(self, traced: Traced, symbol: Symbol) -> None:
        self.traced, self.symbol = traced, symbol
        graph = traced.graph
        traced.graph = everywhere(graph, _by_parts)
        backward = traced.backward
        if backward is not None:
            backward.graph = everywhere(backward.graph, _by_parts)
        self._add_numbers()
        self._threads = get_num_threads()
        self.program = cpu.build_varying(traced.graph, self._threads, fixed_inputs(traced))
        self._backward: VaryingProgram | VariesError | None = None
        self._lock = threading.RLock()
        #: What was made for each signature, the oldest first.
        self.made: dict[Any, Specialization] = {}

    def _add_numbers(self) -> None:
        """Make inputs of the numbers that decomposing the graphs has asked for."""
        traced, backward = self.traced, self.traced.backward
        inputs = traced.graph.inputs
        for formula, value in self.symbol.numbers.values():
            if value not in inputs:
                inputs.append(value)
                traced.sources.append(number_source(formula, value))
            if backward is None or value in backward.graph.inputs:
                continue
            if any(value in node.inputs for node in backward.graph.nodes):
                backward.graph.inputs.append(value)
                backward.saved.append(-1 - inputs.index(value))

    def at(self, extent: int, leaves: Sequence[Any], is_flat: bool) -> Specialization:
        """Return the specialisation for one extent."""
        traced = _traced_at(self.traced, extent)

        def executable(graph: Graph, fixed: tuple[int, ...] = ()) -> Executable:
            if graph is traced.graph:
                return self.program.at(extent)
            return self._backward_at(extent)

        made = Specialization(traced, leaves, is_flat, executable)
        made.family = self
        return made

    def _backward_at(self, extent: int) -> Executable:
        """Return the backward pass for one extent; compiled when it is first needed."""
        assert self.traced.backward is not None
        graph = self.traced.backward.graph
        with self._lock:
            if self._backward is None:
                try:
                    self._backward = cpu.build_varying(graph, self._threads)
                except NeedleError as error:
                    self._backward = VariesError(error.message)
        if isinstance(self._backward, VariesError):
            return build(_graph_at(graph, extent))
        return self._backward.at(extent)


def _by_parts(graph: Graph) -> Graph:
    """Decompose a graph while its extents can still be asked for: a mean divides by them."""
    return decompose(remove_dead_code(graph))


class Varying:
    """What a compiled function has been compiled for with extents that vary.

    Args:
        dims: the declared axes, by argument; see `as_dims`.
        refusal: why it is not even tried; empty if it is.

    Attributes:
        reason: why the last attempt failed; empty if it has not.
        exceptions: questions about the extent whose answers have made more programs than one.
    """

    def __init__(self, dims: Mapping[str, tuple[Dim | None, ...]], refusal: str = "") -> None:
        declared = [d for axes in dims.values() for d in axes if d is not None]
        #: The first that is declared; others have a program for each extent.
        self.dim = declared[0]
        self._axes = {
            name: tuple(d if d is not None and d.name == self.dim.name else None for d in axes)
            for name, axes in dims.items()
        }
        self._refusal = refusal
        self.reason = refusal
        self.exceptions: list[str] = []
        self._families: dict[Any, list[Family]] = {}
        self._failures: dict[Any, int] = {}

    def find(
        self,
        key: Any,
        shapes: Sequence[tuple[str, Shape | None]],
        rest: Any,
        leaves: Sequence[Any],
        is_flat: bool,
        trace: Tracer,
    ) -> Specialization | None:
        """Return the specialisation for some arguments; None if they need a trace of their own.

        Args:
            key: the signature.
            shapes: name and shape of each leaf; None for what is no tensor.
            rest: of the signature, besides shapes.
            leaves: of the arguments.
            is_flat: see `Specialization`.
            trace: traces the function.
        """
        extent = extent_of(shapes, self._axes)
        if self._refusal or extent is None:
            return None
        if extent < 1:  # reductions of nothing are errors, or other values
            self._except(f"({self.dim} == 0)")
            return None
        general = generalise(shapes, self._axes), rest
        families = self._families.setdefault(general, [])
        for family in reversed(families):
            condition = family.symbol.differs_at(extent)
            if condition:
                self._except(condition)
                continue
            found = self._at(family, key, extent, leaves, is_flat)
            if found is not None:
                return found
        if len(families) >= MOST_PROGRAMS or self._failures.get(general, 0) >= MOST_FAILURES:
            return None
        # 1 is what broadcasts: a trace for it would be good for nothing else.
        symbol = Symbol(self.dim.name, max(extent, 2))
        self.reason = ""
        try:
            traced = trace(varied(shapes, self._axes, symbol))
            if symbol.reason:
                raise VariesError(symbol.reason)
            family = Family(traced, symbol)
        except NeedsNumberError as error:
            self.reason = str(error)
        except NeedleError as error:
            self.reason = error.message
        except Exception as error:  # what it is, the trace with numbers will tell
            self.reason = f"{type(error).__name__}: {error}"
        symbol.is_closed = True
        if self.reason:
            self._failures[general] = self._failures.get(general, 0) + 1
            return None
        families.append(family)
        condition = symbol.differs_at(extent)
        if condition:
            self._except(condition)
            return None
        return self._at(family, key, extent, leaves, is_flat)

    def _except(self, condition: str) -> None:
        if condition not in self.exceptions:
            self.exceptions.append(condition)

    def _at(
        self, family: Family, key: Any, extent: int, leaves: Sequence[Any], is_flat: bool
    ) -> Specialization | None:
        """Return what a family has, or makes, for a signature, if it fits what is around."""
        found = family.made.get(key) or family.at(extent, leaves, is_flat)
        if not (found.is_valid() and found._fits_grads(leaves)):
            return None
        family.made[key] = found
        return found

    def drop_oldest(self, table: dict[Any, list[Any]]) -> None:
        """Forget what was made for the oldest extents, where there are very many."""
        for families in self._families.values():
            for family in families:
                while len(family.made) > MOST_EXTENTS:
                    key = next(iter(family.made))
                    found = family.made.pop(key)
                    table[key] = [s for s in table.get(key, ()) if s is not found]

    def describe(self) -> str:
        """Return how extents are served, in a sentence."""
        if self.reason:
            return f"each extent of {self.dim} has a program of its own: {self.reason}"
        text = f"one program for any extent of {self.dim}"
        if self.exceptions:
            asked = " and ".join(self.exceptions)
            text += f", for each answer to what the function asks of it: {asked}"
        return text


def varied(
    shapes: Sequence[tuple[str, Shape | None]],
    axes: Mapping[str, tuple[Dim | None, ...]],
    symbol: Symbol,
) -> list[Shape | None]:
    """Return the shapes with an `Extent` on each of the axes that are declared."""
    result: list[Shape | None] = []
    for general, (_, shape) in zip(generalise(shapes, axes), shapes, strict=True):
        if shape is None:
            result.append(None)
            continue
        extents: Any = [symbol.extent if n == symbol.name else n for n in general]
        result.append(tuple(extents))
    return result


def _graph_at(graph: Graph, extent: int) -> Graph:
    """Return a graph with one extent in its shapes."""

    def number(formula: Any) -> Any:
        return formula.at(extent)

    new = {v: Value(with_extent(v.spec, number), name=v.name) for v in graph.inputs}
    inputs = list(new.values())
    nodes = []
    for node in graph.nodes:
        specs = [with_extent(v.spec, number) for v in node.results]
        attrs = with_extent(node.attrs, number)
        copy = Node(node.op, [new.get(v, v) for v in node.inputs], attrs, specs)
        copy.take_place(node)
        new.update(zip(node.results, copy.results, strict=True))
        nodes.append(copy)
    outputs = [new.get(v, v) for v in graph.outputs]
    return Graph(inputs, nodes, outputs, dict(graph.donations), graph.name)


def _face_at(graph: Graph, extent: int) -> Graph:
    """Return what a caller sees of a graph: inputs and outputs, with one extent in their shapes."""

    def value(v: Value) -> Value:
        return Value(with_extent(v.spec, lambda f: f.at(extent)), name=v.name)

    inputs, outputs = [value(v) for v in graph.inputs], [value(v) for v in graph.outputs]
    return Graph(inputs, graph.nodes, outputs, graph.donations, graph.name)


def _traced_at(traced: Traced, extent: int) -> Traced:
    """Return a trace with one extent in it."""

    def number(formula: Any) -> Any:
        return formula.at(extent)

    def source(s: Source) -> Source:
        if s.number is None:
            return s
        return replace(s, array=np.asarray(s.number.at(extent), s.array.dtype))

    backward = traced.backward
    if backward is not None:
        graph = _face_at(backward.graph, extent)
        backward = Backward(graph, backward.roots, backward.targets, backward.saved)
    return replace(
        traced,
        graph=_face_at(traced.graph, extent),
        sources=[source(s) for s in traced.sources],
        results=[replace(r, constant=with_extent(r.constant, number)) for r in traced.results],
        grads=[replace(g, spec=with_extent(g.spec, number)) for g in traced.grads],
        backward=backward,
    )
