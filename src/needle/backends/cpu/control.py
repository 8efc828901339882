"""Control flow in a program: graphs inside of the graph become functions that its kernels call.

An inner graph is a program of its own in the same module, with a table of buffers, an arena and
kernels that may run on several threads. Table and arena lie in the workspace of the control flow's
kernel, which runs once, as one task. It fills in the pointers: to the operands where they lie, to
the slice of each stack that a turn reads or writes, and to what is carried, which changes between
two buffers. So a turn costs a call and a few stores, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from needle import dtypes
from needle.backends.cpu.gemm import emit_packing, packed_bytes
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.operands import Index, Operand
from needle.compiler.access import View, view_of
from needle.compiler.fusion import Group
from needle.compiler.memory import ALIGNMENT
from needle.graph.ir import Graph, Value
from needle.ops.control import LOOP, split_loop
from needle.ops.samples import Array

if TYPE_CHECKING:
    from needle.backends.cpu.program import Program

_POINTER = 8
#: Turns from which factors of products are packed ahead of a loop: in fewer it does not pay.
LONG = 8


@dataclass
class Surroundings:
    """What a kernel of control flow has to know of the program that it is in.

    Attributes:
        make: returns an inner graph as a program of the same module, given which of its inputs
            stay what they are for many calls.
        is_stored: whether a value lies in memory.
        is_read: whether anything reads a value of the graph.
    """

    make: Callable[[Graph, Sequence[Value]], Program]
    is_stored: Callable[[Value], bool]
    is_read: Callable[[Value], bool]


class Room:
    """Memory of the workspace, given out piece by piece."""

    def __init__(self) -> None:
        self.nbytes = 0

    def take(self, nbytes: int) -> int:
        """Return the offset of a new piece."""
        offset = self.nbytes
        self.nbytes += -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        return offset


class Inner:
    """An inner graph: its function, and where its table and arena lie in the workspace."""

    def __init__(
        self,
        graph: Graph,
        surroundings: Surroundings,
        room: Room,
        fixed: Sequence[Value] = (),
    ) -> None:
        self.program = surroundings.make(graph, fixed)
        self.layout = self.program.layout
        self.table = room.take(self.layout.slots * _POINTER)
        self.arena = room.take(self.layout.memory.nbytes)
        assert not self.layout.copies
        #: The slot of each output.
        self.outputs = [slot for slot in self.layout.outputs if slot is not None]

    def emit(self, kernel: KernelFunction, workspace: str, status: str) -> InnerCall:
        """Emit what has to be done before it can be called."""
        call = InnerCall(kernel.f, self, _at(kernel.f, workspace, self.table))
        call.set(self.layout.arena_slot, _at(kernel.f, workspace, self.arena))
        call.set(self.layout.status_slot, status)
        # Numbers that kernels read through pointers; larger constants are inputs.
        for i, constant in enumerate(self.layout.constants, self.layout.first_constant):
            call.set(i, f"@{_global(kernel.f.module, constant)}")
        return call


@dataclass
class InnerCall:
    """The table of an inner graph, and calls of its function, in the code of a kernel."""

    f: Function
    inner: Inner
    table: str

    def slot(self, number: int) -> str:
        """Return the address of a slot."""
        return _at(self.f, self.table, number * _POINTER)

    def set(self, number: int, pointer: str) -> None:
        """Store a pointer in a slot."""
        self.f.emit(f"store ptr {pointer}, ptr {self.slot(number)}")

    def get(self, number: int) -> str:
        """Load the pointer of a slot."""
        return self.f.value(f"load ptr, ptr {self.slot(number)}")

    def run(self) -> None:
        """Call the function."""
        self.f.emit(f"call void @{self.inner.program.name}(ptr {self.table})")


@dataclass
class ControlPlan:
    """Control flow as a kernel of a program; see `AnchorPlan`.

    Attributes:
        group: the kernel's group.
        surroundings: of the kernel.
        views: where the operands lie.
        room: the workspace.
        tasks: one: what is inside may be shared, but not this.
        workspace: bytes that the kernel needs to itself.
    """

    group: Group
    surroundings: Surroundings
    views: dict[Value, View] = field(default_factory=dict)
    room: Room = field(default_factory=Room)
    tasks: int = 1
    workspace: int = 0

    def __post_init__(self) -> None:
        node = self.group.anchor
        assert node is not None
        self.node = node
        for operand in node.inputs:
            view = view_of(operand, self.surroundings.is_stored)
            assert view is not None
            self.views[operand] = view
        self.plan()
        self.workspace = self.room.nbytes

    def plan(self) -> None:
        """Make the inner programs, and take room."""
        raise NotImplementedError  # abstract

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel."""
        raise NotImplementedError  # abstract

    def pointer(self, kernel: KernelFunction, value: Value) -> str:
        """Return the address of an operand."""
        view = self.views[value]
        base = kernel.pointer_of(view.base)
        return kernel.f.pointer(base, view.offset, view.base.dtype)

    def scalar(self, kernel: KernelFunction, value: Value) -> Operand:
        """Return a 0-d operand, a bool or an integer, as an int64."""
        f = kernel.f
        x = f.load(self.pointer(kernel, value), 0, value.dtype)
        return f.convert(x, dtypes.int64)


