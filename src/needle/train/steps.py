"""One step of a training or of an evaluation: a native call each, or op by op."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from needle.compiled import Compiled, compile as compile_function
from needle.config import autocast
from needle.errors import ArgumentError, CompileError, TraceError
from needle.nn import Module
from needle.optim import Optimizer, clip_grad_norm_
from needle.tensor import Tensor
from needle.train.meters import Kind

Loss = Callable[[Any, Any], Tensor]

#: For how many signatures a step is compiled: full and last batches, in a few modes of the model.
BUDGET = 8
#: What models can compute in.
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Compilation:
    """That a step was compiled.

    Attributes:
        what: `"training step"` or `"evaluation step"`.
        batch: Examples in the batch that it was compiled for.
        seconds: How long that took; less when the code came from the cache.
    """

    what: str
    batch: int
    seconds: float

    def __str__(self) -> str:
        size = "" if self.batch == 0 else f" for batches of {self.batch:,}"
        return f"compiled the {self.what}{size} in {self.seconds:.2f} s"


class Step:
    """What is done with one batch; base of `TrainingStep` and `EvaluationStep`.

    Args:
        compiled: Whether a batch is one native call. The step is then compiled for the first batch,
            and again for a batch of other shapes, such as a smaller last one.
        keep_grads: Whether a compiled step keeps the parameters' gradients, for those who look at
            them between steps.
        on_compile: Called after each compilation.
        precision: What model and loss compute in: `"float32"`, or `"bfloat16"` for `autocast`.

    Raises:
        ArgumentError: There is no such precision.

    Attributes:
        seconds: How long all compilations took.
    """

    what = "step"

    def __init__(
        self,
        *,
        compiled: bool,
        keep_grads: bool = False,
        on_compile: Callable[[Compilation], None] | None = None,
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise ArgumentError(
                f"there is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}"
            )
        self.precision = precision
        self.seconds = 0.0
        self._on_compile = on_compile
        self._known = 0
        self._compiled: Compiled[..., tuple[Any, Any]] | None = None
        if compiled:
            self._compiled = compile_function(self._run, budget=BUDGET, keep_grads=keep_grads)

    def __call__(self, inputs: tuple[Any, ...], targets: Any) -> tuple[float, Any]:
        """Run on a batch.

        Args:
            inputs: The arguments of the model.
            targets: What its outputs are compared with.

        Returns:
            The loss; and the model's outputs where metrics are made of them, or None.
        """
        if self._compiled is None:
            loss, outputs = self._run(*inputs, targets)
        else:
            with _offer_eager(self.what):
                loss, outputs = self._compiled(*inputs, targets)
            if len(self._compiled.specializations) != self._known:
                self._note_compilation(targets)
        return float(loss.item()), outputs

    def _run(self, *batch: Any) -> tuple[Any, Any]:
        """Do it: what is compiled. The last part of the batch is the targets."""
        raise NotImplementedError  # abstract: training and evaluation define it

    def _forward(self, model: Module, loss: Loss, batch: tuple[Any, ...]) -> tuple[Any, Any]:
        """Return the loss and the outputs of a batch, in the step's precision."""
        with autocast(enabled=self.precision == "bfloat16"):
            outputs = model(*batch[:-1])
            return loss(outputs, batch[-1]), outputs

    def _note_compilation(self, targets: Any) -> None:
        assert self._compiled is not None
        new = self._compiled.specializations[self._known :]
        self._known += len(new)
        for specialization in new:
            self.seconds += specialization.seconds
            if self._on_compile is not None:
                shape = getattr(targets, "shape", ())
                batch = int(shape[0]) if shape else 0
                self._on_compile(Compilation(self.what, batch, specialization.seconds))


class TrainingStep(Step):
    """Gradients of the loss of a batch, clipped, and an update of the parameters.

    Args:
        model: Called with all parts of a batch but the last.
        loss: Called with the model's outputs and the last part of the batch; a scalar Tensor.
        optimizer: Updates the parameters.
        kind: The kind of task.
        clip_norm: The largest 2-norm of the gradients, or None.
        check: Called with the loss before anything is updated, where steps are not compiled.
        options: As for `Step`.
    """

    what = "training step"

    def __init__(
        self,
        model: Module,
        loss: Loss,
        optimizer: Optimizer,
        kind: Kind,
        clip_norm: float | None,
        check: Callable[[float], None],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.kind = kind
        self.clip_norm = clip_norm
        self._check = check

    def _run(self, *batch: Any) -> tuple[Any, Any]:
        self.optimizer.zero_grad()
        loss, outputs = self._forward(self.model, self.loss, batch)
        if self._compiled is None:
            self._check(float(loss.item()))
        loss.backward()
        if self.clip_norm is not None:
            clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        return loss.detach(), _metric_outputs(outputs, self.kind)


class EvaluationStep(Step):
    """The loss of a batch; to be called in evaluation mode and without gradients.

    Args:
        model: Called with all parts of a batch but the last.
        loss: Called with the model's outputs and the last part of the batch; a scalar Tensor.
        kind: The kind of task.
        options: As for `Step`.
    """

    what = "evaluation step"

    def __init__(self, model: Module, loss: Loss, kind: Kind, **options: Any) -> None:
        super().__init__(**options)
        self.model = model
        self.loss = loss
        self.kind = kind

    def _run(self, *batch: Any) -> tuple[Any, Any]:
        loss, outputs = self._forward(self.model, self.loss, batch)
        return loss, _metric_outputs(outputs, self.kind)


def _metric_outputs(outputs: Any, kind: Kind) -> Any:
    """Return the outputs if a `Meter` looks at them: logits of a text are large."""
    if kind != "classification":
        return None
    return outputs.detach() if isinstance(outputs, Tensor) else outputs


@contextlib.contextmanager
def _offer_eager(what: str) -> Iterator[None]:
    """Add to errors of tracing and compiling that they can be done without."""
    try:
        yield
    except (TraceError, CompileError) as error:
        error.message += (
            f". Or let the {what} run op by op, slower: needle train --eager, "
            "Trainer(..., compile=False)"
        )
        raise
