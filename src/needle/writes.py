"""Counts of writes: how tensors over one storage, and what was computed from it, know of a write.

A count is a list that all tensors over one storage share; its entries are, as far as there are any:

0. the writes so far;
1. up to which write constants that share the storage are stale (`needle.gradnode`); −1 for none;
2. whether somebody else may write to the storage, whose writes nobody counts: a NumPy array that
   was given to needle, or taken from it;
3. how often a trace has put the count back to what it was.

A count that is what it was, entry for entry, therefore says that the values are, too, unless it is
`is_exposed`.
"""

from __future__ import annotations

from collections.abc import Sequence


def expose(count: list[int] | None) -> None:
    """Note that the storage can be written to without being counted, from now on.

    Args:
        count: of the storage; None if its writes are not counted anyway.
    """
    if count is not None and not is_exposed(count):
        count[1:3] = [count[1] if len(count) > 1 else -1, True]


def is_exposed(count: Sequence[int]) -> bool:
    """Whether the storage can be written to without being counted."""
    return len(count) > 2 and bool(count[2])


def put_back(count: list[int], before: Sequence[int]) -> None:
    """Make a count what it was before a trace has counted writes that nobody has done.

    Writes to come reach the same numbers again, but the count is never again what it was then.

    Args:
        count: is changed.
        before: a copy of it.
    """
    stale = before[1] if len(before) > 1 else -1
    turns = count[3] if len(count) > 3 else 0
    count[:] = [before[0], stale, is_exposed(count), turns + 1]


__all__ = ["expose", "is_exposed", "put_back"]
