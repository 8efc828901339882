"""Tables of what was measured: results.json, docs/BENCHMARKS.md and the README's block."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, Row

#: Frameworks, and how tables call them.
FRAMEWORKS = {
    "needle": "needle, eager",
    "needle compiled": "needle, compiled",
    "torch": "PyTorch, eager",
    "torch compiled": "PyTorch, compiled",
    "jax": "JAX, jit",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}
#: Those that only run what is trained: a table without such rows has no column of theirs.
RUNTIMES = ("onnxruntime", "openvino")
#: The columns of the table of products, of which needle's are the kernels alone.
KERNELS = {"needle": "needle's kernel", "torch": "PyTorch"}

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def conditions_as_text(facts: dict[str, Any]) -> str:
    """Return one sentence with all that the figures depend on."""
    return (
        f"Measured on {facts['date']}: {facts['processor']}, {facts['threads']} threads, "
        f"{facts['matrix GFLOP/s (float32)']} GFLOP/s (float32 matrix product), "
        f"{facts['copy GB/s']} GB/s (copy); Python {facts['python']}, "
        f"NumPy {facts['numpy']}, PyTorch {facts['torch']}, JAX {facts['jax']}"
        + "".join(f", {FRAMEWORKS[name]} {facts[name]}" for name in RUNTIMES if name in facts)
        + "."
    )


def columns_of(rows: Sequence[Row]) -> dict[str, str]:
    """Return the frameworks that a table of rows shows."""
    return {
        name: title
        for name, title in FRAMEWORKS.items()
        if name not in RUNTIMES or any(name in row.values for row in rows)
    }


def as_markdown(
    rows: Sequence[Row], columns: dict[str, str] | None = None, copy_rate: float | None = None
) -> str:
    """Return a table of rows; with ``copy_rate``, in GB/s, what part of it each row reaches."""
    columns = columns_of(rows) if columns is None else columns
    shows_rate = copy_rate is not None and any(row.moved is not None for row in rows)
    head = [*columns.values(), "best peer ÷ needle"] + ["GB/s, of copy"] * shows_rate
    lines = ["| | " + " | ".join(head) + " | target |", "|---" + "|---:" * len(head) + "|---|"]
    for row in rows:
        mark = {None: "", True: " ✓", False: " ✗"}[row.is_met]
        cells = [digits(row.values.get(name)) for name in columns]
        cells.append("" if math.isnan(row.speedup) else f"{row.speedup:.2f}")
        if shows_rate:
            rate = row.byte_rate
            assert copy_rate is not None
            cells.append(
                "" if rate is None else f"{rate / 1e9:.1f}, {100 * rate / 1e9 / copy_rate:.0f} %"
            )
        lines.append(f"| {row.name} ({row.unit}) | {' | '.join(cells)} | {row.target}{mark} |")
    return "\n".join(lines)


def digits(value: float | None) -> str:
    """Return three digits of ``value``, a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def readme_block(chapters: dict[str, list[Row]], facts: dict[str, Any]) -> str:
    """Return what stands between the README's markers: the main rows of all chapters."""
    rows = [row for chapter in chapters.values() for row in chapter if row.is_main]
    missed = sum(row.is_met is False for chapter in chapters.values() for row in chapter)
    total = sum(row.is_met is not None for chapter in chapters.values() for row in chapter)
    return (
        f"{conditions_as_text(facts)}\n\n{as_markdown(rows)}\n\n"
        f"{total - missed} of {total} targets are met; all rows: "
        "[docs/BENCHMARKS.md](docs/BENCHMARKS.md)."
    )


def page(chapters: dict[str, list[Row]], products: list[Row], facts: dict[str, Any]) -> str:
    """Return docs/BENCHMARKS.md."""
    parts = [
        "# Benchmarks",
        "Written by `make bench`. Frameworks take turns of a few milliseconds in processes of "
        "their own; medians. The ratio is the best peer's time over needle's, compiled if there "
        "is such a figure: above 1 needle is faster, and from 0.97 to 1.03 is a tie. GB/s count "
        "each byte once that must be read or written; the copy they are held against is NumPy's, "
        "of 256 MB by one thread, so what two threads do in a large cache can exceed it. Compiling "
        "a step is its first call in a new process, which runs it once as well.",
        conditions_as_text(facts),
    ]
    for title, rows in chapters.items():
        if rows:
            parts += [f"## {title}", as_markdown(rows, copy_rate=facts["copy GB/s"])]
    if products:
        parts += [
            "## Matrix products",
            "Kernels alone, without tensors, beside `torch.mm(out=…)`: the fastest of many turns. "
            "m×k·k×n, the layout of both operands (n: as it lies, t: transposed). "
            "`python -m benchmarks.gemm` measures these.",
            as_markdown(products, KERNELS),
        ]
    return "\n\n".join(parts) + "\n"


def with_block(readme: str, block: str) -> str:
    """Return the README with ``block`` between its markers.

    Raises:
        ValueError: if the markers are missing.
    """
    if BEGIN not in readme or END not in readme:
        raise ValueError(f"README.md has no {BEGIN} … {END} to put the table between")
    head, rest = readme.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


def write(chapters: dict[str, list[Row]], products: list[Row], facts: dict[str, Any]) -> list[Path]:
    """Write all files, and return which."""
    results, document, readme = (
        ROOT / "benchmarks/results.json",
        ROOT / "docs/BENCHMARKS.md",
        ROOT / "README.md",
    )
    record = {
        "conditions": facts,
        "rows": [asdict(row) for rows in chapters.values() for row in rows],
        "products": [asdict(row) for row in products],
    }
    results.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    document.write_text(page(chapters, products, facts))
    readme.write_text(with_block(readme.read_text(), readme_block(chapters, facts)))
    return [results, document, readme]
