"""Checking gradients against finite differences, to any order, in float64.

With random u and v, ``⟨u, J v⟩`` is at once the derivative of ``⟨u, f(x + t v)⟩`` at t = 0, which
differences approximate, and ``⟨Jᵀu, v⟩``, which the backward pass gives. A wrong element of the
Jacobian J changes it, so one pair of directions checks the whole matrix for a few calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle.autograd import grad
from needle.creation import zeros_like
from needle.dtypes import is_float
from needle.errors import ArgumentError
from needle.ops.samples import Array
from needle.tensor import Tensor

Outputs = tuple[Tensor, ...]


def check_grads(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    order: int = 2,
    *,
    eps: float = 1e-3,
    rtol: float = 1e-6,
    atol: float = 1e-8,
    seed: int = 0,
) -> None:
    """Raise unless the gradients of ``function`` agree with finite differences.

    Derivatives are approximated by ``(8 f(x+h) − 8 f(x−h) − f(x+2h) + f(x−2h)) / 12h``, whose error
    is of order h⁴, in random directions. The gradient of order n is checked as the derivative of
    the one of order n − 1, so all orders up to ``order`` are.

    Args:
        function: takes the inputs as tensors and returns a tensor or a tuple of tensors; the same
            inputs must give the same result.
        inputs: tensors or arrays. Floating ones are converted to float64 and differentiated;
            others are passed on as constants. The function must be smooth within ``2 eps`` of them.
        order: highest order, at least 1.
        eps: the step h.
        rtol: allowed difference, relative to the size of the terms that make up the derivative.
        atol: allowed absolute difference.
        seed: of the random directions.

    Raises:
        AssertionError: a gradient is wrong; the message names the order and the input.

    Example:
        >>> from needle.testing import check_grads
        >>> check_grads(lambda x: x.exp() * x, [ndl.asarray([0.5, 2.0])])
    """
    if order < 1:
        raise ArgumentError(f"check_grads: order must be at least 1, got {order}")
    rng = np.random.default_rng(seed)
    points = [_point(x) for x in inputs]
    names = [f"input {i}" for i in range(len(points))]
    for level in range(1, order + 1):
        cotangents = _check_first(function, points, names, level, eps, rtol, atol, rng)
        if not cotangents:
            return
        function = _pullback(function, len(points))
        names += [f"cotangent {i} of order {level}" for i in range(len(cotangents))]
        points += cotangents


def _point(x: Any) -> Any:
    """Return an input as an array to be varied (float64), or unchanged if it is not floating."""
    array = x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x)
    return array.astype(np.float64) if is_float(array.dtype) else x


def _varies(point: Any) -> bool:
    return isinstance(point, np.ndarray) and point.dtype == np.float64


def _call(function: Callable[..., Any], points: Sequence[Any]) -> tuple[list[Any], Outputs]:
    """Return the inputs as tensors, and the floating results."""
    tensors = [Tensor(p) if _varies(p) else p for p in points]
    return tensors, _floating(function(*tensors))


def _floating(outcome: Any) -> Outputs:
    values = outcome if isinstance(outcome, tuple | list) else (outcome,)
    return tuple(v for v in values if is_float(v.dtype))


def _gradients(outputs: Outputs, inputs: Sequence[Tensor], cotangents: Sequence[Any]) -> Outputs:
    """Return the gradients, recorded, with zeros where there is no dependence."""
    recorded = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if recorded:
        roots, seeds = zip(*recorded, strict=True)
        found = grad(list(roots), list(inputs), list(seeds), create_graph=True, allow_unused=True)
    return tuple(zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True))


def _pullback(function: Callable[..., Any], count: int) -> Callable[..., Outputs]:
    """Return the function from inputs and cotangents to the cotangents of the inputs."""

    def pulled(*values: Any) -> Outputs:
        inputs, cotangents = values[:count], values[count:]
        outputs = _floating(function(*inputs))
        varied = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
        return _gradients(outputs, varied, cotangents)

    return pulled


def _check_first(
    function: Callable[..., Any],
    points: list[Any],
    names: list[str],
    level: int,
    eps: float,
    rtol: float,
    atol: float,
    rng: np.random.Generator,
) -> list[Array]:
    """Compare the first derivative by each input; return the cotangents that were used."""
    tensors, outputs = _call(function, points)
    places = [i for i, p in enumerate(points) if _varies(p)]
    if not outputs or not places:
        return []
    cotangents = [np.asarray(rng.standard_normal(o.shape)) for o in outputs]
    gradients = _gradients(
        outputs, [tensors[i] for i in places], [Tensor(c, requires_grad=False) for c in cotangents]
    )

    def projected(place: int, moved: Array) -> float:
        _, results = _call(function, [*points[:place], moved, *points[place + 1 :]])
        pairs = zip(cotangents, results, strict=True)
        return float(sum(np.vdot(c, r.detach().numpy()) for c, r in pairs))

    for place, gradient in zip(places, gradients, strict=True):
        point, array = points[place], gradient.detach().numpy()
        direction = np.asarray(rng.standard_normal(point.shape))

        def difference(step: float, place: int = place, direction: Array = direction) -> float:
            shift, start = step * direction, points[place]
            ahead, behind = np.asarray(start + shift), np.asarray(start - shift)
            return projected(place, ahead) - projected(place, behind)

        near, far = difference(eps), difference(2 * eps)
        numeric = (8 * near - far) / (12 * eps)
        analytic = float(np.vdot(array, direction))
        # The terms of the sum cancel; an error in one of them is measured against their size.
        size = float(np.abs(array * direction).sum())
        if not abs(numeric - analytic) <= atol + rtol * max(size, abs(numeric)):
            raise AssertionError(
                f"the gradient of order {level} by {names[place]} (shape {list(point.shape)}) is "
                f"wrong: along a random direction it is {analytic:.10g}, finite differences give "
                f"{numeric:.10g}"
            )
    return cotangents
