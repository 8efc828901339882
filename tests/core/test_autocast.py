"""autocast: which op computes in which dtype, by its record; gradients; nesting; compiled."""

import itertools
import threading

import numpy as np
import pytest

import needle as ndl
from needle import dtypes, nn, tree
from needle.errors import DTypeError
from needle.nn import functional as F
from needle.ops.precision import Precision
from needle.ops.record import Kind, Op
from needle.testing import assert_close, cases_under_test, ops_under_test

BF16, F32, F64 = ndl.bfloat16, ndl.float32, ndl.float64


def floating_results(case, dtype):
    """Return the dtypes of the floating results of a sample with floats of ``dtype``."""
    result = case.call(lambda a: ndl.asarray(a.astype(dtype) if dtypes.is_float(a.dtype) else a))
    leaves = tree.flatten(result)[0]
    return {t.dtype for t in leaves if isinstance(t, ndl.Tensor) and dtypes.is_float(t.dtype)}


def cases_of(entry):
    """Return the samples with floats, of which the dtype of the result follows."""
    cases = cases_under_test([entry])
    return [c for c in cases if c.floating_arrays() and c.entry.name != "astype"]


ENTRIES = [entry for entry in ops_under_test() if cases_of(entry)]
LOW = [entry for entry in ENTRIES if entry.precision is Precision.LOW]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_policy_is_that_of_the_record(entry):
    for case, dtype in itertools.product(cases_of(entry), (F32, BF16)):
        without = floating_results(case, dtype)
        with ndl.autocast("bfloat16"):
            within = floating_results(case, dtype)
        if entry.precision is Precision.LOW:
            assert within == {BF16}, case
        elif entry.precision is Precision.FULL:
            assert within == {F32 if d == BF16 else d for d in without}, case
        elif isinstance(entry, Op):
            assert within == without, case
        else:  # what is written with other ops has results of theirs
            assert within <= without | {F32, BF16}, case


@pytest.mark.parametrize("entry", LOW, ids=lambda entry: entry.name)
def test_float64_is_left_alone(entry):
    with ndl.autocast("bfloat16"):
        for case in cases_of(entry):
            assert floating_results(case, F64) == {F64}


def test_kinds_say_what_records_do_not():
    assert ndl.matmul.op.kind is Kind.CONTRACTION
    assert ndl.matmul.op.precision is Precision.LOW
    assert ndl.sum.op.precision is ndl.softmax.op.precision is Precision.FULL
    assert ndl.max.op.precision is ndl.add.op.precision is Precision.FOLLOW


def test_values_are_those_of_rounded_factors():
    rng = np.random.default_rng(0)
    x, w = (ndl.asarray(rng.standard_normal(s).astype(np.float32)) for s in ((5, 40), (40, 3)))
    with ndl.autocast("bfloat16"):
        y = x @ w
    assert y.dtype == BF16
    exact = x.astype(BF16).astype(F64) @ w.astype(BF16).astype(F64)
    error = np.abs(y.astype(F64).numpy() - exact.numpy())
    size = np.abs(x.numpy()).astype(np.float64) @ np.abs(w.numpy())
    assert (error <= np.abs(exact.numpy()) * 2**-8 + size * 2**-20).all()


def test_gradients_are_float32_and_near():
    rng = np.random.default_rng(1)
    model = nn.Sequential(nn.Linear(30, 20), nn.LayerNorm(20), nn.GELU(), nn.Linear(20, 7))
    x = ndl.asarray(rng.standard_normal((50, 30)).astype(np.float32))
    labels = ndl.asarray(rng.integers(0, 7, 50))
    found = []
    for enabled in (False, True):
        for p in model.parameters():
            p.grad = None
        with ndl.autocast("bfloat16", enabled=enabled):
            loss = F.cross_entropy(model(x), labels)
        assert loss.dtype == F32
        loss.backward()
        assert all(p.grad.dtype == F32 for p in model.parameters())
        found.append([p.grad.numpy() for p in model.parameters()])
    for exact, low in zip(*found, strict=True):
        difference = np.linalg.norm(exact - low) / np.linalg.norm(exact)
        assert 0 < difference < 0.02


def test_an_input_in_bfloat16_is_not_widened_on_the_way():
    """`x @ w` promotes; a float32 weight must not make float32 of what is bfloat16 already."""
    graph = ndl.compile(lambda x, w: x @ w)
    with ndl.autocast("bfloat16"):
        trace = graph.graph(ndl.ones((2, 3), dtype=BF16), ndl.ones((3, 2)))
    assert [node.op.name for node in trace.nodes] == ["astype", "matmul"]


def test_nests_switches_off_and_comes_back():
    x = ndl.ones((2, 2))
    with ndl.autocast("bfloat16"):
        assert (x @ x).dtype == BF16
        with ndl.autocast(enabled=False):
            assert not ndl.is_autocast_enabled()
            assert (x @ x).dtype == F32
            with ndl.autocast():
                assert (x @ x).dtype == BF16
        assert (x @ x).dtype == BF16
    assert (x @ x).dtype == F32
    with pytest.raises(KeyError), ndl.autocast("bfloat16"):
        raise KeyError
    assert not ndl.is_autocast_enabled()


