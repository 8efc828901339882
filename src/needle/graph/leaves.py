"""Structures of tensors that control flow takes, carries and returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from needle.errors import ShapeError
from needle.graph.subtrace import Part, Wanted, is_tensor_like
from needle.graph.trace import leaf_names
from needle.ops.engine import as_tensor
from needle.shapes import Spec
from needle.tensor import Tensor
from needle.tree import TreeDef, flatten, unflatten


class Leaves:
    """Arguments, flattened; numbers and arrays among the leaves become tensors.

    Args:
        arguments: a tuple of structures.
    """

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        leaves, self.structure = flatten(arguments)
        self.leaves = [as_tensor(leaf) if is_tensor_like(leaf) else leaf for leaf in leaves]

    @property
    def tensors(self) -> list[Tensor]:
        """Those leaves that are tensors."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def tree(self) -> Any:
        """Return the first argument."""
        return unflatten(self.structure, self.leaves)[0]

    def with_tensors(self, tensors: Sequence[Tensor]) -> Any:
        """Return the first argument with other tensors in it."""
        return rebuilt(self.leaves, self.structure, tensors)[0]

    def wanted(self, slices: bool = False) -> list[Any]:
        """Return what is to stand for each leaf, or for its slices."""
        return [
            Wanted(Spec(t.shape[slices:], t.dtype), t._requires_grad)
            if isinstance(t, Tensor)
            else t
            for t in self.leaves
        ]

    def replaced(self, name: str, carry: Any) -> Leaves:
        """Return the carried values after a turn.

        Raises:
            ShapeError: they have changed in structure, shape or dtype.
        """
        new = Leaves((carry,))
        self.check(name, new.leaves, new.structure.children[0])
        return new

    def check(self, name: str, leaves: Sequence[Any], structure: TreeDef) -> None:
        """Raise unless carried values after a turn are of the same kind as these."""
        own = self.structure.children[0]
        if structure != own:
            raise ShapeError(
                f"{name}: the function must return carried values of the structure that it takes, "
                f"{own}; it returns {structure}"
            )
        for i, (before, after) in enumerate(zip(self.leaves, leaves, strict=True)):
            if _kind(before) != _kind(after):
                label = leaf_names("carry", self.tree())[i]
                raise ShapeError(
                    f"{name}: the carried values must keep their shapes and dtypes: {label} is "
                    f"{_text(before)} at first, and {_text(after)} after a turn; begin with what "
                    "the function returns, or convert there (astype, reshape)"
                )


def rebuilt(leaves: Sequence[Any], structure: TreeDef, tensors: Sequence[Tensor]) -> Any:
    """Return a structure of ``leaves``, with other tensors in place of those that are tensors."""
    rest = iter(tensors)
    new = [next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return unflatten(structure, new)


def as_tensors(result: Any) -> Any:
    """Return a structure with the numbers and arrays in it as tensors."""
    return Leaves((result,)).tree()


def _kind(leaf: Any) -> Any:
    return Spec(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf


def _text(leaf: Any) -> str:
    return str(_kind(leaf)) if isinstance(leaf, Tensor) else repr(leaf)


def check_alike(what: str, first: Part, second: Part) -> None:
    """Raise unless two functions return the same, but for the values."""
    if first.structure != second.structure:
        raise ShapeError(
            f"{what}, in the same structure: {first.structure}, not {second.structure}"
        )
    labels = leaf_names("result", unflatten(first.structure, first.leaves))
    for label, a, b in zip(labels, first.leaves, second.leaves, strict=True):
        if _kind(a) != _kind(b):
            raise ShapeError(
                f"{what}, of the same shapes and dtypes: {label} is {_text(a)} in one and "
                f"{_text(b)} in the other; convert with astype, or broadcast with broadcast_to"
            )
