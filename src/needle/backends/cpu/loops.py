"""Loops over elements, for kernels that go through them in an order of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.operands import Index, Operand, Segment
from needle.compiler.index import Var
from needle.compiler.rows import rows_in

#: Elements below which a kernel is not worth a second thread.
SMALL = 1 << 14

Ranges = Mapping[Var, tuple[Index, Index]]


#: Says of a kernel that each call decides into how many tasks its rows are split.
BY_ROWS = 0


def shared_tasks(size: int, shared: Var, unit: int, threads: int) -> int:
    """Return how many tasks share a kernel over ``size`` elements, by a loop in steps of a unit."""
    if rows_in(shared.extent):
        return BY_ROWS
    return 1 if size < SMALL else max(1, min(threads, -(-shared.extent // unit)))


class Loops:
    """Opens loops in a kernel: variables get places in its emitter.

    Args:
        kernel: the kernel.
        ranges: the part of a variable's range that this task runs; all, for others.
    """

    def __init__(self, kernel: KernelFunction, ranges: Ranges | None = None) -> None:
        self.kernel = kernel
        self.f = kernel.f
        self.e = kernel.emitter
        self._ranges = ranges or {}

    def bounds(self, var: Var) -> tuple[Index, Index]:
        """Return where this task starts and stops."""
        return self._ranges.get(var) or (0, self.kernel.extent(var.extent))

    def each(self, variables: Sequence[Var], body: Callable[[], None]) -> None:
        """Run ``body`` for all values of the variables, the last of them fastest."""
        if not variables:
            body()
            return
        var, *rest = variables

        def turn(i: Index, _: list[Operand]) -> list[Operand]:
            self.e.place(var, i)
            self.each(rest, body)
            return []

        start, stop = self.bounds(var)
        self.run(start, stop, 1, [], turn)

    def run(
        self,
        start: Index,
        stop: Index,
        step: int,
        carried: Sequence[Operand],
        body: Callable[[Index, list[Operand]], Sequence[Operand]],
    ) -> list[Operand]:
        """Emit a loop, open in the emitter, that carries values."""
        before = self.f.segment()

        def turn(i: Index, values: list[Operand]) -> Sequence[Operand]:
            with self.e.inside(before):
                return body(i, values)

        return self.f.loop(start, stop, step, carried, turn)

    def vectors(self, var: Var, lanes: int, body: Callable[[], None]) -> None:
        """Run ``body`` over vectors along a variable; those at the end have lanes masked off."""
        f = self.f
        start, stop = self.bounds(var)

        def run(i: Index, mask: Operand | None, before: Segment) -> None:
            with self.e.inside(before):
                self.e.place(var, i)
                self.e.vector, self.e.lanes, self.e.mask = var, lanes, mask
                body()
                self.e.vector, self.e.lanes, self.e.mask = None, 0, None

        whole = f.mul_index(f.floordiv_index(f.sub_index(stop, start), lanes), lanes)
        end = f.add_index(start, whole)
        before = f.segment()
        f.loop(start, end, lanes, [], lambda i, _: run(i, None, before))
        if end == stop:
            return
        after = f.segment()
        f.loop(
            end,
            stop,
            lanes,
            [],
            lambda i, _: run(i, f.tail_mask(f.sub_index(stop, i), lanes), after),
        )
