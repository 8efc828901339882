"""Scans: running results along an axis, one element after the other.

Each line is combined in its order, so that its results do not depend on what else is computed.
What makes it fast is to run along several lines at a time: those next to each other in the lanes of
vectors, or a few of them by turns, while the processor waits for each one's last result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.loops import Loops, Ranges, shared_tasks
from needle.backends.cpu.operands import Index, Operand, Segment
from needle.backends.cpu.target import Target
from needle.backends.cpu.write import write_to
from needle.compiler import index as ix
from needle.compiler.access import Place, variables
from needle.compiler.fusion import Group, Piece
from needle.compiler.index import Var
from needle.graph.ir import Value
from needle.ops.ordered import Scan

#: Lines by turns: an addition's latency times what the processor starts in a cycle.
TURNS = 8


@dataclass
class ScanPlan:
    """A scan as a kernel of a program; see `AnchorPlan`.

    Attributes:
        piece: the result.
        source: what is scanned.
        scan: what is particular to the op.
        loops: variables over the elements.
        along: the variable of the scan.
        across: the variable of lines that are computed together; None for a single line.
        lanes: lines in the lanes of a vector; 0 for scalar code.
        shared: the variable whose range tasks share; None if there is none.
    """

    piece: Piece
    source: Value
    scan: Scan
    loops: tuple[Var, ...]
    along: Var
    across: Var | None
    lanes: int
    shared: Var | None
    tasks: int = 1
    workspace: int = 0

    @property
    def unit(self) -> int:
        """How many lines are computed together."""
        return max(self.lanes, 1) * (4 if self.lanes else TURNS)

    def emit(self, kernel: KernelFunction, workspace: str) -> None:
        """Emit the kernel."""
        if 0 in self.piece.value.shape:
            return
        ranges: Ranges = {}
        if self.shared is not None and self.tasks != 1:
            unit = self.unit if self.shared is self.across else 1
            ranges = {self.shared: kernel.range_of(self.shared.extent, self.tasks, unit)}
        loops = Loops(kernel, ranges)
        outer = [v for v in self.loops if v not in (self.along, self.across) and v.extent != 1]
        outer.sort(key=lambda v: v is not self.shared)
        loops.each(outer, lambda: self._lines(kernel, loops))

    def _lines(self, kernel: KernelFunction, loops: Loops) -> None:
        f, across, unit = kernel.f, self.across, self.unit
        if across is None:
            self._scan(kernel, loops, 0, 1, None)
            return
        start, stop = loops.bounds(across)
        whole = f.mul_index(f.floordiv_index(f.sub_index(stop, start), unit), unit)
        end = f.add_index(start, whole)
        step = max(self.lanes, 1)

        def block(i: Index, _: list[Operand]) -> list[Operand]:
            self._scan(kernel, loops, i, unit // step, None)
            return []

        def rest(i: Index, _: list[Operand]) -> list[Operand]:
            mask = f.tail_mask(f.sub_index(stop, i), self.lanes) if self.lanes else None
            self._scan(kernel, loops, i, 1, mask)
            return []

        loops.run(start, end, unit, [], block)
        loops.run(end, stop, step, [], rest)

    def _scan(
        self, kernel: KernelFunction, loops: Loops, first: Index, count: int, mask: Operand | None
    ) -> None:
        """Scan ``count`` lines, or vectors of them, from ``first`` on."""
        e, f = kernel.emitter, kernel.f
        places = [self._place(slot) for slot in range(count)]
        if self.across is not None:
            e.place(self.across, first)
        if self.lanes:
            e.vector, e.lanes, e.mask = self.across, self.lanes, mask
        pointer, shape = kernel.pointer_of(self.piece.value), self.piece.value.shape

        def elements() -> list[Operand]:
            found = [e.element(self.source, at).operand for at in places]
            return [f.splat(x, self.lanes) for x in found]

        def store(results: list[Operand]) -> list[Operand]:
            for at, x in zip(places, results, strict=True):
                write_to(e, pointer, ix.ravel(at, shape), x)
            return results

        def turn(i: Index, before: list[Operand]) -> list[Operand]:
            e.place(self.along, i)
            pairs = zip(before, elements(), strict=True)
            return store([self.scan.combine(f, old, x) for old, x in pairs])

        begin: Segment = f.segment()
        with e.inside(begin):
            e.place(self.along, 0)
            results = store(elements())
        loops.run(1, kernel.extent(self.along.extent), 1, results, turn)
        e.vector, e.lanes, e.mask = None, 0, None

    def _place(self, slot: int) -> Place:
        """Return the place of the element of the line that is ``slot`` steps across."""
        step = slot * max(self.lanes, 1)
        return tuple(ix.of(v) + step if v is self.across else ix.of(v) for v in self.loops)


def plan_scan(group: Group, scan: Scan, target: Target, threads: int) -> ScanPlan:
    """Return the plan of a group whose anchor scans."""
    node = group.anchor
    assert node is not None
    piece = group.pieces[0]
    source, shape = node.inputs[0], piece.value.shape
    loops = variables(shape)
    along = loops[node.attrs["axis"]]
    lines = [v for v in loops if v is not along and v.extent != 1]
    across = lines[-1] if lines else None
    lanes = 0
    if across is not None and across.extent >= 4 and _neighbours(across, loops):
        widest = max(4, source.dtype.itemsize, piece.value.dtype.itemsize)
        lanes = min(target.vector_bytes // widest, 1 << (across.extent - 1).bit_length())
    plan = ScanPlan(piece, source, scan, loops, along, across, lanes, None)
    if lines:
        unit = {v: plan.unit if v is across else 1 for v in lines}
        plan.shared = max(lines, key=lambda v: v.extent / unit[v])
        plan.tasks = shared_tasks(math.prod(shape), plan.shared, unit[plan.shared], threads)
    return plan


def _neighbours(var: Var, loops: tuple[Var, ...]) -> bool:
    """Whether elements next to each other along a variable lie next to each other in memory."""
    return math.prod(v.extent for v in loops[loops.index(var) + 1 :]) == 1
