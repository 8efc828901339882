"""Pooling against PyTorch, over random windows; and what PyTorch leaves undefined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

import needle as ndl
from needle.nn import functional as F

small = st.integers(1, 3)
pairs = st.tuples(small, small)


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    kernel = draw(pairs)
    return {
        "kernel_size": kernel,
        "stride": draw(pairs),
        "padding": tuple(draw(st.integers(0, k // 2)) for k in kernel),
        "ceil_mode": draw(st.booleans()),
    }


images = st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(1, 8), st.integers(1, 8))


def image(shape: tuple[int, ...]) -> np.ndarray:
    # Few values: ties are the interesting case.
    return np.random.default_rng(sum(shape)).integers(-3, 4, shape).astype(np.float64)


def compare(name: str, x: np.ndarray, arguments: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    theirs, ours = torch.tensor(x, requires_grad=True), ndl.Tensor(x.copy())
    try:
        expected = getattr(torch.nn.functional, name)(theirs, **arguments)
    except RuntimeError:
        with pytest.raises(ndl.NeedleError):
            getattr(F, name)(ours, **arguments)
        return
    actual = getattr(F, name)(ours, **arguments)
    np.testing.assert_allclose(actual.numpy(), expected.detach().numpy(), atol=1e-12)
    cotangent = np.random.default_rng(0).standard_normal(actual.shape)
    actual.backward(ndl.asarray(cotangent))
    expected.backward(torch.tensor(cotangent))
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), atol=1e-12)


@pytest.mark.peers
@settings(max_examples=150, deadline=None)
@given(images, windows())
def test_max_pool_agrees_with_pytorch(shape: tuple[int, ...], arguments: dict[str, Any]) -> None:
    compare("max_pool2d", image(shape), arguments)


@pytest.mark.peers
@settings(max_examples=150, deadline=None)
@example((1, 1, 4, 1), {"kernel_size": (3, 1), "stride": (3, 1)}, False)  # rows of one element
@given(images, windows(), st.booleans())
def test_avg_pool_agrees_with_pytorch(
    shape: tuple[int, ...], arguments: dict[str, Any], include: bool
) -> None:
    compare("avg_pool2d", image(shape), {**arguments, "count_include_pad": include})


@pytest.mark.peers
@settings(max_examples=80, deadline=None)
@given(images, pairs, st.sampled_from(["adaptive_avg_pool2d", "adaptive_max_pool2d"]))
def test_adaptive_pools_agree_with_pytorch(
    shape: tuple[int, ...], size: tuple[int, int], name: str
) -> None:
    if shape[0]:
        compare(name, image(shape), {"output_size": size})


@pytest.mark.peers
def test_dilated_max_pool_agrees_with_pytorch() -> None:
    for dilation in (1, 2, 3):
        compare("max_pool2d", image((2, 3, 9, 11)), {"kernel_size": 3, "dilation": dilation})


def test_a_window_of_nothing_but_padding_is_minus_infinity_without_gradient() -> None:
    x = ndl.Tensor(np.ones((1, 1, 4, 1)))
    y = F.max_pool2d(x, (1, 2), stride=1, padding=(0, 1), dilation=(1, 2))
    assert (y.numpy() == -np.inf).all()
    y.backward()
    assert (x.grad.numpy() == 0).all()


def test_pooling_keeps_integers_and_nan() -> None:
    x = np.arange(16).reshape(1, 1, 4, 4)
    assert F.max_pool2d(ndl.asarray(x), 3, padding=1).dtype == ndl.int64
    y = x.astype(np.float32)
    y[0, 0, 1, 1] = np.nan
    assert np.isnan(F.max_pool2d(ndl.asarray(y), 2).numpy()).sum() == 1


def test_a_mean_of_16_bits_is_in_range_where_the_sum_is_not() -> None:
    x = ndl.asarray(np.full((1, 1, 64, 64), 100.0), "float16")
    for y in (F.avg_pool2d(x, 64), F.adaptive_avg_pool2d(x, 1), F.avg_pool2d(x, 64, padding=1)):
        assert y.dtype == ndl.float16
        assert y.numpy().max() == pytest.approx(100, rel=0.05)


def test_padding_of_bools_is_false() -> None:
    x = np.zeros((1, 1, 3, 3), bool)
    x[0, 0, 2, 2] = True
    y = F.max_pool2d(ndl.asarray(x), 2, padding=1)
    assert y.tolist() == [[[[False, False], [False, True]]]]


def test_the_first_nan_of_a_window_is_chosen() -> None:
    """Whatever lies around it, infinity too; in each of several blocks of planes."""
    x = np.random.default_rng(0).standard_normal((3, 70, 40, 40))
    x[1, 69, 0, :4] = [1.0, np.inf, np.nan, np.nan]
    places = ndl.window_argmax(ndl.asarray(x), (1, 4), (1, 4)).numpy()
    windows_of_x = x.reshape(3, 70, 40, 10, 4)
    expected = np.argmax(windows_of_x, axis=-1)  # NumPy's rule is the same
    shift = 40 * np.arange(40)[:, None] + 4 * np.arange(10)
    np.testing.assert_array_equal(places, expected + shift)
    assert places[1, 69, 0, 0] == 2


def test_windows_of_more_taps_than_a_byte_counts() -> None:
    x = np.random.default_rng(0).standard_normal((2, 20, 20))
    places = ndl.window_argmax(ndl.asarray(x), 20).numpy()
    np.testing.assert_array_equal(places.ravel(), x.reshape(2, -1).argmax(axis=1))
