"""Convolutions of bfloat16 in compiled programs: values and gradients, bits, what is paired."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.backends import cpu
from needle.compiler import pipeline
from needle.graph import trace
from needle.ops.convolution_form import Convolution
from needle.ops.unfolding import convolve, convolve_input_grad, convolve_weight_grad

ALL = {"forward", "input_grad", "weight_grad"}
#: Shape of the images, of the weight, arguments of `conv2d`, and which forms are paired.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], set[str]]] = {
    "17 channels": ((5, 17, 6, 5), (20, 17, 3, 3), {"padding": 1}, ALL),
    "strided": ((5, 3, 9, 8), (33, 3, 3, 3), {"padding": 1, "stride": 2}, {"forward"}),
    "padded more": ((5, 4, 3, 3), (6, 4, 2, 2), {"padding": 3}, ALL),
    "dilated": ((5, 32, 9, 9), (8, 32, 3, 3), {"dilation": 2}, ALL),
    "groups": ((5, 36, 6, 6), (32, 18, 3, 3), {"groups": 2}, {"forward", "input_grad"}),
    "depthwise": ((5, 20, 9, 9), (20, 1, 3, 3), {"groups": 20, "padding": 1}, set()),
    "pointwise": ((5, 20, 5, 5), (24, 20, 1, 1), {}, set()),
    "one pixel": ((5, 1, 1, 1), (3, 1, 3, 3), {"padding": 1}, {"forward", "input_grad"}),
}


def drawn(shape: tuple[int, ...], seed: int, scale: float = 1.0) -> Any:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return values.astype(dtypes.bfloat16)


def forms(attrs: dict[str, Any]) -> Any:
    def program(x: Any, w: Any, g: Any) -> Any:
        y = ndl.conv2d(x, w, **attrs)
        return (y, *ndl.grad([y], [x, w], [g]))

    return program


def operands(name: str, n: int) -> tuple[Any, Any, Any]:
    x_shape, w_shape, attrs, _ = SHAPES[name]
    x, w = drawn(x_shape, 0), drawn(w_shape, 1, 0.1)
    y = ndl.conv2d(ndl.asarray(x), ndl.asarray(w), **attrs)
    return x[:n], w, drawn(y.shape, 2)[:n]


def run(name: str, given: tuple[Any, ...], threads: int) -> Any:
    tensors = [ndl.Tensor(a) for a in given]
    traced = trace(forms(SHAPES[name][2]), *tensors)
    return cpu.build(traced.graph, threads).run(traced.arrays(*tensors))


@pytest.mark.parametrize("name", SHAPES)
def test_values_and_gradients_are_those_of_the_reference_rounded(name: str) -> None:
    x, w, g = (a.astype(np.float64) for a in operands(name, 5))
    given = SHAPES[name][2]
    pair = [(p, p) for p in (given.get("padding", 0),) * 2]
    attrs: dict[str, Any] = {
        "pads": tuple(pair),
        "groups": given.get("groups", 1),
        **{key: (given.get(key, 1),) * 2 for key in ("stride", "dilation")},
    }

    def exact(x: Any, w: Any, g: Any) -> Any:
        return (
            convolve(x, w, **attrs),
            convolve_input_grad(g, w, size=x.shape[2:], **attrs),
            convolve_weight_grad(g, x, kernel=w.shape[2:], **attrs),
        )

    wanted, sizes = exact(x, w, g), exact(abs(x), abs(w), abs(g))
    for got, want, size in zip(run(name, operands(name, 5), 2), wanted, sizes, strict=True):
        assert got.dtype == dtypes.bfloat16
        # Rounded once, to 8 bits, from sums in float32.
        error = abs(got.astype(np.float64) - want)
        assert (error <= 2**-8 * abs(want) + 1e-5 * size).all()


@pytest.mark.parametrize("name", SHAPES)
def test_bits_depend_on_neither_threads_nor_batch(name: str) -> None:
    whole = run(name, operands(name, 5), 1)
    for threads in (2, 3):
        for a, e in zip(run(name, operands(name, 5), threads), whole, strict=True):
            np.testing.assert_array_equal(a, e)
    for n in (1, 3):
        for a, e in zip(run(name, operands(name, n), 2)[:2], whole, strict=False):
            np.testing.assert_array_equal(a, e[:n])


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_paired(name: str) -> None:
    tensors = [ndl.Tensor(a) for a in operands(name, 5)]
    graph = pipeline.run(trace(forms(SHAPES[name][2]), *tensors).graph)
    left = {
        node.op.lower.form
        for node in graph.nodes
        if isinstance(node.op.lower, Convolution) and not node.op.lower.in_pairs
    }
    is_product = name == "pointwise"
    assert left == (set() if is_product else ALL - SHAPES[name][3])
    products = [node for node in graph.nodes if node.op.name == "matmul"]
    assert len(products) == (3 if is_product else 0)
    assert all(node.inputs[0].dtype == dtypes.bfloat16 for node in products)


def test_a_layer_is_one_kernel() -> None:
    """Bias, scale, activation and what is added stand in the epilogue, under autocast, too."""
    x, w = (
        ndl.asarray(drawn((4, 32, 8, 8), 0).astype(np.float32)),
        ndl.Tensor(drawn((32, 32, 3, 3), 1, 0.1).astype(np.float32)),
    )
    scale, rest = ndl.full((32, 1, 1), 0.5), ndl.ones((4, 32, 8, 8))

    def layer(x: Any, w: Any, scale: Any, rest: Any) -> Any:
        with ndl.no_grad(), ndl.autocast("bfloat16"):
            return ndl.relu(ndl.conv2d(x, w, padding=1).astype("float32") * scale - 0.25) + rest

    want = layer(x, w, scale, rest)
    compiled = ndl.compile(layer)
    np.testing.assert_allclose(
        compiled(x, w, scale, rest).numpy(), want.numpy(), rtol=2e-2, atol=2e-2
    )
    kernels = [
        names
        for kernel in compiled.explain(x, w, scale, rest).groups
        if "conv2d_pairs" in (names := {node.op.name for node in kernel.nodes})
    ]
    assert len(kernels) == 1
    assert kernels[0] >= {"multiply", "relu", "add"}
