"""What the compiler makes of convolutions: the same with channels last, between transpositions.

Kernels want the channels of a pixel side by side; see `needle.ops.nhwc_convolution`. A kernel of
one pixel that meets each pixel of the image once is a matrix product, with

    result [N · H · W, O]     = x [N · H · W, C] @ weight [C, O]
    x's gradient              = cotangent [N · H · W, O] @ weightᵀ [O, C]
    weight's gradient         = xᵀ [C, N · H · W] @ cotangent [N · H · W, O]

Integers have no kernels of their own: they are convolved as products of patches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from needle.dtypes import accumulation_dtype, is_float
from needle.ops.contraction import matmul
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
    convolve_rows,
)
from needle.ops.unfolding import Pads, Pair, Window
from needle.ops.winograd_convolution import pays

if TYPE_CHECKING:
    from needle.tensor import Tensor


#: At most so many pixels, with so many bytes of weights, are convolved as rows of a product:
#: 512 channels at 4², from memory: 2.1 → 0.7 ms; 256 at 8²: 0.68 → 0.48; 64 at 8² (147 KB): equal.
FEW_PIXELS, MANY_BYTES = 256, 1 << 18
#: Products of fewer columns may have other chains of sums.
MANY_CHANNELS = 64


def _is_pointwise(kernel: Pair, stride: Pair, pads: Pads, groups: int) -> bool:
    """Whether a kernel of one pixel meets each pixel once, with all channels."""
    return kernel == stride == (1, 1) and pads == ((0, 0), (0, 0)) and groups == 1


def _reads_mostly_weights(
    x: Tensor, weight: Tensor, stride: Pair, pads: Pads, dilation: Pair
) -> bool:
    """Whether few pixels are computed by many weights: as rows of a product, then.

    The sums are the same, so that the batch may decide; not so for 16-bit floats, nor where many
    pixels would be computed by Winograd's algorithm.
    """
    out, depth, kh, kw = weight.shape
    window = Window((kh, kw), stride, pads, dilation, 1)
    rows, columns = window.counts((x.shape[2], x.shape[3]), "conv2d")
    pixels = x.shape[0] * rows * columns
    if (
        not isinstance(pixels, int)
        or not is_float(x.dtype)
        or accumulation_dtype(x.dtype) != x.dtype
    ):
        return False
    if pays(window, (rows, columns), depth, out, x.dtype):
        return False
    nbytes = depth * kh * kw * out * x.dtype.itemsize
    return pixels <= FEW_PIXELS and out >= MANY_CHANNELS and nbytes >= MANY_BYTES


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
    out, depth, *kernel = weight.shape
    if _is_pointwise((kernel[0], kernel[1]), stride, pads, groups):
        matrix = reshape(permute_dims(weight, TO_HWIO), (depth, out))
        n, _, height, width = x.shape
        return _images(matmul(_rows(x), matrix), n, (height, width))
    image, w = permute_dims(x, TO_NHWC), permute_dims(weight, TO_HWIO)
    if groups == 1 and _reads_mostly_weights(x, weight, stride, pads, dilation):
        return permute_dims(convolve_rows(image, w, stride, pads, dilation), TO_NCHW)
    form = conv2d_nhwc if is_float(x.dtype) else convolve_patches
    return permute_dims(form(image, w, stride, pads, dilation, groups), TO_NCHW)


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
    out, depth, *kernel = weight.shape
    if _is_pointwise((kernel[0], kernel[1]), stride, pads, groups):
        matrix = reshape(permute_dims(weight, TO_HWIO), (depth, out))
        rows = matmul(_rows(cotangent), permute_dims(matrix, (1, 0)))
        return _images(rows, cotangent.shape[0], size)
    g, w = permute_dims(cotangent, TO_NHWC), permute_dims(weight, TO_HWIO)
    form = conv2d_nhwc_input_grad if is_float(g.dtype) else convolve_patches_input_grad
    return permute_dims(form(g, w, size, stride, pads, dilation, groups), TO_NCHW)


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
    if _is_pointwise(kernel, stride, pads, groups):
        result = matmul(permute_dims(_rows(x), (1, 0)), _rows(cotangent))
        return permute_dims(reshape(result, (1, 1, *result.shape)), TO_OIHW)
    g, image = permute_dims(cotangent, TO_NHWC), permute_dims(x, TO_NHWC)
    form = conv2d_nhwc_weight_grad if is_float(g.dtype) else convolve_patches_weight_grad
    return permute_dims(form(g, image, kernel, stride, pads, dilation, groups), TO_OIHW)
