"""Trees: nested lists, tuples and dicts, with anything else as leaves.

Functions that take or return structures of tensors (collation, checkpoint, compile) flatten them to
a list of leaves and put results back into the same structure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from needle.errors import ArgumentError


@dataclass(frozen=True)
class TreeDef:
    """The structure of a tree without its leaves.

    Attributes:
        kind: list, tuple (or a named tuple's class) or dict; None for a leaf.
        keys: the keys of a dict, in order.
        children: structures of the parts.
    """

    kind: type | None
    keys: tuple[Any, ...] = ()
    children: tuple[TreeDef, ...] = ()

    def __str__(self) -> str:
        if self.kind is None:
            return "*"
        if self.kind is dict:
            parts = zip(self.keys, self.children, strict=True)
            return "{" + ", ".join(f"{k!r}: {c}" for k, c in parts) + "}"
        left, right = ("[", "]") if self.kind is list else ("(", ")")
        return left + ", ".join(map(str, self.children)) + right


LEAF = TreeDef(None)


def flatten(tree: Any) -> tuple[list[Any], TreeDef]:
    """Return the leaves of ``tree``, in order, and its structure.

    Example:
        >>> from needle.tree import flatten
        >>> leaves, structure = flatten({"x": 1, "y": [2, 3]})
        >>> leaves, str(structure)
        ([1, 2, 3], "{'x': *, 'y': [*, *]}")
    """
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves)


def _flatten(tree: Any, leaves: list[Any]) -> TreeDef:
    if isinstance(tree, dict):
        keys = tuple(tree)
        return TreeDef(dict, keys, tuple(_flatten(tree[k], leaves) for k in keys))
    if isinstance(tree, list):
        return TreeDef(list, (), tuple(_flatten(t, leaves) for t in tree))
    if isinstance(tree, tuple):
        return TreeDef(type(tree), (), tuple(_flatten(t, leaves) for t in tree))
    leaves.append(tree)
    return LEAF


def unflatten(structure: TreeDef, leaves: Iterable[Any]) -> Any:
    """Put ``leaves`` back into ``structure``; the inverse of `flatten`.

    Raises:
        ArgumentError: the number of leaves does not fit.
    """
    rest = iter(leaves)
    try:
        tree = _unflatten(structure, rest)
    except StopIteration:
        raise ArgumentError(f"too few leaves for the structure {structure}") from None
    if next(rest, LEAF) is not LEAF:
        raise ArgumentError(f"too many leaves for the structure {structure}")
    return tree


def _unflatten(structure: TreeDef, leaves: Iterator[Any]) -> Any:
    kind = structure.kind
    if kind is None:
        return next(leaves)
    children = [_unflatten(c, leaves) for c in structure.children]
    if kind is dict:
        return dict(zip(structure.keys, children, strict=True))
    if kind is list:
        return children
    return kind(*children) if hasattr(kind, "_fields") else tuple(children)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return ``tree`` with ``function`` applied to each leaf."""
    leaves, structure = flatten(tree)
    return unflatten(structure, [function(leaf) for leaf in leaves])