class SwitchPlan(ControlPlan):
    """A switch: one of several inner programs is called."""

    def plan(self) -> None:
        # They never run in one go, so they share the room.
        rooms = []
        self.branches = []
        for graph in self.node.attrs["branches"]:
            room = Room()
            self.branches.append(Inner(graph, self.surroundings, room))
            rooms.append(room.nbytes)
        self.room.take(max(rooms))
        self.unread = {
            v: self.room.take(v.nbytes)
            for v in self.node.results
            if not self.surroundings.is_read(v)
        }

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        f = kernel.f
        index, *operands = self.node.inputs
        number = self.scalar(kernel, index)
        last = len(self.branches) - 1
        number = f.minimum(f.maximum(number, f.like(0, number)), f.like(last, number))
        status = kernel.status()
        given = [self.pointer(kernel, v) for v in operands]
        results = [
            _at(f, workspace, self.unread[v]) if v in self.unread else kernel.pointer_of(v)
            for v in self.node.results
        ]

        def case(branch: Inner) -> Callable[[], None]:
            def run() -> None:
                call = branch.emit(kernel, workspace, status)
                for i, pointer in enumerate(given):
                    call.set(i, pointer)
                for slot, pointer in zip(branch.outputs, results, strict=True):
                    call.set(slot, pointer)
                call.run()

            return run

        f.switch(number, [case(branch) for branch in self.branches])


