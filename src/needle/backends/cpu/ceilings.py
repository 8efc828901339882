"""What the machine can do at most, measured: bytes copied and multiplications added each second.

Both are measured by generated kernels on as many threads as programs run on, and kept in the cache.
"""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from needle import dtypes
from needle.backends.cpu import cache, jit
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.operands import Index, Operand
from needle.backends.cpu.recipe import aligned
from needle.backends.cpu.target import Target, host
from needle.shapes import Spec

#: Bytes that are copied: more than caches hold, so that memory is what is measured.
COPIED = 1 << 27
#: Turns of the loop of multiplications, and how many chains of them go on side by side.
TURNS, CHAINS = 100_000, 12
#: Of so many measurements the best is taken: others were disturbed.
REPEATS = 7


class Ceilings(NamedTuple):
    """What the machine can do at most, on a number of threads.

    Attributes:
        flops: multiplications and additions of float32 each second, by fused instructions.
        bytes: bytes read and written each second, while large arrays are copied.
    """

    flops: float
    bytes: float


@functools.cache
def ceilings(threads: int) -> Ceilings:
    """Return the ceilings on ``threads`` threads: measured in 0.3 s, or from the cache.

    Args:
        threads: how many threads share the work.
    """
    target = host()
    key = cache.key("ceilings", repr(target), str(threads))
    entry = cache.get(key)
    if entry is not None:
        return Ceilings(float(entry.metadata["flops"]), float(entry.metadata["bytes"]))
    measured = measure(threads, target)
    cache.put(key, b"", measured._asdict())
    return measured


def measure(threads: int, target: Target) -> Ceilings:
    """Return the ceilings as they are now."""
    module = Module(target)
    lanes = target.lanes(dtypes.float32)
    block = 8 * lanes
    share = COPIED // 4 // threads // block * block
    _emit_copy(module, share, lanes)
    _emit_multiply(module, lanes)
    _emit_entry(module, "copy_all", "copy", threads)
    _emit_entry(module, "multiply_all", "multiply", threads)
    library = jit.load_cached(module)
    source = aligned(Spec((share * threads,), np.dtype(np.float32)))
    result = aligned(Spec((share * threads,), np.dtype(np.float32)))
    source[...] = 1.0
    result[...] = 0.0  # its pages are there before the clock runs
    table = (ctypes.c_void_p * 2)(source.ctypes.data, result.ctypes.data)
    moved = 2 * 4 * share * threads
    done = 2 * TURNS * CHAINS * lanes * threads
    return Ceilings(
        done / _best(library, "multiply_all", table), moved / _best(library, "copy_all", table)
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


def _emit_copy(module: Module, share: int, lanes: int) -> None:
    """Emit the copy of a task's share of the elements, eight vectors in a turn."""
    f = _task_function(module, "copy")
    source = f.value("load ptr, ptr %args")
    result = f.value(f"load ptr, ptr {f.value('getelementptr ptr, ptr %args, i64 1')}")
    first = f.mul_index(f.argument("task"), share)

    def body(i: Index, _: list[Operand]) -> None:
        at = f.add_index(first, i)
        offsets = [f.add_index(at, n * lanes) for n in range(8)]
        loaded = [f.load(source, offset, dtypes.float32, lanes) for offset in offsets]
        for x, offset in zip(loaded, offsets, strict=True):
            f.store(x, result, offset)

    f.loop(0, share, 8 * lanes, [], body)
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
