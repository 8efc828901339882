"""Random programs of nested control flow: eager, interpreted, optimised and native code agree."""

import os

import numpy as np
from control_tools import check, gradients, second_gradients
from hypothesis import HealthCheck, example, given, settings, strategies as st

import needle as ndl

EXAMPLES = 500 if os.environ.get("NEEDLE_NIGHTLY") else 25
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

SIZE = 3

UNARY = {
    "sin": ndl.sin,
    "tanh": ndl.tanh,
    "scale": lambda x: x * 0.5 + 0.1,
    "detach": lambda x: x.detach() * 0.5,
    "softmax": lambda x: ndl.softmax(x, axis=-1),
    "cumulate": lambda x: ndl.cumulative_sum(x, axis=0) * 0.3,
    "flip": lambda x: ndl.flip(x, 0),
    "mean": lambda x: ndl.broadcast_to(x.mean(axis=0, keepdims=True), x.shape),
    "transpose": lambda x: x.T,
    "relu": lambda x: ndl.relu(x - 0.1),
}
BINARY = {
    "add": lambda x, y: x + y,
    "multiply": lambda x, y: x * y * 0.5,
    "product": lambda x, y: (x @ y) * 0.2,
    "where": lambda x, y: ndl.where(x > y, x, y * 0.7),
}

leaf = st.tuples(st.just("value"), st.integers(0, 9))


def grown(inner):
    """Return programs that are one step larger: a program is a tree, of values as leaves."""
    return st.one_of(
        st.tuples(st.just("unary"), st.sampled_from(sorted(UNARY)), inner),
        st.tuples(st.just("binary"), st.sampled_from(sorted(BINARY)), inner, inner),
        st.tuples(st.just("cond"), inner, inner, inner),
        st.tuples(st.just("switch"), st.integers(-1, 4), inner, inner, inner),
        st.tuples(st.just("scan"), st.integers(0, 3), st.booleans(), inner, inner, inner),
        st.tuples(st.just("while"), st.integers(0, 3), inner, inner),
        st.tuples(st.just("fori"), st.integers(0, 3), inner, inner),
    )


programs = grown(st.recursive(leaf, grown, max_leaves=12))


def evaluate(program, values):
    """Return the matrix of a program, from the matrices that it may use."""
    kind, *parts = program
    if kind == "value":
        return values[parts[0] % len(values)]
    if kind == "unary":
        return UNARY[parts[0]](evaluate(parts[1], values))
    if kind == "binary":
        return BINARY[parts[0]](evaluate(parts[1], values), evaluate(parts[2], values))
    if kind == "cond":
        test, yes, no = parts
        x = evaluate(test, values)
        return ndl.cond(
            x.sum() > 0.2,
            lambda x: evaluate(yes, [*values, x]),
            lambda x: evaluate(no, [*values, x]),
            x,
        )
    if kind == "switch":
        number, *branches = parts
        index = number + ndl.argmax(values[0][0])
        return ndl.switch(
            index, [lambda branch=branch: evaluate(branch, values) for branch in branches]
        )
    if kind == "scan":
        length, reverse, first, step, out = parts

        def turn(carry, x):
            h, n = carry
            inside = [*values, h, x]
            return (evaluate(step, inside) * 0.9, n + 1), evaluate(out, inside)

        rows = ndl.stack([v * 0.3 for v in values][:1] * length) if length else values[0][:0]
        xs = rows if length else ndl.zeros((0, SIZE, SIZE), dtype="float64")
        start = evaluate(first, values)
        (h, _), ys = ndl.scan(turn, (start, 0), xs, reverse=reverse)
        return h + ys.sum(axis=0)
    if kind == "while":
        limit, first, step = parts
        x, n = ndl.while_loop(
            lambda c: (c[0] * c[0]).sum() < 9.0,
            lambda c: (evaluate(step, [*values, c[0]]) * 1.1 + 0.1, c[1] + 1),
            (evaluate(first, values), 0),
            max_steps=limit,
        )
        return x * n.astype("float64")
    assert kind == "fori"
    turns, first, step = parts
    return ndl.fori_loop(
        0,
        turns,
        lambda i, c: evaluate(step, [*values, c]) + i.astype("float64") * 0.1,
        evaluate(first, values),
    )


@fuzz
@given(program=programs, seed=st.integers(0, 3))
# What moves out of a loop depends on what has moved out before.
@example(
    program=(
        "unary",
        "cumulate",
        ("while", 1, ("value", 0), ("unary", "softmax", ("value", 0))),
    ),
    seed=0,
)
def test_programs(program, seed):
    rng = np.random.default_rng(seed)
    args = [ndl.Tensor(rng.normal(size=(SIZE, SIZE)) * 0.6) for _ in range(2)]

    def function(x, y):
        result = evaluate(program, [x, y])
        return result + (x + y) * 0.1  # so that there is a gradient

    for derived in (function, gradients(function), second_gradients(function)):
        check(derived, *args, tolerance=1e-9)
