"""What is measured, written with needle. `torch_programs` has the same under the same names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import needle as ndl
from needle import nn, optim
from needle.nn import functional as F

Program = Callable[[], Any]


def _normal(*shape: int, seed: int = 0) -> ndl.Tensor:
    return ndl.asarray(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def set_threads(count: int) -> None:
    """Nothing to do: NumPy's BLAS reads the environment."""


def add(n: int) -> Program:
    x, y = _normal(n), _normal(n, seed=1)
    return lambda: x + y


def matmul(m: int, k: int, n: int) -> Program:
    x, y = _normal(m, k), _normal(k, n)
    return lambda: x @ y


def softmax(rows: int, columns: int) -> Program:
    x = _normal(rows, columns)
    return lambda: F.softmax(x, -1)


def layer_norm(rows: int, columns: int) -> Program:
    x, w, b = _normal(rows, columns), ndl.ones(columns), ndl.zeros(columns)
    return lambda: F.layer_norm(x, (columns,), w, b)


def conv2d(batch: int, channels: int, size: int, out: int) -> Program:
    x, w = _normal(batch, channels, size, size), _normal(out, channels, 3, 3)
    return lambda: F.conv2d(x, w, padding=1)


def _step(model: nn.Module, optimizer: Any, x: ndl.Tensor, y: ndl.Tensor) -> Program:
    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _mlp(batch: int) -> tuple[nn.Module, ndl.Tensor, ndl.Tensor]:
    ndl.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    labels = ndl.asarray(np.random.default_rng(1).integers(0, 10, batch))
    return model, _normal(batch, 784), labels


def mlp_forward(batch: int) -> Program:
    model, x, _ = _mlp(batch)
    model.eval()

    def forward() -> Any:
        with ndl.inference_mode():
            return model(x)

    return forward


def mlp_sgd_step(batch: int) -> Program:
    model, x, y = _mlp(batch)
    return _step(model, optim.SGD(model.parameters(), lr=0.01), x, y)


def mlp_adam_step(batch: int) -> Program:
    model, x, y = _mlp(batch)
    return _step(model, optim.Adam(model.parameters(), lr=0.001), x, y)


def resnet20_step(batch: int) -> Program:
    from needle.models import resnet20

    ndl.manual_seed(0)
    model = resnet20()
    x = _normal(batch, 3, 32, 32)
    y = ndl.asarray(np.random.default_rng(1).integers(0, 10, batch))
    return _step(model, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), x, y)
