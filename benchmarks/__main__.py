"""``python -m benchmarks``: run all rows, print the tables, and write them by `report`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import shutil
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import gemm, machine, report
from benchmarks.harness import (
    Row,
    Worker,
    compile_times,
    import_times,
    peak_memory,
    summarise,
    take_turns,
    tensor_peaks,
    training_times,
)
from benchmarks.rows import CHAPTERS, STEPS, WARM


def frameworks() -> list[str]:
    """Return the frameworks that can be measured here."""
    optional = ("jax", *report.RUNTIMES)
    missing = {name for name in optional if importlib.util.find_spec(name) is None}
    if importlib.util.find_spec("onnx") is None:
        missing.update(report.RUNTIMES)  # PyTorch writes their models with it
    if shutil.which("g++") is None:
        missing.add("torch compiled")  # it needs a C++ compiler on the user's machine
    return [name for name in report.FRAMEWORKS if name not in missing]


def timed(seconds: float, threads: int, only: str) -> dict[str, list[Row]]:
    """Return the rows of all chapters, measured."""
    workers = [Worker(name, threads) for name in frameworks()]
    cases = [(title, case) for title, cases in CHAPTERS.items() for case in cases]
    chosen = [(title, case) for title, case in cases if re.search(only, case.row.name)]
    chapters: dict[str, list[Row]] = {}
    for title, case in track(chosen, "measuring", console=Console(stderr=True)):
        times = take_turns(workers, case.program, case.args, seconds)
        row = replace(case.row, values={}, spread={})
        chapters.setdefault(title, []).append(summarise(row, times, 1e6))
    for worker in workers:
        worker.close()
    return chapters


def whole_processes(threads: int, only: str) -> list[Row]:
    """Return the rows about imports, compilation, command line and memory."""
    rows = []
    if re.search(only, "import"):
        row = Row("import", "ms", target="≤ 250 ms", limit=250.0, is_main=True)
        times = import_times({"needle": "needle", "torch": "torch"}, 7, threads)
        rows.append(summarise(row, times, 1e3))
    for name, program, args, limit in STEPS:
        if re.search(only, f"compiling the {name}"):
            cold, warm = compile_times(program, args, threads)
            target = f"≤ {limit:.0f} ms"
            row = Row(f"compiling the {name}", "ms", target=target, limit=limit, is_main=True)
            rows.append(summarise(row, {"needle compiled": cold}, 1e3))
            limit = WARM[program]
            target = f"≤ {limit:.0f} ms"
            row = Row(f"the same from disk ({name})", "ms", target=target, limit=limit)
            rows.append(summarise(row, {"needle compiled": warm}, 1e3))
    if re.search(only, "needle train digits"):
        row = summarise(Row("needle train digits", "s"), training_times(5, threads), 1.0)
        row.limit, row.target, row.is_main = row.values["needle"], "≤ eager", True
        rows.append(row)
    for name, program, args, _ in STEPS:
        if re.search(only, f"{name}, memory"):
            row = Row(f"{name}, memory of tensors", "MB", target="≤ PyTorch's", ratio=1.0)
            row.is_main = True
            row.values = {k: v / 1e6 for k, v in tensor_peaks(program, args).items()}
            rows.append(row)
            row = Row(f"{name}, memory of the process", "MB", target="≤ PyTorch's", ratio=1.0)
            row.values = {k: v / 1e6 for k, v in peak_memory(program, args, 1.0).items()}
            rows.append(row)
    return rows


def _version(name: str) -> str:
    return version(name) if importlib.util.find_spec(name) is not None else "not installed"


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
        **{name: _version(name) for name in ("jax", *report.RUNTIMES)},
    }


def show(console: Console, title: str, rows: list[Row], columns: dict[str, str]) -> None:
    """Print a chapter."""
    table = Table("", "unit", *columns.values(), "best ÷ needle", "target", "met", title=title)
    for row in rows:
        met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.is_met]
        values = (report.digits(row.values.get(name)) for name in columns)
        table.add_row(row.name, row.unit, *values, f"{row.speedup:.2f}", row.target, met)
    console.print(table)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="time for each row")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--only", default="", help="rows that match this regular expression")
    parser.add_argument("--write", action="store_true", help="write JSON, page and README")
    options = parser.parse_args()
    if options.write and options.only:
        parser.error("--write is for all rows: figures of two runs do not belong in one table")

    facts = conditions(options.threads)
    console = Console()
    for name, value in facts.items():
        console.print(f"{name}: [bold]{value}[/]")
    chapters = timed(options.seconds, options.threads, options.only)
    rest = whole_processes(options.threads, options.only)
    if rest:
        chapters["Processes"] = rest
    for title, rows in chapters.items():
        show(console, title, rows, report.columns_of(rows))
    products = gemm.measured(options.threads, options.seconds / 5, options.only)
    if products:
        show(console, "Matrix products", products, report.KERNELS)
    if options.write:
        for path in report.write(chapters, products, facts):
            console.print(f"written: {path}")


if __name__ == "__main__":
    main()
