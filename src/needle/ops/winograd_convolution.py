"""Convolution by Winograd's minimal filtering: 16 products where the definition has 36.

For kernels of 3×3 that move pixel by pixel. The result is cut into tiles of 2×2, each of which sees
4×4 pixels d of the image; per input and output channel, with a kernel g,

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

        ⎡1  0 −1  0⎤       ⎡ 1   0   0⎤        ⎡1  1  1  0⎤
    Bᵀ = ⎢0  1  1  0⎥   G = ⎢ ½   ½   ½⎥   Aᵀ = ⎣0  1 −1  1⎦
        ⎢0 −1  1  0⎥       ⎢ ½  −½   ½⎥
        ⎣0 −1  0  1⎦       ⎣ 0   0   1⎦

The sum over input channels is done before the last step: so that is 16 products of matrices, tiles
× channels times channels × output channels. On the side of images there are additions only, and
each of the 16 sums is one chain over the channels: the root mean square error is 0.6 to 0.9 times
that of the definition's one chain of 9 times the length. An infinite pixel makes NaN, where the
definition may give an infinity, of the results that see it, and of no others.

G g Gᵀ is an op of its own in the graph, `WINOGRAD_WEIGHT`, so that it is shared, and what computes
it stands apart from the convolution. The ops here have no gradients and no public functions: only a
pass makes them, of `conv2d_nhwc` and its gradient by the input (`needle.compiler.passes.winograd`).

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import DType, float32
from needle.errors import DTypeError, ShapeError
from needle.ops.convolution_form import Convolution, WeightTransform
from needle.ops.engine import engine
from needle.ops.record import Kind, Op
from needle.ops.samples import Array
from needle.ops.unfolding import Pads, Pair, Window
from needle.ops.winograd import (
    ELEMENTS,
    KERNEL,
    PIXELS,
    RESULTS,
    SIDE,
    SUMS_TO_WEIGHTS,
    TILE,
    moving_by_one,
    tiles_of,
)
from needle.shapes import Shape, Spec

if TYPE_CHECKING:
    from needle.tensor import Tensor

#: How many output channels may lie side by side in a transformed weight, the best first.
_WIDTHS = (32, 48, 16)
#: Fewest channels, of the image and of the result, that are worth two transformations.
FEW_CHANNELS = 16
#: Fewest products of an image that are saved for each pair of an input and an output channel. Their
#: 9 weights become 16 numbers, at each call unless these are kept, and are read by it alone if a
#: batch is of one image: 8×8 pixels save 320 and pay, 7×7 save 185, 4×4 save 80.
FEW_PRODUCTS = 256
#: Most bytes of a row of tiles, transformed, for all channels: more do not stay in the L2 cache.
MOST_ROW_BYTES = 1 << 20


def pays(window: Window, counts: Pair, channels: int, outs: int, dtype: DType) -> bool:
    """Whether a compiled convolution is computed so: by the shapes of an image and of the weight
    alone, so that neither the batch nor the number of threads changes a bit.

    Args:
        window: the kernel, and how it moves.
        counts: rows and columns of the result.
        channels: of the image.
        outs: channels of the result.
        dtype: of all.
    """
    if dtype != float32 or window != moving_by_one(window.pads):
        return False
    rows, columns = tiles_of(counts)
    saved = KERNEL * KERNEL * counts[0] * counts[1] - ELEMENTS * rows * columns
    row_bytes = columns * ELEMENTS * channels * float32.itemsize
    return (
        min(channels, outs) >= FEW_CHANNELS
        and saved >= FEW_PRODUCTS
        and row_bytes <= MOST_ROW_BYTES
    )


def panel_width(outs: int) -> int:
    """Return how many output channels lie side by side: so that the fewest are empty."""
    return min(_WIDTHS, key=lambda width: -(-outs // width) * width)


def transformed_shape(channels: int, outs: int) -> Shape:
    """Return the shape of a transformed weight: panels of output channels, numbers of a tile,
    channels, output channels of a panel."""
    width = panel_width(outs)
    return (-(-outs // width), ELEMENTS, channels, width)


def _transform(weight: Array, *, is_turned: bool) -> Array:
    if is_turned:
        weight = weight[::-1, ::-1].swapaxes(2, 3)
    channels, outs = weight.shape[2:]
    panels, _, _, width = transformed_shape(channels, outs)
    wide = np.pad(weight, ((0, 0), (0, 0), (0, 0), (0, panels * width - outs)))
    numbers = np.einsum("ki,klco,lj->ijco", SUMS_TO_WEIGHTS, wide, SUMS_TO_WEIGHTS)
    numbers = numbers.reshape(ELEMENTS, channels, panels, width).transpose(2, 0, 1, 3)
    return np.ascontiguousarray(numbers)


def _infer_transform(weight: Spec, *, is_turned: bool) -> Spec:
    if weight.dtype != float32:
        raise DTypeError(f"winograd_weight: weights are float32, got {weight.dtype.name}")
    if len(weight.shape) != 4 or weight.shape[:2] != (KERNEL, KERNEL):
        raise ShapeError(f"winograd_weight: takes [3, 3, C, O], got {list(weight.shape)}")
    depth, outs = weight.shape[2:]
    return Spec(transformed_shape(*((outs, depth) if is_turned else (depth, outs))), float32)


#: G g Gᵀ of a weight [3, 3, C, out_channels], in panels; what fills the last is 0. If it is turned,
#: of the kernel turned round, whose channels change their parts.
WINOGRAD_WEIGHT = Op(
    name="winograd_weight",
    function=_transform,
    samples=list,
    is_method=False,
    kind=Kind.CONTRACTION,
    infer=_infer_transform,
    reference=_transform,
    lower=WeightTransform(),
    inputs=("weight",),
)


def transform_weight(weight: Tensor, *, is_turned: bool = False) -> Tensor:
    """Return the transformed weight; see `WINOGRAD_WEIGHT`."""
    result: Tensor = engine.apply(WINOGRAD_WEIGHT, (weight,), {"is_turned": is_turned})
    return result


def _convolve(x: Array, weight: Array, *, out_channels: int, pads: Pads) -> Array:
    n, height, width, channels = x.shape
    counts = _counts((height, width), pads)
    tiles = tiles_of(counts)
    seen = [TILE * count + SIDE - TILE for count in tiles]
    # What lies outside are zeros; negative pads leave out rows and columns.
    inside = [slice(max(0, -low), max(0, extent + min(0, high))) for (low, high), extent in
              zip(pads, (height, width), strict=True)]  # fmt: skip
    kept = x[:, inside[0], inside[1]]
    around = [(max(0, low), count - max(0, low) - extent) for (low, _), count, extent in
              zip(pads, seen, kept.shape[1:3], strict=True)]  # fmt: skip
    image = np.pad(kept, ((0, 0), *around, (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIDE, SIDE), (1, 2))
    d = windows[:, ::TILE, ::TILE]  # [N, tile rows, tile columns, C, 4, 4]
    v = np.einsum("ir,nyxcrs,js->ijnyxc", PIXELS, d, PIXELS).reshape(ELEMENTS, -1, channels)
    u = weight.transpose(1, 2, 0, 3).reshape(ELEMENTS, channels, -1)
    m = np.matmul(v, u).reshape(SIDE, SIDE, n, *tiles, -1)
    y = np.einsum("ip,ijnyxo,jq->nypxqo", RESULTS, m, RESULTS)
    y = y.reshape(n, TILE * tiles[0], TILE * tiles[1], -1)
    return np.ascontiguousarray(y[:, : counts[0], : counts[1], :out_channels])


def _counts(size: Pair, pads: Pads) -> Pair:
    return moving_by_one(pads).counts(size, "conv2d_winograd")


def _infer(x: Spec, weight: Spec, *, out_channels: int, pads: Pads) -> Spec:
    if x.dtype != float32:
        raise DTypeError(f"conv2d_winograd: images are float32, got {x.dtype.name}")
    expected = Spec(transformed_shape(x.shape[3], out_channels), float32)
    if weight != expected:
        raise ShapeError(
            f"conv2d_winograd: the transformed weight of a convolution of {list(x.shape)} to "
            f"{out_channels} channels is {expected}, got {weight}"
        )
    counts = _counts((x.shape[1], x.shape[2]), pads)
    return Spec((x.shape[0], *counts, out_channels), float32)


def _products(x: Spec, weight: Spec, out: Spec, *, out_channels: int, pads: Pads) -> int:
    """Count the operations of the definition, so that figures can be compared."""
    return 2 * out.size * KERNEL * KERNEL * x.shape[3]


#: ``conv2d_nhwc`` of float32 whose weight is what `transform_weight` makes.
CONV2D_WINOGRAD = Op(
    name="conv2d_winograd",
    function=_convolve,
    samples=list,
    is_method=False,
    kind=Kind.CONTRACTION,
    infer=_infer,
    reference=_convolve,
    lower=Convolution("forward", by_winograd=True),
    flops=_products,
    inputs=("x", "weight"),
)


def conv2d_by_winograd(
    x: Tensor, weight: Tensor, *, pads: Pads, is_turned: bool = False, **moves: Any
) -> Tensor:
    """Return what `conv2d_nhwc` does, with a weight [3, 3, C, out_channels], but for rounding.

    Args:
        x: [N, H, W, C].
        weight: [3, 3, C, out_channels]; if it ``is_turned``, [3, 3, out_channels, C].
        pads: zeros around; negative ones leave out rows and columns.
        is_turned: whether it is to be turned round, and its channels change their parts.
        moves: the other attributes, which are those of `moving_by_one`.
    """
    attrs = {"out_channels": weight.shape[2 if is_turned else 3], "pads": pads}
    transformed = transform_weight(weight, is_turned=is_turned)
    result: Tensor = engine.apply(CONV2D_WINOGRAD, (x, transformed), attrs)
    return result


def conv2d_input_grad_by_winograd(
    cotangent: Tensor, weight: Tensor, *, pads: Pads, **moves: Any
) -> Tensor:
    """Return what `conv2d_nhwc_input_grad` does, but for rounding: the convolution of the cotangent
    with the kernel turned round, whose channels change their parts."""
    (top, bottom), (left, right) = (
        (KERNEL - 1 - before, KERNEL - 1 - after) for before, after in pads
    )
    around = ((top, bottom), (left, right))
    return conv2d_by_winograd(cotangent, weight, pads=around, is_turned=True)
