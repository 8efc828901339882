"""Loop nests: the kernel of a group of elementwise pieces and reductions.

The outer loops run over elements that are independent of each other, and are shared between tasks.
The inner loops, where there are reductions, run over what is combined. They are run through as
often as reductions depend on each other: a softmax takes three turns over a row while that is in
the cache. One variable is vectorised: an inner one, and a reduction ends with the sum over lanes,
or an outer one, and each lane has a reduction of its own. Which depends on shapes and strides
alone, and so does the order of all sums: not on the number of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from needle import dtypes
from needle.backends.cpu.emit import Block, Emitter, Position
from needle.backends.cpu.operands import Index, Operand, Segment
from needle.backends.cpu.stages import Nest, Scratch, plan_nest
from needle.backends.cpu.write import write, write_to
from needle.compiler.fusion import Group, Piece
from needle.compiler.index import Var
from needle.compiler.rows import rows_in
from needle.ops.fold import Fold

if TYPE_CHECKING:
    from needle.backends.cpu.kernel import KernelFunction


def emit_nest(kernel: KernelFunction, group: Group, tasks: int) -> None:
    """Emit a group's loops into ``kernel``, of which each of ``tasks`` does its share."""
    if any(v.extent == 0 for v in group.kept):
        return
    nest = plan_nest(group, kernel.f.target, tasks)
    NestEmitter(kernel, nest, tasks).emit()


