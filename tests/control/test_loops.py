"""scan, while_loop and fori_loop: the same in eager execution and compiled, with gradients."""

import numpy as np
import pytest
from control_tools import check, check_all, gradients, normal, run_interpreted, run_optimised

import needle as ndl
from needle.compiler import pipeline
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    GradientError,
    ShapeError,
    TraceError,
)
from needle.graph import trace


def cell(h, x, w, u, b):
    """A step of a recurrent network."""
    return ndl.tanh(h @ w + x @ u + b)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_a_recurrent_network_is_its_unrolled_form(steps, reverse):
    def scanned(h, xs, w, u, b):
        def step(h, x):
            h = cell(h, x, w, u, b)
            return h, h * h

        return ndl.scan(step, h, xs, reverse=reverse)

    def unrolled(h, xs, w, u, b):
        ys = [None] * steps
        for i in reversed(range(steps)) if reverse else range(steps):
            h = cell(h, xs[i], w, u, b)
            ys[i] = h * h
        return h, ndl.stack(ys) if ys else ndl.zeros((0, 2, 3), dtype="float64")

    args = normal(2, 3), normal(steps, 2, 4), normal(3, 3), normal(4, 3), normal(3)
    check_all(scanned, *args)
    for a, b in zip(scanned(*args), unrolled(*args), strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-14)
    pairs = zip(gradients(scanned)(*args), gradients(unrolled)(*args), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-12)


def test_carried_values_get_gradients_on_the_way():
    """The first carried value requires none, but from the second turn on there are some."""

    def program(xs, w):
        return ndl.scan(lambda h, x: (ndl.sin(h * w + x), h), ndl.zeros(3, dtype="float64"), xs)

    check_all(program, normal(4, 3), normal(3))


def test_structures():
    def program(state, xs):
        def step(state, x):
            total, (low, n) = state["total"], state["rest"]
            new = {
                "total": total + x["a"] * x["b"][0],
                "rest": (ndl.minimum(low, x["a"]), n + 1),
            }
            return new, [new["total"], {"n": n, "none": None}]

        return ndl.scan(step, state, xs)

    state = {"total": normal(3), "rest": (normal(3, seed=1), ndl.asarray(0))}
    check_all(program, state, {"a": normal(4, 3), "b": (normal(4, 3, seed=2),)})


def test_numbers_are_carried_as_tensors():
    def program(xs):
        return ndl.scan(lambda c, x: ((c[0] + x, c[1] + 1, ~c[2]), c[2]), (0.0, 0, True), xs)

    check(program, ndl.asarray([1.0, 2.0, 3.0]))
    (total, count, flag), ys = program(ndl.asarray([1.0, 2.0, 3.0]))
    assert (total.item(), count.item(), flag.item()) == (6.0, 3, False)
    assert ys.numpy().tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "bool", "float16"])
def test_dtypes(dtype):
    def program(xs):
        def step(c, x):
            c = ndl.maximum(c, x) if dtype != "bool" else c ^ x
            return c, (c, x == c)

        return ndl.scan(step, xs[0], xs)

    xs = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (6, 3)).astype(dtype)
    check(program, ndl.asarray(xs))


def test_without_xs():
    def program(x):
        return ndl.scan(lambda c, _: (c * x, c + x), x, length=4)

    check_all(program, normal(3))


def test_the_carried_value_is_an_argument_of_itself():
    """Values that are swapped, repeated, unchanged, or forgotten."""

    def program(a, b, c, d):
        def step(carry, _):
            a, b, c, d, e = carry
            return (b, a, c, d * c, ndl.ones_like(e)), (a, a, c, d)

        return ndl.scan(step, (a, b, c, d, d), length=3)

    check_all(program, *(normal(2, seed=i) for i in range(4)))


def test_unused_results_are_not_computed():
    def program(xs, w):
        def step(carry, x):
            a, b, c = carry
            return (a + x, ndl.tanh(b @ w) + a, ndl.exp(c)), (a * 2, ndl.sin(b))

        (a, _, _), _ = ndl.scan(step, (xs[0], xs[0], xs[0]), xs)
        return a

    graph = pipeline.run(trace(program, normal(4, 3), normal(3, 3)).graph)
    (node,) = [n for n in graph.nodes if n.op.name == "loop"]
    assert [n.op.name for n in node.attrs["body"].nodes] == ["add"]
    assert len(node.inputs) == 2
    check_all(program, normal(4, 3), normal(3, 3))


