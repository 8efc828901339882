"""Stamps: the times at which the kernels of a program start and end, noted by its own entry.

The entry of a program that is profiled calls ``clock_gettime`` before its first kernel and after
each: 25 ns each time, where the counter of the processor's cycles would take 10, but may not be
read everywhere, and has to be compared with a clock first. Where they are written is one more slot
of the table, behind those of the recipe.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from needle.backends.cpu.llvm import Function

#: The clock of `time.perf_counter` on Linux; the other is for systems that lack it.
CLOCK: int | None = getattr(time, "CLOCK_MONOTONIC", None)


def now() -> int:
    """Return the time on the clock of the stamps, in nanoseconds."""
    return time.perf_counter_ns() if CLOCK is None else time.clock_gettime_ns(CLOCK)


def stamp_buffer(count: int) -> Any:
    """Return memory for ``count`` stamps: seconds and nanoseconds of each."""
    return (ctypes.c_int64 * (2 * count))()


def stamp_times(buffer: Any) -> list[int]:
    """Return the times in a buffer, in nanoseconds."""
    words = list(buffer)
    return [s * 1_000_000_000 + ns for s, ns in zip(words[::2], words[1::2], strict=True)]


def stamper(f: Function, slot: int) -> Callable[[], None]:
    """Return what emits a stamp into a program's entry; the n-th goes to place n.

    Args:
        f: the entry.
        slot: of the table, for the address of the stamps.
    """
    f.module.declare("clock_gettime", "i32", ["i32", "ptr"])
    address = f.value(f"getelementptr ptr, ptr %args, i64 {slot}")
    buffer = f.value(f"load ptr, ptr {address}")
    count = 0

    def stamp() -> None:
        nonlocal count
        place = f.value(f"getelementptr i64, ptr {buffer}, i64 {2 * count}")
        f.value(f"call i32 @clock_gettime(i32 {CLOCK}, ptr {place})")
        count += 1

    return stamp
