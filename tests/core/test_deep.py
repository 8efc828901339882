"""Deep graphs and long runs: no recursion, linear time, constant memory."""

import gc
import sys
import time
import tracemalloc

import psutil
import pytest

import needle as ndl
from needle.testing import assert_close

DEPTH = 100_000


def chain(depth, step):
    x = ndl.Tensor(1.0)
    y = x
    for _ in range(depth):
        y = step(y)
    return x, y


def test_deep_chain():
    assert sys.getrecursionlimit() < DEPTH
    x, y = chain(DEPTH, lambda t: t + 1)
    y.backward()
    assert_close(x.grad, 1.0)


def test_deep_chain_that_keeps_values_is_deleted_without_recursion():
    _, y = chain(DEPTH, lambda t: t * 1.0)
    del y
    _, y = chain(DEPTH, lambda t: t.sin())
    del y


def test_deep_chain_of_views():
    x = ndl.Tensor([1.0, 2.0])
    y = x
    for _ in range(DEPTH // 10):
        y = y[::-1]
    y.sum().backward()
    assert_close(x.grad, [1.0, 1.0])


def test_deep_second_order():
    x, y = chain(DEPTH // 20, lambda t: t * 1.0001)
    slope = ndl.grad(y * y, x, create_graph=True)
    slope.backward()
    assert x.grad.item() == pytest.approx(2 * 1.0001 ** (2 * (DEPTH // 20)), rel=1e-2)


def test_backward_time_is_linear():
    def seconds(depth):
        best = float("inf")
        for _ in range(3):
            _, y = chain(depth, lambda t: t + 1)
            start = time.process_time()
            y.backward()
            best = min(best, time.process_time() - start)
        return best

    gc.disable()
    try:
        short, long = seconds(3_000), seconds(30_000)
    finally:
        gc.enable()
    # Ten times as many nodes; quadratic work would take a hundred times as long.
    assert long < 40 * short


def test_wide_graph():
    """Many uses of one tensor: their cotangents add up, in linear time."""
    x = ndl.Tensor([1.0], dtype="float64")
    total = sum((x * float(k) for k in range(5_000)), ndl.zeros(1, dtype="float64"))
    total.backward()
    assert_close(x.grad, [5_000 * 4_999 / 2])


@pytest.mark.nightly
def test_a_million_nodes():
    x, y = chain(1_000_000, lambda t: t * 1.0)
    y.backward()
    assert_close(x.grad, 1.0)
    _, y = chain(1_000_000, lambda t: t * 1.0)
    del y


def step(w, x):
    loss = ((x @ w).tanh() ** 2).mean()
    loss.backward()
    with ndl.no_grad():
        w -= 0.01 * w.grad
        w.grad = None


@pytest.mark.slow
def test_ten_thousand_steps_do_not_grow_memory():
    w, x = ndl.Tensor([[0.3], [0.1], [-0.2]]), ndl.ones((4, 3))
    for _ in range(1_000):
        step(w, x)
    gc.collect()
    resident = psutil.Process().memory_info().rss
    tracemalloc.start()
    try:
        gc.collect()  # empties the free lists, which would count
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(1_000):
            step(w, x)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 5_000, f"{grown} bytes in 1,000 steps"
    for _ in range(8_000):
        step(w, x)
    assert psutil.Process().memory_info().rss - resident < 8 * 2**20


def test_no_step_leaves_anything_to_the_collector():
    w, x = ndl.Tensor([[0.3], [0.1], [-0.2]]), ndl.ones((4, 3))

    def second_order():
        slope = ndl.grad(w.sin().sum(), w, create_graph=True)
        ndl.grad((slope * slope).sum(), w)

    for work in (lambda: step(w, x), second_order):
        work()
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                work()
            assert gc.collect() == 0
        finally:
            gc.enable()
