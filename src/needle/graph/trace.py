"""Trace a function to a graph."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from needle import tree
from needle.arrays import to_array
from needle.config import modes
from needle.graph.finish import End
from needle.graph.guide import Guide
from needle.graph.ir import Value
from needle.graph.surroundings import Reference, is_plain, references_of
from needle.graph.traced import Traced, is_array
from needle.graph.tracing import Restart, Trace, Watched, anomaly_error
from needle.shapes import Shape, Spec
from needle.tensor import Tensor


def trace(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Traced:
    """Run ``function`` on tensors without values, and return the graph of what it did.

    Tensors, NumPy arrays and scalars among the arguments (also in lists, tuples and dicts) become
    inputs of the graph, and so do the tensors from outside that the function uses. Nothing else is
    changed by the trace, except for state that is made when it is first needed, such as an
    optimizer's.

    Args:
        function: what to trace.
        args: its arguments; of the tensors, only shape, dtype and `requires_grad` matter.
        kwargs: its keyword arguments.

    Raises:
        TraceError: the function does what a graph cannot hold.

    Example:
        >>> from needle.graph import trace
        >>> print(trace(lambda x: x * 2 + 1, ndl.ones(3)).graph)
        def lambda_(x: float32[3]):
            v0: float32[3] = multiply(x, 2.0)  ...
            v1: float32[3] = add(v0, 1.0)  ...
            return v1
    """
    return trace_call(function, args, kwargs)


def trace_call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    keep_grads: bool = True,
    differentiable: bool = False,
    shapes: Sequence[Shape | None] = (),
    guide: Guide | None = None,
) -> Traced:
    """Do what `trace` does, with options.

    Args:
        function: what to trace.
        args: its arguments.
        kwargs: its keyword arguments.
        keep_grads: whether gradients are outputs when the function has also overwritten the tensor
            that they belong to.
        differentiable: whether to trace the backward pass of the results, too, for a function that
            is differentiated outside; see `Traced.backward`.
        shapes: for each leaf of the arguments the shape that it is traced with, if it is another
            than its own: one with extents that vary.
        guide: answers what the function asks of values, in Python; None makes that an error.
    """
    if modes.state.anomaly:
        raise anomaly_error()
    is_second = False
    while True:
        try:
            return _trace(
                function, args, kwargs, keep_grads, differentiable, shapes, guide, is_second
            )
        except Restart as restart:  # noqa: PERF203 - once, if at all
            is_second = is_second or restart.has_effects


def _trace(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    keep_grads: bool,
    differentiable: bool,
    shapes: Sequence[Shape | None],
    guide: Guide | None,
    is_second: bool,
) -> Traced:
    leaves, structure = tree.flatten((args, kwargs))
    given = [_array_of(leaf) for leaf in leaves if is_array(leaf)]
    names = argument_names(function, args, kwargs)
    run = Trace(function_name(function), modes.state.trace)
    places: dict[int, int] = {}
    inputs: list[Value] = []
    references = references_of(function, args)
    with run:
        _watch(run, references, (function, *leaves))
        for i, leaf in enumerate(leaves):
            if is_array(leaf):
                shape = shapes[i] if shapes else None
                leaves[i] = stand_in = _stand_in(run, leaf, names[i], shape)
                places[id(stand_in)] = len(inputs)
                inputs.append(stand_in._data.value)
        if guide is not None:
            run.guide = guide
            guide.begin(inputs, given)
        stand_ins = [leaf for leaf in leaves if id(leaf) in places]
        new_args, new_kwargs = tree.unflatten(structure, leaves)
        del leaves, given
        end = End(run, inputs, places, stand_ins)
        # Nothing here keeps what the function made: what is alive at the end, somebody else holds.
        result_structure = end.take_results(function(*new_args, **new_kwargs), differentiable)
        end.add_grads(keep_grads)
        end.check_history()
        end.check_effects(is_second)
        if guide is not None:
            guide.end(run)
    del new_args, new_kwargs, stand_ins
    return end.finish(result_structure, references)


def _watch(run: Trace, references: list[Reference], objects: Iterable[Any]) -> None:
    """Have a trace look at what a function takes from around it."""
    for i, reference in enumerate(references):
        value, before = reference.value(), reference.probe()
        is_guard = is_plain(value) or not isinstance(value, (list, dict, set, tuple))
        watched = Watched(reference.what, reference.probe, before, is_guard=is_guard)
        run.watched[f"reference {i}"] = watched
    # A function may take a weight of a module, or of one inside of it, without calling that.
    for value in (*objects, *(reference.value() for reference in references)):
        if hasattr(value, "named_modules"):
            for path, inside in value.named_modules():
                run.watch_module(inside, path)


def _stand_in(run: Trace, leaf: Any, name: str, shape: Shape | None) -> Tensor:
    if isinstance(leaf, Tensor):
        data = leaf._data
        stand_in = run.argument(Spec(shape or data.shape, data.dtype), leaf._requires_grad, name)
        stand_in._grad = leaf._grad
        if leaf._node is not None:
            run.computed[id(stand_in)] = name
        return stand_in
    array = _array_of(leaf)
    return run.argument(Spec(shape or array.shape, array.dtype), False, name)


def _array_of(leaf: Any) -> Any:
    """Return what an argument holds: an array, or the spec of a tensor without values."""
    return leaf._data if isinstance(leaf, Tensor) else to_array(leaf, None)


def function_name(function: Callable[..., Any]) -> str:
    """Return what errors and graphs call ``function``."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters of ``function``; of a module, those of its ``forward``."""
    if hasattr(function, "named_modules"):
        function = getattr(function, "forward", function)
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return []


def argument_names(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str]:
    """Return a name for each leaf of the arguments: ``x``, ``batch[0]``, ``options['p']``."""
    parameters = parameters_of(function)
    labels: list[str] = []
    for i in range(len(args)):
        if i < len(parameters) and parameters[i].kind is not inspect.Parameter.VAR_POSITIONAL:
            labels.append(parameters[i].name)
        else:
            rest = [p for p in parameters if p.kind is inspect.Parameter.VAR_POSITIONAL]
            first = parameters.index(rest[0]) if rest else 0
            labels.append(f"{rest[0].name if rest else 'arg'}[{i - first}]")
    names: list[str] = []
    for label, value in (*zip(labels, args, strict=True), *kwargs.items()):
        names += leaf_names(label, value)
    return names


def leaf_names(label: str, value: Any) -> list[str]:
    """Return a name for each leaf of a structure that is called ``label``."""
    if isinstance(value, dict):
        parts: Any = [(f"{label}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{label}[{i}]", part) for i, part in enumerate(value)]
    else:
        return [label]
    return [name for inner, part in parts for name in leaf_names(inner, part)]
