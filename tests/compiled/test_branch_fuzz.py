"""Random programs with nested branches: compiled path by path, they compute what they do eagerly.

A program is a list of statements over two variables and a parameter. Some are branches, whose
sides are programs again, some are loops that end by a value or after a few turns. In float64, where
rounding does not grow so far that it could be taken for a mistake.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import needle as ndl
from needle import nn

UNARY = {
    "tanh": ndl.tanh,
    "half": lambda t: t * 0.5,
    "shift": lambda t: t + 0.375,
    "square": lambda t: t * t / (1 + t * t),
    "negative": lambda t: -t,
    "flip": lambda t: t[::-1],
    "relu": ndl.relu,
    "norm": lambda t: t / (1 + (t * t).sum()),
}
BINARY = {
    "add": lambda a, b: a + b,
    "multiply": lambda a, b: ndl.sin(a) * b,
    "where": lambda a, b: ndl.where(a > 0, a, b),
    "weigh": lambda a, b: a * b.mean(),
}
#: Numbers that values of such programs do not happen to be.
TESTS = {
    "sum": lambda t: t.sum() > 0.0137,
    "max": lambda t: t.max() < 0.7031,
    "first": lambda t: t[0] > -0.2113,
    "norm": lambda t: (t * t).sum() > 1.0519,
}

names = st.sampled_from(["a", "b"])
assign = st.tuples(st.just("unary"), names, st.sampled_from(sorted(UNARY)), names)
combine = st.tuples(st.just("binary"), names, st.sampled_from(sorted(BINARY)), names, names)
draw_noise = st.tuples(st.just("noise"), names)
use_weight = st.tuples(st.just("weight"), names)
count_up = st.tuples(st.just("count"))
slope = st.tuples(st.just("slope"), names)
scan = st.tuples(st.just("scan"), names)
simple = st.one_of(assign, combine, assign, combine, draw_noise, use_weight, count_up, slope, scan)
test = st.tuples(st.sampled_from(sorted(TESTS)), names)


def blocks(inner: Any) -> Any:
    body = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        st.tuples(st.just("if"), test, body, body),
        st.tuples(st.just("while"), test, body),
        st.tuples(st.just("times"), names, body),
        st.tuples(st.just("cond"), test, names),
        simple,
    )


programs = st.lists(st.recursive(simple, blocks, max_leaves=6), min_size=1, max_size=5)
vectors = st.lists(
    st.sampled_from([-2.0, -0.75, -0.25, 0.5, 1.0, 1.5, 3.0]), min_size=3, max_size=3
)


class Machine:
    """Runs a program; has a parameter and a buffer."""

    def __init__(self, program: Any) -> None:
        ndl.manual_seed(7)
        self.program = program
        self.weight = nn.Parameter(ndl.asarray(np.array([0.5, -1.25, 2.0], np.float64)))
        self.count = nn.Buffer(ndl.zeros((), dtype=ndl.int64))

    def run(self, a: Any) -> Any:
        state = {"a": a, "b": self.weight * 0.5}
        self.block(self.program, state)
        return (state["a"] * state["b"]).sum() + state["a"].sum(), state["b"]

    def block(self, statements: Any, state: dict[str, Any]) -> None:
        for kind, *rest in statements:
            if kind == "unary":
                target, name, source = rest
                state[target] = UNARY[name](state[source])
            elif kind == "binary":
                target, name, left, right = rest
                state[target] = BINARY[name](state[left], state[right])
            elif kind == "noise":
                state[rest[0]] = state[rest[0]] + ndl.randn(3).astype(np.float64)
            elif kind == "weight":
                state[rest[0]] = state[rest[0]] * self.weight
            elif kind == "count":
                self.count.copy_(self.count + 1)
            elif kind == "slope":
                y = ndl.sin(state[rest[0]] * self.weight).sum()
                found = ndl.grad(y, self.weight, retain_graph=True)
                state[rest[0]] = (found + state[rest[0]]) * 0.5
            elif kind == "scan":
                total, stack = ndl.scan(
                    lambda carry, t: (carry * 0.5 + t, carry * t),
                    ndl.zeros((), dtype=np.float64),
                    state[rest[0]],
                )
                state[rest[0]] = ndl.sin(stack + total)
            elif kind == "cond":
                (name, source), target = rest
                state[target] = ndl.cond(
                    TESTS[name](state[source]), ndl.tanh, lambda t: t * 0.5 + 1, state[target]
                )
            elif kind == "if":
                (name, source), yes, no = rest
                self.block(yes if TESTS[name](state[source]) else no, state)
            elif kind == "while":
                (name, source), body = rest
                turns = 0
                while TESTS[name](state[source]) and turns < 3:
                    self.block(body, state)
                    turns += 1
            else:
                source, body = rest
                for _ in range(int(ndl.clip(state[source].max(), 0, 2))):
                    self.block(body, state)


def outcome(program: Any, inputs: Any, options: Any) -> list[Any]:
    machine = Machine(program)
    function = machine.run if options is None else ndl.compile(machine.run, **options)
    seen: list[Any] = []
    for values in inputs:
        machine.weight.grad = None
        x = ndl.Tensor(np.array(values, np.float64))
        loss, other = function(x)
        loss.backward()
        gradients = [None if t.grad is None else t.grad.numpy() for t in (x, machine.weight)]
        seen.append((loss.item(), other.detach().numpy(), *gradients, machine.count.item()))
    if options is not None:
        assert sum(s.calls for s in function.specializations) == len(inputs)
    return seen


def compare(program: Any, inputs: Any, options: Any) -> None:
    expected = outcome(program, inputs, None)
    actual = outcome(program, inputs, options)
    for a, e in zip(actual, expected, strict=True):
        for x, y in zip(a, e, strict=True):
            assert (x is None) == (y is None)
            if y is not None:
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


OPTIONS = {"branches": "specialise", "path_budget": 200}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs, st.lists(vectors, min_size=1, max_size=6))
def test_programs_by_reference(program: Any, inputs: Any) -> None:
    compare(program, inputs, OPTIONS)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs, st.lists(vectors, min_size=2, max_size=4))
def test_native_programs(program: Any, inputs: Any) -> None:
    compare(program, inputs, {**OPTIONS, "backend": "cpu"})


@pytest.mark.nightly
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs, st.lists(vectors, min_size=1, max_size=6))
def test_many_programs_by_reference(program: Any, inputs: Any) -> None:
    compare(program, inputs, OPTIONS)
