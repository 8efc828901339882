"""The generated kernels of convolution: the reference's results, and bits that depend on little."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convolution_cases import Case, cases
from hypothesis import given, settings

import needle as ndl
from needle.backends.cpu.convolution import convolution
from needle.ops.unfolding import Window, convolve, convolve_input_grad, convolve_weight_grad

HERE = Path(__file__).parent
SOURCE = Path(ndl.__file__).parents[1]

NO_PADS = ((0, 0), (0, 0))

PLAIN: dict[str, Any] = {
    "stride": (1, 1),
    "pads": ((1, 1), (1, 1)),
    "dilation": (1, 1),
    "groups": 1,
}

#: Shapes that are cut in every way: image, weight, and what differs from `PLAIN`.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "one pixel": ((3, 1, 1, 1), (1, 1, 3, 3), {}),
    "17 channels": ((2, 17, 9, 9), (17, 17, 3, 3), {}),
    "kernel larger than the image": ((2, 3, 2, 2), (5, 3, 5, 5), {"pads": ((2, 2), (2, 2))}),
    "stride larger than the kernel": ((2, 3, 11, 11), (4, 3, 2, 2), {"stride": (4, 5)}),
    "stem": ((1, 3, 64, 64), (64, 3, 7, 7), {"stride": (2, 2), "pads": ((3, 3), (3, 3))}),
    "dilated": ((2, 8, 20, 20), (16, 8, 3, 3), {"dilation": (2, 3)}),
    "grouped": ((2, 24, 15, 15), (36, 8, 3, 3), {"groups": 3}),
    "depthwise": ((3, 30, 28, 28), (30, 1, 3, 3), {"groups": 30}),
    "1×1": ((2, 70, 14, 14), (33, 70, 1, 1), {"pads": NO_PADS}),
    "1×1 of some pixels": ((2, 20, 9, 9), (40, 20, 1, 1), {"pads": NO_PADS, "stride": (2, 3)}),
    "1×1 with a border": ((2, 20, 9, 9), (7, 20, 1, 1), {}),
    "1×1 in groups": ((2, 24, 5, 5), (36, 8, 1, 1), {"pads": NO_PADS, "groups": 3}),
    "no padding": ((3, 20, 9, 12), (24, 20, 3, 2), {"pads": NO_PADS}),
    "many small images": ((40, 33, 4, 4), (70, 33, 3, 3), {}),
    "images of one pixel": ((50, 30, 1, 1), (20, 30, 3, 3), {}),
    "two of each group": ((5, 20, 9, 20), (40, 1, 3, 3), {"groups": 20}),
    "one channel of many": ((6, 40, 12, 12), (1, 40, 3, 3), {"stride": (2, 1)}),
    "bands of rows": ((1, 40, 90, 90), (9, 40, 3, 3), {}),
    "channels shared out": ((1, 64, 7, 7), (512, 64, 3, 3), {}),
}


def operands(name: str, dtype: str = "float32") -> tuple[Any, Any, Any, dict[str, Any]]:
    """Return image, weight, cotangent and attributes."""
    x_shape, w_shape, changes = CASES[name]
    attrs = PLAIN | changes
    rng = np.random.default_rng(0)
    window = Window((w_shape[2], w_shape[3]), **attrs)
    g_shape = (x_shape[0], w_shape[0], *window.counts((x_shape[2], x_shape[3]), "test"))
    x, w, g = (rng.standard_normal(s).astype(dtype) for s in (x_shape, w_shape, g_shape))
    return x, w, g, attrs


def by_image(x: Any, w: Any, g: Any, attrs: dict[str, Any]) -> tuple[Any, Any]:
    """Return the result and the gradient by the input."""
    return convolution(x, w, **attrs), convolution(g, w, size=x.shape[2:], **attrs)


def all_three(x: Any, w: Any, g: Any, attrs: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return the result and both gradients."""
    return (*by_image(x, w, g, attrs), convolution(g, x, kernel=w.shape[2:], **attrs))


