"""Pooling: the largest element, or the mean, of each window of an image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle.errors import ArgumentError, ShapeError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_float_tensor, as_tensor
from needle.ops.gather import take_along_axis
from needle.ops.joining import stack
from needle.ops.movement import reshape
from needle.ops.record import composite
from needle.ops.reduce import argmax, mean
from needle.ops.samples import Sample, bad, distinct, normal
from needle.ops.slicing import pad, strided_slice
from needle.ops.window_extrema import window_max
from needle.ops.window_sums import window_sum
from needle.ops.windows import Pair, PairLike, window_counts
from needle.shapes import as_pair

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _as_image(x: TensorLike, name: str) -> tuple[Tensor, bool]:
    """Return ``x`` as [N, C, H, W], and whether it came without the batch axis."""
    t = as_tensor(x)
    if t.ndim not in (3, 4):
        raise ShapeError(
            f"{name}: expected an image batch [N, C, H, W] (or [C, H, W]), got shape "
            f"{list(t.shape)}"
        )
    return (reshape(t, (1, *t.shape)), True) if t.ndim == 3 else (t, False)


def _unbatched(x: Tensor, is_single: bool) -> Tensor:
    return reshape(x, x.shape[1:]) if is_single else x


def _beyond(
    size: Pair, counts: Pair, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> list[tuple[int, int]]:
    """Return how far windows reach beyond the image, before and after, along each axis."""
    return [
        (p, max(0, (c - 1) * s + d * (k - 1) + 1 - n - p))
        for n, c, k, s, p, d in zip(size, counts, kernel, stride, padding, dilation, strict=True)
    ]


def _max_pool_samples() -> Iterable[Sample]:
    yield Sample((distinct(2, 3, 6, 8), 2))
    yield Sample((distinct(2, 1, 7, 7), 3), {"stride": 2, "padding": 1}, label="stem")
    yield Sample((distinct(1, 2, 7, 9), (2, 3)), {"stride": (3, 1)}, label="asymmetric")
    yield Sample((distinct(1, 1, 8, 8), 3), {"stride": 1, "dilation": 2}, label="dilation")
    yield Sample((distinct(1, 1, 6, 6), 3), {"stride": 2, "ceil_mode": True}, label="ceil")
    yield Sample((distinct(1, 1, 1, 1), 1), label="one pixel")
    yield Sample((distinct(1, 17, 5, 5), 2), {"stride": 4}, label="stride beyond kernel")
    yield Sample((distinct(3, 4, 4), 2), label="no batch")
    yield Sample((np.zeros((1, 1, 4, 4)), 2), label="ties", is_smooth=False)
    yield Sample((np.full((1, 1, 4, 4), -np.inf), 3), {"padding": 1}, label="-inf", is_smooth=False)
    yield Sample((np.array([[[[1.0, np.nan], [2.0, 3.0]]]]), 2), label="NaN", is_smooth=False)
    yield Sample((normal(0, 3, 4, 4), 2), label="empty batch")
    yield bad(ShapeError, "larger than", normal(1, 1, 2, 2), 3)
    yield bad(ShapeError, "image batch", normal(4, 4), 2)
    yield bad(ArgumentError, "more than half", normal(1, 1, 4, 4), 2, padding=2)
    yield bad(ArgumentError, "at least 1", normal(1, 1, 4, 4), 2, stride=0)


def _torch_pool(name: str) -> Any:
    def peer(torch: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(torch.nn.functional, name)(x, *args, **kwargs)

    return peer


def _lowest(dtype: dtypes.DType) -> float:
    if dtypes.is_float(dtype):
        return -math.inf
    return 0 if dtype == dtypes.bool else int(np.iinfo(dtype).min)


@composite(samples=_max_pool_samples, peer=_torch_pool("max_pool2d"))
def max_pool2d(
    x: TensorLike,
    kernel_size: PairLike,
    stride: PairLike | None = None,
    padding: PairLike = 0,
    dilation: PairLike = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest element of each window of an image.

    Where several are largest, the first (row by row) gets the gradient. NaN is larger than all.

    Args:
        x: [N, C, H, W] or [C, H, W].
        kernel_size: height and width of the windows.
        stride: from one window to the next; the kernel's size if not given.
        padding: rows and columns of −∞ on each side, at most half of the window.
        dilation: distance of neighbours within a window.
        ceil_mode: whether a last window may reach beyond the padding.

    Returns:
        [N, C, rows, columns], ``rows = (H + 2·padding − dilation·(kernel − 1) − 1) // stride + 1``.

    Raises:
        ShapeError: not an image, or smaller than a window.
        ArgumentError: a stride below 1, or padding of more than half of the window.

    Example:
        >>> ndl.max_pool2d(ndl.reshape(ndl.arange(16), (1, 1, 4, 4)), 2).tolist()
        [[[[5, 7], [13, 15]]]]
    """
    t, is_single = _as_image(x, "max_pool2d")
    kernel = as_pair(kernel_size, "max_pool2d: kernel_size", minimum=1)
    step = kernel if stride is None else as_pair(stride, "max_pool2d: stride", minimum=1)
    edge = as_pair(padding, "max_pool2d: padding")
    gap = as_pair(dilation, "max_pool2d: dilation", minimum=1)
    size = (t.shape[2], t.shape[3])
    counts = window_counts(size, kernel, step, edge, gap, ceil_mode, "max_pool2d")
    around = _beyond(size, counts, kernel, step, edge, gap)
    if around != [(0, 0), (0, 0)]:
        lowest = _lowest(t.dtype)
        t = pad(t, [(0, 0), (0, 0), *around], lowest)
    largest = window_max(t, kernel, step, gap)
    # With padding more windows may fit than there should be.
    largest = _part(_part(largest, 2, 0, counts[0]), 3, 0, counts[1])
    return _unbatched(largest, is_single)


