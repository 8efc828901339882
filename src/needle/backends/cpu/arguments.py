"""The way from Python into native code: one call that checks arrays and takes their addresses.

A program is ``void entry(ptr table)``, where the table holds an address for each array. To fill it
from Python costs more than a small program takes to run; measured for each array:

====================================================  =======
``array.__array_interface__["data"][0]``              0.90 µs
``array.ctypes.data``                                 0.74 µs
``ctypes.addressof(ctypes.c_char.from_buffer(…))``    0.25 µs
`address`                                             0.25 µs
the check of its dtype, shape and strides in Python   0.30 µs
`make_call`, check and address                        0.00 µs
====================================================  =======

A call of `make_call` takes 0.30 µs with one array and 0.36 µs with twenty; where Python has to do
it, 1.2 and 11.9 µs. `make_call` hands native code the tuple of arrays; it reads the
fields of NumPy's and Python's objects while it holds the GIL, and releases the GIL while the
program runs. Where these fields lie is part of NumPy's binary interface, and is checked on a number
of arrays before it is relied on (`layout`); where it does not hold, Python fills the table.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from needle.ops.samples import Array
from needle.shapes import Spec

#: From a tuple of arrays to `DONE`, or to the index of the first that does not fit.
Call: TypeAlias = "Callable[[tuple[Array, ...]], int]"

#: The program has run.
DONE = -1
#: There are more or fewer arrays than it takes, or it was not given a tuple.
WRONG_COUNT = -2

#: Flags of an array: rows after rows without gaps, on addresses that fit the dtype; writeable.
_READY, _WRITEABLE = 0x101, 0x400


class Layout(NamedTuple):
    """Where fields lie: offsets in bytes from an object's address.

    Attributes:
        type: of any object, its type.
        size: of a tuple, how many items it has.
        items: of a tuple, the items.
        data: of an array, its data; the other fields of arrays follow at fixed distances.
    """

    type: int
    size: int
    items: int
    data: int

    @property
    def ndim(self) -> int:
        """Of an array, the number of axes (an int)."""
        return self.data + 8

    @property
    def shape(self) -> int:
        """Of an array, the address of the extents."""
        return self.data + 16

    @property
    def dtype(self) -> int:
        """Of an array, the dtype object."""
        return self.data + 40

    @property
    def flags(self) -> int:
        """Of an array, the flags (an int)."""
        return self.data + 48


@functools.cache
def layout() -> Layout | None:
    """Return where fields lie in this process; None where they are not where they should be."""
    if sys.implementation.name != "cpython" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    head = object.__basicsize__
    found = Layout(head - 8, head, tuple.__basicsize__, head)
    return found if _holds(found) else None


def _holds(where: Layout) -> bool:
    """Check a layout on arrays of all kinds."""
    base = np.zeros((4, 5, 6), np.float32)
    read_only = np.arange(3)
    read_only.flags.writeable = False
    samples = (
        base, base[1:, ::2], base.T, base[0, 0, 0:0], read_only, np.array(1.5),
        np.ones(7, np.int8)[3:], np.zeros((2, 0, 3), np.uint16), np.ones(1, bool),
        np.zeros(9, np.uint8)[1:].view(np.int64),
    )  # fmt: skip

    def word(address: int) -> int:
        return ctypes.c_ssize_t.from_address(address).value

    def short(address: int) -> int:
        return ctypes.c_int.from_address(address).value

    place = id(samples)
    if word(place + where.size) != len(samples) or word(place + where.type) != id(tuple):
        return False
    for i, array in enumerate(samples):
        if word(place + where.items + 8 * i) != id(array):
            return False
        at = id(array)
        flags = short(at + where.flags)
        expected = (
            id(np.ndarray), array.__array_interface__["data"][0], array.ndim, id(array.dtype),
            array.flags.c_contiguous and array.flags.aligned, array.flags.writeable,
        )  # fmt: skip
        seen = (
            word(at + where.type), word(at + where.data), short(at + where.ndim),
            word(at + where.dtype), flags & _READY == _READY, bool(flags & _WRITEABLE),
        )  # fmt: skip
        if seen != expected:
            return False
        extents = word(at + where.shape)
        if any(word(extents + 8 * d) != extent for d, extent in enumerate(array.shape)):
            return False
    return True


def address(array: Array) -> int:
    """Return the address of an array's data.

    Args:
        array: must be kept alive as long as the address is used.
    """
    where = layout()
    if where is None or type(array) is not np.ndarray:
        return int(array.__array_interface__["data"][0])
    return ctypes.c_void_p.from_address(id(array) + where.data).value or 0


# The description of a call, in 8-byte words: the entry, the table, the number of arrays, the types
# tuple and ndarray; then for each array its slot in the table, its dtype object, the flags it must
# have, its number of axes, and its extents.
_IR = """
declare ptr @PyEval_SaveThread()
declare void @PyEval_RestoreThread(ptr)

