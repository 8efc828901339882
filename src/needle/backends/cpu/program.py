"""Programs: from a graph to the native code of all its kernels, and one call that runs them.

A program's native entry takes one pointer: to a table of the buffers that the kernels address.
Each call fills in the inputs and the new outputs; constants, the arena of temporary values and the
status stay.
"""

from __future__ import annotations

import ctypes
import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from needle import dtypes
from needle.backends.cpu import jit
from needle.backends.cpu.anchors import AnchorPlan, plan_anchor
from needle.backends.cpu.emit import Fault
from needle.backends.cpu.kernel import KernelFunction, Location
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module
from needle.backends.cpu.nest import emit_nest
from needle.backends.cpu.target import Target, host
from needle.compiler.access import is_literal
from needle.compiler.fusion import Fusion, Group
from needle.errors import OutOfRangeError
from needle.graph.ir import Graph, Value
from needle.ops.record import REGISTRY, Op
from needle.ops.samples import Array

#: Bytes to which every buffer is aligned.
ALIGNMENT = 64
#: Elements times ops below which a kernel is not worth a second thread.
SMALL = 30_000


@dataclass
class Layout:
    """Where everything lies.

    Attributes:
        locations: of values in memory.
        workspaces: memory of a kernel's own.
        inputs: how many inputs there are; they have the first slots.
        outputs: for each output: the slot of a new array, or None if it needs none.
        copies: outputs that are copied after the call: index of the output and the value.
        constants: the arrays of constants, in the order of their slots.
        first_constant: slot of the first constant.
        arena: slot and bytes of the temporary values.
        status: slot of the status.
    """

    locations: dict[Value, Location] = field(default_factory=dict)
    workspaces: dict[Group, Location] = field(default_factory=dict)
    inputs: int = 0
    outputs: list[int | None] = field(default_factory=list)
    copies: dict[int, Value] = field(default_factory=dict)
    constants: list[Array] = field(default_factory=list)
    first_constant: int = 0
    arena_slot: int = 0
    arena_bytes: int = 0
    status_slot: int = 0
    slots: int = 0


class Program:
    """Code and layout of a graph, before it is loaded."""

    def __init__(self, graph: Graph, threads: int, target: Target | None = None) -> None:
        self.graph = graph
        self.threads = threads
        self.module = Module(target or host())
        self.faults: list[Fault] = []
        fusion = Fusion(graph)
        groups = fusion.run()
        self.groups, in_place = order_groups(graph, groups, fusion)
        self._plans = {
            g: plan_anchor(g, fusion.stored.__contains__, self.module.target, threads)
            for g in self.groups
            if g.anchor is not None
        }
        workspaces = {g: plan.tasks * plan.workspace for g, plan in self._plans.items()}
        self.layout = _lay_out(graph, self.groups, in_place, workspaces)
        self.kernels = [self._kernel(g, i) for i, g in enumerate(self.groups)]
        self._entry()

    def _kernel(self, group: Group, number: int) -> tuple[str, int]:
        tasks = self._tasks(group)
        stem = group.pieces[0].value.node.op.name if group.pieces[0].value.node else "copy"
        kernel = KernelFunction.make(
            self.module,
            self.module.unique(f"k{number}_{stem}"),
            self.layout.locations.get,
            set(group.defines()),
            self.faults,
        )
        plan = self._plans.get(group)
        if plan is None:
            emit_nest(kernel, group, tasks)
        else:
            tasks = plan.tasks
            plan.emit(kernel, self._workspace(kernel, group, plan))
        return kernel.end(self.layout.status_slot), tasks

    def _workspace(self, kernel: KernelFunction, group: Group, plan: AnchorPlan) -> str:
        """Return the address of a task's own memory."""
        location = self.layout.workspaces.get(group)
        if location is None:
            return "null"
        f = kernel.f
        base = kernel.slot(location.slot)
        offset = f.mul_index(f.argument("task"), plan.workspace)
        return f.pointer(base, f.add_index(offset, location.offset), dtypes.uint8)

    def _tasks(self, group: Group) -> int:
        if self.threads == 1 or not group.kept:
            return 1
        size = math.prod(v.extent for v in (*group.kept, *group.inner))
        work = size * (len(group.pieces) + 1)
        return self.threads if work >= SMALL else 1

    def _entry(self) -> None:
        self.module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
        f = Function(self.module, "entry", {"args": "ptr"}, internal=False)
        for name, tasks in self.kernels:
            if tasks == 1:
                f.emit(f"call void @{name}(ptr %args, i64 0)")
            else:
                f.emit(f"call void @needle_parallel(ptr @{name}, ptr %args, i64 {tasks})")
        f.end()


