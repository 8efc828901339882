"""Eager ops and vjp rules that run as one kernel: values, bits that depend on little, and when."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu.eager_kernels import LARGE, kernel_of
from needle.backends.cpu.module import Module
from needle.backends.cpu.vector_math import ULP, MathFunction
from needle.ops.record import REGISTRY, Kind, Op

RNG = np.random.default_rng(0)


def record(name: str) -> Op:
    op = REGISTRY[name]
    assert isinstance(op, Op)
    return op


def draw(*shape: int, dtype: str = "float32") -> Any:
    return RNG.standard_normal(shape).astype(dtype)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "erf": ndl.erf,
    "sigmoid": ndl.sigmoid,
    "softplus": ndl.softplus,
    "silu": ndl.silu,
    "gelu": ndl.gelu,
    "gelu tanh": lambda x: ndl.gelu(x, "tanh"),
    "relu": ndl.relu,
    "leaky": ndl.leaky_relu,
}


def both_ways(function: Callable[[Any], Any], x: Any, g: Any) -> tuple[Any, Any]:
    """Return the value and the gradient."""
    t = ndl.Tensor(x)
    y = function(t)
    y.backward(ndl.asarray(g))
    return y.numpy().copy(), t.grad.numpy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_element_has_the_same_bits_among_any_number(name: str, dtype: str) -> None:
    x, g = draw(3 * LARGE, dtype=dtype), draw(3 * LARGE, dtype=dtype)
    whole = both_ways(ACTIVATIONS[name], x, g)
    for count in (1, 2, 17, LARGE - 1, LARGE + 3):
        part = both_ways(ACTIVATIONS[name], x[:count], g[:count])
        for a, b in zip(part, whole, strict=True):
            assert a.tobytes() == b[:count].tobytes()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_eager_results_are_those_of_compiled_programs(name: str) -> None:
    x, g = draw(300, 200), draw(300, 200)

    def step(t: Any, g: Any) -> Any:
        t = t.detach()
        t.requires_grad = True
        y = ACTIVATIONS[name](t)
        return y, ndl.grad(y, t, g)

    y, dx = ndl.compile(step)(ndl.asarray(x), ndl.asarray(g))
    eager_y, eager_dx = both_ways(ACTIVATIONS[name], x, g)
    assert eager_y.tobytes() == y.numpy().tobytes()
    assert eager_dx.tobytes() == dx.numpy().tobytes()


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n != "leaky"])
def test_a_recorded_backward_pass_gives_the_same(name: str) -> None:
    """It runs the rules op by op."""
    x, g = draw(LARGE + 5), draw(LARGE + 5)
    _, dx = both_ways(ACTIVATIONS[name], x, g)
    t = ndl.Tensor(x)
    recorded = ndl.grad(ACTIVATIONS[name](t), t, ndl.asarray(g), create_graph=True)
    np.testing.assert_allclose(recorded.numpy(), dx, rtol=2e-6, atol=2e-6)


def test_layouts_and_broadcasting() -> None:
    x = draw(200, 300)
    for view in (x.T, x[::2], x[:, ::-3], np.broadcast_to(x[:1], (200, 300))):
        np.testing.assert_array_equal(
            ndl.gelu(ndl.asarray(view)).numpy(), ndl.gelu(ndl.asarray(view.copy())).numpy()
        )
    condition = x[:1] > 0
    y = ndl.where(ndl.asarray(condition), ndl.asarray(x), ndl.asarray(x[:, :1]))
    np.testing.assert_array_equal(y.numpy(), np.where(condition, x, x[:, :1]))
    t, c = ndl.Tensor(x), ndl.Tensor(x[:1])
    (ndl.hypot(t, c) * 2).sum().backward()
    assert t.grad.shape == (200, 300)
    assert c.grad.shape == (1, 300)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_are_computed_in_float32(dtype: str) -> None:
    x = ndl.asarray(draw(LARGE + 1)).astype(dtype)
    for function in (ndl.gelu, ndl.silu):
        wide = function(x.astype("float32")).astype(dtype)
        np.testing.assert_allclose(
            function(x).astype("float32").numpy(), wide.astype("float32").numpy(), rtol=2**-7
        )


def test_sigmoid_reaches_subnormal_numbers() -> None:
    assert ndl.sigmoid(ndl.asarray([-100.0])).item() == pytest.approx(3.783506e-44, rel=0.02)


def test_a_clone_is_a_copy() -> None:
    x = ndl.asarray(draw(2 * LARGE))
    y = ndl.clone(x)
    y += 1
    assert not np.shares_memory(x.numpy(), y.numpy())
    np.testing.assert_array_equal(y.numpy(), x.numpy() + 1)


class Listening(MathFunction):
    """A builder that remembers whether a lowering asked it for a function that may err."""

    errs = False

    def __getattribute__(self, name: str) -> Any:
        if ULP.get(name, 0) > 0.5:
            object.__setattr__(self, "errs", True)
        return super().__getattribute__(name)


def test_exact_ops_ask_for_no_function_that_errs() -> None:
    for op in REGISTRY.values():
        if not isinstance(op, Op) or op.kind is not Kind.ELEMENTWISE or not callable(op.lower):
            continue
        if op.attributes or (op.promotion and "float" not in op.promotion):
            continue
        names = [f"x{i}" for i in range(len(op.inputs))]
        f = Listening(Module(), "probe", dict.fromkeys(names, "float"))
        kinds = [ndl.float32] * len(names)
        if op.name == "where":
            kinds[0] = ndl.bool
        op.lower(f, *[f.argument(n, d) for n, d in zip(names, kinds, strict=True)])
        assert f.errs is not op.exact, op.name


def test_ufuncs_and_what_is_refused_stay_numpys() -> None:
    for op in REGISTRY.values():
        if isinstance(op, Op) and op.kind is Kind.ELEMENTWISE and (op.is_ufunc or op.fault):
            assert kernel_of(op) is None


def test_small_exact_programs_and_numbers_import_no_compiler() -> None:
    script = (
        "import sys, needle as ndl\n"
        "x = ndl.Tensor([1.0, -2.0])\n"
        "y = ndl.where(x > 0, ndl.relu(x) * 2, ndl.leaky_relu(x)).sum()\n"
        "ndl.sigmoid(ndl.tanh(ndl.exp(y)))\n"
        "y.backward()\n"
        "assert 'llvmlite' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_rule_that_hands_on_its_cotangent_runs_as_it_is() -> None:
    """The gradients of two leaves must not be one memory."""
    x, y = (ndl.Tensor(draw(2 * LARGE, dtype="float64") + 3) for _ in range(2))
    g = ndl.asarray(draw(2 * LARGE, dtype="float64"))
    ndl.remainder(x, y).backward(g)
    expected = -g.numpy() * np.floor_divide(x.numpy(), y.numpy())
    np.testing.assert_array_equal(y.grad.numpy(), expected)
    assert not np.shares_memory(x.grad.numpy(), g.numpy())
    (x + y).backward(g)
    assert not np.shares_memory(x.grad.numpy(), y.grad.numpy())


def test_operands_that_broadcast_have_the_gradients_of_ops() -> None:
    x, w, g = draw(300, 200), draw(200), draw(300, 200)
    for function in (ndl.multiply, ndl.divide, ndl.hypot):
        given = ndl.Tensor(x), ndl.Tensor(w)
        function(*given).backward(ndl.asarray(g))
        expected = [ndl.Tensor(x.astype("float64")), ndl.Tensor(w.astype("float64"))]
        function(*expected).backward(ndl.asarray(g.astype("float64")))
        for a, b in zip(given, expected, strict=True):
            assert a.grad.shape == a.shape
            np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=2e-3, atol=2e-3)


# Normalisation with parameters


def channels(x: Any, w: Any, b: Any, g: Any) -> list[Any]:
    """Return the result of batch normalisation, and the three gradients."""
    tensors = [ndl.Tensor(a) for a in (x, w, b)]
    y = ndl.batch_norm(tensors[0], None, None, *tensors[1:], training=True)
    y.backward(ndl.asarray(g))
    return [y.numpy().copy(), *[t.grad.numpy() for t in tensors]]


@pytest.mark.parametrize("shape", [(5, 6, 7, 9), (300, 6), (2, 6, 3000), (64, 6, 1, 1)])
def test_batch_norm_has_the_same_bits_with_any_threads(shape: tuple[int, ...]) -> None:
    inputs = draw(*shape), draw(6), draw(6), draw(*shape)
    before = ndl.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            ndl.set_num_threads(threads)
            results.append([r.tobytes() for r in channels(*inputs)])
    finally:
        ndl.set_num_threads(before)
    assert results[0] == results[1] == results[2]


def test_one_program_serves_batches_of_all_sizes() -> None:
    for count in (2, 3, 17, 400):
        x, g = draw(count, 4, 6), draw(count, 4, 6)
        w, b = draw(4), draw(4)
        y, dx, dw, db = channels(x, w, b, g)
        wide = x.astype(np.float64)
        mean, var = wide.mean((0, 2), keepdims=True), wide.var((0, 2), keepdims=True)
        hat = (wide - mean) / np.sqrt(var + 1e-5)
        np.testing.assert_allclose(y, hat * w[:, None] + b[:, None], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(db, g.sum((0, 2)), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(dw, (g * hat).sum((0, 2)), rtol=1e-4, atol=1e-4)
        u = g * w[:, None]
        expected = u - u.mean((0, 2), keepdims=True) - hat * (u * hat).mean((0, 2), keepdims=True)
        np.testing.assert_allclose(dx, expected / np.sqrt(var + 1e-5), rtol=1e-3, atol=1e-5)


def test_an_example_of_group_norm_has_the_same_bits_in_any_batch() -> None:
    x, w, b, g = draw(64, 12, 5, 7), draw(12), draw(12), draw(64, 12, 5, 7)

    def run(count: int) -> list[bytes]:
        t = ndl.Tensor(x[:count])
        y = ndl.group_norm(t, 3, ndl.asarray(w), ndl.asarray(b))
        y.backward(ndl.asarray(g[:count]))
        return [y.numpy()[0].tobytes(), t.grad.numpy()[0].tobytes()]

    whole = run(64)
    for count in (1, 3, 17):
        assert run(count) == whole


def test_the_normalised_result_is_not_kept() -> None:
    """Its rules name the statistics alone: ``out_1`` and ``out_2``."""
    op = record("affine_standardize")
    plan = op.save_plan((True, True, True, False))
    assert not plan.out
    assert plan.results == {1, 2}


def test_gradients_of_mean_and_variance() -> None:
    x = draw(6, 3, 4, dtype="float64")
    one, zero = np.ones((3, 1)), np.zeros((3, 1))

    def run(t: Any) -> Any:
        _, mean, variance = ndl.affine_standardize(t, ndl.asarray(one), ndl.asarray(zero), (0, 2))
        return (mean * 2 + variance * 3).sum()

    t = ndl.Tensor(x)
    run(t).backward()
    expected = 2 / 24 + 3 * 2 / 24 * (x - x.mean((0, 2), keepdims=True))
    np.testing.assert_allclose(t.grad.numpy(), expected, rtol=1e-12)


# Sums over windows


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), ((2, 5), (3, 1))])
def test_a_plane_has_the_same_bits_in_any_batch_and_with_any_threads(
    kernel: Any, stride: Any
) -> None:
    x = draw(70, 3, 19, 21)
    before = ndl.get_num_threads()

    def run(x: Any) -> tuple[Any, Any]:
        t = ndl.Tensor(x)
        y = ndl.avg_pool2d(t, kernel, stride)
        (y * y).sum().backward()
        return y.numpy(), t.grad.numpy()

    whole = run(x)
    try:
        for threads in (1, 3):
            ndl.set_num_threads(threads)
            for a, b in zip(run(x), whole, strict=True):
                assert a.tobytes() == b.tobytes()
    finally:
        ndl.set_num_threads(before)
    for count in (1, 3, 17):
        for a, b in zip(run(x[:count]), whole, strict=True):
            assert a.tobytes() == b[:count].tobytes()


def test_a_sum_over_windows_and_its_adjoint() -> None:
    x, g = draw(2, 9, 8, dtype="float64"), draw(2, 4, 7, dtype="float64")
    y = ndl.window_sum(ndl.asarray(x), (3, 2), (2, 1))
    assert y.shape == g.shape
    spread = ndl.window_spread(ndl.asarray(g), (9, 8), (3, 2), (2, 1))
    assert np.vdot(y.numpy(), g) == pytest.approx(np.vdot(x, spread.numpy()), rel=1e-12)
