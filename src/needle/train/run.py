"""A run: a task trained in a folder, from options to report; and its evaluation later."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from needle.data import DataLoader, Dataset
from needle.errors import ArgumentError, CheckpointError, NeedleError
from needle.random import manual_seed
from needle.train.checkpoint import load_checkpoint
from needle.train.evaluation import evaluate
from needle.train.metrics import MetricsWriter, Record, read_metrics
from needle.train.outcome import describe_outcome, report_data
from needle.train.report import write_report
from needle.train.steps import EvaluationStep
from needle.train.tasks import Recipe, Task, TaskOptions, load_task
from needle.train.trainer import Callback, Trainer, TrainingResult
from needle.train.tuning import make_optimizer, make_scheduler

TEST_BATCH = 256  # at most


@dataclass(frozen=True)
class RunConfig:
    """What a run was asked to do, resolved: with it, the run can be repeated.

    Attributes:
        task: The task's name, or `MODULE:FUNCTION`.
        data: The data folder as an absolute path, or None.
        model: The model's name, or None for the task's default.
        seed: The seed of everything random.
        recipe: How to train.
        compile: Whether steps are compiled.
        precision: What model and loss compute in: `"float32"` or `"bfloat16"`.
    """

    task: str
    data: str | None
    model: str | None
    seed: int
    recipe: Recipe
    compile: bool = True
    precision: str = "float32"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for the checkpoint."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """Return the configuration that `to_json` gave.

        Raises:
            CheckpointError: The values are not those of a run.
        """
        try:
            return cls(**{**values, "recipe": Recipe(**values["recipe"])})
        except (TypeError, KeyError, ArgumentError) as error:
            raise CheckpointError(f"the configuration is not that of a run: {error}") from None


class Run:
    """A task being trained in a folder.

    The folder gets `metrics.jsonl`, `checkpoints/last.json` and `best.json` with their tensors, and
    `report.html`.

    Args:
        task: The name of a task; see `load_task`.
        folder: Where the results go.
        options: Data, model and seed.
        recipe: What to change in the task's recipe, by name.
        callbacks: Watchers of the training.
        state: What a checkpoint of the run in the folder holds; see `resume`.
        compile: Whether training and evaluation steps are compiled.
        precision: What model and loss compute in: `"float32"` or `"bfloat16"`.

    Raises:
        ArgumentError: An option makes no sense, or there is a run in the folder and no `state`.
        CheckpointError: The state does not fit the task.
        DataError: The data is missing or damaged.

    Example:
        >>> import tempfile
        >>> from needle.train import Run
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = Run("digits", folder, recipe={"epochs": 2})
        ...     result = run.train()
        ...     accuracy = run.finish()["test_accuracy"]
        >>> accuracy > 0.5
        True
    """

    def __init__(
        self,
        task: str,
        folder: Path | str,
        options: TaskOptions | None = None,
        recipe: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] = (),
        state: Mapping[str, Any] | None = None,
        compile: bool = True,
        precision: str = "float32",
    ) -> None:
        self.folder = Path(folder)
        options = options or TaskOptions()
        if state is None and self.checkpoint_path.exists():
            raise ArgumentError(
                f"{self.folder} already holds a run; continue it with --resume, "
                "or choose another folder with --out"
            )
        self.started = datetime.now(timezone.utc).astimezone()
        manual_seed(options.seed)
        self.task = load_task(task, options)
        self.config = RunConfig(
            task,
            None if options.data is None else str(options.data.expanduser().resolve()),
            options.model,
            options.seed,
            replace(self.task.recipe, **(recipe or {})),
            compile,
            precision,
        )
        self.trainer = _make_trainer(self.task, self.config, self.folder, callbacks)
        if state is not None:
            check_signature(self.checkpoint_path, state, self.task)
            self.trainer.restore(state, self.checkpoint_path)
        self.resumed_at = self.trainer.step

    @classmethod
    def resume(
        cls,
        folder: Path | str,
        task: str | None = None,
        epochs: int | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Run:
        """Return the run that is in `folder`, ready to be continued.

        Args:
            folder: Where the run was.
            task: The name of its task. Needed for a task of one's own: a checkpoint cannot make
                needle import a module that the user did not name.
            epochs: The number of epochs in all, if it is to be another one than before.
            callbacks: Watchers of the training.

        Raises:
            CheckpointError: The run is missing, damaged or of another task.
        """
        path = Path(folder) / "checkpoints" / "last.json"
        state = load_checkpoint(path)
        config = saved_config(path, state, task)
        recipe = asdict(config.recipe)
        if epochs is not None:
            recipe["epochs"] = epochs
        options = task_options(config)
        return cls(
            config.task,
            folder,
            options,
            recipe,
            callbacks,
            state,
            config.compile,
            config.precision,
        )

    @property
    def checkpoint_path(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoints" / "last.json"

    @property
    def metrics_path(self) -> Path:
        """The recorded metrics."""
        return self.folder / "metrics.jsonl"

    @property
    def report_path(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    def train(self) -> TrainingResult:
        """Train to the last epoch, or until a signal asks to stop; see `Trainer.fit`."""
        return self.trainer.fit()

    def finish(self) -> Record:
        """Evaluate the trained model, record the outcome and write the report.

        Returns:
            The final record: `test_loss`, and `test_accuracy` for a classifier.
        """
        clock = time.perf_counter()
        batches = _test_loader(self.task.test_data)
        outcome = describe_outcome(self.task, batches, self.trainer.evaluation_step)
        final: Record = {
            "event": "final",
            "epoch": self.trainer.epoch,
            "step": self.trainer.step,
            **outcome.metrics,
            "parameters": outcome.parameters,
            "seconds": round(self.trainer.seconds, 3),
        }
        with MetricsWriter(self.metrics_path) as metrics:
            metrics.write(final)
        timing = {
            "started": self.started.isoformat(" ", "seconds"),
            "finished": datetime.now(timezone.utc).astimezone().isoformat(" ", "seconds"),
            "training": f"{self.trainer.seconds:.2f} s",
            "compiling": f"{self.trainer.compile_seconds:.2f} s" if self.config.compile else "none",
            "last evaluation": f"{time.perf_counter() - clock:.2f} s",
        }
        if self.resumed_at:
            timing["resumed"] = f"at step {self.resumed_at:,}"
        records = read_metrics(self.metrics_path)
        data = report_data(self.task, self.config.to_json(), outcome, records, timing)
        write_report(data, self.report_path)
        return final


def evaluate_run(
    folder: Path | str,
    which: str = "last",
    task: str | None = None,
    data: Path | None = None,
    compile: bool | None = None,
) -> tuple[RunConfig, Task, Record]:
    """Rebuild the model of a run from its checkpoint and evaluate it on the test data.

    Args:
        folder: The run's folder.
        which: The checkpoint, `"last"` or `"best"`.
        task: The name of its task, needed for a task of one's own.
        data: The data folder, if it has moved.
        compile: Whether the evaluation step is compiled; by default, if the run's was.

    Returns:
        The run's configuration, its task with the trained model, and the test metrics.

    Raises:
        CheckpointError: The checkpoint is missing, damaged or of another task.
        DataError: The data is missing or damaged.
    """
    path = Path(folder) / "checkpoints" / f"{which}.json"
    state = load_checkpoint(path)
    config = saved_config(path, state, task)
    options = task_options(config)
    manual_seed(config.seed)
    loaded = load_task(config.task, options if data is None else replace(options, data=data))
    check_signature(path, state, loaded)
    try:
        loaded.model.load_state_dict(state["model"])
    except (KeyError, NeedleError) as error:
        raise CheckpointError(f"{path}: does not fit the model of {config.task}: {error}") from None
    batches = _test_loader(loaded.test_data)
    step = EvaluationStep(
        loaded.model,
        loaded.loss,
        loaded.kind,
        compiled=config.compile if compile is None else compile,
        precision=config.precision,
    )
    meter = evaluate(loaded.model, loaded.loss, batches, loaded.kind, step=step)
    assert meter is not None
    return config, loaded, {"epoch": state["epoch"], **meter.metrics("test_")}


def saved_config(path: Path, state: Mapping[str, Any], task: str | None = None) -> RunConfig:
    """Return the configuration in a checkpoint's state.

    Args:
        path: Where the state comes from.
        state: What the checkpoint holds.
        task: The task that it has to be of.

    Raises:
        CheckpointError: It is no run's, of another task than `task`, or of a task of the user's own
            and `task` is not given.
    """
    try:
        config = RunConfig.from_json(state.get("config", {}).get("run", {}))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if task is None and ":" in config.task:
        raise CheckpointError(
            f"{path}: its task is {config.task}, a function that needle runs only if you name it: "
            f"give --task {config.task}"
        )
    if task is not None and task != config.task:
        raise CheckpointError(f"{path}: is a run of the task {config.task}, not of {task}")
    return config


def task_options(config: RunConfig) -> TaskOptions:
    """Return the options that a task was made with."""
    data = None if config.data is None else Path(config.data)
    return TaskOptions(data, config.model, config.seed)


def _make_trainer(
    task: Task, config: RunConfig, folder: Path, callbacks: Sequence[Callback]
) -> Trainer:
    recipe = config.recipe
    drop_last = recipe.drop_last and len(task.train_data) >= recipe.batch_size
    train_loader: DataLoader[Any] = DataLoader(
        task.train_data, recipe.batch_size, shuffle=True, drop_last=drop_last
    )
    optimizer = make_optimizer(recipe, task.model)
    return Trainer(
        task.model,
        task.loss,
        optimizer,
        train_loader,
        _test_loader(task.test_data),
        epochs=recipe.epochs,
        kind=task.kind,
        scheduler=make_scheduler(recipe, optimizer, recipe.epochs * len(train_loader)),
        schedule_by="step",
        clip_norm=recipe.clip_norm,
        folder=folder,
        callbacks=callbacks,
        compile=config.compile,
        precision=config.precision,
        config={"run": config.to_json(), "signature": dict(task.signature)},
    )


def _test_loader(data: Dataset[Any]) -> DataLoader[Any]:
    """Return batches of one size where that can be: a smaller last one is compiled for, too."""
    sizes = range(TEST_BATCH, TEST_BATCH // 2, -1)
    whole = (size for size in sizes if len(data) % size == 0)
    return DataLoader(data, batch_size=next(whole, TEST_BATCH))


def check_signature(path: Path, state: Mapping[str, Any], task: Task) -> None:
    """Check that a task has the data that a checkpoint's model was trained for.

    Raises:
        CheckpointError: It has not; the message names what differs.
    """
    saved = state.get("config", {}).get("signature", {})
    for name, value in task.signature.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{path}: was trained with another {name} than the data has now: "
                f"{str(saved.get(name))[:60]!r} against {str(value)[:60]!r}"
            )
