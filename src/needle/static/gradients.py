"""Gradients that are declared: their ops become part of the program when a session compiles it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle import autograd
from needle.creation import zeros_like
from needle.dtypes import is_float
from needle.errors import GradientError
from needle.static.graph import Operation
from needle.static.symbol import Symbol
from needle.tensor import Tensor


class _Gradients:
    """Computes gradients; ``with_respect_to`` says which symbols must keep their history."""

    def __init__(self, xs: Sequence[Symbol]) -> None:
        self.with_respect_to = tuple(xs)

    def __call__(
        self, ys: Sequence[Tensor], xs: Sequence[Tensor], grad_ys: Sequence[Tensor | None]
    ) -> list[Tensor]:
        roots = [(y, g) for y, g in zip(ys, grad_ys, strict=True) if y.requires_grad]
        if not roots:
            return [zeros_like(x) for x in xs]
        found = autograd.grad(
            [y for y, _ in roots],
            list(xs),
            [g for _, g in roots],
            create_graph=True,
            allow_unused=True,
        )
        return [zeros_like(x) if g is None else g for x, g in zip(xs, found, strict=True)]


def gradients(
    ys: Any, xs: Any, grad_ys: Any = None, name: str = "gradients"
) -> list[Symbol | None]:
    """Declare the gradients of the sum of ``ys`` with respect to ``xs``.

    Args:
        ys: a symbol or several.
        xs: a symbol or several: variables, placeholders, or anything between these and ``ys``.
        grad_ys: the cotangent of each of ``ys``; ones where missing.
        name: what to call it.

    Returns:
        A symbol for each of ``xs``, None for one that ``ys`` do not depend on.

    Raises:
        GradientError: one of ``xs`` is no floating tensor.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     x = tf.placeholder((3,))
        ...     (slope,) = tf.gradients(x ** 2, x)
        ...     (curvature,) = tf.gradients(slope, x)
        ...     tf.Session().run([slope, curvature], {x: [1, 2, 3]})
        [array([2., 4., 6.], dtype=float32), array([2., 2., 2.], dtype=float32)]
    """
    outputs, inputs = _listed(ys), _listed(xs)
    cotangents = [None] * len(outputs) if grad_ys is None else _listed(grad_ys)
    for x in inputs:
        if x.dtype is not None and not is_float(x.dtype):
            raise GradientError(f"{name}: {x} has no gradient, since it is no floating tensor")
    used = [x for x in inputs if any(depends(y, x) for y in outputs)]
    if not used:
        return [None] * len(inputs)
    graph = outputs[0].graph
    operation = Operation(graph, name, _Gradients(used), [outputs, used, cotangents])
    operation.outputs = [Symbol(operation, i, x.shape, x.dtype) for i, x in enumerate(used)]
    found = dict(zip(used, operation.outputs, strict=True))
    return [found.get(x) for x in inputs]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def depends(y: Symbol, x: Symbol) -> bool:
    """Whether a symbol is computed from another one."""
    seen: set[Operation] = set()
    stack = [y]
    while stack:
        symbol = stack.pop()
        if symbol is x:
            return True
        operation = symbol.operation
        if operation not in seen:
            seen.add(operation)
            stack += operation.inputs
            stack += [s for s in getattr(operation.function, "needs", ()) if isinstance(s, Symbol)]
    return False
