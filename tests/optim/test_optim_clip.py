"""Gradient clipping against PyTorch and against the definition."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from optim_problems import bits, make_params, set_grads

import needle as ndl
from needle import optim
from needle.errors import ArgumentError, ArgumentTypeError, GradientError


def grads_of(params: list[ndl.Tensor]) -> list[Any]:
    return [None if p.grad is None else p.grad.numpy().copy() for p in params]


@pytest.mark.peers
@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e3])
@pytest.mark.parametrize("norm_type", [1.0, 2.0, 2, 3.5, 0.5, math.inf])
def test_norm_clipping_is_torchs(norm_type: float, max_norm: float) -> None:
    torch = pytest.importorskip("torch")
    params = make_params(np.float64)
    set_grads(params, 0)
    params = [p for p in params if p.size]  # PyTorch has no largest element of nothing
    params.append(ndl.Tensor([1.0]))
    tensors = []
    for p in params:
        tensors.append(torch.tensor(p.detach().numpy().copy(), requires_grad=True))
        tensors[-1].grad = None if p.grad is None else torch.tensor(p.grad.numpy().copy())
    ours = optim.clip_grad_norm_(params, max_norm, norm_type)
    theirs = torch.nn.utils.clip_grad_norm_(tensors, max_norm, norm_type)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-12)
    for p, t in zip(params, tensors, strict=True):
        assert (p.grad is None) == (t.grad is None)
        if p.grad is not None:
            np.testing.assert_allclose(p.grad.numpy(), t.grad.numpy(), rtol=1e-12)


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20),
    st.floats(0.0, 100.0, allow_subnormal=False),
    st.sampled_from([1.0, 2.0, math.inf]),
)
@settings(max_examples=100, deadline=None)
def test_norm_is_limited_and_direction_kept(
    values: list[float], max_norm: float, norm_type: float
) -> None:
    w = ndl.Tensor(np.zeros(len(values)))
    w.grad = ndl.asarray(np.array(values))
    norm = optim.clip_grad_norm_(w, max_norm, norm_type)
    exact = np.linalg.norm(np.array(values), norm_type)
    assert norm.item() == pytest.approx(exact, rel=1e-12)
    clipped = w.grad.numpy()
    assert np.linalg.norm(clipped, norm_type) <= max_norm * (1 + 1e-12) or exact <= max_norm
    factor = min(1.0, max_norm / (exact + 1e-6))
    np.testing.assert_allclose(clipped, np.array(values) * factor, rtol=1e-12)


def test_gradients_below_the_norm_keep_their_bits() -> None:
    params = make_params()
    set_grads(params, 0)
    before = grads_of(params)
    optim.clip_grad_norm_(params, 1e6)
    assert all(np.array_equal(a, b) for a, b in zip(grads_of(params), before, strict=True))


def test_mixed_dtypes_are_scaled_alike() -> None:
    params = [ndl.Tensor(np.zeros(2, dtype=d)) for d in (np.float32, np.float64)]
    half = ndl.Tensor([0.0, 0.0], dtype="bfloat16")
    for p in (*params, half):
        p.grad = ndl.asarray([2.0, 2.0]).astype(p.dtype)
    norm = optim.clip_grad_norm_([*params, half], math.sqrt(24) / 2)
    assert (norm.dtype, norm.item()) == (ndl.float64, pytest.approx(math.sqrt(24)))
    for p in (*params, half):
        assert p.grad is not None
        assert p.grad.dtype == p.dtype
        assert p.grad.astype("float32").numpy() == pytest.approx(1.0, rel=1e-2)


def test_no_gradients_have_norm_zero() -> None:
    assert optim.clip_grad_norm_([ndl.Tensor([1.0])], 1.0).item() == 0.0
    assert optim.get_total_norm([]).item() == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norms_that_are_not_finite_are_an_error_if_asked_for(value: float) -> None:
    w = ndl.Tensor([1.0, 1.0])
    w.grad = ndl.asarray([value, 1.0])
    with pytest.raises(GradientError, match=str(value)):
        optim.clip_grad_norm_([w], 1.0, error_if_nonfinite=True)
    assert bits([w.grad]) == bits([ndl.asarray([value, 1.0])])
    assert not math.isfinite(optim.clip_grad_norm_([w], 1.0).item())


def test_values_are_limited() -> None:
    w = ndl.Tensor([0.0] * 5)
    w.grad = ndl.asarray([-3.0, -0.5, 0.0, 7.0, math.nan])
    optim.clip_grad_value_([w, ndl.Tensor([1.0])], 2)
    assert np.array_equal(w.grad.numpy(), [-2.0, -0.5, 0.0, 2.0, math.nan], equal_nan=True)
    optim.clip_grad_value_(w, 0.0)
    assert w.grad.tolist()[:4] == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_bad_limits_are_refused(bad: float) -> None:
    w = ndl.Tensor([1.0])
    with pytest.raises(ArgumentError, match="max_norm"):
        optim.clip_grad_norm_([w], bad)
    with pytest.raises(ArgumentError, match="clip_value"):
        optim.clip_grad_value_([w], bad)
    with pytest.raises(ArgumentError, match="norm_type"):
        optim.clip_grad_norm_([w], 1.0, bad)


def test_what_is_no_parameter_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="str"):
        optim.clip_grad_norm_(["w"], 1.0)  # type: ignore[list-item]
