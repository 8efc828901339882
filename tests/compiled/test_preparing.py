"""What is computed of weights alone is kept between calls, and computed anew when they change."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn, optim
from needle.backends.cpu.executable import Executable
from needle.compiled import executable
from needle.nn import functional as F
from needle.ops.samples import Array

X = np.linspace(-1, 1, 4 * 16, dtype=np.float32).reshape(4, 16)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executable, "BACKENDS", ("cpu", "interpret"))


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[Executable]:
    """Return a list that grows whenever a program prepares."""
    found: list[Executable] = []
    original = Executable.prepare

    def prepare(self: Executable, *args: Any) -> None:
        found.append(self)
        original(self, *args)

    monkeypatch.setattr(Executable, "prepare", prepare)
    return found


def weight(seed: int = 0, *shape: int) -> nn.Parameter:
    generator = ndl.random.Generator(seed)
    return nn.Parameter(ndl.randn(shape or (16, 64), generator=generator))


def layer(w: ndl.Tensor) -> Callable[[ndl.Tensor], ndl.Tensor]:
    """Return a function that needs an exponential of each weight, which is stored."""
    return lambda x: x @ ndl.exp(w)


class Layer(nn.Module):
    def __init__(self) -> None:
        self.w = weight()
        self.scale = nn.Buffer(ndl.full(64, 0.5))

    def forward(self, x: ndl.Tensor) -> ndl.Tensor:
        return x.astype(self.w.dtype) @ (ndl.exp(self.w) * self.scale)


def bits(result: ndl.Tensor) -> Array:
    return np.asarray(result.astype("float32").numpy()).view(np.uint32).copy()


def check(function: Any, compiled: Any, *args: Any) -> None:
    """Compare a call with one of a program that has prepared nothing yet."""
    with ndl.no_grad():
        fresh = ndl.compile(function)(*args)
        np.testing.assert_array_equal(bits(compiled(*args)), bits(fresh))
        close = ndl.compile(function, backend="interpret")(*args)
        wide = [t.astype("float32").numpy() for t in (fresh, close)]
        np.testing.assert_allclose(*wide, rtol=1e-2 if fresh.dtype == ndl.bfloat16 else 1e-5)


def test_it_happens_once(prepared: list[Executable]) -> None:
    f = ndl.compile(layer(weight()))
    with ndl.no_grad():
        results = [bits(f(ndl.asarray(X))) for _ in range(3)]
    assert len(prepared) == 1
    assert all((r == results[0]).all() for r in results)
    check(f.function, f, ndl.asarray(X))


def test_what_the_arguments_reach_is_not_kept(prepared: list[Executable]) -> None:
    w = weight()
    for function in (
        lambda x: x @ ndl.exp(w * x.sum()),
        lambda x: x @ w,  # reads the weight as it is
        lambda x: x * 2,
        lambda x: (ndl.exp(w), x @ ndl.exp(w)),  # a result is a new array at each call
    ):
        with ndl.no_grad():
            ndl.compile(function)(ndl.asarray(X))
    assert not prepared


def changes() -> dict[str, Callable[[Layer], object]]:
    def on_copy(model: Layer) -> None:
        model.w.copy_(weight(1))

    def with_operator(model: Layer) -> None:
        model.w *= 2

    def item(model: Layer) -> None:
        model.w[3, 2] = 7.0

    def through_a_view(model: Layer) -> None:
        model.w[2:4].copy_(ndl.ones((2, 64)))

    def through_detach(model: Layer) -> None:
        model.w.detach().copy_(weight(2))

    def through_data(model: Layer) -> None:
        model.w.data[0] = 3.0

    def through_a_tensor_of_it(model: Layer) -> None:
        ndl.Tensor(model.w)[0] = 3.0

    def through_asarray(model: Layer) -> None:
        ndl.asarray(model.w)[0] = 4.0

    def through_a_parameter_of_it(model: Layer) -> None:
        nn.Parameter(model.w).copy_(weight(4))

    def in_inference_mode(model: Layer) -> None:
        with ndl.inference_mode():
            model.w[1:].copy_(weight(3)[1:])

    def eager_step(model: Layer) -> None:
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        model.w.grad = ndl.ones((16, 64))
        optimizer.step()

    def adam_step(model: Layer) -> None:
        optimizer = optim.AdamW(model.parameters(), lr=0.1)
        model.w.grad = ndl.ones((16, 64))
        optimizer.step()

    def compiled_step(model: Layer) -> None:
        optimizer = optim.SGD(model.parameters(), lr=0.1)

        @ndl.compile
        def step(x: ndl.Tensor) -> ndl.Tensor:
            optimizer.zero_grad()
            loss = model(x).sum()
            loss.backward()
            optimizer.step()
            return loss

        with ndl.enable_grad():
            step(ndl.asarray(X))

    def compiled_write(model: Layer) -> None:
        @ndl.compile
        def write() -> None:
            model.w.copy_(model.w * 3)

        write()

    def load_state_dict(model: Layer) -> None:
        model.load_state_dict({"w": weight(5), "scale": np.full(64, 2.0, np.float32)})

    def assign_parameter(model: Layer) -> None:
        model.w = weight(6)

    def assign_buffer(model: Layer) -> None:
        model.scale = nn.Buffer(ndl.full(64, 3.0))

    def write_buffer(model: Layer) -> None:
        model.scale += 1

    def to_another_dtype(model: Layer) -> None:
        model.to("bfloat16")

    def numpy_view(model: Layer) -> None:
        model.w.detach().numpy()[...] = 0.25

    def numpy_of_a_buffer(model: Layer) -> None:
        model.scale.numpy()[2] = 9.0

    def asarray_of_a_buffer(model: Layer) -> None:
        np.asarray(model.scale)[2] = 9.0

    def dlpack(model: Layer) -> None:
        np.from_dlpack(model.w.detach())[...] = 0.75

    return {name: change for name, change in locals().items() if callable(change)}


@pytest.mark.parametrize("name", changes())
def test_a_change_is_seen_at_the_next_call(name: str) -> None:
    model = Layer()
    f = ndl.compile(lambda x: model(x))
    x = ndl.asarray(X)
    with ndl.no_grad():
        before = bits(f(x))
        assert f.specializations[0].executable.recipe.prepared_bytes > 0
        changes()[name](model)
        assert (bits(f(x)) != before).any()
    check(f.function, f, x)


@pytest.mark.parametrize("name", ["numpy_view", "numpy_of_a_buffer", "dlpack"])
def test_writes_that_nobody_counts_are_seen_at_each_call(
    name: str, prepared: list[Executable]
) -> None:
    model = Layer()
    held = {
        "numpy_view": lambda: model.w.detach().numpy(),
        "numpy_of_a_buffer": lambda: model.scale.numpy(),
        "dlpack": lambda: np.from_dlpack(model.w.detach()),
    }[name]
    f = ndl.compile(lambda x: model(x))
    x = ndl.asarray(X)
    with ndl.no_grad():
        f(x)
        array = held()
        seen = set()
        for value in (1.0, 2.0, 3.0):
            array[...] = value
            seen.add(bits(f(x)).tobytes())
        assert len(seen) == 3
        assert len(prepared) == 4
    check(f.function, f, x)


def test_an_array_of_the_users_is_never_kept(prepared: list[Executable]) -> None:
    array = np.ones((16, 64), np.float32)
    x = ndl.asarray(X)
    makers: list[Callable[[Any], ndl.Tensor]] = [
        ndl.asarray, ndl.Tensor, nn.Parameter, ndl.from_dlpack,
        lambda a: ndl.asarray(a.view(np.matrix)), lambda a: nn.Parameter(ndl.asarray(a)),
    ]  # fmt: skip
    for make in makers:
        w = make(array)
        f = ndl.compile(layer(w))
        with ndl.no_grad():
            array[...] = 1
            first = bits(f(x))
            array[...] = 2
            assert (bits(f(x)) != first).any()
    assert not prepared  # it is no part of the program that could be


def test_copies_and_numbers_are_needles_own(prepared: list[Executable]) -> None:
    array = np.ones((16, 64))
    for w in (ndl.asarray(array, dtype="float32"), ndl.Tensor(array.tolist()), ndl.ones((16, 64))):
        with ndl.no_grad():
            ndl.compile(layer(w))(ndl.asarray(X))
    assert len(prepared) == 3


def test_a_tensor_without_count_is_not_kept(prepared: list[Executable]) -> None:
    with ndl.inference_mode():
        w = ndl.ones((16, 64))
        f = ndl.compile(layer(w))
        first = bits(f(ndl.asarray(X)))
        w *= 2
        assert (bits(f(ndl.asarray(X))) != first).any()
    assert not prepared


def test_a_read_only_array_does_not_expose(prepared: list[Executable]) -> None:
    model = Layer()
    f = ndl.compile(lambda x: model(x))
    with ndl.no_grad():
        for _ in range(3):
            f(ndl.asarray(X))
            assert not model.w.numpy().flags.writeable
            np.array(model.scale), np.asarray(model.scale, np.float64), repr(model.scale)
            model.scale.is_contiguous(), model.w.tolist(), model.state_dict()
    assert len(prepared) == 1


def test_a_traces_writes_are_no_writes(prepared: list[Executable]) -> None:
    """Its counts go back; the same numbers come again with the next write."""
    w = weight()
    f = ndl.compile(layer(w))

    def write(x: ndl.Tensor) -> None:
        w.copy_(ndl.full((16, 64), 2.0))
        note(list(w._version or ()))

    seen: list[list[int]] = []
    note = seen.append
    with ndl.no_grad():
        first = bits(f(ndl.asarray(X)))
        ndl.compile(write).graph(ndl.asarray(X))
        assert (bits(f(ndl.asarray(X))) == first).all()
        w += 1
        assert list(w._version or ())[:1] == seen[0][:1]
        assert list(w._version or ()) != seen[0]
        assert (bits(f(ndl.asarray(X))) != first).any()
    assert len(prepared) == 3


def test_exposure_survives_a_trace() -> None:
    w = weight()
    array = w.detach().numpy()
    f = ndl.compile(layer(w))

    with ndl.no_grad():

        def write() -> None:
            w.copy_(w * 2)

        ndl.compile(write).graph()
        f(ndl.asarray(X))
        array[...] = 0
        assert (f(ndl.asarray(X)).numpy() == X @ np.ones((16, 64), np.float32)).all()


def test_recorded_writes_keep_the_exposure() -> None:
    base = ndl.zeros((16, 64))
    array = base.numpy()
    base[0] = weight()[0]
    with ndl.no_grad():
        f = ndl.compile(layer(base.detach()))
        f(ndl.asarray(X))
        array[...] = 0
        np.testing.assert_allclose(
            f(ndl.asarray(X)).numpy(), X @ np.ones((16, 64), np.float32), rtol=1e-5
        )


def test_two_functions_share_a_weight(prepared: list[Executable]) -> None:
    w = weight()
    f, g = ndl.compile(layer(w)), ndl.compile(lambda x: x @ ndl.exp(w) * 2)
    x = ndl.asarray(X)
    with ndl.no_grad():
        for _ in range(2):
            f(x), g(x)
        w += 1
        for _ in range(2):
            f(x), g(x)
    assert len(prepared) == 4
    check(f.function, f, x)
    check(g.function, g, x)


def test_tied_weights(prepared: list[Executable]) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).to("bfloat16").eval()
    model[1].weight = model[0].weight

    def function(x: ndl.Tensor) -> ndl.Tensor:
        return x.astype("bfloat16") @ ndl.exp(model[0].weight) @ ndl.tanh(model[1].weight)

    f = ndl.compile(function)
    x = ndl.asarray(X.reshape(1, 64))
    with ndl.no_grad():
        f(x), f(x)
        assert len(prepared) == 1
        model[1].weight.copy_(model[1].weight * 2)
    check(function, f, x)


def test_a_training_step_keeps_what_is_frozen(prepared: list[Executable]) -> None:
    frozen, w = weight(), weight(1, 64, 3)
    frozen.requires_grad = False
    optimizer = optim.SGD([w], lr=0.1)

    @ndl.compile
    def step(x: ndl.Tensor) -> ndl.Tensor:
        optimizer.zero_grad()
        loss = (x @ ndl.exp(frozen) @ ndl.exp(w)).sum()
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(ndl.asarray(X)).item() for _ in range(3)]
    assert len(prepared) == 1
    assert len(set(losses)) == 3
    with ndl.no_grad():
        frozen *= 0
    assert step(ndl.asarray(X)).item() != losses[-1]
    assert len(prepared) == 2


def test_a_function_that_is_differentiated_prepares_nothing(prepared: list[Executable]) -> None:
    """Its weights change from call to call."""
    w = weight()
    optimizer = optim.SGD([w], lr=0.1)
    f = ndl.compile(layer(w))
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = f(ndl.asarray(X)).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert not prepared
    assert len(set(losses)) == 3


def test_memory_is_used_again_unless_a_call_may_read_it(prepared: list[Executable]) -> None:
    w = weight()
    f = ndl.compile(layer(w))
    with ndl.no_grad():
        f(ndl.asarray(X))
        preparation: Any = f.specializations[0]._preparation
        memory = weakref.ref(preparation._prepared.memory)
        w += 1
        f(ndl.asarray(X))
        assert preparation._prepared.memory is memory()
        held = preparation._prepared  # as a call that runs does
        w += 1
        f(ndl.asarray(X))
        assert preparation._prepared.memory is not held.memory


def test_memory_goes_with_the_function() -> None:
    w = weight()
    f = ndl.compile(layer(w))
    with ndl.no_grad():
        f(ndl.asarray(X))
    preparation: Any = f.specializations[0]._preparation
    memory = weakref.ref(preparation._prepared.memory)
    assert sys.getrefcount(preparation._prepared.memory) < 4
    del f, preparation
    gc.collect()
    assert memory() is None


def test_threads_see_changes_and_one_of_them_prepares(prepared: list[Executable]) -> None:
    w = weight(0, 64, 64)
    x = ndl.asarray(np.ones((4, 64), np.float32))
    f = ndl.compile(layer(w))
    threads, rounds = 4, 20
    barrier = threading.Barrier(threads + 1)
    wrong: list[object] = []
    expected: list[Array] = []

    def serve() -> None:
        for _ in range(rounds):
            barrier.wait()
            with ndl.no_grad():
                wrong.extend((bits(f(x)) != expected[-1]).any() for _ in range(5))
            barrier.wait()

    workers = [threading.Thread(target=serve) for _ in range(threads)]
    for t in workers:
        t.start()
    with ndl.no_grad():
        for i in range(rounds):
            w.copy_(ndl.full((64, 64), i * 0.1))
            expected.append(bits(ndl.compile(layer(w))(x)))
            count = len(prepared)
            barrier.wait()
            barrier.wait()
            assert len(prepared) - count == 1
    for t in workers:
        t.join()
    assert wrong
    assert not any(wrong)


def test_threads_with_an_exposed_weight_prepare_for_themselves() -> None:
    w = weight(0, 64, 64)
    w.detach().numpy()
    x = [ndl.asarray(np.full((4, 64), i, np.float32)) for i in range(4)]
    f = ndl.compile(layer(w))
    with ndl.no_grad():
        expected = [bits(f(a)) for a in x]
    wrong: list[object] = []

    def serve(i: int) -> None:
        with ndl.no_grad():
            wrong.extend((bits(f(x[i])) != expected[i]).any() for _ in range(50))

    workers = [threading.Thread(target=serve, args=(i,)) for i in range(4)]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert wrong
    assert not any(wrong)


def test_extents_share_what_is_prepared(prepared: list[Executable]) -> None:
    w = weight()
    f = ndl.compile(layer(w), dims={"x": ndl.Dim("batch")})
    with ndl.no_grad():
        results = {n: f(ndl.asarray(np.resize(X, (n, 16)))) for n in (1, 3, 7, 3)}
        assert len(prepared) == 1
        w += 1
        for n in (3, 7):
            assert (bits(f(ndl.asarray(np.resize(X, (n, 16))))) != bits(results[n])).any()
    assert len(prepared) == 2
    check(f.function, f, ndl.asarray(X))


def test_with_branches() -> None:
    w = weight()

    def function(x: ndl.Tensor) -> ndl.Tensor:
        return x @ ndl.exp(w) if x.sum() > 0 else x @ ndl.tanh(w)

    f = ndl.compile(function, branches="specialise")
    with ndl.no_grad():
        for _ in range(3):
            for x in (X + 1, X - 2):
                np.testing.assert_allclose(
                    f(ndl.asarray(x)).numpy(), function(ndl.asarray(x)).numpy(), 1e-5, 1e-5
                )
            w += 0.5


def test_a_bad_index_is_an_error_at_each_call(prepared: list[Executable]) -> None:
    table, index = weight(0, 8, 64), ndl.zeros(16, dtype="int64")
    f = ndl.compile(lambda x: x @ ndl.exp(ndl.take(table, index, axis=0)))
    with ndl.no_grad():
        first = bits(f(ndl.asarray(X)))
        index[3] = 40
        for _ in range(2):
            with pytest.raises(ndl.errors.OutOfRangeError, match="40"):
                f(ndl.asarray(X))
        index[3] = 0
        assert (bits(f(ndl.asarray(X))) == first).all()
    assert len(prepared) == 4


def test_numbers_and_little_are_not_kept(prepared: list[Executable]) -> None:
    rate, row = ndl.Tensor(0.5), ndl.ones(64)
    f = ndl.compile(lambda x: x * ndl.broadcast_to(ndl.exp(rate * 2), (4, 4096)).clone())
    g = ndl.compile(lambda x: x @ ndl.exp(row).reshape(64, 1))
    with ndl.no_grad():
        f(ndl.ones((4, 4096))), g(ndl.ones((4, 64)))
    assert not prepared


def test_what_grows_is_not_kept(prepared: list[Executable]) -> None:
    small = ndl.ones((1, 64))
    f = ndl.compile(lambda x: x @ ndl.exp(ndl.broadcast_to(small * 2, (4096, 64))).clone())
    with ndl.no_grad():
        f(ndl.ones((2, 4096)))
        memory = f.memory_plan(ndl.ones((2, 4096)))
    assert memory.prepared <= 4 * small.nbytes + (1 << 16)


def test_reports_tell_of_it(prepared: list[Executable]) -> None:
    f = ndl.compile(layer(weight()))
    x = ndl.asarray(X)
    with ndl.no_grad():
        plan, report = f.memory_plan(x), f.explain(x)
        f(x)
        with ndl.profile() as p:
            f(x)
    assert plan.prepared == report.memory.prepared == 16 * 64 * 4
    assert plan.peak_bytes >= plan.arguments + plan.state + plan.outputs + plan.prepared
    assert "prepared" in str(plan)
    assert [k.ops for k in report.preparing] == [("exp",)]
    assert [k.ops for k in report.groups] == [("matmul",)]
    assert "when the state has changed: 4,096 bytes" in str(report)
    assert [row.ops for row in p.kernels] == [("matmul",)]
    assert len(prepared) == 1


def test_a_process_that_finds_the_code_on_disk_prepares_too(
    prepared: list[Executable], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEEDLE_CACHE_DIR", str(tmp_path))
    w = weight()
    results = []
    for _ in range(2):
        with ndl.no_grad():
            results.append(bits(ndl.compile(layer(w))(ndl.asarray(X))))
    assert (results[0] == results[1]).all()
    assert len(prepared) == 2


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_network(precision: str, prepared: list[Executable]) -> None:
    ndl.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 1), nn.Flatten(), nn.Linear(48 * 9, 10),
    ).eval()  # fmt: skip

    def function(x: ndl.Tensor) -> ndl.Tensor:
        with ndl.autocast(enabled=precision == "bfloat16"):
            return F.softmax(model(x), -1)

    x = ndl.asarray(np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32))
    f = ndl.compile(function)
    with ndl.inference_mode():
        first = bits(f(x))
        assert (bits(f(x)) == first).all()
        assert len(prepared) == 1 or (precision == "float32" and not prepared)
        with ndl.no_grad():
            model[3].weight.copy_(model[3].weight * 2)
        assert (bits(f(x)) != first).any()
        assert (bits(f(x)) == bits(ndl.compile(function)(x))).all()
