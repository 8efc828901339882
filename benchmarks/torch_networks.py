"""The networks of `needle.models` that are measured, written with PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class CifarBlock(nn.Module):
    """Basic block of CIFAR ResNets, with the parameter-free shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.stride, self.extra = stride, outside - inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.extra:
            before = self.extra // 2
            kept = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(kept, (0, 0, 0, 0, before, self.extra - before))
        return F.relu(x + y)


def resnet20(classes: int) -> nn.Module:
    """Return `needle.models.resnet20`, with its parameters in the same order."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inside = 16
    for outside in (16, 32, 64):
        for i in range(3):
            layers.append(CifarBlock(inside, outside, 2 if i == 0 and outside > 16 else 1))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def _conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside))


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _resnet(classes: int, counts: list[int], is_deep: bool, small_images: bool) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 64, 3) if small_images else _conv(3, 64, 7, 2), nn.ReLU()]
    if not small_images:
        layers.append(nn.MaxPool2d(3, 2, 1))
    inside = 64
    for stage, count in enumerate(counts):
        width = 64 << stage
        outside = 4 * width if is_deep else width
        for i in range(count):
            stride = 2 if stage and i == 0 else 1
            if is_deep:
                parts = [_conv(inside, width, 1), nn.ReLU(), _conv(width, width, 3, stride)]
                parts += [nn.ReLU(), _conv(width, outside, 1)]
            else:
                parts = [_conv(inside, width, 3, stride), nn.ReLU(), _conv(width, width, 3)]
            is_same = stride == 1 and inside == outside
            shortcut = nn.Identity() if is_same else _conv(inside, outside, 1, stride)
            layers.append(_Residual(nn.Sequential(*parts), shortcut))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


def resnet18_cifar(classes: int) -> nn.Module:
    return _resnet(classes, [2, 2, 2, 2], is_deep=False, small_images=True)


def resnet50(classes: int) -> nn.Module:
    return _resnet(classes, [3, 4, 6, 3], is_deep=True, small_images=False)


class _Inverted(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_conv(inside, wide, 1), nn.ReLU6()]
        layers += [_conv(wide, wide, 3, stride, wide), nn.ReLU6(), _conv(wide, outside, 1)]
        self.layers = nn.Sequential(*layers)
        self.adds = stride == 1 and inside == outside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.layers(x)
        return x + y if self.adds else y


def mobilenet_v2_cifar(classes: int) -> nn.Module:
    stages = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2)]
    stages += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    layers: list[nn.Module] = [_conv(3, 32, 3), nn.ReLU6()]
    inside = 32
    for expansion, outside, count, stride in stages:
        for i in range(count):
            layers.append(_Inverted(inside, outside, 1 if i else stride, expansion))
            inside = outside
    layers += [_conv(inside, 1280, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, classes))
