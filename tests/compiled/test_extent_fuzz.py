"""Random functions of a batch, with and without gradients: one program against one for each extent.

Whatever the compiler makes of them, it must not be wrong. A few run always, many at night.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
import needle.nn.functional as F

Step = Callable[[random.Random, Any], Any]


@pytest.fixture(autouse=True)
def interpreted() -> None:
    """Here both sides run native code."""


def weights(rng: random.Random, *shape: int) -> Any:
    values = np.random.default_rng(rng.randrange(1 << 30)).standard_normal(shape)
    return ndl.asarray((values / 3).astype(np.float32))


def product(rng: random.Random, x: Any) -> Any:
    return x @ weights(rng, x.shape[-1], rng.choice([1, 3, 8, 17, 40]))


def turned_product(rng: random.Random, x: Any) -> Any:
    return x @ ndl.permute_dims(weights(rng, rng.choice([2, 9]), x.shape[-1]), (1, 0))


def cut(rng: random.Random, x: Any) -> Any:
    n = x.shape[-1]
    start = rng.randrange(n)
    return x[..., start : rng.randrange(start + 1, n + 1)]


def flat(rng: random.Random, x: Any) -> Any:
    return x.reshape(x.shape[0], -1)


def split(rng: random.Random, x: Any) -> Any:
    n = x.shape[-1]
    parts = rng.choice([p for p in range(1, n + 1) if n % p == 0])
    return x.reshape(*x.shape[:-1], parts, n // parts) if x.ndim < 4 else x


def exchanged(rng: random.Random, x: Any) -> Any:
    axes = list(range(1, x.ndim))
    rng.shuffle(axes)
    return ndl.permute_dims(x, (0, *axes))


def against_all(rng: random.Random, x: Any) -> Any:
    summary = rng.choice([ndl.sum, ndl.mean, ndl.max, ndl.min])(x, axis=0)
    return x * 0.5 - summary / (x.shape[0] + 1)


def gated(rng: random.Random, x: Any) -> Any:
    return ndl.where(x > rng.choice([-0.5, 0.0, 0.3]), x, rng.choice([0.0, 0.1]) * x)


def normed(rng: random.Random, x: Any) -> Any:
    return F.layer_norm(x, (x.shape[-1],), weights(rng, x.shape[-1]), None)


def attended(rng: random.Random, x: Any) -> Any:
    if x.ndim != 3:
        return F.softmax(x, axis=-1)
    return F.softmax(x @ ndl.permute_dims(x, (0, 2, 1)), axis=-1) @ x


def doubled(rng: random.Random, x: Any) -> Any:
    return ndl.concat([x, ndl.tanh(x)], axis=rng.choice([0, x.ndim - 1]))


STEPS: tuple[Step, ...] = (
    product,
    turned_product,
    cut,
    flat,
    split,
    exchanged,
    against_all,
    gated,
    normed,
    attended,
    doubled,
    lambda rng, x: ndl.tanh(x) * 2 - 1,
    lambda rng, x: ndl.exp(-ndl.square(x)),
    lambda rng, x: x + weights(rng, x.shape[-1]),
    lambda rng, x: x * weights(rng, *x.shape[1:]),
    lambda rng, x: x - x.mean(axis=-1, keepdims=True),
    lambda rng, x: ndl.cumulative_sum(x, axis=rng.choice([0, x.ndim - 1])) * 0.1,
    lambda rng, x: ndl.sort(x, axis=x.ndim - 1),
    lambda rng, x: ndl.pad(x, (*(((0, 0),) * (x.ndim - 1)), (1, 0))),
    lambda rng, x: x.reshape(-1, x.shape[-1]),
    lambda rng, x: ndl.flip(x, axis=x.ndim - 1),
    lambda rng, x: x / ndl.sqrt(ndl.sum(ndl.square(x), axis=0, keepdims=True) + 1),
)


def program(seed: int) -> tuple[Callable[[Any], Any], tuple[int, ...]]:
    """Return a function and the shape of an example."""
    first = random.Random(seed)
    shape = tuple(first.choice([1, 2, 3, 5, 16, 33]) for _ in range(first.choice([1, 1, 2, 3])))
    length, has_gradient = first.randrange(2, 7), first.random() < 0.4

    def function(x: Any) -> Any:
        rng = random.Random(seed + 1)
        given = x
        if has_gradient:
            given = x * 1
            given.requires_grad = True
        y, kept = given, []
        for _ in range(length):
            if y.size == 0 or (y.ndim > 1 and y.shape[-1] == 0):
                break
            y = rng.choice(STEPS)(rng, y) if y.ndim > 1 else y * 2
            if rng.random() < 0.2:
                kept.append(y)
        results = [y, *kept, y.sum(axis=0)]
        if has_gradient:
            (y * y).mean().backward()
            results.append(given.grad)
        return results

    return function, shape


def check(seed: int) -> str:
    """Compare; return how the extents are served."""
    function, shape = program(seed)
    varying = ndl.compile(function, dims={"x": ndl.Dim("batch")})
    rng = np.random.default_rng(seed)
    for extent in (int(rng.integers(1, 40)), int(rng.integers(1, 200)), 1):
        x = ndl.asarray(rng.standard_normal((extent, *shape)).astype(np.float32))
        for actual, expected in zip(varying(x), ndl.compile(function)(x), strict=True):
            a, b = actual.numpy(), expected.numpy()
            assert a.shape == b.shape
            scale = float(np.abs(b).max(initial=1e-6))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * scale, err_msg=str(seed))
    return str(varying._varying.describe())


@pytest.mark.parametrize("seed", range(12))
def test_random_functions(seed: int) -> None:
    check(seed)


@pytest.mark.nightly
def test_many_random_functions() -> None:
    served = [check(seed) for seed in range(100, 600)]
    assert sum(text.startswith("one program") for text in served) > 400
