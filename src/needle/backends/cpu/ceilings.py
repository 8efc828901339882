"""What the machine can do at most, measured: bytes copied and multiplications added each second.

Both are measured by generated kernels on as many threads as programs run on, and kept in the cache.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from needle import dtypes
from needle.arrays import aligned
from needle.backends.cpu import cache, jit
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.operands import Index, Operand
from needle.backends.cpu.target import Target, host

#: Bytes that are copied: more than caches hold, so that memory is what is measured.
COPIED = 1 << 27
#: Bytes that each thread copies within its own cache, and how often.
CACHED, AGAIN = 1 << 17, 400
#: Bytes for each thread up to which a kernel is compared with copies within the caches.
FITS = 1 << 20
#: Turns of the loop of multiplications, and how many chains of them go on side by side.
TURNS, CHAINS = 100_000, 12
#: Of so many measurements the best is taken: others were disturbed.
REPEATS = 7


class Ceilings(NamedTuple):
    """What the machine can do at most, on a number of threads.

    Attributes:
        flops: multiplications and additions of float32 each second, by fused instructions.
        bytes: bytes read and written each second, while large arrays are copied.
        cached_bytes: the same for arrays that lie in the caches of the cores.
        threads: how many threads.
    """

    flops: float
    bytes: float
    cached_bytes: float
    threads: int

    def bytes_for(self, moved: float) -> float:
        """Return the bytes each second that a kernel could move at most.

        Args:
            moved: how many bytes it moves each time it runs.
        """
        return self.cached_bytes if moved <= FITS * self.threads else self.bytes


@functools.cache
def ceilings(threads: int) -> Ceilings:
    """Return the ceilings on ``threads`` threads: measured in half a second, or from the cache.

    Other programs that run meanwhile make them lower than they are.

    Args:
        threads: how many threads share the work.
    """
    target = host()
    key = cache.key("ceilings", repr(target), str(threads))
    entry = cache.get(key)
    if entry is not None:
        return Ceilings(**entry.metadata)
    measured = measure(threads, target)
    cache.put(key, b"", measured._asdict())
    return measured


def measure(threads: int, target: Target) -> Ceilings:
    """Return the ceilings as they are now."""
    module = Module(target)
    lanes = target.lanes(dtypes.float32)
    block = 8 * lanes
    share = COPIED // 4 // threads // block * block
    cached = CACHED // 4 // block * block
    _emit_copy(module, "copy", share, lanes, 1)
    _emit_copy(module, "copy_cached", cached, lanes, AGAIN)
    _emit_multiply(module, lanes)
    _emit_entry(module, "copy_all", "copy", threads)
    _emit_entry(module, "copy_cached_all", "copy_cached", threads)
    _emit_entry(module, "multiply_all", "multiply", threads)
    library = jit.load_cached(module)
    source = aligned((share * threads,), dtypes.float32)
    result = aligned((share * threads,), dtypes.float32)
    source[...] = 1.0
    result[...] = 0.0  # its pages are there before the clock runs
    table = (ctypes.c_void_p * 2)(source.ctypes.data, result.ctypes.data)
    done = 2 * TURNS * CHAINS * lanes * threads
    moved = 2 * 4 * share * threads
    moved_cached = 2 * 4 * cached * AGAIN * threads
    return Ceilings(
        done / _best(library, "multiply_all", table),
        moved / _best(library, "copy_all", table),
        moved_cached / _best(library, "copy_cached_all", table),
        threads,
    )


def _best(library: jit.Library, name: str, table: ctypes.Array[ctypes.c_void_p]) -> float:
    run = library.function(name, ctypes.c_void_p)
    run(ctypes.addressof(table))  # wakes the threads
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(ctypes.addressof(table))
        times.append(time.perf_counter() - start)
    return min(times)


def _emit_entry(module: Module, name: str, kernel: str, tasks: int) -> None:
    module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
    f = Function(module, name, {"args": "ptr"}, internal=False)
    f.emit(f"call void @needle_parallel(ptr @{kernel}, ptr %args, i64 {tasks})")
    f.end()


def _task_function(module: Module, name: str) -> Function:
    return Function(module, name, {"args": "ptr", "task": "i64"})


def _emit_copy(module: Module, name: str, share: int, lanes: int, turns: int) -> None:
    """Emit the copy of a task's share of the elements, eight vectors in a turn."""
    f = _task_function(module, name)
    source = f.value("load ptr, ptr %args")
    result = f.value(f"load ptr, ptr {f.value('getelementptr ptr, ptr %args, i64 1')}")
    first = f.mul_index(f.argument("task"), share)

    def body(i: Index, _: list[Operand]) -> None:
        at = f.add_index(first, i)
        offsets = [f.add_index(at, n * lanes) for n in range(8)]
        loaded = [f.load(source, offset, dtypes.float32, lanes) for offset in offsets]
        for x, offset in zip(loaded, offsets, strict=True):
            f.store(x, result, offset)

    f.loop(0, turns, 1, [], lambda *_: f.loop(0, share, 8 * lanes, [], body))
    f.end()


def _emit_multiply(module: Module, lanes: int) -> None:
    """Emit chains of multiplications and additions that stay in registers."""
    f = _task_function(module, "multiply")
    result = f.value(f"load ptr, ptr {f.value('getelementptr ptr, ptr %args, i64 1')}")
    factor, term = (f.constant(x, dtypes.float32, lanes) for x in (0.75, 0.5))
    starts = [f.constant(float(n), dtypes.float32, lanes) for n in range(CHAINS)]

    def body(_: Index, sums: list[Operand]) -> Sequence[Operand]:
        return [f.fma(x, factor, term) for x in sums]

    sums = f.loop(0, TURNS, 1, starts, body)
    add: Callable[[Operand, Operand], Operand] = f.add
    f.store(functools.reduce(add, sums), result, f.mul_index(f.argument("task"), lanes))
    f.end()
