"""Normalisation beyond the samples of the records: running statistics, precision, mistakes."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import needle as ndl
from needle.errors import DTypeError


@pytest.mark.peers
@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (2, 3, 4, 5)])
def test_running_statistics_follow_those_of_pytorch_over_steps(shape):
    import torch

    rng = np.random.default_rng(0)
    mean, var = ndl.zeros(3), ndl.ones(3)
    peer_mean, peer_var = torch.zeros(3), torch.ones(3)
    for momentum in (0.1, 0.1, 0.5, 1.0):
        x = rng.normal(2, 3, shape).astype(np.float32)
        ours = ndl.batch_norm(ndl.asarray(x), mean, var, training=True, momentum=momentum)
        theirs = torch.nn.functional.batch_norm(
            torch.from_numpy(x), peer_mean, peer_var, training=True, momentum=momentum
        )
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mean.numpy(), peer_mean.numpy(), rtol=1e-5)
        np.testing.assert_allclose(var.numpy(), peer_var.numpy(), rtol=1e-5)


def test_evaluation_leaves_running_statistics_alone():
    mean, var = ndl.asarray([1.0, 2.0]), ndl.asarray([4.0, 9.0])
    result = ndl.batch_norm(ndl.asarray([[3.0, 5.0]]), mean, var, eps=0.0)
    np.testing.assert_allclose(result.numpy(), [[1.0, 1.0]], rtol=1e-6)
    assert mean.tolist() == [1.0, 2.0]
    assert var.tolist() == [4.0, 9.0]


def test_running_statistics_carry_no_history():
    x = ndl.Tensor(np.random.default_rng(0).normal(size=(4, 2)))
    mean, var = ndl.zeros(2), ndl.ones(2)
    ndl.batch_norm(x, mean, var, training=True).sum().backward()
    assert mean.is_leaf
    assert not mean.requires_grad
    assert var.is_leaf
    assert x.grad is not None


def test_momentum_may_be_a_tensor():
    mean, var = ndl.zeros(1), ndl.ones(1)
    x = ndl.asarray([[1.0], [3.0]])
    ndl.batch_norm(x, mean, var, training=True, momentum=ndl.asarray(0.5))
    assert mean.tolist() == [1.0]
    assert var.tolist() == [1.5]


def test_running_statistics_that_cannot_be_updated_are_refused():
    x = ndl.ones((4, 1))
    with pytest.raises(ndl.errors.ArgumentTypeError, match="running_mean must be a tensor"):
        ndl.batch_norm(x, np.zeros(1), np.ones(1), training=True)


def test_one_value_for_each_channel_says_what_to_do():
    x, mean, var = ndl.ones((1, 3)), ndl.zeros(3), ndl.ones(3)
    with pytest.raises(ndl.errors.ShapeError, match=r"shape \[1, 3\].*larger batch.*drop_last"):
        ndl.batch_norm(x, mean, var, training=True)
    assert mean.tolist() == [0, 0, 0]
    assert ndl.batch_norm(x, mean, var).shape == (1, 3)


def test_a_large_mean_does_not_cancel_the_variance():
    # In float32 the mean of squares less the square of the mean would be 0 here, or negative.
    x = ndl.asarray(np.array([10000.0, 10000.25, 10000.5, 10000.75], dtype=np.float32))
    y, mean, variance = ndl.standardize(x, eps=0.0)
    assert variance.item() == 0.078125
    assert mean.item() == 10000.375
    np.testing.assert_allclose(y.numpy().mean(), 0, atol=1e-6)


@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(0.5, 4))
def test_layer_norm_ignores_shift_and_scale_of_its_input(seed, shift, scale):
    x = np.random.default_rng(seed).normal(size=(2, 8))
    plain = ndl.layer_norm(ndl.asarray(x), 8, eps=0.0).numpy()
    moved = ndl.layer_norm(ndl.asarray(x * scale + shift), 8, eps=0.0).numpy()
    np.testing.assert_allclose(moved, plain, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_inputs_have_float32_statistics_and_are_rounded_once(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(0, 2, (4, 256)).astype(ndl.dtypes.as_dtype(dtype))
    w = rng.normal(size=256).astype(np.float32)
    _, mean, variance = ndl.standardize(ndl.asarray(x))
    assert mean.dtype == variance.dtype == ndl.float32
    result = ndl.layer_norm(ndl.asarray(x), 256, ndl.asarray(w))
    assert result.dtype == x.dtype
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    half_ulp = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    np.testing.assert_allclose(
        result.numpy().astype(np.float64), exact * w, rtol=half_ulp * 1.01, atol=1e-6
    )


def test_the_input_is_not_needed_for_the_backward_pass():
    values = np.random.default_rng(0).normal(size=(3, 5))
    expected, found = [], []
    for overwrites, into in ((False, expected), (True, found)):
        leaf = ndl.Tensor(values)
        x = leaf * 1
        y, _, _ = ndl.standardize(x)
        if overwrites:
            shared = x.detach()
            shared *= 0
        (y * ndl.asarray(values)).sum().backward()
        into.append(leaf.grad.numpy())
    np.testing.assert_array_equal(found, expected)


def test_an_example_is_normalised_the_same_alone_and_in_a_batch():
    x = np.random.default_rng(0).normal(size=(16, 37)).astype(np.float32)
    together = ndl.layer_norm(ndl.asarray(x), 37).numpy()
    for i in range(16):
        assert np.array_equal(ndl.layer_norm(ndl.asarray(x[i : i + 1]), 37).numpy()[0], together[i])


def test_parameters_of_another_dtype_are_refused_by_the_primitive():
    x = ndl.zeros((2, 4))
    with pytest.raises(DTypeError, match="a parameter is float64, the tensor float32"):
        ndl.affine_normalize(x, ndl.ones(4), ndl.zeros(4, dtype=ndl.float64))


@pytest.mark.parametrize("norm", [ndl.layer_norm, ndl.rms_norm])
def test_one_row_without_an_axis_of_rows(norm):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((5, 7)).astype("f"), rng.standard_normal(7).astype("f")
    whole = norm(ndl.asarray(x), 7, ndl.asarray(w))
    for i, row in enumerate(x):
        one = norm(ndl.asarray(row), 7, ndl.asarray(w))
        np.testing.assert_array_equal(one.numpy(), whole[i].numpy())


def test_without_parameters_zeros_keep_their_signs():
    x = np.array([[-0.0, 0.0, 1.0]], "f")
    for function in (ndl.rms_norm, ndl.compile(ndl.rms_norm)):
        y = function(ndl.asarray(x), 3).numpy()
        np.testing.assert_array_equal(np.signbit(y), np.signbit(x))