def order_groups(
    graph: Graph, groups: list[Group], fusion: Fusion
) -> tuple[list[Group], dict[int, int]]:
    """Return the groups in an order in which they can run, and which outputs are written in place.

    An output that takes over the storage of an input can be written there only if nothing reads the
    input afterwards; where that cannot be arranged, it is copied there after the call.
    """
    needs = {g: set(n) for g, n in fusion.needs.items()}
    in_place: dict[int, int] = {}
    taken: set[Value] = set()
    for output, source in graph.donations.items():
        value, target = graph.outputs[output], graph.inputs[source]
        writer = fusion.group_of.get(value)
        if writer is None or value in taken:
            continue
        readers = [g for g in groups if g is not writer and _reads(g, target)]
        if not _may_overwrite(writer, value, target):
            continue
        if any(_depends(needs, reader, writer) for reader in readers):
            continue
        needs[writer].update(readers)
        in_place[output] = source
        taken.add(value)
    waiting = {g: len(n) for g, n in needs.items()}
    followers: dict[Group, list[Group]] = {g: [] for g in groups}
    for g, n in needs.items():
        for other in n:
            followers[other].append(g)
    ready = [(g.number, g) for g in groups if not waiting[g]]
    heap = [(number, id(g)) for number, g in ready]
    by_id = {id(g): g for g in groups}
    heapq.heapify(heap)
    order = []
    while heap:
        g = by_id[heapq.heappop(heap)[1]]
        order.append(g)
        for follower in followers[g]:
            waiting[follower] -= 1
            if not waiting[follower]:
                heapq.heappush(heap, (follower.number, id(follower)))
    assert len(order) == len(groups)
    return order, in_place


def _reads(group: Group, value: Value) -> bool:
    return any(v is value for p in group.pieces for v, _ in p.reads)


def _may_overwrite(group: Group, value: Value, target: Value) -> bool:
    """Whether a kernel may write ``value`` where ``target`` lies: if it reads of it only the
    element that it writes, and only once."""
    at = group.place_of(value)
    for p in group.pieces:
        for v, place in p.reads:
            if v is target and (place != at or (group.inner and p.value is not value)):
                return False
    return not (group.anchor is not None and _reads_as_operand(group, target))


def _reads_as_operand(group: Group, target: Value) -> bool:
    return any(v is target for v, at in group.pieces[0].reads if at == ())


def _depends(needs: dict[Group, set[Group]], group: Group, on: Group) -> bool:
    """Whether ``group`` can run only after ``on``."""
    seen: set[Group] = set()
    stack = [group]
    while stack:
        g = stack.pop()
        if g is on:
            return True
        if g not in seen:
            seen.add(g)
            stack.extend(needs[g])
    return False


def _lay_out(
    graph: Graph, groups: list[Group], in_place: dict[int, int], workspaces: dict[Group, int]
) -> Layout:
    layout = Layout(inputs=len(graph.inputs))
    locations = layout.locations
    for slot, value in enumerate(graph.inputs):
        locations[value] = Location(slot)
    slot = len(graph.inputs)
    for i, value in enumerate(graph.outputs):
        if i in in_place:
            locations[value] = Location(in_place[i])
    for i, value in enumerate(graph.outputs):
        if i in in_place:
            layout.outputs.append(None)
            continue
        layout.outputs.append(slot)
        if value.node is not None and value not in locations:
            locations[value] = Location(slot)
        else:
            layout.copies[i] = value
        slot += 1
    layout.first_constant = slot
    for g in groups:
        for p in g.pieces:
            for value, _ in p.reads:
                if value.constant is not None and value not in locations and not is_literal(value):
                    locations[value] = Location(slot)
                    layout.constants.append(np.ascontiguousarray(value.constant))
                    slot += 1
    layout.arena_slot, layout.status_slot = slot, slot + 1
    layout.slots = slot + 2
    layout.arena_bytes = _plan_arena(groups, layout, slot, workspaces)
    return layout


