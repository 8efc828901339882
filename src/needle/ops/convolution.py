"""Convolution in two dimensions, and its two gradients.

Convolution is linear in the image x and in the kernel w. With a cotangent g it makes one number,
``⟨g, conv(x, w)⟩``, which is linear in each of the three; and the three ops here are its partial
derivatives:

=======================  ==========================  ==================
op                       derivative with respect to  is a function of
=======================  ==========================  ==================
`conv2d`                 g                           x, w
`conv2d_input_grad`      x                           g, w
`conv2d_weight_grad`     w                           g, x
=======================  ==========================  ==================

So the rules of each are the other two, and derivatives of any order exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from needle.errors import ArgumentError, ShapeError
from needle.ops.convolution_parts import (
    conv2d_by_parts,
    conv2d_input_grad_by_parts,
    conv2d_weight_grad_by_parts,
)
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, promoted
from needle.ops.movement import reshape
from needle.ops.precision import operands
from needle.ops.record import Kind, op
from needle.ops.samples import Sample, bad, normal
from needle.ops.unfolding import (
    Pads,
    Pair,
    Window,
    convolve,
    convolve_input_grad,
    convolve_weight_grad,
)
from needle.shapes import Shape, Spec, as_index, as_pair

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor

PairLike = int | Pair


# The three forms


def _infer_conv(
    x: Spec, weight: Spec, *, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Spec:
    if x.shape[1] != weight.shape[1] * groups:
        each = f" in each of {groups} groups" if groups > 1 else ""
        raise ShapeError(
            f"conv2d: the weight {list(weight.shape)} [out_channels, in_channels/groups, kh, kw] "
            f"takes {weight.shape[1]} channels{each}, the input {list(x.shape)} [N, C, H, W] has "
            f"{x.shape[1]}"
        )
    _check_kernel("conv2d", (weight.shape[2], weight.shape[3]), weight.shape[0], groups)
    window = Window((weight.shape[2], weight.shape[3]), stride, pads, dilation, groups)
    counts = window.counts((x.shape[2], x.shape[3]), "conv2d")
    return Spec((x.shape[0], weight.shape[0], *counts), x.dtype)


def _check_kernel(name: str, kernel: Pair, out: int, groups: int) -> None:
    if 0 in kernel:
        raise ShapeError(f"{name}: a kernel of {kernel[0]}×{kernel[1]} has no taps")
    if out % groups:
        raise ShapeError(f"{name}: {out} out_channels do not divide into {groups} groups")


def _check_image(g: Spec, x_shape: Shape, out: int, window: Window, name: str) -> None:
    _check_kernel(name, window.kernel, out, window.groups)
    if x_shape[1] % window.groups:
        raise ShapeError(
            f"{name}: {x_shape[1]} in_channels do not divide into {window.groups} groups"
        )
    counts = window.counts((x_shape[2], x_shape[3]), name)
    if g.shape != (x_shape[0], out, *counts):
        raise ShapeError(
            f"{name}: a convolution of {list(x_shape)} [N, C, H, W] with a kernel of "
            f"{window.kernel[0]}×{window.kernel[1]} gives {[x_shape[0], out, *counts]}, but the "
            f"cotangent has shape {list(g.shape)}"
        )


def _infer_input_grad(
    cotangent: Spec,
    weight: Spec,
    *,
    size: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Spec:
    shape = (cotangent.shape[0], weight.shape[1] * groups, *size)
    window = Window((weight.shape[2], weight.shape[3]), stride, pads, dilation, groups)
    _check_image(cotangent, shape, weight.shape[0], window, "conv2d_input_grad")
    return Spec(shape, cotangent.dtype)


def _infer_weight_grad(
    cotangent: Spec,
    x: Spec,
    *,
    kernel: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Spec:
    window = Window(kernel, stride, pads, dilation, groups)
    _check_image(cotangent, x.shape, cotangent.shape[1], window, "conv2d_weight_grad")
    return Spec((cotangent.shape[1], x.shape[1] // groups, *kernel), cotangent.dtype)


def _products(first: Spec, second: Spec, out: Spec, **attrs: Any) -> int:
    """Every pixel of the convolution's result meets the weights of its channel once."""
    if "size" in attrs:
        pixels, weight = first, second
    elif "kernel" in attrs:
        pixels, weight = first, out
    else:
        pixels, weight = out, second
    return 2 * pixels.size * weight.size // weight.shape[0]


