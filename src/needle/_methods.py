"""Tensor methods and operators, attached from the op records.

The type stub beside this file (``_methods.pyi``) is generated from the same records, by
``python -m needle.testing.stubs``; without it a type checker takes every method to be untyped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any


class TensorMethods:
    """Base of `Tensor`: the methods that are ops."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return any method: for type checkers without the generated stub."""


def attach_method(name: str, function: Callable[..., Any]) -> None:
    """Make ``function`` the method ``name`` of all tensors."""
    setattr(TensorMethods, name, function)
