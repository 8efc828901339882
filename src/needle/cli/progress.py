"""Progress of a training: a redrawn bar on terminals, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from needle.cli.messages import duration
from needle.train.trainer import Callback, Trainer

if TYPE_CHECKING:
    from needle.train.metrics import Record
    from needle.train.steps import Compilation

NARROW = 100  # columns; below, words are abbreviated so that the bar keeps its place


class Pace:
    """An estimate of the time left, from the steps taken in this process."""

    def __init__(self, trainer: Trainer) -> None:
        self._started = time.perf_counter()
        self._first_step = trainer.step

    def seconds_left(self, trainer: Trainer) -> float:
        """Return an estimate of the time to the end, evaluations included."""
        done = trainer.step - self._first_step
        elapsed = time.perf_counter() - self._started
        return elapsed / done * (trainer.total_steps - trainer.step) if done else 0.0


def status(trainer: Trainer, pace: Pace, narrow: bool = False) -> str:
    """Return what a step's line says: running means, throughput and time left."""
    accuracy = "acc" if narrow else "accuracy"
    if trainer.kind == "language":
        unit = "char/s" if narrow else "characters/s"
    else:
        unit = "ex/s" if narrow else "examples/s"
    metrics = trainer.meter.metrics()
    parts = [f"loss {metrics['loss']:.4f}"]
    if "accuracy" in metrics:
        parts.append(f"{accuracy} {metrics['accuracy']:.2%}")
    if "bits" in metrics:
        parts.append(f"{metrics['bits']:.3f} bits")
    parts.append(f"{trainer.throughput:,.0f} {unit}")
    parts.append(f"{duration(pace.seconds_left(trainer))} left")
    return (" " if narrow else "  ").join(parts)


def epoch_line(record: Record, epochs: int) -> str:
    """Return the line that stays on the screen after an epoch."""
    width = len(str(epochs))
    parts = [f"epoch {record['epoch']:>{width}}/{epochs}"]
    for part in ("train", "test"):
        if f"{part}_loss" not in record:
            continue
        text = f"{part} loss {record[f'{part}_loss']:.4f}"
        if f"{part}_accuracy" in record:
            text += f" acc {record[f'{part}_accuracy']:7.2%}"
        if f"{part}_bits" in record:
            text += f" {record[f'{part}_bits']:.3f} bits"
        parts.append(text)
    return "  ".join([*parts, duration(record["seconds"])])


class PlainProgress(Callback):
    """A line for every epoch, and every few seconds within long ones.

    Args:
        print_line: Prints a line.
        interval: Seconds between lines within an epoch.
    """

    def __init__(self, print_line: Callable[[str], None], interval: float = 10.0) -> None:
        self._print = print_line
        self._interval = interval
        self._pace: Pace | None = None
        self._last = time.perf_counter()

    def on_compile(self, trainer: Trainer, compilation: Compilation) -> None:
        """Say how long it took."""
        self._print(str(compilation))

    def on_step(self, trainer: Trainer) -> None:
        """Print a line if the last one is long ago."""
        if self._pace is None:
            self._pace = Pace(trainer)
        now = time.perf_counter()
        if now - self._last >= self._interval:
            self._last = now
            step = f"epoch {trainer.epoch + 1}/{trainer.epochs}  step {trainer.step:,}"
            self._print(f"{step}/{trainer.total_steps:,}  {status(trainer, self._pace)}")

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Print the epoch's line."""
        self._last = time.perf_counter()
        self._print(epoch_line(record, trainer.epochs))


class BarProgress(Callback):
    """A bar that is redrawn, under the lines of the finished epochs; a context manager."""

    def __init__(self) -> None:
        from rich import get_console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._narrow = get_console().width < NARROW
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12 if self._narrow else 24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[status]}"),
            transient=True,
        )
        self._task = self._progress.add_task("preparing", total=None, status="")
        self._pace: Pace | None = None

    def __enter__(self) -> BarProgress:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def on_compile(self, trainer: Trainer, compilation: Compilation) -> None:
        """Leave a line above the bar."""
        self._leave(str(compilation))

    def on_step(self, trainer: Trainer) -> None:
        """Redraw the bar (rich limits how often the terminal is written to)."""
        if self._pace is None:
            self._pace = Pace(trainer)
        self._progress.update(
            self._task,
            description=f"epoch {trainer.epoch + 1}/{trainer.epochs}",
            completed=trainer.step,
            total=trainer.total_steps,
            status=status(trainer, self._pace, self._narrow),
        )

    def on_evaluation(self, trainer: Trainer, done: int) -> None:
        """Say that the model is being evaluated."""
        batches = 0 if trainer.test_loader is None else len(trainer.test_loader)
        self._progress.update(self._task, status=f"evaluating: batch {done} of {batches}")

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """Leave the epoch's line above the bar."""
        self._leave(epoch_line(record, trainer.epochs))

    def _leave(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
