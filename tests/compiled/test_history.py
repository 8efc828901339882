"""Gradients flow through compiled functions as through the functions themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.graph import verify


def both(function: Any, *tensors: Any, seed: Any = None) -> Any:
    """Call eagerly and compiled; compare results and gradients."""
    compiled = ndl.compile(function)
    seen = []
    for f in (function, compiled):
        given = [ndl.Tensor(t) for t in tensors]
        out = f(*given)
        out.backward(seed)
        seen.append((out.numpy(), [t.grad.numpy() for t in given]))
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    for a, b in zip(seen[0][1], seen[1][1], strict=True):
        np.testing.assert_array_equal(a, b)
    for s in compiled.specializations:
        verify(s.traced.graph)
        if s.traced.backward is not None:
            verify(s.traced.backward.graph)
    return compiled


def test_arguments() -> None:
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    y = np.linspace(0.5, 2, 3, dtype=np.float32)
    both(lambda a, b: (a * b).exp(), x, y)
    both(lambda a, b: (a @ b).tanh().sum(), x, y)
    both(lambda a: a, x)
    both(lambda a: a.exp(), x, seed=ndl.asarray(2 * np.ones((2, 3), np.float32)))
    both(lambda a: a * a.max(axis=1, keepdims=True) + np.arange(3, dtype=np.float32), x)


def test_parameters_of_a_module() -> None:
    ndl.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 2))
    x = ndl.randn(5, 3)
    results = []
    for f in (model, ndl.compile(model)):
        model[1].running_mean.zero_()
        model.zero_grad()
        for _ in range(2):
            (f(x) ** 2).sum().backward()
        results.append([p.grad.numpy() for p in model.parameters()])
        results[-1].append(model[1].running_mean.numpy().copy())
    # Of a bias ahead of a normalisation the gradient is nothing but rounding.
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_chain_goes_on_outside() -> None:
    double = ndl.compile(lambda x: x * 2)
    x = ndl.Tensor([1.0, 2.0])
    (double(double(x * 3)) * 5).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [60.0, 60.0]
    assert len(double.specializations) == 1


def test_several_results_and_a_missing_cotangent() -> None:
    @ndl.compile
    def f(x: Any, y: Any) -> Any:
        return {"sum": x + y, "product": [x * y, 3]}

    x, y = ndl.Tensor([2.0]), ndl.Tensor([5.0])
    out: Any = f(x, y)
    assert out["product"][1] == 3
    out["product"][0].backward()
    assert x.grad is not None
    assert y.grad is not None
    assert (x.grad.item(), y.grad.item()) == (5.0, 2.0)


def test_only_what_requires_a_gradient() -> None:
    f = ndl.compile(lambda x, y: x * y)
    x, y = ndl.Tensor([2.0]), ndl.asarray([5.0])
    f(x, y).backward()
    assert x.grad is not None
    assert x.grad.item() == 5.0
    assert not f(y, y).requires_grad
    with ndl.no_grad():
        assert not f(x, y).requires_grad
    assert len(f.specializations) == 3


def test_overwritten_values_are_an_error() -> None:
    f = ndl.compile(lambda x: x.exp())
    out = f(ndl.Tensor([1.0]))
    with ndl.no_grad():
        out *= 2
    with pytest.raises(ndl.errors.GradientError, match="overwritten"):
        out.backward()
    w = ndl.Tensor([3.0])
    g = ndl.compile(lambda x: x * w)
    out = g(ndl.Tensor([1.0]))
    with ndl.no_grad():
        w += 1
    with pytest.raises(ndl.errors.GradientError, match="overwritten"):
        out.backward()


def test_a_freed_graph_and_second_derivatives_teach() -> None:
    f = ndl.compile(lambda x: x * x)
    x = ndl.Tensor([3.0])
    out = f(x)
    out.backward(retain_graph=True)
    out.backward()
    assert x.grad is not None
    assert x.grad.item() == 12.0
    with pytest.raises(ndl.errors.GradientError, match="freed"):
        out.backward()
    with pytest.raises(ndl.errors.GradientError, match="inside of the function"):
        ndl.grad(f(x), x, create_graph=True)


def test_hooks_run_once() -> None:
    w = ndl.Tensor([1.0, 2.0])
    calls = []
    w.register_hook(lambda g: calls.append(g.tolist()))
    f = ndl.compile(lambda x: (w * x).sum())
    f(ndl.asarray([3.0, 4.0])).backward()
    assert calls == [[3.0, 4.0]]


def test_second_derivatives_inside() -> None:
    @ndl.compile
    def curvature(x: Any) -> Any:
        slope = ndl.grad((x**3).sum(), x, create_graph=True)
        return ndl.grad(slope.sum(), x)

    assert curvature(ndl.Tensor([2.0, 3.0])).tolist() == [12.0, 18.0]


def test_a_step_returns_a_loss_without_history() -> None:
    w = ndl.Tensor([1.0, 2.0])
    optimizer = ndl.optim.SGD([w], lr=0.1)

    @ndl.compile
    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = (w * x).sum()
        loss.backward()
        optimizer.step()
        return loss, w * 2

    loss, later = step(ndl.ones(2))
    assert not loss.requires_grad
    with pytest.raises(ndl.errors.TraceError, match="zero_grad"):
        later.sum().backward(retain_graph=True)
    optimizer.zero_grad()
    later.sum().backward()  # computed after the step, so it has a history
    assert w.grad is not None
    assert w.grad.tolist() == [2.0, 2.0]
