"""Gradient clipping: limit gradients, by their common norm or each element, before a step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from needle.config import no_grad
from needle.creation import zeros
from needle.dtypes import accumulation_dtype
from needle.errors import ArgumentError, ArgumentTypeError, GradientError
from needle.inplace import update
from needle.ops import maximum, minimum, multiply
from needle.tensor import Tensor


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor],
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
) -> Tensor:
    """Scale all gradients down, in place, so that their common norm is at most ``max_norm``.

    ``grad ← grad · min(1, max_norm / (norm + 1e-6))``, where ``norm`` is that of all elements of
    all gradients, as if they were one vector.

    Args:
        parameters: the parameters; those without a gradient are passed over.
        max_norm: the largest norm, at least 0.
        norm_type: p of the p-norm, above 0; ``float("inf")`` is the largest absolute value.
        error_if_nonfinite: whether a norm of NaN or infinity is an error. Otherwise an infinite
            norm makes gradients 0 (or NaN where they are infinite), and a NaN makes all of them
            NaN.

    Returns:
        The norm before, a 0-d tensor.

    Raises:
        ArgumentError: ``max_norm`` or ``norm_type`` out of its range.
        GradientError: the norm is not finite, with ``error_if_nonfinite``.

    Source:
        Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks" (ICML
        2013).

    Example:
        >>> w = ndl.Tensor([1.0, 1.0])
        >>> w.grad = ndl.asarray([3.0, 4.0])
        >>> ndl.optim.clip_grad_norm_([w], max_norm=1.0)
        Tensor(5.)
        >>> (w.grad * 10).round()
        Tensor([6., 8.])
    """
    if not max_norm >= 0:
        raise ArgumentError(f"clip_grad_norm_: max_norm must be at least 0, got {max_norm}")
    grads = _gradients(parameters, "clip_grad_norm_")
    norm = get_total_norm(grads, norm_type, error_if_nonfinite)
    with no_grad():
        scale = minimum(max_norm / (norm + 1e-6), 1.0)
        cast: dict[Any, Tensor] = {}
        for grad in grads:
            factor = cast.get(grad.dtype)
            if factor is None:
                factor = cast[grad.dtype] = scale.astype(grad.dtype)
            update(grad, multiply, factor)
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Limit each element of the gradients, in place, to [−``clip_value``, ``clip_value``].

    Args:
        parameters: the parameters; those without a gradient are passed over.
        clip_value: the largest absolute value, at least 0. NaN stays NaN.

    Raises:
        ArgumentError: a negative ``clip_value``, or NaN.

    Example:
        >>> w = ndl.Tensor([1.0, 1.0])
        >>> w.grad = ndl.asarray([3.0, -0.5])
        >>> ndl.optim.clip_grad_value_([w], 1.0)
        >>> w.grad
        Tensor([ 1. , -0.5])
    """
    if not clip_value >= 0:
        raise ArgumentError(f"clip_grad_value_: clip_value must be at least 0, got {clip_value}")
    with no_grad():
        for grad in _gradients(parameters, "clip_grad_value_"):
            update(grad, maximum, -float(clip_value))
            update(grad, minimum, float(clip_value))


def get_total_norm(
    tensors: Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Return the norm of all elements of all tensors, as if they were one vector.

    ``(Σ |x|^p)^(1/p)``. 16-bit floats are added in float32. The order of the sum depends on shapes
    only.

    Args:
        tensors: floating tensors.
        norm_type: p, above 0; ``float("inf")`` is the largest absolute value.
        error_if_nonfinite: whether a norm of NaN or infinity is an error.

    Returns:
        A 0-d tensor; 0 for no tensors.

    Raises:
        ArgumentError: ``norm_type`` is not above 0.
        GradientError: the norm is not finite, with ``error_if_nonfinite``.

    Example:
        >>> ndl.optim.get_total_norm([ndl.asarray([3.0]), ndl.asarray([4.0])])
        Tensor(5.)
    """
    p = float(norm_type)
    if not p > 0:
        raise ArgumentError(f"norm_type must be above 0, got {norm_type}")
    total: Any = None
    with no_grad():
        for t in tensors:
            if t.size:
                part = _part(t, p)
                if total is None:
                    total = part
                else:
                    total = maximum(total, part) if p == math.inf else total + part
        if total is None:
            return zeros(())
        norm: Tensor = total if p in (1.0, math.inf) else _root(total, p)
    if error_if_nonfinite and not math.isfinite(norm.item()):
        raise GradientError(
            f"the norm of the gradients is {norm.item()}, so they cannot be clipped; look for the "
            "op it comes from with ndl.detect_anomaly()"
        )
    return norm


def _part(t: Tensor, p: float) -> Any:
    """Return Σ |x|^p over one tensor, or the largest |x|; in float32 for 16-bit floats."""
    x = t.detach().astype(accumulation_dtype(t.dtype), copy=False)
    if p == 2.0:
        return (x * x).sum()
    size = x.abs()
    if p == math.inf:
        return size.max()
    return size.sum() if p == 1.0 else (size**p).sum()


def _root(x: Tensor, p: float) -> Any:
    return x.sqrt() if p == 2.0 else x ** (1.0 / p)


def _gradients(parameters: Tensor | Iterable[Tensor], name: str) -> list[Tensor]:
    grads = []
    for p in [parameters] if isinstance(parameters, Tensor) else parameters:
        if not isinstance(p, Tensor):
            raise ArgumentTypeError(f"{name}: expected parameters, got a {type(p).__name__}")
        if p.grad is not None:
            grads.append(p.grad)
    return grads
