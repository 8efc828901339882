"""The base of all schedulers: a learning rate as a function of the number of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from needle.config import modes
from needle.errors import ArgumentError, ArgumentTypeError, StateDictError
from needle.optim.optimizer import Optimizer
from needle.shapes import as_index


class LRScheduler(ABC):
    """Sets the learning rate of each parameter group, as a function of the steps taken.

    ``group["lr"] ← lr_at(t, initial_lr, index of the group)``, with t = 0 on construction and one
    more in each `step`. Call `step` after the optimizer's, once for each epoch or batch, as the
    schedule was meant. A schedule depends on t only, never on the learning rate before, so that a
    resumed one gives the same bits.

    Args:
        optimizer: the optimizer whose groups are changed. The learning rate of each group at this
            time becomes its ``group["initial_lr"]``, if it has none.
        last_epoch: steps that have been taken, less one; −1 to begin.

    Attributes:
        optimizer: the optimizer.
        last_epoch: t.

    Raises:
        ArgumentTypeError: something that is not an optimizer.
        ArgumentError: a schedule that makes no sense.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        check_optimizer(optimizer, type(self).__name__)
        self.optimizer = optimizer
        self.last_epoch = as_index(last_epoch, f"{type(self).__name__}: last_epoch") + 1
        if self.last_epoch < 0:
            raise ArgumentError(
                f"{type(self).__name__}: last_epoch must be at least -1, got {last_epoch}"
            )
        self._last_lr: list[float] = []
        self._apply()

    @abstractmethod
    def lr_at(self, t: int, initial_lr: float, index: int) -> float:
        """Return the learning rate after ``t`` steps.

        Args:
            t: number of steps, at least 0.
            initial_lr: what the group began with.
            index: which group it is.
        """

    @property
    def base_lrs(self) -> list[float]:
        """What the learning rates of the groups began with."""
        return [group["initial_lr"] for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """Return the learning rate of each group, as last set.

        Example:
            >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=0.5)
            >>> ndl.optim.StepLR(optimizer, step_size=2).get_last_lr()
            [0.5]
        """
        return list(self._last_lr)

    def step(self) -> None:
        """Set the learning rates for the next step.

        Raises:
            ArgumentError: a learning rate is not what this scheduler has set, so that something
                else changes it, too, and one of the two would be lost.
            TraceError: in a traced function, something needs the learning rate after this.
        """
        trace = modes.state.trace
        if trace is not None:
            # A schedule is Python of any kind, and so is run after each call of what is compiled.
            numbers = [t for g in self.optimizer.param_groups for t in g.numbers.values()]
            trace.after_call(self.step, numbers, f"{type(self).__name__}.step()")
            return
        for i, (group, last) in enumerate(
            zip(self.optimizer.param_groups, self._last_lr, strict=False)
        ):
            if group["lr"].item() != last:
                raise ArgumentError(
                    f"{type(self).__name__}: the learning rate of param_groups[{i}] is "
                    f"{group['lr'].item():g}, but this scheduler had set {last:g}; combine "
                    "schedulers with ChainedScheduler or SequentialLR, and scale by hand with "
                    'group["initial_lr"]'
                )
        self.last_epoch += 1
        self._apply()

    def apply_at(self, t: int) -> None:  # noqa: B027 - most set nothing else
        """Set what else than the learning rate follows the schedule."""

    def _apply(self) -> None:
        rates = []
        for i, group in enumerate(self.optimizer.param_groups):
            initial = group.setdefault("initial_lr", group["lr"].item())
            group["lr"] = rate = float(self.lr_at(self.last_epoch, initial, i))
            rates.append(rate)
        self._last_lr = rates
        self.apply_at(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what a scheduler made by the same call needs to go on from here; JSON can hold it.

        Example:
            >>> optimizer = ndl.optim.SGD([ndl.Tensor([1.0])], lr=0.5)
            >>> ndl.optim.StepLR(optimizer, step_size=2).state_dict()
            {'last_epoch': 0, 'base_lrs': [0.5]}
        """
        return {"last_epoch": self.last_epoch, "base_lrs": self.base_lrs}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; sets the learning rates.

        Raises:
            StateDictError: something is missing, or there are other groups.
        """
        name = type(self).__name__
        missing = [key for key in ("last_epoch", "base_lrs") if key not in state_dict]
        if missing:
            raise StateDictError(f"{name}: the state dict has no {', '.join(missing)}")
        groups = self.optimizer.param_groups
        rates = list(state_dict["base_lrs"])
        if len(rates) != len(groups):
            raise StateDictError(
                f"{name}: {len(rates)} learning rates were saved, the optimizer has {len(groups)} "
                "groups"
            )
        t = as_index(state_dict["last_epoch"], f"{name}: last_epoch")
        if t < 0:
            raise StateDictError(f"{name}: last_epoch must be at least 0, got {t}")
        for group, rate in zip(groups, rates, strict=True):
            group["initial_lr"] = rate
        self.last_epoch = t
        self._apply()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(last_epoch={self.last_epoch}, lr={self._last_lr})"


def check_optimizer(value: Any, owner: str) -> None:
    """Raise if ``value`` is no optimizer."""
    if not isinstance(value, Optimizer):
        raise ArgumentTypeError(f"{owner}: expected an optimizer, got a {type(value).__name__}")


def at_least(value: Any, low: int, what: str) -> int:
    """Return ``value`` as an int.

    Raises:
        ArgumentError: it is below ``low``.
    """
    number = as_index(value, what)
    if number < low:
        raise ArgumentError(f"{what} must be at least {low}, got {number}")
    return number
