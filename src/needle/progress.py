"""Progress bars for what takes long: downloads, conversions, searches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(
    description: str,
    total: int,
    show: bool = True,
    in_bytes: bool = False,
    after: float = 0.0,
) -> Iterator[Callable[[int], None]]:
    """Show a bar on the error stream while the block runs; yields the function that advances it.

    Args:
        description: what takes long.
        total: how many steps there are.
        show: whether to show anything.
        in_bytes: whether the steps are bytes.
        after: seconds after which the bar appears, with the next step; shorter blocks show none.
    """
    if not show:
        yield lambda step: None
        return
    start = time.perf_counter()
    done = 0
    draw: Callable[[int], None] | None = None

    def advance(step: int) -> None:
        nonlocal done, draw
        done += step
        if draw is not None:
            draw(step)
        elif time.perf_counter() - start >= after:
            draw = bar.__enter__()
            draw(done)

    bar = _bar(description, total, in_bytes)
    if not after:
        advance(0)
    try:
        yield advance
    finally:
        if draw is not None:
            bar.__exit__(None, None, None)


@contextmanager
def _bar(description: str, total: int, in_bytes: bool) -> Iterator[Callable[[int], None]]:
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
