"""A parameter group: parameters that share hyper-parameters.

Numbers (learning rate, momentum …) are held as 0-d float64 tensors, which a traced step reads as
inputs, so that changing one never needs a new trace. Assigning a Python number writes into the
tensor that is there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np

from needle.config import changes, no_grad
from needle.creation import asarray, zeros
from needle.dtypes import float64
from needle.errors import ArgumentError, ArgumentTypeError
from needle.inplace import assign
from needle.tensor import Tensor

#: Keys of a group that are not hyper-parameters. `initial_lr` is what schedulers start from.
EXTRA_KEYS = ("params", "param_names", "initial_lr")


class Interval(NamedTuple):
    """The numbers that a hyper-parameter may be: from 0 to ``high``, with it or without."""

    high: float
    included: bool
    text: str

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in it; NaN never does."""
        return 0 <= value < self.high or (self.included and value == self.high)


NON_NEGATIVE = Interval(math.inf, False, "finite and at least 0")
FRACTION = Interval(1.0, False, "at least 0 and below 1")
UNIT = Interval(1.0, True, "at least 0 and at most 1")


class Hyperparameters(NamedTuple):
    """What hyper-parameters an optimizer has.

    Attributes:
        numbers: those that are numbers, with the interval they must lie in.
        pairs: those that are pairs of numbers, with the names (in `numbers`) of their parts.
        switches: numbers whose arithmetic is left out while they are zero.
        optional: numbers that may be None.
        flags: those that are true or false.
    """

    numbers: Mapping[str, Interval]
    pairs: Mapping[str, tuple[str, str]] = {}
    switches: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """The names by which a group has them."""
        parts = {part for pair in self.pairs.values() for part in pair}
        return (*(n for n in self.numbers if n not in parts), *self.pairs, *sorted(self.flags))