def test_what_is_the_same_in_all_turns_moves_out():
    def program(xs, w, u):
        def step(h, x):
            return ndl.tanh(h @ (ndl.exp(w) @ u) + x), None

        return ndl.scan(step, xs[0], xs)[0]

    args = normal(4, 2, 3), normal(3, 3), normal(3, 3)
    graph = pipeline.run(trace(program, *args).graph)
    (node,) = [n for n in graph.nodes if n.op.name == "loop"]
    assert sorted(n.op.name for n in node.attrs["body"].nodes) == ["add", "matmul", "tanh"]
    check_all(program, *args)


def test_nothing_that_may_fail_moves_out_of_a_loop_of_no_turns():
    def program(x, index, n):
        return ndl.while_loop(lambda c: c[0] < n, lambda c: (c[0] + 1, x[index] + c[1]), (0, x[0]))

    check(program, normal(3), ndl.asarray(99), ndl.asarray(0))


def test_nested_loops():
    def program(xs, w):
        def outer(h, x):
            def inner(c, row):
                c = ndl.sin(c * w + row) + h
                return c, c * x[0]

            c, rows = ndl.scan(inner, h * 0.5, x)
            return c, rows.sum(axis=0)

        return ndl.scan(outer, ndl.zeros(2, dtype="float64"), xs)

    check_all(program, normal(3, 4, 2), normal(2))


def test_a_branch_in_a_loop_in_a_branch():
    def program(xs, w, flag):
        def step(h, x):
            return ndl.cond(x.sum() > 0, lambda: h * w + x, lambda: ndl.sin(h) - x * w), h

        def loop():
            return ndl.scan(step, w, xs)

        return ndl.cond(flag, loop, lambda: (w, xs * w))

    for flag in (False, True):
        check_all(program, normal(5, 3), normal(3), ndl.asarray(flag))


@pytest.mark.parametrize("limit", [0, 3, 20])
def test_while_loops_with_a_bound(limit):
    def program(x, w):
        def go_on(carry):
            x, _ = carry
            return (x * x).sum() < 50

        def step(carry):
            x, n = carry
            return x * 1.5 + ndl.sin(w * x), n + 1

        return ndl.while_loop(go_on, step, (x, 0), max_steps=limit)

    check_all(program, normal(3), normal(3, seed=1))
    _, n = program(normal(3), normal(3, seed=1))
    assert n.item() == min(limit, 5) or limit == 20


