"""Softmax and log_softmax: properties that hold for any logits."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

import needle as ndl

logits = arrays(
    np.float32, array_shapes(max_dims=3, max_side=5), elements=st.floats(-80, 80, width=32)
)


@given(logits, st.floats(-1000, 1000))
def test_shifting_all_logits_changes_nothing(x, shift):
    x, shift = x.astype(np.float64), float(shift)
    np.testing.assert_allclose(
        ndl.softmax(ndl.asarray(x + shift)).numpy(), ndl.softmax(ndl.asarray(x)).numpy(), rtol=1e-9
    )


@given(logits)
def test_probabilities_add_up_and_agree_with_their_logarithms(x):
    for axis in range(x.ndim):
        p = ndl.softmax(ndl.asarray(x), axis).numpy()
        np.testing.assert_allclose(p.sum(axis), 1, rtol=1e-5)
        log_p = ndl.log_softmax(ndl.asarray(x), axis).numpy()
        np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-4, atol=1e-37)


@given(logits)
def test_an_example_gives_the_same_bits_alone_and_in_a_batch(x):
    rows = x.reshape(-1, x.shape[-1])
    together = ndl.softmax(ndl.asarray(rows)).numpy()
    for row, expected in zip(rows, together, strict=True):
        assert np.array_equal(ndl.softmax(ndl.asarray(row)).numpy(), expected)


def test_log_softmax_is_finite_where_softmax_underflows():
    assert ndl.log_softmax(ndl.asarray([0.0, -5000.0])).tolist() == [0.0, -5000.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_logits_are_rounded_once(dtype):
    x = np.linspace(-4, 4, 101).astype(ndl.dtypes.as_dtype(dtype))
    exact = np.exp(x.astype(np.float64))
    exact /= exact.sum()
    result = ndl.softmax(ndl.asarray(x))
    assert result.dtype == x.dtype
    ulp = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    np.testing.assert_allclose(result.numpy().astype(np.float64), exact, rtol=ulp * 1.01, atol=3e-8)


def test_forbidden_logits_get_no_gradient():
    x = ndl.Tensor([0.5, -np.inf, 1.0])
    (ndl.softmax(x) * ndl.asarray([1.0, 2.0, 3.0])).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    assert x.grad.numpy()[1] == 0
