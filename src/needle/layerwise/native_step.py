"""A solver's step on a compiled net: forward, backward and update in one native call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from needle import autograd, ops
from needle.compiled import compile as compile_function
from needle.config import enable_grad, no_grad
from needle.creation import full_like
from needle.layerwise.whole import BUDGET, Whole
from needle.tensor import Tensor, wrap_shared

if TYPE_CHECKING:
    from needle.layerwise.solver import Solver


class NativeStep:
    """Takes the steps of a solver whose net is compiled.

    Parameters, the solver's history and, if several batches make a step, gradients are tensors over
    the arrays of blobs, so that the program overwrites what solver and blobs hold. It is made anew
    when one of these arrays is another one, or when the solver computes something else.

    Args:
        solver: whose update it is.
        whole: its net.
    """

    def __init__(self, solver: Solver, whole: Whole) -> None:
        self.solver, self.whole = solver, whole
        self._key: Any = None
        self._rate = math.nan

    def run(self) -> float:
        """Take a step; return the loss."""
        solver, whole = self.solver, self.whole
        count = solver.config.iter_size
        if count > 1:
            whole.net.clear_param_diffs()
        # The program overwrites these arrays, if they are still those of the blobs.
        arrays = [id(b.stored) for b in solver.params]
        if count > 1:
            arrays += [id(b._diff) for b in solver.params]
        key = arrays, solver.signature()
        if key != self._key:
            self._make(key)
        total = 0.0
        for _ in range(count - 1):
            whole.give(self._gather(*whole.bring()))
            total += whole.net.loss
        rate = solver.corrected_rate
        if rate != self._rate:
            self._rate, self._rates._data[...] = rate, solver.rates()
        whole.give(self._finish(*whole.bring()))
        total += whole.net.loss
        return total / count

    def _make(self, key: Any) -> None:
        solver = self.solver
        self._key, self._rate = key, math.nan
        # The key holds identities, so these arrays must stay.
        self._arrays = [(b.stored, b._diff) for b in solver.params]
        self._params = self.whole.parameters()
        #: The tensors of each trained blob: one for each layer that it is a parameter of.
        self._trained: dict[int, list[Tensor]] = {id(b): [] for b, _ in solver.trained()}
        for step, own in zip(self.whole.steps, self._params, strict=True):
            for blob, tensor in zip(step.layer.blobs, own, strict=True):
                if id(blob) in self._trained:
                    self._trained[id(blob)].append(tensor)
        adds = solver.config.iter_size > 1
        self._diffs = [wrap_shared(b.as_stored(b.diff)) for b, _ in solver.trained() if adds]
        self._history = [[wrap_shared(b.as_stored(h)) for h in hs] for b, hs in solver.trained()]
        self._rates = wrap_shared(solver.rates())
        self._gather = compile_function(self._gather_gradients, budget=BUDGET)
        self._finish = compile_function(self._finish_step, budget=BUDGET)

    def _gradients(self, inputs: tuple[Tensor, ...]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the outputs, and the gradient of each trained blob."""
        with enable_grad():
            outputs, changed = self.whole.compute(list(inputs), self._params)
        known = {id(b): t for b, t in zip(self.whole.outputs, outputs, strict=True)}
        losses = [(known[id(b)], w) for b, w in self.whole.net.losses]
        losses = [(loss, w) for loss, w in losses if loss.requires_grad]
        wanted = [t for tensors in self._trained.values() for t in tensors]
        found: list[Tensor | None] = [None] * len(wanted)
        if losses and wanted:
            found = autograd.grad(
                [loss for loss, _ in losses],
                wanted,
                [full_like(loss, w) for loss, w in losses],
                allow_unused=True,
            )
        given = {id(t): g for t, g in zip(wanted, found, strict=True)}
        gradients = []
        for tensors in self._trained.values():
            # Layers add to a diff in the order in which they run backward.
            parts = [g for t in reversed(tensors) if (g := given[id(t)]) is not None]
            total = parts[0] if parts else full_like(tensors[0], 0.0)
            for part in parts[1:]:
                total = total + part
            gradients.append(total)
        with no_grad():
            for own, new in zip(self._params, changed, strict=True):
                for tensor, value in zip(own, new, strict=False):
                    tensor.copy_(value)
        return [t.detach() for t in outputs], gradients

    def _gather_gradients(self, *inputs: Tensor) -> list[Tensor]:
        """Add the gradients of a batch to what others gave; return the outputs."""
        outputs, gradients = self._gradients(inputs)
        with no_grad():
            for diff, gradient in zip(self._diffs, gradients, strict=True):
                diff += gradient
        return outputs

    def _finish_step(self, *inputs: Tensor) -> list[Tensor]:
        """Take the last batch of a step, and update; return the outputs."""
        outputs, gradients = self._gradients(inputs)
        with no_grad():
            if self._diffs:
                pairs = zip(self._diffs, gradients, strict=True)
                gradients = [diff + gradient for diff, gradient in pairs]
            own = [tensors[0] for tensors in self._trained.values()]
            directions = self.solver.directions(ops, own, gradients)
            for i, (data, history) in enumerate(zip(own, self._history, strict=True)):
                self.solver.update(ops, data, directions[i], self._rates[i], history)
        return outputs
