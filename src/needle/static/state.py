"""Functions over the variables of a graph: their initialisers, and assignments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from needle.static.graph import Operation, as_operation, get_default_graph
from needle.static.symbol import Symbol, Variable


def global_variables() -> list[Variable]:
    """Return all variables of the default graph."""
    return list(get_default_graph().variables)


def group(*items: Operation | Symbol, name: str = "group") -> Operation:
    """Declare an operation that runs after all of ``items``."""
    graph = get_default_graph()
    with graph.control_dependencies(items):
        return Operation(graph, name, _nothing)


def _nothing() -> None:
    """What a group computes itself."""


def variables_initializer(variables: Iterable[Variable], name: str = "init") -> Operation:
    """Declare that variables get their initial values; those without one stay as they are."""
    return group(*(v.initializer for v in variables if v.initializer is not None), name=name)


def global_variables_initializer() -> Operation:
    """Declare that all variables of the default graph get their initial values.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     w = tf.Variable(tf.ones((2,)), name="w")
        ...     session = tf.Session()
        ...     session.run(tf.global_variables_initializer())
        ...     session.run(w)
        array([1., 1.], dtype=float32)
    """
    return variables_initializer(global_variables())


def assign(ref: Variable, value: Any) -> Symbol:
    """Declare that a variable gets a value; return what it gets."""
    return ref.assign(value)


def assign_add(ref: Variable, value: Any) -> Symbol:
    """Declare that a value is added to a variable; return the sum."""
    return ref.assign_add(value)


def assign_sub(ref: Variable, value: Any) -> Symbol:
    """Declare that a value is subtracted from a variable; return the difference."""
    return ref.assign_sub(value)


__all__ = [
    "as_operation",
    "assign",
    "assign_add",
    "assign_sub",
    "global_variables",
    "global_variables_initializer",
    "group",
    "variables_initializer",
]
