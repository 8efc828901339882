"""Convolutions in compiled programs: values, gradients, what is fused with them, and their bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from convolution_cases import Case, cases
from hypothesis import given, settings

import needle as ndl
from needle.backends import cpu
from needle.graph import trace
from needle.ops.unfolding import convolve, convolve_input_grad, convolve_weight_grad

#: Shape of the images, of the weight, and arguments of `conv2d`.
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "one pixel": ((17, 1, 1, 1), (3, 1, 3, 3), {"padding": 1}),
    "17 channels": ((17, 17, 6, 5), (17, 17, 3, 3), {"padding": 1}),
    "kernel larger than the image": ((17, 3, 2, 2), (5, 3, 5, 5), {"padding": 2}),
    "stride larger than the kernel": ((17, 3, 9, 9), (4, 3, 2, 2), {"stride": (4, 5)}),
    "pointwise": ((17, 20, 5, 5), (24, 20, 1, 1), {}),
    "pointwise with a stride": ((17, 20, 5, 5), (24, 20, 1, 1), {"stride": 2}),
    "grouped": ((17, 12, 6, 6), (9, 4, 3, 3), {"groups": 3, "dilation": 2, "padding": 2}),
    "depthwise": ((17, 20, 9, 9), (20, 1, 3, 3), {"groups": 20, "padding": 1, "stride": 2}),
}


def operands(name: str, dtype: str = "float32") -> tuple[Any, Any]:
    x_shape, w_shape, _ = SHAPES[name]
    rng = np.random.default_rng(0)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in (x_shape, w_shape))


@settings(max_examples=15, deadline=None)
@given(cases())
def test_random_convolutions_are_the_references(case: Case) -> None:
    x, w, g, attrs = case

    def program(x: Any, w: Any, g: Any) -> Any:
        size, kernel = x.shape[2:], w.shape[2:]
        y = ndl.ops.engine.apply(ndl.conv2d, x, w, **attrs)
        return (
            y,
            ndl.relu(y * 2 + 1),
            ndl.conv2d_input_grad(g, w, size, **attrs),
            ndl.conv2d_weight_grad(g, x, kernel, **attrs),
        )

    arrays = [ndl.asarray(a) for a in (x, w, g)]
    traced = trace(program, *arrays)
    y = convolve(x, w, **attrs)
    expected = (
        y,
        np.maximum(y * 2 + 1, 0),
        convolve_input_grad(g, w, size=x.shape[2:], **attrs),
        convolve_weight_grad(g, x, kernel=w.shape[2:], **attrs),
    )
    for threads in (1, 3):
        actual = cpu.build(traced.graph, threads).run(traced.arrays(*arrays))
        for a, e in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-10)


def layer(x: Any, w: Any, scale: Any, rest: Any, **attrs: Any) -> Any:
    """A convolution with what usually follows it."""
    return ndl.relu(ndl.conv2d(x, w, **attrs) * scale - 0.25) + rest


@pytest.mark.parametrize("name", SHAPES)
def test_bits_depend_on_neither_threads_nor_batch(name: str) -> None:
    attrs = SHAPES[name][2]
    x, w = operands(name)
    y = ndl.conv2d(ndl.asarray(x), ndl.asarray(w), **attrs)
    rng = np.random.default_rng(1)
    scale = rng.standard_normal((1, y.shape[1], 1, 1)).astype("float32")
    rest = rng.standard_normal(y.shape).astype("float32")

    def program(x: Any, w: Any, scale: Any, rest: Any) -> Any:
        out = layer(x, w, scale, rest, **attrs)
        return (out, *ndl.grad([ndl.sum(out * rest)], [x, w]))

    def run(n: int, threads: int) -> Any:
        arrays = [ndl.Tensor(a) for a in (x[:n], w, scale, rest[:n])]
        traced = trace(program, *arrays)
        return cpu.build(traced.graph, threads).run(traced.arrays(*arrays))

    whole = run(17, 1)
    np.testing.assert_allclose(
        whole[0], np.maximum(y.numpy() * scale - 0.25, 0) + rest, rtol=1e-4, atol=1e-5
    )
    for threads in (2, 4):
        for a, e in zip(run(17, threads), whole, strict=True):
            np.testing.assert_array_equal(a, e)
    for n in (1, 3):
        for a, e in zip(run(n, 2)[:2], whole, strict=False):
            np.testing.assert_array_equal(a, e[:n])


@pytest.mark.parametrize("name", SHAPES)
def test_derivatives_of_both_orders_are_the_eager_ones(name: str) -> None:
    attrs = SHAPES[name][2]
    x, w = (ndl.Tensor(a) for a in operands(name, "float64"))

    def program(x: Any, w: Any) -> Any:
        y = ndl.sin(ndl.conv2d(x, w, **attrs))
        first = ndl.grad([ndl.sum(y * y)], [x, w], create_graph=True)
        return (*first, *ndl.grad([sum(ndl.sum(g * g) for g in first)], [x, w]))

    for a, e in zip(ndl.compile(program)(x, w), program(x, w), strict=True):
        scale = np.abs(e.numpy()).max()
        np.testing.assert_allclose(a.numpy(), e.numpy(), rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_are_summed_in_float32(dtype: str) -> None:
    x = ndl.ones((1, 300, 4, 4), dtype=dtype)
    w = ndl.full((2, 300, 3, 3), 0.125, dtype=dtype)
    for form in (
        lambda x, w: ndl.conv2d(x, w),
        lambda x, w: ndl.permute_dims(
            ndl.conv2d_nhwc(ndl.permute_dims(x, (0, 2, 3, 1)), ndl.permute_dims(w, (2, 3, 1, 0))),
            (0, 3, 1, 2),
        ),
    ):
        result = ndl.compile(form)(x, w)
        assert result.dtype == x.dtype
        exact = ndl.asarray(300 * 9 / 8).astype(dtype).item()
        assert set(result.numpy().astype(float).ravel()) == {exact}


def test_integers_and_empty_batches() -> None:
    x, w = (
        ndl.reshape(ndl.arange(2 * 3 * 5 * 5), (2, 3, 5, 5)),
        ndl.ones((2, 3, 3, 3), dtype="int64"),
    )
    np.testing.assert_array_equal(
        ndl.compile(lambda x, w: ndl.conv2d(x, w))(x, w).numpy(), ndl.conv2d(x, w).numpy()
    )
    nothing = ndl.Tensor(np.zeros((0, 3, 5, 5)))
    weight = ndl.Tensor(np.ones((2, 3, 3, 3)))

    def program(x: Any, w: Any) -> Any:
        y = ndl.conv2d(x, w) + 1
        return (y, *ndl.grad([ndl.sum(y)], [x, w]))

    y, by_x, by_w = ndl.compile(program)(nothing, weight)
    assert y.shape == (0, 2, 3, 3)
    assert by_x.shape == (0, 3, 5, 5)
    np.testing.assert_array_equal(by_w.numpy(), 0)
