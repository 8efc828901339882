"""What a program computes of weights alone, so that it can be kept from one call to the next.

Where some inputs are known to stay what they are for many calls, the kernels that read nothing else
are no part of the program: a function of their own runs them, and what other kernels read of their
results lies in memory that outlives a call. Which kernels there are does not depend on that, so all
results have the bits that they would have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from needle.compiler.fusion import Group
from needle.compiler.rows import rows_in
from needle.graph.ir import Graph, Value

#: Bytes that are kept at most for each byte of the inputs that they are computed from, by a kernel
#: and by all together: what is smaller and is stretched, or repeated, is computed at each call. A
#: weight of 3×3 in Winograd's form of 6×6 takes 4 times its bytes.
MOST_GROWTH = 4
#: Bytes that are kept besides, by a kernel and by all together: of what depends on no input.
FREE, FREE_IN_ALL = 1 << 16, 1 << 20
#: Bytes that are kept at least: to ask whether a few numbers are still right takes as long as to
#: compute them.
LEAST = 4096


class Preparing(NamedTuple):
    """What is computed ahead of calls.

    Attributes:
        groups: the kernels, in the order in which they run.
        values: what other kernels read of it.
        origins: the inputs that it is computed from.
    """

    groups: tuple[Group, ...] = ()
    values: tuple[Value, ...] = ()
    origins: frozenset[Value] = frozenset()


def find_preparing(graph: Graph, groups: Sequence[Group], fixed: Collection[Value]) -> Preparing:
    """Return which kernels of a program compute what stays the same for many calls.

    Args:
        graph: of the program.
        groups: its kernels, in an order in which they can run.
        fixed: inputs that stay what they are; none of them is overwritten.
    """
    if not fixed:
        return Preparing()
    return _Search(graph, groups, frozenset(fixed)).run()


class _Search:
    """The search for what can be kept, in the kernels of one program."""

    def __init__(self, graph: Graph, groups: Sequence[Group], fixed: frozenset[Value]) -> None:
        self.groups = groups
        self.fixed = fixed
        self.makers: dict[Value, list[Group]] = {}
        for g in groups:
            for value in _written(g):
                self.makers.setdefault(value, []).append(g)
        outputs = set(graph.outputs)
        self.early = {
            g: None
            for g in groups
            if not any(v in outputs or rows_in(v.nbytes) for v in _written(g))
        }

    def run(self) -> Preparing:
        """Return what is computed ahead."""
        while True:
            self._close()
            origins = self._origins()
            refused = self._too_large(origins)
            if refused is None:
                break
            del self.early[refused]
        read = set[Value]().union(*(_read(g) for g in self.groups if g not in self.early))
        values = tuple(v for v in self.makers if v in read and self._is_early(v))
        if _nbytes(values) < LEAST:
            return Preparing()
        early = tuple(g for g in self.groups if g in self.early)
        return Preparing(early, values, frozenset().union(*origins.values()))

    def _is_early(self, value: Value) -> bool:
        makers = self.makers.get(value, ())
        return bool(makers) and all(g in self.early for g in makers)

    def _close(self) -> None:
        """Leave only kernels all of whose reads are known ahead."""
        is_stable = False
        while not is_stable:
            is_stable = True
            for g in list(self.early):
                if not all(
                    v.constant is not None or v in self.fixed or self._is_early(v)
                    for v in (*_read(g), *g.joins())
                ):
                    del self.early[g]
                    is_stable = False

    def _origins(self) -> dict[Group, frozenset[Value]]:
        """Return for each kernel the inputs that its results depend on."""
        origins: dict[Group, frozenset[Value]] = {}
        for g in self.groups:
            if g in self.early:
                found = {v for v in _read(g) if v in self.fixed}
                makers = [m for v in _read(g) for m in self.makers.get(v, ())]
                origins[g] = frozenset(found).union(*(origins[m] for m in makers))
        return origins

    def _too_large(self, origins: dict[Group, frozenset[Value]]) -> Group | None:
        """Return a kernel whose results are too large to be kept; None if there is none."""
        late = [g for g in self.groups if g not in self.early]
        read = set[Value]().union(*map(_read, late))
        sizes = {g: sum(v.nbytes for v in _written(g) if v in read) for g in self.early}
        for g, size in sizes.items():
            if size > MOST_GROWTH * _nbytes(origins[g]) + FREE:
                return g
        given = _nbytes(frozenset().union(*(origins[g] for g, n in sizes.items() if n)))
        if sum(sizes.values()) > MOST_GROWTH * given + FREE_IN_ALL:
            return max(sizes, key=lambda g: sizes[g])
        return None


def _written(group: Group) -> tuple[Value, ...]:
    """Return the values that a kernel computes, and the joins that it computes parts of."""
    return (*group.defines(), *group.joins())


def _read(group: Group) -> set[Value]:
    """Return the stored values that a kernel reads, besides its own."""
    own = set(group.defines())
    return {v for p in group.pieces for v, _ in p.reads if v not in own}


def _nbytes(values: Iterable[Value]) -> int:
    return sum(v.nbytes for v in values)
