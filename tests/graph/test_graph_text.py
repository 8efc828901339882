"""Graphs print as Python."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

import needle as ndl
from needle import nn
from needle.graph import Graph, interpret, trace
from needle.graph.text import identifier


def body_of(graph: Graph) -> list[str]:
    ast.parse(str(graph))
    return [line.partition("#")[0].strip() for line in str(graph).splitlines()]


def test_a_training_step() -> None:
    ndl.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3))
    optimizer = ndl.optim.SGD(model.parameters(), lr=0.5)

    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        optimizer.step()
        return loss

    text = str(trace(step, ndl.ones((4, 2))).graph)
    lines = body_of(trace(step, ndl.ones((4, 2))).graph)
    assert lines[0] == "def step("
    assert lines[1:6] == [
        "x: float32[4, 2],",
        "_0_weight: float32[2, 3],",
        "_0_bias: float32[3],",
        "dampening: float64[()]," if "dampening" in text else "momentum: float64[()],",
        "lr: float64[()],",
    ]
    assert "_0_weight[...] = v" in text
    assert "test_graph_text.py:" in text
    assert " 0\n" in text  # the layer
    assert " backward\n" in text


def test_names() -> None:
    assert identifier("0.weight") == "_0_weight"
    assert identifier("batch['x'][0]") == "batch_x_0"
    assert identifier("class") == "class_"
    assert identifier("…") == "v"
    lines = body_of(trace(lambda x, y: x + y["x"], ndl.ones(1), {"x": ndl.ones(1)}).graph)
    assert lines[0] == "def lambda_(x: float32[1], y_x: float32[1]):"


def test_several_results_constants_and_attributes() -> None:
    def f(x: Any) -> Any:
        a, b = ndl.split(x, 2)
        return ndl.sum(a * np.arange(3, dtype=np.float32), axis=-1), b.astype("int64") > 1

    lines = body_of(trace(f, ndl.ones((4, 3))).graph)
    assert lines[1] == "c0: float32[3] = [0., 1., 2.]"
    assert any(line.startswith("v0, v1 = ") or "starts=(0, 0)" in line for line in lines)
    assert any("axes=(1,), keepdims=False" in line for line in lines)
    assert any("dtype=int64" in line for line in lines)
    assert any(line.endswith("greater(v5, 1)") or ", 1)" in line for line in lines)


def test_big_constants_are_abbreviated_and_equal_ones_are_numbers() -> None:
    def f(x: Any) -> Any:
        return x + np.arange(10000, dtype=np.float32) + np.full(10000, 3.0, np.float32)

    graph = trace(f, ndl.ones(10000)).graph
    assert len(str(graph)) < 600
    assert "broadcast_to(3.0, shape=(10000,))" in str(graph)
    (result,) = interpret(graph, [np.zeros(10000, np.float32)])
    np.testing.assert_array_equal(result, np.arange(10000) + 3)


def test_signed_zeros_are_not_equal() -> None:
    values = np.array([0.0, -0.0], np.float32)
    graph = trace(lambda x: x * values.copy(), ndl.ones(2))
    (result,) = interpret(graph.graph, [np.ones(2, np.float32)])
    assert np.signbit(result).tolist() == [False, True]
