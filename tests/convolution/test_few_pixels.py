"""Convolutions of few pixels with many weights, which are computed as rows of a product."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu.executable import build
from needle.backends.cpu.target import Target
from needle.compiler import pipeline
from needle.errors import ArgumentError
from needle.graph import trace

#: Channels, extents of the image, output channels, kernel, and how it moves.
CASES = [
    (64, (4, 4), 128, (3, 3), {"padding": 1}),
    (96, (5, 3), 80, (3, 3), {"padding": 1, "stride": 2}),
    (130, (2, 2), 65, (3, 3), {"padding": 2, "dilation": 2}),
    (67, (1, 1), 200, (5, 5), {"padding": 2}),
    (300, (3, 4), 64, (2, 3), {"padding": (0, 1)}),
    (256, (4, 4), 260, (1, 1), {"stride": 2}),
]
IDS = ["plain", "stride", "dilation", "one pixel", "oblong", "pointwise"]


def targets() -> list[Any]:
    """Return this machine's instruction set, and those that it has besides."""
    found: list[Any] = [pytest.param(None, id="host")]
    for name in ("sse2", "avx2"):
        try:
            found.append(pytest.param(Target.named(name), id=name))
        except ArgumentError:  # noqa: PERF203 - two
            continue
    return found


def run(x: Any, w: Any, moves: dict[str, Any], target: Any, threads: int) -> tuple[Any, bool]:
    """Return the result, and whether a product has computed it."""
    graph = trace(lambda x, w: [ndl.relu(ndl.conv2d(x, w, **moves))], x, w).graph
    graph = pipeline.run(graph)
    (y,) = build(graph, threads, target).run([x, w])
    return y, any(node.op.name == "matmul" for node in graph.nodes)


@pytest.mark.parametrize("target", targets())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("channels", "size", "outs", "kernel", "moves"), CASES, ids=IDS)
def test_an_image_gives_the_same_bits_alone_and_among_many(
    channels: int,
    size: tuple[int, int],
    outs: int,
    kernel: tuple[int, int],
    moves: dict[str, Any],
    dtype: Any,
    target: Any,
) -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((outs, channels, *kernel)).astype(dtype)
    x = rng.standard_normal((300, channels, *size)).astype(dtype)
    many, is_product = run(x, w, moves, target, 2)
    assert not is_product
    for count in (1, 2, 3):
        few, is_product = run(x[:count], w, moves, target, 1)
        assert is_product
        assert few.tobytes() == many[:count].tobytes()


def test_small_weights_groups_and_narrow_results_keep_their_kernels() -> None:
    rng = np.random.default_rng(0)
    for shape, groups in (((64, 16, 3, 3), 1), ((256, 64, 3, 3), 4), ((32, 512, 3, 3), 1)):
        w = rng.standard_normal(shape, dtype=np.float32)
        x = rng.standard_normal((1, shape[1] * groups, 4, 4), dtype=np.float32)
        _, is_product = run(x, w, {"padding": 1, "groups": groups}, None, 1)
        assert not is_product


def test_training_on_few_pixels_equals_eager() -> None:
    ndl.manual_seed(0)
    found = []
    for compiled in (False, True):
        ndl.manual_seed(0)
        layer = ndl.nn.Conv2d(64, 128, 3, padding=1)
        x = ndl.randn(2, 64, 4, 4)

        def loss(x: Any, layer: Any = layer) -> Any:
            return ndl.mean(ndl.square(layer(x)))

        (ndl.compile(loss) if compiled else loss)(x).backward()
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.numpy())
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4, atol=1e-6)
