"""Convolution by parts: the windows of the image as a matrix, times the weights as a matrix.

This is what the compiler makes of the three forms where it has no kernel of its own for them. In
NCHW nothing is transposed: with K = (channel, row, column of the kernel) and P the pixels,

    result [N, G, O/G, P]     = weight [G, O/G, K] @ patches [N, G, K, P]
    patches' gradient         = weightᵀ @ cotangent, added up where windows overlap
    weight's gradient         = cotangent [G, O/G, N · P] @ patchesᵀ [G, N · P, K]

Each image is multiplied by itself, so none depends on the batch that it is in.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from needle.ops.contraction import matmul
from needle.ops.engine import widen
from needle.ops.movement import permute_dims, reshape
from needle.ops.reduce import sum
from needle.ops.slicing import pad, strided_slice
from needle.ops.unfolding import Pads, Pair
from needle.ops.windows import fold_windows, windows

if TYPE_CHECKING:
    from needle.tensor import Tensor


def _framed(x: Tensor, pads: Pads) -> Tensor:
    """Return images with zeros around them; where a width is negative, with a border cut off."""
    starts = [0, 0, *(max(0, -before) for before, _ in pads)]
    cut = [0, 0, *(max(0, -after) for _, after in pads)]
    if any(starts) or any(cut):
        stops = [n - c for n, c in zip(x.shape, cut, strict=True)]
        x = strided_slice(x, starts, stops, (1, 1, 1, 1))
    wide = [(0, 0), (0, 0), *((max(0, before), max(0, after)) for before, after in pads)]
    return pad(x, wide) if any(map(any, wide)) else x


def _patches(
    x: Tensor, kernel: Pair, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    """Return the windows of [N, C, H, W] as [N, G, C/G, kh, kw, rows, columns]."""
    x = _framed(x, pads)
    n, channels = x.shape[:2]
    seen = windows(x, kernel, stride, dilation)
    rows, columns = seen.shape[2:4]
    seen = permute_dims(seen, (0, 1, 4, 5, 2, 3))
    return reshape(seen, (n, groups, channels // groups, *kernel, rows, columns))


def conv2d_by_parts(
    x: Tensor, weight: Tensor, *, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    """Return what `conv2d` does."""
    out, depth, kh, kw = weight.shape
    seen = _patches(widen(x), (kh, kw), stride, pads, dilation, groups)
    n, rows, columns = x.shape[0], *seen.shape[-2:]
    w = widen(weight)
    if depth == 1:
        # One channel in each group: no matrix product, but few products for each pixel.
        taps = reshape(w, (1, groups, out // groups, kh, kw, 1, 1))
        result = sum(seen * taps, (3, 4))
    else:
        matrix = reshape(w, (groups, out // groups, depth * kh * kw))
        result = matmul(matrix, reshape(seen, (n, groups, depth * kh * kw, rows * columns)))
    return reshape(result, (n, out, rows, columns)).astype(x.dtype, copy=False)


def conv2d_input_grad_by_parts(
    cotangent: Tensor,
    weight: Tensor,
    *,
    size: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return what `conv2d_input_grad` does."""
    n, out, rows, columns = cotangent.shape
    _, depth, kh, kw = weight.shape
    matrix = reshape(widen(weight), (groups, out // groups, depth * kh * kw))
    g = reshape(widen(cotangent), (n, groups, out // groups, rows * columns))
    shares = matmul(permute_dims(matrix, (0, 2, 1)), g)
    shares = reshape(shares, (n, groups * depth, kh, kw, rows, columns))
    padded = (size[0] + pads[0][0] + pads[0][1], size[1] + pads[1][0] + pads[1][1])
    total = fold_windows(permute_dims(shares, (0, 1, 4, 5, 2, 3)), padded, stride, dilation)
    (top, bottom), (left, right) = pads
    result = _framed(total, ((-top, -bottom), (-left, -right)))
    return result.astype(cotangent.dtype, copy=False)


def conv2d_weight_grad_by_parts(
    cotangent: Tensor,
    x: Tensor,
    *,
    kernel: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return what `conv2d_weight_grad` does."""
    n, out = cotangent.shape[:2]
    pixels = n * math.prod(cotangent.shape[2:])
    depth, taps = x.shape[1] // groups, math.prod(kernel)
    seen = _patches(widen(x), kernel, stride, pads, dilation, groups)
    seen = permute_dims(seen, (1, 0, 5, 6, 2, 3, 4))
    g = reshape(widen(cotangent), (n, groups, out // groups, *cotangent.shape[2:]))
    g = reshape(permute_dims(g, (1, 2, 0, 3, 4)), (groups, out // groups, pixels))
    result = matmul(g, reshape(seen, (groups, pixels, depth * taps)))
    return reshape(result, (out, depth, *kernel)).astype(cotangent.dtype, copy=False)