class ParamGroup(MutableMapping[str, Any]):
    """A mapping with the parameters and hyper-parameters of a group.

    ``group["lr"]`` is a 0-d float64 tensor; ``group["lr"] = 0.1`` writes into that tensor. The keys
    are fixed; each value is checked when it is set.

    Attributes:
        numbers: the numeric hyper-parameters, as 0-d tensors.
        options: flags that are set, switches that are not zero, optional numbers that are given.
            They shape the arithmetic, and so are constants of a traced step.

    Example:
        >>> group = ndl.optim.SGD([ndl.Tensor([1.0])], lr=0.1).param_groups[0]
        >>> group["lr"] = 0.05
        >>> group["lr"]
        Tensor(0.05, dtype=float64)
    """

    def __init__(
        self,
        owner: str,
        hyperparameters: Hyperparameters,
        params: tuple[Tensor, ...],
        param_names: tuple[str, ...] | None,
        values: Mapping[str, Any],
    ) -> None:
        self._owner = owner
        self._known = hyperparameters
        self._fixed: dict[str, Any] = {"params": params}
        if param_names is not None:
            self._fixed["param_names"] = param_names
        self._flags: dict[str, bool] = {}
        self.numbers: dict[str, Tensor] = {}
        self.options: frozenset[str] = frozenset()
        self.assign(values)

    def __getitem__(self, key: str) -> Any:
        for place in (self.numbers, self._flags, self._fixed):
            if key in place:
                return place[key]
        if key in self._known.pairs:
            first, second = self._known.pairs[key]
            return self.numbers[first], self.numbers[second]
        if key in self._known.optional:
            return None
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        known = self._known
        if key in known.flags:
            if not isinstance(value, (bool, np.bool_)):
                raise ArgumentTypeError(
                    f"{self._owner}: {key} must be True or False, got {value!r:.60}"
                )
            self._flags[key] = bool(value)
            self._switch(key, bool(value))
        elif key in known.pairs:
            if not isinstance(value, (tuple, list)) or len(value) != 2:
                raise ArgumentTypeError(
                    f"{self._owner}: {key} must be a pair of numbers, got {value!r:.60}"
                )
            parts = known.pairs[key]
            checked = [self._check(f"{key}[{i}]", parts[i], value[i]) for i in range(2)]
            for part, number in zip(parts, checked, strict=True):
                self._store(part, number)
        elif key in known.names:
            if value is None and key in known.optional:
                self.numbers.pop(key, None)
                self._switch(key, False)
                return
            self._store(key, self._check(key, key, value))
        elif key == "initial_lr":
            self._fixed[key] = float(self._check(key, "lr", value))
        elif key in ("params", "param_names"):
            raise ArgumentError(
                f"{self._owner}: {key} of a group cannot be replaced, because the optimizer keeps "
                "state for each parameter; add more with add_param_group(), or make a new optimizer"
            )
        else:
            raise ArgumentError(
                f"{self._owner}: a parameter group has no {key!r}; "
                f"it has {', '.join((*known.names, *EXTRA_KEYS))}"
            )

    def __delitem__(self, key: str) -> None:
        raise ArgumentError(f"{self._owner}: {key!r} cannot be taken out of a parameter group")

    def __iter__(self) -> Iterator[str]:
        yield from self._fixed
        yield from self._known.names

    def __len__(self) -> int:
        return len(self._fixed) + len(self._known.names)

    def __repr__(self) -> str:
        shapes = ", ".join(str(list(p.shape)) for p in self["params"])
        return f"ParamGroup(params of shapes {shapes}; {self.describe()})"

    def assign(self, values: Mapping[str, Any]) -> None:
        """Set everything but the parameters."""
        for key, value in values.items():
            if key not in ("params", "param_names"):
                self[key] = value

    def describe(self) -> str:
        """Return the hyper-parameters as text: ``lr=0.1, momentum=0.9, …``."""
        return ", ".join(f"{k}={v}" for k, v in self.plain().items() if k not in EXTRA_KEYS)

    def plain(self) -> dict[str, Any]:
        """Return all but the parameters with numbers as Python floats: what JSON can hold."""
        result: dict[str, Any] = {}
        for key in self:
            value = self[key]
            if key == "params":
                continue
            if isinstance(value, tuple):
                value = [float(v) if isinstance(v, Tensor) else v for v in value]
            result[key] = float(value) if isinstance(value, Tensor) else value
        return result

    def name_of(self, index: int) -> str:
        """Return what errors call a parameter of the group."""
        names = self._fixed.get("param_names")
        shape = list(self["params"][index].shape)
        return f"{names[index]!r} (shape {shape})" if names else f"params[{index}] (shape {shape})"

    def _check(self, label: str, name: str, value: Any) -> Any:
        """Return the value as a float, or as a tensor if it has no concrete value."""
        if isinstance(value, Tensor):
            if value.size != 1:
                raise ArgumentError(
                    f"{self._owner}: {label} must be one number, got a tensor of shape "
                    f"{list(value.shape)}"
                )
            if not isinstance(value._data, np.ndarray):
                return value
            value = value.item()
        if isinstance(value, (bool, np.bool_)) or not isinstance(
            value, (int, float, np.integer, np.floating)
        ):
            raise ArgumentTypeError(
                f"{self._owner}: {label} must be a number, got {type(value).__name__} "
                f"({value!r:.60})"
            )
        number = float(value)
        allowed = self._known.numbers[name]
        if not allowed.holds(number):
            raise ArgumentError(f"{self._owner}: {label} must be {allowed.text}, got {number:g}")
        return number

    def _store(self, name: str, value: Any) -> None:
        if name not in self.numbers:
            self.numbers[name] = zeros((), dtype=float64)
        source = value if isinstance(value, Tensor) else asarray(np.array(value, dtype=float64))
        with no_grad():
            assign(self.numbers[name], source.reshape(()), name)
        if name in self._known.switches:
            self._switch(name, isinstance(value, Tensor) or value != 0)
        elif name in self._known.optional:
            self._switch(name, True)

    def _switch(self, name: str, on: bool) -> None:
        options = self.options | {name} if on else self.options - {name}
        if options != self.options:
            self.options = options
            changes.note()
