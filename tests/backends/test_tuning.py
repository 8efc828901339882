"""compile(tune=…): what a search decides, what is kept of it, and that no bit depends on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
import needle.nn as nn
from needle import dtypes
from needle.backends.cpu import cache
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.gemm import GemmSpec, Matrix
from needle.backends.cpu.target import host
from needle.backends.cpu.tuning import alone, choices, results, search as searching
from needle.backends.cpu.tuning.alone import Alone
from needle.backends.cpu.tuning.candidates import candidates
from needle.backends.cpu.tuning.results import forget, recall, remember, text_of
from needle.backends.cpu.tuning.search import MARGIN, Found, search
from needle.errors import ArgumentError, ArgumentTypeError

SOURCE = str(Path(ndl.__file__).parents[1])
ROWS = Matrix(dtypes.float32, 64)
PRODUCT = GemmSpec(48, 64, 64, ROWS, ROWS, ROWS)
FOUND = Found(2, 5, 3e-6, 2e-6)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and nothing known."""
    monkeypatch.setenv("NEEDLE_CACHE_DIR", str(tmp_path))
    forget()
    yield tmp_path / "kernels"
    forget()


def text(spec: Any = PRODUCT, **changes: Any) -> str:
    given: dict[str, Any] = {"threads": 2, "is_cold": False, "room": 0} | changes
    return text_of(spec, host(), **given)


# The search


class Scripted:
    """Kernels that take the times of a list, again and again; the last of each for good."""

    def __init__(self, *times: list[float]) -> None:
        self.times = [list(t) for t in times]
        self.swept = self.handed = 0

    def run(self, number: int) -> float:
        mine = self.times[number]
        return mine.pop(0) if len(mine) > 1 else mine[0]

    def sweep(self) -> None:
        self.swept += 1

    def hand_over(self) -> None:
        self.handed += 1


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(searching, "SECONDS", 0.0)

    def run(kernels: Scripted, is_cold: bool = False, deadline: float = float("inf")) -> Any:
        monkeypatch.setattr(searching, "Alone", lambda *_: kernels)
        plans: Any = kernels.times
        return search(PRODUCT, plans, host(), 1, is_cold=is_cold, deadline=deadline)

    return run


def test_the_fastest_is_taken(decide: Callable[..., Any]) -> None:
    found = decide(Scripted([1.0], [0.9], [0.7], [2.0]))
    assert found == Found(2, 4, 1.0, 0.7)
    assert found.gain == 1 / 0.7


def test_noise_does_not_beat_the_model(decide: Callable[..., Any]) -> None:
    assert decide(Scripted([1.0], [1 - 0.9 * MARGIN])).choice == 0
    assert decide(Scripted([1.0], [1 - 1.1 * MARGIN])).choice == 1


def test_luck_does_not_beat_the_model(decide: Callable[..., Any]) -> None:
    """What was fast once, or in one of two measurements alone, is not taken."""
    turns = searching.LEAST_TURNS
    assert decide(Scripted([1.0], [0.5] * (turns + 1) + [0.99])).choice == 0
    assert decide(Scripted([1.0], [0.5] * (2 * turns + 1) + [0.99])).choice == 0
    assert decide(Scripted([1.0], [0.5] * (2 * turns + 2) + [0.99])).choice == 1


def test_caches_are_as_in_the_program(decide: Callable[..., Any]) -> None:
    for is_cold in (False, True):
        kernels = Scripted([1.0], [0.5])
        decide(kernels, is_cold=is_cold)
        assert bool(kernels.swept) is is_cold
        assert bool(kernels.handed) is not is_cold


def test_a_search_that_is_late_finds_nothing(decide: Callable[..., Any]) -> None:
    assert decide(Scripted([1.0], [0.5]), deadline=0.0) is None
    assert decide(Scripted([1.0]), deadline=0.0) == Found(0, 1, 0.0, 0.0)  # nothing to search


def test_a_search_in_earnest() -> None:
    plans = candidates(PRODUCT, host(), 1)
    for is_cold in (False, True):
        found = search(PRODUCT, plans, host(), 1, is_cold=is_cold, deadline=float("inf"))
        assert found is not None
        assert found.tried == len(plans) > 1
        assert 0 < found.best <= found.model < 1
        assert found.choice == 0 or found.best < (1 - MARGIN) * found.model


