"""profile: times of kernels, layers and eager ops, and the file that viewers read."""

import json
import threading

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.backends.cpu import executable as cpu
from needle.compiled import executable
from needle.errors import ProfileError
from needle.nn import functional as F
from needle.ops.engine import engine


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    monkeypatch.setattr(executable, "BACKENDS", ("cpu", "interpret"))


def make_step(seed=0):
    ndl.manual_seed(seed)
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))
    optimizer = ndl.optim.SGD(model.parameters(), lr=0.1)

    @ndl.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return model, step


X = ndl.Tensor(np.random.default_rng(0).standard_normal((64, 20)).astype(np.float32))
Y = ndl.Tensor(np.arange(64) % 4)


def test_each_kernel_of_each_call_is_timed():
    _, step = make_step()
    names = [k.name for k in step.explain(X, Y).groups]
    step(X, Y)
    with ndl.profile() as p:
        for _ in range(3):
            step(X, Y)
    assert {row.name for row in p.kernels} == set(names)
    assert {row.calls for row in p.kernels} == {3}
    assert all(row.seconds > 0 for row in p.kernels)
    total = sum(row.seconds for row in p.kernels)
    (call,) = p.calls
    assert call.calls == 3
    assert total <= call.seconds <= p.nanoseconds * 1e-9


