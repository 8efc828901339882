"""Memory that eager kernels work in, kept from call to call."""

from __future__ import annotations

import contextlib

from needle import dtypes
from needle.arrays import aligned
from needle.ops.samples import Array

#: Workspaces not in use: new memory of their size would be cleared page by page for each call.
_idle: list[Array] = []


def take(size: int) -> Array:
    """Return a workspace of at least ``size`` bytes; one that is too small is let go."""
    with contextlib.suppress(IndexError):
        workspace = _idle.pop()
        if workspace.size >= size:
            return workspace
    return aligned((size,), dtypes.uint8)


def give_back(workspace: Array) -> None:
    """Let others take a workspace."""
    _idle.append(workspace)
