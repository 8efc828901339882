"""Sums of products over the turns of a loop become one product after it."""

import numpy as np
import pytest
from control_tools import check, check_all, gradients, normal

import needle as ndl
from needle.compiler import pipeline
from needle.graph import trace


def loops(function, *args):
    """Return for each loop of the optimised graph the products in its body."""
    graph = pipeline.run(trace(function, *args).graph)
    return [
        [n for n in node.attrs["body"].nodes if n.op.name == "matmul"]
        for node in graph.nodes
        if node.op.name == "loop"
    ]


def recurrent(h, xs, w, u):
    return ndl.scan(lambda h, x: (ndl.tanh(h @ w + x @ u), h), h, xs)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_weights(reverse):
    def program(h, xs, w, u):
        def step(h, x):
            return ndl.tanh(h @ w + x @ u), h

        return ndl.scan(step, h, xs, reverse=reverse)

    args = normal(2, 6), normal(5, 2, 4), normal(6, 6), normal(4, 6)
    forward, backward = loops(gradients(program), *args)
    assert len(forward) == 2
    assert len(backward) == 2  # those of the gradients of h and x, but none of w and u
    assert all(len(n.result.shape) == 2 and n.result.shape[0] == 2 for n in backward)
    check_all(program, *args)


def test_first_values_are_added():
    def program(total, xs, ys):
        return ndl.scan(lambda t, p: (t + p[0].T @ p[1], t.sum() * 0), total, (xs, ys))[0]

    args = normal(3, 3), normal(5, 2, 3), normal(5, 2, 3, seed=1)
    assert loops(program, *args) == []
    check_all(program, *args)

    def from_ones(xs, ys):
        return program(ndl.ones((3, 3), dtype="float64"), xs, ys)

    check(from_ones, *args[1:])


def test_factors_that_are_computed_and_used_twice():
    def program(xs, w):
        def step(carry, x):
            total, other, h = carry
            y = ndl.sin(x) + h
            return (total + y.T @ y, y.T @ x + other, h * 0.5), (y, x * 2)

        return ndl.scan(step, (w, w, xs[0]), xs)

    args = normal(4, 2, 5), normal(5, 5)
    assert loops(program, *args) == [[]]
    check_all(program, *args)


def test_sums_that_are_read_in_the_loop_stay():
    def program(xs, w):
        def step(total, x):
            total = total + x.T @ x
            return total, total[0, 0]

        return ndl.scan(step, w, xs)

    args = normal(4, 2, 5), normal(5, 5)
    ((product,),) = loops(program, *args)
    assert product.result.shape == (5, 5)
    check_all(program, *args)


def test_wide_factors_stay():
    """Stacking them would move more than the sums."""

    def program(xs, w):
        return ndl.scan(lambda t, x: (t + ndl.exp(x).T @ ndl.sin(x), None), w, xs)[0]

    args = normal(3, 64, 4), normal(4, 4)
    assert [len(body) for body in loops(program, *args)] == [1]
    check(program, *args)


def test_loops_of_unknown_length_stay():
    def program(xs, w):
        def step(carry):
            t, i = carry
            return t + xs[i].T @ xs[i], i + 1

        return ndl.while_loop(lambda c: c[0].sum() < 40, step, (w, 0), max_steps=4)[0]

    args = normal(4, 2, 5), normal(5, 5)
    assert [len(body) for body in loops(program, *args)] == [1]
    check_all(program, *args)


def test_narrow_floats_keep_their_rounding():
    def program(xs, w):
        return ndl.scan(lambda t, x: (t + x.T @ x, None), w, xs)[0]

    xs = ndl.asarray(np.random.default_rng(0).normal(size=(3, 2, 4)).astype("float16"))
    w = ndl.zeros((4, 4), dtype="float16")
    assert [len(body) for body in loops(program, xs, w)] == [1]
    check(program, xs, w, tolerance=2e-3)
