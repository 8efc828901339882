"""The arithmetic of a step: first steps by hand, both ways of running, dtypes, convergence."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from optim_problems import VARIANTS, bits, make_optimizer, make_params, set_grads, train

import needle as ndl
from needle import optim
from needle.optim import foreach

LR, G, W = 0.1, 2.0, 3.0


def after_one_step(kind: type[optim.Optimizer], **options: Any) -> float:
    w = ndl.Tensor(W, dtype="float64")
    w.grad = ndl.asarray(np.array(G))
    kind([w], lr=LR, **options).step()
    return float(w.item())


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        (optim.SGD, {}, W - LR * G),
        (optim.SGD, {"maximize": True}, W + LR * G),
        (optim.SGD, {"weight_decay": 0.5}, W - LR * (G + 0.5 * W)),
        (optim.SGD, {"weight_decay": 0.5, "decoupled": True}, (1 - LR * 0.5) * W - LR * G),
        (optim.SGD, {"momentum": 0.9}, W - LR * 0.1 * G),
        (optim.SGD, {"momentum": 0.9, "dampening": 0.0}, W - LR * G),
        (optim.SGD, {"momentum": 0.9, "dampening": 0.25}, W - LR * 0.75 * G),
        (optim.SGD, {"momentum": 0.9, "nesterov": True}, W - LR * (0.9 * 0.1 * G + 0.1 * G)),
        (optim.Adam, {"eps": 0.0}, W - LR),
        (optim.Adam, {"eps": 1.0}, W - LR * G / (G + 1)),
        (
            optim.Adam,
            {"bias_correction": False, "eps": 0.5},
            W - LR * 0.1 * G / (math.sqrt(0.001) * G + 0.5),
        ),
        (optim.AdamW, {"eps": 0.0}, (1 - LR * 0.01) * W - LR),
        (optim.RMSprop, {"alpha": 0.75, "eps": 0.5}, W - LR * G / (0.5 * G + 0.5)),
        (
            optim.RMSprop,
            {"alpha": 0.75, "eps": 0.0, "centered": True},
            W - LR * G / math.sqrt(0.25 * G**2 - (0.25 * G) ** 2),
        ),
        (optim.Adagrad, {"eps": 0.5}, W - LR * G / (G + 0.5)),
        (
            optim.Adagrad,
            {"eps": 0.0, "initial_accumulator_value": 5.0},
            W - LR * G / math.sqrt(5.0 + G**2),
        ),
    ],
)
def test_first_step_in_closed_form(
    kind: type[optim.Optimizer], options: dict[str, Any], expected: float
) -> None:
    assert after_one_step(kind, **options) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum_of_a_constant_gradient_is_a_geometric_sum(nesterov: bool) -> None:
    w = ndl.Tensor(0.0, dtype="float64")
    optimizer = optim.SGD([w], lr=1.0, momentum=0.5, nesterov=nesterov)
    for t in range(1, 9):
        w.grad = ndl.asarray(np.array(1.0))
        before = w.item()
        optimizer.step()
        average = 1 - 0.5 ** (t + nesterov)
        assert before - w.item() == pytest.approx(average, rel=1e-12)


def test_nan_gradient_goes_where_it_belongs_and_nowhere_else() -> None:
    params = [ndl.Tensor([1.0, 1.0]), ndl.Tensor([1.0])]
    params[0].grad, params[1].grad = ndl.asarray([math.nan, 1.0]), ndl.asarray([1.0])
    optim.Adam(params, lr=0.5).step()
    assert np.isnan(params[0].detach().numpy()).tolist() == [True, False]
    assert np.isfinite(params[1].detach().numpy()).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_arrays_and_ops_give_the_same_bits(
    variant: str, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for plain in (True, False):
        if not plain:
            monkeypatch.setattr(foreach, "is_plain", lambda *_: False)
        params = make_params(dtype)
        optimizer = make_optimizer(variant, params)
        train(optimizer, params, range(10))
        state = [t for p in params for t in optimizer.state[p].values()]
        results.append(bits(params) + bits(state))
    assert results[0] == results[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_runs_give_the_same_bits(variant: str) -> None:
    runs = []
    for _ in range(2):
        params = make_params()
        train(make_optimizer(variant, params), params, range(10))
        runs.append(bits(params))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_write_is_seen_by_a_backward_pass(variant: str) -> None:
    w = ndl.Tensor([1.0, 2.0])
    loss = (w * w).sum()
    w.grad = ndl.asarray([1.0, 1.0])
    make_optimizer(variant, [w]).step()
    with pytest.raises(ndl.errors.GradientError, match="overwritten"):
        loss.backward()


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_only_read(variant: str) -> None:
    params = make_params()
    set_grads(params, 0)
    before = bits([p.grad for p in params if p.grad is not None])
    make_optimizer(variant, params).step()
    assert bits([p.grad for p in params if p.grad is not None]) == before


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_16_bit_parameters_are_computed_in_float32(variant: str, dtype: str) -> None:
    start = [p.detach().astype(dtype) for p in make_params()]
    params = [ndl.Tensor(p.numpy()) for p in start]
    exact = [ndl.Tensor(p.astype("float32").numpy()) for p in start]
    ours, reference = make_optimizer(variant, params), make_optimizer(variant, exact)
    set_grads(params, 0)
    for p, e in zip(params, exact, strict=True):
        assert p.grad is not None
        e.grad = p.grad.astype("float32")
    ours.step()
    reference.step()
    assert bits(params) == bits([e.detach().astype(dtype) for e in exact])
    for p in params:
        assert all(t.dtype in (ndl.float32, ndl.int64) for t in ours.state[p].values())


def test_views_and_transposed_storage_are_updated_in_place() -> None:
    base = np.arange(12, dtype=np.float32).reshape(3, 4)
    w = ndl.Tensor(base.T[::2])
    w.grad = ndl.ones(w.shape)
    optim.SGD([w], lr=1.0).step()
    assert base[:, ::2].tolist() == [[-1, 1], [3, 5], [7, 9]]
    assert base[:, 1::2].tolist() == [[1, 3], [5, 7], [9, 11]]


def test_read_only_parameters_are_an_error() -> None:
    array = np.ones(3, dtype=np.float32)
    array.flags.writeable = False
    w = ndl.Tensor(array)
    w.grad = ndl.ones(3)
    with pytest.raises(ndl.errors.ArgumentError, match="read-only"):
        optim.SGD([w], lr=1.0).step()


def test_meta_parameters_can_be_stepped() -> None:
    w = ndl.Tensor(np.zeros((2, 3), dtype=np.float32), device="meta")
    w.grad = ndl.zeros((2, 3), device="meta")
    optimizer = optim.Adam([w])
    optimizer.step()
    assert optimizer.state[w]["exp_avg"].device == w.device


def quadratic(w: ndl.Tensor) -> Any:
    target = ndl.asarray([1.0, -2.0, 3.0], dtype=w.dtype)
    scale = ndl.asarray([1.0, 5.0, 10.0], dtype=w.dtype)
    return (scale * (w - target) ** 2).sum()


def rosenbrock(w: ndl.Tensor) -> Any:
    x, y = w[0], w[1]
    return (1 - x) ** 2 + 100 * (y - x * x) ** 2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (optim.SGD, {"lr": 0.05}),
        (optim.SGD, {"lr": 0.05, "momentum": 0.5}),
        (optim.SGD, {"lr": 0.02, "momentum": 0.8, "nesterov": True}),
        (optim.Adam, {"lr": 0.1}),
        (optim.Adam, {"lr": 0.1, "amsgrad": True}),
        (optim.AdamW, {"lr": 0.1, "weight_decay": 0.0}),
        (optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
        (optim.Adagrad, {"lr": 1.0}),
    ],
)
def test_finds_the_minimum_of_a_quadratic(kind: Any, options: dict[str, Any]) -> None:
    w = ndl.Tensor([0.0, 0.0, 0.0], dtype="float64")
    optimizer = kind([w], **options)
    for _ in range(600):
        optimizer.zero_grad()
        quadratic(w).backward()
        optimizer.step()
    # RMSprop's steps do not shrink: it ends in a neighbourhood of the size of a step.
    near = 0.05 if kind is optim.RMSprop else 1e-3
    assert np.abs(w.detach().numpy() - [1.0, -2.0, 3.0]).max() < near


def test_adam_walks_down_rosenbrocks_valley() -> None:
    w = ndl.Tensor([-1.2, 1.0], dtype="float64")
    optimizer = optim.Adam([w], lr=0.2, betas=(0.9, 0.99))
    schedule = optim.CosineAnnealingLR(optimizer, 1000)
    for _ in range(1000):
        optimizer.zero_grad()
        rosenbrock(w).backward()
        optimizer.step()
        schedule.step()
    assert np.abs(w.detach().numpy() - 1.0).max() < 1e-3


def test_closure_is_called_with_gradients_on_and_its_loss_returned() -> None:
    w = ndl.Tensor([3.0])
    optimizer = optim.SGD([w], lr=0.5)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (w * w).sum()
        loss.backward()
        return loss

    with ndl.no_grad():
        loss = optimizer.step(closure)
    assert loss is not None
    assert (loss.item(), w.item()) == (9.0, 0.0)


def test_anomalies_in_a_step_are_found() -> None:
    w = ndl.Tensor([1.0])
    w.grad = ndl.asarray([1e30])
    optimizer = optim.SGD([w], lr=1e30)
    with ndl.detect_anomaly(), pytest.raises(ndl.errors.AnomalyError, match="multiply: inf"):
        optimizer.step()
    optimizer.step()
    assert w.item() == -math.inf


def test_memory_does_not_grow_with_steps() -> None:
    params = make_params()
    optimizer = optim.Adam(params)
    train(optimizer, params, range(1))
    tensors = [id(t) for p in params for t in optimizer.state[p].values()]
    train(optimizer, params, range(1, 50))
    assert [id(t) for p in params for t in optimizer.state[p].values()] == tensors
