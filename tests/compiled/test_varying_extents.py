"""A function with a Dim is compiled once, and serves each extent as a program of its own would."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from extent_cases import CASES, Case, draw, model_cases

import needle as ndl
from needle import nn, tree
from needle.errors import ArgumentError, OutOfRangeError, ShapeError, TraceError


@pytest.fixture(autouse=True)
def interpreted() -> None:
    """Here both sides run native code."""


MODELS = model_cases()
#: Compared with the program for the extent alone, and with eager execution.
STATIC, EAGER = (3, 17), (64, 1, 2, 200)


def with_batch(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a function all of whose arguments have a batch."""
    batch = ndl.Dim("batch")
    dims = dict.fromkeys(inspect.signature(function).parameters, batch)
    return ndl.compile(function, dims=dims, **options)


def arrays_of(value: Any) -> list[Any]:
    leaves, _ = tree.flatten(value)
    return [x.numpy() if isinstance(x, ndl.Tensor) else np.asarray(x) for x in leaves]


def assert_equal(actual: Any, expected: Any, tolerance: float) -> None:
    for a, b in zip(arrays_of(actual), arrays_of(expected), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not tolerance or b.dtype.kind not in "f":
            np.testing.assert_array_equal(a, b)
        else:
            scale = np.abs(np.asarray(b, np.float64)).max(initial=1e-30)
            if b.dtype == np.float16:
                tolerance = 1e-3
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("case", [*CASES, *MODELS], ids=lambda case: case.name)
def test_any_extent(case: Case) -> None:
    function = with_batch(case.function)
    extents = STATIC if case.reason else (*STATIC, *EAGER)
    for extent in extents:
        args = [draw(shape, extent, i) for i, shape in enumerate(case.shapes)]
        result = function(*args)
        assert result is not None
        if extent in STATIC and not case.reason:
            expected = ndl.compile(case.function)(*args)
            assert_equal(result, expected, 0 if case.exact else 1e-5)
        else:
            assert_equal(result, case.function(*args), 1e-5)
    varying = function._varying
    if case.reason:
        assert case.reason in varying.reason, varying.describe()
        assert len(function.specializations) == len(extents)
    else:
        assert varying.reason == "", varying.describe()
        assert len(function.specializations) <= 1 + len(varying.exceptions)


def test_empty_batches_are_programs_of_their_own() -> None:
    function = with_batch(lambda x: (x * 2).sum(axis=1))
    assert function(ndl.ones((4, 3))).tolist() == [6.0] * 4
    assert function(ndl.ones((0, 3))).shape == (0,)
    mean = with_batch(lambda x, y: ndl.mse_loss(x, y))
    assert mean(ndl.ones((4, 3)), ndl.zeros((4, 3))).item() == 1.0
    with pytest.raises(ShapeError, match="the batch is empty"):
        mean(ndl.ones((0, 3)), ndl.zeros((0, 3)))


def test_what_is_asked_of_the_extent_decides_between_programs() -> None:
    def scaled(x: Any) -> Any:
        if x.shape[0] > 16:
            return x * 2
        return x * 3 if x.shape[0] % 2 == 0 else x * 4

    function = with_batch(scaled)
    for extent in (20, 6, 7, 1, 2, 17, 100, 16):
        assert_equal(function(draw((3,), extent)), scaled(draw((3,), extent)), 0)
    assert len(function.specializations) == 3
    assert "for each answer" in function._varying.describe()


def test_training_steps_are_those_of_one_program_for_each_extent() -> None:
    def make(**options: Any) -> tuple[Any, Any]:
        ndl.manual_seed(3)
        model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 5))
        optimizer = ndl.optim.Adam(model.parameters(), lr=0.01)

        def step(x: Any, y: Any) -> Any:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        return model, ndl.compile(step, **options)

    batch = ndl.Dim("batch")
    varying, step = make(dims={"x": batch, "y": batch})
    fixed, fixed_step = make()
    for extent in (8, 3, 1, 8, 40):
        args = draw((12,), extent), ndl.asarray(np.arange(extent) % 5)
        assert_equal(step(*args), fixed_step(*args), 1e-6)
        for a, b in zip(varying.parameters(), fixed.parameters(), strict=True):
            assert_equal(a.detach(), b.detach(), 1e-4)
    assert len(step.specializations) == 1, step._varying.describe()


def test_gradients_that_go_on_outside() -> None:
    w = ndl.Tensor(np.ones((4, 3), np.float32))
    function = with_batch(lambda x: ndl.exp(x @ w).mean(axis=0) + x.mean())
    for extent in (5, 2, 9):
        x = draw((4,), extent)
        w.grad = None
        function(x).sum().backward()
        compiled = w.grad
        w.grad = None
        (ndl.exp(x @ w).mean(axis=0) + x.mean()).sum().backward()
        assert_equal(compiled, w.grad, 1e-5)
    assert function._varying.reason == ""
    assert len(function.specializations) == 1


def test_state_of_the_extent_it_was_made_with_is_no_batch() -> None:
    held = ndl.asarray(np.arange(4, dtype=np.float32))
    function = with_batch(lambda x: x + held)
    assert function(ndl.ones(4)).tolist() == [1, 2, 3, 4]
    with pytest.raises(ShapeError):
        function(ndl.ones(5))


