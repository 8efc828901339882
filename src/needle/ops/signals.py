"""Convolution and pooling of signals, [N, C, L]: that of images of one row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.errors import ArgumentError, ShapeError
from needle.ops.convolution import conv2d
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_tensor
from needle.ops.movement import expand_dims, squeeze
from needle.ops.pooling import adaptive_avg_pool2d, adaptive_max_pool2d, avg_pool2d, max_pool2d
from needle.ops.record import composite
from needle.ops.samples import Sample, bad, distinct, normal
from needle.ops.transposed_convolution import conv_transpose2d
from needle.shapes import as_index

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _as_row(x: TensorLike, name: str) -> Tensor:
    """Return a signal as an image of one row."""
    t = as_tensor(x)
    if t.ndim not in (2, 3):
        raise ShapeError(
            f"{name}: the input must be [N, C, L] or [C, L], got shape {list(t.shape)}"
        )
    return expand_dims(t, -2)


def _as_kernel(x: Tensor, weight: TensorLike, groups: int, meaning: str, name: str) -> Tensor:
    """Return the weight as one of a single row, if its channels are those of ``x``."""
    w = as_tensor(weight)
    if w.ndim != 3:
        raise ShapeError(f"{name}: the weight must be {meaning}, got shape {list(w.shape)}")
    takes = w.shape[0] if meaning.startswith("[in") else w.shape[1] * groups
    if x.shape[-3] != takes:
        signal = [*x.shape[:-2], x.shape[-1]]
        raise ShapeError(
            f"{name}: the weight {list(w.shape)} {meaning} takes {takes} channels, the input "
            f"{signal} has {x.shape[-3]}"
        )
    return expand_dims(w, -2)


def _single(value: Any, what: str, minimum: int = 0) -> int:
    """Return ``value``, an int or a sequence of one, as an int of at least ``minimum``."""
    if isinstance(value, tuple | list):
        if len(value) != 1:
            raise ArgumentError(f"{what} must be an int, or one in a tuple, got {value!r}")
        value = value[0]
    number = as_index(value, what)
    if number < minimum:
        raise ArgumentError(f"{what} must be at least {minimum}, got {number}")
    return number


def _conv_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 7), normal(4, 3, 3), normal(4)), {"padding": 1})
    yield Sample((normal(1, 4, 9), normal(2, 2, 2)), {"stride": 2, "groups": 2}, label="groups")
    yield Sample((normal(1, 2, 9), normal(2, 2, 3)), {"dilation": 2}, label="dilation")
    yield Sample((normal(2, 1, 6), normal(3, 1, 3)), {"padding": "same"}, label="same")
    yield Sample((normal(2, 5), normal(3, 2, 3)), label="no batch")
    yield Sample((normal(0, 2, 4), normal(3, 2, 3)), label="empty batch")
    yield bad(ShapeError, "takes 2 channels", normal(1, 3, 4), normal(2, 2, 3))
    yield bad(ShapeError, r"\[N, C, L\]", normal(4), normal(1, 1, 3))
    yield bad(ShapeError, "out_channels", normal(1, 1, 4), normal(3, 3))
    yield bad(ShapeError, "larger than the width", normal(1, 1, 2), normal(1, 1, 3))
    yield bad(ArgumentError, "one in a tuple", normal(1, 1, 4), normal(1, 1, 3), stride=(1, 2))


@composite(samples=_conv_samples, peer="nn.functional.conv1d")
def conv1d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution (cross-correlation) of signals with kernels; see `conv2d`.

    ``out[n, o, i] = bias[o] + Σ x[n, c, i·s + a·d − p] · weight[o, c, a]``.

    Args:
        x: [N, C, L] or [C, L].
        weight: [out_channels, C/groups, k].
        bias: [out_channels], or None.
        stride: from one place of the kernel to the next.
        padding: zeros at both ends: a number, "valid" for none, or "same" for a result as long as
            the signal (with stride 1).
        dilation: distance of neighbouring taps.
        groups: the channels are divided into so many groups, which do not mix.

    Returns:
        [N, out_channels, (L + 2·p − d·(k − 1) − 1) // s + 1].

    Raises:
        ShapeError: channels that do not fit, or a signal shorter than the kernel.
        ArgumentError: a stride, dilation or number of groups below 1.

    Example:
        >>> ndl.conv1d(ndl.ones((1, 1, 4)), ndl.ones((1, 1, 3)), padding=1).tolist()
        [[[2.0, 3.0, 3.0, 2.0]]]
    """
    row = _as_row(x, "conv1d")
    kernel = _as_kernel(row, weight, groups, "[out_channels, in_channels/groups, k]", "conv1d")
    result = conv2d(
        row,
        kernel,
        bias,
        (1, _single(stride, "conv1d: stride", 1)),
        padding if isinstance(padding, str) else (0, _single(padding, "conv1d: padding")),
        (1, _single(dilation, "conv1d: dilation", 1)),
        groups,
    )
    return squeeze(result, -2)


