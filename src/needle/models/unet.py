"""U-Net."""

from __future__ import annotations

from collections.abc import Callable

from needle import nn
from needle.errors import ArgumentError, ShapeError
from needle.nn import functional as F
from needle.ops.joining import concat
from needle.tensor import Tensor


class DoubleConv(nn.Module):
    """Two 3×3 convolutions, each with ReLU.

    Args:
        inside: channels that come in.
        outside: channels that go out.
        padding: of the convolutions.
        norm: makes the normalisation before each ReLU; none if not given.
    """

    def __init__(
        self, inside: int, outside: int, padding: int, norm: Callable[[int], nn.Module] | None
    ) -> None:
        super().__init__()
        has_bias = norm is None
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=padding, bias=has_bias)
        self.norm1 = nn.Identity() if norm is None else norm(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=padding, bias=has_bias)
        self.norm2 = nn.Identity() if norm is None else norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inside, h, w] to [batch, outside, h', w'], each side 4 less unpadded."""
        x = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """U-Net for segmentation: halves the image and doubles the channels, and all the way back.

    On the way up each level is joined with what the way down had there. As in the paper the
    convolutions are unpadded, so 572×572 pixels become 388×388, and what is joined is cropped;
    ``padded`` keeps the size. 31,030,658 parameters with the defaults.

    Source: O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation", 2015.

    Args:
        channels: of the images.
        classes: channels of the result: a score for each class at each pixel.
        width: channels of the first level.
        depth: how many times the image is halved.
        padded: whether the convolutions keep the size of the image.
        norm: makes a normalisation after each convolution, such as `nn.BatchNorm2d`; the paper has
            none. The convolutions then have no bias.
        dropout: probability of dropping a unit at the end of the way down.

    Raises:
        ArgumentError: a depth below 1.

    Example:
        >>> model = ndl.models.UNet(3, classes=4, width=8, depth=2, padded=True)
        >>> model(ndl.zeros((1, 3, 32, 48))).shape
        (1, 4, 32, 48)
    """

    def __init__(
        self,
        channels: int = 1,
        classes: int = 2,
        width: int = 64,
        depth: int = 4,
        padded: bool = False,
        norm: Callable[[int], nn.Module] | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ArgumentError(f"UNet: depth must be at least 1, got {depth}")
        widths = [width << level for level in range(depth + 1)]
        padding = int(padded)
        self.down = nn.ModuleList(
            DoubleConv(inside, outside, padding, norm)
            for inside, outside in zip([channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        upwards = widths[:-1][::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in upwards)
        self.merge = nn.ModuleList(DoubleConv(2 * w, w, padding, norm) for w in upwards)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, h, w] to [batch, classes, h', w'].

        Raises:
            ShapeError: the image cannot be halved at each level.
        """
        size = x.shape
        joined: list[Tensor] = []
        for level, convolutions in enumerate(self.down):
            if level:
                _check_even(x, size, level)
                joined.append(x)
                x = self.pool(x)
            x = convolutions(x)
        x = self.dropout(x)
        for up, convolutions in zip(self.up, self.merge, strict=True):
            x = up(x)
            x = convolutions(concat([_cropped(joined.pop(), x), x], axis=1))
        return self.head(x)


def _check_even(x: Tensor, size: tuple[int, ...], level: int) -> None:
    if any(extent < 2 or extent % 2 for extent in x.shape[2:]):
        raise ShapeError(
            f"images {list(size)} are {x.shape[2]} × {x.shape[3]} before they are halved for the "
            f"{level}. time, which must be even; pad or crop the images: with padded=True to "
            "multiples of 2 to the power of depth, without as in the paper, 572 × 572 for example"
        )


def _cropped(x: Tensor, like: Tensor) -> Tensor:
    """Return the middle of ``x``, of the height and width of ``like``."""
    height, width = like.shape[2:]
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]
