"""Convolution against PyTorch and against its definition, over random shapes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.nn import functional as F


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    small = st.integers(1, 3)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    kernel = (draw(small), draw(small))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    least = [
        max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, padding, strict=True)
    ]
    size = [draw(st.integers(n, n + 5)) for n in least]
    inside, outside = groups * draw(small), groups * draw(small)
    rng = np.random.default_rng(draw(st.integers(0, 100)))
    x = rng.standard_normal((draw(st.integers(0, 2)), inside, *size))
    weight = rng.standard_normal((outside, inside // groups, *kernel))
    stride = (draw(small), draw(small))
    return (
        x,
        weight,
        {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups},
    )


@pytest.mark.peers
@settings(max_examples=150, deadline=None)
@given(problems())
def test_conv2d_and_its_derivatives_agree_with_pytorch(
    problem: tuple[np.ndarray, np.ndarray, dict[str, Any]],
) -> None:
    torch = pytest.importorskip("torch")
    x, weight, arguments = problem
    ours = [ndl.Tensor(x.copy()), ndl.Tensor(weight.copy())]
    theirs = [torch.tensor(x, requires_grad=True), torch.tensor(weight, requires_grad=True)]
    actual = F.conv2d(*ours, **arguments)
    expected = torch.nn.functional.conv2d(*theirs, **arguments)
    np.testing.assert_allclose(actual.numpy(), expected.detach().numpy(), atol=1e-12)
    if not x.size:
        return  # PyTorch has no second derivatives of an empty batch
    slopes = ndl.grad((actual * actual).sum(), ours, create_graph=True)
    expected_slopes = torch.autograd.grad((expected * expected).sum(), theirs, create_graph=True)
    for a, e in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(a.numpy(), e.detach().numpy(), atol=1e-10)
    second = ndl.grad(sum((s * s).sum() for s in slopes), ours)
    expected_second = torch.autograd.grad(sum((s * s).sum() for s in expected_slopes), theirs)
    for a, e in zip(second, expected_second, strict=True):
        np.testing.assert_allclose(a.numpy(), e.detach().numpy(), rtol=1e-9, atol=1e-8)


def by_definition(
    x: np.ndarray,
    weight: np.ndarray,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> np.ndarray:
    """Seven loops."""
    (n, _, h, w), (outside, inside, kh, kw) = x.shape, weight.shape
    rows = (h + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (w + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    out = np.zeros((n, outside, rows, columns))
    for b, o, i, j in itertools.product(range(n), range(outside), range(rows), range(columns)):
        first = o // (outside // groups) * inside
        for c, u, v in itertools.product(range(inside), range(kh), range(kw)):
            y = i * stride[0] + u * dilation[0] - padding[0]
            z = j * stride[1] + v * dilation[1] - padding[1]
            if 0 <= y < h and 0 <= z < w:
                out[b, o, i, j] += x[b, first + c, y, z] * weight[o, c, u, v]
    return out


@settings(max_examples=30, deadline=None)
@given(problems())
def test_conv2d_is_its_definition(problem: tuple[np.ndarray, np.ndarray, dict[str, Any]]) -> None:
    x, weight, arguments = problem
    actual = F.conv2d(ndl.asarray(x), ndl.asarray(weight), **arguments)
    np.testing.assert_allclose(actual.numpy(), by_definition(x, weight, **arguments), atol=1e-12)


def test_an_image_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 16, 12, 12), dtype=np.float32)
    weight = ndl.asarray(rng.standard_normal((24, 16, 3, 3), dtype=np.float32))
    whole = F.conv2d(ndl.asarray(x), weight, padding=1).numpy()
    for size in (1, 3, 17):
        part = F.conv2d(ndl.asarray(x[:size]), weight, padding=1).numpy()
        np.testing.assert_array_equal(part, whole[:size])


def test_sixteen_bits_add_up_in_float32() -> None:
    x = np.full((1, 512, 3, 3), 0.1)
    weight = np.full((1, 512, 3, 3), 0.1)
    half = F.conv2d(ndl.asarray(x, "float16"), ndl.asarray(weight, "float16"))
    assert half.dtype == ndl.float16
    np.testing.assert_allclose(half.item(), 512 * 9 * float(np.float16(0.1)) ** 2, rtol=1e-3)


def test_wrong_channels_are_explained_with_what_the_axes_mean() -> None:
    with pytest.raises(ndl.errors.ShapeError, match=r"takes 3 channels, the input \[1, 4, 8, 8\]"):
        F.conv2d(ndl.zeros((1, 4, 8, 8)), ndl.zeros((2, 3, 3, 3)))
