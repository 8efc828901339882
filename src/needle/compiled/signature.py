"""The signature of a call: what must be equal for two calls to share what was compiled."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from needle.arrays import to_array
from needle.errors import ArgumentTypeError
from needle.graph.traced import is_array
from needle.tensor import Tensor

#: What the parts of tensors begin with.
TENSOR = object()


def leaf_key(leaf: Any) -> Any:
    """Return the part of the signature for a leaf of the arguments."""
    if isinstance(leaf, Tensor):
        data = leaf._data
        return TENSOR, data.shape, data.dtype, leaf._requires_grad, leaf._node is None
    if is_array(leaf):
        array = to_array(leaf, None)
        return TENSOR, array.shape, array.dtype, False, True
    return leaf.__class__, leaf


def is_hashable(value: Any) -> bool:
    """Whether ``value`` can be part of a signature."""
    try:
        hash(value)
    except TypeError:
        return False
    return True


def unhashable_error(name: str, names: Sequence[str], leaves: Sequence[Any]) -> ArgumentTypeError:
    """Return the error for an argument that cannot be part of a signature.

    Args:
        name: of the function.
        names: of the leaves.
        leaves: of the arguments.
    """
    label, leaf = next(
        (n, x) for n, x in zip(names, leaves, strict=True) if not is_hashable(leaf_key(x))
    )
    return ArgumentTypeError(
        f"{name}: the argument {label} is a {type(leaf).__name__}, neither a tensor nor hashable; "
        "what is no tensor is part of the signature: pass numbers, a tuple or a frozen dataclass, "
        "or let the function take it from outside"
    )


def what_changes(
    keys: Sequence[Any], names: Sequence[str], around: Collection[str]
) -> tuple[str, str]:
    """Return which argument differs most from call to call, and what to do about it.

    Args:
        keys: signatures, the last one that of this call.
        names: of the leaves of its arguments.
        around: what the function takes from outside and is not as it was.
    """
    key = keys[-1]
    columns: list[list[Any]] = [[] for _ in key[1]]
    for structure, parts, *_ in keys:
        if structure == key[0]:
            for column, part in zip(columns, parts, strict=True):
                if part not in column:
                    column.append(part)
    most = max(range(len(columns)), key=lambda i: len(columns[i]), default=-1)
    if most < 0 or len(columns[most]) == 1:
        listed = ", ".join(sorted(around)) or "modes or state"
        return (
            f"what it takes from outside keeps changing ({listed})",
            "Pass as an argument, or keep in a tensor, what changes",
        )
    shown = ", ".join(_show(part) for part in columns[most][-4:])
    if columns[most][0][0] is TENSOR:
        return (
            f"the shape of the argument {names[most]} keeps changing ({shown}, …)",
            "Pad it to one extent, declare the extent to vary with ndl.Dim",
        )
    return (
        f"the value of the argument {names[most]} keeps changing ({shown}, …)",
        "Pass it as a 0-d tensor or array, whose values are no part of the signature",
    )


def _show(part: Any) -> str:
    return str(list(part[1])) if part[0] is TENSOR else repr(part[1])
