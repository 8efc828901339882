"""What a program has prepared: memory, and what it was computed from.

Only memory and its age are known here. Whether it is still right, whoever calls the program says:
`needle.compiled.preparation`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np

from needle.arrays import aligned
from needle.backends.cpu.recipe import Recipe
from needle.ops.samples import Array


class Prepared:
    """Memory with values that a program takes prepared.

    Args:
        memory: where they lie.
        arrays: of the inputs that they were computed from.
        counts: of writes to these, when they were computed; see `needle.writes`.
        live: the counts themselves, which go on.
    """

    __slots__ = ("address", "arrays", "counts", "live", "memory")

    def __init__(
        self,
        memory: Array,
        arrays: Sequence[Array] = (),
        counts: Sequence[list[int]] = (),
        live: Sequence[list[int]] = (),
    ) -> None:
        self.memory = memory
        self.address = memory.ctypes.data
        self.arrays = arrays
        self.counts = counts
        self.live = live

    def is_of(self, arrays: Sequence[Array], live: Sequence[list[int]]) -> bool:
        """Whether it was computed from these arrays, as they are now."""
        return (
            len(arrays) == len(self.arrays)
            and all(a is b for a, b in zip(arrays, self.arrays, strict=True))
            and len(live) == len(self.live)
            and all(a is b for a, b in zip(live, self.live, strict=True))
            and list(live) == list(self.counts)
        )


class Store:
    """What a program has prepared last, for all who call it.

    Args:
        recipe: of the program.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._nbytes = recipe.prepared_bytes
        self._last: Prepared | None = None
        self._lock = threading.Lock()

    def new(self) -> Prepared:
        """Return memory for one call at a time, without values."""
        return Prepared(aligned((self._nbytes,), np.dtype(np.uint8)))

    def find(
        self,
        arrays: Sequence[Array],
        live: Sequence[list[int]],
        prepare: Callable[[Prepared], None],
    ) -> Prepared:
        """Return what was computed from these arrays as they are now, or have it computed.

        Args:
            arrays: of the inputs that it is computed from.
            live: counts of writes to them.
            prepare: computes it.
        """
        with self._lock:
            last = self._last
            if last is not None and last.is_of(arrays, live):
                return last
            # Before any value is read: a write from now on makes it old.
            counts = [list(count) for count in live]
            self._last = None
            # No call reads memory that nobody else holds, and none can come to hold it.
            is_free = last is not None and _references(last) <= _ALONE
            memory = last.memory if last is not None and is_free else self.new().memory
            del last
            made = Prepared(memory, tuple(arrays), counts, tuple(live))
            prepare(made)
            self._last = made
            return made


def _references(prepared: Prepared) -> int:
    return sys.getrefcount(prepared)


def _count_alone() -> int:
    alone = Prepared(np.zeros(1, np.uint8))
    return _references(alone)


#: What `Store.find` counts where it alone has it.
_ALONE = _count_alone()