def test_while_loops_without_a_bound():
    def collatz(n):
        def step(c):
            n, steps = c
            return ndl.cond(n % 2 == 0, lambda: n // 2, lambda: 3 * n + 1), steps + 1

        return ndl.while_loop(lambda c: c[0] != 1, step, (n, 0))[1]

    check(collatz, ndl.asarray(27))
    assert collatz(ndl.asarray(27)).item() == 111
    assert collatz(ndl.asarray(1)).item() == 0


def test_the_test_reads_what_the_body_writes():
    counter = ndl.zeros((), dtype="int64")

    def program(x):
        def step(x):
            counter.copy_(counter + 1)
            return x * 2

        return ndl.while_loop(lambda x: counter < 5, step, x)

    x = ndl.asarray([1.0, 2.0])
    assert ndl.compile(program)(x).numpy().tolist() == [32.0, 64.0]
    assert counter.item() == 5


def test_loops_over_numbers():
    def program(x):
        return ndl.fori_loop(2, 6, lambda i, c: c * x + i.astype("float64"), x)

    check_all(program, normal(3))
    check(lambda x: ndl.fori_loop(5, 2, lambda i, c: c * i, x), normal(3))


def test_loops_over_as_many_numbers_as_a_tensor_says():
    def program(x, n):
        return ndl.fori_loop(1, n, lambda i, c: c + x * i.astype("float64"), x)

    for n in (-3, 1, 2, 7):
        check(program, normal(3), ndl.asarray(n))


def test_rows_are_chosen_by_the_index():
    def program(x):
        return ndl.fori_loop(0, 4, lambda i, c: c * x[i] + c, ndl.ones(3, dtype="float64"))

    check_all(program, normal(4, 3))


def test_random_state_is_carried():
    def program(xs):
        return ndl.scan(lambda c, x: (c + x, ndl.nn.functional.dropout(x, 0.5)), xs[0], xs)

    xs = normal(4, 64)
    ndl.manual_seed(3)
    expected = program(xs)[1].numpy()
    ndl.manual_seed(3)
    actual = ndl.compile(program)(xs)[1].numpy()
    np.testing.assert_array_equal(actual, expected)
    assert len({row.tobytes() for row in expected != 0}) == 4

    def slopes(xs):
        return gradients(program)(xs)

    ndl.manual_seed(3)
    expected = [g.numpy() for g in slopes(xs)]
    ndl.manual_seed(3)
    actual = [g.numpy() for g in ndl.compile(slopes)(xs)]
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_steps_of_gradient_descent():
    def program(x, target, rate):
        def step(x, _):
            loss = ((ndl.sin(x) - target) ** 2).sum()
            (g,) = ndl.grad([loss], [x], create_graph=True)
            return x - rate * g, loss

        return ndl.scan(step, x, length=5)

    rate = ndl.Tensor(np.asarray(0.1))
    check_all(program, normal(3), normal(3, seed=1), rate)


def test_detached_carries():
    def program(x, w):
        return ndl.scan(lambda c, _: ((c * w).detach() + x, c * w), x, length=3)

    check_all(program, normal(3), normal(3, seed=1))

    def forgetful(x, w):
        return ndl.scan(lambda c, _: (c.detach() * 2, c * w), x, length=3)

    check(gradients(forgetful), normal(3), normal(3, seed=1))


def test_checkpointed_steps():
    def program(xs, w):
        def step(h, x):
            return ndl.checkpoint(lambda h, x: ndl.tanh(h * w + x), h, x), None

        return ndl.scan(step, xs[0], xs)[0]

    check(gradients(program), normal(4, 3), normal(3))


def test_the_gradient_twice():
    def program(x, w):
        y = ndl.scan(lambda c, _: (ndl.sin(c * w), c), x, length=3)[0]
        a = ndl.grad(y.sum(), x, retain_graph=True)
        b = ndl.grad((y * y).sum(), [x, w])
        return a, *b

    check(program, normal(3), normal(3, seed=1))


def test_third_order():
    def program(x):
        y = ndl.scan(lambda c, _: (ndl.sin(c * x), None), x, length=3)[0].sum()
        for _ in range(3):
            y = ndl.grad(y, x, create_graph=True).sum()
        return y

    check(program, normal(2), tolerance=1e-10)


def test_many_steps_hold_one_body():
    def program(xs, w):
        return ndl.scan(lambda h, x: (ndl.tanh(h @ w + x), h), xs[0], xs)

    counts = []
    for steps in (3, 300):
        graph = trace(gradients(program), normal(steps, 2, 2), normal(2, 2)).graph
        counts.append(len(str(graph).splitlines()))
    assert counts[0] == counts[1]


def test_memory_is_not_kept_by_what_was_traced():
    import gc
    import weakref

    w = ndl.Tensor(np.ones((3, 3)))
    alive = []

    def program(xs):
        mask = ndl.asarray(np.eye(3))
        alive.append(weakref.ref(mask))

        def step(h, x):
            return ndl.tanh(h @ (w * mask) + x), None

        return ndl.scan(step, xs[0], xs)[0]

    gc.collect()
    gc.disable()
    try:
        traced = trace(gradients(program), normal(4, 2, 3))
        assert alive[0]() is None
        assert [t is w for t in traced.captured if t is not None].count(True) == 1
        assert all(source.tensor is not None for source in traced.sources)
    finally:
        gc.enable()


# Errors


def both(function, *args):
    """Yield what must raise: the function, eagerly and traced."""
    yield lambda: function(*args)
    yield lambda: trace(function, *args)


@pytest.mark.parametrize(
    ("step", "match"),
    [
        (
            lambda c, x: ((c[0][:1], c[1]), x),
            r"carry\[0\] is float64\[3\] at first, and float64\[1\]",
        ),
        (
            lambda c, x: ((c[0], c[1] * 0.5), x),
            r"carry\[1\] is int64\[\] at first, and float32\[\]",
        ),
        (lambda c, x: ([c[0], c[1]], x), r"of the structure that it takes, \(\*, \*\).*\[\*, \*\]"),
        (lambda c, x: (c[0], x), r"structure that it takes, \(\*, \*\); it returns \*"),
    ],
)
def test_carried_values_keep_their_shapes(step, match):
    def program(x, xs):
        return ndl.scan(step, (x, 0), xs)

    for attempt in both(program, normal(3), normal(2, 3)):
        with pytest.raises(ShapeError, match=match):
            attempt()
    for attempt in both(
        lambda x: ndl.while_loop(lambda c: c[0].sum() < 9, lambda c: step(c, 1)[0], (x, 0)),
        normal(3),
    ):
        with pytest.raises(ShapeError, match=match):
            attempt()


def test_what_scan_takes():
    cases = [
        (ArgumentTypeError, "must return a pair", lambda x: ndl.scan(lambda c, x: c, x[0], x)),
        (ArgumentError, "needs the length", lambda x: ndl.scan(lambda c, x: (c, c), x[0])),
        (ArgumentError, "not be negative", lambda x: ndl.scan(lambda c, x: (c, c), x, length=-1)),
        (
            ShapeError,
            r"xs\['b'\], of shape \[2, 3\], has 2 slices, where 4 are expected \(from xs\['a'\]\)",
            lambda x: ndl.scan(lambda c, x: (c, c), x, {"a": x, "b": x[:2]}),
        ),
        (ShapeError, r"from length", lambda x: ndl.scan(lambda c, x: (c, c), x, x, length=3)),
        (ShapeError, "0-d", lambda x: ndl.scan(lambda c, x: (c, c), x, x.sum())),
    ]
    for error, match, program in cases:
        for attempt in both(program, normal(4, 3)):
            with pytest.raises(error, match=match):
                attempt()


def test_what_the_test_returns():
    cases = [
        (ShapeError, "0-d", lambda x: ndl.while_loop(lambda c: c < 1, lambda c: c, x)),
    ]
    for error, match, program in cases:
        for attempt in both(program, normal(4, 3)):
            with pytest.raises(error, match=match):
                attempt()
    with pytest.raises(DTypeError, match="bool, got float64"):
        trace(lambda x: ndl.while_loop(lambda c: c.sum(), lambda c: c, x), normal(3))
    with pytest.raises(TraceError, match="returns True, a Python bool, which never changes"):
        trace(lambda x: ndl.while_loop(lambda c: True, lambda c: c, x), normal(3))
    with pytest.raises(ShapeError, match=r"single 0-d tensor, got \(\*, \*\)"):
        trace(lambda x: ndl.while_loop(lambda c: (c, c), lambda c: c, x), normal(3))


def test_bounds():
    with pytest.raises(DTypeError, match="upper must be an integer"):
        ndl.fori_loop(0, normal(), lambda i, c: c, normal(3))
    with pytest.raises(ArgumentError, match="max_steps must not be negative"):
        ndl.while_loop(lambda c: c < 1, lambda c: c, normal(), max_steps=-1)


def test_gradients_need_a_bound():
    def program(x):
        return ndl.while_loop(lambda x: x.sum() < 99, lambda x: x * 2, x * x)

    run_interpreted(program, normal(3))
    with pytest.raises(GradientError, match=r"while_loop at .*test_loops.*max_steps=n"):
        trace(gradients(program), normal(3))


def test_an_overwritten_value_is_an_error():
    def program(x, w):
        state = w * 1

        def step(c, _):
            y = c * state.detach() * x
            state.detach().copy_(state.detach() * 2)
            return y, None

        return ndl.grad(ndl.scan(step, x, length=3)[0].sum(), x)

    for attempt in both(program, normal(3), normal(3, seed=1)):
        with pytest.raises(GradientError, match="overwritten"):
            attempt()


def test_a_carry_left_behind():
    kept = []

    def program(x):
        def step(c, _):
            kept.append(c)
            return c * 2, None

        ndl.scan(step, x, length=3)
        return kept[0] + 1

    with pytest.raises(TraceError, match="left behind by the traced function step"):
        trace(program, normal(3))


def test_values_cannot_be_read_in_a_body():
    def program(x):
        def step(c, _):
            return (c * 2 if c.sum() > 0 else c), None

        return ndl.scan(step, x, length=3)[0]

    with pytest.raises(TraceError, match=r"test_loops.*while step is traced.*ndl\.cond"):
        trace(program, normal(3))


def test_optimised_once():
    def program(x):
        return ndl.scan(lambda c, _: (c * 2, None), x, length=1)[0]

    graph = pipeline.run(trace(program, normal(3)).graph)
    assert [n.op.name for n in graph.nodes] == ["multiply"]
    run_optimised(program, normal(3))
