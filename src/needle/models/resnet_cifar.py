"""Residual networks for CIFAR's 32×32 images."""

from __future__ import annotations

from needle import nn
from needle.errors import ArgumentError
from needle.nn import functional as F
from needle.ops.slicing import pad
from needle.tensor import Tensor


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: every ``stride``-th pixel, and zeros for the new channels.

    Args:
        extra: how many channels to add.
        stride: distance of the pixels that are kept.
    """

    def __init__(self, extra: int, stride: int) -> None:
        super().__init__()
        self.extra, self.stride = extra, stride

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, h, w] to [batch, channels + extra, ⌈h/stride⌉, ⌈w/stride⌉]."""
        step = self.stride
        # As in the papers' option A, half of the zeros come before and half after the channels.
        before = self.extra // 2
        kept = x[:, :, ::step, ::step]
        return pad(kept, ((0, 0), (before, self.extra - before), (0, 0), (0, 0)))


class CifarBlock(nn.Module):
    """Two 3×3 convolutions around a shortcut.

    Args:
        inside: channels that come in.
        outside: channels that go out.
        stride: of the first convolution.
        pre_activation: normalise and activate before each convolution (v2), not after.
    """

    def __init__(self, inside: int, outside: int, stride: int, pre_activation: bool) -> None:
        super().__init__()
        self.pre_activation = pre_activation
        self.conv1 = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(inside if pre_activation else outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inside == outside
            else PaddedShortcut(outside - inside, stride)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inside, h, w] to [batch, outside, h/stride, w/stride]."""
        if self.pre_activation:
            y = self.conv1(F.relu(self.norm1(x)))
            y = self.conv2(F.relu(self.norm2(y)))
            return self.shortcut(x) + y
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(self.shortcut(x) + y)


class CifarResNet(nn.Module):
    """Residual network for 32×32 images: 16, 32 and 64 channels, shortcuts without parameters.

    Sources: K. He, X. Zhang, S. Ren, J. Sun, "Deep Residual Learning for Image Recognition", 2015,
    section 4.2; with ``pre_activation`` "Identity Mappings in Deep Residual Networks", 2016.

    Args:
        depth: number of layers, 6n + 2: 20, 32, 44, 56, 110 …
        classes: number of outputs.
        pre_activation: the form of the second paper (v2).

    Raises:
        ArgumentError: a depth that is not 6n + 2.

    Example:
        >>> model = ndl.models.CifarResNet(20)
        >>> sum(p.size for p in model.parameters())
        269722
    """

    def __init__(self, depth: int, classes: int = 10, pre_activation: bool = False) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ArgumentError(f"CifarResNet: depth must be 6n + 2 (20, 32, 44 …), got {depth}")
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        inside = 16
        for outside in (16, 32, 64):
            for i in range((depth - 2) // 6):
                stride = 2 if i == 0 and outside > 16 else 1
                blocks.append(CifarBlock(inside, outside, stride, pre_activation))
                inside = outside
        self.pre_activation = pre_activation
        self.norm = nn.BatchNorm2d(64 if pre_activation else 16)
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, 3, 32, 32] to [batch, classes]."""
        x = self.conv(x)
        if self.pre_activation:
            x = F.relu(self.norm(self.blocks(x)))
        else:
            x = self.blocks(F.relu(self.norm(x)))
        return self.fc(x.mean(axis=(2, 3)))


def resnet20(classes: int = 10, *, pre_activation: bool = False) -> CifarResNet:
    """Return the CIFAR ResNet of 20 layers: 0.27 M parameters."""
    return CifarResNet(20, classes, pre_activation)


def resnet32(classes: int = 10, *, pre_activation: bool = False) -> CifarResNet:
    """Return the CIFAR ResNet of 32 layers: 0.46 M parameters."""
    return CifarResNet(32, classes, pre_activation)


def resnet44(classes: int = 10, *, pre_activation: bool = False) -> CifarResNet:
    """Return the CIFAR ResNet of 44 layers: 0.66 M parameters."""
    return CifarResNet(44, classes, pre_activation)


def resnet56(classes: int = 10, *, pre_activation: bool = False) -> CifarResNet:
    """Return the CIFAR ResNet of 56 layers: 0.85 M parameters."""
    return CifarResNet(56, classes, pre_activation)


def resnet110(classes: int = 10, *, pre_activation: bool = False) -> CifarResNet:
    """Return the CIFAR ResNet of 110 layers: 1.7 M parameters."""
    return CifarResNet(110, classes, pre_activation)