def test_an_extent_that_is_kept_ends_the_trace() -> None:
    class Counting(nn.Module):
        def forward(self, x: Any) -> Any:
            self.last = x.shape[0]
            return x * 2

    module = Counting()
    function = ndl.compile(module, dims={"x": ndl.Dim("batch")})
    assert function(ndl.ones((3, 2))).shape == (3, 2)
    assert module.last == 3
    assert "is kept beyond the call" in function._varying.reason


def test_extents_that_are_left_behind_are_errors() -> None:
    kept: list[Any] = []

    def leaky(x: Any) -> Any:
        leaky.seen = x.shape  # type: ignore[attr-defined]
        return x * 2

    function = with_batch(leaky)
    function(ndl.ones((3, 2)))
    extent = leaky.seen[0]  # type: ignore[attr-defined]
    with pytest.raises(TraceError, match="left it behind"):
        kept.append(list(range(extent)))
    with pytest.raises(TraceError, match="left it behind"):
        kept.append(extent > 2)


def test_errors_of_values_name_the_places_of_this_call() -> None:
    table = ndl.asarray(np.zeros((4, 3), np.float32))
    look_up = with_batch(lambda i: table[i])
    look_up(ndl.asarray([[0, 1]]))
    with pytest.raises(OutOfRangeError, match=r"index 9 \(at position \[2, 1\]"):
        look_up(ndl.asarray([[0, 1], [2, 3], [1, 9]]))
    of_rows = with_batch(lambda x, i: x[i])
    of_rows(ndl.ones((3, 2)), ndl.asarray([0, 2, 1]))
    assert of_rows._varying.reason == ""
    with pytest.raises(OutOfRangeError, match=r"index 5 .* is out of range for axis 0 of extent 2"):
        of_rows(ndl.ones((2, 2)), ndl.asarray([0, 5]))


def test_memory_is_planned_for_each_row() -> None:
    function = with_batch(lambda x: ndl.exp(x).sum(axis=0) + (x @ x[0]).sum())
    for extent in (2, 500, 3):
        x = draw((6,), extent)
        assert_equal(function(x), ndl.exp(x).sum(axis=0) + (x @ x[0]).sum(), 1e-4)
    many = with_batch(lambda x: (x @ ndl.ones((6, 64))).max(axis=1) + 1)
    many(draw((6,), 3))
    program = many.specializations[0].executable.program
    assert program.recipe.row_bytes == 64 * 4


def test_the_first_of_two_dims_varies() -> None:
    n, t = ndl.Dim("n"), ndl.Dim("t")
    function = ndl.compile(lambda x: (x * 2).sum(axis=1), dims={"x": (n, t)}, budget=1)
    for rows, columns in ((2, 3), (5, 3), (5, 4), (1, 4)):
        assert function(ndl.ones((rows, columns))).tolist() == [2.0 * columns] * rows
    assert len(function.specializations) == 2


def test_other_backends_and_checks_have_a_program_for_each_extent() -> None:
    for options in ({"backend": "interpret"}, {"check": True}):
        function = with_batch(lambda x: x * 2 + 1, **options)
        for extent in (1, 3):
            assert function(ndl.ones(extent)).tolist() == [3.0] * extent
        assert len(function.specializations) == 2
        assert function._varying.reason


def test_threads_may_call_with_different_extents() -> None:
    w = draw((6,), 32)
    function = with_batch(lambda x: ndl.tanh(x @ w) @ ndl.permute_dims(w, (1, 0)))
    args = {n: draw((32,), n) for n in (1, 2, 5, 33)}
    expected = {n: function(x).numpy() for n, x in args.items()}
    failures: list[int] = []

    def work(n: int) -> None:
        same = [np.array_equal(function(args[n]).numpy(), expected[n]) for _ in range(50)]
        failures.extend([n] * same.count(False))

    threads = [threading.Thread(target=work, args=(n,)) for n in args]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(function.specializations) == 1


def test_no_bit_depends_on_threads_or_neighbours() -> None:
    w = draw((300,), 64)
    x = draw((64,), 100)
    results = []
    before = ndl.get_num_threads()
    try:
        for threads in (1, 2, 4):
            ndl.set_num_threads(threads)
            function = with_batch(lambda x: (ndl.relu(x @ w), ndl.exp(x).sum(axis=0)))
            results.append(arrays_of(function(x)))
            part = arrays_of(function(x[7:8]))[0]
            np.testing.assert_array_equal(part[0], results[-1][0][7])
    finally:
        ndl.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_profiles_tell_the_work_of_the_call() -> None:
    w = draw((16,), 8)
    function = with_batch(lambda x: x @ w)
    function(draw((8,), 3))
    with ndl.profile() as profile:
        function(draw((8,), 5))
    (row,) = profile.kernels
    assert row.flops == 2 * 5 * 8 * 16


def test_names_that_no_argument_has() -> None:
    with pytest.raises(ArgumentError, match="declares axes of 'y', but <lambda> takes x"):
        ndl.compile(lambda x: x, dims={"y": ndl.Dim("n")})
