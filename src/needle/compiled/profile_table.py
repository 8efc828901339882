"""Print a profile: as text, or as tables of rich in a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from needle.compiled.wording import listed, quantity

if TYPE_CHECKING:
    from needle.compiled.profile import Profile, Row

#: Rows of each table; the rest is added up in one more.
MOST = 20


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        title: what it shows.
        header: of the columns; those after the first two hold numbers, but for the last.
        rows: as many texts in each as the header has.
        left: which columns are aligned to the left.
    """

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: frozenset[int]


def tables(profile: Profile) -> list[Table]:
    """Return the tables of a profile; those without rows are left out."""
    found = [
        _kernel_table(profile),
        _plain(profile, "module path", profile.modules, "kernels"),
        _plain(profile, "eager op", profile.ops, "calls"),
    ]
    return [table for table in found if table.rows]


def summary(profile: Profile) -> str:
    """Return a line for the whole: how much of the time went where."""
    whole = profile.nanoseconds * 1e-9
    kernels = sum(row.seconds for row in profile.kernels)
    calls = sum(row.seconds for row in profile.calls)
    ops = sum(row.seconds for row in profile.ops)
    made = sum(e.duration for e in profile.events if e.kind == "preparation") * 1e-9
    parts = [
        f"kernels {_time(kernels)}",
        f"calls of compiled programs around them {_time(max(calls - kernels, 0.0))}",
        f"eager ops {_time(ops)}",
        f"Python and the rest {_time(max(whole - calls - ops - made, 0.0))}",
    ]
    more = [f"compiling for this profile {_time(made)}"] if made else []
    return f"{_time(whole)}: {', '.join([*parts, *more])}"


def text(profile: Profile) -> str:
    """Return the report as text."""
    blocks = [summary(profile)]
    for table in tables(profile):
        rows = [table.header, *table.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
        lines = [table.title]
        for row in rows:
            cells = [
                cell.ljust(w) if i in table.left else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def show(profile: Profile) -> None:
    """Print the report; with rich, if that is installed and there is a terminal."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        print(text(profile))
        return
    if not sys.stdout.isatty():
        print(text(profile))
        return
    console = Console()
    console.print(summary(profile), highlight=False)
    for table in tables(profile):
        rich: Any = RichTable(title=table.title, title_justify="left")
        for i, name in enumerate(table.header):
            rich.add_column(name, justify="left" if i in table.left else "right")
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)


def _kernel_table(profile: Profile) -> Table:
    rows = profile.kernels
    if not rows:
        return Table("", (), [], frozenset())
    best = profile.ceilings
    whole = sum(row.seconds for row in rows) or 1.0
    cells = [
        (
            f"{row.function}: {row.name}",
            str(row.calls),
            _time(row.seconds),
            f"{row.seconds / whole:.1%}",
            _time(row.median),
            f"{row.flop_rate * 1e-9:.3g}",
            f"{row.flop_rate / best.flops:.0%}",
            f"{row.byte_rate * 1e-9:.3g}",
            f"{row.byte_rate / best.bytes_for(row.bytes_moved / row.calls):.0%}",
            listed(row.ops, " "),
        )
        for row in rows[:MOST]
    ]
    title = (
        f"kernels; this machine multiplies and adds {quantity(best.flops, 'FLOP/s')} of float32 "
        f"and copies {quantity(best.bytes, 'B/s')}, {quantity(best.cached_bytes, 'B/s')} in caches"
    )
    header = ("kernel", "calls", "time", "share", "median", "GFLOP/s", "of most", "GB/s", "of most")
    return Table(title, (*header, "ops"), [*cells, *_rest(rows, 10)], frozenset({0, 9}))


def _plain(profile: Profile, what: str, rows: list[Row], calls: str) -> Table:
    whole = sum(row.seconds for row in rows) or 1.0
    cells = [
        (row.name, str(row.calls), _time(row.seconds), f"{row.seconds / whole:.1%}")
        for row in rows[:MOST]
    ]
    title = f"{what}s" if what.endswith("p") else "module paths, by their part of the kernels"
    return Table(title, (what, calls, "time", "share"), [*cells, *_rest(rows, 4)], frozenset({0}))


def _rest(rows: list[Row], columns: int) -> list[tuple[str, ...]]:
    rest = rows[MOST:]
    if not rest:
        return []
    calls = str(sum(row.calls for row in rest))
    cells = (f"… ({len(rest)} more)", calls, _time(sum(row.seconds for row in rest)))
    return [(*cells, *[""] * (columns - 3))]


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    if seconds >= 1e-3:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds * 1e6:.3g} µs"
