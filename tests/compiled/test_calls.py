"""Calls of compiled functions: signatures, methods, nesting, threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn


def test_signatures() -> None:
    f = ndl.compile(lambda x, *rest, **named: x)
    x = ndl.ones(2)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((x,), {}),
        ((ndl.ones(3),), {}),
        ((x.astype(ndl.float64),), {}),
        ((ndl.Tensor([1.0, 2.0]),), {}),
        ((x, 1), {}),
        ((x, True), {}),
        ((x, 1.0), {}),
        ((x, [1, x]), {}),
        ((x, (1, x)), {}),
        ((x,), {"a": 1}),
        ((x,), {"b": 1}),
    ]
    f.budget = len(calls)
    for _ in range(2):
        for args, kwargs in calls:
            assert f(*args, **kwargs) is args[0]
    assert len(f.specializations) == len(calls)
    assert [s.calls for s in f.specializations] == [2] * len(calls)
    assert "float32[2]" in repr(f.specializations[0])


def test_the_function_runs_once(capsys: pytest.CaptureFixture[str]) -> None:
    @ndl.compile
    def f(x: Any) -> Any:
        """Double."""
        print("runs")
        return x * 2

    for i in range(3):
        assert f(ndl.full(2, float(i))).tolist() == [2.0 * i] * 2
    assert capsys.readouterr().out == "runs\n"
    assert f.__name__ == "f"
    assert f.__doc__ == "Double."
    assert f.function(ndl.ones(1)).item() == 2.0
    assert capsys.readouterr().out == "runs\n"


def test_modes_are_part_of_the_signature() -> None:
    w = ndl.Tensor([1.0])
    f = ndl.compile(lambda x: x * w)
    x = ndl.ones(1)
    assert f(x).requires_grad
    with ndl.no_grad():
        assert not f(x).requires_grad
    with ndl.inference_mode():
        y = f(x)
    with pytest.raises(ndl.errors.GradientError, match="inference_mode"):
        (y * w).backward()
    assert len(f.specializations) == 3


def test_methods_and_modules() -> None:
    class Scale(nn.Module):
        def __init__(self, factor: float) -> None:
            self.factor = nn.Parameter([factor])

        @ndl.compile
        def forward(self, x: Any) -> Any:
            return x * self.factor

    a, b = Scale(2.0), Scale(3.0)
    x = ndl.ones(1)
    for _ in range(2):
        assert a(x).item() == 2.0
        assert b(x).item() == 3.0
    assert len(Scale.forward.specializations) == 2
    model = ndl.compile(nn.Sequential(a, b))
    assert model(x).item() == 6.0


def test_nested_functions_are_inlined() -> None:
    inner = ndl.compile(lambda x: x * 2)
    outer = ndl.compile(lambda x: inner(inner(x)) + 1)
    assert outer(ndl.ones(1)).item() == 5.0
    assert not inner.specializations
    assert len(outer.graph(ndl.ones(1)).nodes) == 3


def test_meta_tensors() -> None:
    f = ndl.compile(lambda x: x.sum(axis=0))
    assert f(ndl.zeros((2, 3), device="meta")).shape == (3,)
    assert not f.specializations


def count_tensors(shape: tuple[int, ...]) -> int:
    gc.collect()
    # Not `isinstance`, which asks objects of other libraries for their class, and some warn.
    return sum(type(o) is ndl.Tensor and o.shape == shape for o in gc.get_objects())


def test_what_a_trace_makes_on_the_way_is_freed() -> None:
    f = ndl.compile(lambda x: ((x * np.ones(37, np.float32)) ** 2).sum())
    for _ in range(3):
        f(ndl.Tensor(np.ones(37, np.float32))).backward()
    assert count_tensors((37,)) == 0


def in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(i: int) -> None:
        try:
            barrier.wait()
            work(i)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors, errors[0]


def test_inference_in_threads() -> None:
    ndl.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    f = ndl.compile(model, budget=4)
    inputs = [ndl.random.normal((n, 3)) for n in (1, 2, 3, 4)]
    with ndl.no_grad():
        expected = [model(x).tolist() for x in inputs]

    def work(i: int) -> None:
        with ndl.no_grad():
            for k in range(40):
                j = (i + k) % 4
                assert f(inputs[j]).tolist() == expected[j]
                # Eager execution goes on while another thread traces.
                assert model(inputs[j]).tolist() == expected[j]

    in_threads(4, work)
    assert len(f.specializations) == 4


def test_updates_in_threads_are_not_lost() -> None:
    count = ndl.zeros((), dtype=ndl.int64)

    @ndl.compile
    def increment() -> None:
        nonlocal count
        count += 1

    in_threads(4, lambda i: [increment() for _ in range(50)] and None)  # type: ignore[func-returns-value]
    assert count.item() == 200


def test_draws_in_threads_differ() -> None:
    draw = ndl.compile(lambda: ndl.random.random_bits(4))
    seen: list[tuple[int, ...]] = []
    in_threads(4, lambda i: seen.extend(tuple(draw().tolist()) for _ in range(20)))
    assert len(set(seen)) == 80


def test_graph_and_trace() -> None:
    w = ndl.Tensor([1.0, 2.0])

    @ndl.compile
    def f(x: Any) -> Any:
        return (w * x).sum()

    x = ndl.ones(2)
    assert [n.op.name for n in f.graph(x).nodes] == ["multiply", "sum"]
    traced = f.trace(x)
    assert traced.captured == [w]
    assert traced.arguments == 1
    assert not f.specializations
