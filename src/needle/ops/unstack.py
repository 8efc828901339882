"""unstack: the parts of a tensor along an axis, all at once.

One primitive rather than a slice for each part: the gradient of a slice is as large as the whole
tensor, so that taking n parts by slices would cost n² in the backward pass of a recurrent network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.errors import AxisError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.joining import stack
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.shapes import Spec, normalize_axis

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _infer(x: Spec, *, axis: int) -> tuple[Spec, ...]:
    part = Spec((*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype)
    return (part,) * x.shape[axis]


def _unstack(x: Array, *, axis: int) -> tuple[Array, ...]:
    # One copy, of which each part is a contiguous piece.
    moved = np.array(np.moveaxis(x, axis, 0), order="C")
    return tuple(moved[i, ...] for i in range(len(moved)))


def _unstack_vjp(g: Any, axis: int) -> Tensor:
    # The cotangent of a single part comes as it is, not as a tuple of one.
    return stack(g if isinstance(g, tuple) else (g,), axis)


def _samples() -> Iterable[Sample]:
    yield Sample((normal(3, 4),))
    yield Sample((normal(3, 4, 2),), {"axis": 1}, label="axis 1")
    yield Sample((normal(4, 6)[::2].T,), {"axis": -1}, label="strided")
    yield Sample((normal(1, 4),), label="one part")
    yield Sample((normal(3),), label="vector")
    yield Sample((normal(2, 0),), label="empty")
    yield Sample((integers(0, 9, 2, 3),), label="integers")
    yield bad(AxisError, "axis 2", normal(3, 4), axis=2)
    yield bad(AxisError, "0-d", normal())


@op(
    kind=Kind.MOVEMENT,
    infer=_infer,
    reference=_unstack,
    lower=lambda b, index, x, *, axis: x((*index[:axis], b.constant(b.number), *index[axis:])),
    vjp={"x": _unstack_vjp},
    samples=_samples,
    peer=lambda torch, x, axis=0: torch.unbind(x, axis),
)
def unstack(x: TensorLike, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The parts of ``x`` along an axis, which they no longer have; the inverse of `stack`.

    Args:
        x: at least one axis. The parts are copies.
        axis: the axis; there are as many parts as its extent.

    Raises:
        AxisError: the axis does not exist.

    Example:
        >>> ndl.unstack(ndl.asarray([[1, 2], [3, 4]]), axis=1)
        (Tensor([1, 3], dtype=int64), Tensor([2, 4], dtype=int64))
    """
    t = as_tensor(x)
    place = normalize_axis(axis, t.ndim, "unstack")
    result: Any = apply(unstack, t, axis=place)
    return result


__all__ = ["unstack"]
