"""Gradient of a convolution by its 3×3 weight, in Winograd's form: sums over tiles of 2×2 results.

A tile of 2×2 results sees 4×4 pixels. Image and cotangent are transformed, tile by tile, so that
their products element by element, summed over tiles, are the gradient but for a last transformation
of the sums: 16 products for a tile and a pair of channels, where the definition takes 36.

``dw = Gᵀ [Σ (A g Aᵀ) ⊙ (Bᵀ x B)] G``

The sums of a few pieces of the images are made apart, so that threads share them, whatever their
number. The last transformation adds them up, as a product of matrices.

Pixels and results are only added and subtracted, sums halved: the error is that of sums of 4 terms
on top of that of the sum over tiles, which is shorter than one over pixels. On normal numbers it is
between 0.85 and 1.3 times that of the definition's kernel.

Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016: the
derivative of F(2×2, 3×3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import DType, float32
from needle.errors import DTypeError
from needle.ops.contraction import matmul
from needle.ops.convolution_form import Convolution
from needle.ops.engine import engine
from needle.ops.movement import reshape
from needle.ops.record import Kind, Op
from needle.ops.samples import Array
from needle.ops.unfolding import Pads, Window
from needle.ops.winograd import (
    ELEMENTS,
    PIXELS,
    RESULTS,
    SIDE,
    SUMS_TO_WEIGHTS,
    moving_by_one,
    tiles_of,
)
from needle.shapes import Shape, Spec

if TYPE_CHECKING:
    from needle.tensor import Tensor

#: Channels, of image and cotangent, whose sums are made together, at most: so many sums stay in the
#: L2 cache.
CHANNELS = 128
#: Most pieces; most sums in all of them, as long as two threads have one each. Further threads
#: share the channels, which takes more transformations, but no memory.
PIECES, SUMS, NEEDED = 8, 1 << 17, 2
#: What it costs to transform a tile, for each channel, and to transform a sum, in products.
_TRANSFORM, _SUM = 110, 25
#: Share of the products of the definition below which it pays.
_SHARE = 0.9


def pays(window: Window, cotangent: Shape, x: Shape, dtype: DType) -> bool:
    """Whether a compiled gradient by the weight is computed so: decided by shapes alone.

    Args:
        window: the kernel, and how it moves.
        cotangent: [N, rows, columns, out_channels].
        x: [N, H, W, C].
        dtype: of all.
    """
    if dtype != float32 or 0 in cotangent or 0 in x or window != moving_by_one(window.pads):
        return False
    images, rows, columns, outs = cotangent
    down, across = tiles_of((rows, columns))
    channels, tiles, pairs = x[3], images * down * across, x[3] * outs
    cost = tiles * (ELEMENTS * pairs + _TRANSFORM * (channels + outs))
    cost += _SUM * ELEMENTS * pieces_of(images, channels, outs) * pairs
    return cost < _SHARE * 9 * images * rows * columns * pairs


def pieces_of(images: int, in_channels: int, out_channels: int) -> int:
    """Return how many pieces of the images have sums of their own: by shapes alone."""
    parts = -(-in_channels // CHANNELS) * -(-out_channels // CHANNELS)
    fitting = SUMS // (ELEMENTS * in_channels * out_channels)
    return min(images, PIECES, max(fitting, -(-NEEDED // parts)))


def pieces(images: int, count: int) -> list[slice]:
    """Return the images of each of so many pieces."""
    return [slice(images * i // count, images * (i + 1) // count) for i in range(count)]


def _infer(cotangent: Spec, x: Spec, **attrs: Any) -> Spec:
    if cotangent.dtype != float32 or x.dtype != float32:
        raise DTypeError(f"sums of tiles are of float32, got {cotangent.dtype} and {x.dtype}")
    shape = _shape(cotangent.shape, x.shape)
    return Spec(shape, float32)


def _shape(cotangent: Shape, x: Shape) -> Shape:
    channels, outs = x[3], cotangent[3]
    return (pieces_of(x[0], channels, outs), ELEMENTS, channels, outs)


def _sums(cotangent: Array, x: Array, *, pads: Pads, **attrs: Any) -> Array:
    n, rows, columns, outs = cotangent.shape
    down, across = tiles_of((rows, columns))
    g = np.zeros((n, 2 * down, 2 * across, outs), cotangent.dtype)
    g[:, :rows, :columns] = cotangent
    seen = np.zeros((n, 2 * down + 2, 2 * across + 2, x.shape[3]), x.dtype)
    inside = np.pad(x, ((0, 0), *(tuple(max(p, 0) for p in pair) for pair in pads), (0, 0)))
    inside = inside[:, max(-pads[0][0], 0) :, max(-pads[1][0], 0) :]
    h, w = (min(a, b) for a, b in zip(seen.shape[1:3], inside.shape[1:3], strict=True))
    seen[:, :h, :w] = inside[:, :h, :w]
    tiles = np.lib.stride_tricks.sliding_window_view(seen, (SIDE, SIDE), (1, 2))[:, ::2, ::2]
    results = g.reshape(n, down, 2, across, 2, outs)
    v = np.einsum("ai,nhwcij,bj->nhwabc", PIXELS, tiles, PIXELS)
    z = np.einsum("ai,nhiwjo,bj->nhwabo", RESULTS, results, RESULTS)
    count = pieces_of(n, x.shape[3], outs)
    sums = [np.einsum("nhwabc,nhwabo->abco", v[s], z[s]) for s in pieces(n, count)]
    return np.stack(sums).reshape(count, ELEMENTS, x.shape[3], outs).astype(x.dtype)


def _products(cotangent: Spec, x: Spec, out: Spec, **attrs: Any) -> int:
    down, across = tiles_of((cotangent.shape[1], cotangent.shape[2]))
    return 2 * x.shape[0] * down * across * ELEMENTS * x.shape[3] * cotangent.shape[3]


#: Sums over the tiles of each piece of the images: [pieces, 16, C, out_channels].
WINOGRAD_SUMS = Op(
    name="conv2d_winograd_sums",
    function=_sums,
    samples=list,
    is_method=False,
    kind=Kind.CONTRACTION,
    infer=_infer,
    reference=_sums,
    lower=Convolution("weight_grad", by_winograd=True),
    flops=_products,
    inputs=("cotangent", "x"),
)


def conv2d_weight_grad_by_winograd(cotangent: Tensor, x: Tensor, **attrs: Any) -> Tensor:
    """Return what `conv2d_nhwc_weight_grad` does, for kernels of 3×3 that move pixel by pixel."""
    sums: Tensor = engine.apply(WINOGRAD_SUMS, (cotangent, x), attrs)
    count, _, channels, outs = sums.shape
    last = np.tile(np.kron(SUMS_TO_WEIGHTS, SUMS_TO_WEIGHTS), (1, count))
    flat = matmul(last, reshape(sums, (count * ELEMENTS, channels * outs)))
    return reshape(flat, (3, 3, channels, outs))
