"""Largest elements of the windows of images: their values, where they lie, and what flows back.

The largest element of a window is a function of the image; its gradient goes to the place where
that lies. With the places given, taking elements from there and adding them up there are each
other's adjoints, so that derivatives of any order exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.errors import ShapeError
from needle.ops.comparison import equal, where
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, as_tensor
from needle.ops.gather import take_along_axis, untake_along_axis
from needle.ops.movement import reshape
from needle.ops.record import Kind, op
from needle.ops.reduce import argmax, max as max_along, sum as sum_along
from needle.ops.samples import Array, Sample, bad, distinct, normal
from needle.ops.windows import (
    Pair,
    PairLike,
    fold_windows,
    view_windows,
    window_counts,
    windows,
)
from needle.shapes import Shape, Spec, as_pair

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor

#: Windows are searched in as many planes at a time as give results of this size: all stays cached.
_PLANES_BYTES = 1 << 18


def _infer_argmax(x: Spec, *, kernel: Pair, stride: Pair, dilation: Pair) -> Spec:
    size = (x.shape[-2], x.shape[-1])
    counts = window_counts(size, kernel, stride, (0, 0), dilation, False, "window_argmax")
    return Spec((*x.shape[:-2], *counts), dtypes.int64)


def _window_argmax(x: Array, *, kernel: Pair, stride: Pair, dilation: Pair) -> Array:
    seen = view_windows(x, kernel=kernel, stride=stride, dilation=dilation)
    counts, width = seen.shape[-4:-2], x.shape[-1]
    planes = x.reshape(-1, *x.shape[-2:])
    seen = view_windows(planes, kernel=kernel, stride=stride, dilation=dilation)
    place = np.empty((len(planes), *counts), np.int64)
    corner, shifts = _places((counts[0], counts[1]), width, kernel, stride, dilation)
    step = max(1, _PLANES_BYTES // max(1, 8 * counts[0] * counts[1]))
    for start in range(0, len(planes), step):
        chosen = _first_largest(seen[start : start + step])
        np.add(corner, shifts[chosen], out=place[start : start + step])
    return place.reshape(*x.shape[:-2], *counts)


def _argmax_by_parts(x: Tensor, *, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    seen = windows(x, kernel, stride, dilation)
    counts, width = seen.shape[-4:-2], x.shape[-1]
    chosen = argmax(reshape(seen, (*seen.shape[:-2], kernel[0] * kernel[1])), -1)
    corner, _ = _places((counts[0], counts[1]), width, kernel, stride, dilation)
    # The row of the tap: a division would be done element by element, and so would a table be read.
    place = chosen * dilation[1] + as_tensor(corner)
    further = dilation[0] * width - dilation[1] * kernel[1]
    for row in range(1, kernel[0]):
        place = place + where(chosen >= row * kernel[1], further, 0)
    return place


def _places(
    counts: Pair, width: int, kernel: Pair, stride: Pair, dilation: Pair
) -> tuple[Array, Array]:
    """Return where the corner of each window lies, and each tap as seen from there."""
    corner = np.arange(counts[0])[:, None] * stride[0] * width + np.arange(counts[1]) * stride[1]
    shifts = np.add.outer(
        np.arange(kernel[0]) * dilation[0] * width, np.arange(kernel[1]) * dilation[1]
    )
    return corner, shifts.ravel()


def _first_largest(seen: Array) -> Array:
    """Return which tap of each window is the first of the largest; NaN counts as the largest."""
    height, width = seen.shape[-2:]
    taps = [seen[..., a, b] for a in range(height) for b in range(width)]
    best = taps[0].copy()
    # Small integers, and arithmetic instead of masks: NumPy has vector instructions for that.
    chosen = np.zeros(best.shape, np.min_scalar_type(len(taps)))
    better = np.empty(best.shape, np.bool_)
    number = np.empty_like(chosen)
    # Tap by tap rather than window by window: long loops for NumPy instead of many short ones.
    for tap, candidate in enumerate(taps[1:], 1):
        np.greater(candidate, best, out=better)
        np.multiply(better, chosen.dtype.type(tap), out=number)
        np.maximum(chosen, number, out=chosen)
        np.maximum(best, candidate, out=best)  # NaN stays
    unordered = best != best
    if unordered.any():
        first = np.argmax([tap[unordered] != tap[unordered] for tap in taps], axis=0)
        chosen[unordered] = first
    return chosen


@op(
    kind=Kind.INDEXING,
    infer=_infer_argmax,
    reference=_window_argmax,
    decompose=_argmax_by_parts,
    samples=lambda: [
        Sample((distinct(2, 3, 6, 8), 2, 2)),
        Sample((distinct(7, 9), (2, 3), (3, 1), (2, 1)), label="dilation"),
        Sample((np.zeros((1, 4, 4)), 2, 2), label="ties"),
        bad(ShapeError, "larger than", normal(3, 3), 4),
    ],
    is_method=False,
)
def window_argmax(
    x: TensorLike, kernel: PairLike, stride: PairLike = 1, dilation: PairLike = 1
) -> Tensor:
    """Return where the largest element of each window lies: the first, row by row, of several.

    Args:
        x: [..., H, W]; NaN counts as the largest.
        kernel: height and width of a window.
        stride: from one window to the next, down and across.
        dilation: distance of neighbours within a window.

    Returns:
        int64 indices ``row · W + column``, [..., rows, columns].

    Raises:
        ShapeError: a window is larger than the image.

    Example:
        >>> ndl.window_argmax(ndl.reshape(ndl.arange(8), (2, 4)), 2, 2)
        Tensor([[5, 7]], dtype=int64)
    """
    return apply(
        window_argmax,
        as_tensor(x),
        kernel=as_pair(kernel, "window_argmax: kernel", minimum=1),
        stride=as_pair(stride, "window_argmax: stride", minimum=1),
        dilation=as_pair(dilation, "window_argmax: dilation", minimum=1),
    )


# The elements themselves


def _infer_max(x: Spec, *, kernel: Pair, stride: Pair, dilation: Pair) -> Spec:
    size = (x.shape[-2], x.shape[-1])
    counts = window_counts(size, kernel, stride, (0, 0), dilation, False, "window_max")
    return Spec((*x.shape[:-2], *counts), x.dtype)


def _window_max(x: Array, **window: Any) -> Array:
    seen = view_windows(x, **window)
    height, width = seen.shape[-2:]
    best = seen[..., 0, 0].copy()
    for a in range(height):
        for b in range(width):
            # Not into `best` where that is larger already: of zeros of both signs the first stays.
            np.copyto(best, seen[..., a, b], where=~(seen[..., a, b] <= best) & (best == best))
    return best


def _window_max_vjp(g: Tensor, x: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    places = window_argmax(x, kernel, stride, dilation)
    size = (x.shape[-2], x.shape[-1])
    return untake_windows(g, places, size, kernel, stride, dilation)


def _window_max_samples() -> Iterable[Sample]:
    yield Sample((distinct(2, 3, 6, 8), 2, 2))
    yield Sample((distinct(7, 9), (2, 3), (3, 1), (2, 1)), label="dilation")
    yield Sample((distinct(1, 7, 7), 3, 2), label="overlapping")
    yield Sample((np.zeros((1, 4, 4)), 2, 2), label="ties", is_smooth=False)
    yield bad(ShapeError, "larger than", normal(3, 3), 4)


@op(
    kind=Kind.INDEXING,
    infer=_infer_max,
    reference=_window_max,
    decompose=lambda x, **window: max_along(windows(x, **window), (-2, -1)),
    vjp={"x": _window_max_vjp},
    samples=_window_max_samples,
    is_method=False,
)
def window_max(
    x: TensorLike, kernel: PairLike, stride: PairLike = 1, dilation: PairLike = 1
) -> Tensor:
    """Return the largest element of each window; the first of several gets the gradient.

    Args:
        x: [..., H, W]; NaN counts as the largest.
        kernel: height and width of a window.
        stride: from one window to the next, down and across.
        dilation: distance of neighbours within a window.

    Returns:
        [..., rows, columns].

    Raises:
        ShapeError: a window is larger than the image.

    Example:
        >>> ndl.window_max(ndl.reshape(ndl.arange(8), (2, 4)), 2, 2)
        Tensor([[5, 7]], dtype=int64)
    """
    return apply(
        window_max,
        as_tensor(x),
        kernel=as_pair(kernel, "window_max: kernel", minimum=1),
        stride=as_pair(stride, "window_max: stride", minimum=1),
        dilation=as_pair(dilation, "window_max: dilation", minimum=1),
    )


def _infer_take(x: Spec, places: Spec, *, kernel: Pair, stride: Pair, dilation: Pair) -> Spec:
    size = (x.shape[-2], x.shape[-1])
    counts = window_counts(size, kernel, stride, (0, 0), dilation, False, "take_windows")
    if places.shape != (*x.shape[:-2], *counts):
        raise ShapeError(
            f"take_windows: an image {list(x.shape)} has {counts[0]}×{counts[1]} such windows, got "
            f"places {list(places.shape)}"
        )
    return Spec(places.shape, x.dtype)


def _flat(x: Any, start: int) -> Any:
    return x.reshape((*x.shape[:start], x.shape[start] * x.shape[start + 1]))


def _take(x: Array, places: Array, **window: Any) -> Array:
    reference = take_along_axis.op.reference
    taken: Array = reference(_flat(x, x.ndim - 2), _flat(places, x.ndim - 2), axis=x.ndim - 2)
    return taken.reshape(places.shape)


def _is_chosen(places: Tensor, width: int, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    """Return of each window which tap lies at its place, [..., rows, columns, kh, kw]."""
    counts = (places.shape[-2], places.shape[-1])
    corner, shifts = _places(counts, width, kernel, stride, dilation)
    taps = reshape(places - as_tensor(corner), (*places.shape, 1, 1))
    return equal(taps, as_tensor(shifts.reshape(kernel)))


def _take_by_parts(
    x: Tensor, places: Tensor, *, kernel: Pair, stride: Pair, dilation: Pair
) -> Tensor:
    chosen = _is_chosen(places, x.shape[-1], kernel, stride, dilation)
    seen = windows(x, kernel, stride, dilation)
    return sum_along(where(chosen, seen, 0), (-2, -1)).astype(x.dtype, copy=False)


def _take_vjp(
    g: Tensor, x_shape: Shape, places: Tensor, kernel: Pair, stride: Pair, dilation: Pair
) -> Tensor:
    return untake_windows(g, places, (x_shape[-2], x_shape[-1]), kernel, stride, dilation)


def _take_samples() -> Iterable[Sample]:
    places = _window_argmax(normal(2, 6, 8), kernel=(3, 2), stride=(2, 1), dilation=(1, 2))
    yield Sample((normal(2, 6, 8, seed=1), places, (3, 2), (2, 1), (1, 2)))
    yield bad(ShapeError, "such windows", normal(2, 6, 8), places, 2)


@op(
    kind=Kind.INDEXING,
    infer=_infer_take,
    reference=_take,
    decompose=_take_by_parts,
    vjp={"x": _take_vjp},
    samples=_take_samples,
    is_method=False,
)
def take_windows(
    x: TensorLike,
    places: TensorLike,
    kernel: PairLike,
    stride: PairLike = 1,
    dilation: PairLike = 1,
) -> Tensor:
    """Take one element of each window, from its place.

    Args:
        x: [..., H, W].
        places: of each window a place in it, as `window_argmax` gives them.
        kernel: height and width of a window.
        stride: from one window to the next, down and across.
        dilation: distance of neighbours within a window.

    Returns:
        The elements, of the shape of ``places``.

    Raises:
        ShapeError: the image has another number of windows.

    Example:
        >>> x = ndl.reshape(ndl.arange(8), (2, 4))
        >>> ndl.take_windows(x, ndl.asarray([[1, 6]]), 2, 2)
        Tensor([[1, 6]], dtype=int64)
    """
    return apply(
        take_windows,
        as_tensor(x),
        as_tensor(places),
        kernel=as_pair(kernel, "take_windows: kernel", minimum=1),
        stride=as_pair(stride, "take_windows: stride", minimum=1),
        dilation=as_pair(dilation, "take_windows: dilation", minimum=1),
    )


def _infer_untake(
    g: Spec, places: Spec, *, size: Pair, kernel: Pair, stride: Pair, dilation: Pair
) -> Spec:
    counts = window_counts(size, kernel, stride, (0, 0), dilation, False, "untake_windows")
    if not g.shape == places.shape == (*g.shape[:-2], *counts):
        raise ShapeError(
            f"untake_windows: an image of {size[0]}×{size[1]} has {counts[0]}×{counts[1]} such "
            f"windows, got values {list(g.shape)} for places {list(places.shape)}"
        )
    return Spec((*g.shape[:-2], *size), g.dtype)


def _untake(g: Array, places: Array, *, size: Pair, **window: Any) -> Array:
    axis = g.ndim - 2
    flat = _flat(g, axis), _flat(places, axis)
    result: Array = untake_along_axis.op.reference(*flat, extent=size[0] * size[1], axis=axis)
    return result.reshape((*g.shape[:-2], *size))


def _untake_by_parts(
    g: Tensor, places: Tensor, *, size: Pair, kernel: Pair, stride: Pair, dilation: Pair
) -> Tensor:
    chosen = _is_chosen(places, size[1], kernel, stride, dilation)
    shares = where(chosen, reshape(g, (*g.shape, 1, 1)), 0)
    return fold_windows(shares, size, stride, dilation).astype(g.dtype, copy=False)


def _untake_vjp(g: Tensor, places: Tensor, kernel: Pair, stride: Pair, dilation: Pair) -> Tensor:
    return take_windows(g, places, kernel, stride, dilation)


def _untake_samples() -> Iterable[Sample]:
    places = _window_argmax(normal(2, 6, 8), kernel=(3, 2), stride=(2, 1), dilation=(1, 2))
    yield Sample((normal(*places.shape, seed=1), places, (6, 8), (3, 2), (2, 1), (1, 2)))
    tiles = _window_argmax(normal(2, 5, 4), kernel=(2, 2), stride=(2, 2), dilation=(1, 1))
    yield Sample((normal(*tiles.shape, seed=1), tiles, (5, 4), 2, 2), label="side by side")
    yield bad(ShapeError, "such windows", normal(2, 3, 3), np.zeros((2, 3, 3), np.int64), (6, 8), 2)


@op(
    kind=Kind.INDEXING,
    infer=_infer_untake,
    reference=widened(_untake),
    decompose=_untake_by_parts,
    vjp={"g": _untake_vjp},
    samples=_untake_samples,
    is_method=False,
)
def untake_windows(
    g: TensorLike,
    places: TensorLike,
    size: Pair,
    kernel: PairLike,
    stride: PairLike = 1,
    dilation: PairLike = 1,
) -> Tensor:
    """Add one value for each window into zeros, at its place: the adjoint of `take_windows`.

    Args:
        g: [..., rows, columns].
        places: of each window a place in it, as `window_argmax` gives them.
        size: height and width of the image.
        kernel: height and width of a window.
        stride: from one window to the next, down and across.
        dilation: distance of neighbours within a window.

    Returns:
        [..., height, width].

    Raises:
        ShapeError: an image of that size has another number of windows.

    Example:
        >>> ndl.untake_windows(ndl.asarray([[2.0, 3.0]]), [[1, 6]], (2, 4), 2, 2)
        Tensor([[0., 2., 0., 0.],
                [0., 0., 3., 0.]])
    """
    return apply(
        untake_windows,
        as_tensor(g),
        as_tensor(places),
        size=as_pair(size, "untake_windows: size"),
        kernel=as_pair(kernel, "untake_windows: kernel", minimum=1),
        stride=as_pair(stride, "untake_windows: stride", minimum=1),
        dilation=as_pair(dilation, "untake_windows: dilation", minimum=1),
    )


__all__ = ["take_windows", "untake_windows", "window_argmax", "window_max"]
