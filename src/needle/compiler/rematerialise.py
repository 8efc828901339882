"""Rematerialisation: a value is dropped between two uses, and computed again before the later one.

What the backward pass needs of the forward pass is most of the memory of a training step. A value
that costs little to compute from what is there anyway does not have to wait for its use.

Source: T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; which values to drop
is decided by what they take, for how long, and what they cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import is_view
from needle.ops.record import Kind, flops_of

#: Nodes that may be computed again for one value.
MOST_NODES = 40
#: Values of less than this share of all bytes are not worth it.
LEAST_SHARE = 1e-4
#: Nor are those that are needed again before this share of the nodes has run.
LEAST_GAP = 1 / 16
#: What a second is taken for: operations and bytes. Only their ratio matters.
_FLOPS, _BYTES = 1e11, 1e10


@dataclass(frozen=True)
class Gap:
    """Between which of its uses a value is not needed.

    Attributes:
        value: the value.
        before: position in the graph of the node that uses, or makes, it last before.
        after: position of the next node that uses it.
        gain: bytes times positions, for each second that it costs.
    """

    value: Value
    before: int
    after: int
    gain: float


class _Uses:
    """When values are used; a use of a view is a use of what it is a view of."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.positions: dict[Value, list[int]] = {}
        self.defined: dict[Value, int] = {}
        for t, node in enumerate(graph.nodes):
            for value in node.results:
                self.defined[value] = t
            if not is_view(node.op):
                for value in node.inputs:
                    self._use(value, t)
        for value in graph.outputs:
            self._use(value, len(graph.nodes))

    def _use(self, value: Value, t: int) -> None:
        while True:
            self.positions.setdefault(value, []).append(t)
            if value.node is None or not is_view(value.node.op):
                return
            value = value.node.inputs[0]

    def last(self, value: Value) -> int:
        """Return the last position at which a value lies in memory."""
        if value.node is None:
            return len(self.graph.nodes)
        return max(self.positions.get(value, [self.defined[value]]))


def gaps(graph: Graph) -> list[Gap]:
    """Return what can be computed again, what gains most for its cost first."""
    uses = _Uses(graph)
    total = sum(v.nbytes for node in graph.nodes for v in node.results if not is_view(node.op))
    found = []
    for node in graph.nodes:
        if is_view(node.op) or node.recomputation:
            continue
        for value in node.results:
            if value.nbytes < LEAST_SHARE * total:
                continue
            at = sorted({uses.defined[value], *uses.positions.get(value, ())})
            if at[-1] == len(graph.nodes):
                continue  # a result of the program
            pairs = pairwise(at)
            before, after = max(pairs, key=lambda p: p[1] - p[0], default=(0, 0))
            if after - before < LEAST_GAP * len(graph.nodes):
                continue
            seconds = _seconds(uses, value, after)
            if seconds is not None:
                found.append(Gap(value, before, after, value.nbytes * (after - before) / seconds))
    return sorted(found, key=lambda gap: -gap.gain)


def _seconds(uses: _Uses, value: Value, after: int) -> float | None:
    """Return about how long it takes to compute a value again; None if that is out of question."""
    seconds = 1e-9
    stack, seen = [value], set()
    while stack:
        node = stack.pop().node
        if node is None or node in seen:
            continue
        seen.add(node)
        if len(seen) > MOST_NODES or node.op.kind is Kind.CONTROL:
            return None
        specs = tuple(v.spec for v in node.results)
        result = specs[0] if len(specs) == 1 else specs
        inputs = tuple(v.spec for v in node.inputs)
        seconds += flops_of(node.op, inputs, result, node.attrs) / _FLOPS  # type: ignore[arg-type]
        seconds += sum(s.nbytes for s in specs) / _BYTES
        stack += [v for v in node.inputs if uses.last(v) < after]
    return seconds


def rematerialise(graph: Graph, dropped: Sequence[Gap]) -> Graph:
    """Return a graph that computes the same, and some values twice.

    Args:
        graph: stays as it is.
        dropped: the values, and when they are not kept.
    """
    return _Rewriter(graph, dropped).run()


