"""Softmax and its logarithm.

Both are primitives, because as max, subtract, exp, sum and divide they cost more than twice the
time on small tensors: for 32×10 floats softmax takes 36 µs instead of 13 µs, and 154 µs instead of
70 µs with its backward pass (on 4096×768 both are bound by memory, and about equal).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from needle.errors import AxisError
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_float_tensor, widen
from needle.ops.record import Kind, op
from needle.ops.reduce import max, sum
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.ops.transcendental import exp, log
from needle.shapes import Spec, normalize_axis

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _infer(x: Spec, *, axis: int) -> Spec:
    return Spec(x.shape, x.dtype)


def _samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4),))
    yield Sample((normal(2, 3, 4), 1), label="middle axis")
    yield Sample((normal(5, 4)[::2].T, 0), label="strided")
    yield Sample((normal(3, 1),), label="one class")
    yield Sample((normal(0, 3),), label="no rows")
    yield Sample((normal(3, 0),), label="no classes")
    yield Sample((integers(-3, 4, 2, 3),), label="integers", has_peer=False)
    yield Sample((np.array([[1024.0, 1032.0], [-1024.0, 1024.0]]),), label="large")
    yield Sample((np.array([[0.5, -np.inf, 1.0]]),), label="minus infinity", is_smooth=False)
    yield Sample(
        (np.array([[-np.inf, -np.inf], [np.inf, 1.0], [np.nan, 1.0]]),),
        label="special",
        is_smooth=False,
    )
    yield bad(AxisError, "axis 2", normal(3, 4), 2)


def _shifted(x: Array, axis: int) -> Array:
    """Return ``x − max x``, whose exponentials cannot overflow, in memory of its own."""
    return x - np.maximum.reduce(x, axis=axis, keepdims=True)


def _softmax(x: Array, *, axis: int) -> Array:
    if not x.size:
        return x.copy()
    e = _shifted(x, axis)
    np.exp(e, out=e)
    return np.divide(e, np.add.reduce(e, axis=axis, keepdims=True), out=e)


def exponentials(x: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``z = x − max x``, ``eᶻ`` and ``Σ eᶻ``, the sum with extent 1 at the axis."""
    z = x - max(x, axis, keepdims=True)
    e = exp(z)
    return z, e, sum(e, axis, keepdims=True)


def _softmax_by_parts(x: Tensor, *, axis: int) -> Tensor:
    if not x.size:
        return x
    _, e, total = exponentials(widen(x), axis)
    result: Tensor = (e / total).astype(x.dtype, copy=False)
    return result


def _softmax_vjp(g: Tensor, out: Tensor, axis: int) -> Tensor:
    p = widen(out)
    weighted = widen(g) * p
    result: Tensor = weighted - p * sum(weighted, axis, keepdims=True)
    return result.astype(out.dtype, copy=False)


@op(
    kind=Kind.NORMALIZATION,
    infer=_infer,
    reference=widened(_softmax),
    decompose=_softmax_by_parts,
    vjp={"x": _softmax_vjp},
    samples=_samples,
    refuses=True,
    flops=lambda x, out, axis: 4 * x.size,
    peer=lambda torch, x, axis=-1: torch.softmax(x, axis),
)
def softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """Exponentials scaled to add up to one: ``eˣ / Σ eˣ`` along an axis.

    Args:
        x: logits of any shape with at least one axis; integers become float32. Large values do not
            overflow. 16-bit floats are computed in float32.
        axis: the axis along which the result adds up to one.

    Returns:
        Probabilities of the shape of ``x``. Logits of −∞ get 0; where all along the axis are −∞,
        or one is +∞ or NaN, the result is NaN.

    Raises:
        AxisError: the axis does not exist.

    Example:
        >>> ndl.softmax(ndl.asarray([0.0, 1000.0]))
        Tensor([0., 1.])
    """
    t = as_float_tensor(x)
    return apply(softmax, t, axis=normalize_axis(axis, t.ndim, "softmax"))


def _log_softmax(x: Array, *, axis: int) -> Array:
    if not x.size:
        return x.copy()
    z = _shifted(x, axis)
    total = np.add.reduce(np.exp(z), axis=axis, keepdims=True)
    return np.subtract(z, np.log(total), out=z)


def _log_softmax_by_parts(x: Tensor, *, axis: int) -> Tensor:
    if not x.size:
        return x
    z, _, total = exponentials(widen(x), axis)
    result: Tensor = (z - log(total)).astype(x.dtype, copy=False)
    return result


def _log_softmax_vjp(g: Tensor, out: Tensor, axis: int) -> Tensor:
    cotangent = widen(g)
    result: Tensor = cotangent - exp(widen(out)) * sum(cotangent, axis, keepdims=True)
    return result.astype(out.dtype, copy=False)


@op(
    kind=Kind.NORMALIZATION,
    infer=_infer,
    reference=widened(_log_softmax),
    decompose=_log_softmax_by_parts,
    vjp={"x": _log_softmax_vjp},
    samples=_samples,
    refuses=True,
    flops=lambda x, out, axis: 4 * x.size,
    peer=lambda torch, x, axis=-1: torch.log_softmax(x, axis),
)
def log_softmax(x: TensorLike, axis: int = -1) -> Tensor:
    """Logarithm of `softmax`, exact where that would underflow to 0: ``x − ln Σ eˣ``.

    Args:
        x: logits of any shape with at least one axis; integers become float32. 16-bit floats are
            computed in float32.
        axis: the axis along which the exponentials of the result add up to one.

    Raises:
        AxisError: the axis does not exist.

    Example:
        >>> ndl.log_softmax(ndl.asarray([0.0, 1000.0]))
        Tensor([-1000.,     0.])
    """
    t = as_float_tensor(x)
    return apply(log_softmax, t, axis=normalize_axis(axis, t.ndim, "log_softmax"))


__all__ = ["log_softmax", "softmax"]
