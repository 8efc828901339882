"""explain, memory_plan and max_batch: what is known of a compiled function before it runs."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.compiled import executable
from needle.errors import ArgumentError
from needle.nn import functional as F


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.setattr(executable, "BACKENDS", ("cpu", "interpret"))


def training_step():
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = ndl.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    @ndl.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, step


X, Y = ndl.zeros((8, 12)), ndl.zeros((8,), dtype=ndl.int64)


def test_it_tells_ops_loops_arithmetic_and_bytes():
    report = ndl.compile(lambda x, w: ndl.relu(x @ w) + 1).explain(
        ndl.zeros((32, 64)), ndl.zeros((64, 16))
    )
    (kernel,) = report.groups
    assert kernel.ops == ("matmul", "relu", "add")
    assert kernel.loops == (32, 16)
    assert kernel.flops == 2 * 32 * 64 * 16 + 2 * 32 * 16
    assert kernel.bytes_read == 4 * (32 * 64 + 64 * 16)
    assert kernel.bytes_written == 4 * 32 * 16
    assert report.flops == kernel.flops
    assert kernel.lines[0].rpartition(":")[0].endswith("test_explain.py")
    for part in (kernel.name, "matmul relu add", "32×16", "1 ops traced", "66.6 kFLOP"):
        assert part.replace("1 ops", "3 ops") in str(report)


def test_only_elements_that_are_read_count():
    report = ndl.compile(lambda x: x[:10] * 2).explain(ndl.zeros(1000))
    assert report.groups[0].bytes_read == 40
    both = ndl.compile(lambda x: x + x[0]).explain(ndl.zeros(1000))
    assert both.groups[0].bytes_read == 4000


def test_every_op_belongs_to_a_kernel():
    _, step = training_step()
    report = step.explain(X, Y)
    assert {n for k in report.groups for n in k.nodes} == set(report.graph.nodes)
    for k in report.groups:
        assert sum(k.shares().values()) == pytest.approx(1)


def test_passes_are_a_chain():
    _, step = training_step()
    report = step.explain(X, Y)
    sizes = [len(report.traced.nodes)]
    for effect in report.passes:
        assert effect.before == sizes[-1]
        sizes.append(len(effect.graph.nodes))
    assert report.graph_after(report.passes[-1].name) is report.graph
    assert len(report.graph_after("share").nodes) < report.passes[1].graph.nodes.__len__()
    with pytest.raises(ArgumentError, match="'inline'; there are 'remove dead code'"):
        report.graph_after("inline")


def test_it_runs_nothing_and_changes_nothing():
    model, step = training_step()
    step(X, Y)
    before = {k: v.numpy().copy() for k, v in model.state_dict().items()}
    versions = [p._version[0] for p in model.parameters()]
    str(step.explain(X, Y))
    str(step.memory_plan(X, Y))
    step.max_batch(1 << 20, X, Y)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
    assert versions == [p._version[0] for p in model.parameters()]
    assert len(step.specializations) == 1
    assert step.specializations[0].calls == 1


def test_it_says_whether_the_cache_has_the_code(tmp_path, monkeypatch):
    monkeypatch.setenv("NEEDLE_CACHE_DIR", str(tmp_path / "cache"))
    f = ndl.compile(lambda x: ndl.cos(x) - 0.3218)
    x = ndl.zeros(7)
    assert not f.explain(x).is_cached
    f(x)
    report = f.explain(x)
    assert report.is_cached
    assert "a first call compiles nothing" in str(report)


def test_code_and_picture():
    report = ndl.compile(lambda x: (ndl.exp(x) * 2).sum()).explain(ndl.zeros((4, 50)))
    assert "define" in report.llvm
    assert "@entry" in report.llvm
    assert "entry:" in report.assembly
    assert report.code_bytes > 0
    svg = report.draw()
    ET.fromstring(svg)
    assert all(k.name in svg for k in report.groups)
    assert set(report.seconds) == {"trace", "passes", "code generation", "machine code"}


def test_the_memory_plan_adds_up():
    model, step = training_step()
    plan = step.memory_plan(X, Y)
    weights = sum(p.size for p in model.parameters()) * 4
    assert plan.arguments == 8 * 12 * 4 + 8 * 8
    assert 2 * weights <= plan.state <= 2 * weights + 64  # momentum, learning rate
    assert plan.outputs == 4
    assert plan.arena.nbytes > 0
    parts = plan.arguments + plan.state + plan.constants + plan.outputs + plan.copies
    assert plan.peak_bytes == parts + plan.arena.nbytes
    assert f"{plan.peak_bytes:,} bytes" in str(plan)
    ET.fromstring(plan.draw())
    assert plan.timeline().strip()
    assert step.explain(X, Y).memory == plan


@pytest.mark.parametrize("budget", [20_000, 123_457, 10_000_000])
def test_the_largest_batch_fits_and_one_more_does_not(budget):
    _, step = training_step()
    n = step.max_batch(budget, X, Y)

    def peak(n):
        return step.memory_plan(ndl.zeros((n, 12)), ndl.zeros((n,), dtype=ndl.int64)).peak_bytes

    assert peak(n) <= budget < peak(n + 1)


def test_a_batch_on_another_axis_and_arguments_without_one():
    f = ndl.compile(lambda x, w: w @ x)
    w = ndl.zeros((3, 6))
    n = f.max_batch(4 * (18 + 9 * 50), ndl.zeros((6, 2)), w, axis=1)
    assert n == 50


def test_no_batch_fits():
    _, step = training_step()
    with pytest.raises(ArgumentError, match=r"a batch of 1 takes .* and the budget is 1,000"):
        step.max_batch(1000, X, Y)
    with pytest.raises(ArgumentError, match="no tensor among the arguments has an axis 5"):
        step.max_batch(1000, X, Y, axis=5)


def test_an_error_at_some_size_says_so():
    f = ndl.compile(lambda x: x.reshape((4, 3)))
    with pytest.raises(ndl.NeedleError, match="while planning for a batch of 1"):
        f.max_batch(10_000, ndl.zeros((4, 3)))


def test_loops_tell_what_is_in_them():
    cell = nn.Linear(4, 4)
    report = ndl.compile(lambda x: ndl.fori_loop(0, 5, lambda i, c: ndl.tanh(cell(c)), x)).explain(
        ndl.ones((3, 4))
    )
    loop = next(k for k in report.groups if "loop" in k.ops)
    assert {"matmul", "tanh"} <= set(loop.ops)
    assert loop.flops >= 5 * 2 * 3 * 4 * 4
    assert sum(loop.shares().values()) == pytest.approx(1)
    assert "tanh" in str(report)


def test_what_is_planned_is_what_a_call_takes():
    _, step = training_step()
    plan = step.memory_plan(X, Y)
    step(X, Y)
    recipe = step.specializations[0].executable.recipe
    assert plan.arena.nbytes == recipe.arena_bytes
    assert plan.arguments + plan.state == sum(spec.nbytes for spec in recipe.inputs)
    assert plan.constants == sum(c.nbytes for c in recipe.constants)


def test_layers_of_one_kind_share_their_kernels():
    """The code of a network does not grow with the number of its layers."""
    sizes = []
    for layers in (3, 6):
        ndl.manual_seed(0)
        blocks = [nn.Sequential(nn.Linear(24, 24), nn.LayerNorm(24), nn.GELU()) for _ in range(6)]
        model = nn.Sequential(*blocks[:layers])
        found = ndl.compile(model).explain(ndl.ones((8, 24)))
        assert len({k.name for k in found.groups}) == len(found.groups)
        functions = {k.function for k in found.groups}
        sizes.append((len(functions), found.llvm.count("\ndefine")))
        for function in functions:
            assert f"@{function}(" in found.llvm
    # The first and the last layer may differ from those between them.
    assert sizes[0] == sizes[1]