def test_one_object_entered_twice():
    mode = ndl.autocast("bfloat16")
    with mode, mode:
        assert ndl.is_autocast_enabled()
    assert not ndl.is_autocast_enabled()


def test_as_decorator_also_of_generators():
    @ndl.autocast("bfloat16")
    def product(x):
        return x @ x

    @ndl.autocast("bfloat16")
    def products(x):
        for _ in range(2):
            yield x @ x

    x = ndl.ones((2, 2))
    assert product(x).dtype == BF16
    steps = products(x)
    assert next(steps).dtype == BF16
    assert (x @ x).dtype == F32
    assert next(steps).dtype == BF16


def test_other_threads_are_not_affected():
    seen = []
    with ndl.autocast("bfloat16"):
        thread = threading.Thread(target=lambda: seen.append(ndl.is_autocast_enabled()))
        thread.start()
        thread.join()
    assert seen == [False]


@pytest.mark.parametrize("dtype", ["float16", "float32", ndl.float64, "int8"])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(DTypeError, match="multiplies in bfloat16"):
        ndl.autocast(dtype)


def test_backward_leaves_it():
    """Gradients of what was float32 are not computed in bfloat16 because backward runs inside."""
    x, w = (ndl.Tensor(np.full((2, 2), 1 + 2**-10, np.float32)) for _ in range(2))
    y = x @ w
    with ndl.autocast("bfloat16"):
        y.backward()
        assert ndl.is_autocast_enabled()
    assert_close(x.grad, np.full((2, 2), 2 * (1 + 2**-10), np.float32), ulp=0)


def test_higher_derivatives():
    x = ndl.Tensor([[0.5, 1.0]])
    with ndl.autocast("bfloat16"):
        y = (x @ x.T).sum()
        slope = ndl.grad(y, x, create_graph=True)
        total = slope.sum()
    assert_close(ndl.grad(total, x), np.array([[2.0, 2.0]], np.float32), ulp=0)


def test_checkpoint_computes_again_what_it_computed():
    def body(x, w):
        return ((x @ w).exp() @ w).sum()

    rng = np.random.default_rng(2)
    arrays = [rng.standard_normal((9, 9)).astype(np.float32) / 3 for _ in range(2)]
    found = []
    for run in (body, lambda x, w: ndl.checkpoint(body, x, w)):
        x, w = map(ndl.Tensor, arrays)
        with ndl.autocast("bfloat16"):
            loss = run(x, w)
        loss.backward()
        found.append((loss.numpy(), x.grad.numpy(), w.grad.numpy()))
    for plain, again in zip(*found, strict=True):
        np.testing.assert_array_equal(plain, again)


def test_convolution_with_bias_gives_bfloat16():
    x, w, b = ndl.ones((1, 2, 4, 4)), ndl.ones((3, 2, 3, 3)), ndl.ones(3)
    with ndl.autocast("bfloat16"):
        assert ndl.conv2d(x, w, b).dtype == BF16
        assert F.conv_transpose2d(x, ndl.ones((2, 3, 2, 2)), b).dtype == BF16
        assert ndl.linear(ndl.ones((2, 3)), ndl.ones((3, 3)), b).dtype == BF16


def test_a_dtype_that_is_asked_for_is_given():
    with ndl.autocast("bfloat16"):
        assert ndl.sum(ndl.ones(3), dtype="bfloat16").dtype == BF16


def test_mode_is_part_of_the_signature():
    @ndl.compile
    def product(x, y):
        return x @ y

    x = ndl.asarray(np.random.default_rng(3).standard_normal((17, 33)).astype(np.float32))
    with ndl.autocast("bfloat16"):
        low = product(x, x.T)
        eager = x @ x.T
    full = product(x, x.T)
    with ndl.autocast("bfloat16"):
        assert product(x, x.T).dtype == BF16
    assert len(product.specializations) == 2
    assert (low.dtype, full.dtype) == (BF16, F32)
    np.testing.assert_array_equal(low.astype(F32).numpy(), eager.astype(F32).numpy())


def test_inside_of_a_compiled_function_and_its_loops():
    def run(x):
        with ndl.autocast("bfloat16"):
            y = ndl.fori_loop(0, 3, lambda i, c: (c.astype(BF16) @ x).astype(F32), x)
        return y @ x

    x = ndl.asarray(np.random.default_rng(4).standard_normal((8, 8)).astype(np.float32) / 3)
    expected = run(x)
    found = ndl.compile(run)(x)
    assert found.dtype == F32
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=2**-7, atol=1e-3)


def test_an_optimizer_inside_does_what_it_does_outside():
    found = []
    for enabled in (False, True):
        w = ndl.Tensor(np.full(5, 0.3, np.float32))
        w.grad = ndl.asarray(np.linspace(-1, 1, 5, dtype=np.float32))
        optimizer = ndl.optim.Adam([w], lr=0.1)
        with ndl.autocast(enabled=enabled):
            optimizer.step()
        found.append(w.numpy())
    np.testing.assert_array_equal(*found)
