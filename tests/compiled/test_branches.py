"""compile(branches="specialise"): on every path the values and gradients of eager execution."""

from __future__ import annotations

import threading
import time
from typing import Any

import branch_cases
import numpy as np
import pytest
from branch_cases import CASES, Case, run

import needle as ndl
from needle import nn
from needle.compiled.branches import Answers
from needle.compiled.branches.plan import Program
from needle.errors import ArgumentError, TraceError
from needle.random import default_generator

specialise = ndl.compile(branches="specialise")


def assert_equal(actual: Any, expected: Any, rtol: float = 1e-6) -> None:
    (structure, found), gradient = actual
    (structure_, found_), gradient_ = expected
    assert structure == structure_
    for a, b in zip(found, found_, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    assert (gradient is None) == (gradient_ is None)
    if gradient is not None:
        np.testing.assert_allclose(gradient, gradient_, rtol=rtol, atol=rtol)


def eager_paths(function: Any, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many ways through a function eager execution takes."""
    values_of = ndl.Tensor._values
    paths = set()
    with monkeypatch.context() as patched:
        for values in inputs:
            way: list[Any] = []

            def noted(tensor: Any, use: str, is_element: bool = False, way: Any = way) -> Any:
                found = values_of(tensor, use, is_element)
                if is_element:
                    way.append(bool(found) if use == "bool()" else int(found.item()))
                return found

            patched.setattr(ndl.Tensor, "_values", noted)
            function(ndl.Tensor(np.array(values, np.float32)))
            paths.add(tuple(way))
    return len(paths)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_every_path_is_eager_execution(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = specialise(case.function)
    for _ in range(2):
        for values in case.inputs:
            assert_equal(run(compiled, values), run(case.function, values))
    assert eager_paths(case.function, case.inputs, monkeypatch) == case.paths
    assert len(compiled.specializations) == case.paths
    assert sum(s.calls for s in compiled.specializations) == 2 * len(case.inputs)
    assert all(s.calls for s in compiled.specializations)


def test_unguarded_functions_are_as_they_were() -> None:
    compiled = specialise(lambda x: x * 2)
    assert compiled(ndl.ones(2)).tolist() == [2, 2]
    assert len(compiled.specializations) == 1


def test_design_snippet() -> None:
    def snippet(v1):
        v2 = ndl.exp(v1)
        v3 = v2 + 1
        v4 = v2 * v3
        if v4 > 0.5:  # noqa: SIM108 - as it is written there
            v5 = v4 * 2
        else:
            v5 = v4
        return v5

    compiled = specialise(snippet)
    for value in (1.0, -2.0):
        assert_equal(run(compiled, [value]), run(snippet, [value]))
    assert len(compiled.specializations) == 2


# State


class Training:
    """A step that clips, skips or makes the update, by the norm of the gradients."""

    def __init__(self, compiled: bool) -> None:
        ndl.manual_seed(3)
        # A bias ahead of a normalisation has gradients of nothing but rounding, which Adam would
        # make full steps of.
        first = nn.Linear(3, 4, bias=False)
        self.model = nn.Sequential(
            first, nn.BatchNorm1d(4), nn.Dropout(0.5), nn.GELU(), nn.Linear(4, 2)
        )
        self.optimizer = ndl.optim.Adam(self.model.parameters(), lr=0.05)
        self.skipped = nn.Buffer(ndl.zeros((), dtype=ndl.int64))
        self.step = specialise(self._step) if compiled else self._step

    def _step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = ((self.model(x) - y) ** 2).mean()
        loss.backward()
        square = sum((p.grad * p.grad).sum() for p in self.model.parameters())
        if square > 40.0:
            self.skipped.copy_(self.skipped + 1)
            return loss
        if square > 12.0:
            for p in self.model.parameters():
                p.grad = p.grad * (12.0 / square)
        self.optimizer.step()
        return loss

    def state(self) -> list[Any]:
        tensors = [*self.model.state_dict().values(), self.skipped]
        return [*(t.numpy().copy() for t in tensors), default_generator().state.numpy().copy()]


def test_training_steps_apply_everything_once() -> None:
    rng = np.random.default_rng(0)
    batches = [
        (rng.standard_normal((6, 3)).astype(np.float32), scale * np.ones((6, 2), np.float32))
        for scale in (0.1, 1.0, 3.0, 0.5, 1.0, 0.2, 4.0, 0.8) * 2
    ]
    runs = []
    for compiled in (False, True):
        training = Training(compiled)
        runs.append([(training.step(*b).item(), training.state()) for b in batches])
        if compiled:
            calls = [s.calls for s in training.step.specializations]
            assert len(calls) == 3
            assert sum(calls) == len(batches)
    for (loss, state), (loss_, state_) in zip(*runs, strict=True):
        np.testing.assert_allclose(loss, loss_, rtol=1e-5)
        for a, b in zip(state, state_, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_weights_in_another_order() -> None:
    def results(branches: str | None) -> list[Any]:
        ndl.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 2))
        optimizer = ndl.optim.SGD(model.parameters(), lr=0.1)

        def step(x: Any) -> Any:
            optimizer.zero_grad()
            loss = (model(x) ** 2).mean()
            loss.backward()
            norm = sum((p.grad * p.grad).sum() for p in model.parameters())
            if not ndl.isfinite(norm):
                return loss
            if norm > 1:
                for p in model.parameters():
                    p.grad = p.grad / norm
            optimizer.step()
            return loss

        options = {"branches": branches, "backend": "cpu"}
        run_step = step if branches is None else ndl.compile(step, **options)
        seen = []
        for scale in (1.0, 0.1, float("inf"), 3.0, 0.1):
            loss = run_step(scale * ndl.asarray(batch))
            seen += [loss.item(), *(p.numpy().copy() for p in model.parameters())]
        predict = model if branches is None else ndl.compile(gated(model), **options)
        for sign in (1.0, -1.0):
            model.zero_grad()
            (predict if branches else gated(model))(sign * ndl.asarray(batch)).sum().backward()
            seen += [p.grad.numpy().copy() for p in model.parameters()]
        return seen

    def gated(model: Any) -> Any:
        return lambda x: model(x) * 2 if model(x).sum() > 0 else model(x).exp()

    batch = np.random.default_rng(0).standard_normal((5, 3, 5, 5)).astype(np.float32)
    for a, b in zip(results("specialise"), results(None), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_a_guard_that_fails_has_done_nothing() -> None:
    total = nn.Buffer(ndl.zeros(2))

    @specialise
    def f(x):
        total.copy_(total + x)
        y = ndl.randn(2)
        if total.sum() > 3:
            raise ValueError("too much")
        return y

    f(ndl.ones(2))
    before = total.tolist(), default_generator().state.tolist()
    for _ in range(2):
        with pytest.raises(ValueError, match="too much"):
            f(ndl.ones(2))
        assert (total.tolist(), default_generator().state.tolist()) == before
    f(ndl.zeros(2))
    assert len(f.specializations) == 1


def test_random_draws_are_those_of_eager_execution() -> None:
    def f(x):
        noise = ndl.randn(4)
        if noise.sum() > x:
            return noise * 2
        return noise + ndl.rand(4)

    compiled = specialise(f)
    found = []
    for function in (f, compiled):
        ndl.manual_seed(1)
        found.append([function(ndl.zeros(())).tolist() for _ in range(10)])
    assert found[0] == found[1]
    assert len(compiled.specializations) == 2


def test_paths_use_different_state() -> None:
    a, b = ndl.Tensor([1.0, 2.0]), ndl.Tensor([3.0, 4.0])

    def f(x):
        if x.sum() > 0:
            return (x * a).sum()
        return (x * b).exp().sum()

    compiled = specialise(f)
    for values in ([1.0, 1.0], [-1.0, 0.5], [2.0, 0.0], [-1.0, -1.0]):
        grads = []
        for function in (f, compiled):
            a.grad = b.grad = None
            function(ndl.asarray(np.array(values, np.float32))).backward()
            grads.append([None if t.grad is None else t.grad.tolist() for t in (a, b)])
        assert grads[0] == grads[1]
    with ndl.no_grad():
        b.copy_(ndl.asarray([0.0, 0.0]))
    assert compiled(ndl.asarray([-1.0, -1.0])).item() == 2


def test_a_wrong_guess_only_costs_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which way a call goes, its programs say, and not what was computed to trace it."""
    right = Answers._compute
    monkeypatch.setattr(Answers, "_compute", lambda self, trace, value: ~right(self, trace, value))
    for function in (branch_cases.nested, branch_cases.loop_with_branch):
        compiled = ndl.compile(function, branches="specialise", path_budget=50)
        for values in branch_cases.SIGNS:
            assert_equal(run(compiled, values), run(function, values))
        calls = [s.calls for s in compiled.specializations]
        assert sum(calls) == len(branch_cases.SIGNS)
        assert 0 in calls


def test_keywords_and_structures() -> None:
    def f(batch, *, scale=1.0, flip=False):
        x = batch["x"] * scale
        return x.sum() if bool(x.max() > 1) is flip else {"n": batch["n"], "x": -x}

    compiled = specialise(f)
    for flip in (True, False):
        for value in (0.5, 2.0):
            batch = {"x": ndl.ones(2) * value, "n": 3}
            found, expected = (g(batch, scale=1.5, flip=flip) for g in (compiled, f))
            assert str(found) == str(expected)
    assert len(compiled.specializations) == 4


def test_branches_of_a_backward_pass() -> None:
    class Clip(ndl.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return g / 2 if (g * g).sum() > 1 else g

    def inside(x):
        return ndl.grad((Clip.apply(x) ** 3).sum(), x)

    compiled = specialise(inside)
    for value in (0.1, 2.0):
        x = ndl.Tensor([value, value])
        np.testing.assert_array_equal(compiled(x).numpy(), inside(x).numpy())
    assert len(compiled.specializations) == 2
    with pytest.raises(TraceError, match="in the backward pass, which the caller runs"):
        specialise(lambda x: Clip.apply(x).sum())(ndl.Tensor([1.0, 2.0]))


def test_results_of_a_guard_are_tensors_of_their_own() -> None:
    @specialise
    def f(x):
        y = x * 2
        if y.sum() > 0:
            return y, y, y + 0
        return (y,)

    first, second, _ = f(ndl.ones(2))
    first[0] = 9
    assert second.tolist() == [2, 2]


def test_profiles_see_all_programs() -> None:
    f = ndl.compile(branch_cases.nested, branches="specialise", backend="cpu")
    f(ndl.ones(3))
    with ndl.profile() as found:
        f(ndl.ones(3))
    assert (
        {row.function for row in found.kernels}
        == {"nested_guard_1", "nested_guard_2", "nested_guard_3", "nested"}
        & {row.function for row in found.kernels}
        != set()
    )


def test_a_written_argument_and_views() -> None:
    def f(x):
        x[0] += 1
        if x.sum() > 2:
            x[1:] *= 2
        return x.sum()

    compiled = specialise(f)
    for values in ([0.0, 0.5, 0.25], [4.0, 1.0, 1.0], [0.0, 0.5, 0.25]):
        given = [np.array(values, np.float32) for _ in range(2)]
        results = [g(ndl.asarray(v)).item() for g, v in zip((f, compiled), given, strict=True)]
        assert results[0] == results[1]
        np.testing.assert_array_equal(*given)
    # Arguments that lie otherwise take the same ways.
    wide = np.array([4.0, 0, 1.0, 0, 1.0, 0], np.float32)
    compiled(ndl.asarray(wide[::2]))
    np.testing.assert_array_equal(wide, [5, 0, 2, 0, 2, 0])


def test_state_that_lies_otherwise() -> None:
    wide = np.arange(6, dtype=np.float32)
    a, b = ndl.asarray(wide[::2]), ndl.asarray(wide[::-2])

    def f(x):
        if x.sum() > 0:
            a.copy_(a + x)
            return a * x
        return b * x

    compiled = ndl.compile(f, branches="specialise", backend="cpu")
    for values in (1.0, -1.0, 2.0, -2.0):
        x = ndl.ones(3) * values
        before = wide.copy()
        expected = f(x).tolist()
        now = wide.copy()
        wide[:] = before
        assert compiled(x).tolist() == expected
        np.testing.assert_array_equal(wide, now)


def test_state_outside_is_asked() -> None:
    count = nn.Buffer(ndl.zeros((), dtype=ndl.int64))

    @specialise
    def f(x):
        count.copy_(count + 1)
        if count > 2:
            count.zero_()
            return x * 10
        return x

    flag = nn.Buffer(ndl.asarray(True))
    choose = specialise(lambda x: x if flag else -x)
    assert [f(ndl.ones(())).item() for _ in range(7)] == [1, 1, 10, 1, 1, 10, 1]
    assert choose(ndl.ones(())).item() == 1
    flag.copy_(ndl.asarray(False))
    assert choose(ndl.ones(())).item() == -1
    assert len(choose.specializations) == 2


# Modes


def test_modes_and_attributes_have_paths_of_their_own() -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.limit = 0.0

        def forward(self, x):
            y = self.linear(x)
            if y.sum() > self.limit:
                return y * 2 if self.training else y * 3
            return y

    ndl.manual_seed(0)
    model = Gate()
    compiled = specialise(model)
    x = ndl.randn(3, 2)
    for _ in range(2):
        for training in (True, False):
            model.train(training)
            for sign in (1.0, -1.0):
                np.testing.assert_array_equal(
                    compiled(x * sign).detach().numpy(), model(x * sign).detach().numpy()
                )
                with ndl.no_grad():
                    assert not compiled(x * sign).requires_grad
    model.limit = 1e9
    np.testing.assert_array_equal(compiled(x).detach().numpy(), model(x).detach().numpy())
    assert len(compiled.specializations) == 9


def test_dims_fall_back_with_the_reason() -> None:
    f = ndl.compile(
        branch_cases.two_sides, branches="specialise", dims={"x": ndl.Dim("batch")}, budget=1
    )
    for n in (1, 2, 3):
        for sign in (1.0, -1.0):
            x = ndl.ones(n) * sign
            np.testing.assert_array_equal(f(x).numpy(), f.function(x).numpy())
    assert len(f.specializations) == 6
    assert "branches='specialise'" in str(f.memory_plan(ndl.ones(2)))


def test_check_compares_each_program() -> None:
    f = ndl.compile(branch_cases.nested, branches="specialise", check=True)
    for values in branch_cases.SIGNS:
        assert_equal(run(f, values), run(f.function, values))


def test_several_threads() -> None:
    total = nn.Buffer(ndl.zeros((), dtype=ndl.int64))

    @specialise
    def f(x):
        y = x * 1.5
        for limit in (1.0, 2.0, 4.0, 8.0):
            if y.sum() > limit:
                y = y + limit
                total.copy_(total + 1)
        return y

    values = [0.1, 0.5, 1.0, 2.0, 4.0]
    expected = {}
    for v in values:
        expected[v] = f.function(ndl.asarray(v)).item()
    count = total.item()
    total.zero_()
    wrong: list[Any] = []

    def work(order: list[float]) -> None:
        try:
            for v in order * 20:
                got = f(ndl.asarray(v)).item()
                if got != expected[v]:
                    wrong.append((v, got))
        except Exception as error:
            wrong.append(error)

    orders = [values, values[::-1], values[2:] + values[:2]]
    threads = [threading.Thread(target=work, args=(order,)) for order in orders]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert total.item() == count * 60
    assert sum(s.calls for s in f.specializations) == 300


def test_a_guard_and_its_write_are_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other thread comes between what was asked and what is written."""
    total = nn.Buffer(ndl.zeros(()))

    @specialise
    def once(x):
        if total < x:
            total.copy_(total + x)
        return total + 0

    once(ndl.asarray(1.0))
    once(ndl.asarray(1.0))
    total.zero_()
    run_program = Program.run

    def slow(program: Program, arrays: Any) -> Any:
        found = run_program(program, arrays)
        time.sleep(0.02)
        return found

    monkeypatch.setattr(Program, "run", slow)
    threads = [threading.Thread(target=once, args=(ndl.asarray(1.0),)) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert total.item() == 1


# Limits


def test_the_number_of_paths_is_bounded() -> None:
    @ndl.compile(branches="specialise", path_budget=3)
    def halve(x):
        while x.sum() > 1:  # here
            x = x * 0.5
        return x

    for n in (0, 1, 2):
        halve(ndl.asarray(2.0**n))
    for _ in range(2):
        with pytest.raises(TraceError) as caught:
            halve(ndl.asarray(64.0))
    message = str(caught.value)
    assert "compiled for 3 paths" in message
    assert "while x.sum() > 1:  # here" in message
    for way in ("ndl.while_loop", "ndl.cond", "path_budget=6", "halve.guards()"):
        assert way in message
    assert halve(ndl.asarray(4.0)).item() == 1  # those that are there go on
    assert len(halve.specializations) == 3


def test_the_questions_of_a_path_are_bounded() -> None:
    @ndl.compile(branches="specialise", path_budget=1)
    def endless(x):
        while x > 0:  # here
            x = x + 1
        return x

    with pytest.raises(TraceError, match=r"asked for 256 values on one path.*ndl\.while_loop"):
        endless(ndl.asarray(1.0))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * float(x.max()),
        lambda x: x * x.max().item(),
        lambda x: np.sin((x * 2).numpy()),
        lambda x: (x + 1).tolist(),
        lambda x: x[x > 0],
    ],
)
def test_what_is_no_guard_stays_an_error(function: Any) -> None:
    with pytest.raises(TraceError, match="where"):
        specialise(function)(ndl.ones(3))


def test_no_guards_inside_of_traced_control_flow() -> None:
    def f(x):
        return ndl.cond(x.sum() > 0, lambda x: x if x.max() > 1 else -x, lambda x: x, x)

    with pytest.raises(TraceError, match=r"bool\(\) at .*cond"):
        specialise(f)(ndl.ones(3))


def test_the_error_names_the_way() -> None:
    with pytest.raises(TraceError, match='branches="specialise"'):
        ndl.compile(branch_cases.two_sides)(ndl.ones(3))


def test_functions_that_do_something_else_each_time() -> None:
    calls = iter([1.0, 2.0, 3.0])

    def f(x):
        y = x * next(calls)
        return y if y.sum() > 0 else -y

    compiled = specialise(f)
    compiled(ndl.ones(2))
    with pytest.raises(TraceError, match=r"has not done the same up to .*y if y\.sum"):
        compiled(-ndl.ones(2))


def test_arguments_of_compile() -> None:
    for options in (
        {"branches": "other"},
        {"branches": "specialise", "path_budget": 0},
        {"branches": "specialise", "memory_budget": 100},
    ):
        with pytest.raises(ArgumentError, match="compile: "):
            ndl.compile(branch_cases.nested, **options)
    with pytest.raises(TraceError, match="depends on values"):
        specialise(branch_cases.nested).max_batch(1000, ndl.ones(3))


# Looking inside


def test_the_guard_tree() -> None:
    f = specialise(branch_cases.nested)
    for values in branch_cases.SIGNS + branch_cases.SMALL:
        f(ndl.asarray(np.array(values, np.float32)))
    text = f.guards()
    assert "nested(x: float32[3]): 5 paths of at most 16" in text
    assert "branch_cases.py" in text
    assert "if y.sum() > 4:  # greater(sum(multiply(x, x)), 4.0)" in text
    assert "calls" in text
    report = f.explain(ndl.ones(3))
    assert f"guards: {text}" in str(report)
    assert len(report.ahead) == 2
    assert report.flops > sum(k.flops for k in report.groups)
    g = specialise(branch_cases.halved)
    g(ndl.ones(3))
    assert "not there yet: the path with the answers False" in str(g.explain(ndl.zeros(3)))
    assert len(g.specializations) == 1


def test_the_memory_of_a_path() -> None:
    @specialise
    def f(x):
        y = x.exp()
        if y.sum() > 0:
            return y * 2 + x
        return x

    plan = f.memory_plan(ndl.ones(1000))
    assert plan.kept == 4000
    assert plan.arguments == plan.outputs == 4000
    assert plan.peak_bytes == 12_000
    assert "handed on" in str(plan)
    assert not f.specializations
    assert len(f.graph(ndl.ones(1000)).nodes) == 6 - 1
