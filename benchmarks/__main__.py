"""``python -m benchmarks``: run all rows, print the table, write it as JSON and into the README."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import re
import shutil
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import machine
from benchmarks.harness import (
    ROOT,
    Row,
    Worker,
    compile_times,
    import_times,
    peak_memory,
    summarise,
    take_turns,
)

RESULTS = Path(__file__).parent / "results.json"

#: Frameworks, and how the table calls them.
FRAMEWORKS = {
    "needle": "needle, eager",
    "needle compiled": "needle, compiled",
    "torch": "PyTorch, eager",
    "torch compiled": "PyTorch, compiled",
    "jax": "JAX, jit",
}

_LARGE = {"rows": 4096, "columns": 768}

#: What is timed: row, program, its arguments.
TIMED: list[tuple[Row, str, dict[str, Any]]] = [
    (Row("MLP SGD step, batch 32", "µs", target="≥ 4×", ratio=4.0), "mlp_sgd_step", {"batch": 32}),
    (
        Row("MLP SGD step, batch 128", "µs", target="≥ 2×", ratio=2.0),
        "mlp_sgd_step",
        {"batch": 128},
    ),
    (
        Row("MLP Adam step, batch 32", "µs", target="≥ 4×", ratio=4.0),
        "mlp_adam_step",
        {"batch": 32},
    ),
    (
        Row("MLP Adam step, batch 128", "µs", target="≥ 2×", ratio=2.0),
        "mlp_adam_step",
        {"batch": 128},
    ),
    (
        Row("MLPResNet Adam step, batch 100", "µs", target="≥ 4×", ratio=4.0),
        "mlp_resnet_step",
        {"batch": 100},
    ),
    (Row("MLP forward, batch 1", "µs", target="≤ 9 µs", limit=9.0), "mlp_forward", {"batch": 1}),
    (Row("add, 16 elements", "µs"), "add", {"n": 16}),
    (Row("add, 3 M elements", "µs", target="≥ 1×", ratio=1.0), "add", {"n": 3 << 20}),
    (Row("exp 4096×768", "µs", target="≥ 1×", ratio=1.0), "exp", _LARGE),
    (Row("tanh 4096×768", "µs", target="≥ 1×", ratio=1.0), "tanh", _LARGE),
    (Row("GELU 4096×768", "µs", target="≥ 1×", ratio=1.0), "gelu", _LARGE),
    (Row("relu(x·s + b)·z + x, 4096×768", "µs", target="≥ 1×", ratio=1.0), "chain", _LARGE),
    (
        Row("sum of all, 4096×768", "µs", target="≥ 1×", ratio=1.0),
        "total",
        {**_LARGE, "axis": None},
    ),
    (Row("sum of rows, 4096×768", "µs", target="≥ 1×", ratio=1.0), "total", {**_LARGE, "axis": 1}),
    (
        Row("sum of columns, 4096×768", "µs", target="≥ 1×", ratio=1.0),
        "total",
        {**_LARGE, "axis": 0},
    ),
    (Row("softmax 4096×768", "µs", target="≥ 1.3×", ratio=1.3), "softmax", _LARGE),
    (Row("layer norm 4096×768", "µs", target="≥ 1.3×", ratio=1.3), "layer_norm", _LARGE),
    (Row("cross-entropy 4096×768", "µs", target="≥ 1.3×", ratio=1.3), "cross_entropy", _LARGE),
    (Row("matmul 64³", "µs", target="≥ 1.2×", ratio=1.2), "matmul", {"m": 64, "k": 64, "n": 64}),
    (
        Row("matmul 127×255×511", "µs", target="≥ 1×", ratio=0.97),
        "matmul",
        {"m": 127, "k": 255, "n": 511},
    ),
    (
        Row("matmul 512³", "µs", target="≥ 1×", ratio=0.97),
        "matmul",
        {"m": 512, "k": 512, "n": 512},
    ),
    (
        Row("Adam update of 10 M parameters", "µs", target="≥ 1×", ratio=1.0),
        "adam_update",
        {"n": 10**7},
    ),
    (
        Row("conv 3×3, 64→64, 32²×8", "µs"),
        "conv2d",
        {"batch": 8, "channels": 64, "size": 32, "out": 64},
    ),
    (Row("ResNet-20 CIFAR step, batch 32", "µs"), "resnet20_step", {"batch": 32}),
]


def frameworks() -> list[str]:
    """Return the frameworks that can be measured here."""
    missing = {"jax"} if importlib.util.find_spec("jax") is None else set()
    if shutil.which("g++") is None:
        missing.add("torch compiled")  # it needs a C++ compiler on the user's machine
    return [name for name in FRAMEWORKS if name not in missing]


def measure(seconds: float, threads: int, only: str) -> list[Row]:
    """Return all rows, measured."""
    workers = [Worker(name, threads) for name in frameworks()]
    rows = []
    chosen = [case for case in TIMED if re.search(only, case[0].name)]
    for row, program, args in track(chosen, "measuring", console=Console(stderr=True)):
        rows.append(summarise(row, take_turns(workers, program, args, seconds), 1e6))
    for worker in workers:
        worker.close()
    if re.search(only, "import"):
        times = import_times({"needle": "needle", "torch": "torch"}, 7, threads)
        rows.append(summarise(Row("import", "ms", target="≤ 250 ms", limit=250.0), times, 1e3))
    if re.search(only, "memory"):
        for program, args, name in (
            ("mlp_sgd_step", {"batch": 32}, "MLP step"),
            ("mlp_resnet_step", {"batch": 100}, "MLPResNet step"),
        ):
            peaks = peak_memory(program, args, 1.0)
            row = Row(f"{name}, peak memory of the process", "MB", target="≤ PyTorch's", ratio=1.0)
            row.values = {name: value / 1e6 for name, value in peaks.items()}
            rows.append(row)
    for model in ("mlp_sgd_step", "mlp_resnet_step"):
        name = {"mlp_sgd_step": "MLP", "mlp_resnet_step": "MLPResNet"}[model]
        if re.search(only, f"compiling the {name} step"):
            cold, warm = compile_times(
                model, {"batch": 100 if name == "MLPResNet" else 32}, threads
            )
            limit = 2000.0 if name == "MLPResNet" else 500.0
            row = Row(f"compiling the {name} step", "ms", target=f"≤ {limit:.0f} ms", limit=limit)
            rows.append(summarise(row, {"needle compiled": cold}, 1e3))
            row = Row(f"the same, from disk ({name})", "ms", target="≤ 100 ms", limit=100.0)
            rows.append(summarise(row, {"needle compiled": warm}, 1e3))
    return rows


def conditions(threads: int) -> dict[str, Any]:
    """Return what the figures depend on: machine, versions, ceilings."""
    import numpy
    import torch

    import needle

    return {
        "date": date.today().isoformat(),
        "processor": machine.processor(),
        "threads": threads,
        "cores": os.cpu_count(),
        "matrix GFLOP/s (float32)": round(machine.matrix_rate(threads)),
        "copy GB/s": round(machine.copy_bandwidth(), 1),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "needle": needle.__version__,
        "torch": torch.__version__,
        "jax": version("jax") if importlib.util.find_spec("jax") is not None else "not installed",
    }


def as_markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """Return the README's table."""
    lines = [
        f"Measured on {facts['date']}: {facts['processor']}, {facts['threads']} threads, "
        f"{facts['matrix GFLOP/s (float32)']} GFLOP/s (float32 matrix product), "
        f"{facts['copy GB/s']} GB/s (copy); Python {facts['python']}, "
        f"NumPy {facts['numpy']}, PyTorch {facts['torch']}, JAX {facts['jax']}.",
        "",
        "",
        "| | " + " | ".join(FRAMEWORKS.values()) + " | best peer ÷ needle | target |",
        "|---" + "|---:" * (len(FRAMEWORKS) + 1) + "|---|",
    ]
    for row in rows:
        mark = {None: "", True: " ✓", False: " ✗"}[row.is_met]
        values = " | ".join(_digits(row.values.get(name)) for name in FRAMEWORKS)
        ratio = "" if math.isnan(row.speedup) else f"{row.speedup:.2f}"
        lines.append(f"| {row.name} ({row.unit}) | {values} | {ratio} | {row.target}{mark} |")
    return "\n".join(lines)