def check(x: Any, w: Any, g: Any, attrs: dict[str, Any]) -> None:
    y, dx, dw = all_three(x, w, g, attrs)
    epsilon = np.finfo(x.dtype).eps
    pixels = len(g) * g.shape[2] * g.shape[3]
    for actual, expected, terms in (
        (y, convolve(x, w, **attrs), w[0].size),
        (dx, convolve_input_grad(g, w, size=x.shape[2:], **attrs), w[:, 0].size),
        (dw, convolve_weight_grad(g, x, kernel=w.shape[2:], **attrs), pixels),
    ):
        assert actual.dtype == expected.dtype
        # Of n random terms a sum is about √n, and each of its n roundings that much of an epsilon.
        np.testing.assert_allclose(actual, expected, rtol=0, atol=epsilon * (64 + 4 * terms))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_kernels_give_what_the_reference_gives(case: Case) -> None:
    x, w, g, attrs = case
    check(x, w, g, attrs)
    check(*(z.astype(np.float32) for z in (x, w, g)), attrs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_shapes_that_are_cut_in_parts(name: str, dtype: str) -> None:
    check(*operands(name, dtype))


@pytest.mark.parametrize("name", CASES)
def test_bits_do_not_depend_on_threads_or_batch(name: str) -> None:
    x, w, g, attrs = operands(name)
    before = ndl.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            ndl.set_num_threads(threads)
            results.append(all_three(x, w, g, attrs))
    finally:
        ndl.set_num_threads(before)
    for result in results[1:]:
        assert [z.tobytes() for z in result] == [z.tobytes() for z in results[0]]
    single = [by_image(x[i : i + 1], w, g[i : i + 1], attrs) for i in range(len(x))]
    for alone, together in zip(zip(*single, strict=True), results[0], strict=False):
        assert np.concatenate(alone).tobytes() == together.tobytes()


def test_layouts_of_operands_do_not_matter() -> None:
    x, w, g, attrs = operands("17 channels")
    expected = all_three(x, w, g, attrs)
    turned_x, turned_g = (
        np.ascontiguousarray(z.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for z in (x, g)
    )
    turned_w = np.ascontiguousarray(w[::-1, :, ::-1].T).T[::-1, :, ::-1]
    for actual, z in zip(all_three(turned_x, turned_w, turned_g, attrs), expected, strict=True):
        np.testing.assert_array_equal(actual, z)


def test_small_floats_are_summed_in_float32() -> None:
    *small, attrs = operands("17 channels", "float16")
    results = all_three(*small, attrs)
    for result, wide in zip(
        results, all_three(*(z.astype(np.float32) for z in small), attrs), strict=True
    ):
        assert result.dtype == np.float16
        np.testing.assert_array_equal(result, wide.astype(np.float16))


def test_nothing_to_sum_is_zero() -> None:
    x, w = np.ones((2, 0, 4, 4), np.float32), np.ones((3, 0, 3, 3), np.float32)
    np.testing.assert_array_equal(convolution(x, w, **PLAIN), np.zeros((2, 3, 4, 4), np.float32))
    assert convolution(np.ones((0, 2, 4, 4)), np.ones((3, 2, 3, 3)), **PLAIN).shape == (0, 3, 4, 4)
    for n, channels in ((0, 2), (2, 0)):
        x, g = np.ones((n, channels, 4, 4)), np.ones((n, 3, 4, 4))
        weight = convolution(g, x, kernel=(3, 3), **PLAIN)
        np.testing.assert_array_equal(weight, np.zeros((3, channels, 3, 3)))


def test_not_a_number_reaches_what_sees_it_only() -> None:
    x = np.ones((2, 1, 5, 5), np.float32)
    x[0, 0, 0, 0] = np.nan
    result = convolution(x, np.ones((1, 1, 3, 3), np.float32), **PLAIN)
    assert result is not None
    assert np.isnan(result[0, 0, :2, :2]).all()
    assert np.isnan(result).sum() == 4


def counts(x: Any) -> tuple[int, int]:
    return int(np.isnan(x).sum()), int(np.isinf(x).sum())


@pytest.mark.parametrize(("channels", "pad"), [(1, 1), (16, 1), (5, 2)])
def test_an_infinite_weight_meets_no_padding_in_the_gradient(channels: int, pad: int) -> None:
    """As in PyTorch. Compiled programs multiply zeros around the cotangent by weights."""
    rng = np.random.default_rng(0)
    w = rng.uniform(1, 2, (channels, channels, 3, 3)).astype(np.float32)
    w[0, 0, 0, 0] = np.inf
    attrs = PLAIN | {"pads": ((pad, pad), (pad, pad))}
    size = 4 * pad + 1 + 2 - 2 * pad
    g = rng.uniform(1, 2, (2, channels, 4 * pad + 1, 4 * pad + 1)).astype(np.float32)
    x = torch.ones((2, channels, size, size), requires_grad=True)
    torch.nn.functional.conv2d(x, torch.tensor(w), padding=pad).backward(torch.tensor(g))

    def run(g: Any, w: Any) -> Any:
        return ndl.conv2d_input_grad(g, w, (size, size), pads=attrs["pads"])

    arrays = ndl.asarray(g), ndl.asarray(w)
    with np.errstate(all="ignore"):
        reference = convolve_input_grad(g, w, size=(size, size), **attrs)
    expected = x.grad.numpy()
    for result in (reference, run(*arrays).numpy()):
        assert counts(result) == counts(expected)
        assert counts(result)[0] == 0
    compiled = ndl.compile(run)(*arrays).numpy()
    assert counts(compiled)[1] == counts(expected)[1]
    assert not np.isnan(compiled[:, 1:]).any()  # the infinite weight belongs to the first channel


def test_padding_is_zeros_to_infinite_operands() -> None:
    """What PyTorch gives depends on its library; here it is what multiplying the zeros gives."""
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 3, 3), np.float32)
    w[0, 0, 0, 0] = np.inf
    arrays = ndl.asarray(x), ndl.asarray(w)

    def run(x: Any, w: Any) -> Any:
        return ndl.conv2d(x, w, padding=1)

    with np.errstate(all="ignore"):
        reference = convolve(x, w, **PLAIN)
    for result in (reference, run(*arrays).numpy(), ndl.compile(run)(*arrays).numpy()):
        assert counts(result) == (7, 9)
        assert np.isnan(result[0, 0, 0]).all()


@pytest.mark.parametrize("target", ["avx2", "sse2"])
def test_narrower_instruction_sets(target: str, tmp_path: Path) -> None:
    script = (
        "import test_convolution_kernels as t\n"
        "for name in t.CASES:\n"
        "    for dtype in ('float32', 'float64'):\n"
        "        t.check(*t.operands(name, dtype))\n"
    )
    path = os.pathsep.join(map(str, (SOURCE, HERE)))
    env = {
        **os.environ,
        "PYTHONPATH": path,
        "NEEDLE_TARGET": target,
        "NEEDLE_CACHE_DIR": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
