"""Convolution, pooling and dropout in TensorFlow 1's spelling, as functions over tensors.

Images are [batch, height, width, channels] there, weights [height, width, inputs, outputs], and
padding is a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle import ops, random
from needle.errors import ArgumentError
from needle.nn import functional as F
from needle.tensor import Tensor


def conv2d(*args: Any, **options: Any) -> Tensor:
    """Convolve: as TensorFlow 1 does if four strides are given, else as `needle.nn.functional`.

    ``conv2d(input, filter, strides, padding, data_format="NHWC")``, the padding SAME or VALID.
    """
    strides = options.get("strides", args[2] if len(args) > 2 else None)
    if not isinstance(strides, (list, tuple)) or len(strides) != 4:
        return F.conv2d(*args, **options)
    return _conv2d(*args, **options)


def _conv2d(
    input: Tensor, filter: Tensor, strides: Sequence[int], padding: str, data_format: str = "NHWC"
) -> Tensor:
    x, stride = _as_channels_first(input, strides, data_format)
    x = _padded(x, filter.shape[:2], stride, padding, 0.0)
    y = F.conv2d(x, ops.permute_dims(filter, (3, 2, 0, 1)), stride=stride)
    return _as_before(y, data_format)


def max_pool(
    value: Tensor,
    ksize: Sequence[int],
    strides: Sequence[int],
    padding: str,
    data_format: str = "NHWC",
) -> Tensor:
    """Return the maximum of windows, what lies outside of images left out."""
    x, stride = _as_channels_first(value, strides, data_format)
    size = _of_image(ksize, data_format)
    x = _padded(x, size, stride, padding, -float("inf"))
    return _as_before(F.max_pool2d(x, size, stride), data_format)


def dropout(x: Tensor, keep_prob: Any = None, *, rate: Any = None) -> Tensor:
    """Keep each element with probability ``keep_prob``, divided by it, and put 0 for the others.

    As in TensorFlow 1, the second argument says what is *kept*; ``rate`` says what is dropped.
    """
    if (keep_prob is None) is (rate is None):
        raise ArgumentError("dropout: give either keep_prob or rate")
    kept = 1 - rate if keep_prob is None else keep_prob
    mask = ops.floor(random.rand(x.shape, dtype=x.dtype) + kept)
    return x / kept * mask


def _of_image(extents: Sequence[int], data_format: str) -> tuple[int, int]:
    """Return what four extents say of height and width."""
    if data_format not in ("NHWC", "NCHW"):
        raise ArgumentError(f"data_format must be NHWC or NCHW, got {data_format!r}")
    batch, *rest = extents
    channels = rest.pop(2 if data_format == "NHWC" else 0)
    if (batch, channels) != (1, 1):
        raise ArgumentError(f"windows and strides are 1 along batch and channels, got {extents}")
    return rest[0], rest[1]


def _as_channels_first(
    x: Tensor, strides: Sequence[int], data_format: str
) -> tuple[Tensor, tuple[int, int]]:
    stride = _of_image(strides, data_format)
    return (ops.permute_dims(x, (0, 3, 1, 2)) if data_format == "NHWC" else x), stride


def _as_before(x: Tensor, data_format: str) -> Tensor:
    return ops.permute_dims(x, (0, 2, 3, 1)) if data_format == "NHWC" else x


def _padded(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: str, value: float
) -> Tensor:
    """Return images with what SAME puts around them: as much before as behind, or one less."""
    if padding == "VALID":
        return x
    if padding != "SAME":
        raise ArgumentError(f"padding must be SAME or VALID, got {padding!r}")
    pads = [(0, 0), (0, 0)]
    for n, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        missing = max((-(-n // s) - 1) * s + k - n, 0)
        pads.append((missing // 2, missing - missing // 2))
    return ops.pad(x, pads, value)
