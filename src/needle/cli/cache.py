"""`needle cache`: look at the compiler's cache, and empty it."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from needle.cli.messages import errors_as_messages

app = typer.Typer(
    name="cache",
    help="The compiler's cache of machine code: look at it, or empty it.",
    no_args_is_help=True,
)


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show where the cache lies, and how much is in it."""
    with errors_as_messages(False):
        from needle.backends.cpu import cache

        found = cache.info()
    described: dict[str, Any] = {**found._asdict(), "folder": str(found.folder)}
    if as_json:
        typer.echo(json.dumps(described))
        return
    limit = size_text(found.limit) if found.limit else "0 (switched off by NEEDLE_CACHE_SIZE)"
    typer.echo(f"folder   {found.folder}")
    typer.echo(f"entries  {found.entries:,}")
    typer.echo(f"size     {size_text(found.size)}")
    typer.echo(f"limit    {limit}")
    if found.problem:
        typer.secho(f"not used: {found.problem}", fg="red")


@app.command()
def clear() -> None:
    """Remove all entries. What is needed again is compiled again."""
    with errors_as_messages(False):
        from needle.backends.cpu import cache

        before = cache.clear()
    entries = f"{before.entries:,} entr{'y' if before.entries == 1 else 'ies'}"
    typer.echo(f"removed {entries} ({size_text(before.size)}) from {before.folder}")


def size_text(size: int) -> str:
    """Format a number of bytes.

    Example:
        >>> from needle.cli.cache import size_text
        >>> size_text(17), size_text(2048), size_text(5 << 30)
        ('17 bytes', '2.0 KiB', '5.0 GiB')
    """
    if size < 1024:
        return f"{size} byte{'' if size == 1 else 's'}"
    value, units = size / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f} {units[0]}"
