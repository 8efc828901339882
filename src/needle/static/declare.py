"""Declaring ops: any function over tensors becomes one over symbols.

What a call gives is found by the function itself, in a trace that is thrown away: tensors have
shapes and dtypes only there. An open extent is a large prime; whatever is computed from it is open,
too. So a mistake is an error at the line that makes it, as in eager execution.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from needle import dtypes, tree
from needle.arrays import to_array
from needle.config import no_grad
from needle.creation import asarray
from needle.errors import ArgumentTypeError, GraphError, NeedleError
from needle.graph import trace
from needle.operators import method_of
from needle.ops.methods import COMPARISONS, OPERATORS, UNARY
from needle.ops.record import REGISTRY
from needle.shapes import Spec
from needle.static.graph import Operation, get_default_graph
from needle.static.symbol import Extents, Symbol, attach
from needle.tensor import wrap

#: Stands for an open extent while shapes are found: a prime.
_OPEN = 1_000_000_007
#: Extents from here on come from open ones: no tensor is this long.
_LONGEST = 1 << 26


def placeholder(*args: Any, name: str = "placeholder", **options: Any) -> Symbol:
    """Declare a tensor that is given when a session runs.

    Args:
        args: ``shape`` and ``dtype``, in this order or, as TensorFlow has them, in the other; a
            third one is the name. Extents of the shape are None where they are open; the shape is
            None if not even their number is known. The dtype is float32 if not given; what is fed
            is converted to it.
        name: what to call it.
        options: ``shape`` and ``dtype``, by name.

    Raises:
        ArgumentTypeError: something is given twice, or is neither shape nor dtype.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     x = tf.placeholder((None, 2))
        ...     tf.Session().run(x.sum(axis=0), {x: [[1, 2], [3, 4]]})
        array([4., 6.], dtype=float32)
    """
    for i, value in enumerate(args):
        what = "name" if i > 1 else "dtype" if _is_dtype(value) else "shape"
        if what == "shape" and value is None and "shape" in options:
            what = "dtype"
        if what in options:
            raise ArgumentTypeError(f"placeholder: {what} is given twice, {value!r} is one")
        options[what] = value
    shape, dtype = options.pop("shape", None), options.pop("dtype", None)
    name = options.pop("name", name)
    if options:
        raise ArgumentTypeError(f"placeholder: there is no option {next(iter(options))!r}")
    extents = None if shape is None else tuple(None if n is None else int(n) for n in shape)
    chosen = dtypes.float32 if dtype is None else dtypes.as_dtype(dtype)
    operation = Operation(get_default_graph(), name, _not_fed)
    operation.outputs = [Symbol(operation, 0, extents, chosen)]
    return operation.outputs[0]


def _is_dtype(value: Any) -> bool:
    return isinstance(value, (str, np.dtype, type)) and not isinstance(value, (tuple, list))


def _not_fed() -> None:
    raise AssertionError("a session checks what is fed before it runs anything")


def check_fed(operations: Iterable[Operation]) -> None:
    """Raise if one of the operations that are needed can only be fed.

    Raises:
        GraphError: it is a placeholder.
    """
    for operation in operations:
        if operation.function is _not_fed:
            raise GraphError(
                f"{operation.outputs[0]}, declared at {operation.location}, is needed and has no "
                "value: feed it"
            )


def constant(value: Any, dtype: Any = None, shape: Any = None, name: str = "constant") -> Symbol:
    """Declare a tensor whose values are known.

    Args:
        value: a number, nested lists, or an array. Python numbers become float32 if they are no
            integers, else int64.
        dtype: data type to convert to.
        shape: extents to broadcast to.
        name: what to call it.

    Example:
        >>> import needle.static as tf
        >>> tf.constant([[1.0, 2.0]]).shape
        (1, 2)
    """
    chosen = None if dtype is None else dtypes.as_dtype(dtype)
    array = to_array(value, chosen)
    if shape is not None:
        array = np.broadcast_to(array, tuple(shape))
    array = np.array(array)
    operation = Operation(get_default_graph(), name, lambda: asarray(array))
    operation.outputs = [Symbol(operation, 0, array.shape, array.dtype)]
    return operation.outputs[0]


def declare(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Declare a call of a function over tensors; return a symbol for each tensor that it gives.

    Args:
        function: of tensors; it is called each time that a session compiles a program.
        args: symbols, and anything else that it takes; lists, tuples and dicts of them.
        kwargs: the same by name; ``name`` is the operation's, unless the function takes one.

    Raises:
        NeedleError: what the function says of arguments of these shapes and dtypes.
    """
    name = kwargs.pop("name", None) or getattr(function, "__name__", "call").strip("_")
    graph = next(
        (leaf.graph for leaf in tree.flatten((args, kwargs))[0] if isinstance(leaf, Symbol)), None
    )
    operation = Operation(graph or get_default_graph(), name, function, args, kwargs)
    return declare_outputs(operation)


