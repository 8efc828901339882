"""Symbol: a tensor that is declared, and computed when a session runs; Variable: one with state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from needle import dtypes
from needle.dtypes import DType
from needle.errors import GraphError, TraceError
from needle.static.graph import Graph, Operation

#: Extents; None where each run may have another one.
Extents = tuple["int | None", ...]


class Symbol:
    """A declared tensor. It has the operators and methods of a `Tensor`, which declare more.

    Attributes:
        operation: that declares it.
        index: which of the operation's outputs it is.
        shape: extents, None for open ones; None if not even their number is known.
        dtype: data type; None if it is not known.
    """

    # ndarray + symbol: let the symbol's operator answer.
    __array_priority__ = 1000
    __hash__ = object.__hash__

    def __init__(
        self, operation: Operation, index: int, shape: Extents | None, dtype: DType | None
    ) -> None:
        self.operation = operation
        self.index = index
        self.shape = shape
        self.dtype = dtype

    @property
    def graph(self) -> Graph:
        """The graph that it belongs to."""
        return self.operation.graph

    @property
    def name(self) -> str:
        """``operation:output``, unique in the graph."""
        return f"{self.operation.name}:{self.index}"

    @property
    def ndim(self) -> int | None:
        """Number of axes; None if it is not known."""
        return None if self.shape is None else len(self.shape)

    def eval(self, feed_dict: Any = None, session: Any = None) -> Any:
        """Return the value in a session, by default the one that a ``with`` statement opened."""
        from needle.static.session import chosen_session

        return chosen_session(session).run(self, feed_dict)

    def _refuse(self, what: str) -> NoReturn:
        raise TraceError(
            f"{what} {self}: a declared tensor has no value before a session runs; declare with "
            "static.cond, where, while_loop or scan what depends on it, or ask session.run for it"
        )

    def __bool__(self) -> bool:
        self._refuse("the truth of")

    def __int__(self) -> int:
        self._refuse("the value of")

    def __float__(self) -> float:
        self._refuse("the value of")

    def __len__(self) -> int:
        if not self.shape or self.shape[0] is None:
            self._refuse("the length of")
        return self.shape[0]

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))  # type: ignore[index]

    def numpy(self) -> NoReturn:
        """Refuse: there is no value yet."""
        self._refuse("the value of")

    def __repr__(self) -> str:
        shape = (
            "?"
            if self.shape is None
            else ", ".join("?" if n is None else str(n) for n in self.shape)
        )
        dtype = "?" if self.dtype is None else self.dtype.name
        return f"<{type(self).__name__.lower()} {self.name!r}: {dtype}[{shape}]>"


class Variable(Symbol):
    """A tensor that keeps its value from run to run, in each session its own.

    Args:
        initial_value: a number, an array, a symbol, or a function that returns one. None: it has a
            value once it is assigned, or fed.
        trainable: whether optimizers change it.
        name: what to call it.
        dtype: data type; that of the initial value if not given, float32 where that says nothing.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     w = tf.Variable([1.0, 2.0], name="w")
        ...     session = tf.Session()
        ...     session.run(tf.global_variables_initializer())
        ...     session.run(w.assign(w * 3))
        array([3., 6.], dtype=float32)
    """

    def __init__(
        self,
        initial_value: Any = None,
        trainable: bool = True,
        name: str = "Variable",
        dtype: Any = None,
    ) -> None:
        from needle.static.declare import constant
        from needle.static.graph import get_default_graph

        chosen = None if dtype is None else dtypes.as_dtype(dtype)
        value = initial_value() if callable(initial_value) else initial_value
        if value is not None and not isinstance(value, Symbol):
            value = constant(value, dtype=chosen, name=f"{name}/initial_value")
        shape = None if value is None else value.shape
        if chosen is None:
            chosen = dtypes.float32 if value is None or value.dtype is None else value.dtype
        graph = get_default_graph()
        operation = Operation(graph, name, _read)
        super().__init__(operation, 0, shape, chosen)
        operation.outputs = [self]
        self.trainable = trainable and dtypes.is_float(chosen)
        self.initial_value = value
        self.initializer: Operation | None = None
        graph.variables.append(self)
        if value is not None:
            self.initializer = _assignment(self, value, "Assign").operation

    def assign(self, value: Any) -> Symbol:
        """Declare that the variable gets a value; return what it gets."""
        return _assignment(self, value, "Assign")

    def assign_add(self, value: Any) -> Symbol:
        """Declare that a value is added to the variable; return the sum."""
        return _assignment(self, self + value, "AssignAdd")

    def assign_sub(self, value: Any) -> Symbol:
        """Declare that a value is subtracted from the variable; return the difference."""
        return _assignment(self, self - value, "AssignSub")

    def load(self, value: Any, session: Any = None) -> None:
        """Give the variable a value in a session, without running anything."""
        from needle.static.session import chosen_session

        chosen_session(session).load(self, value)


def _read() -> None:
    """What a variable's operation calls: nothing, since each use reads the variable anew."""


def _write(evaluation: Any, variable: Variable, value: Any) -> Any:
    return evaluation.write(variable, value)


def _assignment(variable: Variable, value: Any, name: str) -> Symbol:
    from needle.static.declare import constant

    graph = variable.graph
    if not isinstance(value, Symbol):
        value = constant(value, dtype=variable.dtype)
    if not _may_be(variable.shape, value.shape):
        raise GraphError(f"{variable}: assigned a value of shape {list(value.shape)}, {value}")
    stem = variable.operation.name.rpartition("/")[2]
    # The variable itself is not read.
    operation = Operation(
        graph, f"{stem}/{name}", _write, [Unread(variable), value], needs_evaluation=True
    )
    result = Symbol(operation, 0, value.shape or variable.shape, variable.dtype)
    operation.outputs = [result]
    return result


class Unread:
    """Hides a variable from the inputs of an operation that only writes it."""

    def __init__(self, variable: Variable) -> None:
        self.variable = variable


def _may_be(expected: Extents | None, given: Extents | None) -> bool:
    """Whether shapes can be equal, as far as they are known."""
    if expected is None or given is None:
        return True
    return len(expected) == len(given) and all(
        a is None or b is None or a == b for a, b in zip(expected, given, strict=True)
    )


def attach(name: str, method: Callable[..., Any]) -> None:
    """Make ``method`` the method ``name`` of all symbols."""
    setattr(Symbol, name, method)
