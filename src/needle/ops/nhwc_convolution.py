"""Convolution of images whose channels come last, and its two gradients: what kernels compute.

A pixel's channels are neighbours in memory, and so are the output channels of a weight. So a tap of
the kernel is a matrix product of rows of pixels with the weights of that tap, and whatever comes
after it reads and writes whole vectors. `needle.ops.convolution` defines the same for [N, C, H, W];
when compiled, that is written with these three, and the transpositions around them cancel from one
layer to the next (`needle.compiler.passes.lay_out`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from needle.dtypes import DType, is_float
from needle.errors import DTypeError, ShapeError
from needle.ops.convolution_form import Convolution
from needle.ops.elementwise import TensorLike, widened
from needle.ops.engine import apply, promoted
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.ops.unfolding import (
    Pads,
    Pair,
    Window,
    convolve,
    convolve_input_grad,
    convolve_weight_grad,
)
from needle.shapes import Shape, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor

#: From [N, C, H, W] to [N, H, W, C] and from [O, C, kh, kw] to [kh, kw, C, O]; and back.
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
TO_HWIO, TO_OIHW = (2, 3, 1, 0), (3, 2, 0, 1)

_NO_PADS = ((0, 0), (0, 0))


class Sliding(NamedTuple):
    """How a kernel moves over images: the attributes that all three forms share."""

    stride: Pair
    pads: Pads
    dilation: Pair
    groups: int


def _counts(name: str, x: Shape, weight: Shape, sliding: Sliding) -> Shape:
    """Return the shape of the result of a convolution, whose operands are checked.

    Args:
        name: of the op, for the errors.
        x: shape of the images, [N, H, W, C].
        weight: shape of the weight, [kh, kw, C/groups, O].
        sliding: how the kernel moves.
    """
    if len(x) != 4 or len(weight) != 4:
        raise ShapeError(
            f"{name}: images must be [N, H, W, C] and weights [kh, kw, C/groups, out_channels], "
            f"got shapes {list(x)} and {list(weight)}"
        )
    groups = sliding.groups
    if x[3] != weight[2] * groups:
        each = f" in each of {groups} groups" if groups > 1 else ""
        raise ShapeError(
            f"{name}: the weight {list(weight)} [kh, kw, C/groups, out_channels] takes {weight[2]} "
            f"channels{each}, the images {list(x)} [N, H, W, C] have {x[3]}"
        )
    if 0 in weight[:2]:
        raise ShapeError(f"{name}: a kernel of {weight[0]}×{weight[1]} has no taps")
    if weight[3] % groups:
        raise ShapeError(f"{name}: {weight[3]} out_channels do not divide into {groups} groups")
    window = Window((weight[0], weight[1]), *sliding)
    return (x[0], *window.counts((x[1], x[2]), name), weight[3])


def _check_cotangent(name: str, g: Spec, expected: Shape) -> None:
    if g.shape != expected:
        raise ShapeError(
            f"{name}: such a convolution gives {list(expected)} [N, rows, columns, out_channels], "
            f"but the cotangent has shape {list(g.shape)}"
        )


def _check_dtype(name: str, dtype: DType) -> None:
    if not is_float(dtype):
        raise DTypeError(f"{name}: needs a floating dtype, got {dtype.name}; use conv2d")


def _infer(x: Spec, weight: Spec, *, stride: Pair, pads: Pads, dilation: Pair, groups: int) -> Spec:
    _check_dtype("conv2d_nhwc", x.dtype)
    sliding = Sliding(stride, pads, dilation, groups)
    return Spec(_counts("conv2d_nhwc", x.shape, weight.shape, sliding), x.dtype)


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
    name = "conv2d_nhwc_input_grad"
    _check_dtype(name, cotangent.dtype)
    depth = weight.shape[2] if len(weight.shape) == 4 else 0
    shape = (*cotangent.shape[:1], *size, depth * groups)
    sliding = Sliding(stride, pads, dilation, groups)
    _check_cotangent(name, cotangent, _counts(name, shape, weight.shape, sliding))
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
    name = "conv2d_nhwc_weight_grad"
    _check_dtype(name, cotangent.dtype)
    channels = x.shape[-1] if x.shape else 0
    if channels % groups:
        raise ShapeError(f"{name}: {channels} in_channels do not divide into {groups} groups")
    shape = (*kernel, channels // groups, *cotangent.shape[-1:])
    sliding = Sliding(stride, pads, dilation, groups)
    _check_cotangent(name, cotangent, _counts(name, x.shape, shape, sliding))
    return Spec(shape, cotangent.dtype)


def _transposed(x: Array, axes: Shape) -> Array:
    return np.ascontiguousarray(x.transpose(axes))


def convolve_nhwc(x: Array, weight: Array, **attrs: Any) -> Array:
    """Return what `conv2d_nhwc` does, of arrays."""
    result = convolve(_transposed(x, TO_NCHW), _transposed(weight, TO_OIHW), **attrs)
    return _transposed(result, TO_NHWC)


def _convolve_input_grad(g: Array, weight: Array, **attrs: Any) -> Array:
    result = convolve_input_grad(_transposed(g, TO_NCHW), _transposed(weight, TO_OIHW), **attrs)
    return _transposed(result, TO_NHWC)


def _convolve_weight_grad(g: Array, x: Array, **attrs: Any) -> Array:
    result = convolve_weight_grad(_transposed(g, TO_NCHW), _transposed(x, TO_NCHW), **attrs)
    return _transposed(result, TO_HWIO)


def _products(first: Spec, second: Spec, out: Spec, **attrs: Any) -> int:
    """Every pixel of the convolution's result meets the weights of its channel once."""
    if "size" in attrs:
        pixels, weight = first, second
    elif "kernel" in attrs:
        pixels, weight = first, out
    else:
        pixels, weight = out, second
    return 2 * pixels.size * weight.size // weight.shape[3]


