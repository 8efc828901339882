"""Schedules that multiply the initial learning rate by a factor."""

from __future__ import annotations

import bisect
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

from needle.errors import ArgumentError, ArgumentTypeError
from needle.optim.optimizer import Optimizer
from needle.optim.schedulers.scheduler import LRScheduler, at_least, check_optimizer
from needle.shapes import as_index


class FactorLR(LRScheduler):
    """A schedule of the form ``lr = initial_lr · factor(t)``."""

    @abstractmethod
    def factor(self, t: int, index: int) -> float:
        """Return what the initial learning rate of the group ``index`` is multiplied by."""

    def lr_at(self, t: int, initial_lr: float, index: int) -> float:
        """Return ``initial_lr · factor(t)``."""
        return initial_lr * self.factor(t, index)


class StepLR(FactorLR):
    """``lr = initial_lr · gamma^⌊t / step_size⌋``.

    Args:
        optimizer: whose learning rates are set.
        step_size: number of steps between changes, at least 1.
        gamma: factor of each change, at least 0.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: ``step_size`` or ``gamma`` out of its range.

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=1.0)
        >>> scheduler = ndl.optim.StepLR(optimizer, step_size=2, gamma=0.5)
        >>> for _ in range(4):
        ...     print(scheduler.get_last_lr()[0])
        ...     optimizer.step()
        ...     scheduler.step()
        1.0
        1.0
        0.5
        0.5
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.step_size = at_least(step_size, 1, "StepLR: step_size")
        self.gamma = _gamma(gamma, "StepLR")
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, index: int) -> float:
        """Return the factor after ``t`` steps."""
        return self.gamma ** (t // self.step_size)


class MultiStepLR(FactorLR):
    """``lr = initial_lr · gamma^(number of milestones m ≤ t)``.

    Args:
        optimizer: whose learning rates are set.
        milestones: the steps at which the learning rate changes, in ascending order.
        gamma: factor of each change, at least 0.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: milestones that do not ascend, or ``gamma`` out of its range.

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=1.0)
        >>> scheduler = ndl.optim.MultiStepLR(optimizer, milestones=[2, 3], gamma=0.5)
        >>> [scheduler.lr_at(t, 1.0, 0) for t in range(5)]
        [1.0, 1.0, 0.5, 0.25, 0.25]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Sequence[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones = [as_index(m, "MultiStepLR: a milestone") for m in milestones]
        if self.milestones != sorted(self.milestones):
            raise ArgumentError(f"MultiStepLR: milestones must ascend, got {self.milestones}")
        self.gamma = _gamma(gamma, "MultiStepLR")
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, index: int) -> float:
        """Return the factor after ``t`` steps."""
        return self.gamma ** bisect.bisect_right(self.milestones, t)


class ExponentialLR(FactorLR):
    """``lr = initial_lr · gamma^t``.

    Args:
        optimizer: whose learning rates are set.
        gamma: factor of each step, at least 0.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: ``gamma`` out of its range.

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=1.0)
        >>> scheduler = ndl.optim.ExponentialLR(optimizer, gamma=0.5)
        >>> [scheduler.lr_at(t, 1.0, 0) for t in range(4)]
        [1.0, 0.5, 0.25, 0.125]
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = _gamma(gamma, "ExponentialLR")
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, index: int) -> float:
        """Return the factor after ``t`` steps."""
        return self.gamma**t


class LinearLR(FactorLR):
    """From one factor to another in a straight line, and from then on constant: a warm-up.

    ``lr = initial_lr · (start_factor + (end_factor − start_factor) · min(t / total_iters, 1))``

    Args:
        optimizer: whose learning rates are set.
        start_factor: factor at the start, above 0 and at most 1.
        end_factor: factor at the end, from 0 to 1.
        total_iters: number of steps to get there, at least 1.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: an argument out of its range.

    Source:
        As a warm-up: Goyal et al., "Accurate, large minibatch SGD: training ImageNet in 1 hour"
        (2017).

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=1.0)
        >>> scheduler = ndl.optim.LinearLR(optimizer, start_factor=0.5, total_iters=2)
        >>> [scheduler.lr_at(t, 1.0, 0) for t in range(4)]
        [0.5, 0.75, 1.0, 1.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not 0 < start_factor <= 1:
            raise ArgumentError(
                f"LinearLR: start_factor must be above 0 and at most 1, got {start_factor}"
            )
        if not 0 <= end_factor <= 1:
            raise ArgumentError(f"LinearLR: end_factor must be from 0 to 1, got {end_factor}")
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = at_least(total_iters, 1, "LinearLR: total_iters")
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, index: int) -> float:
        """Return the factor after ``t`` steps."""
        if t >= self.total_iters:
            return self.end_factor
        return self.start_factor + (self.end_factor - self.start_factor) * t / self.total_iters


class LambdaLR(FactorLR):
    """``lr = initial_lr · lr_lambda(t)``.

    Args:
        optimizer: whose learning rates are set.
        lr_lambda: from t to the factor; or one such function for each group. Functions are not
            saved.
        last_epoch: steps that have been taken, less one.

    Raises:
        ArgumentError: another number of functions than groups, or a learning rate below 0.
        ArgumentTypeError: something that cannot be called.

    Example:
        >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=1.0)
        >>> scheduler = ndl.optim.LambdaLR(optimizer, lambda t: 1 / (t + 1))
        >>> [scheduler.lr_at(t, 1.0, 0) for t in range(2)]
        [1.0, 0.5]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
    ) -> None:
        check_optimizer(optimizer, "LambdaLR")
        count = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * count if callable(lr_lambda) else list(lr_lambda)
        for function in self.lr_lambdas:
            if not callable(function):
                raise ArgumentTypeError(
                    f"LambdaLR: lr_lambda must be a function, got a {type(function).__name__}"
                )
        if len(self.lr_lambdas) != count:
            raise ArgumentError(
                f"LambdaLR: {len(self.lr_lambdas)} functions for {count} parameter groups"
            )
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int, index: int) -> float:
        """Return the factor after ``t`` steps."""
        return self.lr_lambdas[index](t)


def _gamma(gamma: float, name: str) -> float:
    if not 0 <= gamma < math.inf:
        raise ArgumentError(f"{name}: gamma must be finite and at least 0, got {gamma}")
    return float(gamma)
