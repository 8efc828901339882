"""Whole-tensor writes: copy_, fill_, zero_."""

from __future__ import annotations

import numpy as np
import pytest

import needle as ndl
from needle.errors import GradientError, ShapeError


def test_writes_convert_broadcast_and_return_the_tensor() -> None:
    x = ndl.zeros((2, 3), dtype="bfloat16")
    assert x.copy_(np.arange(3)) is x
    assert x.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert x.fill_(0.5).tolist() == [[0.5] * 3] * 2
    assert x.zero_().tolist() == [[0] * 3] * 2
    y = ndl.ones(2, dtype="int64")
    assert y.copy_(ndl.asarray([1.7, -1.7])).tolist() == [1, -1]


def test_copy_is_recorded() -> None:
    x = ndl.Tensor([1.0, 2.0])
    y = ndl.zeros(2)
    y.copy_(x * 3)
    (y * y).sum().backward()
    assert x.grad.tolist() == [18.0, 36.0]


def test_zeroing_cuts_the_history() -> None:
    x = ndl.Tensor([1.0, 2.0])
    y = x * 3
    y.zero_()
    assert not y.requires_grad


def test_leaves_are_protected() -> None:
    x = ndl.Tensor([1.0, 2.0])
    with pytest.raises(GradientError, match="no_grad"):
        x.zero_()
    with ndl.no_grad():
        x.zero_()
    assert x.requires_grad
    assert x.tolist() == [0.0, 0.0]


def test_shapes_must_fit() -> None:
    with pytest.raises(ShapeError, match="does not expand"):
        ndl.zeros(2).copy_(ndl.zeros(3))


def test_a_leaf_that_is_used_many_times_gets_the_sum() -> None:
    x = ndl.Tensor(np.arange(4.0))
    factors = np.random.default_rng(0).standard_normal((50, 4))
    total = ndl.zeros((), dtype="float64")
    for f in factors:
        total = total + (x * ndl.asarray(f)).sum()
    total.backward()
    np.testing.assert_allclose(x.grad.numpy(), factors.sum(0))
    grads = [ndl.grad((x + x + x).sum(), x) for _ in range(2)]
    assert grads[0].tolist() == grads[1].tolist() == [3.0] * 4
