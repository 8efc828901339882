"""What every call of a program needs, however it gets there: a table, and outputs in their places.

A program's code takes a table of pointers. Those to inputs and new outputs change with each call;
the arena, the status and the constants stay. What the code does not write itself, its recipe says:
outputs that are copies, and results that go back to an input only when the program has ended.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle import dtypes
from needle.arrays import aligned
from needle.backends.cpu.recipe import Recipe
from needle.backends.cpu.status import ROWS_WORD, STATUS_WORDS
from needle.ops.samples import Array


class Table:
    """The table of one call at a time, with an arena of its own.

    Args:
        recipe: of the program.
        extra: how many slots it has besides those of the recipe, which come first.

    Attributes:
        slots: the pointers.
        address: of the first slot.
        status: words that the code reads and writes, the reported fault first.
    """

    def __init__(self, recipe: Recipe, extra: int = 0) -> None:
        self.slots: Any = (ctypes.c_void_p * (recipe.slots + extra))()
        self.address = ctypes.addressof(self.slots)
        self.status: Any = (ctypes.c_int64 * STATUS_WORDS)()
        self.arena = aligned((recipe.arena_bytes,), dtypes.uint8)
        self.slots[recipe.arena_slot] = self.arena.ctypes.data
        #: Of values that have rows; for as many rows as there have been.
        self.row_arena = aligned((0,), dtypes.uint8)
        self.rows = 0
        self.slots[recipe.status_slot] = ctypes.addressof(self.status)
        for i, constant in enumerate(recipe.constants[: recipe.addressed]):
            self.slots[recipe.first_constant + i] = constant.ctypes.data

    def set_rows(self, recipe: Recipe, rows: int) -> None:
        """Prepare for a call with so many rows."""
        self.rows = self.status[ROWS_WORD] = rows
        if recipe.row_bytes * rows > self.row_arena.nbytes:
            self.row_arena = aligned((recipe.row_bytes * rows,), dtypes.uint8)
            self.slots[recipe.rows_slot] = self.row_arena.ctypes.data

    def take_fault(self) -> tuple[int, int, int]:
        """Return what the code has reported, and forget it: the number of the fault, counted from
        1, the place and the value."""
        number, place, value = self.status[:3]
        self.status[:3] = (0, 0, 0)
        return number, place, value


def collect(recipe: Recipe, arrays: Sequence[Array], new: Sequence[Array]) -> list[Array]:
    """Return the outputs in their order: new arrays, and inputs that were overwritten."""
    fresh = iter(new)
    return [
        arrays[o.source] if o.slot is None and o.source is not None else next(fresh)
        for o in recipe.outputs
    ]


def has_copies(recipe: Recipe) -> bool:
    """Whether `run_with_copies` has anything to copy."""
    return any(
        o.copy is not None or (o.slot is not None and o.source is not None) for o in recipe.outputs
    )


def run_with_copies(
    recipe: Recipe, arrays: Sequence[Array], new: Sequence[Array], run: Callable[[], None]
) -> list[Array]:
    """Run a program some of whose outputs are copies of inputs, of constants or of other outputs.

    Args:
        recipe: of the program.
        arrays: the inputs.
        new: the new arrays.
        run: runs the code on them.

    Returns:
        The outputs.
    """
    outputs = recipe.outputs
    before = {
        i: arrays[o.copy[1]].copy()
        for i, o in enumerate(outputs)
        if o.copy is not None and o.copy[0] == "input"
    }
    run()
    results = collect(recipe, arrays, new)
    for i, o in enumerate(outputs):
        if o.copy is None:
            continue
        kind, place = o.copy
        if kind == "input":
            results[i][...] = before[i]
        else:
            source = results if kind == "output" else recipe.constants
            results[i][...] = source[place]
    for i, o in enumerate(outputs):
        if o.source is not None and o.slot is not None:
            np.copyto(arrays[o.source], results[i])
            results[i] = arrays[o.source]
    return results
