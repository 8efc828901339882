"""Copies of weights whose taps are neighbours, for correlations that would read them far apart.

A tile of a correlation reads, tap by tap, the weights of several output channels. Where the taps of
a channel lie kilobytes apart, and those of the next a power of two further, all of them fall into a
few sets of the cache: a gradient by the input of 512 channels at 4² took 33 ms, with the copy 18.
"""

from __future__ import annotations

from collections.abc import Callable

from needle import dtypes
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.dtypes import DType
from needle.ops.samples import Array

#: The words that a launched copy gets: addresses; parts of the work, `BLOCK` output channels of a
#: group or one; extents; elements between neighbours in the source; the number of tasks.
WORDS = (
    "source", "target", "units", "blocks", "block", "outs", "depth", "rows", "columns",
    "by_group", "by_out", "by_channel", "by_row", "by_column", "tasks",
)  # fmt: skip
#: Output channels that are copied together where they are neighbours: a line of float32.
BLOCK = 16
#: Elements below which one task copies all.
PARALLEL_FROM = 1 << 16


def copy_words(kernels: Array, tasks: int) -> list[int]:
    """Return `WORDS` but for the addresses.

    Args:
        kernels: [groups, O/groups, C/groups, kh, kw], with any strides.
        tasks: how many may share the work.
    """
    groups, outs, depth, rows, columns = kernels.shape
    strides = [s // kernels.itemsize for s in kernels.strides]
    block = BLOCK if strides[1] == 1 else 1
    blocks = -(-outs // block)
    tasks = 1 if kernels.size < PARALLEL_FROM else min(tasks, groups * blocks)
    return [groups * blocks, blocks, block, outs, depth, rows, columns, *strides, tasks]


def emit_weight_copy(module: Module, dtype: DType, name: str) -> str:
    """Add ``void name(ptr words)`` to the module, for all weights of a dtype.

    Returns:
        Its name.
    """
    part = _emit_part(module, dtype)
    task = Function(module, module.unique(f"{name}_task"), {"words": "ptr", "task": "i64"})
    units, tasks = (task.load("%words", WORDS.index(w), dtypes.int64) for w in ("units", "tasks"))
    this = task.argument("task")
    start = task.floordiv_index(task.mul_index(units, this), tasks)
    stop = task.floordiv_index(task.mul_index(units, task.add_index(this, 1)), tasks)

    def unit(i: Index, _: list[Operand]) -> None:
        task.emit(f"call void @{part}(ptr %words, {task.operand(i).typed})")

    task.loop(start, stop, 1, [], unit)
    task.end()

    f = Function(module, module.unique(name), {"words": "ptr"}, internal=False)
    module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
    count = f.load("%words", WORDS.index("tasks"), dtypes.int64)
    f.emit(f"call void @needle_parallel(ptr @{task.name}, ptr %words, {count.typed})")
    return f.end()


def _emit_part(module: Module, dtype: DType) -> str:
    """Emit the function of one part of the work."""
    f = Function(module, module.unique("weights_part"), {"words": "ptr", "unit": "i64"})
    source, target = (
        f.value(f"load ptr, ptr {f.pointer('%words', i, dtypes.int64)}") for i in range(2)
    )
    g = {w: f.load("%words", i, dtypes.int64) for i, w in enumerate(WORDS) if i >= 2}
    unit = f.argument("unit")
    group = f.floordiv_index(unit, g["blocks"])
    first = f.mul_index(f.mod_index(unit, g["blocks"]), g["block"])
    count = f.min_index(g["block"], f.sub_index(g["outs"], first))
    taps = f.mul_index(g["depth"], f.mul_index(g["rows"], g["columns"]))
    start = f.add_index(f.mul_index(group, g["by_group"]), f.mul_index(first, g["by_out"]))
    source = f.pointer(source, start, dtype)
    row = f.add_index(f.mul_index(group, g["outs"]), first)
    target = f.pointer(target, f.mul_index(row, taps), dtype)

    def places(c: Index, i: Index, j: Index) -> tuple[str, str]:
        """Return where the weights of a tap lie, and where they go."""
        steps = ((c, "by_channel"), (i, "by_row"), (j, "by_column"))
        here: Index = 0
        for index, step in steps:
            here = f.add_index(here, f.mul_index(index, g[step]))
        there = f.add_index(f.mul_index(c, g["rows"]), i)
        there = f.add_index(f.mul_index(there, g["columns"]), j)
        return f.pointer(source, here, dtype), f.pointer(target, there, dtype)

    def across(c: Index, i: Index, j: Index) -> None:
        here, there = places(c, i, j)

        def one(o: Index, _: list[Operand]) -> None:
            f.store(f.load(here, o, dtype), there, f.mul_index(o, taps))

        f.loop(0, count, 1, [], one)

    def along(i: Index, j: Index) -> None:
        def one(c: Index, _: list[Operand]) -> None:
            here, there = places(c, i, j)
            f.store(f.load(here, 0, dtype), there, 0)

        f.loop(0, g["depth"], 1, [], one)

    def pixels(each: Callable[[Index, Index], None]) -> None:
        def row(i: Index, _: list[Operand]) -> None:
            f.loop(0, g["columns"], 1, [], lambda j, _: each(i, j))

        f.loop(0, g["rows"], 1, [], row)

    def several() -> None:
        f.loop(0, g["depth"], 1, [], lambda c, _: pixels(lambda i, j: across(c, i, j)))

    f.branch(f.compare("sgt", g["block"], f.operand(1)), several, lambda: pixels(along))
    return f.end()
