"""Scatters: values that go to computed places, in their order.

Which values meet at a place is known only when the kernel runs, so the order is kept: a loop that
may revisit places runs from its start to its end in one task. Tasks and vectors go along variables
that are coordinates of the place themselves, so that no two of them ever meet. No bit of the result
depends on the number of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.bits import format_of
from needle.backends.cpu.emit import ElementBuilder
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.loops import Loops, shared_tasks
from needle.backends.cpu.operands import Index, Operand
from needle.backends.cpu.target import Target
from needle.backends.cpu.write import write
from needle.compiler import index as ix
from needle.compiler.access import IndexBuilder, Place, Source, variables
from needle.compiler.fusion import Group, Piece
from needle.compiler.index import Var
from needle.graph.ir import Node
from needle.ops.ordered import Scatter


@dataclass
class ScatterPlan:
    """A scatter as a kernel of a program; see `AnchorPlan`.

    Attributes:
        piece: the result.
        node: the op's application.
        scatter: what is particular to the op.
        loops: variables over the values.
        place: where each goes.
        vector: the variable in the lanes of vectors; None for scalar code.
        lanes: elements in a vector.
        shared: the variable whose range tasks share; None if there is none.
    """

    piece: Piece
    node: Node
    scatter: Scatter
    loops: tuple[Var, ...]
    place: Place
    vector: Var | None
    lanes: int
    shared: Var | None
    tasks: int = 1
    workspace: int = 0

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel: what the result begins as, and then the values."""
        kept = [next(iter(i.variables), None) for i in self.piece.at]
        ranges: dict[Var, tuple[Index, Index]] = {}
        if self.shared is not None and self.tasks != 1:
            unit = self.lanes if self.shared is self.vector else 1
            bounds = kernel.range_of(self.shared.extent, self.tasks, unit)
            own = kept[self.place.index(ix.of(self.shared))]
            assert own is not None
            ranges = {self.shared: bounds, own: bounds}
        loops = Loops(kernel, ranges)
        self._begin(kernel, loops, [v for v in kept if v is not None])
        self._scatter(kernel, loops)

    def _begin(self, kernel: KernelFunction, loops: Loops, kept: list[Var]) -> None:
        """Fill the result with zeros, or with what it is based on."""
        e, f, piece = kernel.emitter, kernel.f, self.piece
        base, shift = self.scatter.base, self.scatter.shift
        pointer = kernel.pointer_of(piece.value)
        is_there = base is not None and kernel.is_same_place(self.node.inputs[base], piece.value)
        if is_there and shift is None:
            return
        less = None if shift is None else e.element(self.node.inputs[shift], ()).operand

        def fill() -> None:
            if base is None:
                x = f.constant(0, piece.value.dtype)
            else:
                x = e.element(self.node.inputs[base], piece.at).operand
            if less is not None:
                wide = dtypes.accumulation_dtype(x.dtype)
                rest = f.sub(f.convert(x, wide), f.splat(f.convert(less, wide), x.lanes))
                x = f.convert(rest, x.dtype)
            write(e, pointer, piece, x)

        def begin() -> None:
            if not kept:
                fill()
                return
            *outer, last = kept
            lanes = f.target.vector_bytes // max(4, piece.value.dtype.itemsize)
            loops.each(outer, lambda: loops.vectors(last, lanes, fill))

        if less is None or not is_there:
            begin()
            return
        before = f.segment()

        def apart() -> None:
            with e.inside(before):
                begin()

        # Only +0 can be subtracted without a change, were it to the sign of a zero.
        wide = f.convert(less, dtypes.accumulation_dtype(less.dtype))
        bits = f.bitcast(wide, format_of(wide).integer)
        f.branch(f.compare("ne", bits, f.like(0, bits)), apart)

    def _scatter(self, kernel: KernelFunction, loops: Loops) -> None:
        e, f, value = kernel.emitter, kernel.f, self.piece.value
        sources = [Source(v, e.element) for v in self.node.inputs]
        index = tuple(ix.of(v) for v in self.loops)
        pointer = kernel.pointer_of(value)

        def combine() -> None:
            builder = ElementBuilder(e, value)
            place = self.scatter.place(builder, index, *sources, **self.node.attrs)
            offset = ix.ravel(place, value.shape)
            x = e.element(self.node.inputs[self.scatter.values], index).operand
            # What is there must be read here, not in front of a loop that may change it.
            start, lanes = e.scalar(offset).number, e.lanes
            old = f.load(pointer, start, value.dtype, lanes, e.mask)
            new: Operand = self.scatter.combine(f, old, f.splat(x, lanes))
            f.store(new, pointer, start, e.mask)

        wide = [v for v in self.loops if v.extent != 1]
        free = [v for v in wide if _is_free(v, self.place) and v is not self.vector]
        free.sort(key=lambda v: v is not self.shared)
        order = [*free, *(v for v in wide if v is not self.vector and v not in free)]
        vector = self.vector
        if vector is None:
            loops.each(order, combine)
        else:
            loops.each(order, lambda: loops.vectors(vector, self.lanes, combine))


def _is_free(var: Var, place: Place) -> bool:
    """Whether different values of a variable are different places, known before the kernel runs."""
    return var.extent > 1 and ix.of(var) in place


def plan_scatter(group: Group, scatter: Scatter, target: Target, threads: int) -> ScatterPlan:
    """Return the plan of a group whose anchor scatters."""
    node = group.anchor
    assert node is not None
    piece = group.pieces[0]
    values, shape = node.inputs[scatter.values], piece.value.shape
    loops = variables(values.shape)
    index = tuple(ix.of(v) for v in loops)
    sources = [Source(v, lambda *_: None) for v in node.inputs]
    place: Place = scatter.place(IndexBuilder(piece.value), index, *sources, **node.attrs)
    offset = ix.ravel(place, shape)
    free = [v for v in loops if _is_free(v, place)]
    vector, lanes = None, 0
    for var in free:
        if offset.stride(var) == 1 and var.extent >= 4:
            vector = var
            widest = max(v.dtype.itemsize for v in (piece.value, values))
            lanes = min(target.vector_bytes // max(widest, 4), 1 << (var.extent - 1).bit_length())
    shared, tasks = None, 1
    if free:
        shared = max(free, key=lambda v: v.extent // (lanes if v is vector else 1))
        unit = lanes if shared is vector else 1
        tasks = shared_tasks(max(values.size, piece.value.size), shared, unit, threads)
    return ScatterPlan(piece, node, scatter, loops, place, vector, lanes, shared, tasks)