SPECS = [
    PRODUCT,
    GemmSpec(9, 64, 5, Matrix(dtypes.float64, -5, 1, (45,)), Matrix(dtypes.float64, 1, 5, (0,)),
             Matrix(dtypes.float64, 64, 1, (9 * 64,)), (3,), dtypes.float64),
    ConvSpec("forward", 2, 9, 9, 16, 32, (3, 3), pads=((1, 1), (1, 1))),
    ConvSpec("weight_grad", 2, 9, 9, 16, 32, (3, 3), dtype=dtypes.bfloat16),
    # Channels in whole tiles: those that stand for no weight would have to be 0.
    ConvSpec("forward", 2, 9, 9, 32, 32, (3, 3), dtype=dtypes.bfloat16),
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=["product", "batch", "forward", "sums", "pairs"])
def test_kernels_alone_compute(spec: Any) -> None:
    """All give the same numbers, none of which is left out, is 0 throughout, or is no number."""
    plans = candidates(spec, host(), 2)
    kernels = Alone(spec, plans, host(), 2)
    outs = []
    for i in range(len(plans)):
        kernels.out[...] = np.nan
        assert kernels.run(i) > 0
        outs.append(kernels.out.copy())
    kernels.hand_over()
    kernels.sweep()
    assert kernels.out.tobytes() == outs[-1].tobytes()  # they only move between caches
    first = outs[0].astype(np.float64)
    assert np.isfinite(first).all()
    assert first.std() > 0.5
    assert all(out.tobytes() == outs[0].tobytes() for out in outs)


# What is kept


def test_a_result_is_kept_in_the_process_and_on_disk(own_folder: Path) -> None:
    assert recall(text(), 5) is None
    remember(text(), FOUND)
    assert recall(text(), 5) == FOUND
    forget()
    assert recall(text(), 5) == FOUND
    assert len(list(own_folder.iterdir())) == 1
    assert recall(text(), 6) is None  # another number of candidates: numbers mean others


def test_a_result_is_for_one_kernel_on_one_machine() -> None:
    remember(text(), FOUND)
    for other in (
        text(replace(PRODUCT, m=49)),
        text(threads=3),
        text(is_cold=True),
        text(room=1),
        text_of(PRODUCT, replace(host(), name="x"), 2, is_cold=False, room=0),
    ):
        assert recall(other, 5) is None


def test_epilogues_share_a_result() -> None:
    def never(*_: Any) -> None:
        raise AssertionError

    from needle.backends.cpu.gemm import Epilogue

    assert text(replace(PRODUCT, epilogue=Epilogue(never, "key"))) == text()


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        {"tiles": None},
        {"tiles": {"choice": 1}},
        {"tiles": {**FOUND._asdict(), "choice": 5}},
        {"tiles": {**FOUND._asdict(), "choice": -1}},
        {"tiles": {**FOUND._asdict(), "choice": True}},
        {"tiles": {**FOUND._asdict(), "choice": "1"}},
        {"tiles": {**FOUND._asdict(), "model": -1.0}},
        {"tiles": {**FOUND._asdict(), "best": float("nan")}},
        {"tiles": {**FOUND._asdict(), "more": 1}},
    ],
)
def test_files_of_other_content_are_ignored(content: Any) -> None:
    cache.put(results._key(text()), [], content)
    assert recall(text(), 5) is None
    remember(text(), FOUND)
    forget()
    assert recall(text(), 5) == FOUND


def test_damaged_files_are_dropped(own_folder: Path) -> None:
    remember(text(), FOUND)
    (path,) = own_folder.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    forget()
    with pytest.warns(RuntimeWarning, match="dropped"):
        assert recall(text(), 5) is None
    assert not path.exists()


# compile


def network() -> Callable[..., Any]:
    ndl.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 10)
    )
    optimizer = ndl.optim.SGD(model.parameters(), lr=0.1)

    def step(x: Any, y: Any) -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step


def arguments() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    images = rng.standard_normal((5, 3, 8, 8)).astype(np.float32)
    return ndl.asarray(images), ndl.asarray(np.arange(5))


def losses(**options: Any) -> list[float]:
    step = ndl.compile(network(), **options)
    return [float(step(*arguments()).item()) for _ in range(3)]


def forced(number: int) -> Callable[..., Found]:
    def found(spec: Any, plans: Any, *_: Any, **__: Any) -> Found:
        return Found(number % len(plans), len(plans), 2.0, 1.0)

    return found


def test_tuned_steps_have_the_same_bits() -> None:
    assert losses(tune=True) == losses()


@pytest.mark.parametrize("number", [1, 2, 3, 5, 7])
def test_whichever_is_chosen_bits_are_the_same(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choices, "search", forced(number))
    assert losses(tune=True) == losses()


def test_what_was_chosen_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another choice is other code, and without ``tune`` it is the model's."""
    monkeypatch.setattr(choices, "search", forced(1))
    x, w = ndl.ones((48, 64)), ndl.ones((64, 64))

    def multiply(x: Any, w: Any) -> Any:
        return x @ w

    tuned, plain = ndl.compile(multiply, tune=True), ndl.compile(multiply)
    tuned(x, w)
    assert tuned.explain(x, w).llvm != plain.explain(x, w).llvm


def test_nothing_is_searched_or_read_without_tune(monkeypatch: pytest.MonkeyPatch) -> None:
    losses(tune=True)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(choices, "Choices", never)
    monkeypatch.setattr(choices, "recall", never)
    losses()


