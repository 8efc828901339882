"""``python -m benchmarks``: run all rows, print the table, write it as JSON and into the README."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from dataclasses import asdict
from datetime import date
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
    import_times,
    peak_memory,
    summarise,
    take_turns,
)

RESULTS = Path(__file__).parent / "results.json"

#: What is timed: row, program, its arguments.
TIMED: list[tuple[Row, str, dict[str, Any]]] = [
    (Row("add, 16 elements", "µs", target="≤ 2 µs", limit=2.0), "add", {"n": 16}),
    (Row("add, 1 M elements", "µs"), "add", {"n": 1 << 20}),
    (Row("matmul 64³", "µs"), "matmul", {"m": 64, "k": 64, "n": 64}),
    (Row("matmul 512³", "µs"), "matmul", {"m": 512, "k": 512, "n": 512}),
    (Row("softmax 4096×768", "µs"), "softmax", {"rows": 4096, "columns": 768}),
    (Row("layer norm 4096×768", "µs"), "layer_norm", {"rows": 4096, "columns": 768}),
    (
        Row("conv 3×3, 64→64, 32²×8", "µs"),
        "conv2d",
        {"batch": 8, "channels": 64, "size": 32, "out": 64},
    ),
    (Row("MLP forward, batch 1", "µs"), "mlp_forward", {"batch": 1}),
    (
        Row("MLP SGD step, batch 32", "µs", target="≤ 2 × PyTorch", ratio=2.0),
        "mlp_sgd_step",
        {"batch": 32},
    ),
    (Row("MLP SGD step, batch 128", "µs"), "mlp_sgd_step", {"batch": 128}),
    (Row("MLP Adam step, batch 32", "µs"), "mlp_adam_step", {"batch": 32}),
    (Row("ResNet-20 CIFAR step, batch 32", "µs"), "resnet20_step", {"batch": 32}),
]


def measure(seconds: float, threads: int, only: str) -> list[Row]:
    """Return all rows, measured."""
    workers = [Worker("needle", threads), Worker("torch", threads)]
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
        peaks = peak_memory("mlp_sgd_step", {"batch": 32}, 1.0)
        row = Row("MLP step, peak memory of the process", "MB", target="≤ PyTorch's", ratio=1.0)
        row.values = {name: value / 1e6 for name, value in peaks.items()}
        rows.append(row)
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
    }


def as_markdown(rows: list[Row], facts: dict[str, Any]) -> str:
    """Return the README's table."""
    lines = [
        f"Measured on {facts['date']}: {facts['processor']}, {facts['threads']} threads, "
        f"{facts['matrix GFLOP/s (float32)']} GFLOP/s (float32 matrix product), "
        f"{facts['copy GB/s']} GB/s (copy); Python {facts['python']}, "
        f"NumPy {facts['numpy']}, PyTorch {facts['torch']}.",
        "",
        "| | needle | PyTorch (eager) | PyTorch ÷ needle | target |",
        "|---|---:|---:|---:|---|",
    ]
    for row in rows:
        mark = {None: "", True: " ✓", False: " ✗"}[row.is_met]
        needle, torch = (_digits(row.values[name]) for name in ("needle", "torch"))
        name = f"{row.name} ({row.unit})"
        lines.append(f"| {name} | {needle} | {torch} | {row.speedup:.2f} | {row.target}{mark} |")
    return "\n".join(lines)


def _digits(value: float) -> str:
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
    table = Table("", "unit", "needle", "PyTorch", "PyTorch ÷ needle", "target", "met")
    for row in rows:
        met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.is_met]
        table.add_row(
            row.name,
            row.unit,
            f"{row.values['needle']:,.1f}",
            f"{row.values['torch']:,.1f}",
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
