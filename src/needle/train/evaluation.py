"""Measuring a model on data it was not trained on; the model and the random state stay as found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle import random
from needle.config import no_grad
from needle.creation import asarray
from needle.errors import DataError
from needle.nn import Module
from needle.train.meters import Kind, Meter
from needle.train.steps import EvaluationStep, Loss

#: Called after each batch with the number of batches done; returns whether to go on.
Progress = Callable[[int], bool]


def evaluate(
    model: Module,
    loss: Loss,
    batches: Iterable[Any],
    kind: Kind = "classification",
    progress: Progress | None = None,
    step: EvaluationStep | None = None,
) -> Meter | None:
    """Measure a model over all batches, in evaluation mode and without gradients.

    Args:
        model: Called with all parts of a batch but the last.
        loss: Called with the model's outputs and the last part of the batch; a scalar Tensor.
        batches: A loader.
        kind: The kind of task, which decides on the metrics.
        progress: Called after each batch with the number of batches done; false stops.
        step: What runs on each batch, such as a compiled step for this model, loss and kind; by
            default it runs op by op.

    Returns:
        The meter that counted all batches, or None if `progress` stopped it.

    Raises:
        DataError: There is no batch.

    Example:
        >>> import needle as ndl
        >>> from needle.train import evaluate
        >>> data = ndl.data.Digits(train=False)
        >>> loader = ndl.data.DataLoader(data, batch_size=256)
        >>> model = ndl.nn.Sequential(ndl.nn.Flatten(), ndl.nn.Linear(64, 10))
        >>> meter = evaluate(model, ndl.nn.functional.cross_entropy, loader)
        >>> meter.examples == len(data)
        True
    """
    meter = Meter(kind)
    step = step or EvaluationStep(model, loss, kind, compiled=False)
    with evaluation_mode(model):
        for done, batch in enumerate(batches, start=1):
            inputs, targets = split_batch(batch)
            meter.update(*step(inputs, targets), targets)
            if progress is not None and not progress(done):
                return None
    if not meter.examples:
        raise DataError("evaluate: the data set is empty")
    return meter


@dataclass(frozen=True)
class Predictions:
    """What a classifier says about each example of a data set, in its order.

    Attributes:
        probabilities: `[examples, classes]`, float64.
        true: The classes, `[examples]`.
    """

    probabilities: NDArray[np.float64]
    true: NDArray[np.int64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable classes, `[examples]`."""
        return np.argmax(self.probabilities, axis=1)

    def worst_mistakes(self, count: int) -> NDArray[np.int64]:
        """Return the examples that are predicted wrongly, highest loss first, at most `count`."""
        rows = np.arange(len(self.true))
        wrong = rows[self.predicted != self.true]
        order = np.argsort(self.probabilities[wrong, self.true[wrong]], kind="stable")
        return wrong[order[:count]]


def predict(
    model: Module, batches: Iterable[Any], step: EvaluationStep | None = None
) -> Predictions:
    """Return the probabilities that a classifier gives to each example.

    Args:
        model: Returns logits, `[batch, classes]`.
        batches: A loader that does not shuffle.
        step: What runs on each batch, such as a compiled step for this classifier; by default the
            model runs op by op.

    Raises:
        DataError: There is no batch.
    """
    logits, labels = [], []
    with evaluation_mode(model):
        for batch in batches:
            inputs, targets = split_batch(batch)
            outputs = model(*inputs) if step is None else step(inputs, targets)[1]
            logits.append(outputs.numpy().astype(np.float64))
            labels.append(np.asarray(targets.numpy(), np.int64))
    if not logits:
        raise DataError("predict: the data set is empty")
    scores = np.concatenate(logits)
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return Predictions(shifted / shifted.sum(axis=1, keepdims=True), np.concatenate(labels))


def split_batch(batch: Any) -> tuple[tuple[Any, ...], Any]:
    """Return the model's arguments and the targets of a batch: the last part is the targets.

    Raises:
        DataError: The batch has fewer than two parts.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise DataError(
            "a batch must be a tuple (inputs, targets) or (input, input, …, targets); "
            f"got a {type(batch).__name__}"
            + (f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else "")
        )
    return tuple(batch[:-1]), batch[-1]


@contextlib.contextmanager
def evaluation_mode(model: Module) -> Iterator[None]:
    """Put a model into evaluation mode; on leaving, restore its mode and the random state.

    Training must not depend on whether, or how often, it is interrupted by an evaluation.
    """
    generator = random.default_generator()
    state = generator.state.numpy().copy()
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        generator.set_state(asarray(state))
