"""Control flow that is declared: cond, case, while_loop, scan.

Branches and bodies are declared once, in parts of the graph of their own. A session computes them
inside of `needle.cond`, `while_loop` and `scan`: the program chooses and repeats by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import needle.control as control
from needle import tree
from needle.errors import ArgumentError, GraphError, ShapeError
from needle.static.declare import constant
from needle.static.graph import Block, Graph, Operation, get_default_graph
from needle.static.symbol import Extents, Symbol
from needle.tensor import Tensor


@dataclass
class Part:
    """A declared branch or body.

    Attributes:
        block: where its operations stand.
        arguments: what stands for what it is given.
        results: what it returns.
        structure: of the results.
    """

    block: Block
    arguments: list[Symbol]
    results: list[Symbol]
    structure: tree.TreeDef


def _declare_part(
    graph: Graph,
    function: Callable[..., Any],
    given: Sequence[tuple[Extents | None, Any]] = (),
    structure: tree.TreeDef | None = None,
) -> Part:
    """Declare a function in a part of the graph of its own."""
    block = Block(graph.block)
    with graph.inside(block):
        arguments = []
        for shape, dtype in given:
            operation = Operation(graph, "argument", _given)
            operation.outputs = [Symbol(operation, 0, shape, dtype)]
            arguments += operation.outputs
        args: Any = () if structure is None else tree.unflatten(structure, arguments)
        result = function(*args)
        leaves, found = tree.flatten(result)
        results = [x if isinstance(x, Symbol) else constant(x) for x in leaves]
    return Part(block, arguments, results, found)


def _given() -> None:
    raise AssertionError("what a part is given is known before it runs")


def _common(what: str, one: Symbol, other: Symbol) -> tuple[Extents | None, Any]:
    """Return shape and dtype of what is one of two symbols."""
    if None not in (one.dtype, other.dtype) and one.dtype != other.dtype:
        raise GraphError(f"{what}: dtypes differ, {one} and {other}; convert one with astype")
    dtype = other.dtype if one.dtype is None else one.dtype
    if one.shape is None or other.shape is None:
        return None, dtype
    pairs = list(zip(one.shape, other.shape, strict=False))
    if len(one.shape) != len(other.shape) or any(None not in p and p[0] != p[1] for p in pairs):
        raise ShapeError(f"{what}: shapes differ, {one} and {other}")
    return tuple(None if None in (a, b) else a for a, b in pairs), dtype


def _outputs(operation: Operation, specs: Iterable[tuple[Extents | None, Any]]) -> list[Symbol]:
    operation.outputs = [Symbol(operation, i, *spec) for i, spec in enumerate(specs)]
    return operation.outputs


class _Cond:
    """Computes one of two branches."""

    def __init__(self, true: Part, false: Part) -> None:
        self.true, self.false = true, false
        self.needs = (*true.results, *false.results)

    def __call__(self, evaluation: Any, pred: Tensor) -> Any:
        branches = [
            lambda part=part: evaluation.part(part.block, part.results)
            for part in (self.true, self.false)
        ]
        return control.cond(pred, *branches)


def cond(
    pred: Any,
    true_fn: Callable[[], Any],
    false_fn: Callable[[], Any],
    name: str = "cond",
) -> Any:
    """Declare the result of one of two functions, of which a session runs the one that is chosen.

    Args:
        pred: a declared bool without axes; a Python bool chooses now.
        true_fn: declares a symbol, or a structure of symbols.
        false_fn: declares the same structure, of the same shapes and dtypes.
        name: what to call it.

    Raises:
        GraphError: the functions declare different structures or dtypes.
        ShapeError: different shapes.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     x = tf.placeholder((), name="x")
        ...     y = tf.cond(x > 0, lambda: x * 2, lambda: -x)
        ...     [float(tf.Session().run(y, {x: value})) for value in (3, -3)]
        [6.0, 3.0]
    """
    if not isinstance(pred, Symbol):
        return true_fn() if pred else false_fn()
    graph = pred.graph
    true, false = (_declare_part(graph, f) for f in (true_fn, false_fn))
    if true.structure != false.structure:
        raise GraphError(f"{name}: true_fn declares {true.structure}, false_fn {false.structure}")
    specs = [_common(name, a, b) for a, b in zip(true.results, false.results, strict=True)]
    operation = Operation(graph, name, _Cond(true, false), [pred], needs_evaluation=True)
    return tree.unflatten(true.structure, _outputs(operation, specs))


def case(
    pred_fn_pairs: Sequence[tuple[Any, Callable[[], Any]]],
    default: Callable[[], Any] | None = None,
    name: str = "case",
) -> Any:
    """Declare the result of the first function whose condition holds.

    Args:
        pred_fn_pairs: conditions with functions, in order.
        default: for when no condition holds; if not given, the last function.
        name: what to call it.

    Raises:
        ArgumentError: there is no pair.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     x = tf.placeholder(())
        ...     size = tf.case([(x < 1, lambda: x * 0), (x < 10, lambda: x * 0 + 1)],
        ...                    default=lambda: x * 0 + 2)
        ...     [float(tf.Session().run(size, {x: value})) for value in (0, 5, 50)]
        [0.0, 1.0, 2.0]
    """
    pairs = list(pred_fn_pairs)
    if not pairs:
        raise ArgumentError("case: needs at least one pair of a condition and a function")
    if default is None:
        default = pairs.pop()[1]
    chosen = default
    for pred, function in reversed(pairs):
        chosen = _either(pred, function, chosen, name)
    return chosen()


def _either(
    pred: Any, function: Callable[[], Any], otherwise: Callable[[], Any], name: str
) -> Callable[[], Any]:
    return lambda: cond(pred, function, otherwise, name)


class _While:
    """Computes a body as long as a test holds."""

    def __init__(self, test: Part, body: Part, limit: int | None) -> None:
        self.test, self.body, self.limit = test, body, limit
        self.needs = (*test.results, *body.results)

    def __call__(self, evaluation: Any, *first: Tensor) -> Any:
        def run(part: Part, carry: Sequence[Tensor]) -> list[Any]:
            given = dict(zip(part.arguments, carry, strict=True))
            computed: list[Any] = evaluation.part(part.block, part.results, given)
            return computed

        return control.while_loop(
            lambda carry: run(self.test, carry)[0],
            lambda carry: run(self.body, carry),
            list(first),
            max_steps=self.limit,
        )


def while_loop(
    cond: Callable[..., Any],
    body: Callable[..., Any],
    loop_vars: Any,
    maximum_iterations: int | None = None,
    name: str = "while",
) -> Any:
    """Declare ``loop_vars = body(*loop_vars)``, repeated as long as ``cond(*loop_vars)``.

    Args:
        cond: from the loop variables to a bool without axes.
        body: from the loop variables to the next ones: the same number, shapes and dtypes.
        loop_vars: the first ones, a list or tuple; or one symbol.
        maximum_iterations: after so many turns the loop ends. Gradients need it: for what is kept
            of each turn there must be room before the program runs.
        name: what to call it.

    Returns:
        What the loop variables are in the end, as ``loop_vars``.

    Raises:
        GraphError: the body declares another number of variables, or other dtypes.
        ShapeError: other shapes.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     n = tf.placeholder((), "int64")
        ...     i, total = tf.while_loop(
        ...         lambda i, total: i < n, lambda i, total: (i + 1, total + i), [0, 0])
        ...     tf.Session().run([i, total], {n: 5})
        [np.int64(5), np.int64(10)]
    """
    is_single = not isinstance(loop_vars, (list, tuple))
    leaves, structure = tree.flatten((loop_vars,) if is_single else tuple(loop_vars))
    first = [x if isinstance(x, Symbol) else constant(x) for x in leaves]
    graph = first[0].graph if first else get_default_graph()
    given = [(s.shape, s.dtype) for s in first]
    test = _declare_part(graph, cond, given, structure)
    step = _declare_part(graph, lambda *v: _as_tuple(body(*v)), given, structure)
    if len(step.results) != len(first):
        raise GraphError(
            f"{name}: the body takes {len(first)} loop variables and declares {len(step.results)}"
        )
    specs = [_common(name, a, b) for a, b in zip(first, step.results, strict=True)]
    function = _While(test, step, maximum_iterations)
    operation = Operation(graph, name, function, first, needs_evaluation=True)
    result = tree.unflatten(structure, _outputs(operation, specs))
    if is_single:
        return result[0]
    return list(result) if isinstance(loop_vars, list) else result


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


class _Scan:
    """Computes a body for each slice of sequences, and stacks what it carries."""

    def __init__(self, body: Part, count: int) -> None:
        self.body, self.count = body, count
        self.needs = tuple(body.results)

    def __call__(self, evaluation: Any, *values: Tensor) -> Any:
        def step(carry: list[Tensor], slices: list[Tensor]) -> tuple[list[Any], list[Any]]:
            given = dict(zip(self.body.arguments, [*carry, *slices], strict=True))
            new = evaluation.part(self.body.block, self.body.results, given)
            return new, new

        first, sequences = list(values[: self.count]), list(values[self.count :])
        return control.scan(step, first, sequences)[1]


def scan(fn: Callable[[Any, Any], Any], elems: Any, initializer: Any, name: str = "scan") -> Any:
    """Declare ``state = fn(state, slice)`` for each slice of ``elems``, all states stacked.

    Args:
        fn: from the state and a slice to the next state, of the same shape and dtype.
        elems: sequences: a symbol, or a structure of symbols, sliced along the first axis.
        initializer: the first state: a symbol, or a structure of symbols.
        name: what to call it.

    Raises:
        GraphError: ``fn`` declares another structure, or other dtypes.
        ShapeError: other shapes.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     x = tf.constant([1.0, 2.0, 3.0])
        ...     tf.Session().run(tf.scan(lambda total, x: total + x, x, 0.0))
        array([1., 3., 6.], dtype=float32)
    """
    states, structure = tree.flatten(initializer)
    states = [x if isinstance(x, Symbol) else constant(x) for x in states]
    leaves, shape_of = tree.flatten(elems)
    sequences = [x if isinstance(x, Symbol) else constant(x) for x in leaves]
    graph = sequences[0].graph
    given = [(s.shape, s.dtype) for s in states]
    given += [(None if s.shape is None else s.shape[1:], s.dtype) for s in sequences]
    both = tree.TreeDef(tuple, (), (structure, shape_of))
    body = _declare_part(graph, fn, given, both)
    if body.structure != structure:
        raise GraphError(f"{name}: fn declares {body.structure} for a state of {structure}")
    length = None if sequences[0].shape is None else sequences[0].shape[0]
    specs = []
    for one, other in zip(states, body.results, strict=True):
        shape, dtype = _common(name, one, other)
        specs.append((None if shape is None else (length, *shape), dtype))
    function = _Scan(body, len(states))
    operation = Operation(graph, name, function, [*states, *sequences], needs_evaluation=True)
    return tree.unflatten(structure, _outputs(operation, specs))
