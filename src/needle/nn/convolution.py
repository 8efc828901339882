"""Convolution layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from needle.arrays import in_order
from needle.errors import ArgumentError, ShapeError
from needle.nn import init
from needle.nn.arguments import as_extent
from needle.nn.module import Module
from needle.nn.parameter import Parameter
from needle.nn.pooling import PairLike, show_pair
from needle.ops.convolution import conv2d
from needle.ops.engine import as_tensor
from needle.ops.transposed_convolution import conv_transpose2d
from needle.random import Generator
from needle.shapes import as_pair, expect_axis
from needle.tensor import Tensor, wrap


class _Conv2d(Module):
    """What convolution layers share: channels, kernel, and how it moves.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: height and width of the kernel.
        stride: from one place of the kernel to the next.
        padding: zeros around the image, or "same" or "valid".
        dilation: distance of neighbouring taps.
        groups: the channels are divided into so many groups, which do not mix.
        bias: whether there is a bias.
        dtype: dtype of the parameters.
        device: where they live.
        generator: what the weight is drawn from.
    """

    _is_transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PairLike,
        stride: PairLike,
        padding: PairLike | str,
        dilation: PairLike,
        groups: int,
        bias: bool,
        *,
        dtype: Any,
        device: Any,
        generator: Generator | None,
    ) -> None:
        name = type(self).__name__
        self.in_channels = as_extent(in_channels, f"{name}: in_channels")
        self.out_channels = as_extent(out_channels, f"{name}: out_channels")
        self.kernel_size = as_pair(kernel_size, f"{name}: kernel_size", minimum=1)
        self.stride = as_pair(stride, f"{name}: stride", minimum=1)
        self.padding: tuple[int, int] | str = (
            padding if isinstance(padding, str) else as_pair(padding, f"{name}: padding")
        )
        self.dilation = as_pair(dilation, f"{name}: dilation", minimum=1)
        self.groups = as_extent(groups, f"{name}: groups")
        for what, n in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if n % self.groups:
                raise ArgumentError(f"{name}: {n} {what} do not divide into {groups} groups")
        first, second = self.out_channels, self.in_channels
        if self._is_transposed:
            first, second = second, first
        shape = (first, second // self.groups, *self.kernel_size)
        layout = "conv_transpose" if self._is_transposed else "conv"
        weight = init.kaiming_uniform(
            shape, layout=layout, dtype=dtype, device=device, generator=generator
        )
        self.weight = Parameter(_as_read(weight))
        self.bias = (
            Parameter(init.zeros(self.out_channels, dtype=dtype, device=device)) if bias else None
        )

    def _image(self, x: Any) -> Tensor:
        """Return the input as a tensor of as many channels as the layer takes."""
        x = as_tensor(x)
        if x.ndim not in (3, 4):
            raise ShapeError(
                "expected [batch, in_channels, height, width] or [in_channels, height, width], "
                f"got shape {list(x.shape)}"
            )
        expect_axis(x.shape, x.ndim - 3, self.in_channels, "in_channels")
        return x

    def extra_repr(self) -> str:
        """Return channels, kernel and what is not as usual."""
        shown = [str(self.in_channels), str(self.out_channels)]
        shown.append(f"kernel_size={show_pair(self.kernel_size)}")
        for name, usual in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1))):
            value = getattr(self, name)
            if value != usual:
                text = repr(value) if isinstance(value, str) else show_pair(value)
                shown.append(f"{name}={text}")
        shown += [f"groups={self.groups}"] if self.groups != 1 else []
        shown += ["bias=False"] if self.bias is None else []
        return ", ".join(shown)


def _as_read(weight: Tensor) -> Tensor:
    """Return a weight that lies in memory as compiled kernels read it: [kh, kw, C, O].

    They would turn it round at each call otherwise. Its shape is as always.
    """
    array = weight._data
    is_real = array.__class__ is np.ndarray  # neither traced nor of the meta device
    return wrap(in_order(array, (2, 3, 1, 0))) if is_real else weight


class Conv2d(_Conv2d):
    """Convolution (cross-correlation) of images with kernels; see `needle.conv2d`.

    The weight is drawn uniformly in ``±√(6 / fan_in)`` (Kaiming, for a rectifier), with
    ``fan_in = in_channels / groups · kh · kw``; the bias is zero.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: height and width of the kernel.
        stride: from one place of the kernel to the next.
        padding: zeros around the image: a number, (down, across), "valid" for none, or "same" for a
            result of the image's size (with stride 1).
        dilation: distance of neighbouring taps.
        groups: the channels are divided into so many groups, which do not mix.
        bias: whether there is a bias.
        dtype: dtype of the parameters; float32 if not given.
        device: where they live.
        generator: what the weight is drawn from.

    Attributes:
        weight: [out_channels, in_channels / groups, kh, kw].
        bias: [out_channels], or None.

    Raises:
        ArgumentError: channels that do not divide into the groups; "same" with a stride.

    Example:
        >>> layer = ndl.nn.Conv2d(3, 8, 3, padding=1)
        >>> layer(ndl.ones((2, 3, 32, 32))).shape
        (2, 8, 32, 32)
        >>> layer(ndl.ones((2, 4, 32, 32)))
        Traceback (most recent call last):
        ...
        needle.errors.ShapeError: model: expected axis 1 3 (in_channels), got 4 in shape [2, ...]
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PairLike,
        stride: PairLike = 1,
        padding: PairLike | str = 0,
        dilation: PairLike = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ArgumentError(
                f"Conv2d: padding must be a number, two, 'same' or 'valid', got {padding!r}"
            )
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            dtype=dtype,
            device=device,
            generator=generator,
        )
        if padding == "same" and self.stride != (1, 1):
            raise ArgumentError(
                "Conv2d: padding='same' needs stride 1; give the padding as numbers"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: [batch, in_channels, height, width] or [in_channels, height, width].

        Returns:
            [batch, out_channels, rows, columns], without the batch if ``x`` has none.

        Raises:
            ShapeError: another number of axes or channels, or an image smaller than the kernel.
        """
        return conv2d(
            self._image(x),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )


class ConvTranspose2d(_Conv2d):
    """Transposed convolution: enlarges images; see `needle.conv_transpose2d`.

    The weight is drawn as that of `Conv2d`, with ``fan_in = in_channels · kh · kw``.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the result.
        kernel_size: height and width of the kernel.
        stride: the factor by which the image grows.
        padding: rows and columns removed around the result.
        output_padding: rows and columns added below and on the right.
        groups: the channels are divided into so many groups, which do not mix.
        bias: whether there is a bias.
        dilation: distance of neighbouring taps.
        dtype: dtype of the parameters; float32 if not given.
        device: where they live.
        generator: what the weight is drawn from.

    Attributes:
        weight: [in_channels, out_channels / groups, kh, kw].
        bias: [out_channels], or None.

    Raises:
        ArgumentError: channels that do not divide into the groups.

    Example:
        >>> ndl.nn.ConvTranspose2d(3, 8, 2, stride=2)(ndl.ones((2, 3, 16, 16))).shape
        (2, 8, 32, 32)
    """

    _is_transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: PairLike,
        stride: PairLike = 1,
        padding: PairLike = 0,
        output_padding: PairLike = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: PairLike = 1,
        *,
        dtype: Any = None,
        device: Any = None,
        generator: Generator | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            as_pair(padding, "ConvTranspose2d: padding"),
            dilation,
            groups,
            bias,
            dtype=dtype,
            device=device,
            generator=generator,
        )
        self.output_padding = as_pair(output_padding, "ConvTranspose2d: output_padding")

    def forward(self, x: Tensor) -> Tensor:
        """Convolve.

        Args:
            x: [batch, in_channels, height, width] or [in_channels, height, width].

        Returns:
            [batch, out_channels, rows, columns], without the batch if ``x`` has none.

        Raises:
            ShapeError: another number of axes or channels.
        """
        x = self._image(x)
        is_single = x.ndim == 3
        y = conv_transpose2d(
            x.expand_dims(0) if is_single else x,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]  # numbers, as the constructor saw to
            self.output_padding,
            self.groups,
            self.dilation,
        )
        return y.squeeze(0) if is_single else y

    def extra_repr(self) -> str:
        """Return channels, kernel and what is not as usual."""
        more = self.output_padding
        return super().extra_repr() + (
            f", output_padding={show_pair(more)}" if more != (0, 0) else ""
        )