class _Attrs(NamedTuple):
    """The attributes that the three forms share, as their rules hand them on."""

    stride: Pair
    pads: Pads
    dilation: Pair
    groups: int


def _conv_by_x(
    g: Tensor, weight: Tensor, x_shape: Shape, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    rest = _Attrs(stride, pads, dilation, groups)
    return conv2d_input_grad(g, weight, (x_shape[2], x_shape[3]), *rest)


def _conv_by_weight(
    g: Tensor, x: Tensor, weight_shape: Shape, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    rest = _Attrs(stride, pads, dilation, groups)
    return conv2d_weight_grad(g, x, (weight_shape[2], weight_shape[3]), *rest)


def _input_grad_by_cotangent(
    g: Tensor, weight: Tensor, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    rest = _Attrs(stride, pads, dilation, groups)
    return apply(conv2d, g, weight, **rest._asdict())


def _input_grad_by_weight(
    g: Tensor,
    cotangent: Tensor,
    weight_shape: Shape,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    return _conv_by_weight(cotangent, g, weight_shape, stride, pads, dilation, groups)


def _weight_grad_by_cotangent(
    g: Tensor, x: Tensor, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    rest = _Attrs(stride, pads, dilation, groups)
    return apply(conv2d, x, g, **rest._asdict())


def _weight_grad_by_x(
    g: Tensor,
    cotangent: Tensor,
    x_shape: Shape,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    return _conv_by_x(cotangent, g, x_shape, stride, pads, dilation, groups)


def _conv_samples() -> Iterable[Sample]:
    yield Sample((normal(2, 3, 6, 7), normal(4, 3, 3, 3), normal(4)), {"padding": 1})
    yield Sample((normal(2, 3, 5, 5), normal(4, 3, 3, 3)), label="no bias")
    yield Sample(
        (normal(1, 2, 8, 9), normal(4, 2, 3, 2)), {"stride": (2, 3), "padding": (1, 0)}, "stride"
    )
    yield Sample((normal(1, 2, 8, 8), normal(2, 2, 3, 3)), {"dilation": (2, 1)}, label="dilation")
    yield Sample((normal(2, 4, 5, 5), normal(6, 2, 3, 3)), {"groups": 2}, label="groups")
    yield Sample((normal(2, 3, 5, 5), normal(6, 1, 3, 3)), {"groups": 3}, label="depthwise")
    yield Sample((normal(2, 5, 4, 4), normal(3, 5, 1, 1)), label="1×1")
    yield Sample((normal(1, 1, 1, 1), normal(1, 1, 3, 3)), {"padding": 1}, label="one pixel")
    # Weights as small as initialisation makes them: the sums of 153 terms then stay near 1.
    small = normal(2, 17, 3, 3) / 12
    yield Sample((normal(1, 17, 4, 4), small), {"padding": "same"}, label="same")
    yield Sample((normal(1, 2, 9, 9), normal(2, 2, 2, 2)), {"stride": 4}, label="stride > kernel")
    yield Sample((normal(0, 2, 4, 4), normal(3, 2, 3, 3)), label="empty batch")
    yield Sample((normal(2, 5, 5), normal(3, 2, 3, 3)), label="no batch")
    yield bad(ShapeError, "takes 2 channels", normal(1, 3, 4, 4), normal(2, 2, 3, 3))
    yield bad(ShapeError, "larger than the height", normal(1, 1, 2, 5), normal(1, 1, 3, 3))
    yield bad(ShapeError, r"\[N, C, H, W\]", normal(4, 4), normal(1, 1, 3, 3))
    yield bad(ShapeError, "out_channels", normal(1, 1, 4, 4), normal(1, 3, 3))
    yield bad(ShapeError, "3 groups", normal(1, 3, 4, 4), normal(4, 1, 3, 3), groups=3)
    yield bad(ShapeError, "no taps", normal(1, 1, 4, 4), normal(1, 1, 0, 3))
    yield bad(ShapeError, "bias", normal(1, 1, 4, 4), normal(2, 1, 3, 3), normal(3))
    yield bad(ArgumentError, "at least 1", normal(1, 1, 4, 4), normal(1, 1, 3, 3), stride=0)
    yield bad(
        ArgumentError, "'same'", normal(1, 1, 4, 4), normal(1, 1, 3, 3), padding="same", stride=2
    )


@op(
    kind=Kind.CONTRACTION,
    infer=_infer_conv,
    reference=widened(convolve),
    decompose=conv2d_by_parts,
    vjp={"x": _conv_by_x, "weight": _conv_by_weight},
    samples=_conv_samples,
    flops=_products,
    is_method=False,
    peer="nn.functional.conv2d",
)
def conv2d(
    x: TensorLike,
    weight: TensorLike,
    bias: TensorLike | None = None,
    stride: PairLike = 1,
    padding: PairLike | str = 0,
    dilation: PairLike = 1,
    groups: int = 1,
) -> Tensor:
    """Convolution (cross-correlation) of images with kernels.

    ``out[n, o, i, j] = bias[o] + Σ x[n, c, i·s + a·d − p, j·s + b·d − p] · weight[o, c, a, b]``,
    the sum over input channels c and places (a, b) in the kernel.

    Args:
        x: [N, C, H, W] or [C, H, W].
        weight: [out_channels, C/groups, kh, kw].
        bias: [out_channels], or None.
        stride: from one place of the kernel to the next, down and across.
        padding: zeros around the image: a number, (down, across), "valid" for none, or "same" for a
            result of the image's size (with stride 1).
        dilation: distance of neighbouring taps.
        groups: the channels are divided into so many groups, which do not mix.

    Returns:
        [N, out_channels, rows, columns].

    Raises:
        ShapeError: channels that do not fit, or an image smaller than the kernel.
        ArgumentError: a stride, dilation or number of groups below 1.

    Example:
        >>> ndl.conv2d(ndl.ones((1, 1, 3, 3)), ndl.ones((1, 1, 2, 2))).tolist()
        [[[[4.0, 4.0], [4.0, 4.0]]]]
    """
    image, kernel = operands(conv2d, x, weight)
    if kernel.ndim != 4:
        raise ShapeError(
            "conv2d: the weight must be [out_channels, in_channels/groups, kh, kw], got shape "
            f"{list(kernel.shape)}"
        )
    if image.ndim not in (3, 4):
        raise ShapeError(
            f"conv2d: the input must be [N, C, H, W] or [C, H, W], got shape {list(image.shape)}"
        )
    single = image.ndim == 3
    if single:
        image = reshape(image, (1, *image.shape))
    step = as_pair(stride, "conv2d: stride", minimum=1)
    gap = as_pair(dilation, "conv2d: dilation", minimum=1)
    result: Tensor = apply(
        conv2d,
        image,
        kernel,
        stride=step,
        pads=_pads(padding, (kernel.shape[2], kernel.shape[3]), step, gap),
        dilation=gap,
        groups=as_groups(groups, "conv2d"),
    )
    result = with_bias(result, bias, "conv2d")
    return reshape(result, result.shape[1:]) if single else result


def with_bias(result: Tensor, bias: TensorLike | None, name: str) -> Tensor:
    """Add one number to each channel of [N, C, H, W]."""
    if bias is None:
        return result
    _, b = promoted(result, *operands(conv2d, bias))
    if b.shape != (result.shape[1],):
        raise ShapeError(
            f"{name}: the bias must be [{result.shape[1]}] (out_channels), got shape "
            f"{list(b.shape)}"
        )
    return result + reshape(b, (1, b.shape[0], 1, 1))


def as_groups(groups: int, name: str) -> int:
    """Return the number of groups as an int of at least 1."""
    count = as_index(groups, f"{name}: groups")
    if count < 1:
        raise ArgumentError(f"{name}: groups must be at least 1, got {count}")
    return count


def _pads(padding: Any, kernel: Pair, stride: Pair, dilation: Pair) -> Pads:
    if padding == "valid":
        return (0, 0), (0, 0)
    if padding == "same":
        if stride != (1, 1):
            raise ArgumentError(f"conv2d: padding 'same' needs stride 1, got {stride}")
        down, across = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (down // 2, down - down // 2), (across // 2, across - across // 2)
    if isinstance(padding, str):
        raise ArgumentError(f"conv2d: padding must be numbers, 'same' or 'valid', got {padding!r}")
    down, across = as_pair(padding, "conv2d: padding")
    return (down, down), (across, across)


def _grad_samples(first: Shape, second: Shape, third: Pair) -> Any:
    def draw() -> Iterable[Sample]:
        yield Sample((normal(*first), normal(*second), third, (2, 1), ((1, 0), (1, 1))))
        yield bad(ShapeError, "gives", normal(*first), normal(*second), third)

    return draw


@op(
    kind=Kind.CONTRACTION,
    infer=_infer_input_grad,
    reference=widened(convolve_input_grad),
    decompose=conv2d_input_grad_by_parts,
    vjp={"cotangent": _input_grad_by_cotangent, "weight": _input_grad_by_weight},
    samples=_grad_samples((2, 4, 3, 5), (4, 3, 2, 3), (5, 5)),
    flops=_products,
    is_method=False,
)
def conv2d_input_grad(
    cotangent: TensorLike,
    weight: TensorLike,
    size: Pair,
    stride: PairLike = 1,
    pads: Pads = ((0, 0), (0, 0)),
    dilation: PairLike = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient of `conv2d` with respect to its input.

    Args:
        cotangent: [N, out_channels, rows, columns], of the convolution's result.
        weight: [out_channels, C/groups, kh, kw].
        size: height and width of the input.
        stride: of the convolution.
        pads: zeros around the input: (above, below), (left, right).
        dilation: of the convolution.
        groups: of the convolution.

    Returns:
        [N, C, height, width].

    Raises:
        ShapeError: no such convolution gives the shape of ``cotangent``.

    Example:
        >>> ndl.conv2d_input_grad(ndl.ones((1, 1, 1, 1)), ndl.ones((1, 1, 2, 2)), (2, 2)).tolist()
        [[[[1.0, 1.0], [1.0, 1.0]]]]
    """
    g, kernel = promoted(cotangent, weight)
    return apply(
        conv2d_input_grad,
        g,
        kernel,
        size=as_pair(size, "conv2d_input_grad: size"),
        stride=as_pair(stride, "conv2d_input_grad: stride", minimum=1),
        pads=pads,
        dilation=as_pair(dilation, "conv2d_input_grad: dilation", minimum=1),
        groups=as_groups(groups, "conv2d_input_grad"),
    )


@op(
    kind=Kind.CONTRACTION,
    infer=_infer_weight_grad,
    reference=widened(convolve_weight_grad),
    decompose=conv2d_weight_grad_by_parts,
    vjp={"cotangent": _weight_grad_by_cotangent, "x": _weight_grad_by_x},
    samples=_grad_samples((2, 4, 3, 5), (2, 3, 5, 5), (2, 3)),
    flops=_products,
    is_method=False,
)
def conv2d_weight_grad(
    cotangent: TensorLike,
    x: TensorLike,
    kernel: Pair,
    stride: PairLike = 1,
    pads: Pads = ((0, 0), (0, 0)),
    dilation: PairLike = 1,
    groups: int = 1,
) -> Tensor:
    """Gradient of `conv2d` with respect to its weight.

    Args:
        cotangent: [N, out_channels, rows, columns], of the convolution's result.
        x: [N, C, H, W].
        kernel: height and width of the kernel.
        stride: of the convolution.
        pads: zeros around the input: (above, below), (left, right).
        dilation: of the convolution.
        groups: of the convolution.

    Returns:
        [out_channels, C/groups, kh, kw].

    Raises:
        ShapeError: no such convolution gives the shape of ``cotangent``.

    Example:
        >>> ndl.conv2d_weight_grad(ndl.ones((1, 1, 1, 1)), ndl.ones((1, 1, 2, 2)), (2, 2)).shape
        (1, 1, 2, 2)
    """
    g, image = promoted(cotangent, x)
    return apply(
        conv2d_weight_grad,
        g,
        image,
        kernel=as_pair(kernel, "conv2d_weight_grad: kernel", minimum=1),
        stride=as_pair(stride, "conv2d_weight_grad: stride", minimum=1),
        pads=pads,
        dilation=as_pair(dilation, "conv2d_weight_grad: dilation", minimum=1),
        groups=as_groups(groups, "conv2d_weight_grad"),
    )


__all__ = ["conv2d", "conv2d_input_grad", "conv2d_weight_grad"]
