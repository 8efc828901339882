"""Graph: what has been declared, in order; and where in it declarations go.

A declared graph is a list of operations: a function of the library, and what it will be called
with. Nothing is computed until a session runs it. So shapes may be open, and what a program is
compiled to is decided by what is fetched and fed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from needle import tree
from needle.eager import user_line
from needle.errors import GraphError

if TYPE_CHECKING:
    from needle.static.export import Exported, Named
    from needle.static.session import Session
    from needle.static.symbol import Symbol, Variable


class Operation:
    """One declared call.

    Attributes:
        graph: that it belongs to.
        number: rises in the order of declaration.
        name: unique in the graph.
        function: what a session calls: with the values of the arguments, and the evaluation if
            ``needs_evaluation``.
        inputs: the symbols among the arguments, and what functions inside of it use from outside.
        controls: operations that run before it.
        outputs: what it declares.
        block: the part of the graph that it stands in: that of a branch or loop, or the whole.
        location: ``file:line`` of the declaration.
    """

    def __init__(
        self,
        graph: Graph,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        inputs: Iterable[Symbol] = (),
        needs_evaluation: bool = False,
    ) -> None:
        from needle.static.symbol import Symbol

        self.graph = graph
        self.name = graph.unique_name(name)
        self.function = function
        self.needs_evaluation = needs_evaluation
        self.leaves, self.structure = tree.flatten((tuple(args), dict(kwargs or {})))
        found = [leaf for leaf in self.leaves if isinstance(leaf, Symbol)]
        self.inputs: tuple[Symbol, ...] = tuple(dict.fromkeys([*found, *inputs]))
        for symbol in self.inputs:
            if symbol.graph is not graph:
                raise GraphError(
                    f"{self.name}: {symbol} belongs to another graph; declare both in one, inside "
                    "of `with graph.as_default():`"
                )
        self.controls: tuple[Operation, ...] = graph.current_controls()
        self.outputs: list[Symbol] = []
        self.result: tree.TreeDef = tree.LEAF
        self.block = graph.block
        self.location = user_line()
        self.number = len(graph.operations)
        graph.operations.append(self)

    def run(self, session: Any = None, feed_dict: Any = None) -> None:
        """Run it in a session, by default the one that a ``with`` statement has opened."""
        from needle.static.session import chosen_session

        chosen_session(session).run(self, feed_dict)

    def __repr__(self) -> str:
        return f"<operation {self.name!r}>"


class Block:
    """A part of a graph that runs zero times or more: a branch, or the body of a loop.

    Attributes:
        outer: the part that it stands in; None for the whole graph.
    """

    def __init__(self, outer: Block | None = None) -> None:
        self.outer = outer

    def is_within(self, other: Block) -> bool:
        """Whether this is the other block, or a part of it."""
        block: Block | None = self
        while block is not None:
            if block is other:
                return True
            block = block.outer
        return False


class Graph:
    """A graph of declared tensors and operations.

    Example:
        >>> import needle.static as tf
        >>> graph = tf.Graph()
        >>> with graph.as_default():
        ...     x = tf.placeholder((None, 3), name="x")
        ...     y = (x * 2).sum(axis=1)
        >>> y.shape, len(graph.operations)
        ((None,), 3)
        >>> tf.Session(graph).run(y, {x: [[1, 2, 3]]})
        array([12.], dtype=float32)
    """

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self.variables: list[Variable] = []
        self.block = Block()
        self._controls: list[tuple[Operation, ...]] = []
        self._scopes: list[str] = []
        self._names: set[str] = set()

    @contextlib.contextmanager
    def as_default(self) -> Generator[Graph]:
        """Declare in this graph inside of a ``with`` statement."""
        _stack().append(self)
        try:
            yield self
        finally:
            _stack().pop()

    @contextlib.contextmanager
    def name_scope(self, name: str) -> Generator[str]:
        """Put ``name/`` before the names of what is declared inside."""
        scope = self._distinct("/".join([*self._scopes, name]))
        previous, self._scopes = self._scopes, [scope]
        try:
            yield scope + "/"
        finally:
            self._scopes = previous

    @contextlib.contextmanager
    def control_dependencies(self, operations: Iterable[Operation | Symbol]) -> Generator[None]:
        """Let what is declared inside run after ``operations``."""
        self._controls.append(tuple(as_operation(item) for item in operations))
        try:
            yield
        finally:
            self._controls.pop()

    def current_controls(self) -> tuple[Operation, ...]:
        """Return the operations that what is declared now runs after."""
        return tuple(dict.fromkeys(o for controls in self._controls for o in controls))

    @contextlib.contextmanager
    def inside(self, block: Block) -> Generator[None]:
        """Declare a branch or the body of a loop."""
        previous, self.block = self.block, block
        try:
            yield
        finally:
            self.block = previous

    def unique_name(self, name: str) -> str:
        """Return a name below the current scope that nothing in the graph has."""
        return self._distinct("/".join([*self._scopes, name]))

    def _distinct(self, name: str) -> str:
        found, count = name, 0
        while found in self._names:
            count += 1
            found = f"{name}_{count}"
        self._names.add(found)
        return found

    def find(self, name: str) -> Any:
        """Return the symbol named ``"operation:output"``, or the operation of a name.

        Raises:
            GraphError: there is none.
        """
        stem, colon, number = name.partition(":")
        for operation in self.operations:
            if operation.name == stem:
                if not colon:
                    return operation
                if number.isdigit() and int(number) < len(operation.outputs):
                    return operation.outputs[int(number)]
        known = ", ".join(repr(o.name) for o in self.operations[:20])
        raise GraphError(f"the graph has nothing named {name!r}; its operations begin with {known}")

    def export(
        self,
        session: Session,
        inputs: Named,
        outputs: Named,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> Exported:
        """Return what ``outputs`` need, as a graph of ops that is ready for inference.

        Losses, optimizers and all else that the outputs do not need is left out, and the values of
        variables go along.

        Args:
            session: whose values of variables.
            inputs: what is to be fed: symbols by name, or symbols, named as their operations.
            outputs: what is computed, likewise.
            shapes: of the inputs that have open extents, by name.

        Raises:
            GraphError: a symbol that is not in the graph, a placeholder that is no input, outputs
                that need an assignment or draw random numbers, a variable without a value.
            ShapeError: a shape is missing, or does not fit.

        Example:
            >>> import needle.static as tf
            >>> with tf.Graph().as_default() as graph:
            ...     x = tf.placeholder(tf.float32, [None, 2], name="x")
            ...     w = tf.Variable([[1.0], [2.0]], name="w")
            ...     y = tf.matmul(x, w, name="y")
            ...     loss = tf.reduce_mean(tf.square(y))
            ...     session = tf.Session()
            ...     session.run(tf.global_variables_initializer())
            >>> exported = graph.export(session, [x], [y], shapes={"x": (3, 2)})
            >>> [node.op.name for node in exported.graph.nodes], list(exported.values)
            (['matmul', 'clone'], ['w'])
            >>> exported.run({"x": [[1, 1], [2, 0], [0, 2]]})["y"].tolist()
            [[3.0], [2.0], [4.0]]
        """
        from needle.static.export import export

        return export(self, session, inputs, outputs, shapes)

    def __repr__(self) -> str:
        return f"<graph of {len(self.operations)} operations, {len(self.variables)} variables>"


def as_operation(item: Any) -> Operation:
    """Return an operation, or that of a symbol."""
    if isinstance(item, Operation):
        return item
    operation = getattr(item, "operation", None)
    if not isinstance(operation, Operation):
        raise GraphError(f"expected an operation or a symbol, got a {type(item).__name__}")
    return operation


_local = threading.local()


def _stack() -> list[Graph]:
    if not hasattr(_local, "graphs"):
        _local.graphs = [Graph()]
    graphs: list[Graph] = _local.graphs
    return graphs


def get_default_graph() -> Graph:
    """Return the graph that declarations of this thread go to."""
    return _stack()[-1]


def reset_default_graph() -> None:
    """Let declarations go to a new graph from now on.

    Raises:
        GraphError: inside of `Graph.as_default`.
    """
    if len(_stack()) > 1:
        raise GraphError("reset_default_graph: leave `with graph.as_default():` first")
    _stack()[-1] = Graph()


def name_scope(name: str) -> contextlib.AbstractContextManager[str]:
    """Put ``name/`` before the names of what is declared inside, in the default graph."""
    return get_default_graph().name_scope(name)


def control_dependencies(
    operations: Iterable[Operation | Symbol],
) -> contextlib.AbstractContextManager[None]:
    """Let what is declared inside run after ``operations``, in the default graph.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     count = tf.Variable(0.0)
        ...     with tf.control_dependencies([count.assign_add(1)]):
        ...         doubled = tf.identity(count) * 2
        ...     session = tf.Session()
        ...     session.run(count.initializer)
        ...     session.run(doubled), session.run(doubled)
        (np.float32(2.0), np.float32(4.0))
    """
    return get_default_graph().control_dependencies(operations)
