"""The reference of convolution: the same result in blocks of any size, and bounded memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from convolution_cases import Case, cases
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.ops import unfolding
from needle.ops.unfolding import convolve, convolve_input_grad, convolve_weight_grad


def all_three(case: Case) -> list[np.ndarray]:
    x, weight, g, attrs = case
    return [
        convolve(x, weight, **attrs),
        convolve_input_grad(g, weight, size=x.shape[2:], **attrs),
        convolve_weight_grad(g, x, kernel=weight.shape[2:], **attrs),
    ]


@settings(max_examples=150, deadline=None)
@given(cases())
def test_the_three_are_one_trilinear_form(case: Case) -> None:
    """⟨g, conv(x, w)⟩ is the same number whichever of the three is differentiated."""
    x, weight, g, _ = case
    y, dx, dw = all_three(case)
    expected = np.vdot(g, y)
    assert np.vdot(dx, x) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert np.vdot(dw, weight) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    cases(), st.sampled_from([(1, 1, 1), (400, 200, 8), (2000, 10**6, 10**6), (10**6, 1, 10**6)])
)
def test_blocks_do_not_matter(case: Case, sizes: tuple[int, int, int]) -> None:
    expected = all_three(case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfolding, "_IMAGES_BYTES", sizes[0])
        patch.setattr(unfolding, "_ROWS_BYTES", sizes[1])
        patch.setattr(unfolding, "_SUMMED_PIXELS", sizes[2])
        for a, e in zip(all_three(case), expected, strict=True):
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "size"),
    [(16, 16, 3, 1, 32), (64, 64, 3, 1, 8), (3, 64, 7, 2, 30), (17, 5, 3, 2, 7), (32, 64, 1, 1, 9)],
)
def test_no_bit_of_an_image_depends_on_its_batch(
    channels: int, out: int, kernel: int, stride: int, size: int
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((33, channels, size, size), dtype=np.float32)
    weight = rng.standard_normal((out, channels, kernel, kernel), dtype=np.float32)
    pads = ((kernel // 2, kernel // 2),) * 2
    attrs: dict[str, Any] = {"stride": (stride,) * 2, "pads": pads, "dilation": (1, 1), "groups": 1}
    y = convolve(x, weight, **attrs)
    g = convolve_input_grad(y, weight, size=(size, size), **attrs)
    for images in (slice(0, 1), slice(5, 8), slice(13, 33)):
        np.testing.assert_array_equal(convolve(x[images], weight, **attrs), y[images])
        part = convolve_input_grad(y[images], weight, size=(size, size), **attrs)
        np.testing.assert_array_equal(part, g[images])


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("shape", [(256, 8, 24, 24), (1, 8, 400, 400)])
def test_temporary_memory_is_bounded(shape: tuple[int, ...], which: int) -> None:
    """Of many images and of a large one; im2col would take 40 MiB for each."""
    x = np.ones(shape, np.float32)
    weight = np.ones((8, 8, 3, 3), np.float32)
    attrs: dict[str, Any] = {
        "stride": (1, 1), "pads": ((1, 1), (1, 1)), "dilation": (1, 1), "groups": 1,
    }  # fmt: skip
    run = (
        lambda: convolve(x, weight, **attrs),
        lambda: convolve_input_grad(x, weight, size=shape[2:], **attrs),
        lambda: convolve_weight_grad(x, x, kernel=(3, 3), **attrs),
    )[which]
    tracemalloc.start()
    try:
        result = run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < 16 << 20


def test_the_gradient_by_the_weight_takes_any_layout() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 5, 3, 2)).transpose(3, 2, 0, 1)
    weight = rng.standard_normal((3, 3, 3, 4)).transpose(3, 2, 1, 0)[:, ::-1]
    results = [
        ndl.grad(ndl.conv2d(a, b, padding=1).exp().sum(), [a, b])
        for a, b in [
            (ndl.Tensor(x), ndl.Tensor(weight)),
            (ndl.Tensor(np.ascontiguousarray(x)), ndl.Tensor(np.ascontiguousarray(weight))),
        ]
    ]
    for a, e in zip(*results, strict=True):
        np.testing.assert_allclose(a.numpy(), e.numpy(), rtol=1e-12)
