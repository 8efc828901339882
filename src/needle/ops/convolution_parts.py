"""What the compiler makes of convolutions: the same with channels last, between transpositions.

Kernels want the channels of a pixel side by side; see `needle.ops.nhwc_convolution`. A kernel of
one pixel that meets each pixel of the image once is a matrix product, with

    result [N · H · W, O]     = x [N · H · W, C] @ weightᵀ [C, O]
    x's gradient              = cotangent [N · H · W, O] @ weight [O, C]
    weight's gradient         = cotangentᵀ [O, N · H · W] @ x [N · H · W, C]

Integers have no kernels of their own: they are convolved as products of patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from needle.dtypes import is_float
from needle.ops.contraction import matmul
from needle.ops.engine import widen
from needle.ops.movement import permute_dims, reshape
from needle.ops.nhwc_convolution import (
    TO_HWIO,
    TO_NCHW,
    TO_NHWC,
    TO_OIHW,
    conv2d_nhwc,
    conv2d_nhwc_input_grad,
    conv2d_nhwc_weight_grad,
)
from needle.ops.patches import (
    convolve_patches,
    convolve_patches_input_grad,
    convolve_patches_weight_grad,
)
from needle.ops.unfolding import Pads, Pair

if TYPE_CHECKING:
    from needle.tensor import Tensor


def _is_pointwise(kernel: Pair, stride: Pair, pads: Pads, groups: int) -> bool:
    """Whether a kernel of one pixel meets each pixel once, with all channels."""
    return kernel == stride == (1, 1) and pads == ((0, 0), (0, 0)) and groups == 1


def _rows(x: Tensor) -> Tensor:
    """Return [N, C, H, W] as a matrix with a row for each pixel."""
    n, channels, height, width = x.shape
    return reshape(permute_dims(x, TO_NHWC), (n * height * width, channels))


def _images(rows: Tensor, n: int, size: Pair) -> Tensor:
    """Undo `_rows`."""
    return permute_dims(reshape(rows, (n, *size, rows.shape[1])), TO_NCHW)


def conv2d_by_parts(
    x: Tensor, weight: Tensor, *, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    """Return what `conv2d` does."""
    image, w = widen(x), widen(weight)
    out, depth, *kernel = weight.shape
    if _is_pointwise((kernel[0], kernel[1]), stride, pads, groups):
        matrix = reshape(permute_dims(w, TO_HWIO), (depth, out))
        n, _, height, width = x.shape
        result = _images(matmul(_rows(image), matrix), n, (height, width))
    else:
        image, w = permute_dims(image, TO_NHWC), permute_dims(w, TO_HWIO)
        form = conv2d_nhwc if is_float(x.dtype) else convolve_patches
        result = form(image, w, stride, pads, dilation, groups)
        result = permute_dims(result, TO_NCHW)
    return result.astype(x.dtype, copy=False)


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
    g, w = widen(cotangent), widen(weight)
    out, depth, *kernel = weight.shape
    if _is_pointwise((kernel[0], kernel[1]), stride, pads, groups):
        matrix = reshape(permute_dims(w, TO_HWIO), (depth, out))
        result = _images(matmul(_rows(g), permute_dims(matrix, (1, 0))), g.shape[0], size)
    else:
        g, w = permute_dims(g, TO_NHWC), permute_dims(w, TO_HWIO)
        form = conv2d_nhwc_input_grad if is_float(g.dtype) else convolve_patches_input_grad
        result = form(g, w, size, stride, pads, dilation, groups)
        result = permute_dims(result, TO_NCHW)
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
    g, image = widen(cotangent), widen(x)
    if _is_pointwise(kernel, stride, pads, groups):
        result = matmul(permute_dims(_rows(image), (1, 0)), _rows(g))
        result = reshape(result, (1, 1, *result.shape))
    else:
        g, image = permute_dims(g, TO_NHWC), permute_dims(image, TO_NHWC)
        form = conv2d_nhwc_weight_grad if is_float(g.dtype) else convolve_patches_weight_grad
        result = form(g, image, kernel, stride, pads, dilation, groups)
    return permute_dims(result, TO_OIHW).astype(cotangent.dtype, copy=False)