# Mean


def _average_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 6, 8), 2))
    yield Sample((normal(2, 1, 7, 7), 3), {"stride": 2, "padding": 1}, label="padding")
    yield Sample(
        (normal(2, 1, 7, 7), 3),
        {"stride": 2, "padding": 1, "count_include_pad": False},
        label="padding not counted",
    )
    yield Sample((normal(1, 2, 7, 9), (2, 3)), {"stride": (3, 1)}, label="asymmetric")
    yield Sample((normal(1, 1, 6, 6), 3), {"stride": 2, "ceil_mode": True}, label="ceil")
    yield Sample(
        (normal(1, 1, 6, 6), 3),
        {"stride": 2, "ceil_mode": True, "padding": 1},
        label="ceil with padding",
    )
    yield Sample((normal(1, 1, 4, 4), 2), {"divisor_override": 3}, label="divisor")
    yield Sample((normal(3, 4, 4), 2), label="no batch")
    yield bad(ShapeError, "larger than", normal(1, 1, 2, 2), 3)
    yield bad(ArgumentError, "more than half", normal(1, 1, 4, 4), 2, padding=2)
    yield bad(ArgumentError, "divisor_override", normal(1, 1, 4, 4), 2, divisor_override=0)


def _widened(x: Tensor) -> Tensor:
    """Return 16-bit floats as float32: a sum of them may be out of range where the mean is not."""
    return x.astype(dtypes.accumulation_dtype(x.dtype), copy=False)


def _covered(
    n: int, count: int, kernel: int, stride: int, padding: int, include_pad: bool
) -> list[int]:
    """Return how many elements of an axis each window counts."""
    first = -padding if include_pad else 0
    last = n + padding if include_pad else n
    starts = [i * stride - padding for i in range(count)]
    return [min(s + kernel, last) - max(s, first) for s in starts]


