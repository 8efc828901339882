"""Control flow: what need not be passed into it, carried, stacked or chosen.

- A switch whose index is known becomes the branch; a loop of no turn or of one is none.
- Results that nobody reads are not computed. Carried values that nothing depends on are not
  carried, and those that never change are passed in.
- Constants of one number move in, where rules can use them. What is the same in all turns moves
  out.
- Each value is passed in once, if it is read at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from needle.graph.ir import Graph, Node, Value, keep, sort
from needle.graph.rewrite import apply, constant, number_of
from needle.ops.contraction import matmul
from needle.ops.control import LOOP, SWITCH, split_loop
from needle.ops.movement import permute_dims, reshape
from needle.ops.record import Kind

#: A value from outside, and the value inside of a graph that stands for it.
Passed = tuple[Value, Value]


def tidy_control(graph: Graph) -> Graph:
    """Return the graph with its control flow, and that inside of it, tidied."""
    if all(node.op.kind is not Kind.CONTROL for node in graph.nodes):
        return graph
    read = set(graph.read_values())

    def transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        if node.op is SWITCH:
            return _switch(node, inputs, read)
        if node.op is LOOP:
            return _Loop(node, inputs, read).results()
        return keep(node, inputs).results

    return graph.rebuild(transform)


# Graphs


def inline(graph: Graph, inputs: Sequence[Value]) -> list[Value]:
    """Return the outputs of a graph for ``inputs`` as values of the graph around."""
    new = dict(zip(graph.inputs, inputs, strict=True))
    for node in graph.nodes:
        kept = keep(node, tuple(new.get(v, v) for v in node.inputs))
        new.update(zip(node.results, kept.results, strict=True))
    return [new.get(v, v) for v in graph.outputs]


def _rewired(
    graph: Graph, inputs: Iterable[Value], new: Mapping[Value, Value], outputs: Iterable[Value]
) -> Graph:
    """Return a graph of other inputs and outputs, with values inside of it replaced."""
    now = dict(new)
    for node in graph.nodes:
        kept = keep(node, tuple(now.get(v, v) for v in node.inputs))
        for old, result in zip(node.results, kept.results, strict=True):
            now.setdefault(old, result)
    wanted = [now.get(v, v) for v in outputs]
    return tidy_control(Graph(list(inputs), sort(wanted), wanted, {}, graph.name))


def _single(passed: Iterable[Passed], new: dict[Value, Value]) -> list[Passed]:
    """Return what still has to be passed in, when constants are moved in and each value is passed
    once; ``new`` receives what replaces the rest."""
    kept: dict[Value, Value] = {}
    for outer, inside in passed:
        number = number_of(outer)
        if outer.constant is not None and outer.size == 1:
            new[inside] = Value(outer.spec, constant=outer.constant)
        elif number is not None:
            new[inside] = constant(number, outer.dtype, outer.shape)
        elif outer in kept:
            new[inside] = kept[outer]
        else:
            kept[outer] = inside
    return list(kept.items())


def _read_in(graph: Graph, passed: Iterable[Passed]) -> list[Passed]:
    """Return what of ``passed`` the graph reads."""
    read = set(graph.read_values())
    return [(outer, inside) for outer, inside in passed if inside in read]


def _results(
    node: Node, kept: Sequence[Value], made: Sequence[Value], known: Mapping[Value, Value]
) -> list[Value]:
    """Return what replaces the results of ``node``: those ``kept`` by what was ``made``."""
    now = {**dict(zip(kept, made, strict=True)), **known}
    return [now.get(v, v) for v in node.results]  # what is not there, nobody reads


# Switches


def _switch(node: Node, inputs: Sequence[Value], read: set[Value]) -> Sequence[Value]:
    branches: tuple[Graph, ...] = node.attrs["branches"]
    index, *operands = inputs
    known = number_of(index)
    if known is not None:
        return inline(branches[min(max(int(known), 0), len(branches) - 1)], operands)
    kept = [v for v in node.results if v in read]
    places: list[list[Passed]] = []
    graphs = []
    for branch in branches:
        new: dict[Value, Value] = {}
        passed = _single(zip(operands, branch.inputs, strict=True), new)
        outputs = [branch.outputs[v.index] for v in kept]
        graphs.append(_rewired(branch, [inside for _, inside in passed], new, outputs))
        places.append(passed)
    # All branches are given what any of them reads.
    wanted = {
        outer for g, passed in zip(graphs, places, strict=True) for outer, _ in _read_in(g, passed)
    }
    for graph, passed in zip(graphs, places, strict=True):
        graph.inputs = [inside for outer, inside in passed if outer in wanted]
    given = [outer for outer, _ in places[0] if outer in wanted]
    made = Node(node.op, [index, *given], {"branches": tuple(graphs)}, [v.spec for v in kept])
    made.take_place(node)
    return _results(node, kept, made.results, {})


# Loops


class _Loop:
    """A loop that is being tidied."""

    def __init__(self, node: Node, inputs: Sequence[Value], read: set[Value]) -> None:
        self.node = node
        self.read = read
        attrs = node.attrs
        self.body: Graph = attrs["body"]
        self.test: Graph | None = attrs["test"]
        self.length: int | None = attrs["length"]
        self.count: int = attrs["carries"]
        first, stacks, constants, others, turns = split_loop(inputs, **attrs)
        self.first: list[Value] = first
        self.stacks: list[Value] = stacks
        self.turns: Value | None = turns
        insides = self.body.inputs
        slices = self.count + len(stacks)
        self.scanned: list[Passed] = list(zip(stacks, insides[self.count : slices], strict=True))
        self.constants: list[Passed] = list(zip(constants, insides[slices:], strict=True))
        self.others: list[Passed] = (
            []
            if self.test is None
            else list(zip(others, self.test.inputs[self.count :], strict=True))
        )
        #: Number of the first stack among the results.
        self.stacked = self.count + (self.test is not None)

    def results(self) -> Sequence[Value]:
        """Return what replaces the results of the node."""
        if self.length == 0:
            return self._none()
        if self.length == 1 and self.test is None and self.turns is None:
            return self._once()
        fixed = [j for j in range(self.count) if self.body.outputs[j] is self.body.inputs[j]]
        for j in fixed:
            self.constants.append((self.first[j], self.body.inputs[j]))
            if self.test is not None:
                self.others.append((self.first[j], self.test.inputs[j]))
        known = {self.node.results[j]: self.first[j] for j in fixed}
        stacks = [v for v in self.node.results[self.stacked :] if v in self.read]
        live = self._live(set(fixed), stacks)
        new: dict[Value, Value] = {}
        constants = _single(self.constants, new)
        constants += self._moved_out({b: a for a, b in constants}, new)
        outputs = [self.body.outputs[j] for j in live]
        outputs += [self.body.outputs[v.index - self.stacked + self.count] for v in stacks]
        for stack, inside in self.scanned:
            number = number_of(stack)
            if number is not None:
                new[inside] = constant(number, inside.dtype, inside.shape)
        body = _rewired(self.body, (), new, outputs)
        scanned, constants = _read_in(body, self.scanned), _read_in(body, constants)
        body.inputs = [self.body.inputs[j] for j in live]
        body.inputs += [inside for _, inside in (*scanned, *constants)]
        test, others = self._tidy_test(live)
        inputs = [self.first[j] for j in live]
        inputs += [outer for outer, _ in (*scanned, *constants, *others)]
        if self.turns is not None:
            inputs.append(self.turns)
        attrs = {
            **self.node.attrs,
            "body": body,
            "test": test,
            "carries": len(live),
            "scanned": len(scanned),
        }
        kept = [self.node.results[j] for j in live]
        kept += self.node.results[self.count : self.stacked]
        kept += stacks
        made = Node(self.node.op, inputs, attrs, [v.spec for v in kept])
        made.take_place(self.node)
        return _results(self.node, kept, made.results, known)

    def _none(self) -> list[Value]:
        """Return the results after no turn."""
        rest = self.node.results[self.count :]
        return [*self.first, *(constant(0, v.dtype, v.shape) for v in rest)]

    def _once(self) -> list[Value]:
        """Return the results after one turn."""

        def shaped(value: Value, shape: tuple[int, ...]) -> Value:
            return apply(reshape.op, (value,), {"shape": shape}, self.node)

        slices = [shaped(v, v.shape[1:]) for v in self.stacks]
        outer = [v for v, _ in self.constants]
        after = inline(self.body, [*self.first, *slices, *outer])
        return [
            *after[: self.count],
            *(shaped(v, (1, *v.shape)) for v in after[self.count :]),
        ]

    def _live(self, fixed: set[int], stacks: Sequence[Value]) -> list[int]:
        """Return which carried values anything depends on."""
        body, own = self.body, self.node.results
        live = {j for j in range(self.count) if own[j] in self.read and j not in fixed}
        if self.test is not None:
            tested = set(self.test.read_values())
            live |= {j for j in range(self.count) if self.test.inputs[j] in tested} - fixed
        wanted = [body.outputs[v.index - self.stacked + self.count] for v in stacks]
        while True:
            roots = [body.outputs[j] for j in live] + wanted
            read = {v for node in sort(roots) for v in node.inputs} | set(roots)
            more = {j for j in range(self.count) if body.inputs[j] in read} - fixed - live
            if not more:
                return sorted(live)
            live |= more

    def _moved_out(self, outside: dict[Value, Value], new: dict[Value, Value]) -> list[Passed]:
        """Move what is the same in all turns out of the body; ``new`` receives what replaces it.

        Args:
            outside: what is passed in, by the values that stand for it.
            new: values that are replaced already.
        """
        given = set(outside)
        same: dict[Node, bool] = {}

        def is_same(value: Value) -> bool:
            value = new.get(value, value)
            if value.node is None:
                return value.constant is not None or value in given
            return same.get(value.node, number_of(value) is not None)

        turned = _turned_factors(self.body) if self.node.attrs["length"] != 1 else set()
        for node in self.body.nodes:
            # An op that may fail must not run where no turn does.
            same[node] = (
                node.op.kind is not Kind.CONTROL
                and node.op.fault is None
                and all(map(is_same, node.inputs))
            )
        moved: list[Passed] = []
        seen: set[Value] = set()

        def outer(value: Value) -> Value:
            """Return what ``value`` is outside, where its nodes are written again."""
            value = new.get(value, value)
            if value in outside or value.node is None or value.node not in same:
                return outside.get(value, value)
            node = value.node
            copy = keep(node, tuple(map(outer, node.inputs)), is_new=True)
            outside.update(zip(node.results, copy.results, strict=True))
            return outside[value]

        def visit(value: Value) -> None:
            node = new.get(value, value).node
            if node is None or value in seen or not same.get(node, False):
                return
            seen.add(value)
            if value in turned or _is_worth_keeping(node, value):
                inside = Value(value.spec, name=value.name)
                outside[inside] = outer(value)
                moved.append((outside[inside], inside))
                new[value] = inside
            else:
                for v in node.inputs:
                    visit(v)

        for node in self.body.nodes:
            if not same[node]:
                for value in node.inputs:
                    visit(value)
        for value in self.body.outputs:
            visit(value)
        return moved

    def _tidy_test(self, live: Sequence[int]) -> tuple[Graph | None, list[Passed]]:
        if self.test is None:
            return None, []
        new: dict[Value, Value] = {}
        others = _single(self.others, new)
        test = _rewired(self.test, (), new, self.test.outputs)
        others = _read_in(test, others)
        test.inputs = [self.test.inputs[j] for j in live]
        test.inputs += [inside for _, inside in others]
        return test, others


def _turned_factors(graph: Graph) -> set[Value]:
    """Return the transposed second factors of products: each would turn them round for itself, at
    the cost of the copy that one can make for all turns."""
    return {
        value
        for node in graph.nodes
        if node.op is matmul.op
        for value in node.inputs[1:]
        if value.node is not None and value.node.op is permute_dims.op
    }


def _is_worth_keeping(node: Node, value: Value) -> bool:
    """Whether it costs less to read a value in each turn than to compute it in each."""
    if node.op.kind in (Kind.MOVEMENT, Kind.INDEXING) or not node.inputs:
        return False
    if node.op.kind is not Kind.ELEMENTWISE:
        return True
    return value.nbytes <= 2 * sum(v.nbytes for v in node.inputs)
