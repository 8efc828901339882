"""The plan of a loop nest: which loops, which of them vectorised, what is computed when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from needle import dtypes
from needle.backends.cpu.operands import memory_type
from needle.backends.cpu.target import Target
from needle.backends.cpu.vector_math import MathFunction
from needle.compiler import index as ix
from needle.compiler.access import Access, Place
from needle.compiler.fusion import Group, Piece
from needle.compiler.index import Index, Var
from needle.compiler.rows import rows_in
from needle.graph.ir import Value

#: Bytes of a row that may be kept between the turns over it.
SCRATCH_BYTES = 1 << 15


@dataclass
class Nest:
    """Loops and what is done in them; see `plan_nest`.

    Attributes:
        kept: the outer loops, in order.
        inner: the inner loops, in order.
        pieces: all pieces, in order.
        vector: the vectorised variable; None for scalar code.
        lanes: elements in a vector.
        slots: vectors of an outer vectorised variable in one block.
        inner_slots: the same for an inner one: a power of two.
        shared: the outer loop whose turns tasks share; None if there is none.
        need: for each piece, how many turns over the inner loops must be done before it is known.
        scratch: pieces kept between turns in memory of the kernel's own.
    """

    kept: list[Var]
    inner: list[Var]
    pieces: list[Piece]
    vector: Var | None = None
    lanes: int = 0
    slots: int = 1
    inner_slots: int = 1
    shared: Var | None = None
    need: dict[Piece, int] = field(default_factory=dict)
    scratch: list[Piece] = field(default_factory=list)

    @property
    def stages(self) -> int:
        """How many turns over the inner loops there are."""
        last = -1
        for p in self.pieces:
            if is_fold(p) or self.is_inside(p):
                last = max(last, self.need[p])
        return last + 1

    def is_inside(self, piece: Piece) -> bool:
        """Whether its elements are computed in the inner loops."""
        loops = set(self.inner)
        return not is_fold(piece) and any(i.variables & loops for i in piece.at)

    def folds(self, stage: int) -> list[Piece]:
        """Return the reductions done in a turn."""
        return [p for p in self.pieces if is_fold(p) and self.need[p] == stage]

    def inside(self, stage: int) -> list[Piece]:
        """Return the pieces computed within a turn."""
        return [p for p in self.pieces if self.is_inside(p) and self.need[p] == stage]

    def before(self, stage: int) -> list[Piece]:
        """Return the pieces known, outside of the inner loops, when a turn begins."""
        return [
            p for p in self.pieces if not self.is_inside(p) and self.need[p] + is_fold(p) == stage
        ]


def is_fold(piece: Piece) -> bool:
    """Whether the piece is a reduction."""
    return piece.body is not None


def plan_nest(group: Group, target: Target, tasks: int) -> Nest:
    """Return the plan for a group.

    Args:
        group: loops and pieces.
        target: the processor.
        tasks: how many share the work.
    """
    kept, inner, pieces = coalesce(group)
    nest = Nest(kept, inner, pieces)
    nest.vector = choose_vector(nest)
    _turn_inward(nest)
    if nest.vector is not None:
        nest.lanes = min(_lanes(nest, target), _power_above(nest.vector.extent))
        full = nest.vector.extent // nest.lanes
        unroll = 4 if len(pieces) <= 3 else 2 if len(pieces) <= 6 else 1
        nest.slots = max(1, min(unroll, full))
        if nest.vector in inner:
            nest.inner = [v for v in inner if v is not nest.vector] + [nest.vector]
            nest.inner_slots = 4 if full >= 4 else 2 if full >= 2 else 1
    nest.need = turns_needed(pieces)
    nest.shared = _shared(nest, tasks)
    if nest.vector is not None and nest.vector in inner:
        nest.scratch = _scratch(nest)
    return nest


def _power_above(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def accesses(pieces: Sequence[Piece]) -> Iterator[Access]:
    """Yield all elements that pieces read and write."""
    for p in pieces:
        yield p.target
        yield from p.reads


def coalesce(group: Group) -> tuple[list[Var], list[Var], list[Piece]]:
    """Return kept loops, inner loops and pieces with neighbouring loops made one where that changes
    no access to anything but a stride."""
    kept, inner, pieces = list(group.kept), list(group.inner), list(group.pieces)
    for loops in (kept, inner):
        k = 0
        while k + 1 < len(loops):
            a, b = loops[k], loops[k + 1]
            if not b.extent or not all(_is_joint(access, a, b) for access in accesses(pieces)):
                k += 1
                continue
            joint = Var(f"{a.name}{b.name}", a.extent * b.extent)
            whole = ix.of(joint)
            mapping: dict[Var, Index] = {a: whole // b.extent, b: whole % b.extent}
            pieces = [p.substitute(mapping) for p in pieces]
            loops[k : k + 2] = [joint]
    return kept, inner, pieces


def _is_joint(access: Access, a: Var, b: Var) -> bool:
    offset = ix.ravel(access.at, access.value.shape)
    outer, inner = offset.stride(a), offset.stride(b)
    return outer is not None and inner is not None and outer == inner * b.extent


def choose_vector(nest: Nest) -> Var | None:
    """Return the variable along which most accesses touch neighbours.

    Where there are reductions, this decides their order. So it must not depend on the extents of
    the outer loops, one of which may be the batch: a long access counts no more than a short one
    then, and a short row is never vectorised, however few rows there are.
    """
    best, score = None, (-math.inf, -1)
    own = {p.target.value for p in nest.pieces}
    found = list(accesses(nest.pieces))
    if nest.inner:  # what is touched once for each row does not count
        loops = set(nest.inner)
        found = [a for a in found if any(i.variables & loops for i in a.at)]
    for position, var in enumerate((*nest.kept, *nest.inner)):
        gain = 0.0
        for value, at in found:
            stride = ix.ravel(at, value.shape).stride(var)
            # Storing elements apart costs more than loading them.
            weight = 3.0 if value in own else 1.0
            if not nest.inner:
                weight *= math.log2(value.size + 1)
            if stride == 1:
                gain += weight
            elif stride != 0:
                gain -= weight
        if var.extent < 4:
            if var in nest.inner:
                continue
            gain -= 0.0 if nest.inner else 1000.0
        if (gain, position) > score:
            best, score = var, (gain, position)
    return best


def _turn_inward(nest: Nest) -> None:
    """Make a loop an inner one where an access runs along it but across the vectors.

    A block of vectors is then gathered from cache lines that the next turns of that loop use up,
    instead of touching each line once for every element in it. Not the loop over rows, which tasks
    share.
    """
    vector = nest.vector
    if nest.inner or vector is None:
        return
    for value, at in accesses(nest.pieces):
        offset = ix.ravel(at, value.shape)
        if offset.stride(vector) in (0, 1):
            continue
        for var in nest.kept:
            if var is not vector and not rows_in(var.extent) and offset.stride(var) == 1:
                nest.kept.remove(var)
                nest.inner.append(var)
                return


def _lanes(nest: Nest, target: Target) -> int:
    sizes = [1]
    for value, at in accesses(nest.pieces):
        if any(nest.vector in i.variables for i in at):
            sizes.append(dtypes.accumulation_dtype(value.dtype).itemsize)
    return target.vector_bytes // max(4, *sizes)


def turns_needed(pieces: Sequence[Piece]) -> dict[Piece, int]:
    """Return for each piece how many turns over the inner loops must be done before it is known."""
    need: dict[Piece, int] = {}
    of_value = {p.value: p for p in pieces}
    for p in pieces:
        n = 0
        for value, _ in p.reads:
            q = of_value.get(value)
            if q is not None and q is not p:
                n = max(n, need[q] + is_fold(q))
        need[p] = n
    return need


def _shared(nest: Nest, tasks: int) -> Var | None:
    if tasks == 1 or not nest.kept:
        return None
    for var in nest.kept:
        if rows_in(var.extent):
            return var
    unit = {v: nest.lanes * nest.slots if v is nest.vector else 1 for v in nest.kept}
    for var in nest.kept:
        if var.extent // unit[var] >= 4 * tasks:
            return var
    return max(nest.kept, key=lambda v: v.extent / unit[v])


def _scratch(nest: Nest) -> list[Piece]:
    """Return the pieces that cost more to compute again than to keep."""
    elements = math.prod(v.extent for v in nest.inner)
    last_use: dict[Value, int] = {}
    for p in nest.pieces:
        for value, _ in p.reads:
            last_use[value] = max(last_use.get(value, 0), nest.need[p])
    result = []
    for p in nest.pieces:
        if not nest.is_inside(p) or last_use.get(p.value, 0) <= nest.need[p]:
            continue
        node = p.value.node
        assert node is not None
        cheap = node.op.is_ufunc and len(node.inputs) == 2 and len(p.reads) <= 2
        if not cheap and elements * p.value.dtype.itemsize <= SCRATCH_BYTES:
            result.append(p)
    return result


@dataclass
class Scratch:
    """Memory on the kernel's stack for one row of a piece.

    Attributes:
        pointer: its address.
        offset: where in it an element stands.
    """

    pointer: str
    offset: Index

    @classmethod
    def make(cls, f: MathFunction, piece: Piece, nest: Nest) -> Scratch:
        """Reserve the memory."""
        extents = tuple(v.extent for v in nest.inner)
        place: Place = tuple(ix.of(v) for v in nest.inner)
        count = math.prod(extents)
        kind = memory_type(piece.value.dtype)
        pointer = f.at_entry(f"alloca [{count} x {kind}], align 64")
        return cls(pointer, ix.ravel(place, extents))


__all__ = ["Nest", "Scratch", "is_fold", "plan_nest", "turns_needed"]