def declare_outputs(operation: Operation) -> Any:
    """Give an operation its outputs, as its function says; return them in their structure."""
    try:
        found = _specs(operation)
    except NeedleError:
        operation.graph.operations.remove(operation)
        raise
    if found is None:  # nothing is known: one tensor, of any shape
        found = [(None, None)], tree.LEAF
    specs, operation.result = found
    operation.outputs = [
        Symbol(operation, i, shape, dtype) for i, (shape, dtype) in enumerate(specs)
    ]
    return tree.unflatten(operation.result, operation.outputs)


def _specs(
    operation: Operation,
) -> tuple[list[tuple[Extents | None, dtypes.DType | None]], tree.TreeDef] | None:
    """Return shapes and dtypes of an operation's outputs with their structure, if they can be
    known."""
    symbols = [leaf for leaf in operation.leaves if isinstance(leaf, Symbol)]
    if any(s.shape is None or s.dtype is None for s in symbols):
        return None
    try:
        found, structure = _inferred(operation, _OPEN)
    except NeedleError:
        # Extents that are open may fit all the same: those that they meet here, or 1.
        known = {1, *(n for s in symbols for n in s.shape or () if n is not None)}
        if any(None in (s.shape or ()) for s in symbols):
            for extent in known:
                with contextlib.suppress(NeedleError):
                    found, structure = _inferred(operation, extent)
                    return [(None, spec.dtype) for spec in found], structure
        raise
    return [(_extents(spec.shape), spec.dtype) for spec in found], structure


def _inferred(operation: Operation, extent: int) -> tuple[list[Spec], tree.TreeDef]:
    """Return what an operation gives for tensors without values, of ``extent`` where it is open."""
    leaves = [
        wrap(Spec(tuple(extent if n is None else n for n in leaf.shape or ()), leaf.dtype))
        if isinstance(leaf, Symbol) and leaf.dtype is not None
        else leaf
        for leaf in operation.leaves
    ]
    args, kwargs = tree.unflatten(operation.structure, leaves)
    with no_grad():
        traced = trace(operation.function, *args, **kwargs)
    return [
        traced.graph.outputs[r.output].spec if r.output is not None else _spec_of(r.constant)
        for r in traced.results
    ], traced.structure


def _spec_of(value: Any) -> Spec:
    tensor = asarray(value)
    return Spec(tensor.shape, tensor.dtype)


def _extents(shape: tuple[int, ...]) -> Extents:
    return tuple(None if n >= _LONGEST else n for n in shape)


def declared(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function over tensors as one that declares its call."""

    @functools.wraps(function)
    def declaring(*args: Any, **kwargs: Any) -> Any:
        return declare(function, *args, **kwargs)

    return declaring


def _binary(function: Callable[..., Any], is_reflected: bool) -> Callable[..., Any]:
    def operator(self: Symbol, other: Any) -> Any:
        operands = (other, self) if is_reflected else (self, other)
        return declare(function, *operands)

    return operator


def attach_methods() -> None:
    """Give symbols the operators and methods of tensors."""
    for entry in REGISTRY.values():
        if entry.is_method:
            for name in (entry.name, *entry.aliases):
                attach(name, declared(method_of(entry)))
    for dunder, name in OPERATORS.items():
        function = REGISTRY[name].function
        attach(dunder, _binary(function, False))
        attach(f"__r{dunder[2:]}", _binary(function, True))
    for dunder, name in COMPARISONS.items():
        attach(dunder, _binary(REGISTRY[name].function, False))
    for dunder, name in UNARY.items():
        attach(dunder, declared(REGISTRY[name].function))
    attach("__getitem__", declared(REGISTRY["getitem"].function))


attach_methods()

__all__ = ["check_fed", "constant", "declare", "declared", "placeholder"]
