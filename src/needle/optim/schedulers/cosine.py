"""Schedules along a cosine: annealing, and one cycle up and down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from needle.errors import ArgumentError
from needle.optim.optimizer import Optimizer
from needle.optim.schedulers.scheduler import LRScheduler, at_least, check_optimizer


class CosineAnnealingLR(LRScheduler):
    """Half a cosine wave from the initial learning rate down to ``eta_min``.

    ``lr = eta_min + (initial_lr − eta_min) · (1 + cos(π t / T_max)) / 2``; after ``T_max`` steps it
    rises again along the same curve.

    Args:
        optimizer: whose learning rates are set.
        T_max: number of steps to the lowest learning rate, at least 1.
        eta_min: the lowest learning rate, at least 0.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: an argument out of its range.

    Source:
        Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (ICLR 2017),
        without the restarts.

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=1.0)
        >>> scheduler = ndl.optim.CosineAnnealingLR(optimizer, T_max=2)
        >>> [round(scheduler.lr_at(t, 1.0, 0), 6) for t in range(3)]
        [1.0, 0.5, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        self.T_max = at_least(T_max, 1, "CosineAnnealingLR: T_max")
        if not 0 <= eta_min < math.inf:
            raise ArgumentError(
                f"CosineAnnealingLR: eta_min must be finite and at least 0, got {eta_min}"
            )
        self.eta_min = float(eta_min)
        super().__init__(optimizer, last_epoch)

    def lr_at(self, t: int, initial_lr: float, index: int) -> float:
        """Return the learning rate after ``t`` steps."""
        return _cosine(initial_lr, self.eta_min, t / self.T_max)


class Phase(NamedTuple):
    """A part of a cycle: until the step ``end``, from one value to another."""

    end: float
    first_lr: str
    last_lr: str
    first_momentum: str
    last_momentum: str


class OneCycleLR(LRScheduler):
    """Up from a low learning rate to ``max_lr`` and down to almost nothing; momentum the other way.

    With T = ``total_steps``: from ``max_lr / div_factor`` at t = 0 to ``max_lr`` at t =
    ``pct_start`` T − 1, then to ``max_lr / div_factor / final_div_factor`` at t = T − 1. With
    ``three_phase`` it comes down to where it began as fast as it rose, and to the end after that.

    Args:
        optimizer: whose learning rates (and ``momentum``, or the first of ``betas``) are set.
        max_lr: the highest learning rate, or one for each group.
        total_steps: number of steps; ``epochs · steps_per_epoch`` if not given.
        epochs: number of epochs.
        steps_per_epoch: number of steps in each.
        pct_start: the part of the steps in which the learning rate rises, in [0, 1].
        anneal_strategy: ``"cos"`` or ``"linear"``.
        cycle_momentum: whether the momentum is set, too.
        base_momentum: the momentum at the highest learning rate, or one for each group.
        max_momentum: the momentum at the start and the end, or one for each group.
        div_factor: the highest learning rate divided by the first.
        final_div_factor: the first learning rate divided by the last.
        three_phase: whether there is a third phase.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: an argument out of its range; steps beyond ``total_steps``; an optimizer
            without momentum, with ``cycle_momentum``.

    Source:
        Smith and Topin, "Super-convergence: very fast training of neural networks using large
        learning rates" (2018).

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], momentum=0.9)
        >>> scheduler = ndl.optim.OneCycleLR(optimizer, max_lr=1.0, total_steps=10, div_factor=10)
        >>> [round(scheduler.lr_at(t, 0.0, 0), 2) for t in (0, 2, 9)]
        [0.1, 1.0, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ArgumentError("OneCycleLR: give total_steps, or epochs and steps_per_epoch")
            total_steps = at_least(epochs, 1, "OneCycleLR: epochs") * at_least(
                steps_per_epoch, 1, "OneCycleLR: steps_per_epoch"
            )
        self.total_steps = at_least(total_steps, 1, "OneCycleLR: total_steps")
        if not 0 <= pct_start <= 1:
            raise ArgumentError(f"OneCycleLR: pct_start must be from 0 to 1, got {pct_start}")
        if anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(
                f'OneCycleLR: anneal_strategy must be "cos" or "linear", got {anneal_strategy!r}'
            )
        for name, factor in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            if not 0 < factor < math.inf:
                raise ArgumentError(f"OneCycleLR: {name} must be finite and above 0, got {factor}")
        check_optimizer(optimizer, "OneCycleLR")
        groups = len(optimizer.param_groups)
        self._lrs = [
            {"max": high, "initial": high / div_factor, "min": high / div_factor / final_div_factor}
            for high in _for_each(max_lr, groups, "max_lr")
        ]
        self._momenta = [
            {"base": base, "max": high}
            for base, high in zip(
                _for_each(base_momentum, groups, "base_momentum"),
                _for_each(max_momentum, groups, "max_momentum"),
                strict=True,
            )
        ]
        self.anneal = _cosine if anneal_strategy == "cos" else _line
        rise, last = float(pct_start * self.total_steps) - 1, self.total_steps - 1
        self.phases = (
            [
                Phase(rise, "initial", "max", "max", "base"),
                Phase(2 * rise, "max", "initial", "base", "max"),
                Phase(last, "initial", "min", "max", "max"),
            ]
            if three_phase
            else [
                Phase(rise, "initial", "max", "max", "base"),
                Phase(last, "max", "min", "base", "max"),
            ]
        )
        self.momentum_key = self._find_momentum(optimizer) if cycle_momentum else None
        super().__init__(optimizer, last_epoch)

    def lr_at(self, t: int, initial_lr: float, index: int) -> float:
        """Return the learning rate after ``t`` steps; ``initial_lr`` plays no part."""
        phase, part = self._locate(t)
        lrs = self._lrs[index]
        return self.anneal(lrs[phase.first_lr], lrs[phase.last_lr], part)

    def apply_at(self, t: int) -> None:
        """Set the momentum of each group."""
        if self.momentum_key is None:
            return
        phase, part = self._locate(t)
        for group, momenta in zip(self.optimizer.param_groups, self._momenta, strict=True):
            first, last = momenta[phase.first_momentum], momenta[phase.last_momentum]
            momentum = self.anneal(first, last, part)
            if self.momentum_key == "betas":
                group["betas"] = (momentum, group["betas"][1])
            else:
                group["momentum"] = momentum

    def _locate(self, t: int) -> tuple[Phase, float]:
        """Return the phase of the step ``t``, and which part of it has passed."""
        if t > self.total_steps:
            raise ArgumentError(
                f"OneCycleLR: step {t} of a cycle of {self.total_steps}; total_steps must be the "
                "number of steps of the whole training"
            )
        start = 0.0
        for phase in self.phases:
            if t <= phase.end or phase is self.phases[-1]:
                length = phase.end - start
                return phase, min((t - start) / length, 1.0) if length > 0 else 1.0
            start = phase.end
        raise AssertionError("the last phase takes every step")

    @staticmethod
    def _find_momentum(optimizer: Optimizer) -> str:
        for key in ("betas", "momentum"):
            groups = optimizer.param_groups
            if all(key in g and (key == "betas" or key in g.options) for g in groups):
                return key
        raise ArgumentError(
            f"OneCycleLR: {type(optimizer).__name__} has no momentum to cycle; give it one, or "
            "pass cycle_momentum=False"
        )


def _cosine(first: float, last: float, part: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * part)) / 2


def _line(first: float, last: float, part: float) -> float:
    return first + (last - first) * part


def _for_each(value: float | Sequence[float], groups: int, name: str) -> list[float]:
    values = [value] * groups if isinstance(value, (int, float)) else list(value)
    if len(values) != groups:
        raise ArgumentError(f"OneCycleLR: {len(values)} values of {name} for {groups} groups")
    for v in values:
        if not 0 <= v < math.inf:
            raise ArgumentError(f"OneCycleLR: {name} must be finite and at least 0, got {v}")
    return [float(v) for v in values]
