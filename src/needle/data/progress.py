"""Progress bars for downloads and conversions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    description: str, total: int, show: bool = True, in_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show a bar on the error stream while the block runs; yields the function that advances it."""
    if not show:
        yield lambda step: None
        return
    from rich import progress
    from rich.console import Console

    count: progress.ProgressColumn
    count = progress.DownloadColumn() if in_bytes else progress.MofNCompleteColumn()
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        count,
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda step: bar.advance(task, step)