class LoopPlan(ControlPlan):
    """A loop around the call of an inner program."""

    def plan(self) -> None:
        node, attrs = self.node, self.node.attrs
        is_read = self.surroundings.is_read
        # What no turn changes is packed once for the products of many.
        body: Graph = attrs["body"]
        is_long = (attrs["length"] or 0) >= LONG
        fixed = body.inputs[attrs["carries"] + attrs["scanned"] :] if is_long else []
        self.body = Inner(body, self.surroundings, self.room, fixed)
        self.packed = {
            body.inputs.index(value): (product, self.room.take(packed_bytes(product)))
            for value, product in self.body.program.packed.items()
        }
        self.test = None
        if attrs["test"] is not None:
            self.test = Inner(attrs["test"], self.surroundings, self.room)
            self.verdict = self.room.take(1)
        self.first, self.stacks, self.constants, self.others, self.count = split_loop(
            node.inputs, **attrs
        )
        carries: int = attrs["carries"]
        self.length: int | None = attrs["length"]
        self.final = node.results[:carries]
        rest = node.results[carries:]
        self.turns = rest[0] if self.test is not None else None
        self.stacked = rest[1:] if self.test is not None else rest
        # What is carried changes between the place of the result and another one.
        self.places = [
            (None if is_read(v) else self.room.take(v.nbytes), self.room.take(v.nbytes))
            for v in self.final
        ]
        #: Where slices go that nobody reads.
        self.unread = {v: self.room.take(_row_bytes(v)) for v in self.stacked if not is_read(v)}
        if self.turns is not None and not is_read(self.turns):
            self.unread[self.turns] = self.room.take(self.turns.nbytes)

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        f = kernel.f
        self.kernel = kernel
        status = kernel.status()
        body = self.body.emit(kernel, workspace, status)
        count, scanned = len(self.first), len(self.stacks)
        for i, value in enumerate(self.constants, count + scanned):
            pointer = self.pointer(kernel, value)
            if i in self.packed:
                product, offset = self.packed[i]
                source, pointer = pointer, _at(f, workspace, offset)
                emit_packing(f.module, product)(f, source, pointer)
            body.set(i, pointer)
        carry = [self._carry(kernel, workspace, body, j) for j in range(count)]
        slices = self._slices(kernel, workspace)
        test = None if self.test is None else self.test.emit(kernel, workspace, status)
        if test is not None:
            for i, value in enumerate(self.others, count):
                test.set(i, self.pointer(kernel, value))
            test.set(test.inner.outputs[0], _at(f, workspace, self.verdict))

        def turn(at: Index) -> None:
            for slot, base, step in slices:
                body.set(slot, f.pointer(base, f.mul_index(at, step), dtypes.uint8))
            body.run()
            for j, spare in enumerate(carry):
                new = body.get(self.body.outputs[j])
                body.set(j, new)
                body.set(self.body.outputs[j], f.value(f"load ptr, ptr {spare}"))
                f.emit(f"store ptr {new}, ptr {spare}")

        turns = self._for(turn) if test is None else self._while(turn, body, test, status)
        self._finish(kernel, body, workspace, turns)

    def _carry(self, kernel: KernelFunction, workspace: str, body: InnerCall, j: int) -> str:
        """Set the pointers of a carried value for the first turn; return where that of the buffer
        after the next is kept."""
        f, value = kernel.f, self.final[j]
        own, other = self.places[j]
        result = kernel.pointer_of(value) if own is None else _at(f, workspace, own)
        pair = [result, _at(f, workspace, other)]
        is_known = self.count is None and self.test is None
        if is_known and self.length is not None and self.length % 2 == 0:
            pair.reverse()  # so that the last turn writes the result
        spare = f.at_entry("alloca ptr")
        body.set(j, self.pointer(kernel, self.first[j]))
        body.set(self.body.outputs[j], pair[0])
        f.emit(f"store ptr {pair[1]}, ptr {spare}")
        return spare

    def _slices(self, kernel: KernelFunction, workspace: str) -> list[tuple[int, str, int]]:
        """Return for each slice its slot in the body's table, the stack, and bytes per step."""
        f = kernel.f
        found = []
        for i, stack in enumerate(self.stacks, len(self.first)):
            view = self.views[stack]
            step = view.strides[0] * stack.dtype.itemsize
            found.append((i, self.pointer(kernel, stack), step))
        for slot, stack in zip(self.body.outputs[len(self.first) :], self.stacked, strict=True):
            if stack in self.unread:
                found.append((slot, _at(f, workspace, self.unread[stack]), 0))
            else:
                found.append((slot, kernel.pointer_of(stack), _row_bytes(stack)))
        return found

    def _for(self, turn: Callable[[Index], None]) -> Index:
        """Emit a loop whose number of turns is known before; return it."""
        f = self.kernel.f
        turns: Index
        if self.count is None:
            assert self.length is not None
            turns = self.length
        else:
            given = self.scalar(self.kernel, self.count)
            given = f.maximum(given, f.like(0, given))
            turns = given if self.length is None else f.minimum(given, f.like(self.length, given))
        is_reverse = self.node.attrs["reverse"]
        last = f.sub_index(turns, 1)

        def body(i: Index, _: list[Operand]) -> None:
            turn(f.sub_index(last, i) if is_reverse else i)

        f.loop(0, turns, 1, [], body)
        return turns

    def _while(
        self, turn: Callable[[Index], None], body: InnerCall, test: InnerCall, status: str
    ) -> Operand:
        """Emit a loop that goes on while the test holds; return the number of turns."""
        f = self.kernel.f
        zero, false = f.constant(0, dtypes.int64), f.constant(False, dtypes.bool)

        def holds() -> list[Operand]:
            for j in range(len(self.first)):
                test.set(j, body.get(j))
            test.run()
            verdict = f.load(test.get(test.inner.outputs[0]), 0, dtypes.bool)
            # After a fault, values mean nothing, and might go on for ever.
            good = f.compare("eq", f.load(status, 0, dtypes.int64), zero)
            return [f.binary("and", verdict, good)]

        def again(state: list[Operand]) -> tuple[Operand, list[Operand]]:
            (done,) = state
            turn(done)
            done = f.add(done, f.like(1, done))
            if self.length is None:
                return holds()[0], [done]
            more = f.less(done, f.like(self.length, done))
            return f.branch(more, holds, lambda: [false])[0], [done]

        if self.length == 0:
            return zero
        return f.branch(holds()[0], lambda: f.repeat([zero], again), lambda: [zero])[0]

    def _finish(
        self, kernel: KernelFunction, body: InnerCall, workspace: str, turns: Index
    ) -> None:
        """Bring the results to their places."""
        f = kernel.f
        if self.turns is not None:
            unread = self.unread.get(self.turns)
            place = kernel.pointer_of(self.turns) if unread is None else _at(f, workspace, unread)
            f.store(f.operand(turns), place, 0)
        if isinstance(turns, int) and turns:
            return
        for j, value in enumerate(self.final):
            if self.places[j][0] is not None:
                continue
            result, held = kernel.pointer_of(value), body.get(j)
            is_elsewhere = Operand(f.value(f"icmp ne ptr {held}, {result}"), dtypes.bool)

            def copy(result: str = result, held: str = held, value: Value = value) -> None:
                _copy(f, result, held, value.nbytes)

            f.branch(is_elsewhere, copy)
        for stack in self.stacked:
            if stack in self.unread or not stack.size:
                continue
            row = _row_bytes(stack)
            _clear(f, kernel.pointer_of(stack), f.mul_index(turns, row), stack.nbytes)