def _limited(uses: _Uses, dropped: Sequence[Gap]) -> dict[Value, Gap]:
    """Return gaps by their values, but for values that would need too many others once more.

    These stay in memory, and what comes after begins with them.
    """
    limited: dict[Value, Gap] = {}
    sizes: dict[Value, int] = {}
    for gap in sorted(dropped, key=lambda gap: uses.defined[gap.value]):
        size, stack, seen = 0, [gap.value], set()
        while stack and size <= MOST_NODES:
            value = stack.pop()
            node = value.node
            if node is None or node in seen:
                continue
            seen.add(node)
            size += 1
            for v in node.inputs:
                if v in sizes:
                    size += sizes[v]
                elif uses.last(v) < gap.after:
                    stack.append(v)
        if size <= MOST_NODES:
            limited[gap.value], sizes[gap.value] = gap, size
    return limited


class _Rewriter:
    """Writes the nodes of a graph again, and before late uses what they need once more."""

    def __init__(self, graph: Graph, dropped: Sequence[Gap]) -> None:
        self.graph = graph
        self.uses = _Uses(graph)
        self.gap_of = _limited(self.uses, dropped)
        self.numbers: dict[int, int] = {}
        self.first_number = 1 + max((n.recomputation for n in graph.nodes), default=0)
        self.nodes: list[Node] = []
        self.new: dict[Value, Value] = {}
        #: Values that were computed again, and for dead ones also when.
        self.again: dict[tuple[Value, int], Value] = {}

    def run(self) -> Graph:
        for t, node in enumerate(self.graph.nodes):
            inputs = tuple(self._at(v, t) for v in node.inputs)
            made = keep(node, inputs)
            self.nodes.append(made)
            self.new.update(zip(node.results, made.results, strict=True))
        outputs = [self.new.get(v, v) for v in self.graph.outputs]
        g = self.graph
        return Graph(g.inputs, list(self._needed(outputs)), outputs, dict(g.donations), g.name)

    def _needed(self, outputs: Sequence[Value]) -> Iterator[Node]:
        """Yield the nodes that anything depends on, in order."""
        read = set(outputs)
        for node in reversed(self.nodes):
            if not read.isdisjoint(node.results):
                read.update(node.inputs)
        return (n for n in self.nodes if not read.isdisjoint(n.results))

    def _at(self, value: Value, t: int) -> Value:
        """Return what a node at position ``t`` of the graph reads for ``value``."""
        node = value.node
        if node is None:
            return value
        if is_view(node.op):
            return self._view(node, value, self._at(node.inputs[0], t))
        gap = self.gap_of.get(value)
        if gap is None or t < gap.after:
            return self.new[value]
        return self._again(value, gap.after, 0)

    def _view(self, node: Node, value: Value, base: Value) -> Value:
        """Return a view of ``base`` like the one that ``value`` is of the node's input."""
        if base is self.new.get(node.inputs[0], node.inputs[0]):
            return self.new[value]
        key = (value, id(base))
        if key not in self.again:
            copy = keep(node, (base, *(self.new.get(v, v) for v in node.inputs[1:])), is_new=True)
            copy.recomputation = 0 if base.node is None else base.node.recomputation
            self.nodes.append(copy)
            self.again[key] = copy.results[value.index]
        return self.again[key]

    def _again(self, value: Value, t: int, key: int) -> Value:
        """Return a value that is computed again for a use at ``t``."""
        found = self.again.get((value, key))
        if found is not None:
            return found
        node = value.node
        assert node is not None
        copy = keep(node, tuple(self._late(v, t) for v in node.inputs), is_new=True)
        number = self.numbers.setdefault(t, len(self.numbers))
        copy.recomputation = self.first_number + number
        self.nodes.append(copy)
        for old, made in zip(node.results, copy.results, strict=True):
            self.again[old, key] = made
        return self.again[value, key]

    def _late(self, value: Value, t: int) -> Value:
        """Return what is read for ``value`` by what is computed again at ``t``."""
        node = value.node
        if node is None:
            return value
        if is_view(node.op):
            return self._view(node, value, self._late(node.inputs[0], t))
        gap = self.gap_of.get(value)
        if gap is not None and t > gap.before:
            return self._again(value, t, 0)
        if self.uses.last(value) >= t:
            return self.new[value]
        return self._again(value, t, t)