def _transposed_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 4), normal(3, 2, 3), normal(2)))
    yield Sample(
        (normal(1, 4, 3), normal(4, 2, 3)),
        {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        label="all",
    )
    yield Sample((normal(2, 3), normal(2, 1, 3)), {"dilation": 2}, label="no batch")
    yield bad(ShapeError, "takes 3 channels", normal(1, 2, 3), normal(3, 2, 3))
    yield bad(ShapeError, "in_channels", normal(1, 2, 3), normal(3, 2))
    yield bad(ArgumentError, "output_padding", normal(1, 1, 3), normal(1, 1, 3), output_padding=1)


@composite(samples=_transposed_samples, peer="nn.functional.conv_transpose1d")
def conv_transpose1d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: int = 1,
    padding: int = 0,
    output_padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
) -> Tensor:
    """Transposed convolution of signals: the gradient of `conv1d` with respect to its input.

    Args:
        x: [N, C, L] or [C, L].
        weight: [C, out_channels/groups, k].
        bias: [out_channels], or None.
        stride: of the convolution, so the factor by which the signal grows.
        padding: of the convolution: removed at both ends of the result.
        output_padding: elements added at the end; fewer than the stride or the dilation.
        groups: the channels are divided into so many groups, which do not mix.
        dilation: distance of neighbouring taps.

    Returns:
        [N, out_channels, (L − 1)·s − 2·p + d·(k − 1) + output_padding + 1].

    Raises:
        ShapeError: channels that do not fit.
        ArgumentError: a stride, dilation or number of groups below 1; too much output padding.

    Example:
        >>> ndl.conv_transpose1d(ndl.ones((1, 1, 2)), ndl.ones((1, 1, 3)), stride=2).tolist()
        [[[1.0, 1.0, 2.0, 1.0, 1.0]]]
    """
    name = "conv_transpose1d"
    row = _as_row(x, name)
    kernel = _as_kernel(row, weight, groups, "[in_channels, out_channels/groups, k]", name)
    result = conv_transpose2d(
        row,
        kernel,
        bias,
        (1, _single(stride, f"{name}: stride", 1)),
        (0, _single(padding, f"{name}: padding")),
        (0, _single(output_padding, f"{name}: output_padding")),
        groups,
        (1, _single(dilation, f"{name}: dilation", 1)),
    )
    return squeeze(result, -2)


def _pool_samples() -> Iterable[Sample]:
    yield Sample((distinct(2, 3, 6), 2))
    yield Sample((distinct(2, 1, 7), 3), {"stride": 2, "padding": 1}, label="padding")
    yield Sample((distinct(1, 1, 6), 3), {"stride": 2, "ceil_mode": True}, label="ceil")
    yield Sample((distinct(3, 4), 2), label="no batch")
    yield bad(ShapeError, "larger than", normal(1, 1, 2), 3)
    yield bad(ShapeError, r"\[N, C, L\]", normal(4), 2)
    yield bad(ArgumentError, "more than half", normal(1, 1, 4), 2, padding=2)


def _max_pool_samples() -> Iterable[Sample]:
    yield from _pool_samples()
    yield Sample((distinct(1, 1, 8), 3), {"stride": 1, "dilation": 2}, label="dilation")
    yield Sample((np.zeros((1, 1, 4)), 2), label="ties", is_smooth=False)


