"""Traces: the graph computes what eager execution computes, and the trace leaves no marks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.graph import interpret, trace, verify
from needle.testing import assert_close


def run_graph(traced: Any, *args: Any) -> list[np.ndarray[Any, Any]]:
    return interpret(verify(traced.graph), traced.arrays(*args))


def mlp_step(optimizer_of: Any, clip: bool = True) -> tuple[Any, Any]:
    ndl.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = optimizer_of(model.parameters())
    loss_of = nn.CrossEntropyLoss()

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        if clip:
            ndl.optim.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    return model, step


def batch() -> tuple[Any, Any]:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(5, 4)).astype(np.float32)
    return ndl.asarray(x), ndl.asarray(np.array([0, 1, 2, 0, 1]))


OPTIMIZERS = {
    "sgd": lambda p: ndl.optim.SGD(p, lr=0.1),
    "momentum": lambda p: ndl.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: ndl.optim.Adam(p, lr=0.01),
    "adamw": lambda p: ndl.optim.AdamW(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_training_step_is_traced_whole(name: str) -> None:
    model, step = mlp_step(OPTIMIZERS[name])
    x, y = batch()
    before = [p.numpy().copy() for p in model.parameters()]
    versions = [p._version[0] for p in model.parameters()]
    traced = trace(step, x, y)
    for p, old, version in zip(model.parameters(), before, versions, strict=True):
        np.testing.assert_array_equal(p.numpy(), old)
        assert p._version[0] == version
        assert p.grad is None
        assert p.requires_grad
    outputs = run_graph(traced, x, y)
    loss = step(x, y)
    assert_close(ndl.asarray(outputs[0]), loss)
    assert len(traced.graph.donations) >= 4
    for output, place in traced.graph.donations.items():
        source = traced.sources[place - traced.arguments]
        assert_close(outputs[output], source.find())
    for update in traced.grads:
        assert update.tensor is not None
        assert_close(outputs[update.output], update.tensor.grad)


def test_numbers_are_constants_and_state_is_captured() -> None:
    w = ndl.Tensor([1.0, 2.0])
    mask = np.array([1.0, 0.0], dtype=np.float32)
    traced = trace(lambda x: (x + w) * mask * 3.0 + ndl.ones(2), ndl.zeros(2))
    assert traced.captured == [w, None]
    assert sorted(v.constant.item() for v in traced.graph.constants()) == [1.0, 3.0]


def test_dead_constants_are_embedded() -> None:
    traced = trace(lambda x: x + ndl.arange(3, dtype="float32"), ndl.zeros(3))
    assert not traced.sources
    (constant,) = traced.graph.constants()
    np.testing.assert_array_equal(constant.constant, [0, 1, 2])


def test_a_graph_prints_as_python() -> None:
    text = str(trace(lambda x: (x * 2.0).sum(), ndl.zeros((2, 3))).graph)
    head, first, *_ = text.splitlines()
    assert head == "def lambda_(x: float32[2, 3]):"
    assert first.startswith("    v0: float32[2, 3] = multiply(x, 2.0)")
    compile(text, "graph", "exec")
