"""MobileNetV2."""

from __future__ import annotations

from needle import nn
from needle.errors import ArgumentError
from needle.ops.arithmetic import clip
from needle.tensor import Tensor

#: Table 2 of the paper: expansion, channels, blocks, stride of the first of them.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _channels(count: float) -> int:
    """Round to a multiple of 8, at least 8, and not down by more than a tenth."""
    rounded = max(8, int(count + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * count else rounded


class ConvNormReLU6(nn.Module):
    """A convolution, batch norm and ``min(max(x, 0), 6)``.

    Args:
        inside: channels that come in.
        outside: channels that go out.
        kernel: height and width of the kernel; the padding keeps the image's size at stride 1.
        stride: of the convolution.
        groups: of the convolution; as many as channels for a depthwise one.
    """

    def __init__(
        self, inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inside, outside, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inside, h, w] to [batch, outside, h/stride, w/stride]."""
        return clip(self.norm(self.conv(x)), 0.0, 6.0)


class InvertedResidual(nn.Module):
    """1×1 convolution to more channels, depthwise 3×3, and 1×1 back without activation.

    The narrow ends are connected where their shapes are equal.

    Args:
        inside: channels that come in.
        outside: channels that go out.
        stride: of the depthwise convolution.
        expansion: how many times as many channels there are inside; 1 leaves the first
            convolution out.
    """

    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = inside * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [ConvNormReLU6(inside, width)]
        layers += [
            ConvNormReLU6(width, width, 3, stride, groups=width),
            nn.Conv2d(width, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        ]
        self.layers = nn.Sequential(*layers)
        self.is_connected = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inside, h, w] to [batch, outside, h/stride, w/stride]."""
        y = self.layers(x)
        return x + y if self.is_connected else y


class MobileNetV2(nn.Module):
    """MobileNetV2: 3,504,872 parameters for 1,000 classes.

    Source: M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L. Chen, "MobileNetV2: Inverted Residuals
    and Linear Bottlenecks", 2018.

    Args:
        classes: number of outputs.
        width: multiplies the numbers of channels, which are rounded to multiples of 8.
        dropout: probability of dropping a unit before the linear layer.
        small_images: strides of 1 in the stem and the second stage, for images of 32×32.

    Raises:
        ArgumentError: a width that is not positive.

    Example:
        >>> model = ndl.models.MobileNetV2(10, width=0.25, small_images=True).eval()
        >>> model(ndl.zeros((2, 3, 32, 32))).shape
        (2, 10)
    """

    def __init__(
        self,
        classes: int = 1000,
        width: float = 1.0,
        dropout: float = 0.2,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        if not width > 0:
            raise ArgumentError(f"MobileNetV2: width must be positive, got {width}")
        inside = _channels(32 * width)
        layers: list[nn.Module] = [ConvNormReLU6(3, inside, 3, 1 if small_images else 2)]
        for stage, (expansion, channels, blocks, stride) in enumerate(_STAGES):
            outside = _channels(channels * width)
            for block in range(blocks):
                keeps_size = block > 0 or (small_images and stage == 1)
                layers.append(
                    InvertedResidual(inside, outside, 1 if keeps_size else stride, expansion)
                )
                inside = outside
        # A narrower network keeps its last layer's width, as in the paper.
        last = _channels(1280 * max(1.0, width))
        layers.append(ConvNormReLU6(inside, last))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 3, height, width] to [batch, classes]."""
        return self.fc(self.dropout(self.features(x).mean(axis=(2, 3))))