define i64 @needle_call(ptr %call, ptr %tuple) #0 {{
entry:
  %tuple_type_at = getelementptr i8, ptr %tuple, i64 {type}
  %tuple_type = load i64, ptr %tuple_type_at
  %tuple_wanted_at = getelementptr i64, ptr %call, i64 3
  %tuple_wanted = load i64, ptr %tuple_wanted_at
  %is_tuple = icmp eq i64 %tuple_type, %tuple_wanted
  br i1 %is_tuple, label %count, label %miscounted
count:
  %size_at = getelementptr i8, ptr %tuple, i64 {size}
  %size = load i64, ptr %size_at
  %count_at = getelementptr i64, ptr %call, i64 2
  %count_wanted = load i64, ptr %count_at
  %counted = icmp eq i64 %size, %count_wanted
  br i1 %counted, label %begin, label %miscounted
miscounted:
  ret i64 {WRONG_COUNT}
begin:
  %table_at = getelementptr i64, ptr %call, i64 1
  %table = load ptr, ptr %table_at
  %items = getelementptr i8, ptr %tuple, i64 {items}
  %type_wanted_at = getelementptr i64, ptr %call, i64 4
  %type_wanted = load i64, ptr %type_wanted_at
  %first = getelementptr i64, ptr %call, i64 5
  %any = icmp sgt i64 %size, 0
  br i1 %any, label %item, label %run
item:
  %i = phi i64 [0, %begin], [%following, %next]
  %spec = phi ptr [%first, %begin], [%spec_after, %next]
  %item_at = getelementptr ptr, ptr %items, i64 %i
  %array = load ptr, ptr %item_at
  %type_at = getelementptr i8, ptr %array, i64 {type}
  %type = load i64, ptr %type_at
  %is_array = icmp eq i64 %type, %type_wanted
  br i1 %is_array, label %fields, label %differs
fields:
  %dtype_at = getelementptr i8, ptr %array, i64 {dtype}
  %dtype = load i64, ptr %dtype_at
  %dtype_wanted_at = getelementptr i64, ptr %spec, i64 1
  %dtype_wanted = load i64, ptr %dtype_wanted_at
  %same_dtype = icmp eq i64 %dtype, %dtype_wanted
  %flags_at = getelementptr i8, ptr %array, i64 {flags}
  %flags32 = load i32, ptr %flags_at
  %flags = zext i32 %flags32 to i64
  %flags_wanted_at = getelementptr i64, ptr %spec, i64 2
  %flags_wanted = load i64, ptr %flags_wanted_at
  %flags_there = and i64 %flags, %flags_wanted
  %same_flags = icmp eq i64 %flags_there, %flags_wanted
  %ndim_at = getelementptr i8, ptr %array, i64 {ndim}
  %ndim32 = load i32, ptr %ndim_at
  %ndim = sext i32 %ndim32 to i64
  %ndim_wanted_at = getelementptr i64, ptr %spec, i64 3
  %ndim_wanted = load i64, ptr %ndim_wanted_at
  %same_ndim = icmp eq i64 %ndim, %ndim_wanted
  %some = and i1 %same_dtype, %same_flags
  %same = and i1 %some, %same_ndim
  br i1 %same, label %axes, label %differs
axes:
  %shape_at = getelementptr i8, ptr %array, i64 {shape}
  %shape = load ptr, ptr %shape_at
  %shape_wanted = getelementptr i64, ptr %spec, i64 4
  %spec_after = getelementptr i64, ptr %shape_wanted, i64 %ndim
  %has_axes = icmp sgt i64 %ndim, 0
  br i1 %has_axes, label %axis, label %next
axis:
  %d = phi i64 [0, %axes], [%d_after, %axis_fits]
  %extent_at = getelementptr i64, ptr %shape, i64 %d
  %extent = load i64, ptr %extent_at
  %extent_wanted_at = getelementptr i64, ptr %shape_wanted, i64 %d
  %extent_wanted = load i64, ptr %extent_wanted_at
  %same_extent = icmp eq i64 %extent, %extent_wanted
  br i1 %same_extent, label %axis_fits, label %differs
