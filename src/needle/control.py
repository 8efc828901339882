"""Control flow that depends on tensors: `cond`, `switch`, `while_loop`, `scan`, `fori_loop`.

In eager execution these are ordinary Python. While a function is traced they become ops of the
graph, which hold the graphs of the functions that they are given: the program chooses and repeats
by itself, and gradients of any order flow as in eager execution.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle.config import modes, no_grad
from needle.dtypes import bool as bool_, int64, is_integer
from needle.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError, TraceError
from needle.graph.leaves import Leaves, as_tensors, check_alike, rebuilt
from needle.graph.loop import Argument, Loop, Turns
from needle.graph.subtrace import Operand, Part, Wanted, trace_part
from needle.graph.switch import Branch, Switch
from needle.graph.trace import function_name, leaf_names
from needle.graph.tracing import Trace
from needle.ops.engine import as_tensor
from needle.ops.joining import stack
from needle.ops.unstack import unstack
from needle.shapes import as_index
from needle.tensor import Tensor, wrap
from needle.tree import TreeDef, unflatten

Tree = Any


# Branches


def cond(
    pred: Any,
    true_fn: Callable[..., Tree],
    false_fn: Callable[..., Tree],
    *operands: Tree,
) -> Tree:
    """Return ``true_fn(*operands)`` if ``pred`` is true, else ``false_fn(*operands)``.

    Only the function that is chosen runs. While a program is traced and ``pred`` is a tensor, both
    are traced, and the program chooses each time that it runs; gradients flow through the branch
    that ran, to the operands and to tensors that the functions use from outside.

    Args:
        pred: a 0-d tensor, or a Python bool, which is a constant of the program.
        true_fn: returns a tensor, or a structure (lists, tuples, dicts) of tensors.
        false_fn: returns the same structure, of tensors of the same shapes and dtypes.
        operands: what the functions take; structures of tensors.

    Raises:
        ShapeError: ``pred`` is not 0-d; or, while tracing, the two results differ in structure,
            shape or dtype.
        TraceError: while tracing, a function does what a part of a graph cannot: it sets the
            gradients of tensors from outside.

    Example:
        >>> def halve_large(x):
        ...     return ndl.cond(x.sum() > 10, lambda x: x / 2, lambda x: x, x)
        >>> halve_large(ndl.asarray([8.0, 4.0])), halve_large(ndl.asarray([1.0, 2.0]))
        (Tensor([4., 2.]), Tensor([1., 2.]))
        >>> ndl.compile(halve_large)(ndl.asarray([8.0, 4.0]))
        Tensor([4., 2.])
    """
    if isinstance(pred, (bool, np.bool_)):
        return as_tensors((true_fn if pred else false_fn)(*operands))
    chooser = _scalar(pred, "cond: the predicate")
    functions = (false_fn, true_fn)
    trace = _recorder()
    if trace is None:
        return as_tensors(functions[bool(chooser)](*operands))
    if chooser.dtype != bool_:
        chooser = chooser != 0
    return _switch("cond", trace, chooser, functions, ("false_fn", "true_fn"), operands)


def switch(index: Any, branches: Sequence[Callable[..., Tree]], *operands: Tree) -> Tree:
    """Return ``branches[index](*operands)``; an index out of range is clamped.

    Args:
        index: a 0-d tensor of integers, or a Python int, which is a constant of the program.
        branches: functions of equal results, as for `cond`.
        operands: what the functions take; structures of tensors.

    Raises:
        ArgumentError: there are no branches.
        DTypeError: the index is no integer.
        ShapeError: the index is not 0-d; or, while tracing, the results differ in structure, shape
            or dtype.

    Example:
        >>> ndl.switch(ndl.asarray(1), [ndl.sin, ndl.exp, ndl.sqrt], ndl.zeros(2))
        Tensor([1., 1.])
    """
    functions = tuple(branches)
    if not functions:
        raise ArgumentError("switch: needs at least one branch")
    if isinstance(index, int):
        return as_tensors(functions[min(max(index, 0), len(functions) - 1)](*operands))
    chooser = _scalar(index, "switch: the index")
    if not is_integer(chooser.dtype):
        raise DTypeError(f"switch: the index must be an integer, got {chooser.dtype.name}")
    trace = _recorder()
    if trace is None:
        chosen = min(max(int(chooser.item()), 0), len(functions) - 1)
        return as_tensors(functions[chosen](*operands))
    names = [f"branches[{i}]" for i in range(len(functions))]
    return _switch("switch", trace, chooser, functions, names, operands)


def _switch(
    name: str,
    trace: Trace,
    index: Tensor,
    functions: Sequence[Callable[..., Tree]],
    roles: Sequence[str],
    operands: tuple[Tree, ...],
) -> Tree:
    given = Leaves(operands)
    parts = [
        trace_part(f, function_name(f), trace, given.wanted(), given.structure) for f in functions
    ]
    for role, part in zip(roles[1:], parts[1:], strict=True):
        check_alike(f"{name}: {role} must return what {roles[0]} does", parts[0], part)
    flow = Switch(
        name,
        trace,
        Operand.of(trace, index, name),
        [Operand.of(trace, t, name) for t in given.tensors],
        [Branch(p.trace, p.arguments, p.results, p.written) for p in parts],
    )
    return rebuilt(parts[0].leaves, parts[0].structure, flow.record(trace))


# Loops


def while_loop(
    cond_fn: Callable[[Tree], Any],
    body_fn: Callable[[Tree], Tree],
    init: Tree,
    *,
    max_steps: int | None = None,
) -> Tree:
    """Repeat ``carry = body_fn(carry)`` as long as ``cond_fn(carry)``, and return the carry.

    Args:
        cond_fn: from the carried values to a 0-d tensor.
        body_fn: from the carried values to the next ones, of the same structure, shapes and dtypes.
        init: the carried values at first: a tensor, or a structure of tensors; numbers become
            tensors.
        max_steps: after so many turns the loop ends, whatever ``cond_fn`` says. The backward pass
            of a traced loop needs it: it keeps what was carried in each turn, and memory for that
            is planned before the program runs.

    Raises:
        ShapeError: the carried values change in structure, shape or dtype; what ``cond_fn`` returns
            is not 0-d.
        GradientError: gradients flow through a traced loop without ``max_steps``.
        TraceError: while tracing, ``cond_fn`` returns a Python bool, or a function does what a part
            of a graph cannot.

    Example:
        >>> def newton(a):
        ...     def improve(x):
        ...         return (x + a / x) / 2
        ...     return ndl.while_loop(lambda x: ndl.abs(x * x - a) > 1e-4, improve, a, max_steps=50)
        >>> a = ndl.Tensor(9.0)
        >>> root = ndl.compile(newton)(a)
        >>> root, ndl.grad(root, a)  # 1 / (2 · √9)
        (Tensor(3., grad_node=newton), Tensor(0.166667))
    """
    limit = None if max_steps is None else _length(max_steps, "while_loop: max_steps")
    trace = _recorder()
    first = Leaves((init,))
    if trace is None:
        turn = 0
        while (limit is None or turn < limit) and _holds(cond_fn(first.tree())):
            first = first.replaced("while_loop", body_fn(first.tree()))
            turn += 1
        return first.tree()
    body = _trace_body("while_loop", trace, body_fn, first)

    def decide(carry: Tree) -> Any:
        value = cond_fn(carry)
        if isinstance(value, (bool, np.bool_)):
            raise TraceError(
                f"while_loop: cond_fn returns {value}, a Python bool, which never changes in the "
                "program; compare the carried tensors, or give the number of steps: fori_loop"
            )
        return value

    with no_grad():
        test = trace_part(decide, function_name(cond_fn), trace, first.wanted(), first.structure)
    _check_test(test)
    loop = Loop(
        "while_loop",
        body.trace,
        _arguments(body.arguments, first.tensors, trace),
        (),
        body.results,
        body.written,
        Turns(limit, test=test),
    )
    return first.with_tensors(loop.record(trace))


def scan(
    fn: Callable[[Tree, Tree], tuple[Tree, Tree]],
    init: Tree,
    xs: Tree = None,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Tree, Tree]:
    """Run ``carry, y = fn(carry, x)`` for each ``x`` of ``xs``, and stack the ``y``.

    It is how recurrences are written: a recurrent network over the steps of a sequence, an
    optimizer over its iterations. A compiled program holds ``fn`` once, whatever the length.

    Args:
        fn: from the carried values and a slice to the next carried values, of the same structure,
            shapes and dtypes, and a result of this step.
        init: the carried values at first: a tensor, or a structure of tensors; numbers become
            tensors.
        xs: a tensor, or a structure of tensors, whose slices along axis 0 are given to ``fn``; None
            to give it None ``length`` times.
        length: the number of steps; may be left out if there are ``xs``.
        reverse: whether to begin with the last slice. Stacks keep the order of ``xs``.

    Returns:
        The carried values at the end, and the results of all steps, stacked along a new axis 0.

    Raises:
        ShapeError: the carried values change in structure, shape or dtype; the ``xs`` are not
            equally long.
        ArgumentError: neither ``xs`` nor ``length``.
        ArgumentTypeError: ``fn`` does not return a pair.
        TraceError: while tracing, ``fn`` does what a part of a graph cannot.

    Example:
        >>> def running_total(total, x):
        ...     return total + x, total + x
        >>> ndl.scan(running_total, 0.0, ndl.asarray([1.0, 2.0, 3.0]))
        (Tensor(6.), Tensor([1., 3., 6.]))
    """
    first, scanned = Leaves((init,)), Leaves((xs,))
    steps = _steps(scanned, length)
    trace = _recorder()
    if trace is not None:
        return _record_scan("scan", trace, fn, first, scanned, steps, reverse)
    rows: list[tuple[Any, ...]] = list(zip(*map(unstack, scanned.tensors), strict=True))
    outcomes: list[Any] = [None] * steps
    for i in reversed(range(steps)) if reverse else range(steps):
        x = scanned.with_tensors(rows[i] if rows else ())
        carry, outcomes[i] = _pair(fn(first.tree(), x))
        first = first.replaced("scan", carry)
    return first.tree(), _stacked(outcomes) if steps else _no_results(fn, first, scanned)


def fori_loop(lower: Any, upper: Any, body: Callable[[Tensor, Tree], Tree], init: Tree) -> Tree:
    """Run ``carry = body(i, carry)`` for each i from ``lower`` to ``upper`` − 1.

    Args:
        lower: the first i: an int, or a 0-d tensor of integers.
        upper: where i ends: an int, or a 0-d tensor of integers. With ints, gradients flow through
            a traced loop.
        body: from i, a 0-d int64 tensor, and the carried values to the next ones, of the same
            structure, shapes and dtypes.
        init: the carried values at first: a tensor, or a structure of tensors; numbers become
            tensors.

    Raises:
        ShapeError: the carried values change in structure, shape or dtype.
        DTypeError: a bound is no integer.
        GradientError: gradients flow through a traced loop whose bounds are tensors.
        TraceError: while tracing, ``body`` does what a part of a graph cannot.

    Example:
        >>> ndl.fori_loop(1, 5, lambda i, product: product * i, ndl.asarray(1))
        Tensor(24, dtype=int64)
    """
    first = Leaves((init,))
    trace = _recorder()
    bounds = [_bound(lower, "lower"), _bound(upper, "upper")]
    if trace is None:
        low, high = (int(b.item()) if isinstance(b, Tensor) else b for b in bounds)
        for i in range(low, high):
            first = first.replaced("fori_loop", body(as_tensor(i, int64), first.tree()))
        return first.tree()
    if all(isinstance(b, int) for b in bounds):
        low, high = bounds
        numbers = wrap(np.arange(low, max(low, high), dtype=int64))
        scanned = Leaves((numbers,))

        def turn(carry: Tree, i: Tensor) -> Tree:
            return body(i, carry), None

        steps = max(0, high - low)
        return _record_scan("fori_loop", trace, turn, first, scanned, steps, False)[0]
    low, high = (as_tensor(b).astype(int64, copy=False) for b in bounds)
    counter = Leaves(((low, first.tree()),))

    def step(state: Tree) -> Tree:
        i, carry = state
        return i + 1, body(i, carry)

    traced = _trace_body("fori_loop", trace, step, counter)
    loop = Loop(
        "fori_loop",
        traced.trace,
        _arguments(traced.arguments, counter.tensors, trace),
        (),
        traced.results,
        traced.written,
        Turns(None, count=Operand.of(trace, high - low, "fori_loop")),
    )
    return first.with_tensors(loop.record(trace)[1:])


def _record_scan(
    name: str,
    trace: Trace,
    fn: Callable[[Tree, Tree], tuple[Tree, Tree]],
    first: Leaves,
    scanned: Leaves,
    steps: int,
    reverse: bool,
) -> tuple[Tree, Tree]:
    body = _trace_body(name, trace, fn, first, scanned)
    count = len(first.tensors)
    loop = Loop(
        name,
        body.trace,
        _arguments(body.arguments[:count], first.tensors, trace),
        _arguments(body.arguments[count:], scanned.tensors, trace),
        body.results,
        body.written,
        Turns(steps, reverse),
    )
    tensors = loop.record(trace)
    stacks = rebuilt(body.leaves[len(first.leaves) :], body.structure.children[1], tensors[count:])
    return first.with_tensors(tensors[:count]), stacks


def _trace_body(
    name: str,
    trace: Trace,
    function: Callable[..., Tree],
    first: Leaves,
    scanned: Leaves | None = None,
) -> Part:
    """Trace the body of a loop, with carried values that want gradients where they get them."""
    wanted, structure = first.wanted(), first.structure
    if scanned is not None:
        wanted = [*wanted, *scanned.wanted(slices=True)]
        structure = TreeDef(tuple, (), structure.children + scanned.structure.children)
    while True:
        body = trace_part(function, function_name(function), trace, wanted, structure)
        carried = body.structure
        if scanned is not None:
            if carried.kind is not tuple or len(carried.children) != 2:
                raise ArgumentTypeError(_NO_PAIR)
            carried = carried.children[0]
        first.check(name, body.leaves[: len(first.leaves)], carried)
        results = iter(body.results)
        changed = False
        for i, leaf in enumerate(first.leaves):
            if not isinstance(leaf, Tensor):
                continue
            if next(results).edge is not None and not wanted[i].requires_grad:
                # From the second turn on it has gradients.
                wanted[i] = Wanted(wanted[i].spec, True)
                changed = True
        if not changed:
            return body


def _arguments(
    stand_ins: Sequence[Tensor], tensors: Sequence[Tensor], trace: Trace
) -> list[Argument]:
    return [
        Argument(stand_in, Operand.of(trace, tensor, trace.name))
        for stand_in, tensor in zip(stand_ins, tensors, strict=True)
    ]


def _pair(outcome: Any) -> tuple[Tree, Tree]:
    if not isinstance(outcome, tuple) or len(outcome) != 2:
        raise ArgumentTypeError(_NO_PAIR)
    return outcome


_NO_PAIR = "scan: the function must return a pair: the next carried values, and a result (or None)"


def _steps(scanned: Leaves, length: int | None) -> int:
    """Return how many steps a scan takes."""
    steps = None if length is None else _length(length, "scan: length")
    labels = leaf_names("xs", scanned.tree())
    for label, leaf in zip(labels, scanned.leaves, strict=True):
        if not isinstance(leaf, Tensor):
            continue
        if not leaf.ndim:
            raise ShapeError(f"scan: {label} is 0-d; it must have an axis 0 to go along")
        if steps is None:
            steps = leaf.shape[0]
        elif leaf.shape[0] != steps:
            raise ShapeError(
                f"scan: {label}, of shape {list(leaf.shape)}, has {leaf.shape[0]} slices, where "
                f"{steps} are expected (from {'length' if length is not None else labels[0]})"
            )
    if steps is None:
        raise ArgumentError("scan: without xs, it needs the length")
    return steps


def _stacked(outcomes: Sequence[Tree]) -> Tree:
    """Return the results of all steps, stacked."""
    rows = [Leaves((outcome,)) for outcome in outcomes]
    for row in rows[1:]:
        if row.structure != rows[0].structure:
            raise ShapeError(
                f"scan: the results of the steps differ in structure: {rows[0].structure}, "
                f"{row.structure}"
            )
    columns = zip(*(row.leaves for row in rows), strict=True)
    leaves = [stack(column) if isinstance(column[0], Tensor) else column[0] for column in columns]
    return unflatten(rows[0].structure, leaves)[0]


def _no_results(fn: Callable[..., Any], first: Leaves, scanned: Leaves) -> Tree:
    """Return the stacked results of no step at all: what they would be is found by a trace."""
    trace = Trace("scan")
    with trace, no_grad():
        body = _trace_body("scan", trace, fn, first, scanned)
    trace.close()
    empty = [wrap(np.zeros((0, *r.value.shape), r.value.dtype)) for r in body.results]
    leaves = body.leaves[len(first.leaves) :]
    return rebuilt(leaves, body.structure.children[1], empty[len(first.tensors) :])


# Numbers


def _recorder() -> Trace | None:
    """Return the trace that records ops now, if there is one."""
    trace = modes.state.trace
    return trace if isinstance(trace, Trace) else None


def _scalar(value: Any, what: str) -> Tensor:
    tensor = as_tensor(value)
    if tensor.shape:
        raise ShapeError(
            f"{what} must be 0-d, got shape {list(tensor.shape)}; use all() or any(), or "
            "choose element by element with ndl.where"
        )
    return tensor


def _holds(value: Any) -> bool:
    return value if isinstance(value, bool) else bool(_scalar(value, _TEST))


_TEST = "while_loop: what cond_fn returns"


def _check_test(test: Part) -> None:
    """Raise unless a traced test returns a 0-d bool, and nothing else happens in it."""
    if len(test.results) != 1 or test.structure.kind is not None:
        raise ShapeError(f"{_TEST} must be a single 0-d tensor, got {test.structure}")
    value = test.results[0].value
    if value.shape:
        _scalar(wrap(value.spec), _TEST)
    if test.written:
        raise TraceError("while_loop: cond_fn overwrites a tensor from outside; do that in body_fn")
    if value.dtype != bool_:
        raise DTypeError(
            f"{_TEST} must be a bool, got {value.dtype.name}; compare it with something"
        )


def _length(value: Any, what: str) -> int:
    number = as_index(value, what)
    if number < 0:
        raise ArgumentError(f"{what} must not be negative, got {number}")
    return number


def _bound(value: Any, which: str) -> Any:
    if isinstance(value, int):
        return value
    tensor = _scalar(value, f"fori_loop: {which}")
    if not is_integer(tensor.dtype):
        raise DTypeError(f"fori_loop: {which} must be an integer, got {tensor.dtype.name}")
    return tensor


__all__ = ["cond", "fori_loop", "scan", "switch", "while_loop"]
