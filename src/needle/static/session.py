"""Session: runs what is fetched, compiled once for each pair of fetches and feeds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from needle import tree
from needle.arrays import aligned, to_array
from needle.compiled import Compiled, compile as compile_function
from needle.creation import asarray
from needle.errors import ArgumentError, ArgumentTypeError, GraphError, ShapeError
from needle.ops.samples import Array
from needle.static.declare import check_fed
from needle.static.evaluation import Evaluation, Plan
from needle.static.graph import Graph, Operation, get_default_graph
from needle.static.symbol import Symbol, Variable
from needle.tensor import Tensor, wrap

#: For how many combinations of shapes one pair of fetches and feeds is compiled.
BUDGET = 64


class Session:
    """Holds the values of variables, and runs parts of a graph.

    Args:
        graph: the graph; the default one if not given.
        compile: False runs op by op, to look for a mistake.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     v1 = tf.Variable()
        ...     v2 = tf.exp(v1)
        ...     v4 = v2 * (v2 + 1)
        ...     v5 = tf.cond(v4 > 0.5, true_fn=lambda: v4 * 2, false_fn=lambda: v4)
        ...     with tf.Session() as session:
        ...         session.run({"v5": v5, "v4": v4}, feed_dict={v1: 0.0})
        {'v5': np.float32(4.0), 'v4': np.float32(2.0)}
    """

    def __init__(self, graph: Graph | None = None, *, compile: bool = True) -> None:
        self.graph = get_default_graph() if graph is None else graph
        self.compile = compile
        #: The values of variables, and the state of optimizers, by what they belong to.
        self.values: dict[Variable, Tensor] = {}
        self.objects: dict[Any, Any] = {}
        self._programs: dict[Any, Program] = {}
        #: Which variables have values.
        self._valued: frozenset[Variable] = frozenset()
        self._is_closed = False
        self._entered: list[contextlib.ExitStack] = []

    def run(self, fetches: Any, feed_dict: Mapping[Any, Any] | None = None) -> Any:
        """Return the values of ``fetches``; only what they need is computed.

        Args:
            fetches: symbols, operations and names of them, in lists, tuples and dicts; what comes
                back has the same structure, with None for operations.
            feed_dict: values, by symbol or its name. Any symbol can be fed, and is then not
                computed.

        Returns:
            NumPy arrays, and scalars for values without axes.

        Raises:
            GraphError: a fetch or a feed that is not in the graph, a placeholder that is not fed, a
                variable without a value.
            ShapeError: a value that does not fit what it is fed to.
        """
        feeds = {} if feed_dict is None else feed_dict
        # A list or tuple of symbols, the usual case, needs no walk through its structure.
        if isinstance(fetches, (list, tuple)):
            try:
                program = self._programs.get((tuple(fetches), tuple(feeds), self._valued))
            except TypeError:  # there are lists in it
                program = None
            if program is not None:
                values = program.run(feeds.values())
                return values if isinstance(fetches, list) else _as_tuple(values, fetches)
        leaves, structure = tree.flatten(fetches)
        key = tuple(leaves), tuple(feeds), self._valued
        program = self._programs.get(key) if _are_hashable(leaves) else None
        if program is None:
            program = self._programs[key] = self._make(leaves, feeds)
        return tree.unflatten(structure, program.run(feeds.values()))

    def load(self, variable: Variable, value: Any) -> None:
        """Give a variable a value."""
        self.set(variable, asarray(_fitting(variable, value)))

    def set(self, variable: Variable, value: Tensor) -> None:
        """Give a variable a tensor of its own for its value."""
        held = self.values.get(variable)
        if held is not None and held.shape == value.shape:
            held.detach().copy_(value)
            return
        # What was made for the tensor before does not know this one.
        own = aligned(value.shape, value.dtype)
        own[...] = value.numpy()
        self.values[variable] = Tensor(wrap(own))
        self.objects.clear()
        self._programs.clear()
        self._valued = frozenset(self.values)

    def check_valued(self, plan: Plan) -> None:
        """Raise if a plan reads a variable that has no value, and gets none.

        Raises:
            GraphError: there is such a variable.
        """
        for variable in plan.read:
            if variable not in self.values and variable not in set(plan.written):
                raise GraphError(
                    f"{variable}, declared at {variable.operation.location}, has no value: run its "
                    "initializer or static.global_variables_initializer(), assign or feed it"
                )

    def close(self) -> None:
        """Let go of all values; the session runs nothing any more."""
        self.values.clear()
        self.objects.clear()
        self._programs.clear()
        self._is_closed = True

    def _element(self, item: Any, what: str) -> Symbol | Operation:
        if isinstance(item, str):
            item = self.graph.find(item)
        if not isinstance(item, (Symbol, Operation)):
            raise ArgumentTypeError(
                f"a {what} must be a symbol, an operation or the name of one, "
                f"got a {type(item).__name__}"
            )
        if item.graph is not self.graph:
            raise GraphError(f"the {what} {item} is not in the graph of this session")
        return item

    def _make(self, fetches: Sequence[Any], feeds: Mapping[Any, Any]) -> Program:
        """Return a new program."""
        if self._is_closed:
            raise GraphError("the session is closed; open another one")
        fed: list[Symbol] = []
        for item in feeds:
            symbol = self._element(item, "feed")
            if not isinstance(symbol, Symbol):
                raise GraphError(f"{symbol} is no tensor, and cannot be fed")
            _fitting(symbol, feeds[item])  # what is wrong with it comes first
            if any(symbol is other for other in fed):
                raise GraphError(f"{symbol} is fed twice: once as {item!r}, which is its name")
            fed.append(symbol)
        return Program(self, [self._element(item, "fetch") for item in fetches], fed)

    def __enter__(self) -> Session:
        stack = contextlib.ExitStack()
        stack.enter_context(self.graph.as_default())
        _stack().append(self)
        self._entered.append(stack)
        return self

    def __exit__(self, *error: object) -> None:
        _stack().pop()
        self._entered.pop().close()
        if not self._entered:
            self.close()

    def __repr__(self) -> str:
        return f"<session of {self.graph}>"


class InteractiveSession(Session):
    """A session that `Symbol.eval` and `Operation.run` use from now on, until it is closed.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     session = tf.InteractiveSession()
        ...     (tf.constant(2.0) * 3).eval()
        ...     session.close()
        np.float32(6.0)
    """

    def __init__(self, graph: Graph | None = None, *, compile: bool = True) -> None:
        super().__init__(graph, compile=compile)
        _stack().append(self)

    def close(self) -> None:
        super().close()
        if self in _stack():
            _stack().remove(self)


class Program:
    """What a session runs for one pair of fetches and feeds."""

    def __init__(
        self,
        session: Session,
        fetches: Sequence[Symbol | Operation],
        feeds: Sequence[Symbol],
    ) -> None:
        self.session = session
        self.fetches = fetches
        self.feeds = feeds
        self.plan = Plan(session.graph, fetches, feeds)
        check_fed(self.plan.operations)
        session.check_valued(self.plan)
        for prepare in self.plan.preparations:
            prepare(session)
        self._values = dict(session.values)
        self._objects = dict(session.objects)
        #: For each feed, shape and dtype of the array that was found to fit last.
        self._fits: list[Any] = [None] * len(feeds)
        self._places = [i for i, fetch in enumerate(fetches) if isinstance(fetch, Symbol)]
        self._function: Compiled[..., Any] | Any = self._compute
        if session.compile:
            self._function = compile_function(self._compute, budget=BUDGET)

    def _compute(self, *fed: Tensor) -> Any:
        """Return the values of fetched symbols; with them those of variables that had none of their
        shape, if there are such."""
        evaluation = Evaluation(self.plan, self._values, self._objects, fed)
        results = [evaluation.result(self.fetches[i]) for i in self._places]
        made = {i: evaluation.made.get(v) for i, v in enumerate(self.plan.written)}
        new = {i: value for i, value in made.items() if value is not None}
        return (results, new) if new else results

    def run(self, values: Iterable[Any]) -> list[Any]:
        """Return the values of the fetches, None for operations; variables are written.

        Args:
            values: one for each feed.
        """
        fed: list[Tensor] = []
        fits = self._fits
        for value in values:
            i = len(fed)
            if value.__class__ is not np.ndarray or (value.shape, value.dtype) != fits[i]:
                value = _fitting(self.feeds[i], value)
                fits[i] = value.shape, value.dtype
            fed.append(wrap(value))
        found = self._function(*fed)
        if found.__class__ is tuple:
            found, new = found
            for i, tensor in new.items():
                self.session.set(self.plan.written[i], tensor)
        results: list[Any] = [None] * len(self.fetches)
        for i, tensor in zip(self._places, found, strict=True):
            results[i] = tensor._data[()]
        return results


def _fitting(symbol: Symbol, value: Any) -> Array:
    """Return what is fed to a symbol as an array of its dtype.

    Raises:
        ShapeError: its shape is another one.
        ArgumentError: it is a symbol itself.
    """
    if value.__class__ is np.ndarray and value.dtype == symbol.dtype:
        array = value
    elif isinstance(value, Symbol):
        raise ArgumentError(f"{symbol} is fed with {value}, which has no value; feed an array")
    else:
        array = to_array(value.numpy() if isinstance(value, Tensor) else value, symbol.dtype)
    expected = symbol.shape
    if (expected is not None and expected != array.shape) and (
        len(expected) != array.ndim
        or any(n not in (None, m) for n, m in zip(expected, array.shape, strict=True))
    ):
        raise ShapeError(
            f"{symbol}, declared at {symbol.operation.location}, is fed with an array of shape "
            f"{list(array.shape)}"
        )
    return array


def _are_hashable(items: Sequence[Any]) -> bool:
    return all(isinstance(item, (Symbol, Operation, str)) for item in items)


def _as_tuple(values: list[Any], like: tuple[Any, ...]) -> Any:
    """Return values as a tuple, or as what a named tuple's class makes of them."""
    return like.__class__(*values) if hasattr(like, "_fields") else tuple(values)


_local = threading.local()


def _stack() -> list[Session]:
    if not hasattr(_local, "sessions"):
        _local.sessions = []
    sessions: list[Session] = _local.sessions
    return sessions


def chosen_session(session: Session | None) -> Session:
    """Return the given session, or the one that a ``with`` statement has opened.

    Raises:
        GraphError: there is neither.
    """
    if session is not None:
        return session
    if not _stack():
        raise GraphError("there is no session: open one, `with static.Session():`, or pass it")
    return _stack()[-1]
