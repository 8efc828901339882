"""Export: what fetches need of a graph, as one graph of ops with named inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle.arrays import to_array
from needle.compiled.executable import build
from needle.compiler.passes.dead_code import remove_dead_code
from needle.errors import ArgumentError, GraphError, ShapeError
from needle.graph import ir, trace
from needle.ops.copying import clone
from needle.ops.samples import Array
from needle.shapes import Spec
from needle.static.declare import check_fed
from needle.static.evaluation import Evaluation, Plan
from needle.static.graph import Graph
from needle.static.session import Session
from needle.static.symbol import Symbol
from needle.tensor import Tensor, wrap

#: Symbols by the names that they get; those alone have the names of their operations.
Named = Mapping[str, Symbol] | Sequence[Symbol]


@dataclass(frozen=True, eq=False)
class Exported:
    """A graph of ops that is ready for inference.

    Attributes:
        graph: its inputs are ``inputs``, then ``values``, in order; its outputs are ``outputs``.
            The compiler and the interpreter take it as any other.
        inputs: shape and dtype of each input, by name.
        outputs: shape and dtype of each output, by name.
        values: copies of the variables that are read, by name.
    """

    graph: ir.Graph
    inputs: dict[str, Spec]
    outputs: dict[str, Spec]
    values: dict[str, Array]

    def arrays(self, feeds: Mapping[str, Any]) -> list[Array]:
        """Return an array for each input of the graph.

        Raises:
            ArgumentError: the names are not those of the inputs.
            ShapeError: a value has another shape than its input.
        """
        if set(feeds) != set(self.inputs):
            raise ArgumentError(f"the inputs are {sorted(self.inputs)}, got {sorted(feeds)}")
        given = []
        for name, spec in self.inputs.items():
            array = np.ascontiguousarray(to_array(feeds[name], spec.dtype))
            if array.shape != spec.shape:
                raise ShapeError(
                    f"the input {name!r} has shape {list(spec.shape)}, got {list(array.shape)}"
                )
            given.append(array)
        return [*given, *self.values.values()]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Array]:
        """Compile the graph, run it once, and return its outputs by name."""
        found = build(self.graph).run(self.arrays(feeds))
        return dict(zip(self.outputs, found, strict=True))


def export(
    graph: Graph,
    session: Session,
    inputs: Named,
    outputs: Named,
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> Exported:
    """Return what outputs need; see `Graph.export`."""
    fed, fetched = _named(inputs), _named(outputs)
    for symbol in (*fed.values(), *fetched.values()):
        if symbol.graph is not graph:
            raise GraphError(f"export: {symbol} is not in the graph")
    if session.graph is not graph:
        raise GraphError("export: the session is of another graph")
    specs = {name: _spec(name, symbol, dict(shapes or {})) for name, symbol in fed.items()}
    plan = Plan(graph, list(fetched.values()), list(fed.values()))
    if plan.written or plan.preparations:
        what = plan.written[0] if plan.written else "a variable"
        raise GraphError(f"export: the outputs need that {what} is assigned; fetch what only reads")
    check_fed(plan.operations)
    session.check_valued(plan)

    def compute(*given: Tensor) -> list[Tensor]:
        evaluation = Evaluation(plan, session.values, session.objects, given)
        return [clone(evaluation.value(symbol).detach()) for symbol in fetched.values()]

    traced = trace(compute, *(wrap(spec) for spec in specs.values()))
    if traced.graph.donations:
        raise GraphError(
            "export: the outputs draw random numbers, or change what a module holds; leave dropout "
            "out of what is exported, and call eval() on modules"
        )
    names = {id(t._data): v.operation.name for v, t in session.values.items()}
    values: dict[str, Array] = {}
    for i, source in enumerate(traced.sources):
        name = names.get(id(source.find()), f"captured_{i}")
        values[name] = np.array(source.given(), order="C")
    pruned = remove_dead_code(traced.graph)
    for value, name in zip(pruned.inputs, (*specs, *values), strict=True):
        value.name = name
    found = dict(zip(fetched, (value.spec for value in pruned.outputs), strict=True))
    return Exported(pruned, specs, found, values)


def _named(symbols: Named) -> dict[str, Symbol]:
    found = dict(symbols) if isinstance(symbols, Mapping) else _by_operation(symbols)
    for name, symbol in found.items():
        if not isinstance(symbol, Symbol):
            raise ArgumentError(f"export: {name!r} must be a symbol, got a {type(symbol).__name__}")
    return found


def _by_operation(symbols: Iterable[Symbol]) -> dict[str, Symbol]:
    return {s.operation.name if isinstance(s, Symbol) else str(s): s for s in symbols}


def _spec(name: str, symbol: Symbol, shapes: dict[str, Sequence[int]]) -> Spec:
    """Return shape and dtype of an input, open extents as ``shapes`` says."""
    chosen = shapes.get(name)
    known = symbol.shape
    if chosen is None:
        if known is None or None in known:
            raise ShapeError(
                f"export: {symbol} has open extents; say what they are in what is exported: "
                f"shapes={{{name!r}: (…)}}"
            )
        chosen = [n for n in known if n is not None]
    extents = tuple(int(n) for n in chosen)
    if known is not None and (
        len(known) != len(extents)
        or any(n not in (None, m) for n, m in zip(known, extents, strict=True))
    ):
        raise ShapeError(f"export: {symbol} cannot have the shape {list(extents)}")
    assert symbol.dtype is not None
    return Spec(extents, symbol.dtype)
