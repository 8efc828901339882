"""Sums over windows of an image, and their adjoint: what mean pooling comes down to.

They are one pass each where `windows` and a sum would be one for each element of a window; and the
adjoint of each other, so that derivatives of any order exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from needle.errors import DTypeError, ShapeError
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_tensor, require_float, widen
from needle.ops.movement import broadcast_to, reshape
from needle.ops.record import Kind, op
from needle.ops.reduce import sum
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.ops.windows import Pair, PairLike, fold_windows, window_counts, windows
from needle.shapes import Shape, Spec, as_pair

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from needle.tensor import Tensor


def _counts(size: Pair, kernel: Pair, stride: Pair, name: str) -> Pair:
    return window_counts(size, kernel, stride, (0, 0), (1, 1), False, name)


def _taps(counts: Pair, kernel: Pair, stride: Pair) -> Iterator[tuple[slice, slice]]:
    """Yield which pixels each element of the windows is, row by row."""
    for a in range(kernel[0]):
        for b in range(kernel[1]):
            yield (
                slice(a, a + (counts[0] - 1) * stride[0] + 1, stride[0]),
                slice(b, b + (counts[1] - 1) * stride[1] + 1, stride[1]),
            )


def _infer_sum(x: Spec, *, kernel: Pair, stride: Pair) -> Spec:
    counts = _counts((x.shape[-2], x.shape[-1]), kernel, stride, "window_sum")
    return Spec((*x.shape[:-2], *counts), x.dtype)


def _sum(x: Array, *, kernel: Pair, stride: Pair) -> Array:
    counts = _counts((x.shape[-2], x.shape[-1]), kernel, stride, "window_sum")
    total = np.zeros((*x.shape[:-2], *counts), x.dtype)
    for down, across in _taps(counts, kernel, stride):
        total += x[..., down, across]
    return total


def _sum_by_parts(x: Tensor, *, kernel: Pair, stride: Pair) -> Tensor:
    total = sum(windows(widen(x), kernel, stride), (-2, -1))
    return total.astype(x.dtype, copy=False)


def _sum_vjp(g: Tensor, x_shape: Shape, kernel: Pair, stride: Pair) -> Tensor:
    return window_spread(g, (x_shape[-2], x_shape[-1]), kernel, stride)


def _sum_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 5, 6), 2))
    yield Sample((normal(2, 3, 4, 6), 2, 2), label="side by side")
    yield Sample((normal(5, 7), (2, 3), (2, 1)), label="stride")
    yield Sample((normal(2, 9, 9), 2, 4), label="apart")
    yield Sample((normal(0, 4, 4), 2), label="empty")
    yield bad(ShapeError, "larger than", normal(3, 3), 4)
    yield bad(ShapeError, "two axes", normal(3), 1)
    yield bad(DTypeError, "floating dtype", integers(0, 5, 3, 3), 2)


@op(
    kind=Kind.REDUCTION,
    infer=_infer_sum,
    reference=widened(_sum),
    decompose=_sum_by_parts,
    vjp={"x": _sum_vjp},
    samples=_sum_samples,
    row_axes=2,
    flops=lambda x, out, *, kernel, stride: out.size * kernel[0] * kernel[1],
    is_method=False,
)
def window_sum(x: TensorLike, kernel: PairLike, stride: PairLike = 1) -> Tensor:
    """Sum of each window of an image: ``out[…, i, j] = Σ x[…, i·s + a, j·s + b]``.

    Args:
        x: floats, [..., H, W]. 16-bit floats are added up in float32.
        kernel: height and width of a window.
        stride: from one window to the next, down and across.

    Returns:
        [..., rows, columns].

    Raises:
        ShapeError: a window is larger than the image.
        DTypeError: ``x`` is not floating.

    Example:
        >>> ndl.window_sum(ndl.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), 2)
        Tensor([[12., 16.]])
    """
    t = as_tensor(x)
    require_float(t, "window_sum")
    if t.ndim < 2:
        raise ShapeError(f"window_sum: needs at least two axes, got shape {list(t.shape)}")
    return apply(
        window_sum,
        t,
        kernel=as_pair(kernel, "window_sum: kernel", minimum=1),
        stride=as_pair(stride, "window_sum: stride", minimum=1),
    )


def _infer_spread(x: Spec, *, size: Pair, kernel: Pair, stride: Pair) -> Spec:
    fits = _counts(size, kernel, stride, "window_spread")
    if fits != x.shape[-2:]:
        raise ShapeError(
            f"window_spread: an image of {size[0]}×{size[1]} has {fits[0]}×{fits[1]} such windows, "
            f"got {list(x.shape[-2:])}"
        )
    return Spec((*x.shape[:-2], *size), x.dtype)


def _spread(x: Array, *, size: Pair, kernel: Pair, stride: Pair) -> Array:
    result = np.zeros((*x.shape[:-2], *size), x.dtype)
    for down, across in _taps((x.shape[-2], x.shape[-1]), kernel, stride):
        result[..., down, across] += x
    return result


def _spread_by_parts(x: Tensor, *, size: Pair, kernel: Pair, stride: Pair) -> Tensor:
    seen = broadcast_to(reshape(x, (*x.shape, 1, 1)), (*x.shape, *kernel))
    return fold_windows(seen, size, stride)


def _spread_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 4, 5), (5, 6), 2))
    yield Sample((normal(2, 2, 3), (5, 7), 2, 2), label="side by side")
    yield Sample((normal(2, 5), (5, 7), (2, 3), (2, 1)), label="stride")
    yield bad(ShapeError, "such windows", normal(3, 3), (5, 5), 2)


@op(
    kind=Kind.INDEXING,
    infer=_infer_spread,
    reference=widened(_spread),
    decompose=_spread_by_parts,
    vjp={"x": lambda g, kernel, stride: window_sum(g, kernel, stride)},
    samples=_spread_samples,
    row_axes=2,
    is_method=False,
)
def window_spread(x: TensorLike, size: Pair, kernel: PairLike, stride: PairLike = 1) -> Tensor:
    """Add a number to all pixels of each window: the adjoint of `window_sum`.

    Args:
        x: floats, [..., rows, columns], a number for each window.
        size: height and width of the image.
        kernel: height and width of a window.
        stride: from one window to the next, down and across.

    Returns:
        [..., height, width].

    Raises:
        ShapeError: an image of that size has another number of windows.
        DTypeError: ``x`` is not floating.

    Example:
        >>> ndl.window_spread(ndl.asarray([[1.0, 2.0]]), (1, 3), (1, 2))
        Tensor([[1., 3., 2.]])
    """
    t = as_tensor(x)
    require_float(t, "window_spread")
    if t.ndim < 2:
        raise ShapeError(f"window_spread: needs at least two axes, got shape {list(t.shape)}")
    return apply(
        window_spread,
        t,
        size=as_pair(size, "window_spread: size"),
        kernel=as_pair(kernel, "window_spread: kernel", minimum=1),
        stride=as_pair(stride, "window_spread: stride", minimum=1),
    )


__all__ = ["window_spread", "window_sum"]
