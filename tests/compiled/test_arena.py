"""The arena of compiled programs: small, shared, and never at the cost of a value."""

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu.program import Program
from needle.compiler import pipeline
from needle.graph import trace
from needle.testing import assert_close

RNG = np.random.default_rng(0)


def matrices(n, count=3):
    scale = n**-0.5
    return [(RNG.standard_normal((n, n)) * scale).astype(np.float32) for _ in range(count)]


def program_of(function, *arrays):
    return Program(pipeline.run(trace(function, *arrays).graph), threads=2)


def overwriting(x, w, v):
    """The kernel of the second product reads t for the last time, for two results."""
    t = x @ w
    y = ndl.sin(t) @ v
    a = ndl.cos(t * 0.1) + y
    b = ndl.tanh(t) * y
    return a @ v, b @ w, (a + b) @ v


@pytest.mark.parametrize("n", [3, 16, 65, 300])
def test_results_may_take_the_place_of_what_is_read(n):
    arrays = matrices(n)
    buffers = program_of(overwriting, *arrays).layout.memory.buffers
    assert any(b.takes_over for b in buffers)
    tensors = [ndl.asarray(a) for a in arrays]
    compiled = ndl.compile(overwriting)
    for actual, expected in zip(compiled(*tensors), overwriting(*tensors), strict=True):
        assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_branches_run_one_after_the_other():
    """Each wide product is reduced before the next is made."""

    def function(x, w):
        wide = [ndl.matmul(x * i, w) for i in range(1, 9)]
        return sum(ndl.sum(ndl.matmul(ndl.sin(p), w)) for p in wide)

    memory = program_of(function, *matrices(64, 2)).layout.memory
    one = 64 * 64 * 4
    assert memory.nbytes <= 3 * one, str(memory)
    assert memory.nbytes == memory.lower_bound


def test_weights_are_overwritten_after_their_last_use():
    def make():
        weights = [ndl.Tensor(m.copy()) for m in np.split(start, 3)]

        def step(x):
            for p in weights:
                p.grad = None
            y = x
            for p in weights:
                y = ndl.tanh(y @ p)
            loss = (y * y).sum()
            loss.backward()
            with ndl.no_grad():
                for p in weights:
                    p -= p.grad * 0.1
            return loss

        return weights, step

    start = np.concatenate(matrices(32))
    (x,) = matrices(32, 1)
    assert not program_of(make()[1], x).layout.copies
    results = []
    for wrap in (lambda f: f, ndl.compile):
        weights, step = make()
        run = wrap(step)
        losses = [run(ndl.asarray(x)).item() for _ in range(3)]
        results.append((losses, [p.detach().numpy() for p in weights]))
    (losses, weights), (compiled_losses, compiled_weights) = results
    assert_close(compiled_losses, losses, rtol=1e-5)
    for actual, expected in zip(compiled_weights, weights, strict=True):
        assert_close(actual, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_gradient_of_logits_takes_their_place(reduction, threads):
    """Of a large vocabulary there is one matrix: not the probabilities beside the logits."""
    rng = np.random.default_rng(0)
    rows, classes = (3, 8), 3000
    x = ndl.Tensor(rng.normal(size=(*rows, 5)).astype(np.float32))
    w = ndl.Tensor(rng.normal(size=(5, classes)).astype(np.float32))
    labels = rng.integers(0, classes, rows)
    labels[1, 2] = -100

    def step(x, w, y):
        logits = (x @ w).reshape((-1, classes))
        loss = ndl.cross_entropy(logits, y.reshape((-1,)), reduction=reduction)
        return loss, *ndl.grad(loss, [x, w])

    before = ndl.get_num_threads()
    ndl.set_num_threads(threads)
    try:
        run = ndl.compile(step)
        memory = program_of(step, x, w, ndl.asarray(labels)).layout.memory
        found = run(x, w, ndl.asarray(labels))
    finally:
        ndl.set_num_threads(before)
    places = [
        offset
        for b, offset in zip(memory.buffers, memory.offsets, strict=True)
        if b.nbytes >= 4 * labels.size * classes and b.name != "workspace"
    ]
    assert len(places) > 1
    assert len(set(places)) == 1
    for a, e in zip(found, step(x, w, ndl.asarray(labels)), strict=True):
        np.testing.assert_allclose(a.numpy(), e.numpy(), rtol=2e-4, atol=1e-6)


def test_what_a_later_turn_over_the_row_reads_is_not_overwritten():
    """The shifted logits are computed again, from the logits, for what is behind the sum."""

    def program(x, w):
        z = x @ w
        shifted = z - z.max(-1, keepdims=True)
        part = shifted * ndl.exp(shifted)
        return (part / part.sum(-1, keepdims=True) + shifted * ndl.sin(z)) @ w.T

    rng = np.random.default_rng(1)
    x, w = (ndl.asarray(rng.normal(size=s)) for s in ((6, 7), (7, 900)))
    found = ndl.compile(program)(x, w)
    np.testing.assert_allclose(found.numpy(), program(x, w).numpy(), rtol=1e-9, atol=1e-9)


def test_operands_of_another_shape_are_not_overwritten():
    def program(x, w, v):
        y = ndl.sin(x @ w)
        return (y.reshape((4, 9)) @ v).reshape((6, 6)) @ w

    rng = np.random.default_rng(1)
    arrays = [ndl.asarray(rng.normal(size=s)) for s in ((6, 6), (6, 6), (9, 9))]
    found = ndl.compile(program)(*arrays)
    np.testing.assert_allclose(found.numpy(), program(*arrays).numpy(), rtol=1e-12)
