"""The commands. Everything heavy is imported inside of them, so that `--version` is quick."""

from __future__ import annotations

import enum
import json
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from needle.cli import cache
from needle.cli.compare import compare_abstractions
from needle.cli.messages import duration, errors_as_messages, is_interactive

if TYPE_CHECKING:
    from needle.train.metrics import Record
    from needle.train.run import Run
    from needle.train.trainer import Callback

app = typer.Typer(
    name="needle",
    help="Deep learning in pure Python: train models, evaluate them, look at the machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cache.app)
app.command("compare-abstractions")(compare_abstractions)

Traceback = Annotated[
    bool, typer.Option("--traceback", help="Show Python's traceback of an error.")
]


class Optimizer(str, enum.Enum):
    """The optimizers to choose from."""

    adagrad = "adagrad"
    adam = "adam"
    adamw = "adamw"
    rmsprop = "rmsprop"
    sgd = "sgd"


class Precision(str, enum.Enum):
    """What a model can compute in."""

    f32 = "f32"
    bf16 = "bf16"

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return "float32" if self is Precision.f32 else "bfloat16"


class Which(str, enum.Enum):
    """The checkpoints of a run."""

    last = "last"
    best = "best"


def _show_version(wanted: bool) -> None:
    if wanted:
        from needle import __version__

        typer.echo(f"needle {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Deep learning in pure Python: train models, evaluate them, look at the machine."""


@app.command()
def train(
    task: Annotated[
        str,
        typer.Argument(
            help="digits, mnist, cifar10, text, or a task of your own: MODULE:FUNCTION "
            "or FILE.py:FUNCTION."
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder (text: or file) with the data. Not needed for digits."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model, instead of the task's own.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes through the data.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples per step.")] = None,
    optimizer: Annotated[Optimizer | None, typer.Option(help="Update rule.")] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0, help="Weight decay.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of everything random (default: 0).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the results (default: a new one in runs/)."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out where it stopped.")
    ] = False,
    eager: Annotated[
        bool,
        typer.Option("--eager", help="Run op by op instead of compiling the steps; slower."),
    ] = False,
    precision: Annotated[
        Precision | None,
        typer.Option(help="What the model computes in; parameters stay float32 (default: f32)."),
    ] = None,
    traceback: Traceback = False,
) -> None:
    """Train a model; write a report, metrics and a checkpoint.

    Ctrl-C stops after the current step with everything saved; --resume goes on from there.
    """
    given = {
        "lr": lr,
        "batch_size": batch_size,
        "optimizer": None if optimizer is None else optimizer.value,
        "weight_decay": weight_decay,
    }
    recipe = {name: value for name, value in given.items() if value is not None}
    if resume:
        asked = {**recipe, "model": model, "seed": seed, "data": data, "eager": eager or None}
        asked["precision"] = precision
        _check_resume(out, asked)
    with errors_as_messages(traceback):
        progress, callback = _progress()
        with progress:
            from needle.train.run import Run
            from needle.train.tasks import TaskOptions

            if resume:
                assert out is not None
                run = Run.resume(out, task, epochs, [callback])
            else:
                if epochs is not None:
                    recipe["epochs"] = epochs
                folder = out or _new_folder(task)
                task_options = TaskOptions(data, model, seed or 0)
                run = Run(
                    task,
                    folder,
                    task_options,
                    recipe,
                    [callback],
                    compile=not eager,
                    precision=(precision or Precision.f32).dtype,
                )
            _introduce(run)
            result = run.train()
            final = None if result.interrupted is not None else run.finish()
        if final is None:
            assert result.interrupted is not None
            _say_interrupted(run, task)
            raise typer.Exit(128 + result.interrupted)
        _say_results(run, final)


@app.command("eval")
def evaluate(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a run.")],
    checkpoint: Annotated[Which, typer.Option(help="Which state of the model.")] = Which.last,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the data, if it has moved.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="The run's task, if it is one of your own: MODULE:FUNCTION."),
    ] = None,
    eager: Annotated[
        bool,
        typer.Option("--eager", help="Run op by op instead of compiling the step; slower."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    traceback: Traceback = False,
) -> None:
    """Evaluate the model of a run on its test data."""
    with errors_as_messages(traceback):
        from needle.train.run import evaluate_run

        config, loaded, metrics = evaluate_run(
            run_dir, checkpoint.value, task, data, compile=False if eager else None
        )
    if as_json:
        typer.echo(json.dumps({"task": config.task, "checkpoint": checkpoint.value, **metrics}))
        return
    name = f"{loaded.name} · {loaded.model_name}" if loaded.model_name else loaded.name
    typer.echo(f"{name}, {checkpoint.value} checkpoint, after epoch {metrics['epoch']}")
    for key, value in metrics.items():
        if key.startswith("test_"):
            shown = f"{value:.2%}" if key == "test_accuracy" else f"{value:.4f}"
            typer.echo(f"  {key.replace('_', ' '):<16}{shown}")


@app.command()
def info(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show versions, processor, cores, dtypes and folders."""
    from needle.cli.info import collect, render

    found = collect()
    typer.echo(json.dumps(found, indent=2) if as_json else render(found))


def _check_resume(out: Path | None, given: dict[str, Any]) -> None:
    if out is None:
        raise typer.BadParameter("give the folder of the run with --out", param_hint="--resume")
    changed = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if changed:
        raise typer.BadParameter(
            f"a run goes on with the options it was started with: leave out {', '.join(changed)} "
            "(only --epochs may change)",
            param_hint="--resume",
        )


def _progress() -> tuple[AbstractContextManager[object], Callback]:
    from needle.cli.progress import BarProgress, PlainProgress

    if is_interactive():
        bar = BarProgress()
        return bar, bar
    return nullcontext(), PlainProgress(typer.echo)


def _new_folder(task: str) -> Path:
    from datetime import datetime

    name = Path(task.rpartition(":")[0]).stem if ":" in task else task
    stem = f"{name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    folder, count = Path("runs") / stem, 1
    while folder.exists():
        count += 1
        folder = Path("runs") / f"{stem}-{count}"
    return folder


def _introduce(run: Run) -> None:
    task, trainer = run.task, run.trainer
    parameters = sum(parameter.size for parameter in task.model.parameters())
    title = f"{task.name} · {task.model_name}" if task.model_name else task.name
    typer.echo(
        f"{title}: {parameters:,} parameters, {len(task.train_data):,} examples to train on, "
        f"{len(task.test_data):,} to test on"
    )
    for note in task.notes:
        typer.echo(f"note: {note}")
    if run.resumed_at:
        typer.echo(f"continuing after step {trainer.step:,} of {trainer.total_steps:,}")


def _say_interrupted(run: Run, task: str) -> None:
    typer.echo(
        f"\nStopped in epoch {run.trainer.epoch + 1} after step {run.trainer.step:,}; "
        f"everything is saved in {run.checkpoint_path}.\n"
        f"Continue with: needle train {task} --out {run.folder} --resume"
    )


def _say_results(run: Run, final: Record) -> None:
    if "test_accuracy" in final:
        outcome = f"test accuracy {final['test_accuracy']:.2%}"
    elif "test_bits" in final:
        bits, perplexity = final["test_bits"], final["test_perplexity"]
        outcome = (
            f"test loss {final['test_loss']:.4f} ({bits:.3f} bits, perplexity {perplexity:.2f})"
        )
    else:
        outcome = f"test loss {final['test_loss']:.4f}"
    epochs = f"{final['epoch']} epoch{'s' if final['epoch'] != 1 else ''}"
    typer.secho(f"{outcome} after {epochs} in {duration(final['seconds'])}", bold=True)
    typer.echo(f"  report      {run.report_path}")
    typer.echo(f"  metrics     {run.metrics_path}")
    typer.echo(f"  checkpoint  {run.checkpoint_path}")