def plan_control(group: Group, surroundings: Surroundings) -> ControlPlan:
    """Return the plan of a switch or a loop."""
    assert group.anchor is not None
    kind = LoopPlan if group.anchor.op is LOOP else SwitchPlan
    return kind(group, surroundings)


def _at(f: Function, base: str, offset: int) -> str:
    return f.pointer(base, offset, dtypes.uint8)


def _global(module: Module, constant: Array) -> str:
    """Add a constant to the module, and return its name."""
    data = constant.tobytes()
    listed = ", ".join(f"i8 {byte}" for byte in data)
    return module.constant("number", f"[{len(data)} x i8] [{listed}], align {ALIGNMENT}")


def _row_bytes(stack: Value) -> int:
    return stack.nbytes // stack.shape[0] if stack.shape[0] else 0


def _chunks(f: Function, start: Index, stop: Index, move: Callable[[Index, int], None]) -> None:
    """Emit ``move(offset, bytes)`` for all of the bytes from ``start`` to ``stop``."""
    width = f.target.vector_bytes
    whole = f.mul_index(f.floordiv_index(f.sub_index(stop, start), width), width)
    middle = f.add_index(start, whole)
    f.loop(start, middle, width, [], lambda i, _: move(i, width))
    f.loop(middle, stop, 1, [], lambda i, _: move(i, 0))


def _copy(f: Function, target: str, source: str, nbytes: int) -> None:
    def move(at: Index, lanes: int) -> None:
        f.store(f.load(source, at, dtypes.uint8, lanes), target, at)

    _chunks(f, 0, nbytes, move)


def _clear(f: Function, target: str, start: Index, stop: Index) -> None:
    def move(at: Index, lanes: int) -> None:
        f.store(f.constant(0, dtypes.uint8, lanes), target, at)

    _chunks(f, start, stop, move)


__all__: Sequence[str] = ["ControlPlan", "Surroundings", "plan_control"]