axis_fits:
  %d_after = add i64 %d, 1
  %more_axes = icmp slt i64 %d_after, %ndim
  br i1 %more_axes, label %axis, label %next
next:
  %data_at = getelementptr i8, ptr %array, i64 {data}
  %data = load ptr, ptr %data_at
  %slot = load i64, ptr %spec
  %slot_at = getelementptr ptr, ptr %table, i64 %slot
  store ptr %data, ptr %slot_at
  %following = add i64 %i, 1
  %more = icmp slt i64 %following, %size
  br i1 %more, label %item, label %run
differs:
  ret i64 %i
run:
  %entry_function = load ptr, ptr %call
  %thread = call ptr @PyEval_SaveThread()
  call void %entry_function(ptr %table)
  call void @PyEval_RestoreThread(ptr %thread)
  ret i64 {DONE}
}}
"""


def call_ir(where: Layout) -> str:
    """Return the IR of ``i64 needle_call(ptr description, ptr tuple)``."""
    fields = {name: getattr(where, name) for name in ("ndim", "shape", "dtype", "flags")}
    return _IR.format(**where._asdict(), **fields, DONE=DONE, WRONG_COUNT=WRONG_COUNT)


@functools.cache
def _native() -> Any:
    """Return the native function; None where it cannot be relied on."""
    where = layout()
    if where is None:
        return None
    from needle.backends.cpu import jit
    from needle.backends.cpu.module import Module

    module = Module()
    module.add_text(call_ir(where))
    symbols = {
        name: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0
        for name in ("PyEval_SaveThread", "PyEval_RestoreThread")
    }
    library = jit.load_cached(module, symbols=symbols)
    # Called with the GIL, which it releases itself, once it has read the objects.
    kind = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.py_object)
    function: Any = kind(library.address("needle_call"))
    function.library = library
    return function


def make_call(
    entry: int,
    table: Any,
    specs: Sequence[Spec],
    slots: Sequence[int],
    written: Collection[int] = (),
    keep: object = None,
) -> Call:
    """Return a function from a tuple of arrays to `DONE`, after the program has run on them.

    It runs only if each array has the shape and the dtype it is expected to have, lies row after
    row without gaps, and can be written if it is to be; otherwise nothing runs, and the result is
    the index of the first array that does not fit, or `WRONG_COUNT`. Calls with one table must not
    overlap.

    Args:
        entry: address of ``void entry(ptr table)``.
        table: array of ``ctypes.c_void_p`` that the program gets; its other slots are left alone.
        specs: what the arrays are.
        slots: where in the table each array's address belongs.
        written: the indices of the arrays that the program writes to.
        keep: what must live as long as the function, such as the library and constants.
    """
    native = _native()
    if native is None:
        return _make_python_call(entry, table, specs, slots, written, keep)
    words = [entry, ctypes.addressof(table), len(specs), id(tuple), id(np.ndarray)]
    for i, (spec, slot) in enumerate(zip(specs, slots, strict=True)):
        flags = _READY | _WRITEABLE if i in written else _READY
        words += [slot, id(spec.dtype), flags, len(spec.shape), *spec.shape]
    description = (ctypes.c_int64 * len(words))(*words)
    call: Any = functools.partial(native, ctypes.c_void_p(ctypes.addressof(description)))
    call.keep = (description, table, [spec.dtype for spec in specs], keep)
    return call


def _make_python_call(
    entry: int,
    table: Any,
    specs: Sequence[Spec],
    slots: Sequence[int],
    written: Collection[int],
    keep: object,
) -> Call:
    """Do what `make_call` says, in Python."""
    run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)
    start = ctypes.addressof(table)
    expected = [(spec.shape, spec.dtype, i in written) for i, spec in enumerate(specs)]

    def call(arrays: tuple[Array, ...]) -> int:
        if type(arrays) is not tuple or len(arrays) != len(expected):
            return WRONG_COUNT
        for i, (array, (shape, dtype, is_written)) in enumerate(zip(arrays, expected, strict=True)):
            if type(array) is not np.ndarray or array.shape != shape or array.dtype != dtype:
                return i
            flags = array.flags
            if not (flags.c_contiguous and flags.aligned and (flags.writeable or not is_written)):
                return i
            table[slots[i]] = address(array)
        run(start)
        return DONE

    call.keep = (table, keep)  # type: ignore[attr-defined]
    return call