def _plan_arena(
    groups: list[Group], layout: Layout, slot: int, workspaces: dict[Group, int]
) -> int:
    """Give the values that only kernels see a place each; those not alive together may share."""
    locations = layout.locations
    definer = {p.value: i for i, g in enumerate(groups) for p in g.pieces}
    last: dict[Value, int] = {}
    for i, g in enumerate(groups):
        for p in g.pieces:
            for value, _ in p.reads:
                if value in definer and definer[value] != i:
                    last[value] = i
    buffers: list[tuple[int, int, int, Value | Group]] = [
        (definer[v], end, v.nbytes, v) for v, end in last.items() if v not in locations
    ]
    buffers += [(i, i, workspaces[g], g) for i, g in enumerate(groups) if workspaces.get(g)]
    buffers.sort(key=lambda b: b[0])
    live: list[tuple[int, int, int]] = []  # offset, end, last use
    top = 0
    for start, end, nbytes, owner in buffers:
        size = -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT
        live = [b for b in live if b[2] >= start]
        offset = 0
        for begin, stop, _ in sorted(live):
            if offset + size <= begin:
                break
            offset = max(offset, stop)
        live.append((offset, offset + size, end))
        if isinstance(owner, Value):
            locations[owner] = Location(slot, offset)
        else:
            layout.workspaces[owner] = Location(slot, offset)
        top = max(top, offset + size)
    return top


class Executable:
    """A loaded program: `run` calls it.

    Attributes:
        program: what it was made of.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._library = jit.load(program.module, program.module.target)
        self._call = self._library.function("entry", ctypes.c_void_p)
        self._idle: list[_Buffers] = []

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the program on arrays; donated ones are overwritten.

        Raises:
            OutOfRangeError: an index was out of range.
        """
        layout, graph = self.program.layout, self.program.graph
        buffers = self._idle.pop() if self._idle else _Buffers(layout)
        table = buffers.table
        arrays = [np.ascontiguousarray(a) for a in inputs]
        for i, array in enumerate(arrays):
            table[i] = array.ctypes.data
        before = {
            i: arrays[graph.inputs.index(v)].copy()
            for i, v in layout.copies.items()
            if v.node is None and v.constant is None
        }
        outputs: list[Array] = []
        for i, (value, slot) in enumerate(zip(graph.outputs, layout.outputs, strict=True)):
            if slot is None:
                outputs.append(arrays[graph.donations[i]])
                continue
            output = np.empty(value.shape, value.dtype)
            table[slot] = output.ctypes.data
            outputs.append(output)
        self._call(buffers.address)
        if buffers.status[0]:
            self._raise(buffers)
        for i, value in layout.copies.items():
            outputs[i][...] = before[i] if i in before else self._stored(value, outputs)
        for i, source in graph.donations.items():
            if outputs[i] is not inputs[source]:
                np.copyto(inputs[source], outputs[i])
                outputs[i] = inputs[source]
        self._idle.append(buffers)
        return outputs

    def _stored(self, value: Value, outputs: list[Array]) -> Array:
        if value.constant is not None:
            return value.constant
        first = next(
            i
            for i, v in enumerate(self.program.graph.outputs)
            if v is value and i not in self.program.layout.copies
        )
        return outputs[first]

    def _raise(self, buffers: _Buffers) -> None:
        number, place, value = (int(word) for word in buffers.status)
        buffers.status[:] = 0
        self._idle.append(buffers)
        raise exception_of(self.program.faults[number - 1], place, value)


def exception_of(fault: Fault, place: int, value: int) -> Exception:
    """Return the exception that eager execution raises for a bad value.

    Args:
        fault: what was reported.
        place: where in the tensor it stands, in row-major order.
        value: the value.
    """
    at = tuple(int(i) for i in np.unravel_index(place, fault.shape))
    if fault.op:
        record = REGISTRY[fault.op]
        assert isinstance(record, Op)
        assert record.fault is not None
        return record.fault(value, at, **fault.attrs)
    extent, signed, what = (fault.attrs[name] for name in ("extent", "signed", "what"))
    low = -extent if signed else 0
    valid = f"valid are {low} to {extent - 1}" if extent else "it has no elements"
    where = f" (at position {list(at)} of the indices)" if at else ""
    return OutOfRangeError(f"index: index {value}{where} is out of range for {what}; {valid}")


class _Buffers:
    """The table of one call, with the memory that calls share."""

    def __init__(self, layout: Layout) -> None:
        self.table: Any = (ctypes.c_void_p * layout.slots)()
        self.address = ctypes.addressof(self.table)
        self.arena = aligned(layout.arena_bytes)
        self.status = np.zeros(3, np.int64)
        self.table[layout.arena_slot] = self.arena.ctypes.data
        self.table[layout.status_slot] = self.status.ctypes.data
        for i, constant in enumerate(layout.constants):
            self.table[layout.first_constant + i] = constant.ctypes.data


def aligned(count: int) -> Array:
    """Return that many bytes of memory, aligned for vectors."""
    raw = np.empty(count + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + count]


def build(graph: Graph, threads: int = 1, target: Target | None = None) -> Executable:
    """Return the graph as native code."""
    return Executable(Program(graph, threads, target))