class NestEmitter:
    """Emits one nest."""

    def __init__(self, kernel: KernelFunction, nest: Nest, tasks: int) -> None:
        self.kernel = kernel
        self.nest = nest
        self.tasks = tasks
        self.f = kernel.f
        self.e: Emitter = kernel.emitter
        #: Accumulators, by piece and slot, while inner loops are open.
        self._scratch: dict[Piece, Scratch] = {}

    def emit(self) -> None:
        """Emit all loops."""
        nest = self.nest
        self.e.own_places = {p.value: p.at for p in nest.pieces}
        for piece in nest.scratch:
            self._scratch[piece] = Scratch.make(self.f, piece, nest)
        outer = [v for v in nest.kept if v is not nest.vector]
        self._outer(outer)

    # Outer loops

    def _outer(self, loops: Sequence[Var]) -> None:
        if loops:
            var, *rest = loops
            start, stop = self._range(var, 1)
            before = self.f.segment()

            def body(i: Index, _: list[Operand]) -> None:
                with self.e.inside(before):
                    self.e.place(var, i)
                    self._outer(rest)

            self.f.loop(start, stop, 1, [], body)
            return
        vector = self.nest.vector
        if vector is not None and vector in self.nest.kept:
            self._vector_loop(vector, self._block)
        else:
            self._block(1)

    def _range(self, var: Var, unit: int) -> tuple[Index, Index]:
        """Return the part of a loop that this task runs: all, if it is not the shared one."""
        if var is not self.nest.shared or (self.tasks == 1 and not rows_in(var.extent)):
            return 0, self.kernel.extent(var.extent)
        return self.kernel.range_of(var.extent, self.tasks, unit)

    def _vector_loop(self, var: Var, body: Callable[[int], None]) -> None:
        """Run ``body(slots)`` over a variable whose neighbours lie in vectors.

        The body finds the first of ``slots`` neighbouring vectors in the emitter.
        """
        lanes, width = self.nest.lanes, self.nest.lanes * self.nest.slots
        start, stop = self._range(var, width)

        def run(i: Index, slots: int, mask: Operand | None, before: Segment) -> None:
            with self.e.inside(before):
                self.e.vector, self.e.lanes, self.e.mask = var, lanes, mask
                self._base = i
                body(slots)
                self.e.vector, self.e.lanes, self.e.mask = None, 0, None

        def full(i: Index, _: list[Operand]) -> None:
            run(i, self.nest.slots, None, before)

        before = self.f.segment()
        if isinstance(start, int) and isinstance(stop, int):
            end = start + (stop - start) // width * width
            self.f.loop(start, end, width, [], full)
            while end < stop:
                count = min(lanes, stop - end)
                slots = min((stop - end) // lanes, self.nest.slots) if count == lanes else 1
                mask = None if count == lanes else self.f.tail_mask(count, lanes)
                run(end, max(slots, 1), mask, self.f.segment())
                end += lanes * max(slots, 1) if count == lanes else count
            return
        f = self.f
        whole = f.mul_index(f.floordiv_index(f.sub_index(stop, start), width), width)
        end_ = f.add_index(start, whole)
        f.loop(start, end_, width, [], full)
        after = self.f.segment()

        def rest(i: Index, _: list[Operand]) -> None:
            run(i, 1, f.tail_mask(f.sub_index(stop, i), lanes), after)

        f.loop(end_, stop, lanes, [], rest)

    def _each_slot(self, slots: int, work: Callable[[int], None]) -> None:
        """Do ``work`` for each of the vectors of a block of the outer loop."""
        vector = self.nest.vector
        if vector is None or vector not in self.nest.kept:
            work(0)
            return
        for slot in range(slots):
            self.e.slot = slot
            self.e.places[vector] = self._slots[slot]
            work(slot)
        self.e.slot = 0

    # What is inside of the outer loops

    def _block(self, slots: int) -> None:
        """Compute one element of the outer loops, or ``slots`` vectors of them."""
        nest = self.nest
        if nest.vector is not None and nest.vector in nest.kept:
            firsts = [self.f.add_index(self._base, i * nest.lanes) for i in range(slots)]
            self._slots = [Position(first, self.e.top) for first in firsts]
            self.e.block = Block(self._slots[0], slots)
        for stage in range(nest.stages):
            self._before(stage, slots)
            self._stage(stage, slots)
            for piece, scratch in self._scratch.items():
                if nest.need[piece] == stage:
                    self.e.rows[piece.value] = (scratch.pointer, scratch.offset)
        self._before(nest.stages, slots)
        self.e.rows.clear()
        self.e.block = None

    def _before(self, stage: int, slots: int) -> None:
        pieces = self.nest.before(stage)
        self._each_slot(slots, lambda slot: self._stores(pieces))

    def _stores(self, pieces: Sequence[Piece]) -> None:
        """Compute an element of each piece and store it where it is needed later."""
        kernel = self.kernel
        # First all are computed: what is written may lie where another is read.
        elements = [
            (p, self.e.element(p.value, p.at).operand)
            for p in pieces
            if p in self._scratch or kernel.is_written(p.value)
        ]
        for piece, operand in elements:
            if kernel.is_written(piece.value):
                write(self.e, kernel.pointer_of(piece.value), piece, operand)
            scratch = self._scratch.get(piece)
            if scratch is not None:
                write_to(self.e, scratch.pointer, scratch.offset, operand)

    # Inner loops

    def _stage(self, stage: int, slots: int) -> None:
        """Run through the inner loops once: accumulate folds, store what is known."""
        nest, f = self.nest, self.f
        folds = nest.folds(stage)
        stores = nest.inside(stage)
        column = nest.vector is not None and nest.vector in nest.kept
        count = slots if column else nest.inner_slots
        states: list[Operand] = []
        for piece in folds:
            for _ in range(count):
                states.extend(self._identity(piece))
        widths = [2 if _fold(p).gives_place else 1 for p in folds]

        def step(states: list[Operand], slot: int, mask: Operand | None) -> list[Operand]:
            """Take one element, or one vector of them, into the accumulators of a slot."""
            result = list(states)
            place = 0
            for piece, width in zip(folds, widths, strict=True):
                start = place + slot * width
                result[start : start + width] = self._take(
                    piece, result[start : start + width], mask
                )
                place += count * width
            self._stores(stores)
            return result

        def loops(variables: Sequence[Var], states: list[Operand]) -> list[Operand]:
            if not variables:
                if column:

                    def each(slot: int) -> None:
                        nonlocal states
                        states = step(states, slot, self.e.mask)

                    self._each_slot(slots, each)
                    return states
                return step(states, 0, None)
            var, *rest = variables
            if var is nest.vector:
                return self._inner_vectors(var, states, step)
            before = f.segment()

            def body(i: Index, carried: list[Operand]) -> list[Operand]:
                with self.e.inside(before):
                    self.e.place(var, i)
                    return loops(rest, carried)

            return f.loop(0, self.kernel.extent(var.extent), 1, states, body)

        final = loops(nest.inner, states)
        self._finish(folds, final, widths, count, column)

    def _inner_vectors(
        self,
        var: Var,
        states: list[Operand],
        step: Callable[[list[Operand], int, Operand | None], list[Operand]],
    ) -> list[Operand]:
        """Run along a vectorised inner variable, several vectors in each turn."""
        f, e, lanes = self.f, self.e, self.nest.lanes
        slots = self.nest.inner_slots
        width = lanes * slots

        def vectors(
            i: Index, states: list[Operand], counts: Sequence[int], before: Segment
        ) -> list[Operand]:
            for slot, live in enumerate(counts):
                with e.inside(before):
                    mask = None if live == lanes else f.tail_mask(live, lanes)
                    e.vector, e.lanes, e.mask = var, lanes, mask
                    e.place(var, f.add_index(i, slot * lanes))
                    e.block = Block(e.places[var], 1)
                    states = step(states, slot, mask)
                    e.vector, e.lanes, e.mask, e.block = None, 0, None, None
            return states

        if rows_in(var.extent):
            return self._inner_rows(var, states, step)
        end = var.extent // width * width
        before = f.segment()
        states = f.loop(0, end, width, states, lambda i, c: vectors(i, c, [lanes] * slots, before))
        rest = var.extent - end
        if rest:
            counts = [lanes] * (rest // lanes) + ([rest % lanes] if rest % lanes else [])
            states = vectors(end, states, counts, f.segment())
        return states

    def _inner_rows(
        self,
        var: Var,
        states: list[Operand],
        step: Callable[[list[Operand], int, Operand | None], list[Operand]],
    ) -> list[Operand]:
        """Run along a vectorised inner variable whose extent is given at each call."""
        f, e, lanes = self.f, self.e, self.nest.lanes
        stop = self.kernel.extent(var.extent)
        slots = self.nest.inner_slots

        def block(i: Index, states: list[Operand], count: int, before: Segment) -> list[Operand]:
            for slot in range(count):
                with e.inside(before):
                    at = f.add_index(i, slot * lanes)
                    mask = None if count > 1 else f.tail_mask(f.sub_index(stop, at), lanes)
                    e.vector, e.lanes, e.mask = var, lanes, mask
                    e.place(var, at)
                    states = step(states, slot, mask)
                    e.vector, e.lanes, e.mask = None, 0, None
            return states

        width = lanes * slots
        end: Index = 0
        if slots > 1:
            end = f.mul_index(f.floordiv_index(stop, width), width)
            first = f.segment()
            states = f.loop(0, end, width, states, lambda i, c: block(i, c, slots, first))
        after = f.segment()
        return f.loop(end, stop, lanes, states, lambda i, c: block(i, c, 1, after))

    # Folds

    def _identity(self, piece: Piece) -> list[Operand]:
        nest, f = self.nest, self.f
        assert piece.body is not None
        dtype = dtypes.accumulation_dtype(piece.body.value.dtype)
        lanes = nest.lanes if nest.vector is not None else 0
        fold = _fold(piece)
        result = [f.constant(fold.identity(dtype), dtype, lanes)]
        if fold.gives_place:
            result.append(f.constant(2**63 - 1, dtypes.int64, lanes))
        return result

    def _take(self, piece: Piece, state: list[Operand], mask: Operand | None) -> list[Operand]:
        """Return the accumulator with the current element combined into it."""
        f, e, fold = self.f, self.e, _fold(piece)
        assert piece.body is not None
        x = e.element(*piece.body).operand
        x = f.convert(x, state[0].dtype)
        lanes = state[0].lanes
        x = f.splat(x, lanes)
        if fold.gives_place:
            node = piece.value.node
            assert node is not None
            along = piece.body.at[node.attrs["axis"]]
            if e.vector is not None and e.vector in along.variables:
                place = e.lane_indices(along).operand
            else:
                place = f.splat(f.operand(e.scalar(along).number), lanes)
            new = list(fold.combine(f, state[0], state[1], x, place))
        else:
            new = [fold.combine(f, state[0], x)]
        in_lanes = mask is not None and self.nest.vector in self.nest.inner
        if in_lanes:
            assert mask is not None
            new = [f.select(mask, n, s) for n, s in zip(new, state, strict=True)]
        return new

    def _finish(
        self,
        folds: Sequence[Piece],
        states: list[Operand],
        widths: Sequence[int],
        count: int,
        column: bool,
    ) -> None:
        """Combine the accumulators of each fold and bind its result."""
        place = 0
        for piece, width in zip(folds, widths, strict=True):
            parts = [states[place + s * width : place + (s + 1) * width] for s in range(count)]
            place += count * width
            if column:
                for slot, part in enumerate(parts):
                    self.e.slot = slot
                    self._bind(piece, part[-1])
                self.e.slot = 0
                continue
            while len(parts) > 1:
                pairs = zip(parts[: len(parts) // 2], parts[len(parts) // 2 :], strict=True)
                parts = [self._combine(piece, a, b) for a, b in pairs]
            self._bind(piece, self._fold_lanes(piece, parts[0])[-1])

    def _bind(self, piece: Piece, result: Operand) -> None:
        operand = self.f.convert(result, piece.value.dtype)
        self.e.bind(piece.value, piece.at, operand, bool(operand.lanes))

    def _combine(self, piece: Piece, a: list[Operand], b: list[Operand]) -> list[Operand]:
        fold = _fold(piece)
        if fold.gives_place:
            return list(fold.combine(self.f, *a, *b))
        return [fold.combine(self.f, a[0], b[0])]

    def _fold_lanes(self, piece: Piece, state: list[Operand]) -> list[Operand]:
        f = self.f
        while state[0].lanes > 1:
            half = state[0].lanes // 2
            low = [f.shuffle(x, x, range(half)) for x in state]
            high = [f.shuffle(x, x, range(half, 2 * half)) for x in state]
            state = self._combine(piece, low, high)
        return [f.extract(x, 0) if x.lanes else x for x in state]


def _fold(piece: Piece) -> Fold:
    assert piece.value.node is not None
    fold = piece.value.node.op.lower
    assert isinstance(fold, Fold)
    return fold
