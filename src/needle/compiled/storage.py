"""Checks of the memory that a compiled function is given: what shares storage with what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from needle.errors import TraceError
from needle.ops.samples import Array

#: How much work NumPy may spend on whether two arrays overlap; beyond, they are taken to.
_MAX_WORK = 1000


def root_of(array: Array) -> Any:
    """Return what owns the memory of an array: itself, or what it is a view of."""
    base = array.base
    return array if base is None else base


def is_behaved(array: Array) -> bool:
    """Whether compiled code can read an array in place: C-contiguous and aligned."""
    flags = array.flags
    return flags.c_contiguous and flags.aligned


def overlap(a: Array, b: Array) -> bool:
    """Whether two arrays have an element in common."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=_MAX_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return True


def check_apart(arrays: Sequence[Array], written: Iterable[int], names: Sequence[str]) -> None:
    """Raise if an array that is written shares memory with another one.

    Args:
        arrays: all arrays of a program.
        written: the indices of those that are overwritten.
        names: what errors call them.

    Raises:
        TraceError: two share memory.
    """
    marked = set(written)
    if not marked:
        return
    bounds = [(*np.lib.array_utils.byte_bounds(a), i) for i, a in enumerate(arrays) if a.size]
    bounds.sort()
    open_: list[tuple[int, int]] = []
    for low, high, i in bounds:
        open_ = [(end, j) for end, j in open_ if end > low]
        for _, j in open_:
            if (i in marked or j in marked) and overlap(arrays[i], arrays[j]):
                first, second = (i, j) if i in marked else (j, i)
                raise TraceError(
                    f"{names[first] or 'a tensor'} is overwritten, and shares its memory with "
                    f"{names[second] or 'another tensor'}: a compiled function would not see the "
                    "one in the other; clone() one of them, or write to views inside of the "
                    "function only"
                )
        open_.append((high, i))
