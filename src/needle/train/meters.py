"""Running means over batches: loss, and what can be said about a task of the given kind."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np

from needle.errors import ArgumentError, ShapeError
from needle.tensor import Tensor

Kind = Literal["classification", "language", "regression"]


class Meter:
    """Means over the examples of all batches so far.

    ==================  ============================  ===========================================
    kind                an example is                 metrics besides the loss
    ==================  ============================  ===========================================
    `"classification"`  one entry of the first axis   `accuracy`: share of correct argmaxes
    `"language"`        one target character          `bits` = loss / ln 2, `perplexity` = e^loss
    `"regression"`      one entry of the first axis   none
    ==================  ============================  ===========================================

    The sums are Python floats, added in the order of the batches: the same run gives the same bits.

    Args:
        kind: The kind of task.

    Example:
        >>> import needle as ndl
        >>> from needle.train import Meter
        >>> meter = Meter("classification")
        >>> meter.update(0.5, ndl.asarray([[2.0, 1.0], [0.0, 3.0]]), ndl.asarray([0, 0]))
        >>> meter.metrics("test_")
        {'test_loss': 0.5, 'test_accuracy': 0.5}
    """

    def __init__(self, kind: Kind) -> None:
        if kind not in get_args(Kind):
            raise ArgumentError(
                f"kind must be one of {', '.join(map(repr, get_args(Kind)))}; got {kind!r}"
            )
        self.kind: Kind = kind
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self.examples = 0
        self.loss = 0.0
        self.correct = 0

    def update(self, loss: float, outputs: Any, targets: Any) -> None:
        """Count a batch.

        Args:
            loss: Its mean loss.
            outputs: What the model returned; `[batch, classes]` for classification.
            targets: Its targets; class indices `[batch]` for classification.

        Raises:
            ShapeError: Outputs and targets of a classification do not fit.
        """
        count = count_examples(targets, self.kind)
        self.examples += count
        self.loss += loss * count
        if self.kind == "classification":
            self.correct += _count_correct(outputs, targets)

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Return the means by name, each name with `prefix` before it."""
        loss = self.loss / self.examples if self.examples else math.nan
        found = {"loss": loss}
        if self.kind == "classification":
            found["accuracy"] = self.correct / self.examples if self.examples else math.nan
        elif self.kind == "language":
            found["bits"] = loss / math.log(2)
            found["perplexity"] = math.exp(loss) if loss < 700 else math.inf
        return {prefix + name: value for name, value in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums."""
        return {"examples": self.examples, "loss": self.loss, "correct": self.correct}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self.examples, self.loss = state["examples"], state["loss"]
        self.correct = state["correct"]


def count_examples(targets: Any, kind: Kind) -> int:
    """Return how many examples a batch with these targets has."""
    if not isinstance(targets, (Tensor, np.ndarray)):
        return len(targets)
    if kind == "language":
        return int(targets.size)
    return int(targets.shape[0]) if targets.ndim else 1


def _count_correct(outputs: Any, targets: Any) -> int:
    logits, labels = _array(outputs), _array(targets)
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ShapeError(
            "accuracy: expected outputs [batch, classes] and class indices [batch], got outputs "
            f'{logits.shape} and targets {labels.shape}; use kind="regression" for tasks '
            "without classes"
        )
    return int(np.count_nonzero(logits.argmax(axis=1) == labels))


def _array(value: Any) -> Any:
    return value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)
