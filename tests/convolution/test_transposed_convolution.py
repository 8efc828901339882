"""Transposed convolution and signals against PyTorch, over random shapes, to second order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.nn import functional as F

pytestmark = pytest.mark.peers

Problem = tuple[str, np.ndarray, np.ndarray, dict[str, Any]]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    rank = draw(st.sampled_from([1, 2]))
    name = draw(st.sampled_from(["conv", "conv_transpose", "conv_transpose"]))
    groups = draw(st.integers(1, 3))
    inside, outside = draw(st.integers(1, 3)), draw(st.integers(1, 3))

    def some(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, stride, dilation, padding = some(1, 3), some(1, 3), some(1, 3), some(0, 2)
    arguments: dict[str, Any] = {
        "stride": stride, "padding": padding, "dilation": dilation, "groups": groups,
    }  # fmt: skip
    if name == "conv":
        channels, weight = groups * inside, (groups * outside, inside, *kernel)
    else:
        channels, weight = groups * inside, (groups * inside, outside, *kernel)
        arguments["output_padding"] = tuple(
            draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)
        )
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    x = rng.standard_normal((draw(st.integers(1, 2)), channels, *some(1, 7)))
    return f"{name}{rank}d", x, rng.standard_normal(weight), arguments


@settings(max_examples=200, deadline=None)
@given(problems())
def test_values_and_derivatives_agree_with_pytorch(problem: Problem) -> None:
    torch = pytest.importorskip("torch")
    name, x, weight, arguments = problem
    ours = [ndl.Tensor(x.copy()), ndl.Tensor(weight.copy())]
    theirs = [torch.tensor(x, requires_grad=True), torch.tensor(weight, requires_grad=True)]
    try:
        expected = getattr(torch.nn.functional, name)(*theirs, **arguments)
    except RuntimeError:
        with pytest.raises(ndl.NeedleError):
            getattr(F, name)(*ours, **arguments)
        return
    actual = getattr(F, name)(*ours, **arguments)
    np.testing.assert_allclose(actual.numpy(), expected.detach().numpy(), atol=1e-12)
    slopes = ndl.grad((actual * actual).sum(), ours, create_graph=True)
    expected_slopes = torch.autograd.grad((expected * expected).sum(), theirs, create_graph=True)
    for a, e in zip(slopes, expected_slopes, strict=True):
        np.testing.assert_allclose(a.numpy(), e.detach().numpy(), rtol=1e-10, atol=1e-10)
    second = ndl.grad(sum((s * s).sum() for s in slopes), ours)
    expected_second = torch.autograd.grad(sum((s * s).sum() for s in expected_slopes), theirs)
    for a, e in zip(second, expected_second, strict=True):
        np.testing.assert_allclose(a.numpy(), e.detach().numpy(), rtol=1e-9, atol=1e-8)
