"""Programs: from a graph to the native code of all its kernels.

A program's native entry takes one pointer: to a table of the buffers that the kernels address.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from needle import dtypes
from needle.backends.cpu.anchors import AnchorPlan, plan_anchor
from needle.backends.cpu.control import Surroundings
from needle.backends.cpu.fault import Fault
from needle.backends.cpu.gemm import GemmKernel
from needle.backends.cpu.kernel import KernelFunction, Location
from needle.backends.cpu.layout import Layout, lay_out, may_overwrite
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.loops import BY_ROWS
from needle.backends.cpu.module import Module
from needle.backends.cpu.nest import emit_nest
from needle.backends.cpu.operands import Index, Operand
from needle.backends.cpu.preparing import find_preparing
from needle.backends.cpu.product import give_packed
from needle.backends.cpu.stamps import stamper
from needle.backends.cpu.status import ROWS_WORD, TASKS_WORD
from needle.backends.cpu.target import Target, host
from needle.compiler.fusion import Fusion, Group
from needle.compiler.inner import prepare_inner
from needle.compiler.rows import rows_in
from needle.compiler.schedule import Schedule, Step
from needle.graph.ir import Graph, Value
from needle.ops.record import Kind

if TYPE_CHECKING:
    from needle.backends.cpu.tuning.candidates import Choose

#: Elements times stored values, and elements times ops, below which a kernel is not worth a second
#: thread.
SMALL, FEW_OPS = 30_000, 90_000
#: The function that computes what a program takes prepared.
PREPARE = "prepare"


class KernelCall(NamedTuple):
    """A kernel as a program's entry calls it.

    Attributes:
        name: for people.
        function: its function, which other kernels may share.
        tasks: how many tasks share it, or `BY_ROWS`.
        addresses: what the table that the function takes consists of.
    """

    name: str
    function: str
    tasks: int
    addresses: tuple[Location, ...]


class Program:
    """Code and layout of a graph, before it is loaded.

    Args:
        graph: what the passes made of a trace.
        threads: into how many tasks large kernels are split.
        target: the processor; this machine's by default.
        is_planned: whether to stop before code is generated: kernels and memory are known then.
        is_stamped: whether the entry notes the time before and after each kernel; see `stamps`.
        mark: what stands for the rows of a call in the graph; 0 if nothing does.
        within: the program of the graph that this one is inside of, whose module it shares.
        fixed: inputs that stay what they are for many calls.
        choose: chooses among plans of products and convolutions; by default a model does, or what
            chooses for the program that this one is inside of.
        is_final: whether the code may be kept for later processes.

    Attributes:
        packed: of the inputs of ``fixed`` those that are to be given packed, and a product of which
            they are the second factor; only of a program within another.
        name: of the function that runs it.
        preparing: what is computed of the inputs of ``fixed`` ahead, for many calls; its kernels
            are none of those that follow.
        groups: what each kernel computes, in the order in which they run.
        kernels: its kernels.
        early_kernels: those that prepare.
    """

    def __init__(
        self,
        graph: Graph,
        threads: int,
        target: Target | None = None,
        *,
        is_planned: bool = False,
        is_stamped: bool = False,
        mark: int = 0,
        within: Program | None = None,
        fixed: Sequence[Value] = (),
        choose: Choose | None = None,
        is_final: bool = True,
    ) -> None:
        if within is None:
            graph = prepare_inner(graph)
            self.module = Module(target or host())
            self.faults: list[Fault] = []
        else:
            self.module, self.faults = within.module, within.faults
            choose = within.choose
        self.graph = graph
        self.threads = threads
        self.mark = mark
        self.choose: Choose | None = choose
        self.is_final = is_final
        self.name = "entry" if within is None else self.module.unique(f"inner_{graph.name}")
        fusion = Fusion(graph)
        groups = fusion.run()
        #: Whether a value lies in memory or is shared in a kernel; others are computed where used.
        self.is_stored = fusion.stored.__contains__
        ordered, in_place = order_groups(graph, groups, fusion)
        is_inner = within is not None
        self.preparing = find_preparing(graph, ordered, () if is_inner else fixed)
        early = self.preparing.groups
        self.groups = [g for g in ordered if g not in early]
        read = {v for g in groups for p in g.pieces for v, _ in p.reads} | set(graph.outputs)
        surroundings = Surroundings(
            lambda inner, fixed: Program(
                inner, threads, is_planned=is_planned, within=self, fixed=fixed
            ),
            fusion.stored.__contains__,
            read.__contains__,
        )
        self._plans = {
            g: plan_anchor(
                g,
                fusion.stored.__contains__,
                self.module.target,
                threads,
                surroundings,
                choose,
            )
            for g in ordered
            if g.anchor is not None
        }
        plans = [(g, self._plans.get(g)) for g in ordered]
        self.packed: dict[Value, GemmKernel] = {
            v: p for v in fixed if is_inner and (p := give_packed(plans, v)) is not None
        }
        workspaces = {
            g: (threads if plan.tasks == BY_ROWS else plan.tasks) * plan.workspace
            for g, plan in self._plans.items()
        }
        self.layout: Layout = lay_out(
            graph, [*early, *self.groups], in_place, workspaces, self.preparing.values
        )
        self.kernels: list[KernelCall] = []
        self.early_kernels: list[KernelCall] = []
        if not is_planned:
            self.kernels += [self._kernel(g, f"k{i}") for i, g in enumerate(self.groups)]
            self._entry(self.name, self.groups, self.kernels, is_stamped, is_inner)
            if early:
                self.early_kernels += [self._kernel(g, f"w{i}") for i, g in enumerate(early)]
                self._entry(PREPARE, early, self.early_kernels)

    def _kernel(self, group: Group, number: str) -> KernelCall:
        tasks = self._tasks(group)
        stem = group.pieces[0].value.node.op.name if group.pieces[0].value.node else "copy"
        name = self.module.unique(f"{number}_{stem}")
        kernel = KernelFunction.make(
            self.module,
            name,
            self.layout.locations.get,
            set(group.defines()),
            self.faults,
            self.layout.status_slot,
            self.mark,
        )
        plan = self._plans.get(group)
        if plan is None:
            emit_nest(kernel, group, tasks)
        else:
            tasks = plan.tasks
            plan.emit(kernel, self._workspace(kernel, group, plan))
        return KernelCall(name, kernel.end(), tasks, kernel.addresses.locations())

    def _workspace(self, kernel: KernelFunction, group: Group, plan: AnchorPlan) -> str:
        """Return the address of a task's own memory."""
        location = self.layout.workspaces.get(group)
        if location is None:
            return "null"
        f = kernel.f
        offset = f.mul_index(f.argument("task"), plan.workspace)
        return f.pointer(kernel.pointer_to(location), offset, dtypes.uint8)

    def _tasks(self, group: Group) -> int:
        if any(rows_in(v.extent) for v in group.kept):
            return BY_ROWS
        if self.threads == 1 or not group.kept:
            return 1
        size = math.prod(v.extent for v in (*group.kept, *group.inner))
        is_large = size * (len(group.pieces) + 1) >= SMALL
        return self.threads if is_large or size * self._ops(group) >= FEW_OPS else 1

    def _ops(self, group: Group) -> int:
        """Return how many ops compute an element of all pieces of a group."""
        rest = [p.value for p in group.pieces]
        own, seen, count = set(rest), set[Value](), 0
        while rest:
            value = rest.pop()
            if value.node is None or value in seen or (self.is_stored(value) and value not in own):
                continue
            seen.add(value)
            count += value.node.op.kind is not Kind.MOVEMENT
            rest += value.node.inputs
        return count

    def _entry(
        self,
        name: str,
        groups: Sequence[Group],
        kernels: Sequence[KernelCall],
        is_stamped: bool = False,
        is_inner: bool = False,
    ) -> None:
        """Emit the function that runs some of the kernels."""
        self.module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
        f = Function(self.module, name, {"args": "ptr"}, internal=is_inner)
        stamp = stamper(f, self.layout.slots) if is_stamped else None
        # One table for all kernels, in turn.
        longest = max((len(kernel.addresses) for kernel in kernels), default=0)
        table = f.at_entry(f"alloca [{longest} x ptr], align 64")
        status = rows = ""
        if self.mark:
            status = _address(f, Location(self.layout.status_slot), "")
            rows = f.load(status, ROWS_WORD, dtypes.int64).text
        for group, (_, function, tasks, addresses) in zip(groups, kernels, strict=True):
            if stamp is not None:
                stamp()
            for i, location in enumerate(addresses):
                place = f.value(f"getelementptr ptr, ptr {table}, i64 {i}")
                f.emit(f"store ptr {_address(f, location, rows)}, ptr {place}")
            if tasks == BY_ROWS:
                self._by_rows(f, status, f"@{function}, ptr {table}", rows, self._row_work(group))
            elif tasks == 1:
                f.emit(f"call void @{function}(ptr {table}, i64 0)")
            else:
                f.emit(f"call void @needle_parallel(ptr @{function}, ptr {table}, i64 {tasks})")
        if stamp is not None:
            stamp()
        if is_inner:
            self.name = f.end()
        else:
            f.end()

    def _row_work(self, group: Group) -> int:
        """Return the work of a kernel for each row; see `SMALL`."""
        node = group.anchor
        if node is not None and node.op.flops is not None:  # of a product, a fifth of an element
            specs = tuple(v.spec for v in node.results)
            made: Any = specs[0] if len(specs) == 1 else specs
            read = [v.spec for v in node.inputs]
            return rows_in(node.op.flops(*read, made, **node.attrs)) // 10
        size = rows_in(math.prod(v.extent for v in (*group.kept, *group.inner)))
        return size * (len(group.pieces) + 1)

    def _by_rows(self, f: Function, status: str, call: str, rows: str, row_work: int) -> None:
        """Call a kernel whose rows are split into as many tasks as pays in this call."""
        tasks = f.load(status, TASKS_WORD, dtypes.int64)
        if self.threads > 1:
            count = Operand(rows, dtypes.int64)
            is_large = f.compare("sge", count, f.operand(max(SMALL // max(row_work, 1), 1)))
            tasks = f.select(is_large, f.operand(self.threads), f.operand(1))
            f.store(tasks, status, TASKS_WORD)
        f.emit(f"call void @needle_parallel(ptr {call}, {tasks.typed})")


def _address(f: Function, location: Location, rows: str) -> str:
    """Emit the address of a place, from the program's table."""
    slot = f.value(f"getelementptr ptr, ptr %args, i64 {location.slot}")
    pointer = f.value(f"load ptr, ptr {slot}")
    offset: Index = location.offset
    if location.by_rows and offset:
        offset = f.mul_index(Operand(rows, dtypes.int64), offset)
    return f.pointer(pointer, offset, dtypes.uint8)


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
        if not may_overwrite(writer, value, target):
            continue
        if any(_depends(needs, reader, writer) for reader in readers):
            continue
        needs[writer].update(readers)
        in_place[output] = source
        taken.add(value)
    order = _scheduled(graph, sorted(groups, key=lambda g: g.number), needs)
    return order, in_place


def _scheduled(graph: Graph, groups: list[Group], needs: dict[Group, set[Group]]) -> list[Group]:
    """Return the groups in an order in which they can run, of those found that of least memory."""
    place = {g: i for i, g in enumerate(groups)}
    steps: list[Step] = []
    read: set[Value] = set()
    joined: set[Value] = set()
    for g in groups:
        own = dict.fromkeys((*g.defines(), *(v for v in g.joins() if v not in joined)))
        joined.update(g.joins())
        reads = dict.fromkeys(v for p in g.pieces for v, _ in p.reads if v not in own)
        steps.append(Step(tuple(reads), tuple(own), is_late=g.recomputation > 0))
        read.update(reads)
    outputs = set(graph.outputs)
    sizes: dict[Hashable, int] = {
        v: v.nbytes for step in steps for v in step.writes if v in read and v not in outputs
    }
    after = {place[g]: [place[n] for n in needed] for g, needed in needs.items()}
    return [groups[i] for i in Schedule(steps, sizes, after=after).order()]


def _reads(group: Group, value: Value) -> bool:
    return any(v is value for p in group.pieces for v, _ in p.reads)


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
