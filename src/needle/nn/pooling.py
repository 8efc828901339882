"""Pooling layers; what they compute stands with the functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle.errors import ArgumentError
from needle.nn.module import Module
from needle.ops.pooling import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    avg_pool2d,
    max_pool2d,
)
from needle.shapes import as_pair
from needle.tensor import Tensor

Pair = tuple[int, int]
PairLike = int | Sequence[int]


class _Pool2d(Module):
    """What pooling layers with a window share: how it moves.

    Args:
        kernel_size: height and width of the window.
        stride: from one window to the next; the window's size if not given.
        padding: added around the image; at most half of the window.
        ceil_mode: whether a last window may begin inside of the image and end outside.
    """

    def __init__(
        self,
        kernel_size: PairLike,
        stride: PairLike | None = None,
        padding: PairLike = 0,
        ceil_mode: bool = False,
    ) -> None:
        name = type(self).__name__
        self.kernel_size = as_pair(kernel_size, f"{name}: kernel_size", minimum=1)
        self.stride = (
            self.kernel_size if stride is None else as_pair(stride, f"{name}: stride", minimum=1)
        )
        self.padding = as_pair(padding, f"{name}: padding")
        if any(2 * p > k for p, k in zip(self.padding, self.kernel_size, strict=True)):
            raise ArgumentError(
                f"{name}: padding must be at most half of kernel_size {self.kernel_size}, "
                f"got {self.padding}; else windows would see nothing but padding"
            )
        self.ceil_mode = ceil_mode

    def extra_repr(self) -> str:
        """Return the window and what is not as usual."""
        shown = [f"kernel_size={show_pair(self.kernel_size)}"]
        shown += [f"stride={show_pair(self.stride)}"] if self.stride != self.kernel_size else []
        shown += [f"padding={show_pair(self.padding)}"] if self.padding != (0, 0) else []
        shown += ["ceil_mode=True"] if self.ceil_mode else []
        return ", ".join(shown)


class MaxPool2d(_Pool2d):
    """Largest element of each window of an image; see `needle.max_pool2d`.

    Args:
        kernel_size: height and width of the window.
        stride: from one window to the next; the window's size if not given.
        padding: −∞ around the image; at most half of the window.
        dilation: distance of neighbouring elements of the window.
        ceil_mode: whether a last window may begin inside of the image and end outside.

    Raises:
        ArgumentError: a size or stride below 1, or too much padding.

    Example:
        >>> ndl.nn.MaxPool2d(2)(ndl.ones((1, 3, 8, 8))).shape
        (1, 3, 4, 4)
    """

    def __init__(
        self,
        kernel_size: PairLike,
        stride: PairLike | None = None,
        padding: PairLike = 0,
        dilation: PairLike = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.dilation = as_pair(dilation, "MaxPool2d: dilation", minimum=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pool.

        Args:
            x: [batch, channels, height, width] or [channels, height, width].

        Raises:
            ShapeError: another number of axes, or an image smaller than the window.
        """
        return max_pool2d(
            x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
        )

    def extra_repr(self) -> str:
        """Return the window and what is not as usual."""
        dilation = f", dilation={show_pair(self.dilation)}" if self.dilation != (1, 1) else ""
        return super().extra_repr() + dilation


class AvgPool2d(_Pool2d):
    """Mean of each window of an image; see `needle.avg_pool2d`.

    Args:
        kernel_size: height and width of the window.
        stride: from one window to the next; the window's size if not given.
        padding: zeros around the image; at most half of the window.
        ceil_mode: whether a last window may begin inside of the image and end outside.
        count_include_pad: whether the zeros count for the mean.

    Raises:
        ArgumentError: a size or stride below 1, or too much padding.

    Example:
        >>> ndl.nn.AvgPool2d(2)(ndl.ones((1, 3, 8, 8))).shape
        (1, 3, 4, 4)
    """

    def __init__(
        self,
        kernel_size: PairLike,
        stride: PairLike | None = None,
        padding: PairLike = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, ceil_mode)
        self.count_include_pad = count_include_pad

    def forward(self, x: Tensor) -> Tensor:
        """Pool.

        Args:
            x: [batch, channels, height, width] or [channels, height, width].

        Raises:
            ShapeError: another number of axes, or an image smaller than the window.
        """
        return avg_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            self.ceil_mode,
            self.count_include_pad,
        )

    def extra_repr(self) -> str:
        """Return the window and what is not as usual."""
        return super().extra_repr() + (
            "" if self.count_include_pad else ", count_include_pad=False"
        )


class _AdaptivePool2d(Module):
    """What adaptive pooling layers share.

    Args:
        output_size: rows and columns of the result; None keeps the image's.
    """

    def __init__(self, output_size: Any) -> None:
        sizes = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size,) * 2
        given = tuple(1 if n is None else n for n in sizes)
        as_pair(given, f"{type(self).__name__}: output_size", minimum=1)
        self.output_size = sizes

    def extra_repr(self) -> str:
        """Return the size."""
        return f"output_size={show_pair(self.output_size)}"


class AdaptiveAvgPool2d(_AdaptivePool2d):
    """Mean over as many windows as asked for; see `needle.adaptive_avg_pool2d`.

    Args:
        output_size: rows and columns of the result; None keeps the image's.

    Example:
        >>> ndl.nn.AdaptiveAvgPool2d(1)(ndl.ones((2, 3, 7, 9))).shape
        (2, 3, 1, 1)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool.

        Args:
            x: [batch, channels, height, width] or [channels, height, width].

        Raises:
            ShapeError: another number of axes.
        """
        return adaptive_avg_pool2d(x, self.output_size)


class AdaptiveMaxPool2d(_AdaptivePool2d):
    """Largest element of as many windows as asked for; see `needle.adaptive_max_pool2d`.

    Args:
        output_size: rows and columns of the result; None keeps the image's.

    Example:
        >>> ndl.nn.AdaptiveMaxPool2d((2, None))(ndl.ones((2, 3, 7, 9))).shape
        (2, 3, 2, 9)
    """

    def forward(self, x: Tensor) -> Tensor:
        """Pool.

        Args:
            x: [batch, channels, height, width] or [channels, height, width].

        Raises:
            ShapeError: another number of axes.
        """
        return adaptive_max_pool2d(x, self.output_size)


def show_pair(pair: Sequence[Any]) -> str:
    """Return a pair as people write it: one number where both are equal."""
    return str(pair[0]) if pair[0] == pair[1] else f"({pair[0]}, {pair[1]})"