@composite(samples=_max_pool_samples, peer="nn.functional.max_pool1d")
def max_pool1d(
    x: TensorLike,
    kernel_size: int,
    stride: int | None = None,
    padding: int = 0,
    dilation: int = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """Largest element of each window of a signal; see `max_pool2d`.

    Args:
        x: [N, C, L] or [C, L].
        kernel_size: elements in a window.
        stride: from one window to the next; the kernel's size if not given.
        padding: elements of −∞ at both ends, at most half of the window.
        dilation: distance of neighbours within a window.
        ceil_mode: whether a last window may reach beyond the padding.

    Returns:
        [N, C, windows].

    Raises:
        ShapeError: not a signal, or shorter than a window.
        ArgumentError: a stride below 1, or padding of more than half of the window.

    Example:
        >>> ndl.max_pool1d(ndl.reshape(ndl.arange(6), (1, 1, 6)), 2).tolist()
        [[[1, 3, 5]]]
    """
    kernel = _single(kernel_size, "max_pool1d: kernel_size", 1)
    step = kernel if stride is None else _single(stride, "max_pool1d: stride", 1)
    result = max_pool2d(
        _as_row(x, "max_pool1d"),
        (1, kernel),
        (1, step),
        (0, _single(padding, "max_pool1d: padding")),
        (1, _single(dilation, "max_pool1d: dilation", 1)),
        ceil_mode,
    )
    return squeeze(result, -2)


def _average_samples() -> Iterable[Sample]:
    yield from _pool_samples()
    yield Sample(
        (normal(2, 1, 7), 3),
        {"stride": 2, "padding": 1, "count_include_pad": False},
        label="padding not counted",
    )


@composite(samples=_average_samples, peer="nn.functional.avg_pool1d")
def avg_pool1d(
    x: TensorLike,
    kernel_size: int,
    stride: int | None = None,
    padding: int = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Tensor:
    """Mean of each window of a signal; see `avg_pool2d`.

    Args:
        x: [N, C, L] or [C, L]; integers become float32.
        kernel_size: elements in a window.
        stride: from one window to the next; the kernel's size if not given.
        padding: zeros at both ends, at most half of the window.
        ceil_mode: whether a last window may reach beyond the padding (where nothing counts).
        count_include_pad: whether zeros of the padding count as elements.

    Returns:
        [N, C, windows].

    Raises:
        ShapeError: not a signal, or shorter than a window.
        ArgumentError: a stride below 1, or padding of more than half of the window.

    Example:
        >>> ndl.avg_pool1d(ndl.reshape(ndl.arange(6), (1, 1, 6)), 2).tolist()
        [[[0.5, 2.5, 4.5]]]
    """
    kernel = _single(kernel_size, "avg_pool1d: kernel_size", 1)
    step = kernel if stride is None else _single(stride, "avg_pool1d: stride", 1)
    result = avg_pool2d(
        _as_row(x, "avg_pool1d"),
        (1, kernel),
        (1, step),
        (0, _single(padding, "avg_pool1d: padding")),
        ceil_mode,
        count_include_pad,
    )
    return squeeze(result, -2)


def _adaptive_samples() -> Iterable[Sample]:
    yield Sample((distinct(2, 3, 6), 3))
    yield Sample((distinct(1, 2, 7), 3), label="uneven")
    yield Sample((distinct(2, 3), 5), label="no batch, more than there are")
    yield bad(ShapeError, r"\[N, C, L\]", distinct(4), 2)
    yield bad(ArgumentError, "at least 1", distinct(1, 1, 4), 0)


@composite(samples=_adaptive_samples, peer="nn.functional.adaptive_avg_pool1d")
def adaptive_avg_pool1d(x: TensorLike, output_size: int) -> Tensor:
    """Mean over as many windows as asked for, however long the signal; see `adaptive_avg_pool2d`.

    Args:
        x: [N, C, L] or [C, L]; integers become float32.
        output_size: length of the result.

    Returns:
        [N, C, output_size].

    Raises:
        ShapeError: not a signal.
        ArgumentError: a size below 1.

    Example:
        >>> ndl.adaptive_avg_pool1d(ndl.reshape(ndl.arange(6), (1, 1, 6)), 2).tolist()
        [[[1.0, 4.0]]]
    """
    size = _single(output_size, "adaptive_avg_pool1d: output_size", 1)
    return squeeze(adaptive_avg_pool2d(_as_row(x, "adaptive_avg_pool1d"), (1, size)), -2)


@composite(samples=_adaptive_samples, peer="nn.functional.adaptive_max_pool1d")
def adaptive_max_pool1d(x: TensorLike, output_size: int) -> Tensor:
    """Largest element of as many windows as asked for, however long the signal.

    Args:
        x: [N, C, L] or [C, L].
        output_size: length of the result. Windows are those of `adaptive_avg_pool2d`.

    Returns:
        [N, C, output_size].

    Raises:
        ShapeError: not a signal.
        ArgumentError: a size below 1.

    Example:
        >>> ndl.adaptive_max_pool1d(ndl.reshape(ndl.arange(6), (1, 1, 6)), 2).tolist()
        [[[2, 5]]]
    """
    size = _single(output_size, "adaptive_max_pool1d: output_size", 1)
    return squeeze(adaptive_max_pool2d(_as_row(x, "adaptive_max_pool1d"), (1, size)), -2)


__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_max_pool1d",
    "avg_pool1d",
    "conv1d",
    "conv_transpose1d",
    "max_pool1d",
]
