"""Penalties: regularisation as a part of the loss, ``loss(…) + penalty()``."""

from __future__ import annotations

from collections.abc import Iterable

from needle.creation import asarray
from needle.errors import ArgumentError, ArgumentTypeError
from needle.nn.module import Module
from needle.tensor import Tensor

Penalised = Module | Tensor | Iterable[Module | Tensor]


class _Penalty(Module):
    """A sum over tensors, times a weight.

    The tensors are looked up at each call, so that the penalty sees a parameter that was replaced.
    """

    def __init__(self, target: Penalised, weight: float) -> None:
        name = type(self).__name__
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ArgumentTypeError(
                f"{name}: weight must be a number, got {type(weight).__name__}; "
                f"write {name}(model, 1e-4)"
            )
        if not weight >= 0:
            raise ArgumentError(f"{name}: weight must be at least 0, got {weight}")
        self.target = [target] if isinstance(target, (Module, Tensor)) else list(target)
        self.weight = float(weight)
        if not self.tensors():
            raise ArgumentError(f"{name}: there is no parameter to penalise")

    def tensors(self) -> list[Tensor]:
        """Return the penalised tensors, each once."""
        found: dict[int, Tensor] = {}
        for part in self.target:
            if isinstance(part, Tensor):
                found[id(part)] = part
            elif isinstance(part, Module):
                found.update((id(p), p) for p in part.parameters())
            else:
                raise ArgumentTypeError(
                    f"{type(self).__name__}: takes modules and tensors, got {type(part).__name__}"
                )
        return list(found.values())

    def measure(self, tensor: Tensor) -> Tensor:
        """Return the 0-d contribution of one tensor, before the weight."""
        raise NotImplementedError(f"{type(self).__name__} has no measure()")

    def forward(self) -> Tensor:
        """Return the penalty, a scalar."""
        total = asarray(0.0)
        for tensor in self.tensors():
            total = total + self.measure(tensor)
        return total * self.weight

    def extra_repr(self) -> str:
        """Return the weight."""
        return f"weight={self.weight}"

    def _shown(self) -> Iterable[tuple[str, Module]]:  # type: ignore[override]
        return ()  # what is penalised is shown where it belongs


class L1Penalty(_Penalty):
    """``weight · Σ |w|``: draws parameters to exactly zero.

    Args:
        target: a module (all its parameters count), a tensor, or several of them.
        weight: the factor, at least 0.

    Raises:
        ArgumentError: there is no parameter; the weight is negative.

    Example:
        >>> w = ndl.nn.Parameter([3.0, -4.0])
        >>> ndl.nn.L1Penalty(w, 0.5)().item()
        3.5
    """

    def measure(self, tensor: Tensor) -> Tensor:
        """Return ``Σ |w|``."""
        result: Tensor = tensor.abs().sum()
        return result


class L2Penalty(_Penalty):
    """``weight / 2 · Σ w²``: its gradient is ``weight · w``, that of a coupled weight decay.

    Args:
        target: a module (all its parameters count), a tensor, or several of them.
        weight: the factor, at least 0.

    Raises:
        ArgumentError: there is no parameter; the weight is negative.

    Example:
        >>> w = ndl.nn.Parameter([3.0, -4.0])
        >>> ndl.nn.L2Penalty(w, 0.5)().item()
        6.25
    """

    def measure(self, tensor: Tensor) -> Tensor:
        """Return ``Σ w² / 2``."""
        result: Tensor = (tensor * tensor).sum() * 0.5
        return result
