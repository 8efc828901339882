"""A task: a model, data, a loss, and how they are best trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from needle.data import Dataset
from needle.errors import ArgumentError
from needle.nn import Module
from needle.train.meters import Kind
from needle.train.steps import Loss

OPTIMIZERS = ("adagrad", "adam", "adamw", "rmsprop", "sgd")


@dataclass(frozen=True)
class TaskOptions:
    """What the user asked for, before the task decides on the rest.

    Attributes:
        data: The folder with the data; None if none was given.
        model: The name of a model; None means the task's default.
        seed: The seed, which is already set when a task is made.
    """

    data: Path | None = None
    model: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        epochs: Passes through the training data.
        batch_size: Examples per step.
        optimizer: `adagrad`, `adam`, `adamw`, `rmsprop` or `sgd` (with Nesterov momentum 0.9).
        lr: The highest learning rate.
        weight_decay: Decay of the weights; biases and normalisation are left alone.
        schedule: `"cosine"` warms up for the first `warmup` of all steps and then falls to zero
            along a half cosine; `"constant"` does not change.
        warmup: Share of the steps.
        clip_norm: The largest 2-norm of the gradients; None does not clip.
        drop_last: Whether an epoch ends before its last batch, if that is smaller than the others:
            it would take a compilation of its own. What is left out is other data in each epoch.
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = 0.05
    clip_norm: float | None = None
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not (isinstance(value, int) and value >= 1):
                raise ArgumentError(f"{name} must be a whole number, at least 1; got {value!r}")
        if not self.lr > 0:
            raise ArgumentError(f"lr must be greater than 0; got {self.lr!r}")
        if not self.weight_decay >= 0:
            raise ArgumentError(f"weight_decay must not be negative; got {self.weight_decay!r}")
        if self.optimizer not in OPTIMIZERS:
            raise ArgumentError(
                f"there is no optimizer {self.optimizer!r}; choose one of {', '.join(OPTIMIZERS)}"
            )


@dataclass
class Task:
    """What `needle train` trains; your own function can return one.

    Attributes:
        model: Called with all parts of a batch but the last.
        train_data: Examples `(inputs, targets)` to train on.
        test_data: Examples to evaluate on.
        loss: Called with the model's outputs and the targets; a scalar Tensor.
        name: What to call it in reports.
        model_name: What to call the model.
        kind: `"classification"` (logits `[batch, classes]`, class indices `[batch]`),
            `"language"` or `"regression"`.
        recipe: How to train it, unless the user says otherwise.
        class_names: The names of the classes, for reports.
        picture: Returns a test example as a picture, uint8 `[height, width]` or
            `[height, width, 3]`, for the report's mistakes.
        sample: Returns a prompt and what the model makes of it, for language models.
        notes: Remarks that everyone who reads the results has to know.
        signature: JSON values that a checkpoint and the data have to agree on, such as the
            vocabulary, by name.

    Example:
        A module `spirals.py`, trained by `needle train spirals:task`:

        >>> import numpy as np
        >>> import needle as ndl
        >>> from needle.train import Recipe, Task
        >>> def task():
        ...     random = np.random.default_rng(0)
        ...     angle, arm = random.uniform(0.5, 4, 600), random.integers(0, 2, 600)
        ...     turn = angle * 2 + arm * np.pi
        ...     x = np.stack([angle * np.cos(turn), angle * np.sin(turn)], 1).astype(np.float32)
        ...     return Task(
        ...         model=ndl.models.MLP(2, 64, 2),
        ...         train_data=ndl.data.TensorDataset(x[:500], arm[:500]),
        ...         test_data=ndl.data.TensorDataset(x[500:], arm[500:]),
        ...         loss=ndl.nn.functional.cross_entropy,
        ...         recipe=Recipe(epochs=40, lr=0.01),
        ...     )
        >>> len(task().train_data)
        500
    """

    model: Module
    train_data: Dataset[Any]
    test_data: Dataset[Any]
    loss: Loss
    name: str = "task"
    model_name: str = ""
    kind: Kind = "classification"
    recipe: Recipe = field(default_factory=Recipe)
    class_names: Sequence[str] = ()
    picture: Callable[[int], NDArray[np.uint8]] | None = None
    sample: Callable[[], tuple[str, str]] | None = None
    notes: Sequence[str] = ()
    signature: Mapping[str, Any] = field(default_factory=dict)
