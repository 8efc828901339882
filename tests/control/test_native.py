"""Control flow in native code: kernels on several threads, buffers, faults, the state of a call."""

import numpy as np
import pytest
from control_tools import check, check_all, gradients, normal, run_native

import needle as ndl
from needle.backends import cpu
from needle.errors import OutOfRangeError
from needle.graph import trace


def test_kernels_inside_run_on_several_threads():
    """Each turn is large enough to be shared, and the number of threads changes no bit."""

    def program(xs, w):
        def step(h, x):
            h = ndl.tanh(h @ w + x)
            return h, ndl.cond(x[0, 0] > 0, lambda: ndl.exp(h), lambda: h * 2)

        return ndl.scan(step, xs[0], xs)

    args = normal(5, 256, 160), normal(160, 160)
    check(program, *args)
    for function in (program, gradients(program)):
        results = [run_native(function, *args, threads=n) for n in (1, 2, 4)]
        for other in results[1:]:
            for a, b in zip(results[0], other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_sequences_that_lie_otherwise():
    """Batches first, steps in between, reversed: what is scanned is made rows, or stepped over."""

    def program(xs, w):
        first = ndl.scan(lambda h, x: (h * w + x, h), w, ndl.permute_dims(xs, (1, 0, 2)))
        second = ndl.scan(lambda h, x: (h * w[0, 0] + x, h), w[0], xs[:, 1])
        third = ndl.scan(lambda h, x: (h * w[0, 0] + x, h), w[0], ndl.flip(xs[::2, 0], 0))
        return first, second, third

    check_all(program, normal(4, 6, 3), normal(4, 3))


def test_first_values_that_lie_otherwise():
    def program(x):
        def step(carry, _):
            a, b, c, d, e = carry
            return (a + 1, b * 2, c + b.sum(), d * 3, e + 1), a.sum()

        init = (x.T, x[1:], x[0], ndl.broadcast_to(x[0, 0], (2,)), ndl.ones(3))
        return ndl.scan(step, init, length=3)

    check_all(program, normal(3, 2))


def test_constants_inside():
    """Large constants, numbers, and what a branch returns as it is."""
    table = np.arange(12.0).reshape(3, 4)

    def program(x, flag):
        def step(c, _):
            return c + ndl.asarray(table), ndl.asarray(table[0])

        c, rows = ndl.scan(step, x, length=3)
        chosen = ndl.cond(flag, lambda: (c, 2.0, c), lambda: (ndl.asarray(table), 3.0, c))
        return rows, chosen, ndl.switch(flag.astype("int64"), [lambda: table, lambda: table * 2])

    for flag in (False, True):
        check(program, normal(3, 4), ndl.asarray(flag))


def test_an_index_out_of_range_in_a_loop():
    def program(x, indices):
        return ndl.scan(lambda c, i: (c + x[i], None), x[0] * 0, indices)[0]

    compiled = ndl.compile(program)
    x = normal(4, 3, grad=False)
    good = ndl.asarray([0, 3, 2])
    np.testing.assert_array_equal(compiled(x, good).numpy(), program(x, good).numpy())
    with pytest.raises(OutOfRangeError, match=r"index 7 .*out of range"):
        compiled(x, ndl.asarray([0, 7, 2]))
    np.testing.assert_array_equal(compiled(x, good).numpy(), program(x, good).numpy())


def test_a_fault_ends_a_loop():
    def program(x, i):
        return ndl.while_loop(
            lambda c: c[0] < 1, lambda c: (c[0] * x[i].astype("int64"), c[1]), (0, i)
        )

    with pytest.raises(OutOfRangeError, match="index 9 "):
        ndl.compile(program)(ndl.ones(3), ndl.asarray(9))


def test_state_in_a_loop():
    total = ndl.zeros((3,), dtype="float64")

    def program(xs):
        def step(c, x):
            total.copy_(total + x)
            return c, total * 1

        return ndl.scan(step, 0, xs)[1] + total

    xs = normal(5, 3, grad=False)
    compiled = ndl.compile(program)
    results = [compiled(xs).numpy() for _ in range(2)]
    held = total.numpy().copy()
    total.copy_(ndl.zeros(3))
    for result in results:
        np.testing.assert_allclose(result, program(xs).numpy(), rtol=1e-14)
    np.testing.assert_allclose(held, total.numpy(), rtol=1e-14)


def test_a_training_loop_in_one_call():
    """Parameters, buffers and statistics are carried through the steps."""
    ndl.manual_seed(0)
    model = ndl.nn.Sequential(ndl.nn.Linear(4, 8), ndl.nn.BatchNorm1d(8), ndl.nn.Linear(8, 1))
    start = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    parameters = list(model.parameters())

    def train(xs, ys):
        def step(_, batch):
            x, y = batch
            loss = ((model(x) - y) ** 2).mean()
            slopes = ndl.grad(loss, parameters)
            with ndl.no_grad():
                for p, g in zip(parameters, slopes, strict=True):
                    p.copy_(p - 0.1 * g)
            return 0, loss.detach()

        return ndl.scan(step, 0, (xs, ys))[1]

    xs = normal(6, 16, 4, grad=False).astype("float32")
    ys = xs.sum(axis=2, keepdims=True)
    compiled = ndl.compile(train)
    actual = [compiled(xs, ys).numpy() for _ in range(2)]
    state = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    model.load_state_dict({k: ndl.asarray(v) for k, v in start.items()})
    expected = [train(xs, ys).numpy() for _ in range(2)]
    np.testing.assert_allclose(actual, expected, rtol=2e-4)
    assert expected[1][-1] < 0.2 * expected[0][0]
    for name, value in model.state_dict().items():
        np.testing.assert_allclose(state[name], value.numpy(), rtol=1e-3, atol=1e-5)


def test_calls_at_the_same_time():
    import threading

    def program(xs, w):
        return ndl.scan(lambda h, x: (ndl.tanh(h @ w + x), h), xs[0], xs)[1]

    xs, w = normal(50, 8, 16), normal(16, 16)
    traced = trace(program, xs, w)
    executable = cpu.build(traced.graph, 2)
    arrays = [np.array(a, order="C") for a in traced.arrays(xs, w)]
    expected = executable.run(arrays)[0]
    wrong = []

    def work():
        for _ in range(50):
            (result,) = executable.run(arrays)
            if not np.array_equal(result, expected):
                wrong.append(result)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_code_comes_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NEEDLE_CACHE_DIR", str(tmp_path))

    def program(xs):
        return ndl.scan(lambda h, x: (h + x, h * 2), xs[0], xs)

    def other(xs):
        return ndl.scan(lambda h, x: (h - x, h * 2), xs[0], xs)

    xs = normal(3, 4)
    for _ in range(2):
        check(program, xs)
        check(other, xs)
