"""Convolution by parts: the windows of the images as matrices, times the weights as matrices.

This is what the compiler makes of the three forms where it has no kernel of its own for them. With
K = (row, column, channel of the kernel) and P the pixels of the result,

    result [N, G, P, O/G]     = patches [N, G, P, K] @ weight [G, K, O/G]
    patches' gradient         = cotangent @ weightᵀ, added up where windows overlap
    weight's gradient         = patchesᵀ [G, K, N · P] @ cotangent [G, N · P, O/G]

Each image is multiplied by itself, so none depends on the batch that it is in.

Of few pixels, and many weights, a product that reads these row by row is faster than any other
kernel; its sums are the same chains (`convolve_rows`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from needle.ops.contraction import matmul
from needle.ops.engine import widen
from needle.ops.movement import permute_dims, reshape
from needle.ops.slicing import pad, strided_slice
from needle.ops.unfolding import Pads, Pair
from needle.ops.windows import fold_windows, windows

if TYPE_CHECKING:
    from needle.tensor import Tensor


def _framed(x: Tensor, pads: Pads) -> Tensor:
    """Return [N, C, H, W] with zeros around; where a width is negative, with a border cut off."""
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
    """Return the windows of [N, H, W, C] as [N, G, rows, columns, kh, kw, C/G]."""
    x = _framed(permute_dims(x, (0, 3, 1, 2)), pads)
    n, channels = x.shape[:2]
    seen = windows(x, kernel, stride, dilation)
    seen = reshape(seen, (n, groups, channels // groups, *seen.shape[2:]))
    return permute_dims(seen, (0, 1, 3, 4, 5, 6, 2))


def convolve_patches(
    x: Tensor, weight: Tensor, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    """Return what `conv2d_nhwc` does."""
    kh, kw, depth, out = weight.shape
    seen = _patches(widen(x), (kh, kw), stride, pads, dilation, groups)
    n, _, rows, columns = seen.shape[:4]
    matrices = reshape(widen(weight), (kh * kw * depth, groups, out // groups))
    matrices = permute_dims(matrices, (1, 0, 2))
    result = matmul(reshape(seen, (n, groups, rows * columns, kh * kw * depth)), matrices)
    result = reshape(permute_dims(result, (0, 2, 1, 3)), (n, rows, columns, out))
    return result.astype(x.dtype, copy=False)


def convolve_rows(x: Tensor, weight: Tensor, stride: Pair, pads: Pads, dilation: Pair) -> Tensor:
    """Return what `conv2d_nhwc` does without groups, as one product with a row for each pixel."""
    kh, kw, depth, out = weight.shape
    seen = _patches(x, (kh, kw), stride, pads, dilation, 1)
    n, _, rows, columns = seen.shape[:4]
    matrix = reshape(weight, (kh * kw * depth, out))
    result = matmul(reshape(seen, (n * rows * columns, kh * kw * depth)), matrix)
    return reshape(result, (n, rows, columns, out))


def _in_groups(g: Tensor, groups: int) -> Tensor:
    """Return [N, rows, columns, O] as [N, G, P, O/G]."""
    n, rows, columns, out = g.shape
    g = reshape(widen(g), (n, rows * columns, groups, out // groups))
    return permute_dims(g, (0, 2, 1, 3))


def convolve_patches_input_grad(
    cotangent: Tensor,
    weight: Tensor,
    size: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return what `conv2d_nhwc_input_grad` does."""
    n, rows, columns, out = cotangent.shape
    kh, kw, depth, _ = weight.shape
    matrices = reshape(widen(weight), (kh * kw * depth, groups, out // groups))
    shares = matmul(_in_groups(cotangent, groups), permute_dims(matrices, (1, 2, 0)))
    shares = reshape(shares, (n, groups, rows, columns, kh, kw, depth))
    shares = permute_dims(shares, (0, 1, 6, 2, 3, 4, 5))
    padded = (size[0] + pads[0][0] + pads[0][1], size[1] + pads[1][0] + pads[1][1])
    shares = reshape(shares, (n, groups * depth, rows, columns, kh, kw))
    total = fold_windows(shares, padded, stride, dilation)
    (top, bottom), (left, right) = pads
    result = permute_dims(_framed(total, ((-top, -bottom), (-left, -right))), (0, 2, 3, 1))
    return result.astype(cotangent.dtype, copy=False)


def convolve_patches_weight_grad(
    cotangent: Tensor,
    x: Tensor,
    kernel: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return what `conv2d_nhwc_weight_grad` does."""
    n, rows, columns, out = cotangent.shape
    depth, pixels = x.shape[3] // groups, n * rows * columns
    seen = _patches(widen(x), kernel, stride, pads, dilation, groups)
    seen = permute_dims(seen, (1, 4, 5, 6, 0, 2, 3))
    seen = reshape(seen, (groups, math.prod(kernel) * depth, pixels))
    g = permute_dims(_in_groups(cotangent, groups), (1, 0, 2, 3))
    g = reshape(g, (groups, pixels, out // groups))
    result = permute_dims(matmul(seen, g), (1, 0, 2))
    result = reshape(result, (*kernel, depth, out))
    return result.astype(cotangent.dtype, copy=False)
