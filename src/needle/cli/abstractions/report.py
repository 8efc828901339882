"""Tables of a comparison: for terminals, as Markdown, and in a page of the documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from needle.errors import DataError

if TYPE_CHECKING:
    from needle.cli.abstractions.measure import Comparison

#: Between these lines of a page stands what was measured.
BEGIN, END = "<!-- comparison:begin -->", "<!-- comparison:end -->"
#: The columns; the last one says how losses stand to those of the compiled imperative step.
HEAD = ("step", "of compiled", "memory", "losses of 20 steps")


def cells(comparison: Comparison, network: str, style: str) -> list[str]:
    """Return a row: step time, its ratio to the compiled imperative one, memory, losses."""
    figures = comparison.figures[network][style]
    return [
        seconds_text(figures.step),
        f"{comparison.ratio(network, style):.2f}×",
        f"{figures.memory / 1e6:,.2f} MB",
        comparison.agreement(network, style),
    ]


def seconds_text(seconds: float) -> str:
    """Format the time of a step.

    Example:
        >>> from needle.cli.abstractions.report import seconds_text
        >>> seconds_text(9.34e-5), seconds_text(0.01234)
        ('93.4 µs', '12.3 ms')
    """
    unit, factor = ("µs", 1e6) if seconds < 1e-3 else ("ms", 1e3)
    return f"{seconds * factor:.3g} {unit}"


def conditions(machine: dict[str, Any]) -> str:
    """Return one sentence with what the figures depend on."""
    return (
        f"Measured on {machine['date']}: {machine['processor']}, {machine['threads']} threads; "
        f"Python {machine['Python']}, NumPy {machine['numpy']}, needle {machine['needle']}."
    )


def as_markdown(comparison: Comparison) -> str:
    """Return a table for each network, and the conditions."""
    parts = [conditions(comparison.machine)]
    for network, title in comparison.networks.items():
        lines = [f"| {title} | " + " | ".join(HEAD) + " |", "|---" + "|---:" * len(HEAD) + "|"]
        lines += [
            f"| {style} | " + " | ".join(cells(comparison, network, style)) + " |"
            for style in comparison.figures[network]
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def with_block(page: str, block: str) -> str:
    """Return a page with ``block`` between its markers.

    Raises:
        DataError: the markers are missing.
    """
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise DataError(f"the page has no lines {BEGIN} and {END} to put the tables between")
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


def write(comparison: Comparison, page: Path) -> list[Path]:
    """Put the tables into a page, and the figures into a JSON file beside it; return both.

    Raises:
        DataError: the page has no markers.
    """
    text = with_block(page.read_text(encoding="utf-8"), as_markdown(comparison))
    figures = page.with_suffix(".json")
    figures.write_text(json.dumps(comparison.as_json(), indent=1) + "\n", encoding="utf-8")
    page.write_text(text, encoding="utf-8")
    return [page, figures]


def show(comparison: Comparison) -> None:
    """Print the tables on the terminal."""
    from rich import get_console
    from rich.table import Table

    console = get_console()
    for network, title in comparison.networks.items():
        table = Table("", title=title, title_justify="left", title_style="bold")
        for name in HEAD:
            table.add_column(name, justify="right")
        for style in comparison.figures[network]:
            table.add_row(style, *cells(comparison, network, style))
        console.print(table)
    console.print(conditions(comparison.machine), highlight=False, soft_wrap=True)
