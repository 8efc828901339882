"""Where everything lies that a program's kernels address: the table of buffers, and the arena."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from needle.backends.cpu.kernel import Location
from needle.backends.cpu.stages import is_fold, turns_needed
from needle.compiler import index as ix
from needle.compiler.access import Place
from needle.compiler.fusion import Group, Piece
from needle.compiler.memory import ALIGNMENT, Buffer, MemoryPlan, plan_memory
from needle.compiler.rows import rows_in
from needle.graph.ir import Graph, Value
from needle.ops.samples import Array


@dataclass
class Layout:
    """Where everything lies.

    The table has a slot for each input, then for each output that is a new array, each constant,
    the arena of temporary values, the status, the arena of those that have rows, and what is
    prepared for many calls.

    Attributes:
        locations: of values in memory.
        workspaces: of memory of a kernel's own.
        inputs: how many inputs there are; they have the first slots.
        outputs: for each output: the slot of a new array, or None if it lies in an input.
        copies: outputs that are copied after the call, and what is copied.
        constants: the arrays of constants, in the order of their slots.
        first_constant: slot of the first constant.
        arena_slot: slot of the arena.
        status_slot: slot of the status.
        rows_slot: slot of the arena of values that have rows.
        prepared_slot: slot of what is prepared for many calls.
        prepared_bytes: bytes that it takes.
        slots: how many slots there are.
        memory: the plan of the arena.
        rows_memory: the plan of the arena of values that have rows: bytes for each row.
    """

    locations: dict[Value, Location] = field(default_factory=dict)
    workspaces: dict[Group, Location] = field(default_factory=dict)
    inputs: int = 0
    outputs: list[int | None] = field(default_factory=list)
    copies: dict[int, Value] = field(default_factory=dict)
    constants: list[Array] = field(default_factory=list)
    first_constant: int = 0
    arena_slot: int = 0
    status_slot: int = 0
    rows_slot: int = 0
    prepared_slot: int = 0
    prepared_bytes: int = 0
    slots: int = 0
    memory: MemoryPlan = field(default_factory=lambda: plan_memory([]))
    rows_memory: MemoryPlan = field(default_factory=lambda: plan_memory([]))


def lay_out(
    graph: Graph,
    groups: list[Group],
    in_place: dict[int, int],
    workspaces: dict[Group, int],
    prepared: Sequence[Value] = (),
) -> Layout:
    """Return a place for everything.

    Args:
        graph: the graph.
        groups: its kernels, in the order in which they run.
        in_place: which outputs are written to which inputs.
        workspaces: bytes that kernels need to themselves.
        prepared: values that stay for many calls.
    """
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
                if value.constant is not None and value not in locations:
                    locations[value] = Location(slot)
                    layout.constants.append(np.asarray(value.constant, order="C"))
                    slot += 1
    layout.arena_slot, layout.status_slot, layout.rows_slot = slot, slot + 1, slot + 2
    layout.prepared_slot, layout.slots = slot + 3, slot + 4
    for value in prepared:
        locations[value] = Location(layout.prepared_slot, layout.prepared_bytes)
        layout.prepared_bytes += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
    _plan_arena(groups, layout, workspaces)
    for g in groups:
        for p in g.pieces:
            if p.part is not None and p.part.whole in locations:
                locations[p.value] = locations[p.part.whole]
    return layout


def may_overwrite(group: Group, value: Value, target: Value) -> bool:
    """Whether a kernel may write ``value`` where ``target`` lies: if it reads of it only the
    element that it writes, and never after that.

    A join may not: where one part is written, another may still be to be read.
    """
    own = next((p for p in group.pieces if p.value is value), None)
    if own is None:
        return False
    loops = set(group.inner)
    is_inside = any(i.variables & loops for i in own.at)
    last = _last_turns(group)
    for p in group.pieces:
        for v, place in p.reads:
            if v is not target:
                continue
            if not _is_same(v, place, value, own.at):
                return False
            if loops and (last[p] > last[own] if is_inside else p is not own):
                return False
    if loops and is_inside and last[own] > turns_needed(group.pieces)[own]:
        return False
    return not (group.anchor is not None and _reads_as_operand(group, target))


def _is_same(a: Value, at: Place, b: Value, place: Place) -> bool:
    """Whether two values of one size have these elements in the same place."""
    if a.shape == b.shape or len(at) != a.ndim:  # an anchor reads its operands at no element
        return at == place
    return ix.ravel(at, a.shape) == ix.ravel(place, b.shape)


def _last_turns(group: Group) -> dict[Piece, int]:
    """Return for each piece in which turn over the inner loops its elements are computed last: what
    is not kept between turns is computed again wherever a later one uses it."""
    need = turns_needed(group.pieces)
    last: dict[Piece, int] = {}
    for p in reversed(group.pieces):
        last[p] = need[p]
        if is_fold(p):
            continue  # known once for all later turns
        for q in group.pieces:
            if q is not p and any(v is p.value for v, _ in q.reads):
                last[p] = max(last[p], last[q])
    return last


def _reads_as_operand(group: Group, target: Value) -> bool:
    return any(v is target for v, at in group.pieces[0].reads if at == ())


def _plan_arena(groups: list[Group], layout: Layout, workspaces: dict[Group, int]) -> None:
    """Give the values that only kernels see a place each; those not alive together may share."""
    locations = layout.locations
    definer: dict[Value, int] = {}
    for i, g in enumerate(groups):
        for value in (*g.defines(), *g.joins()):
            definer.setdefault(value, i)
    last: dict[Value, int] = {}
    for i, g in enumerate(groups):
        for p in g.pieces:
            for value, _ in p.reads:
                if value in definer and definer[value] != i:
                    last[value] = i
    unplaced = [v for v in last if v not in locations]
    for has_rows in (False, True):
        owners: list[Value | Group] = []
        buffers: list[Buffer] = []
        own = {
            v: i for i, v in enumerate(v for v in unplaced if bool(rows_in(v.nbytes)) is has_rows)
        }
        for value in own:
            name = value.name or (value.node.op.name if value.node is not None else "value")
            step = definer[value]
            ending = [v for v in own if last[v] == step]
            takes_over = tuple(
                own[v]
                for v in ending
                if (v.size, v.dtype) == (value.size, value.dtype)
                and may_overwrite(groups[step], value, v)
            )
            owners.append(value)
            nbytes = rows_in(value.nbytes) if has_rows else value.nbytes
            buffers.append(Buffer(name, nbytes, step, last[value], takes_over))
        for i, g in enumerate(groups):
            if workspaces.get(g) and not has_rows:
                owners.append(g)
                buffers.append(Buffer("workspace", workspaces[g], i, i))
        plan = plan_memory(buffers, len(groups))
        slot = layout.arena_slot
        if has_rows:
            layout.rows_memory, slot = plan, layout.rows_slot
        else:
            layout.memory = plan
        for owner, offset in zip(owners, plan.offsets, strict=True):
            location = Location(slot, offset, has_rows)
            if isinstance(owner, Value):
                locations[owner] = location
            else:
                layout.workspaces[owner] = location