def test_results_are_those_without_a_profile():
    plain, step = make_step()
    for _ in range(4):
        loss = step(X, Y)
    recorded, step = make_step()
    step(X, Y)
    with ndl.profile():
        step(X, Y)
        step(X, Y)
    assert step(X, Y).numpy() == loss.numpy()
    for a, b in zip(plain.parameters(), recorded.parameters(), strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_module_paths_share_the_time_of_the_kernels():
    _, step = make_step()
    with ndl.profile() as p:
        step(X, Y)
    paths = {row.name for row in p.modules}
    assert {"0", "2", "0 (backward)"} <= paths
    assert sum(r.seconds for r in p.modules) == pytest.approx(sum(r.seconds for r in p.kernels))


def test_eager_ops_are_counted_and_traced_ones_are_not():
    x = ndl.ones((5, 5))
    f = ndl.compile(lambda x: ndl.sin(x) * 3)
    with ndl.profile() as p:
        f(x)
        for _ in range(4):
            x = ndl.exp(x * 0.1)
    assert {row.name: row.calls for row in p.ops} == {"exp": 4, "multiply": 4}
    assert [row.ops for row in p.kernels] == [("sin", "multiply")]


def test_work_and_rates():
    f = ndl.compile(lambda a, b: a @ b)
    a, b = ndl.ones((40, 50)), ndl.ones((50, 60))
    with ndl.profile() as p:
        f(a, b)
        f(a, b)
    (row,) = p.kernels
    assert row.flops == 2 * (2 * 40 * 50 * 60)
    assert row.bytes_moved == 2 * 4 * (40 * 50 + 50 * 60 + 40 * 60)
    assert row.flop_rate * row.median == pytest.approx(2 * 40 * 50 * 60)
    assert row.byte_rate * row.median == pytest.approx(row.bytes_moved / 2)


def test_a_call_that_was_disturbed_changes_no_rate():
    from needle.compiled.profile import Event, Profile

    work = ndl.compile(lambda a: a + 1).explain(ndl.ones(1000)).groups[0]
    times = [100, 90, 5_000_000, 110, 95]
    events = [Event("k", "kernel", 0, t, 1, "f", work) for t in times]
    (row,) = Profile(events).kernels
    assert row.calls == 5
    assert row.seconds == pytest.approx(sum(times) * 1e-9)
    assert row.median == pytest.approx(100e-9)
    assert row.flop_rate == pytest.approx(1000 / 100e-9)
    assert row.byte_rate == pytest.approx(8000 / 100e-9)


def test_code_from_the_cache_is_profiled(tmp_path, monkeypatch):
    monkeypatch.setenv("NEEDLE_CACHE_DIR", str(tmp_path / "cache"))
    ndl.compile(lambda x: ndl.sqrt(x) - 0.5)(ndl.ones(9))
    again = ndl.compile(lambda x: ndl.sqrt(x) - 0.5)
    assert again.explain(ndl.ones(9)).is_cached
    again(ndl.ones(9))
    with ndl.profile() as p:
        y = again(ndl.ones(9))
    np.testing.assert_array_equal(y.numpy(), np.full(9, 0.5, np.float32))
    assert [row.ops for row in p.kernels] == [("sqrt", "subtract")]


def test_the_file_is_a_trace_that_viewers_read(tmp_path):
    _, step = make_step()
    with ndl.profile() as p:
        step(X, Y)
        ndl.exp(X)
        step(X, Y)
    p.save(tmp_path / "trace.json")
    data = json.loads((tmp_path / "trace.json").read_text())
    events = [e for e in data["traceEvents"] if e["ph"] == "X"]
    assert {"kernel", "call", "op", "preparation"} == {e["cat"] for e in events}
    for e in events:
        e["start"], e["end"] = round(e["ts"] * 1000), round((e["ts"] + e["dur"]) * 1000)
        assert e.keys() >= {"name", "ph", "ts", "dur", "pid", "tid", "args"}
        assert e["ts"] >= 0
        assert e["dur"] >= 0
    assert [e["start"] for e in events] == sorted(e["start"] for e in events)
    # Events of a thread lie inside of each other or apart; kernels lie inside of calls.
    open_ = []
    for e in events:
        while open_ and open_[-1]["end"] <= e["start"]:
            open_.pop()
        if open_:
            outer = open_[-1]
            assert e["end"] <= outer["end"]
            assert outer["cat"] == "call"
            assert e["cat"] == "kernel"
            assert outer["name"] == e["args"]["function"]
        else:
            assert e["cat"] != "kernel"
        open_.append(e)
    kernels = [e for e in events if e["cat"] == "kernel"]
    assert any("0" in e["args"]["modules"].split(", ") for e in kernels)
    assert all(e["args"]["flops"] >= 0 for e in kernels)


def test_threads_are_told_apart():
    f = ndl.compile(lambda x: ndl.exp(x) + 1)
    x = ndl.ones(1000)
    f(x)
    with ndl.profile() as p:
        threads = [threading.Thread(target=lambda: [f(x) for _ in range(20)]) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    calls = [e for e in p.events if e.kind == "call"]
    assert len(calls) == 60
    assert len({e.thread for e in calls}) == 3
    assert len([e for e in p.events if e.kind == "preparation"]) == 1


def test_a_fault_in_a_profile_is_the_fault_and_the_next_call_runs():
    f = ndl.compile(lambda x, i: ndl.take(x, i, axis=0))
    x = ndl.arange(5.0)
    with ndl.profile() as p:
        with pytest.raises(IndexError):
            f(x, ndl.Tensor(np.array([7])))
        assert f(x, ndl.Tensor(np.array([2]))).numpy()[0] == 2
    assert [row.calls for row in p.kernels] == [1]


def test_nothing_is_left_behind():
    eager = engine.apply
    with pytest.raises(ValueError, match="stop"), ndl.profile():
        raise ValueError("stop")
    assert engine.apply is eager
    assert cpu.record_with(None) is None
    with ndl.profile() as p:
        with pytest.raises(ProfileError, match="already"), ndl.profile():
            pass
        ndl.exp(X)
    assert [row.name for row in p.ops] == ["exp"]


def test_the_report(monkeypatch, capsys):
    from needle.backends.cpu import ceilings

    monkeypatch.setattr(
        ceilings, "ceilings", lambda threads: ceilings.Ceilings(1e11, 1e10, 1e12, 2)
    )
    _, step = make_step()
    with ndl.profile() as p:
        step(X, Y)
        ndl.exp(X)
    report = str(p)
    for part in ("step: k0_matmul", "GFLOP/s", "module path", "0 (backward)", "exp", "100 GFLOP/s"):
        assert part in report
    p.show()
    assert capsys.readouterr().out.strip() == report
    # 1 MiB for each thread is where memory is what a kernel is compared with.
    assert p.ceilings.bytes_for(2 << 20) == 1e12


def test_in_a_terminal_the_report_is_made_of_tables(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with ndl.profile() as p:
        ndl.exp(X)
    p.show()
    out = capsys.readouterr().out
    assert "eager op" in out
    assert any(c in out for c in "┃│")


def test_ceilings_are_measured(monkeypatch):
    from needle.backends.cpu import ceilings
    from needle.backends.cpu.target import host

    monkeypatch.setattr(ceilings, "COPIED", 1 << 22)
    monkeypatch.setattr(ceilings, "TURNS", 2000)
    monkeypatch.setattr(ceilings, "AGAIN", 20)
    one = ceilings.measure(1, host())
    # No machine that this runs on does less in a second, or more.
    assert 1e8 < one.flops < 1e13
    assert 1e8 < one.bytes < 1e13
    assert 1e8 < one.cached_bytes < 1e14
    assert one.bytes_for(1000) == one.cached_bytes
    assert one.bytes_for(1e9) == one.bytes
