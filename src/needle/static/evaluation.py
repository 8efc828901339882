"""Evaluation: what a session needs for its fetches, and how it is computed on tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from needle import tree
from needle.config import enable_grad, no_grad
from needle.errors import GraphError, NeedleError
from needle.ops.copying import astype
from needle.static.graph import Block, Graph, Operation, as_operation
from needle.static.symbol import Symbol, Unread, Variable
from needle.tensor import Tensor

if TYPE_CHECKING:
    from needle.static.session import Session


class Plan:
    """Which operations fetches need, without those that only computed what is fed.

    Attributes:
        feeds: what is fed, in order, as the keys of a dict.
        operations: what is needed, in the order of declaration, parts inside of branches included.
        read: variables whose values are read.
        written: variables that are assigned.
        differentiated: symbols that gradients are taken with respect to.
        preparations: what operations have to do in a session before anything is traced.
    """

    def __init__(
        self,
        graph: Graph,
        fetches: Sequence[Symbol | Operation],
        feeds: Sequence[Symbol],
    ) -> None:
        self.graph = graph
        # Symbols are compared by identity here, so they must not lie in tuples that are searched.
        self.feeds = dict.fromkeys(feeds)
        self.needed = self._needed(fetches)
        self.operations = sorted(self.needed, key=lambda o: o.number)
        self.read: list[Variable] = []
        self.written: list[Variable] = []
        self.differentiated: set[Symbol] = set()
        self.preparations: list[Callable[[Session], None]] = []
        fed = set(self.feeds)
        for operation in self.operations:
            output = operation.outputs[0] if operation.outputs else None
            if isinstance(output, Variable):
                self.read.append(output)
            for leaf in operation.leaves:
                if isinstance(leaf, Unread):
                    self.written.append(leaf.variable)
            self.differentiated.update(getattr(operation.function, "with_respect_to", ()))
            prepare = getattr(operation.function, "prepare", None)
            if prepare is not None:
                self.preparations.append(prepare)
                self.read += [v for v in operation.function.variables if v not in fed]  # type: ignore[attr-defined]
        self.read = [v for v in dict.fromkeys(self.read) if v not in fed]
        self.written = list(dict.fromkeys(self.written))

    def _needed(self, fetches: Sequence[Symbol | Operation]) -> set[Operation]:
        fed = set(self.feeds)
        needed: set[Operation] = set()
        stack = [as_operation(f) for f in fetches if f not in fed]
        while stack:
            operation = stack.pop()
            if operation in needed:
                continue
            needed.add(operation)
            stack += operation.controls
            stack += [s.operation for s in operation.inputs if s not in fed]
            inner = getattr(operation.function, "needs", ())
            stack += [as_operation(item) for item in inner if item not in fed]
        return needed

    def within(self, block: Block) -> Iterator[Operation]:
        """Yield the operations that stand directly in a part of the graph."""
        return (o for o in self.operations if o.block is block)


class Evaluation:
    """One run of a plan, on tensors: those of values, or of a trace.

    Args:
        plan: what is needed.
        values: of the variables; they are overwritten by assignments.
        objects: that operations have made in the session.
        fed: a tensor for each feed of the plan.
    """

    def __init__(
        self,
        plan: Plan,
        values: Mapping[Variable, Tensor],
        objects: Mapping[Any, Any],
        fed: Sequence[Tensor],
    ) -> None:
        self.plan = plan
        self.values = values
        self.objects = objects
        #: Variables that got their first value in this run.
        self.made: dict[Variable, Tensor] = {}
        self.known: dict[Symbol, Any] = {}
        for symbol, tensor in zip(plan.feeds, fed, strict=True):
            self._know(symbol, tensor)
        with enable_grad():
            self.run(plan.graph.block)

    def run(self, block: Block) -> None:
        """Compute what is needed of a part of the graph."""
        for operation in self.plan.within(block):
            self.compute(operation)

    def compute(self, operation: Operation) -> None:
        """Compute the outputs of an operation that are not known."""
        outputs = operation.outputs
        if outputs and (isinstance(outputs[0], Variable) or all(s in self.known for s in outputs)):
            return  # variables are read where they are used
        leaves = [self._argument(x) for x in operation.leaves]
        first = (self,) if operation.needs_evaluation else ()
        args, kwargs = tree.unflatten(operation.structure, leaves)
        try:
            result = operation.function(*first, *args, **kwargs)
        except NeedleError as error:
            error.message += f" (in {operation.name!r}, declared at {operation.location})"
            raise
        for symbol, value in zip(operation.outputs, tree.flatten(result)[0], strict=False):
            if symbol not in self.known:
                self._know(symbol, value)

    def _argument(self, leaf: Any) -> Any:
        if isinstance(leaf, Unread):
            return leaf.variable
        return self.value(leaf) if isinstance(leaf, Symbol) else leaf

    def part(
        self, block: Block, results: Sequence[Symbol], given: Mapping[Symbol, Any] | None = None
    ) -> list[Any]:
        """Compute a branch, or the body of a loop.

        Args:
            block: the part of the graph.
            results: what it is to return.
            given: values of what stands for arguments in it.
        """
        before, self.known = self.known, {**self.known, **(given or {})}
        try:
            self.run(block)
            return [self.value(symbol) for symbol in results]
        finally:
            self.known = before

    def _know(self, symbol: Symbol, value: Any) -> None:
        if symbol in self.plan.differentiated and not value.requires_grad:
            value = value.detach()
            value.requires_grad = True
        self.known[symbol] = value

    def result(self, fetch: Symbol | Operation) -> Tensor | None:
        """Return what is fetched, without its history; a variable as it is in the end."""
        if isinstance(fetch, Operation):
            return None
        if isinstance(fetch, Variable) and fetch not in self.plan.feeds:
            return self.read(fetch).detach().clone()
        value: Tensor = self.known[fetch]
        return value.detach()

    def value(self, symbol: Symbol) -> Any:
        """Return what a symbol is."""
        if isinstance(symbol, Variable) and symbol not in self.plan.feeds:
            return self.read(symbol)
        return self.known[symbol]

    def read(self, variable: Variable) -> Tensor:
        """Return the value of a variable now."""
        found = self.made.get(variable)
        found = self.values.get(variable) if found is None else found
        if found is None:
            raise GraphError(
                f"{variable} is read before it gets its first value in this run: declare what "
                "reads it under control_dependencies of the assignment"
            )
        return found

    def write(self, variable: Variable, value: Tensor) -> Tensor:
        """Give a variable a value; return it."""
        assert variable.dtype is not None
        new = astype(value, variable.dtype)
        with no_grad():
            held = self.values.get(variable)
            if held is not None and held.shape == new.shape:
                held.copy_(new)
            else:
                self.made[variable] = new.detach().clone()
        return new.detach().clone()