def _by_x(
    g: Tensor, weight: Tensor, x_shape: Shape, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    return conv2d_nhwc_input_grad(
        g, weight, (x_shape[1], x_shape[2]), stride, pads, dilation, groups
    )


def _by_weight(
    g: Tensor, x: Tensor, weight_shape: Shape, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    return conv2d_nhwc_weight_grad(
        g, x, (weight_shape[0], weight_shape[1]), stride, pads, dilation, groups
    )


def _samples() -> Iterable[Sample]:
    yield Sample((normal(2, 6, 7, 3), normal(3, 3, 3, 4), (1, 1), ((1, 1), (1, 1))))
    yield Sample((normal(1, 8, 9, 2), normal(3, 2, 2, 4), (2, 3), ((1, 0), (0, 2))), label="stride")
    yield Sample((normal(1, 8, 8, 2), normal(3, 3, 2, 2), (1, 1), _NO_PADS, (2, 1)), label="gaps")
    yield Sample(
        (normal(2, 5, 5, 4), normal(3, 3, 2, 6), (1, 1), _NO_PADS, (1, 1), 2), label="groups"
    )
    yield Sample(
        (normal(2, 5, 5, 3), normal(3, 3, 1, 6), (1, 1), _NO_PADS, (1, 1), 3), label="depthwise"
    )
    yield Sample((normal(2, 4, 4, 5), normal(1, 1, 5, 3)), label="1×1")
    # Weights as small as initialisation makes them: the sums of 153 terms then stay near 1.
    small = normal(3, 3, 17, 2) / 12
    yield Sample((normal(1, 1, 1, 17), small, (1, 1), ((1, 1), (1, 1))), label="one pixel")
    yield Sample((normal(1, 9, 9, 2), normal(2, 2, 2, 2), (4, 4)), label="stride > kernel")
    yield Sample((normal(0, 4, 4, 2), normal(3, 3, 2, 3)), label="empty batch")
    yield bad(ShapeError, "takes 2 channels", normal(1, 4, 4, 3), normal(3, 3, 2, 2))
    yield bad(ShapeError, "larger than the height", normal(1, 2, 5, 1), normal(3, 3, 1, 1))
    yield bad(ShapeError, r"\[N, H, W, C\]", normal(4, 4), normal(1, 1, 3, 3))
    yield bad(DTypeError, "floating", integers(0, 5, 1, 4, 4, 1), integers(0, 5, 3, 3, 1, 1))
    yield bad(ShapeError, "no taps", normal(1, 4, 4, 1), normal(0, 3, 1, 1))
    yield bad(
        ShapeError,
        "3 groups",
        normal(1, 4, 4, 3),
        normal(3, 3, 1, 4),
        (1, 1),
        _NO_PADS,
        (1, 1),
        3,
    )


@op(
    kind=Kind.CONTRACTION,
    infer=_infer,
    reference=widened(convolve_nhwc),
    lower=Convolution("forward"),
    vjp={"x": _by_x, "weight": _by_weight},
    samples=_samples,
    flops=_products,
    is_method=False,
)
def conv2d_nhwc(
    x: TensorLike,
    weight: TensorLike,
    stride: Pair = (1, 1),
    pads: Pads = _NO_PADS,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Convolution of images whose channels come last: see `conv2d`.

    ``out[n, i, j, o] = Σ x[n, i·s + a·d − p, j·s + b·d − p, c] · weight[a, b, c, o]``

    Args:
        x: [N, H, W, C].
        weight: [kh, kw, C/groups, out_channels].
        stride: from one place of the kernel to the next, down and across.
        pads: zeros around the images: (above, below), (left, right); negative ones cut off.
        dilation: distance of neighbouring taps.
        groups: the channels are divided into so many groups, which do not mix.

    Returns:
        [N, rows, columns, out_channels].

    Raises:
        DTypeError: the operands are not floating.
        ShapeError: channels that do not fit, or images smaller than the kernel.

    Example:
        >>> ndl.conv2d_nhwc(ndl.ones((1, 2, 3, 1)), ndl.ones((2, 2, 1, 1))).tolist()
        [[[[4.0], [4.0]]]]
    """
    image, kernel = promoted(x, weight)
    return apply(conv2d_nhwc, image, kernel, **Sliding(stride, pads, dilation, groups)._asdict())


def _input_grad_by_cotangent(
    g: Tensor, weight: Tensor, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    return conv2d_nhwc(g, weight, stride, pads, dilation, groups)


def _input_grad_by_weight(
    g: Tensor,
    cotangent: Tensor,
    weight_shape: Shape,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    return _by_weight(cotangent, g, weight_shape, stride, pads, dilation, groups)


def _input_grad_samples() -> Iterable[Sample]:
    g, weight = normal(2, 3, 5, 4), normal(2, 3, 3, 4)
    yield Sample((g, weight, (5, 5), (2, 1), ((1, 0), (1, 1))))
    yield Sample((normal(1, 3, 3, 4), normal(3, 3, 2, 4), (5, 5), (1, 1), _NO_PADS, (1, 1), 2))
    yield bad(ShapeError, "gives", g, weight, (5, 5))


@op(
    kind=Kind.CONTRACTION,
    infer=_infer_input_grad,
    reference=widened(_convolve_input_grad),
    lower=Convolution("input_grad"),
    vjp={"cotangent": _input_grad_by_cotangent, "weight": _input_grad_by_weight},
    samples=_input_grad_samples,
    flops=_products,
    is_method=False,
)
def conv2d_nhwc_input_grad(
    cotangent: TensorLike,
    weight: TensorLike,
    size: Pair,
    stride: Pair = (1, 1),
    pads: Pads = _NO_PADS,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Gradient of `conv2d_nhwc` with respect to its input.

    Args:
        cotangent: [N, rows, columns, out_channels], of the convolution's result.
        weight: [kh, kw, C/groups, out_channels].
        size: height and width of the input.
        stride: of the convolution.
        pads: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.

    Returns:
        [N, height, width, C].

    Raises:
        DTypeError: the operands are not floating.
        ShapeError: no such convolution gives the shape of ``cotangent``.

    Example:
        >>> g, weight = ndl.ones((1, 1, 1, 1)), ndl.ones((2, 2, 1, 1))
        >>> ndl.conv2d_nhwc_input_grad(g, weight, (2, 2)).shape
        (1, 2, 2, 1)
    """
    g, kernel = promoted(cotangent, weight)
    sliding = Sliding(stride, pads, dilation, groups)
    return apply(conv2d_nhwc_input_grad, g, kernel, size=size, **sliding._asdict())


def _weight_grad_by_cotangent(
    g: Tensor, x: Tensor, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> Tensor:
    return conv2d_nhwc(x, g, stride, pads, dilation, groups)


def _weight_grad_by_x(
    g: Tensor,
    cotangent: Tensor,
    x_shape: Shape,
    stride: Pair,
    pads: Pads,
    dilation: Pair,
    groups: int,
) -> Tensor:
    return _by_x(cotangent, g, x_shape, stride, pads, dilation, groups)


def _weight_grad_samples() -> Iterable[Sample]:
    g, x = normal(2, 3, 5, 4), normal(2, 5, 5, 3)
    yield Sample((g, x, (2, 3), (2, 1), ((1, 0), (1, 1))))
    yield Sample((normal(1, 3, 3, 4), normal(1, 5, 5, 4), (3, 3), (1, 1), _NO_PADS, (1, 1), 2))
    yield bad(ShapeError, "gives", g, x, (2, 3))
    yield bad(ShapeError, "2 groups", g, x, (2, 3), (2, 1), _NO_PADS, (1, 1), 2)


@op(
    kind=Kind.CONTRACTION,
    infer=_infer_weight_grad,
    reference=widened(_convolve_weight_grad),
    lower=Convolution("weight_grad"),
    vjp={"cotangent": _weight_grad_by_cotangent, "x": _weight_grad_by_x},
    samples=_weight_grad_samples,
    flops=_products,
    is_method=False,
)
def conv2d_nhwc_weight_grad(
    cotangent: TensorLike,
    x: TensorLike,
    kernel: Pair,
    stride: Pair = (1, 1),
    pads: Pads = _NO_PADS,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Gradient of `conv2d_nhwc` with respect to its weight.

    Args:
        cotangent: [N, rows, columns, out_channels], of the convolution's result.
        x: [N, H, W, C].
        kernel: height and width of the kernel.
        stride: of the convolution.
        pads: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.

    Returns:
        [kh, kw, C/groups, out_channels].

    Raises:
        DTypeError: the operands are not floating.
        ShapeError: no such convolution gives the shape of ``cotangent``.

    Example:
        >>> g, x = ndl.ones((1, 1, 1, 1)), ndl.ones((1, 2, 2, 3))
        >>> ndl.conv2d_nhwc_weight_grad(g, x, (2, 2)).shape
        (2, 2, 3, 1)
    """
    g, image = promoted(cotangent, x)
    sliding = Sliding(stride, pads, dilation, groups)
    return apply(conv2d_nhwc_weight_grad, g, image, kernel=kernel, **sliding._asdict())


__all__ = ["conv2d_nhwc", "conv2d_nhwc_input_grad", "conv2d_nhwc_weight_grad"]