def test_what_is_known_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    losses(tune=True)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(choices, "search", never)
    losses(tune=True)
    forget()
    losses(tune=True)
    # Another function with an equal kernel: another program, the same result.
    step = ndl.compile(lambda x, y: network()(x, y) * 2, tune=True)
    report = step.explain(*arguments())
    assert "searched" in report.tuning


def test_time_that_is_up_leaves_the_rest_to_the_model() -> None:
    step = ndl.compile(network(), tune=1e-9)
    assert float(step(*arguments()).item()) == losses()[0]
    report = step.explain(*arguments())
    assert "0 of" in report.tuning
    assert "left to the model" in str(report)
    assert not report.is_cached  # a later process has time for the rest
    assert losses(tune=True)[0] == losses()[0]


def test_one_program_for_any_extent_keeps_the_models_plans() -> None:
    @ndl.compile(tune=True, dims={"x": ndl.Dim("batch")})
    def layer(x: Any, w: Any) -> Any:
        return ndl.relu(x @ w)

    w = ndl.ones((32, 16))
    assert layer(ndl.ones((4, 32)), w).shape == (4, 16)
    report = layer.explain(ndl.ones((4, 32)), w)
    assert "its tiles are the model's" in report.extents
    assert report.tuning == ""
    assert layer.max_batch(1 << 20, ndl.ones((4, 32)), w) > 4


def test_loops_and_branches() -> None:
    w = ndl.asarray(np.random.default_rng(0).standard_normal((24, 24)).astype(np.float32))

    def run(x: Any) -> Any:
        return ndl.scan(lambda h, t: (ndl.tanh(h @ w + t), h), x[0], x)[0]

    def ask(x: Any) -> Any:
        return x @ w if (x * x).sum() > 1 else w @ x

    x = ndl.asarray(np.random.default_rng(1).standard_normal((9, 24, 24)).astype(np.float32))
    got, want = (ndl.compile(run, tune=t)(x).numpy() for t in (True, False))
    assert got.tobytes() == want.tobytes()
    paths = ndl.compile(ask, tune=True, branches="specialise")
    assert paths(x[0]).numpy().tobytes() == ask(x[0]).numpy().tobytes()
    assert "searched" in paths.explain(x[0]).tuning


def test_checked_and_with_a_memory_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    assert losses(tune=True, check=True) == losses(check=True)
    forget()
    monkeypatch.setattr(choices, "search", forced(1))
    plain = ndl.compile(network()).memory_plan(*arguments()).peak_bytes
    step = ndl.compile(network(), tune=True, memory_budget=plain)
    step(*arguments())
    assert step.memory_plan(*arguments()).peak_bytes <= plain


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"tune": "yes"}, ArgumentTypeError, "a number of seconds, got str"),
        ({"tune": None}, ArgumentTypeError, "got NoneType"),
        ({"tune": 0}, ArgumentError, "a number above 0"),
        ({"tune": -1.0}, ArgumentError, "a number above 0"),
        ({"tune": float("nan")}, ArgumentError, "a number above 0"),
        ({"tune": float("inf")}, ArgumentError, "a number above 0"),
        ({"tune": True, "backend": "interpret"}, ArgumentError, "'interpret' generates none"),
    ],
)
def test_errors_say_what_to_do(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        ndl.compile(lambda x: x, **options)


PROGRAM = """
import sys, numpy as np, needle as ndl
x = ndl.asarray(np.random.default_rng(0).standard_normal((40, 48)).astype(np.float32))
f = ndl.compile(lambda x: x @ x.T, tune=20.0)
print(f(x).numpy().tobytes().hex()[:64], f.explain(x).tuning.split(";")[0])
"""


def test_processes_search_at_the_same_time(own_folder: Path) -> None:
    """Into one folder, and a later one finds what they have left."""
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    command = [sys.executable, "-c", PROGRAM]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    lines = {process.communicate()[0] for process in running}
    lines.add(subprocess.run(command, env=environment, capture_output=True, text=True).stdout)
    assert len(lines) == 1
    assert "1 of 1 kinds of products and convolutions searched" in lines.pop()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(cache.get(path.stem) is not None for path in own_folder.iterdir())
    kept = [cache.get(path.stem) for path in own_folder.iterdir()]
    assert sum("tiles" in entry.metadata for entry in kept if entry) == 1
    json.dumps([entry.metadata for entry in kept if entry])


def test_progress_appears_when_a_search_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choices, "search", forced(0))
    losses(tune=True)
    assert capsys.readouterr().err == ""
    forget()
    monkeypatch.setenv("NEEDLE_CACHE_SIZE", "0")
    monkeypatch.setattr(choices, "PATIENCE", 1e-9)
    losses(tune=True)
    assert "searching tiles" in capsys.readouterr().err


def test_a_sweep_is_larger_than_caches_near_the_cores() -> None:
    sizes = [p.read_text() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index2/size")]
    if not sizes:
        pytest.skip("the system does not say how large the L2 cache is")
    assert int(sizes[0].strip().rstrip("K")) * 1024 <= alone.SWEPT_BYTES
