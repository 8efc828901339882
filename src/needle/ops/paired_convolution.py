"""Convolution in bfloat16, channels last, of weights laid out for processors that multiply pairs.

AMX and AVX-512-BF16 take factors two by two, neighbours along what is summed. Images with their
channels last have them so; of a weight, two are joined to a word, and the words put into tiles of
16 pairs × 16 output channels, which are read from the first to the last. `pair_weight` does that
with ops, in the graph, like any other change of layout: it moves, shares and fuses, and what
computes it stands apart from the kernel.

The ops here have no gradients and no public functions: only passes make them, of `conv2d_nhwc` and
its gradients (`needle.compiler.passes.pair`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from needle.dtypes import DType, bfloat16, float32, uint32
from needle.errors import DTypeError, ShapeError
from needle.ops.convolution_form import Convolution
from needle.ops.elementwise import widened
from needle.ops.engine import engine
from needle.ops.joining import concat
from needle.ops.movement import permute_dims, reshape
from needle.ops.nhwc_convolution import conv2d_nhwc_weight_grad, convolve_nhwc
from needle.ops.record import Kind, Op
from needle.ops.samples import Array
from needle.ops.slicing import flip, pad
from needle.ops.unfolding import Pads, Pair, Window
from needle.shapes import Shape, Spec

if TYPE_CHECKING:
    from needle.tensor import Tensor

#: Products that a tile sums; output channels, and pairs, of a tile of the weight.
DEPTH, SIDE = 32, 16


class PairOrder(NamedTuple):
    """In which order products are summed: in tiles of 32, of which some places may be empty.

    A row of the kernel is ``columns · depth`` products, neighbours in the image. Where these fill
    tiles well, each row has tiles of its own, and the last 32 products of a row are its last tile,
    of which only what other tiles do not have counts: so a tile can be read from the image as it
    lies, and reads nothing that the sum does not depend on. Otherwise the rows follow each other
    without gaps.

    The order depends on what is summed alone, not on images, strides or tasks.

    Attributes:
        kernel: rows and columns.
        depth: channels that are summed: those of a group.

    Example:
        >>> from needle.ops.paired_convolution import PairOrder
        >>> order = PairOrder((3, 3), 16)
        >>> order.is_by_row, order.tiles, order.gap
        (True, 6, 16)
        >>> PairOrder((3, 3), 3).tiles  # 27 products
        1
    """

    kernel: Pair
    depth: int

    @property
    def row(self) -> int:
        """Products of a row of the kernel."""
        return self.kernel[1] * self.depth

    @property
    def is_by_row(self) -> bool:
        """Whether each row of the kernel has tiles of its own, less than a third of them empty."""
        return self.row >= DEPTH and -(-self.row // DEPTH) * DEPTH * 2 <= self.row * 3

    @property
    def row_tiles(self) -> int:
        """Tiles of a row of the kernel, if each has its own."""
        return -(-self.row // DEPTH)

    @property
    def whole(self) -> int:
        """Products of a row that fill tiles."""
        return self.row // DEPTH * DEPTH

    @property
    def gap(self) -> int:
        """Places of the last tile of a row that are empty; they stand before the others."""
        return self.row_tiles * DEPTH - self.row

    @property
    def tiles(self) -> int:
        """Tiles of a sum."""
        if self.is_by_row:
            return self.kernel[0] * self.row_tiles
        return -(-self.kernel[0] * self.row // DEPTH)


def paired_shape(kernel: Pair, depth: int, outs: int, groups: int) -> Shape:
    """Return the shape of a weight in tiles: groups, strips of 16 of ``outs`` channels, tiles,
    pairs, channels."""
    return (groups, -(-outs // SIDE), PairOrder(kernel, depth).tiles, SIDE, SIDE)


def _infer_words(even: Spec, odd: Spec) -> Spec:
    _check_dtypes(even.dtype, odd.dtype)
    if even.shape != odd.shape:
        raise ShapeError(f"pair_words: shapes {list(even.shape)} and {list(odd.shape)} differ")
    return Spec(even.shape, uint32)


def _words(even: Array, odd: Array) -> Array:
    low, high = (x.view(np.uint16).astype(np.uint32) for x in (even, odd))
    return low | high << np.uint32(16)


def _lower_words(b: Any, even: Any, odd: Any) -> Any:
    # A bfloat16 is the upper half of the float32 that it is computed as.
    low, high = (b.bitcast(b.convert(x, float32), uint32) for x in (even, odd))
    return b.bit_or(b.right_shift(low, b.like(16, low)), high)


#: Words of 32 bits, of the bits of two bfloat16: the first is the lower half.
PAIR_WORDS = Op(
    name="pair_words",
    function=_words,
    samples=list,
    is_method=False,
    kind=Kind.ELEMENTWISE,
    infer=_infer_words,
    reference=_words,
    lower=_lower_words,
    exact=True,
    inputs=("even", "odd"),
)


def pair_weight(weight: Tensor, groups: int) -> Tensor:
    """Return a weight [kh, kw, C/groups, out_channels] in tiles; empty places are 0."""
    rows, columns, depth, out = weight.shape
    order = PairOrder((rows, columns), depth)
    strips = -(-(out // groups) // SIDE)
    if order.is_by_row:
        matrix = reshape(weight, (rows, order.row, out))
        if order.gap:
            rest = pad(matrix[:, order.whole :], ((0, 0), (order.gap, 0), (0, 0)))
            matrix = concat([matrix[:, : order.whole], rest], axis=1)
        matrix = reshape(matrix, (order.tiles * DEPTH, groups, out // groups))
    else:
        matrix = reshape(weight, (rows * order.row, groups, out // groups))
    beyond = (order.tiles * DEPTH - matrix.shape[0], strips * SIDE - out // groups)
    if any(beyond):
        matrix = pad(matrix, ((0, beyond[0]), (0, 0), (0, beyond[1])))
    pairs = reshape(matrix, (order.tiles, SIDE, 2, groups, strips, SIDE))
    halves = [permute_dims(pairs[:, :, i], (2, 3, 0, 1, 4)) for i in range(2)]
    words: Tensor = engine.apply(PAIR_WORDS, tuple(halves), {})
    return words


def _unpaired(tiles: Array, kernel: Pair, depth: int, out: int) -> Array:
    """Undo `pair_weight`."""
    groups, strips, count = tiles.shape[:3]
    order = PairOrder(kernel, depth)
    words = np.transpose(tiles, (2, 3, 0, 1, 4))
    halves = [(words >> np.uint32(16 * i)).astype(np.uint16).view(bfloat16) for i in range(2)]
    columns = np.stack(halves, 2).reshape(count * DEPTH, groups, strips * SIDE)
    matrix = columns[:, :, : out // groups].reshape(count * DEPTH, out)
    if order.is_by_row and order.gap:
        by_row = matrix.reshape(kernel[0], order.row_tiles * DEPTH, out)
        last = order.whole + order.gap
        rows = np.concatenate([by_row[:, : order.whole], by_row[:, last:]], 1)
        return rows.reshape(*kernel, depth, out)
    return matrix[: kernel[0] * order.row].reshape(*kernel, depth, out)


def _infer(
    x: Spec,
    weight: Spec,
    *,
    kernel: Pair,
    out_channels: int,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Spec:
    _check_dtypes(x.dtype)
    size = (x.shape[1], x.shape[2])
    counts = Window(kernel, stride, pads, dilation, groups).counts(size, "conv2d_pairs")
    expected = paired_shape(kernel, x.shape[3] // groups, out_channels // groups, groups)
    if weight != Spec(expected, uint32):
        raise ShapeError(
            f"conv2d_pairs: the weight of such a convolution of {list(x.shape)} has words "
            f"{list(expected)} of uint32, got {weight}"
        )
    return Spec((x.shape[0], *counts, out_channels), x.dtype)


def _check_dtypes(*given: DType) -> None:
    if any(dtype != bfloat16 for dtype in given):
        names = " and ".join(dtype.name for dtype in given)
        raise DTypeError(f"pairs are of bfloat16, got {names}")


def _convolve_pairs(
    x: Array,
    weight: Array,
    *,
    kernel: Pair,
    out_channels: int,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Array:
    w = _unpaired(weight, kernel, x.shape[3] // groups, out_channels)
    convolve = widened(convolve_nhwc)
    result: Array = convolve(x, w, stride=stride, pads=pads, dilation=dilation, groups=groups)
    return result


def _products(
    x: Spec, weight: Spec, out: Spec, *, kernel: Pair, groups: int, **attrs: object
) -> int:
    return 2 * out.size * kernel[0] * kernel[1] * (x.shape[3] // groups)


#: ``conv2d_nhwc`` of bfloat16 whose weight is what `pair_weight` makes.
CONV2D_PAIRS = Op(
    name="conv2d_pairs",
    function=_convolve_pairs,
    samples=list,
    is_method=False,
    kind=Kind.CONTRACTION,
    infer=_infer,
    reference=_convolve_pairs,
    lower=Convolution("forward", in_pairs=True),
    flops=_products,
    inputs=("x", "weight"),
)


#: ``conv2d_nhwc_weight_grad`` of bfloat16, of a kernel that moves pixel by pixel, without groups:
#: the pairs are neighbouring pixels.
WEIGHT_GRAD_PAIRS = replace(
    conv2d_nhwc_weight_grad.op,
    name="conv2d_weight_grad_pairs",
    samples=list,
    vjp=None,
    lower=Convolution("weight_grad", in_pairs=True),
)


def conv2d_in_pairs(
    x: Tensor, weight: Tensor, *, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    """Return what `conv2d_nhwc` does."""
    attrs = {
        "kernel": weight.shape[:2],
        "out_channels": weight.shape[3],
        "stride": stride,
        "pads": pads,
        "dilation": dilation,
        "groups": groups,
    }
    result: Tensor = engine.apply(CONV2D_PAIRS, (x, pair_weight(weight, groups)), attrs)
    return result


def conv2d_input_grad_in_pairs(
    cotangent: Tensor,
    weight: Tensor,
    *,
    size: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    """Return what `conv2d_nhwc_input_grad` does, for a stride of 1: the convolution of the
    cotangent with the kernel turned round, whose channels change their parts."""
    rows, columns, depth, out = weight.shape
    turned = reshape(flip(weight, (0, 1)), (rows, columns, depth, groups, out // groups))
    turned = permute_dims(turned, (0, 1, 4, 3, 2))
    turned = reshape(turned, (rows, columns, out // groups, groups * depth))
    (top, bottom), (left, right) = (
        (d * (k - 1) - before, d * (k - 1) - after)
        for (before, after), d, k in zip(pads, dilation, (rows, columns), strict=True)
    )
    around = ((top, bottom), (left, right))
    return conv2d_in_pairs(
        cotangent, turned, stride=stride, pads=around, dilation=dilation, groups=groups
    )


def conv2d_weight_grad_in_pairs(cotangent: Tensor, x: Tensor, **attrs: Any) -> Tensor:
    """Return what `conv2d_nhwc_weight_grad` does."""
    result: Tensor = engine.apply(WEIGHT_GRAD_PAIRS, (cotangent, x), attrs)
    return result
