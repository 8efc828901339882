"""Schedules made of schedules: one after the other, or all at once."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from needle.errors import ArgumentError, ArgumentTypeError
from needle.optim.optimizer import Optimizer
from needle.optim.schedulers.scheduler import LRScheduler
from needle.shapes import as_index


class SequentialLR(LRScheduler):
    """One schedule after the other; each begins at its own t = 0.

    Args:
        optimizer: whose learning rates are set.
        schedulers: made for the same optimizer; from now on only this one is to be stepped.
        milestones: the steps at which the second, third … take over, in ascending order.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: no schedulers, some of another optimizer, or milestones that do not fit.

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=1.0)
        >>> warm_up = ndl.optim.LinearLR(optimizer, start_factor=0.5, total_iters=2)
        >>> decay = ndl.optim.ExponentialLR(optimizer, gamma=0.5)
        >>> scheduler = ndl.optim.SequentialLR(optimizer, [warm_up, decay], milestones=[2])
        >>> [scheduler.lr_at(t, 1.0, 0) for t in range(5)]
        [0.5, 0.75, 1.0, 0.5, 0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        self.schedulers = _parts(optimizer, schedulers, "SequentialLR")
        self.milestones = [as_index(m, "SequentialLR: a milestone") for m in milestones]
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ArgumentError(
                f"SequentialLR: {len(self.schedulers)} schedulers need {len(self.schedulers) - 1} "
                f"milestones, got {len(self.milestones)}"
            )
        if any(b <= a for a, b in zip([0, *self.milestones], self.milestones, strict=False)):
            raise ArgumentError(
                f"SequentialLR: milestones must be above 0 and ascend, got {self.milestones}"
            )
        super().__init__(optimizer, last_epoch)

    def lr_at(self, t: int, initial_lr: float, index: int) -> float:
        """Return the learning rate after ``t`` steps."""
        which, since = self._locate(t)
        return self.schedulers[which].lr_at(since, initial_lr, index)

    def apply_at(self, t: int) -> None:
        """Set what else follows the schedule that is due."""
        which, since = self._locate(t)
        self.schedulers[which].apply_at(since)

    def _locate(self, t: int) -> tuple[int, int]:
        which = bisect.bisect_right(self.milestones, t)
        return which, t - (self.milestones[which - 1] if which else 0)


class ChainedScheduler(LRScheduler):
    """All schedules at once: each gets as initial learning rate what the one before gives.

    For schedules that multiply (all but `CosineAnnealingLR` with ``eta_min`` and `OneCycleLR`,
    which must come first), the factors multiply.

    Args:
        schedulers: made for the same optimizer; from now on only this one is to be stepped.
        optimizer: the optimizer, if it is to be checked.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: no schedulers, or some of another optimizer.

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=1.0)
        >>> warm_up = ndl.optim.LinearLR(optimizer, start_factor=0.5, total_iters=2)
        >>> decay = ndl.optim.ExponentialLR(optimizer, gamma=0.5)
        >>> scheduler = ndl.optim.ChainedScheduler([warm_up, decay])
        >>> [scheduler.lr_at(t, 1.0, 0) for t in range(4)]
        [0.5, 0.375, 0.25, 0.125]
    """

    def __init__(
        self,
        schedulers: Sequence[LRScheduler],
        optimizer: Optimizer | None = None,
        last_epoch: int = -1,
    ) -> None:
        if optimizer is None and schedulers and isinstance(schedulers[0], LRScheduler):
            optimizer = schedulers[0].optimizer
        self.schedulers = _parts(optimizer, schedulers, "ChainedScheduler")
        assert optimizer is not None
        super().__init__(optimizer, last_epoch)

    def lr_at(self, t: int, initial_lr: float, index: int) -> float:
        """Return the learning rate after ``t`` steps."""
        lr = initial_lr
        for scheduler in self.schedulers:
            lr = scheduler.lr_at(t, lr, index)
        return lr

    def apply_at(self, t: int) -> None:
        """Set what else follows any of the schedules."""
        for scheduler in self.schedulers:
            scheduler.apply_at(t)


def _parts(
    optimizer: Optimizer | None, schedulers: Sequence[LRScheduler], name: str
) -> list[LRScheduler]:
    parts = list(schedulers)
    if not parts:
        raise ArgumentError(f"{name}: there are no schedulers")
    for i, part in enumerate(parts):
        if not isinstance(part, LRScheduler):
            raise ArgumentTypeError(
                f"{name}: schedulers[{i}] must be a scheduler, got a {type(part).__name__}"
            )
        if part.optimizer is not optimizer:
            raise ArgumentError(f"{name}: schedulers[{i}] was made for another optimizer")
    return parts
