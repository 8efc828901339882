"""The command `needle compare-abstractions`."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from needle.cli.messages import errors_as_messages, is_interactive


class Which(str, enum.Enum):
    """The networks to choose from."""

    mlp = "mlp"
    resnet = "resnet"


def compare_abstractions(
    network: Annotated[
        list[Which] | None, typer.Option(help="Only this network; may be given again.")
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0.0, help="How long each style of each network is timed.")
    ] = 1.5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    write: Annotated[
        Path | None,
        typer.Option(help="Put the tables between the markers of this Markdown page."),
    ] = None,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show Python's traceback of an error.")
    ] = False,
) -> None:
    """Train the same networks layer by layer, declared, eagerly and compiled; compare the steps.

    Times are medians of many short turns, memory is that of all arrays at the fullest moment of a
    step, and losses are those of the same steps from the same weights.
    """
    with errors_as_messages(traceback):
        from needle.cli.abstractions import measure, report

        names = [which.value for which in dict.fromkeys(network or Which)]
        with _progress() as say:
            found = measure.compare(names, seconds, say)
        if write is not None:
            for path in report.write(found, write):
                typer.echo(f"written: {path}", err=as_json)
    if as_json:
        typer.echo(json.dumps(found.as_json()))
    elif write is None:
        report.show(found)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Say what is being measured: on one line that is redrawn, or, on no terminal, nowhere."""
    if not is_interactive():
        yield lambda what: None
        return
    from rich.console import Console

    with Console(stderr=True).status("preparing") as status:
        yield status.update