@composite(samples=_average_samples, peer=_torch_pool("avg_pool2d"))
def avg_pool2d(
    x: TensorLike,
    kernel_size: PairLike,
    stride: PairLike | None = None,
    padding: PairLike = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window of an image.

    Args:
        x: [N, C, H, W] or [C, H, W]; integers become float32.
        kernel_size: height and width of the windows.
        stride: from one window to the next; the kernel's size if not given.
        padding: rows and columns of zeros on each side, at most half of the window.
        ceil_mode: whether a last window may reach beyond the padding (where nothing counts).
        count_include_pad: whether zeros of the padding count as elements.
        divisor_override: what to divide the sums by instead of the number of elements.

    Returns:
        [N, C, rows, columns].

    Raises:
        ShapeError: not an image, or smaller than a window.
        ArgumentError: a stride below 1, padding of more than half of the window, a divisor of 0.

    Example:
        >>> ndl.avg_pool2d(ndl.reshape(ndl.arange(16), (1, 1, 4, 4)), 2).tolist()
        [[[[2.5, 4.5], [10.5, 12.5]]]]
    """
    image, is_single = _as_image(x, "avg_pool2d")
    t = as_float_tensor(image)
    narrow = t.dtype
    t = _widened(t)
    kernel = as_pair(kernel_size, "avg_pool2d: kernel_size", minimum=1)
    step = kernel if stride is None else as_pair(stride, "avg_pool2d: stride", minimum=1)
    edge = as_pair(padding, "avg_pool2d: padding")
    if divisor_override == 0:
        raise ArgumentError("avg_pool2d: divisor_override must not be 0")
    size = (t.shape[2], t.shape[3])
    counts = window_counts(size, kernel, step, edge, (1, 1), ceil_mode, "avg_pool2d")
    around = _beyond(size, counts, kernel, step, edge, (1, 1))
    if around != [(0, 0), (0, 0)]:
        t = pad(t, [(0, 0), (0, 0), *around])
    total = window_sum(t, kernel, step)
    total = _part(_part(total, 2, 0, counts[0]), 3, 0, counts[1])
    if divisor_override is not None:
        return _unbatched((total / divisor_override).astype(narrow, copy=False), is_single)
    down, across = (
        _covered(n, c, k, s, p, count_include_pad)
        for n, c, k, s, p in zip(size, counts, kernel, step, edge, strict=True)
    )
    if len({*down}) == 1 and len({*across}) == 1:
        average = total / (down[0] * across[0])
    else:
        average = total / as_tensor([[float(a * b) for b in across] for a in down], t.dtype)
    return _unbatched(average.astype(narrow, copy=False), is_single)


# Adaptive forms: the number of windows is given, not their size


def _bins(n: int, count: int) -> list[tuple[int, int]]:
    """Return the ranges, equal up to one and perhaps overlapping, that PyTorch divides an axis
    into."""
    return [(i * n // count, -(-(i + 1) * n // count)) for i in range(count)]


def _output_size(output_size: Any, size: Pair, name: str) -> Pair:
    if 0 in size:
        raise ShapeError(f"{name}: an image of {size[0]}×{size[1]} has no pixels")
    given = tuple(output_size) if isinstance(output_size, tuple | list) else (output_size,) * 2
    if len(given) != 2:
        raise ArgumentError(f"{name}: output_size must be one or two numbers, got {output_size!r}")
    rows, columns = (n if g is None else g for g, n in zip(given, size, strict=True))
    return as_pair((rows, columns), f"{name}: output_size", minimum=1)


def _part(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    if stop - start == x.shape[axis]:
        return x
    starts, stops = [0] * x.ndim, list(x.shape)
    starts[axis], stops[axis] = start, stop
    return strided_slice(x, starts, stops, [1] * x.ndim)


def _adaptive_samples() -> Iterable[Sample]:
    yield Sample((distinct(2, 3, 6, 8), 1), label="global")
    yield Sample((distinct(2, 3, 6, 8), (3, 4)), label="divides")
    yield Sample((distinct(1, 2, 7, 5), (3, 2)), label="uneven")
    yield Sample((distinct(1, 2, 2, 3), (4, 5)), label="more than there are")
    yield Sample((distinct(2, 5, 7), (None, 2)), label="None keeps")
    yield bad(ShapeError, "image batch", distinct(4, 4), 2)
    yield bad(ShapeError, "no pixels", normal(1, 1, 0, 4), 2)
    yield bad(ArgumentError, "at least 1", distinct(1, 1, 4, 4), 0)


@composite(samples=_adaptive_samples, peer=_torch_pool("adaptive_avg_pool2d"))
def adaptive_avg_pool2d(x: TensorLike, output_size: Any) -> Tensor:
    """Mean over as many windows as asked for, however large the image.

    Args:
        x: [N, C, H, W] or [C, H, W]; integers become float32.
        output_size: rows and columns of the result; None keeps the image's. Windows start at
            ``⌊i·H / rows⌋`` and end before ``⌈(i + 1)·H / rows⌉``.

    Returns:
        [N, C, rows, columns].

    Raises:
        ShapeError: not an image.
        ArgumentError: a size below 1.

    Example:
        >>> ndl.adaptive_avg_pool2d(ndl.reshape(ndl.arange(16), (1, 1, 4, 4)), 1).item()
        7.5
    """
    image, is_single = _as_image(x, "adaptive_avg_pool2d")
    t = as_float_tensor(image)
    narrow = t.dtype
    t = _widened(t)
    h, w = t.shape[2:]
    rows, columns = _output_size(output_size, (h, w), "adaptive_avg_pool2d")
    if h % rows == 0 and w % columns == 0:
        if (rows, columns) == (1, 1):
            average = mean(t, (2, 3), keepdims=True)
        else:
            tile = (h // rows, w // columns)
            average = window_sum(t, tile, tile) / (tile[0] * tile[1])
        return _unbatched(average.astype(narrow, copy=False), is_single)
    # The mean over a rectangle is the mean over columns of the means over rows.
    t = stack([mean(_part(t, 2, a, b), 2) for a, b in _bins(h, rows)], 2)
    t = stack([mean(_part(t, 3, a, b), 3) for a, b in _bins(w, columns)], 3)
    return _unbatched(t.astype(narrow, copy=False), is_single)


@composite(samples=_adaptive_samples, peer=_torch_pool("adaptive_max_pool2d"))
def adaptive_max_pool2d(x: TensorLike, output_size: Any) -> Tensor:
    """Largest element of as many windows as asked for, however large the image.

    Args:
        x: [N, C, H, W] or [C, H, W].
        output_size: rows and columns of the result; None keeps the image's. Windows are those of
            `adaptive_avg_pool2d`.

    Returns:
        [N, C, rows, columns].

    Raises:
        ShapeError: not an image.
        ArgumentError: a size below 1.

    Example:
        >>> ndl.adaptive_max_pool2d(ndl.reshape(ndl.arange(16), (1, 1, 4, 4)), 2).tolist()
        [[[[5, 7], [13, 15]]]]
    """
    t, is_single = _as_image(x, "adaptive_max_pool2d")
    n, c, h, w = t.shape
    rows, columns = _output_size(output_size, (h, w), "adaptive_max_pool2d")
    if h % rows == 0 and w % columns == 0:
        return _unbatched(max_pool2d(t, (h // rows, w // columns)), is_single)
    chosen = []
    for a, b in _bins(h, rows):
        for d, e in _bins(w, columns):
            part = _part(_part(t, 2, a, b), 3, d, e)
            flat = reshape(part, (n, c, (b - a) * (e - d)))
            chosen.append(take_along_axis(flat, argmax(flat, 2, keepdims=True), axis=2))
    return _unbatched(reshape(stack(chosen, 2), (n, c, rows, columns)), is_single)


__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_max_pool2d",
    "avg_pool2d",
    "max_pool2d",
]
