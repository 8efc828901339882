"""Dropout: what is kept, how often, and that it repeats itself."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import needle as ndl
import needle.nn.functional as F


@given(st.floats(0, 0.999), st.integers(0, 1000))
def test_each_element_is_zero_or_scaled(p, seed):
    x = ndl.asarray(np.arange(1.0, 65.0))
    result = F.dropout(x, p, generator=ndl.random.Generator(seed)).numpy()
    np.testing.assert_allclose(result[result != 0], (x.numpy() / (1 - p))[result != 0], rtol=1e-12)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for(p):
    n = 200_000
    result = F.dropout(ndl.ones(n), p, generator=ndl.random.Generator(0)).numpy()
    dropped = float((result == 0).mean())
    assert abs(dropped - p) < 5 * (p * (1 - p) / n) ** 0.5
    assert result.mean() == pytest.approx(1, abs=0.02)


def test_the_same_elements_are_kept_in_every_dtype():
    kept = [
        F.dropout(ndl.ones(100, dtype=d), 0.3, generator=ndl.random.Generator(3)).numpy() != 0
        for d in ndl.dtypes.FLOATS
    ]
    assert all(np.array_equal(k, kept[0]) for k in kept)


def test_gradients_flow_through_what_is_kept():
    x = ndl.Tensor(np.ones(50))
    y = F.dropout(x, 0.4, generator=ndl.random.Generator(0))
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), y.numpy())


def test_dropping_all_gives_zeros_even_of_nan_and_no_gradient():
    x = ndl.Tensor([1.0, float("nan"), float("inf")])
    y = F.dropout(x, 1.0)
    y.sum().backward()
    assert y.tolist() == [0, 0, 0]
    assert x.grad.tolist() == [0, 0, 0]


def test_the_default_generator_repeats_itself_after_manual_seed():
    draws = []
    for _ in range(2):
        ndl.manual_seed(7)
        draws.append([F.dropout(ndl.ones(20)).tolist() for _ in range(2)])
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[0][1]


def test_evaluation_returns_the_tensor_itself_and_draws_nothing():
    generator = ndl.random.Generator(0)
    before = generator.state.tolist()
    x = ndl.ones(3)
    assert F.dropout(x, 0.5, training=False, generator=generator) is x
    assert F.dropout(x, 0.0, generator=generator) is x
    assert generator.state.tolist() == before


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_that_is_no_probability_is_an_error_even_at_evaluation(p):
    with pytest.raises(ndl.errors.ArgumentError, match="from 0 to 1"):
        F.dropout(ndl.ones(3), p, training=False)


def test_the_meta_device_draws_no_bits():
    x = ndl.zeros((1 << 20, 1 << 20), device="meta")
    assert F.dropout(x, 0.5).shape == x.shape
