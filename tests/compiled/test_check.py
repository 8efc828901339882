"""compile(check=True) finds the op whose compiled code is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.compiled import front
from needle.compiled.check import difference
from needle.errors import DivergenceError
from needle.graph import Graph, Node
from needle.graph.interpret import Interpreter
from needle.graph.ir import keep
from needle.ops.record import REGISTRY


def test_difference() -> None:
    one = np.ones(3, np.float32)
    assert difference(one, one).ulp == 0
    near = one.copy()
    near[1] = np.nextafter(np.float32(1), np.float32(2))
    assert difference(near, one)[:2] == (1.0, (1,))
    assert "1.0000001 instead of 1.0 at [1], 1 ulp" in str(difference(near, one))
    assert difference(np.array([1e-3, 1.0]), np.array([1e-3 + 1e-16, 1.0]), True).ulp < 1
    assert difference(np.array([np.nan]), np.array([np.nan])).ulp == 0
    assert difference(np.array([np.nan]), np.array([1.0])).ulp == np.inf
    assert difference(np.array([np.inf]), np.array([1e300])).ulp == np.inf
    assert difference(np.array([1, 2]), np.array([1, 3]))[:2] == (np.inf, (1,))
    tiny = np.array([0.0, np.float32(1e-45)], np.float32)
    assert difference(tiny, np.zeros(2, np.float32))[:2] == (1.0, (1,))
    half = ndl.asarray([1.0]).astype(ndl.bfloat16).numpy()
    assert difference(half, half).ulp == 0
    assert difference(np.zeros((0, 2)), np.zeros((0, 2))).ulp == 0


def build_wrong(wrong: str, by: str) -> Callable[..., Interpreter]:
    """Return a backend that computes the op ``by`` in the place of ``wrong``."""
    record: Any = REGISTRY[by]

    def transform(node: Node, inputs: Any) -> Any:
        if node.op.name != wrong:
            return keep(node, inputs).results
        return Node(record, inputs, {}, [v.spec for v in node.results]).results

    return lambda graph, *_: Interpreter(graph.rebuild(transform))


def test_a_wrong_op_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "build", build_wrong("tanh", "sin"))
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))
    f = ndl.compile(model, check=True)
    with pytest.raises(DivergenceError) as caught:
        f(ndl.ones((2, 3)))
    message = str(caught.value)
    assert "the compiled result of tanh, in the call at " in message
    assert "test_check.py" in message
    assert "in layer 1" in message
    assert " ulp\n" in message
    assert "tanh(v" in message


def test_a_wrong_op_of_the_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "build", build_wrong("cos", "sin"))
    x = ndl.Tensor([1.0, 2.0])
    with pytest.raises(DivergenceError, match="result of cos, in the backward pass of the call"):
        ndl.compile(lambda x: x.sin(), check=True)(x).backward()


def test_a_wrong_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """All ops are right by themselves, but the program as a whole is not."""

    def wrong(graph: Graph, *_: object) -> Interpreter:
        if not graph.name.endswith("_checked"):
            return build_wrong("exp", "sin")(graph)
        return Interpreter(graph)

    monkeypatch.setattr(front, "build", wrong)
    with pytest.raises(DivergenceError, match=r"output 0 .* no op is wrong by itself"):
        ndl.compile(lambda x: x.exp(), check=True)(ndl.ones(2))


@pytest.mark.parametrize("backend", ["interpret", "cpu"])
def test_a_right_program_passes(backend: str) -> None:
    ndl.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
    optimizer = ndl.optim.Adam(model.parameters(), lr=0.01)
    loss_of = nn.CrossEntropyLoss()

    @ndl.compile(check=True, backend=backend)
    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        ndl.optim.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        return loss

    x = ndl.random.normal((8, 4))
    losses = [step(x, ndl.asarray(np.arange(8) % 3)).item() for _ in range(3)]
    assert losses[0] > losses[-1]


def test_sums_of_overlapping_windows_may_round_otherwise() -> None:
    """Many taps are added up in another order than by the reference."""
    x = ndl.asarray(np.random.default_rng(0).standard_normal((3, 2, 5, 6)), dtype=ndl.float32)
    f = ndl.compile(lambda x: ndl.fold_windows(x, (7, 10), (1, 3)), check=True, backend="cpu")
    np.testing.assert_allclose(
        f(x).numpy(), ndl.fold_windows(x, (7, 10), (1, 3)).numpy(), rtol=1e-5, atol=1e-6
    )
