"""Transposed convolution: a convolution's gradient with respect to its input, as a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from needle.errors import ArgumentError, ShapeError
from needle.ops.convolution import PairLike, as_groups, conv2d_input_grad, with_bias
from needle.ops.elementwise import TensorLike
from needle.ops.movement import reshape
from needle.ops.precision import operands
from needle.ops.record import composite
from needle.ops.samples import Sample, bad, normal
from needle.shapes import as_pair

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def _transposed_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 4, 5), normal(3, 2, 3, 3), normal(2)))
    yield Sample(
        (normal(1, 4, 3, 3), normal(4, 2, 3, 2)),
        {"stride": (2, 3), "padding": 1, "output_padding": (1, 0), "groups": 2},
        label="all",
    )
    yield Sample((normal(1, 2, 3, 3), normal(2, 1, 3, 3)), {"dilation": 2}, label="dilation")
    yield Sample(
        (normal(1, 2, 3, 4), normal(2, 1, 2, 3)),
        {"dilation": 3, "stride": 2, "output_padding": 2},
        label="output padding beyond the stride",
    )
    yield Sample((normal(1, 2, 3, 3), normal(2, 3, 1, 1)), {"stride": 3}, label="gaps")
    yield Sample((normal(0, 2, 3, 3), normal(2, 3, 2, 2)), label="empty batch")
    yield Sample((normal(2, 3, 3), normal(2, 3, 2, 2), normal(3)), label="no batch")
    yield bad(ShapeError, "takes 3 channels", normal(1, 2, 3, 3), normal(3, 2, 3, 3))
    yield bad(ShapeError, r"\[N, in_channels, H, W\]", normal(3, 3), normal(3, 2, 3, 3))
    yield bad(ShapeError, "in_channels, out_channels/groups", normal(1, 3, 3, 3), normal(3, 2, 3))
    yield bad(ShapeError, "2 groups", normal(1, 3, 3, 3), normal(3, 2, 3, 3), groups=2)
    yield bad(ShapeError, "no taps", normal(1, 3, 3, 3), normal(3, 2, 0, 3))
    yield bad(ShapeError, "no pixels", normal(1, 1, 0, 3), normal(1, 1, 2, 2))
    yield bad(ShapeError, "-4 × -4", normal(1, 1, 1, 1), normal(1, 1, 2, 2), padding=3)
    yield bad(
        ArgumentError, "output_padding", normal(1, 1, 3, 3), normal(1, 1, 3, 3), output_padding=1
    )


@composite(samples=_transposed_samples, peer="nn.functional.conv_transpose2d")
def conv_transpose2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: PairLike = 1,
    padding: PairLike = 0,
    output_padding: PairLike = 0,
    groups: int = 1,
    dilation: PairLike = 1,
) -> Tensor:
    """Transposed convolution: the gradient of a convolution with respect to its input.

    Args:
        x: [N, C, H, W] or [C, H, W].
        weight: [C, out_channels/groups, kh, kw].
        bias: [out_channels], or None.
        stride: of the convolution, so the factor by which the image grows.
        padding: of the convolution: removed around the result.
        output_padding: rows and columns added below and on the right, to choose between the sizes
            that the convolution maps to H and W; less than the stride or the dilation.
        groups: the channels are divided into so many groups, which do not mix.
        dilation: distance of neighbouring taps.

    Returns:
        [N, out_channels, rows, columns],
        ``rows = (H − 1)·s − 2·p + d·(kh − 1) + output_padding + 1``.

    Raises:
        ShapeError: channels that do not fit, or a result without pixels.
        ArgumentError: a stride, dilation or number of groups below 1; too much output padding.

    Example:
        >>> ndl.conv_transpose2d(ndl.ones((1, 1, 2, 2)), ndl.ones((1, 1, 2, 2)), stride=2).shape
        (1, 1, 4, 4)
    """
    name = "conv_transpose2d"
    image, kernel = operands(conv2d_input_grad, x, weight)
    single = image.ndim == 3
    if single:
        image = reshape(image, (1, *image.shape))
    count = as_groups(groups, name)
    _check(image.shape, kernel.shape, count)
    step = as_pair(stride, f"{name}: stride", minimum=1)
    edge = as_pair(padding, f"{name}: padding")
    more = as_pair(output_padding, f"{name}: output_padding")
    gap = as_pair(dilation, f"{name}: dilation", minimum=1)
    if any(o >= s and o >= d for o, s, d in zip(more, step, gap, strict=True)):
        raise ArgumentError(
            f"{name}: output_padding {more} must be less than stride {step} or dilation {gap}"
        )
    rows, columns = (
        (n - 1) * s - 2 * p + d * (k - 1) + o + 1
        for n, s, p, d, k, o in zip(
            image.shape[2:], step, edge, gap, kernel.shape[2:], more, strict=True
        )
    )
    if rows < 1 or columns < 1:
        raise ShapeError(
            f"{name}: an input of {image.shape[2]} × {image.shape[3]} and a kernel of "
            f"{kernel.shape[2]} × {kernel.shape[3]} leave {rows} × {columns} pixels when padding "
            f"{edge} is removed on each side; pad less"
        )
    # The convolution must not see what is added below and on the right, or, with dilation, it
    # could have more outputs than there are pixels here.
    pads = ((edge[0], edge[0] - more[0]), (edge[1], edge[1] - more[1]))
    result = conv2d_input_grad(image, kernel, (rows, columns), step, pads, gap, count)
    result = with_bias(result, bias, name)
    return reshape(result, result.shape[1:]) if single else result


def _check(image: tuple[int, ...], kernel: tuple[int, ...], groups: int) -> None:
    if len(image) != 4:
        raise ShapeError(
            "conv_transpose2d: the input must be [N, in_channels, H, W] or [in_channels, H, W], "
            f"got shape {list(image)}"
        )
    if len(kernel) != 4:
        raise ShapeError(
            "conv_transpose2d: the weight must be [in_channels, out_channels/groups, kh, kw], got "
            f"shape {list(kernel)}"
        )
    if image[1] != kernel[0]:
        raise ShapeError(
            f"conv_transpose2d: the weight {list(kernel)} [in_channels, out_channels/groups, kh, "
            f"kw] takes {kernel[0]} channels, the input {list(image)} [N, C, H, W] has {image[1]}"
        )
    if image[1] % groups:
        raise ShapeError(
            f"conv_transpose2d: {image[1]} in_channels do not divide into {groups} groups"
        )
    if 0 in image[2:]:
        raise ShapeError(f"conv_transpose2d: an input of shape {list(image)} has no pixels")
    if 0 in kernel[2:]:
        raise ShapeError(f"conv_transpose2d: a kernel of {kernel[2]}×{kernel[3]} has no taps")


__all__ = ["conv_transpose2d"]
