"""`needle compare-abstractions`: the styles agree, the figures are what they are called, and the
page shows what is measured."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import needle as ndl
from needle.cli.abstractions import measure, programs, report
from needle.cli.abstractions.styles import NETWORKS, STYLES, Batch, Imperative, losses
from needle.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
SOURCE = str(Path(ndl.__file__).parents[1])
PAGE = ROOT / "docs" / "three-abstractions.md"


def test_the_styles_have_the_same_losses_on_digits():
    """Bit by bit where they run the same kernels, else but for rounding."""
    batches = [Batch(i) for i in range(30)]
    found = {name: losses(make(NETWORKS["mlp"]), batches) for name, make in STYLES.items()}
    expected = found["compiled"]
    assert expected[-1] < 0.6 * expected[0]
    for name in ("layerwise", "layerwise, compiled", "static"):
        assert found[name] == expected, name
    assert found["eager"] == pytest.approx(expected, rel=1e-5)


def test_the_residual_networks_are_the_same():
    batches = [Batch(i) for i in range(4)]
    found = {name: losses(make(NETWORKS["resnet"]), batches) for name, make in STYLES.items()}
    assert found["static"] == found["compiled"]
    for name, curve in found.items():
        assert curve == pytest.approx(found["compiled"], rel=2e-4), name


def test_memory_is_what_the_plan_says():
    network = NETWORKS["mlp"]
    one = Imperative(network, is_compiled=True)
    one.give(Batch())
    planned = ndl.compile(one.train.function).memory_plan(*one.inputs).peak_bytes
    batch = sum(tensor.nbytes for tensor in one.inputs)  # the same for all styles: not counted
    for style in ("compiled", "static"):
        assert measure.peak_memory(network, style) == pytest.approx(planned - batch, rel=0.02)
    by_layers = measure.peak_memory(network, "layerwise")
    assert measure.peak_memory(network, "layerwise, compiled") < by_layers


def needle(*arguments, check=0):
    done = subprocess.run(
        [sys.executable, "-m", "needle", "compare-abstractions", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


def test_the_command(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    options = ("--network", "mlp", "--seconds", "0.05")
    done = needle(*options, "--json", "--write", str(page))
    found = measure.Comparison.of(json.loads(done.stdout))
    assert list(found.figures) == ["mlp"]
    assert list(found.figures["mlp"]) == list(STYLES)
    assert found.ratio("mlp", "eager") > 1
    assert page.read_text() == (
        f"before\n{report.BEGIN}\n{report.as_markdown(found)}\n{report.END}\nafter\n"
    )
    assert json.loads(page.with_suffix(".json").read_text()) == found.as_json()
    page.write_text("nothing to fill")
    wrong = needle(*options, "--write", str(page), check=1)
    assert "comparison:begin" in wrong.stderr
    assert "Traceback" not in wrong.stderr


def test_tables():
    figures = {
        "compiled": measure.Figures(1e-4, 2_000_000, [2.0, 1.0]),
        "static": measure.Figures(1.1e-4, 1_000_000, [2.0, 1.0]),
        "eager": measure.Figures(2e-3, 3_500_000, [2.0, 1.001]),
    }
    machine = {"date": "2026-01-02", "processor": "P", "threads": 2}
    machine |= {"Python": "3", "numpy": "2", "needle": "1"}
    found = measure.Comparison(machine, {"mlp": "MLP"}, {"mlp": figures})
    lines = report.as_markdown(found).splitlines()
    assert "| static | 110 µs | 1.10× | 1.00 MB | the same bits |" in lines
    assert "| eager | 2 ms | 20.00× | 3.50 MB | within 1e-03 |" in lines
    with pytest.raises(DataError, match="comparison:end"):
        report.with_block(f"{report.BEGIN}\n", "block")


def test_the_page_shows_what_is_measured():
    """Its programs are those of the command, and nobody has typed a figure."""
    text = PAGE.read_text()
    for name, item in vars(programs).items():
        if getattr(item, "__module__", "") == programs.__name__:
            assert f"```python\n{inspect.getsource(item)}```" in text, name
    record = json.loads(PAGE.with_suffix(".json").read_text())
    found = measure.Comparison.of(record)
    assert set(found.figures) == set(NETWORKS)
    assert report.with_block(text, report.as_markdown(found)) == text
