"""What is measured, written with PyTorch. `needle_programs` has the same under the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Program = Callable[[], Any]


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def set_threads(count: int) -> None:
    torch.set_num_threads(count)


def add(n: int) -> Program:
    x, y = _normal(n), _normal(n, seed=1)
    return lambda: x + y


def matmul(m: int, k: int, n: int) -> Program:
    x, y = _normal(m, k), _normal(k, n)
    return lambda: x @ y


def product(m: int, n: int, k: int, layout: str, dtype: str, sizes: str = "known") -> Program:
    """For `benchmarks.gemm`; PyTorch does not know sizes before."""
    kind = getattr(torch, dtype)
    a = torch.randn(k, m, dtype=kind).T if layout[0] == "t" else torch.randn(m, k, dtype=kind)
    b = torch.randn(n, k, dtype=kind).T if layout[1] == "t" else torch.randn(k, n, dtype=kind)
    c = torch.empty(m, n, dtype=kind)
    return lambda: torch.mm(a, b, out=c)


def softmax(rows: int, columns: int) -> Program:
    x = _normal(rows, columns)
    return lambda: F.softmax(x, -1)


def layer_norm(rows: int, columns: int) -> Program:
    x, w, b = _normal(rows, columns), torch.ones(columns), torch.zeros(columns)
    return lambda: F.layer_norm(x, (columns,), w, b)


def conv2d(batch: int, channels: int, size: int, out: int) -> Program:
    x, w = _normal(batch, channels, size, size), _normal(out, channels, 3, 3)
    return lambda: F.conv2d(x, w, padding=1)


def _step(model: nn.Module, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> Program:
    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _mlp(batch: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    labels = torch.from_numpy(np.random.default_rng(1).integers(0, 10, batch))
    return model, _normal(batch, 784), labels


def mlp_forward(batch: int) -> Program:
    model, x, _ = _mlp(batch)
    model.eval()

    def forward() -> Any:
        with torch.inference_mode():
            return model(x)

    return forward


def mlp_sgd_step(batch: int) -> Program:
    model, x, y = _mlp(batch)
    return _step(model, torch.optim.SGD(model.parameters(), lr=0.01), x, y)


def mlp_adam_step(batch: int) -> Program:
    model, x, y = _mlp(batch)
    return _step(model, torch.optim.Adam(model.parameters(), lr=0.001), x, y)


class _Block(nn.Module):
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
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return F.relu(x + y)


def resnet20_step(batch: int) -> Program:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inside = 16
    for outside in (16, 32, 64):
        for i in range(3):
            layers.append(_Block(inside, outside, 2 if i == 0 and outside > 16 else 1))
            inside = outside
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(*layers)
    x = _normal(batch, 3, 32, 32)
    y = torch.from_numpy(np.random.default_rng(1).integers(0, 10, batch))
    return _step(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), x, y)
