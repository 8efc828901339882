"""The training loop: any model, any loss, any loader; evaluated, recorded, saved and resumable."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Any, Literal, Protocol

import numpy as np

from needle import random
from needle.errors import AnomalyError, ArgumentError, CheckpointError, DataError, NeedleError
from needle.nn import Module
from needle.optim import Optimizer
from needle.tensor import Tensor
from needle.train.checkpoint import load_checkpoint, save_checkpoint, tag_checkpoint
from needle.train.evaluation import evaluate, split_batch
from needle.train.meters import Kind, Meter, count_examples
from needle.train.metrics import MetricsWriter, Record, keep_metrics
from needle.train.signals import StopSignals
from needle.train.steps import Compilation, EvaluationStep, Loss, TrainingStep

STEP_RECORDS = 200  # about how many step records a run writes


class Loader(Protocol):
    """What a trainer iterates over: each `iter` is an epoch of `(inputs, targets)` batches.

    To continue in the middle of an epoch it also needs `state_dict` and `load_state_dict`, which
    `needle.data.DataLoader` has.
    """

    def __iter__(self) -> Iterator[Any]:
        """Start an epoch."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""


class Scheduler(Protocol):
    """What a trainer needs of a learning rate scheduler."""

    def step(self) -> None:
        """Set the next learning rate."""

    def state_dict(self) -> dict[str, Any]:
        """Return its state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""


class Callback:
    """Watches a training: override what you need. Callbacks must not change the training."""

    def on_compile(self, trainer: Trainer, compilation: Compilation) -> None:
        """After the training step or the evaluation step was compiled."""

    def on_step(self, trainer: Trainer) -> None:
        """After each optimizer step."""

    def on_evaluation(self, trainer: Trainer, done: int) -> None:
        """After each batch of an evaluation; `done` of `len(trainer.test_loader)` batches."""

    def on_epoch(self, trainer: Trainer, record: Record) -> None:
        """After each epoch and its evaluation, with its record."""


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    Attributes:
        history: The records of all epochs.
        interrupted: The signal that stopped it before its end, or None.
    """

    history: Sequence[Record]
    interrupted: Signals | None


