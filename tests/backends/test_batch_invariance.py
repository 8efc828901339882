"""What is computed for one example does not depend on what else is in the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn

BATCHES = (1, 3, 17, 64)


def check(function: Callable[[Any], Any], *shape: int, seed: int = 0) -> None:
    """Compare the results for the first rows of a batch, bit by bit, over all batch sizes."""
    x = np.random.default_rng(seed).standard_normal((max(BATCHES), *shape)).astype(np.float32)
    compiled = ndl.compile(function)
    with ndl.no_grad():
        whole = compiled(ndl.asarray(x)).numpy()
        for batch in BATCHES:
            part = compiled(ndl.asarray(x[:batch].copy())).numpy()
            np.testing.assert_array_equal(part, whole[:batch], err_msg=f"batch {batch}")


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 10, 16, 33, 100, 784, 5000])
def test_rows(columns: int) -> None:
    check(lambda x: x.sum(1), columns)
    check(lambda x: ndl.softmax(x), columns)
    check(lambda x: ndl.layer_norm(x, columns) * 2 + x, columns)
    check(lambda x: (x * x).mean(1).sqrt(), columns)
    check(lambda x: ndl.logsumexp(x, axis=1), columns)


def test_several_axes() -> None:
    for shape in [(3, 5), (2, 100), (7, 3, 3), (3, 64, 64), (2, 256, 256)]:
        check(lambda x: x.sum(axis=tuple(range(1, x.ndim))), *shape)
        check(lambda x: x.max(axis=-1) + x.mean(axis=-1), *shape)
        check(lambda x: x.sum(axis=1), *shape)


@pytest.mark.parametrize("extents", [(784, 128, 64, 10), (3, 5, 2), (100, 1), (7, 1000, 33)])
def test_products(extents: tuple[int, ...]) -> None:
    ndl.manual_seed(0)
    layers: list[Any] = []
    for a, b in itertools.pairwise(extents):
        layers += [nn.Linear(a, b), nn.ReLU()]
    check(nn.Sequential(*layers), extents[0])


def test_models() -> None:
    ndl.manual_seed(0)
    model = ndl.models.MLPResNet(20, hidden=10).eval()
    check(model, 20)
    block = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    check(block, 3, 10, 10)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    check(layer, 5, 16)
