"""The benchmarks: every row has a program in needle and PyTorch, the same one; tables say what was
measured."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import models

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks are no part of the package
try:
    report = importlib.import_module("benchmarks.report")
    harness = importlib.import_module("benchmarks.harness")
    rows = importlib.import_module("benchmarks.rows")
    needle_programs = importlib.import_module("benchmarks.needle_programs")
finally:
    sys.path.remove(str(ROOT))

Row = harness.Row
CASES = [case for cases in rows.CHAPTERS.values() for case in cases]
FACTS = {
    "date": "2026-01-02",
    "processor": "Processor",
    "threads": 2,
    "matrix GFLOP/s (float32)": 100,
    "copy GB/s": 10.0,
    "python": "3",
    "numpy": "2",
    "torch": "2",
    "jax": "0",
}


def peer_programs(library: str) -> Any:
    pytest.importorskip(library)
    sys.path.insert(0, str(ROOT))
    try:
        return importlib.import_module(f"benchmarks.{library}_programs")
    finally:
        sys.path.remove(str(ROOT))


def test_names_are_unique() -> None:
    names = [case.row.name for case in CASES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row.name)
def test_a_program_takes_what_the_row_gives(case: Any) -> None:
    inspect.signature(getattr(needle_programs, case.program)).bind(**case.args)


@pytest.mark.peers
@pytest.mark.parametrize("library", ["torch", "jax"])
def test_peers_have_the_same_programs(library: str) -> None:
    programs = peer_programs(library)
    found = 0
    for case in CASES:
        function = getattr(programs, case.program, None)
        if function is not None:
            inspect.signature(function).bind(**case.args)
            found += 1
    assert found == len(CASES) if library == "torch" else found > len(CASES) // 2


SMALL: dict[str, dict[str, Any]] = {
    "add": {"n": 5},
    "exp": {"rows": 3, "columns": 4},
    "tanh": {"rows": 3, "columns": 4},
    "gelu": {"rows": 3, "columns": 4},
    "chain": {"rows": 3, "columns": 4},
    "total": {"rows": 3, "columns": 4, "axis": 0},
    "sum_of_axis": {"shape": [2, 3, 4], "axis": 1},
    "softmax": {"rows": 3, "columns": 4},
    "layer_norm": {"rows": 3, "columns": 4},
    "cross_entropy": {"rows": 3, "columns": 4},
    "matmul": {"m": 2, "k": 3, "n": 4},
    "matmul_transposed": {"m": 2, "k": 3, "n": 4},
    "conv2d": {"batch": 1, "channels": 2, "size": 5, "out": 3},
}


@pytest.mark.peers
@pytest.mark.parametrize("program", SMALL)
def test_programs_compute_the_same(program: str) -> None:
    import numpy as np

    peers = peer_programs("torch")
    ours = getattr(needle_programs, program)(**SMALL[program])()
    theirs = getattr(peers, program)(**SMALL[program])()
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.peers
def test_the_gpts_are_the_same() -> None:
    """A step of each lowers its loss alike; both decode as many tokens as they are asked for."""
    import numpy as np

    peers = peer_programs("torch")
    sizes = {"context": 8, "layers": 2, "heads": 2, "width": 8, "vocabulary": 11}
    models = [needle_programs._gpt(**sizes), peers.GPT(11, 8, 2, 2, 8)]
    counts = [sorted(tuple(p.shape) for p in m.parameters()) for m in models]
    turned = [sorted(tuple(sorted(shape)) for shape in shapes) for shapes in counts]
    assert turned[0] == turned[1]
    for programs in (needle_programs, peers):
        assert len(programs.gpt_decode(count=5, **sizes)()) == 5
        programs.gpt_step(batch=2, **sizes)()
    ours, theirs = (p.classify(rows=3, width=4, classes=5)() for p in (needle_programs, peers))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.peers
def test_the_tensors_of_a_step_take_no_more_than_pytorchs() -> None:
    """The promise about the MLPResNet step's memory, and that both figures see all of its state."""
    peers = peer_programs("torch")
    peers.mlp_resnet_step(100)()
    needle_programs.mlp_resnet_step(100)
    parameters = 784 * 100 + 100 + 3 * (100 * 50 + 50 + 100 + 50 * 100 + 100 + 200) + 1010
    least = 4 * (3 * parameters + 100 * 784)  # with two moments, and the batch
    assert least < needle_programs.tensor_peak() <= peers.tensor_peak() < 2 * least


def measured(name: str, ours: float, best: float, **more: Any) -> Any:
    return Row(name, "µs", values={"needle compiled": ours, "torch": best}, **more)


