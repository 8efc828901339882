"""A kernel's function: what all kinds of kernels share.

A kernel is ``void name(ptr args, i64 task)``. ``args`` is a table of its own: the addresses of the
values that it reads and writes, in the order in which its code first asks for them. The program's
entry fills it in. So the code of a kernel does not say where in the program it stands, and kernels
that compute the same, in the layers of a network, are one function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from needle import dtypes
from needle.backends.cpu.emit import Emitter
from needle.backends.cpu.fault import Fault
from needle.backends.cpu.module import Module
from needle.backends.cpu.operands import Index, Operand
from needle.backends.cpu.status import LOCK_WORD, ROWS_WORD, TASKS_WORD
from needle.backends.cpu.vector_math import MathFunction
from needle.compiler.rows import affine_in, rows_in
from needle.graph.ir import Value


class Location(NamedTuple):
    """Where a value lies: a slot of the table of buffers, and bytes from there.

    Attributes:
        slot: of the table.
        offset: bytes; for each row, if ``by_rows``.
        by_rows: whether the offset is a multiple of the rows of a call.
    """

    slot: int
    offset: int = 0
    by_rows: bool = False


class Addresses:
    """The table of a kernel's addresses, while the kernel is emitted."""

    def __init__(self) -> None:
        self._numbers: dict[Location, int] = {}

    def number_of(self, location: Location) -> int:
        """Return the place in the table at which the address of ``location`` stands."""
        return self._numbers.setdefault(location, len(self._numbers))

    def locations(self) -> tuple[Location, ...]:
        """Return what the table consists of, in order."""
        return tuple(self._numbers)


