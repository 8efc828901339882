"""The order of steps: any in which values are there before they are read, but with little memory.

Steps are nodes or groups of nodes that run as one; all that counts here is what they read and what
they write. Where an output takes over the storage of an input (a donation), the steps that read the
input stand before the one that overwrites it, so that no copy is needed.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from needle.compiler.memory import Buffer
from needle.errors import GraphError
from needle.graph.ir import Graph, Node, Value
from needle.graph.rewrite import is_view


@dataclass(frozen=True)
class Step:
    """What a step reads and writes.

    Attributes:
        reads: keys of the values.
        writes: keys of the values; each is written by one step.
        overwrites: for a value that is written, those among the read ones whose storage it may take
            over.
        is_late: whether it should run just before what needs it: it computes again what is not
            kept in memory.
    """

    reads: tuple[Hashable, ...]
    writes: tuple[Hashable, ...]
    overwrites: Mapping[Hashable, tuple[Hashable, ...]] = field(default_factory=dict)
    is_late: bool = False


class Schedule:
    """Steps with what depends on what.

    Args:
        steps: in an order in which they can run.
        sizes: bytes of each value that needs memory of its own; values that are not named, such as
            inputs and constants, need none.
        kept: values that are needed after the last step.
        donations: for a value that takes over the storage of another, that other one.
        after: further steps, by number, that each step must run after.

    Attributes:
        copied: values that cannot be written directly into the storage that they take over, since a
            step that depends on them still reads what is there.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        sizes: Mapping[Hashable, int],
        kept: Sequence[Hashable] = (),
        donations: Mapping[Hashable, Hashable] | None = None,
        after: Mapping[int, Iterable[int]] | None = None,
    ) -> None:
        self.steps = list(steps)
        self.sizes = sizes
        self.kept = frozenset(kept)
        self._writer = {v: i for i, step in enumerate(self.steps) for v in step.writes}
        self._readers: dict[Hashable, list[int]] = {}
        for i, step in enumerate(self.steps):
            for v in dict.fromkeys(step.reads):
                self._readers.setdefault(v, []).append(i)
        #: For each step, those that must run after it.
        self._after: list[set[int]] = [set() for _ in self.steps]
        for i, step in enumerate(self.steps):
            for v in step.reads:
                before = self._writer.get(v)
                if before is not None and before != i:
                    self._after[before].add(i)
        for i, others in (after or {}).items():
            for j in others:
                self._after[j].add(i)
        self.copied = self._order_donations(donations or {})

    def _order_donations(self, donations: Mapping[Hashable, Hashable]) -> frozenset[Hashable]:
        """Put the readers of what is overwritten first; return the values for which they cannot."""
        copied = set()
        for new, old in donations.items():
            writer = self._writer.get(new)
            if writer is None or old in self._writer:
                # An input that is returned, or one output that takes over another.
                copied.add(new)
                continue
            readers = [i for i in self._readers.get(old, ()) if i != writer]
            may_read = old in self.steps[writer].reads
            in_place = old in self.steps[writer].overwrites.get(new, ())
            if (may_read and not in_place) or self._reaches(writer, set(readers)):
                copied.add(new)
                continue
            for i in readers:
                self._after[i].add(writer)
        return frozenset(copied)

    def _reaches(self, start: int, targets: set[int]) -> bool:
        """Whether one of the targets must run after ``start``."""
        stack, seen = [start], {start}
        while stack:
            for i in self._after[stack.pop()]:
                if i in targets:
                    return True
                if i not in seen:
                    seen.add(i)
                    stack.append(i)
        return False

    def order(self) -> list[int]:
        """Return the steps, by number, in the order of the lowest peak that was found."""
        candidates = [self._in_order(), self._greedy()]
        late = {i for i, step in enumerate(self.steps) if step.is_late or self._is_source(step)}
        if late:
            candidates += [self._delayed(order, late) for order in candidates]
        return min(candidates, key=self.peak)

    def _is_source(self, step: Step) -> bool:
        """Whether a step reads nothing that another one writes: so it frees nothing, and what it
        writes, such as a weight as kernels want it, lies about until it is needed."""
        return not any(v in self._writer for v in step.reads)

    def _in_order(self) -> list[int]:
        """Return the given order, changed only where a donation demands it."""
        waiting = self._waiting()
        ready = [i for i, n in enumerate(waiting) if not n]
        heapq.heapify(ready)
        order = []
        while ready:
            i = heapq.heappop(ready)
            order.append(i)
            for j in self._after[i]:
                waiting[j] -= 1
                if not waiting[j]:
                    heapq.heappush(ready, j)
        if len(order) < len(self.steps):
            raise GraphError("the steps depend on each other in a circle")
        return order

    def _delayed(self, order: Sequence[int], late: Set[int]) -> list[int]:
        """Return an order with the late steps moved to just before the first that needs them."""
        before: list[list[int]] = [[] for _ in self.steps]
        for i in order:
            for j in self._after[i]:
                before[j].append(i)
        delayed: list[int] = []
        done = [False] * len(self.steps)
        for i in (i for i in order if i not in late):
            stack = [i]
            while stack:
                missing = [j for j in before[stack[-1]] if not done[j]]
                if missing:
                    stack += missing[::-1]
                    continue
                step = stack.pop()
                if not done[step]:
                    done[step] = True
                    delayed.append(step)
        return delayed + [i for i in order if not done[i]]

    def _waiting(self) -> list[int]:
        """Return for each step how many must run before it."""
        waiting = [0] * len(self.steps)
        for after in self._after:
            for j in after:
                waiting[j] += 1
        return waiting

    def _greedy(self) -> list[int]:
        """Return an order that always takes the step after which the least memory is in use."""
        waiting = self._waiting()
        left = {v: len(readers) for v, readers in self._readers.items()}
        ready = [i for i, n in enumerate(waiting) if not n]
        order = []
        while ready:
            i = min(ready, key=lambda i: (self._growth(i, left), i))
            ready.remove(i)
            order.append(i)
            for v in dict.fromkeys(self.steps[i].reads):
                left[v] -= 1
            for j in self._after[i]:
                waiting[j] -= 1
                if not waiting[j]:
                    ready.append(j)
        return order

    def _growth(self, i: int, left: Mapping[Hashable, int]) -> int:
        """Return by how many bytes memory grows when a step runs next."""
        step = self.steps[i]
        made = sum(
            self.sizes.get(v, 0) for v in step.writes if v in self.kept or v in self._readers
        )
        freed = sum(
            self.sizes.get(v, 0)
            for v in dict.fromkeys(step.reads)
            if left[v] == 1 and v not in self.kept
        )
        return made - freed

    def peak(self, order: Sequence[int]) -> int:
        """Return the most bytes in use at once, in an order of the steps."""
        most = now = 0
        left = {v: len(readers) for v, readers in self._readers.items()}
        for i in order:
            step = self.steps[i]
            taken_over = self._taken_over(step, left)
            now += sum(self.sizes.get(v, 0) for v in step.writes) - taken_over
            most = max(most, now)
            for v in dict.fromkeys(step.reads):
                left[v] -= 1
            done = dict.fromkeys((*step.reads, *step.writes))
            now += taken_over - sum(
                self.sizes.get(v, 0) for v in done if not left.get(v, 0) and v not in self.kept
            )
        return most

    def _taken_over(self, step: Step, left: Mapping[Hashable, int]) -> int:
        """Return the bytes that the step writes into storage of what it reads for the last time."""
        used: set[Hashable] = set()
        for v, sources in step.overwrites.items():
            for u in sources:
                is_last = left.get(u) == 1 and u not in self.kept and u not in used
                if is_last and self.sizes.get(u, 0) == self.sizes.get(v, 0):
                    used.add(u)
                    break
        return sum(self.sizes.get(u, 0) for u in used)

    def buffers(self, order: Sequence[int]) -> dict[Hashable, Buffer]:
        """Return the buffer of each value that needs memory, in an order of the steps.

        The numbers in `Buffer.takes_over` are places in the returned dict.
        """
        at = {i: place for place, i in enumerate(order)}
        numbers = {v: n for n, v in enumerate(self._sized(order))}
        result: dict[Hashable, Buffer] = {}
        for v in numbers:
            writer = self._writer[v]
            uses = [at[writer], *(at[i] for i in self._readers.get(v, ()))]
            last = len(order) - 1 if v in self.kept else max(uses)
            overwrites = self.steps[writer].overwrites.get(v, ())
            takes_over = tuple(numbers[u] for u in overwrites if u in numbers)
            result[v] = Buffer(str(v), self.sizes[v], at[writer], last, takes_over)
        return result

    def _sized(self, order: Sequence[int]) -> list[Hashable]:
        return [v for i in order for v in self.steps[i].writes if v in self.sizes]


def schedule(graph: Graph) -> Graph:
    """Return the graph with its nodes in an order of low peak memory.

    Every result counts as if it were stored, but for views: those need no memory, and keep alive
    what they show.
    """
    sizes: dict[Hashable, int] = {}
    steps = []
    for node in graph.nodes:
        for value in node.results:
            sizes[value] = 0 if is_view(node.op) else value.nbytes
        steps.append(Step(tuple(_roots(node)), tuple(node.results)))
    donations: dict[Hashable, Hashable] = {
        graph.outputs[out]: graph.inputs[i] for out, i in graph.donations.items()
    }
    plan = Schedule(steps, sizes, graph.outputs, donations)
    nodes = [graph.nodes[i] for i in plan.order()]
    return Graph(graph.inputs, nodes, graph.outputs, dict(graph.donations), graph.name)


def _roots(node: Node) -> list[Value]:
    """Return what a node reads, and what is below where that is a view."""
    found = []
    for value in node.inputs:
        found.append(value)
        while value.node is not None and is_view(value.node.op):
            value = value.node.inputs[0]
            found.append(value)
    return found