def test_a_table_shows_what_is_missed() -> None:
    met = measured("one", 50.0, 100.0, target="≥ 2×", ratio=2.0)
    missed = measured("two", 51.0, 100.0, target="≥ 2×", ratio=2.0, moved=255e3)
    text = report.as_markdown([met, missed], copy_rate=10.0)
    one, two = text.splitlines()[2:]
    assert "| 2.00 |" in one
    assert one.endswith("≥ 2× ✓ |")
    assert "| 1.96 |" in two
    assert "5.0, 50 %" in two
    assert two.endswith("≥ 2× ✗ |")
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_a_row_without_peers_has_no_ratio() -> None:
    row = Row("compile", "ms", values={"needle compiled": 3.0}, target="≤ 2 ms", limit=2.0)
    assert report.as_markdown([row]).splitlines()[-1].endswith("|  | ≤ 2 ms ✗ |")


def test_the_readme_gets_main_rows_only() -> None:
    chapters = {
        "A": [measured("main", 1.0, 2.0, is_main=True), measured("other", 1.0, 0.5, ratio=1.0)]
    }
    block = report.readme_block(chapters, FACTS)
    assert "main (µs)" in block
    assert "other (µs)" not in block
    assert "0 of 1 targets" in block  # what is not shown counts as well
    assert "\n\n\n" not in block
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.with_block(text, block)
    assert new.startswith("before\n")
    assert new.endswith("after\n")
    assert "old" not in new
    assert report.with_block(new, block) == new
    with pytest.raises(ValueError, match="bench:begin"):
        report.with_block("nothing", block)


def test_published_tables_are_those_of_the_results() -> None:
    """Nobody has edited a figure by hand."""
    record = json.loads((ROOT / "benchmarks/results.json").read_text())
    results = {row["name"]: Row(**row) for row in record["rows"]}
    chapters = {
        title: [results.pop(case.row.name) for case in cases if case.row.name in results]
        for title, cases in rows.CHAPTERS.items()
    }
    chapters["Processes"] = list(results.values())
    readme = (ROOT / "README.md").read_text()
    block = report.readme_block(chapters, record["conditions"])
    assert report.with_block(readme, block) == readme
    products = [Row(**row) for row in record["products"]]
    page = report.page(chapters, products, record["conditions"])
    assert (ROOT / "docs/BENCHMARKS.md").read_text() == page


def test_partial_runs_are_not_published() -> None:
    command = [sys.executable, "-m", "benchmarks", "--write", "--only", "add"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "figures of two runs" in done.stderr


@pytest.mark.peers
def test_training_is_compared_from_the_same_weights(shared_data: Path, tmp_path: Path) -> None:
    """The twin of a model says what the model says, and sees as many batches."""
    sys.path.insert(0, str(ROOT))
    try:
        curves = importlib.import_module("benchmarks.curves")
    finally:
        sys.path.remove(str(ROOT))
    text = tmp_path / "text.txt"
    text.write_text((shared_data / "tinyshakespeare.txt").read_text()[:60_000])
    run = curves.make_run("text", text, str(tmp_path / "run"), 1)
    twin = curves.torch_model("text", run.task.model)
    curves.check_twin("text", run, twin)
    (record,) = curves.train_torch("text", text, 1)
    assert record["epoch"] == 1
    assert record["test_loss"] < record["train_loss"] + 1
    results = {"text": {"conditions": "On a machine.", "lines": {"PyTorch": [record]}}}
    assert f"| PyTorch, 1 epoch | {record['train_loss']:.3f} |" in curves.page(results)
    assert curves.picture("text", {"PyTorch": [record, record]}).startswith("<svg")


def test_models_are_checked_against_a_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sys.path.insert(0, str(ROOT))
    try:
        tiles = importlib.import_module("benchmarks.tiles")
    finally:
        sys.path.remove(str(ROOT))
    only = "^64×64·64×64 n|grouped fwd 8×512"
    monkeypatch.setattr(sys, "argv", ["tiles", "--threads", "2", "--only", only])
    monkeypatch.setattr(tiles, "set_num_threads", lambda count: None)
    tiles.main()
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert summary.startswith("3 kernels; ")
    specs = [spec for kind in ("f32", "f64", "bf16") for _, spec in tiles.convolutions(kind)]
    assert len({repr(spec) for spec in specs}) == len(specs)


@pytest.mark.peers
def test_the_twin_of_a_residual_network_is_the_same_network() -> None:
    sys.path.insert(0, str(ROOT))
    try:
        curves = importlib.import_module("benchmarks.curves")
    finally:
        sys.path.remove(str(ROOT))
    import torch

    ndl.manual_seed(0)
    model = models.resnet20(10).eval()
    twin = curves.torch_model("cifar10", model).eval()
    x = ndl.randn(2, 3, 32, 32)
    expected = twin(torch.from_numpy(x.numpy())).detach().numpy()
    with ndl.no_grad():
        np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-4, atol=1e-4)