class KernelFunction:
    """The function of a kernel, or of a part of one, while it is emitted.

    Args:
        f: the function.
        args: the name of its pointer to the table of addresses.
        addresses: the table; grows.
        locations: where values in memory lie.
        own: the values that the kernel computes.
        faults: the program's list of what can be reported; grows.
        status_slot: slot of the status.
        mark: what stands for the rows of a call in the graph; 0 if nothing does.
    """

    def __init__(
        self,
        f: MathFunction,
        args: str,
        addresses: Addresses,
        locations: Callable[[Value], Location | None],
        own: set[Value],
        faults: list[Fault],
        status_slot: int,
        mark: int = 0,
    ) -> None:
        self.f = f
        self.addresses = addresses
        self._status_slot = status_slot
        self.mark = mark
        self._args = args
        self._locations = locations
        self.own = own
        self._faults = faults
        self._pointers: dict[Location, str] = {}
        self._status: str | None = None
        self._words: dict[int, Operand] = {}
        self._extents: dict[int, Index] = {}
        self.emitter = Emitter(self.f, self.pointer_of, self.is_loaded, self._fault, self.extent)

    @classmethod
    def make(
        cls,
        module: Module,
        name: str,
        locations: Callable[[Value], Location | None],
        own: set[Value],
        faults: list[Fault],
        status_slot: int,
        mark: int = 0,
    ) -> KernelFunction:
        """Return a new kernel's function."""
        f = MathFunction(module, name, {"args": "ptr", "task": "i64"})
        return cls(f, "%args", Addresses(), locations, own, faults, status_slot, mark)

    def part(self, f: MathFunction, args: str) -> KernelFunction:
        """Return another function that computes a part of the kernel."""
        return KernelFunction(
            f,
            args,
            self.addresses,
            self._locations,
            self.own,
            self._faults,
            self._status_slot,
            self.mark,
        )

    def is_written(self, value: Value) -> bool:
        """Whether a value that the kernel computes gets memory."""
        return value in self.own and self._locations(value) is not None

    def is_loaded(self, value: Value) -> bool:
        """Whether a value lies in memory when the kernel starts."""
        return value not in self.own and self._locations(value) is not None

    def is_same_place(self, a: Value, b: Value) -> bool:
        """Whether two values in memory lie in the same place."""
        location = self._locations(a)
        return location is not None and location == self._locations(b)

    def pointer_of(self, value: Value) -> str:
        """Return the address of a value in memory."""
        location = self._locations(value)
        assert location is not None
        return self.pointer_to(location)

    def pointer_to(self, location: Location) -> str:
        """Return an address, from the table."""
        pointer = self._pointers.get(location)
        if pointer is None:
            number = self.addresses.number_of(location)
            address = self.f.at_entry(f"getelementptr ptr, ptr {self._args}, i64 {number}")
            pointer = self._pointers[location] = self.f.at_entry(f"load ptr, ptr {address}")
        return pointer

    def status(self) -> str:
        """Return the address of the program's status."""
        return self.pointer_to(Location(self._status_slot))

    def task_range(self, bounds: Sequence[int]) -> tuple[Index, Index]:
        """Return the start and the stop of this task, from the bounds of all."""
        f = self.f
        listed = ", ".join(f"i64 {b}" for b in bounds)
        name = f.module.constant("bounds", f"[{len(bounds)} x i64] [{listed}]")
        first = f.at_entry(f"getelementptr i64, ptr @{name}, i64 %task")
        second = f.at_entry(f"getelementptr i64, ptr {first}, i64 1")
        start = Operand(f.at_entry(f"load i64, ptr {first}"), dtypes.int64)
        stop = Operand(f.at_entry(f"load i64, ptr {second}"), dtypes.int64)
        return start, stop

    # Rows: extents that are given at each call

    def word(self, number: int) -> Operand:
        """Return a word of the status, as it is when the kernel starts."""
        if number not in self._words:
            status = self.status()
            address = self.f.at_entry(f"getelementptr i64, ptr {status}, i64 {number}")
            text = self.f.at_entry(f"load i64, ptr {address}")
            self._words[number] = Operand(text, dtypes.int64)
        return self._words[number]

    def extent(self, extent: int) -> Index:
        """Return an extent, or what is computed from one: the number, or ``a · rows + b`` for the
        rows of this call."""
        if not self.mark:
            return extent
        times, rest = affine_in(extent, self.mark)
        if not times:
            return extent
        found = self._extents.get(extent)
        if found is None:
            text = self.word(ROWS_WORD).text
            if times != 1:
                text = self.f.at_entry(f"mul i64 {text}, {times}")
            if rest:
                text = self.f.at_entry(f"add i64 {text}, {rest}")
            found = self._extents[extent] = Operand(text, dtypes.int64)
        return found

    def range_of(self, extent: int, tasks: int, unit: int = 1) -> tuple[Index, Index]:
        """Return the part of a loop that this task runs, in whole units but for the end."""
        if rows_in(extent):
            return self.share_of(extent, unit)
        units = -(-extent // unit)
        return self.task_range([min(units * t // tasks * unit, extent) for t in range(tasks + 1)])

    def share_of(self, extent: int, unit: int) -> tuple[Index, Index]:
        """Return the part of an extent of rows that this task runs, in multiples of ``unit``."""
        total = self.extent(extent)
        assert isinstance(total, Operand)
        tasks = self.word(TASKS_WORD)

        def bound(task: str) -> Operand:
            f = self.f
            units = f.at_entry(f"add i64 {total.text}, {unit - 1}")
            units = f.at_entry(f"udiv i64 {units}, {unit}")
            part = f.at_entry(f"mul i64 {units}, {task}")
            part = f.at_entry(f"udiv i64 {part}, {tasks.text}")
            part = f.at_entry(f"mul i64 {part}, {unit}")
            less = f.at_entry(f"icmp slt i64 {part}, {total.text}")
            return Operand(
                f.at_entry(f"select i1 {less}, i64 {part}, i64 {total.text}"), dtypes.int64
            )

        following = self.f.at_entry("add i64 %task, 1")
        return bound("%task"), bound(following)

    # Faults

    def _fault(self, bad: Operand, x: Operand, place: Operand, fault: Fault) -> None:
        """Note the first bad value, in memory of the task's own: its fault, place and value."""
        f = self.f
        if self._status is None:
            self._status = f.at_entry("alloca [3 x i64]")
            f.at_entry_line(f"store i64 0, ptr {self._status}")
        self._faults.append(fault)
        number = f.constant(len(self._faults), dtypes.int64)
        if bad.lanes:
            lanes, places = bad.lanes, f.select(bad, place, f.like(2**63 - 1, place))
            place = f.fold(places, f.minimum)
            is_first = f.compare("eq", places, f.splat(place, lanes))
            x = f.fold(f.select(is_first, f.splat(x, lanes), f.like(-(2**63), places)), f.maximum)
            bad = f.any(bad)
        old = f.load(self._status, 0, dtypes.int64)
        first = f.binary("and", bad, f.compare("eq", old, f.like(0, old)))
        for word, new in enumerate((number, place, x)):
            before = old if word == 0 else f.load(self._status, word, dtypes.int64)
            f.store(f.select(first, new, before), self._status, word)

    def end(self) -> str:
        """Report a fault, if there was one, and end the function."""
        self.report()
        return self.f.end()

    def report(self) -> None:
        """Tell the program of this task's fault, unless an earlier kernel or place has one."""
        f = self.f
        if self._status is None:
            return
        own, status = self._status, self.status()
        words = [f.load(own, word, dtypes.int64) for word in range(3)]
        number, place, _ = words
        lock = f.pointer(status, LOCK_WORD, dtypes.int64)

        def acquire(_: list[Operand]) -> tuple[Operand, list[Operand]]:
            result = f.value(f"cmpxchg ptr {lock}, i64 0, i64 1 acquire monotonic")
            won = Operand(f.value(f"extractvalue {{i64, i1}} {result}, 1"), dtypes.bool)
            return f.logical_not(won), []

        def tell() -> None:
            f.repeat([], acquire)
            before = [f.load(status, word, dtypes.int64) for word in range(2)]
            same = f.compare("eq", before[0], number)
            counts = f.binary("and", same, f.compare("slt", place, before[1]))
            for condition in (
                f.compare("eq", before[0], f.like(0, number)),
                f.compare("ult", number, before[0]),
            ):
                counts = f.binary("or", counts, condition)
            f.branch(counts, lambda: _store_words(f, words, status))
            f.emit(f"store atomic i64 0, ptr {lock} release, align 8")

        f.branch(f.compare("ne", number, f.like(0, number)), tell)


def _store_words(f: MathFunction, words: Sequence[Operand], pointer: str) -> None:
    for i, word in enumerate(words):
        f.store(word, pointer, i)