class Trainer:
    """Trains a model and keeps all that is needed to stop and to go on.

    With a `folder`, `fit` writes `metrics.jsonl` and `checkpoints/last.json` there after every
    epoch, tags the best epoch `checkpoints/best.json`, and on Ctrl-C or SIGTERM finishes the step,
    saves and returns. `resume` then continues **bit for bit** as if nothing had happened: model,
    optimizer, schedule, random numbers, position in the data, and metrics.

    Training and evaluation steps are compiled with `needle.compile`: their Python runs once for
    each signature, such as full batches and a smaller last one, and each step is a native call from
    then on. What cannot be compiled is an error, never a silent detour; `compile=False` runs
    everything op by op. The results of both differ in rounding only.

    Args:
        model: Called with all parts of a batch but the last.
        loss: Called with the model's outputs and the last part of the batch; a scalar Tensor.
        optimizer: Updates the model's parameters.
        train_loader: Batches to train on.
        test_loader: Batches to evaluate on after each epoch; None leaves the evaluation out.
        epochs: How many times to go through the training data, in all.
        kind: The kind of task: `"classification"`, `"language"` or `"regression"`.
        scheduler: Sets the learning rate.
        schedule_by: Whether the scheduler steps after every `"step"` or every `"epoch"`.
        clip_norm: Scales gradients down to this global 2-norm; None leaves them alone.
        folder: Where metrics and checkpoints go; None keeps nothing.
        log_every: Steps between step records; None means about 200 records in all.
        save_every: Steps between checkpoints within an epoch; None means none.
        callbacks: Watchers, such as a progress bar.
        compile: Whether steps are compiled.
        keep_grads: Whether compiled steps keep the `grad` of parameters, for callbacks that look at
            them; otherwise, using them is an error.
        precision: What model and loss compute in: `"float32"`, or `"bfloat16"` for `autocast`, with
            parameters, their gradients and updates in float32.
        config: JSON values that are saved in each checkpoint, to say what was trained and how.

    Raises:
        ArgumentError: An argument makes no sense.
        DataError: A loader has no batches.

    Example:
        >>> import needle as ndl
        >>> from needle.train import Trainer
        >>> _ = ndl.manual_seed(0)
        >>> data = ndl.data.DataLoader(ndl.data.Digits(train=True), batch_size=64, shuffle=True)
        >>> model = ndl.nn.Sequential(ndl.nn.Flatten(), ndl.nn.Linear(64, 10))
        >>> optimizer = ndl.optim.Adam(model.parameters(), lr=0.01)
        >>> loss = ndl.nn.functional.cross_entropy
        >>> result = Trainer(model, loss, optimizer, data, epochs=2).fit()
        >>> result.history[-1]["train_accuracy"] > 0.8
        True
    """

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        train_loader: Loader,
        test_loader: Loader | None = None,
        *,
        epochs: int,
        kind: Kind = "classification",
        scheduler: Scheduler | None = None,
        schedule_by: Literal["step", "epoch"] = "epoch",
        clip_norm: float | None = None,
        folder: str | os.PathLike[str] | None = None,
        log_every: int | None = None,
        save_every: int | None = None,
        callbacks: Sequence[Callback] = (),
        compile: bool = True,
        keep_grads: bool = False,
        precision: str = "float32",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        _check_positive(epochs=epochs, log_every=log_every, save_every=save_every)
        _check_positive(clip_norm=clip_norm)
        if schedule_by not in ("step", "epoch"):
            raise ArgumentError(f'schedule_by must be "step" or "epoch", got {schedule_by!r}')
        for name, loader in (("train_loader", train_loader), ("test_loader", test_loader)):
            if loader is not None and len(loader) == 0:
                raise DataError(f"Trainer: {name} has no batches: its data set is empty")
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.train_loader = train_loader
        self.test_loader = test_loader
        self.epochs = epochs
        self.kind: Kind = kind
        self.scheduler = scheduler
        self.schedule_by = schedule_by
        self.clip_norm = clip_norm
        self.folder = None if folder is None else Path(folder)
        self.log_every = log_every or max(1, epochs * len(train_loader) // STEP_RECORDS)
        self.save_every = save_every
        self.callbacks = tuple(callbacks)
        self.config = dict(config or {})
        self.compile = compile
        self.training_step = TrainingStep(
            model,
            loss,
            optimizer,
            kind,
            clip_norm,
            self._check_loss,
            compiled=compile,
            keep_grads=keep_grads,
            on_compile=self._note_compilation,
            precision=precision,
        )
        self.evaluation_step = EvaluationStep(
            model,
            loss,
            kind,
            compiled=compile,
            on_compile=self._note_compilation,
            precision=precision,
        )
        #: Epochs that are finished and evaluated.
        self.epoch = 0
        #: Optimizer steps so far.
        self.step = 0
        #: Seconds spent training (with compiling the step, without evaluation and saving), over
        #: all parts of the run.
        self.seconds = 0.0
        #: Examples (characters) per second in the current epoch, with loading data, without
        #: compiling.
        self.throughput = 0.0
        #: The records of the finished epochs.
        self.history: list[Record] = []
        #: Means over the current epoch so far.
        self.meter = Meter(kind)
        self._recent = Meter(kind)  # since the last step record
        self._awaits_evaluation = False  # the current epoch's batches are done
        self._metrics: MetricsWriter | None = None

    @property
    def checkpoint_path(self) -> Path | None:
        """Where the newest state is saved."""
        return None if self.folder is None else self.folder / "checkpoints" / "last.json"

    @property
    def metrics_path(self) -> Path | None:
        """Where metrics are recorded."""
        return None if self.folder is None else self.folder / "metrics.jsonl"

    @property
    def total_steps(self) -> int:
        """The number of optimizer steps in the whole training."""
        return self.epochs * len(self.train_loader)

    @property
    def compile_seconds(self) -> float:
        """How long compiling steps took in this process."""
        return self.training_step.seconds + self.evaluation_step.seconds

    @property
    def learning_rate(self) -> float:
        """The learning rate of the optimizer's first parameter group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def fit(self) -> TrainingResult:
        """Train until the last epoch is done, or a signal asks to stop.

        Returns:
            The records of the epochs, and the signal if one came.

        Raises:
            AnomalyError: The loss became NaN or infinite.
            DataError: A batch cannot be used, for example because its labels hold NaN.
            CheckpointError: A checkpoint could not be written.
        """
        with self._open_metrics() as self._metrics, StopSignals() as stop:
            while self.epoch < self.epochs and stop.received is None:
                self._awaits_evaluation = self._awaits_evaluation or self._train_epoch(stop)
                if not (self._awaits_evaluation and self._finish_epoch(stop)):
                    # Stopped within the epoch: its remaining batches, or its evaluation, are left.
                    self.save()
        return TrainingResult(self.history, stop.received)

    def save(self) -> Path | None:
        """Save the whole state to `checkpoint_path`; does nothing without a folder."""
        path = self.checkpoint_path
        return None if path is None else save_checkpoint(self.state_dict(), path)

    def resume(self, path: str | os.PathLike[str] | None = None) -> None:
        """Load a checkpoint, so that `fit` continues where it was saved.

        Args:
            path: The checkpoint's JSON file; None means this trainer's own newest.

        Raises:
            CheckpointError: It is missing, damaged, or of another model, optimizer or data set.
        """
        path = path or self.checkpoint_path
        if path is None:
            raise ArgumentError("Trainer.resume: there is no folder; give the checkpoint's path")
        self.restore(load_checkpoint(path), path)

    def restore(self, state: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
        """Do `load_state_dict`; errors name `source`, the file that the state came from.

        Raises:
            CheckpointError: The state is no training's, or that of another one.
        """
        try:
            self.load_state_dict(state)
        except KeyError as error:
            raise CheckpointError(f"{source}: is no training state: it has no {error}") from None
        except NeedleError as error:
            raise CheckpointError(f"{source}: does not fit this training: {error}") from error

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the rest of the training depends on."""
        save_loader = getattr(self.train_loader, "state_dict", None)
        return {
            "config": self.config,
            "epoch": self.epoch,
            "step": self.step,
            "awaits_evaluation": self._awaits_evaluation,
            "seconds": self.seconds,
            "history": self.history,
            "meter": self.meter.state_dict(),
            "recent": self._recent.state_dict(),
            "loader": save_loader() if save_loader is not None else None,
            "random": random.default_generator().state,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "model": self.model.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            StateDictError: It is the state of another model, optimizer or data set.
            CheckpointError: It was saved within an epoch and the loader cannot continue there.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if (self.scheduler is None) != (state["scheduler"] is None):
            raise CheckpointError("only one of checkpoint and trainer has a scheduler")
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        if state["loader"] is not None:
            self.train_loader.load_state_dict(state["loader"])  # type: ignore[attr-defined]
        elif state["meter"]["examples"] and not state["awaits_evaluation"]:
            raise CheckpointError(
                "it was saved within an epoch, and the data loader cannot continue there; "
                "give it state_dict and load_state_dict, as needle.data.DataLoader has"
            )
        random.default_generator().set_state(state["random"])
        self.epoch, self.step = state["epoch"], state["step"]
        self._awaits_evaluation = state["awaits_evaluation"]
        self.seconds, self.history = state["seconds"], list(state["history"])
        self.meter.load_state_dict(state["meter"])
        self._recent.load_state_dict(state["recent"])

    def train_step(self, batch: Any) -> float:
        """Take one optimizer step on a batch, and return its loss."""
        inputs, targets = split_batch(batch)
        self._check_targets(targets)
        value, outputs = self.training_step(inputs, targets)
        self._check_loss(value)
        self.meter.update(value, outputs, targets)
        self._recent.update(value, outputs, targets)
        return value

    def _train_epoch(self, stop: StopSignals) -> bool:
        """Train on the batches of the epoch that are left; false if stopped before its end."""
        self.model.train()
        first_example, began = self.meter.examples, self.seconds
        compiled = self.training_step.seconds
        mark = time.perf_counter()
        for batch in self.train_loader:
            self.train_step(batch)
            self.step += 1
            if self.scheduler is not None and self.schedule_by == "step":
                self.scheduler.step()
            self.seconds += time.perf_counter() - mark
            elapsed = self.seconds - began - (self.training_step.seconds - compiled)
            elapsed = max(elapsed, 1e-9)  # clocks may be coarse
            self.throughput = (self.meter.examples - first_example) / elapsed
            if self.step % self.log_every == 0:
                self._record_step()
            for callback in self.callbacks:
                callback.on_step(self)
            if stop.received is not None:
                return False
            if self.save_every is not None and self.step % self.save_every == 0:
                self.save()
            mark = time.perf_counter()
        return True

    def _finish_epoch(self, stop: StopSignals) -> bool:
        """Evaluate, record and save; false if stopped before the evaluation was complete."""
        test = self._evaluate(stop)
        if test is None:
            return False
        if self.scheduler is not None and self.schedule_by == "epoch":
            self.scheduler.step()
        self.epoch += 1
        record: Record = {
            "event": "epoch",
            "epoch": self.epoch,
            "step": self.step,
            **self.meter.metrics("train_"),
            **test,
            "learning_rate": self.learning_rate,
            "seconds": round(self.seconds, 3),
            "throughput": round(self.throughput, 1),
        }
        self.history.append(record)
        self.meter.reset()
        self._awaits_evaluation = False
        self._write(record)
        path = self.save()
        if path is not None and self._is_best(record):
            tag_checkpoint(path, "best")
        for callback in self.callbacks:
            callback.on_epoch(self, record)
        return True

    def _evaluate(self, stop: StopSignals) -> dict[str, float] | None:
        if self.test_loader is None:
            return {}

        def progress(done: int) -> bool:
            for callback in self.callbacks:
                callback.on_evaluation(self, done)
            return stop.received is None

        step = self.evaluation_step
        meter = evaluate(self.model, self.loss, self.test_loader, self.kind, progress, step)
        return None if meter is None else meter.metrics("test_")

    def _is_best(self, record: Record) -> bool:
        """Return whether no earlier epoch was better: by test accuracy if there is one, or loss."""
        part = "train" if self.test_loader is None else "test"
        if self.kind == "classification":
            name, sign = f"{part}_accuracy", 1.0
        else:
            name, sign = f"{part}_loss", -1.0
        best = max((sign * r[name] for r in self.history[:-1]), default=-math.inf)
        return bool(sign * record[name] > best)

    def _record_step(self) -> None:
        record: Record = {
            "event": "step",
            "epoch": self.epoch + 1,
            "step": self.step,
            "position": self.step / len(self.train_loader),
            **self._recent.metrics("train_"),
            "learning_rate": self.learning_rate,
            "seconds": round(self.seconds, 3),
        }
        self._recent.reset()
        self._write(record)

    def _write(self, record: Record) -> None:
        if self._metrics is not None:
            self._metrics.write(record)

    def _open_metrics(self) -> Any:
        path = self.metrics_path
        if path is None:
            return nullcontext()

        def happened(record: Record) -> bool:
            # What was recorded after the checkpoint will be recorded again.
            if record.get("event") == "epoch":
                return bool(record["epoch"] <= self.epoch)
            return record.get("event") == "step" and bool(record["step"] <= self.step)

        keep_metrics(path, happened)
        return closing(MetricsWriter(path))

    def _check_targets(self, targets: Any) -> None:
        if not isinstance(targets, Tensor):
            return
        if count_examples(targets, self.kind) == 0:
            raise DataError(f"{self._position()}: the batch is empty")
        values = targets.numpy()
        if values.dtype.kind not in "biu" and bool(np.isnan(values).any()):
            raise DataError(
                f"{self._position()}: {int(np.isnan(values).sum())} of {values.size} targets of "
                "the batch are NaN; remove or repair these examples"
            )

    def _check_loss(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise AnomalyError(self._diverged(loss))

    def _note_compilation(self, compilation: Compilation) -> None:
        for callback in self.callbacks:
            callback.on_compile(self, compilation)

    def _diverged(self, loss: float) -> str:
        path = self.checkpoint_path
        saved = ""
        if path is not None and path.exists():
            saved = f" The state after epoch {self.epoch} is saved in {path}."
        return (
            f"{self._position()}: the loss is {loss}, so training stops here.{saved} Ways out: "
            f"a lower learning rate (it is {self.learning_rate:g}), clip_norm=1.0, or, to see the "
            "first op that gives NaN or infinity, needle.set_detect_anomaly(True)"
            + (" with uncompiled steps (--eager, compile=False)" if self.compile else "")
        )

    def _position(self) -> str:
        return f"epoch {self.epoch + 1}, step {self.step + 1}"


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ArgumentError(f"Trainer: {name} must be greater than 0, got {value}")
