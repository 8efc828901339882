"""Residual networks for ImageNet's 224×224 images."""

from __future__ import annotations

from needle import nn
from needle.errors import ArgumentError
from needle.nn import functional as F
from needle.tensor import Tensor


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut, as in ResNet-18 and -34.

    Args:
        inside: channels that come in.
        width: channels of the convolutions, which go out.
        stride: of the first convolution.
        pre_activation: normalise and activate before each convolution (v2), not after.
    """

    expansion = 1

    def __init__(self, inside: int, width: int, stride: int, pre_activation: bool) -> None:
        super().__init__()
        self.pre_activation = pre_activation
        self.conv1 = nn.Conv2d(inside, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inside if pre_activation else width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(inside, width, stride, pre_activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inside, h, w] to [batch, width, h/stride, w/stride]."""
        if self.pre_activation:
            active = F.relu(self.norm1(x))
            y = self.conv2(F.relu(self.norm2(self.conv1(active))))
            return y + _pass(self.shortcut, x, active)
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions around a shortcut, as in ResNet-50 and deeper.

    The stride is the 3×3 convolution's, as frameworks have it.

    Args:
        inside: channels that come in.
        width: channels of the 3×3 convolution; four times as many go out.
        stride: of the 3×3 convolution.
        pre_activation: normalise and activate before each convolution (v2), not after.
    """

    expansion = 4

    def __init__(self, inside: int, width: int, stride: int, pre_activation: bool) -> None:
        super().__init__()
        outside = width * self.expansion
        self.pre_activation = pre_activation
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inside if pre_activation else width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(width if pre_activation else outside)
        self.shortcut = _shortcut(inside, outside, stride, pre_activation)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inside, h, w] to [batch, 4·width, h/stride, w/stride]."""
        if self.pre_activation:
            active = F.relu(self.norm1(x))
            y = self.conv2(F.relu(self.norm2(self.conv1(active))))
            y = self.conv3(F.relu(self.norm3(y)))
            return y + _pass(self.shortcut, x, active)
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.shortcut(x))


def _shortcut(inside: int, outside: int, stride: int, pre_activation: bool) -> nn.Module:
    if stride == 1 and inside == outside:
        return nn.Identity()
    projection = nn.Conv2d(inside, outside, 1, stride=stride, bias=False)
    return projection if pre_activation else nn.Sequential(projection, nn.BatchNorm2d(outside))


def _pass(shortcut: nn.Module, x: Tensor, active: Tensor) -> Tensor:
    """Where a pre-activation block projects, it projects what is already activated."""
    return x if isinstance(shortcut, nn.Identity) else shortcut(active)


_LAYOUTS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """Residual network for 224×224 images.

    Sources: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015;
    with ``pre_activation`` "Identity Mappings in Deep Residual Networks", 2016.

    Args:
        depth: 18, 34, 50, 101 or 152.
        classes: number of outputs.
        pre_activation: the form of the second paper (v2).
        small_images: a 3×3 stem without pooling, for images of 32×32.

    Raises:
        ArgumentError: another depth.

    Example:
        >>> model = ndl.models.ResNet(18, classes=10, small_images=True)
        >>> model(ndl.zeros((2, 3, 32, 32))).shape
        (2, 10)
    """

    def __init__(
        self,
        depth: int,
        classes: int = 1000,
        pre_activation: bool = False,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        if depth not in _LAYOUTS:
            raise ArgumentError(f"ResNet: depth must be one of {list(_LAYOUTS)}, got {depth}")
        block, counts = _LAYOUTS[depth]
        stem: list[nn.Module] = (
            [nn.Conv2d(3, 64, 3, padding=1, bias=False)]
            if small_images
            else [nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)]
        )
        if not pre_activation:
            stem += [nn.BatchNorm2d(64), nn.ReLU()]
        if not small_images:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        self.stem = nn.Sequential(*stem)
        stages: list[nn.Module] = []
        inside = 64
        for stage, count in enumerate(counts):
            blocks: list[nn.Module] = []
            for i in range(count):
                stride = 2 if stage and i == 0 else 1
                blocks.append(block(inside, 64 << stage, stride, pre_activation))
                inside = (64 << stage) * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(inside) if pre_activation else None
        self.fc = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 3, height, width] to [batch, classes]."""
        x = self.stages(self.stem(x))
        if self.norm is not None:
            x = F.relu(self.norm(x))
        return self.fc(x.mean(axis=(2, 3)))


def resnet18(
    classes: int = 1000, *, pre_activation: bool = False, small_images: bool = False
) -> ResNet:
    """Return ResNet-18: 11,689,512 parameters for 1,000 classes."""
    return ResNet(18, classes, pre_activation, small_images)


def resnet34(
    classes: int = 1000, *, pre_activation: bool = False, small_images: bool = False
) -> ResNet:
    """Return ResNet-34: 21,797,672 parameters for 1,000 classes."""
    return ResNet(34, classes, pre_activation, small_images)


def resnet50(
    classes: int = 1000, *, pre_activation: bool = False, small_images: bool = False
) -> ResNet:
    """Return ResNet-50: 25,557,032 parameters for 1,000 classes."""
    return ResNet(50, classes, pre_activation, small_images)


def resnet101(
    classes: int = 1000, *, pre_activation: bool = False, small_images: bool = False
) -> ResNet:
    """Return ResNet-101: 44,549,160 parameters for 1,000 classes."""
    return ResNet(101, classes, pre_activation, small_images)


def resnet152(
    classes: int = 1000, *, pre_activation: bool = False, small_images: bool = False
) -> ResNet:
    """Return ResNet-152: 60,192,808 parameters for 1,000 classes."""
    return ResNet(152, classes, pre_activation, small_images)