def _digits(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def write_readme(table: str) -> None:
    """Put the table between the markers in the README."""
    path = ROOT / "README.md"
    text = path.read_text()
    begin, end = "<!-- bench:begin -->", "<!-- bench:end -->"
    if begin not in text or end not in text:
        raise SystemExit(f"README.md has no {begin} … {end} to put the table between")
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    path.write_text(f"{head}{begin}\n{table}\n{end}{tail}")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each row")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", default="", help="rows that match this regular expression")
    parser.add_argument("--write", action="store_true", help="write JSON and README")
    options = parser.parse_args()

    facts = conditions(options.threads)
    console = Console()
    for name, value in facts.items():
        console.print(f"{name}: [bold]{value}[/]")
    rows = measure(options.seconds, options.threads, options.only)
    table = Table("", "unit", *FRAMEWORKS.values(), "best ÷ needle", "target", "met")
    for row in rows:
        met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.is_met]
        table.add_row(
            row.name,
            row.unit,
            *(_digits(row.values.get(name)) for name in FRAMEWORKS),
            f"{row.speedup:.2f}",
            row.target,
            met,
        )
    console.print(table)
    if options.write:
        document = {"conditions": facts, "rows": [asdict(row) for row in rows]}
        RESULTS.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        write_readme(as_markdown(rows, facts))
        console.print(f"written: {RESULTS.relative_to(ROOT)}, README.md")


if __name__ == "__main__":
    main()
