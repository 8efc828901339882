"""How the command line speaks: errors as one message, results as short lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import typer

from needle.errors import NeedleError


@contextlib.contextmanager
def errors_as_messages(traceback: bool) -> Iterator[None]:
    """Turn errors that teach into one message and exit code 1, Ctrl-C into 130; let others through.

    Args:
        traceback: Whether to let every error through, for people who debug.
    """
    try:
        yield
    except (NeedleError, OSError) as error:
        if traceback:
            raise
        if isinstance(error, BrokenPipeError):
            raise  # `needle … | head`: typer ends quietly
        typer.secho(f"needle: {_text(error)}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:  # outside of the training loop, which saves first
        typer.secho("needle: stopped", fg="red", err=True)
        raise typer.Exit(130) from None


def is_interactive() -> bool:
    """Return whether standard output is a terminal that can redraw lines."""
    import os

    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def duration(seconds: float) -> str:
    """Format a duration: `4.1 s`, `2:05`, `1:02:05`.

    Example:
        >>> from needle.cli.messages import duration
        >>> duration(4.12), duration(125), duration(3725)
        ('4.1 s', '2:05', '1:02:05')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
