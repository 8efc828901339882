"""Plan: the paths of a function as a tree of programs, from one guard to the next.

A path is cut where Python asked for a value. The program ahead of a cut computes what the answer
needs and no more; everything else is left to the last program of the path, which also overwrites
state. So all programs but the last are pure, and a call may give up at any guard and begin anew.
What a program has computed and a later one needs is handed on. Paths that give the same answers
share programs: what such a program hands on is what any path behind it needs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from needle.compiled.branches.guide import Answers, Question, backward_error
from needle.compiled.branches.keys import Keys
from needle.compiled.executable import Executable
from needle.compiled.specialization import Specialization
from needle.compiler.fingerprint import fingerprint
from needle.errors import TraceError
from needle.graph.differentiate import with_inputs
from needle.graph.ir import Graph, Node, Value
from needle.graph.traced import Source, Traced
from needle.ops.record import Kind
from needle.ops.samples import Array


class Path:
    """A path that was traced.

    Args:
        traced: the trace, from the beginning to the end.
        answers: what was asked on the way.

    Attributes:
        questions: those that the values in a call decide; what depends on constants alone is the
            same in all calls.
        specialization: calls the last program; set by `Branched`.
    """

    specialization: Specialization

    def __init__(self, traced: Traced, answers: Answers) -> None:
        self.traced = traced
        self.keys: Keys = answers.keys
        self.fixed = _fixed(traced.graph)
        self.questions = [
            q for q in answers.questions if q.value.constant is None and q.value not in self.fixed
        ]
        self.places = {node: i for i, node in enumerate(traced.graph.nodes)}
        for q in self.questions:
            if q.value.node is not None and q.value.node not in self.places:
                raise backward_error(traced.graph.name, q.location)
        self._captured = self._find_sources()

    def _find_sources(self) -> list[Source | Value]:
        """Return what was captured, in order: sources of state, and values of constants."""
        traced = self.traced
        known: dict[Value, Source] = dict(
            zip(traced.graph.inputs[traced.arguments :], traced.sources, strict=True)
        )
        found: list[Source | Value] = []
        for value in self.keys.captured:
            source = known.get(value)
            if source is None and value.node is not None:
                # State that lies in another order is an input ahead of a transposition.
                source = known.get(value.node.inputs[0])
            found.append(value if source is None else source)
        return found

    def has_begun_like(self, other: Path, depth: int) -> bool:
        """Whether two paths have asked the same question, after the same answers."""
        if len(self.questions) <= depth or len(other.questions) <= depth:
            return len(self.questions) == len(other.questions)
        mine, its = self.questions[depth], other.questions[depth]
        if (mine.key, mine.convert, mine.captured) != (its.key, its.convert, its.captured):
            return False
        pairs = zip(self._captured[: mine.captured], other._captured, strict=False)
        return all(_is_same(a, b) for a, b in pairs)


def _fixed(graph: Graph) -> set[Value]:
    """Return what nodes compute from constants alone."""
    fixed: set[Value] = set()
    for node in graph.nodes:
        if all(v.constant is not None or v in fixed for v in node.inputs):
            fixed.update(node.results)
    return fixed


def _is_same(a: Source | Value, b: Source | Value) -> bool:
    """Whether two traces have captured the same: a tensor of the state, or equal constants."""
    if isinstance(a, Source) and isinstance(b, Source):
        if a.owner is not None or a.tensor is not None:
            return a.owner is b.owner and a.tensor is b.tensor
        return a.array is b.array
    if isinstance(a, Source) or isinstance(b, Source) or a.spec != b.spec:
        return False
    return _content(a) == _content(b)


def _content(value: Value) -> bytes:
    """Return the bytes of a constant, which may be a number that a node repeats."""
    while value.constant is None:
        assert value.node is not None
        (value,) = value.node.inputs
    return value.constant.tobytes()


class Program:
    """An executable that is made when it is first run.

    Args:
        graph: what it runs.
        build: makes an executable of a graph.
    """

    def __init__(self, graph: Graph, build: Callable[[Graph], Executable]) -> None:
        self.graph = graph
        self._build = build
        self._lock = threading.Lock()
        self._executable: Executable | None = None

    def run(self, arrays: list[Array]) -> list[Array]:
        """Run it; see `Executable.run`."""
        executable = self._executable
        if executable is None:
            with self._lock:
                executable = self._executable = self._executable or self._build(self.graph)
        return executable.run(arrays)


@dataclass(eq=False)
class Point:
    """Where a program ends: at a guard, or at the end of a path.

    Attributes:
        path: the first path through here; the program is made of its trace.
        depth: how many guards lie ahead.
        question: what the guard asks; None at the end of a path.
        children: what comes next, by the answer.
        nodes: what the program computes.
        takes: keys of what programs ahead have handed on, with the values that stand for them.
        made: what the program computes, by key.
        hands: keys of what it hands on.
    """

    path: Path
    depth: int
    question: Question | None = None
    children: dict[Any, Point] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    takes: dict[int, Value] = field(default_factory=dict)
    made: dict[int, Value] = field(default_factory=dict)
    hands: list[int] = field(default_factory=list)
    #: Values of the trace that what was handed on stands for.
    _stand_ins: dict[Value, Value] = field(default_factory=dict)
    # Set by `_compile`.
    program: Program | None = None
    #: From all that was handed on so far to what the program takes.
    pick: Callable[[Sequence[Array]], Sequence[Array]] = tuple
    #: Where the answer is among the inputs of the program, if nothing has to be computed.
    asked: int = -1

    def points(self) -> Iterator[Point]:
        """Yield this point and all behind it."""
        stack = [self]
        while stack:
            point = stack.pop()
            yield point
            stack.extend(reversed(point.children.values()))

    def along(self, answers: Sequence[Any]) -> Iterator[Point]:
        """Yield the points of a path, as far as it is known."""
        point: Point | None = self
        while point is not None:
            yield point
            left = point.depth < len(answers)
            point = point.children.get(answers[point.depth]) if left else None

    def inputs(self) -> list[Value]:
        """Return the inputs of the program: arguments, state, what it takes."""
        return [*self.path.traced.graph.inputs, *self.takes.values()]

    def cut(self, ahead: dict[int, Point]) -> None:
        """Find what is left to compute for the answer, or for the results.

        Args:
            ahead: what programs ahead have computed, by key, with the point at their end.
        """
        path, question = self.path, self.question
        wanted = path.traced.graph.outputs if question is None else [question.value]
        whole = set(wanted)
        needed: set[Node] = set()
        stack = list(reversed(wanted))
        while stack:
            value = stack.pop()
            node = value.node
            if node is None or value.constant is not None or node in needed:
                continue
            key = path.keys[value] if value not in path.fixed else -1
            if key in ahead and (value in whole or not _only_moves(node)):
                if key not in self.takes:
                    self.takes[key] = Value(value.spec)
                    ahead[key].hands.append(key)
                self._stand_ins[value] = self.takes[key]
                continue
            needed.add(node)
            stack.extend(reversed(node.inputs))
        self.nodes = sorted(needed, key=path.places.__getitem__)
        self.made = {path.keys[v]: v for n in self.nodes for v in n.results if v not in path.fixed}

    def compile(self, programs: Programs, held: Sequence[int]) -> None:
        """Make the program.

        Args:
            programs: those that there are.
            held: keys of all that was handed on so far, in order.
        """
        places = {key: i for i, key in enumerate(held)}
        self.pick = _picker([places[key] for key in self.takes], len(held))
        if self.question is None:
            self._compile_end(programs)
            return
        self.hands = sorted(set(self.hands))
        value = self.question.value
        inputs = self.inputs()
        if not self.nodes:
            self.asked = inputs.index(self._stand_ins.get(value, value))
            return
        outputs = [value, *(self.made[key] for key in self.hands)]
        name = f"{self.path.traced.graph.name}_guard_{self.depth + 1}"
        new = dict(self._stand_ins)
        self.program = programs.get(
            (self.path, self.depth, *self.hands),
            lambda: with_inputs(self.nodes, inputs, outputs, new, name),
        )

    def _compile_end(self, programs: Programs) -> None:
        """Make the last program; results that were handed on are passed through."""
        whole = self.path.traced.graph
        inputs = self.inputs()
        passed: dict[int, int] = {}
        for i, value in enumerate(whole.outputs):
            stand_in = self._stand_ins.get(value)
            if stand_in is None or i in whole.donations:
                continue
            place = inputs.index(stand_in)
            if place not in passed.values():
                passed[i] = place
        computed = [i for i in range(len(whole.outputs)) if i not in passed]

        def graph() -> Graph:
            outputs = [whole.outputs[i] for i in computed]
            made = with_inputs(self.nodes, inputs, outputs, dict(self._stand_ins), whole.name)
            made.donations = {computed.index(i): place for i, place in whole.donations.items()}
            return made

        self.program = programs.get((self.path, self.depth), graph)
        self.path.specialization.executable = (
            _End(self.program, computed, passed) if passed else self.program
        )


class _End:
    """Runs the last program of a path, and returns with its outputs what was computed ahead."""

    def __init__(self, program: Program, computed: list[int], passed: dict[int, int]) -> None:
        self._program = program if computed else None
        places = {i: (True, n) for n, i in enumerate(computed)}
        places.update({i: (False, place) for i, place in passed.items()})
        #: For each output whether the program makes it, and its place there or among the inputs.
        self._order = [places[i] for i in range(len(places))]

    def run(self, arrays: list[Array]) -> list[Array]:
        """See `Executable.run`."""
        made = self._program.run(arrays) if self._program is not None else []
        return [made[i] if is_made else arrays[i] for is_made, i in self._order]


class Programs:
    """The programs of a tree, each made once: a tree is planned anew when it has grown.

    Args:
        build: makes an executable of a graph.
    """

    def __init__(self, build: Callable[[Graph], Executable]) -> None:
        self._build = build
        self._made: dict[Any, Program] = {}
        self._executables: dict[str, Executable] = {}
        self._lock = threading.Lock()

    def get(self, key: Any, graph: Callable[[], Graph]) -> Program:
        """Return the program for a key; of what ``graph`` returns, if there is none."""
        if key not in self._made:
            self._made[key] = Program(graph(), self._compile)
        return self._made[key]

    def _compile(self, graph: Graph) -> Executable:
        """Return an executable; the turns of a loop share one."""
        key = fingerprint(graph)
        with self._lock:
            found = self._executables.get(key)
        if found is None:
            found = self._build(graph)
            with self._lock:
                found = self._executables.setdefault(key, found)
        return found


def plan(paths: Sequence[Path], programs: Programs) -> Point:
    """Return the tree of some paths.

    Raises:
        TraceError: the function has not done the same up to a guard each time it was traced.
    """
    root = _grow(paths, 0)
    ahead: dict[int, Point] = {}
    _cut(root, ahead)
    _compile(root, programs, [])
    return root


def _grow(paths: Sequence[Path], depth: int) -> Point:
    first, *rest = paths
    for path in rest:
        if not path.has_begun_like(first, depth):
            where = (
                first.questions[depth] if depth < len(first.questions) else path.questions[depth]
            )
            raise TraceError(
                f"{first.traced.graph.name}: traced once more, with the same answers, it has not "
                f"done the same up to {where.line}; what it does ahead of a branch must depend on "
                "tensors, arguments and answers alone, not on time, chance or counts in Python"
            )
    if depth == len(first.questions):
        return Point(first, depth)
    point = Point(first, depth, first.questions[depth])
    behind: dict[Any, list[Path]] = {}
    for path in paths:
        behind.setdefault(path.questions[depth].answer, []).append(path)
    point.children = {answer: _grow(group, depth + 1) for answer, group in behind.items()}
    return point


def _cut(point: Point, ahead: dict[int, Point]) -> None:
    point.cut(ahead)
    new = [key for key in point.made if key not in ahead]
    ahead.update(dict.fromkeys(new, point))
    for child in point.children.values():
        _cut(child, ahead)
    for key in new:
        del ahead[key]


def _compile(point: Point, programs: Programs, held: list[int]) -> None:
    point.compile(programs, held)
    for child in point.children.values():
        _compile(child, programs, [*held, *point.hands])


def _only_moves(node: Node) -> bool:
    """Whether a result is its inputs in other places, and no smaller: not worth handing on."""
    size = sum(v.size for v in node.inputs)
    return node.op.kind is Kind.MOVEMENT and size <= sum(v.size for v in node.results)


def _picker(places: Sequence[int], count: int) -> Callable[[Sequence[Array]], Sequence[Array]]:
    """Return a function that takes the items at some places out of ``count``."""
    if list(places) == list(range(count)):
        return tuple
    if len(places) == 1:
        (place,) = places
        return lambda items: (items[place],)
    return itemgetter(*places) if places else lambda items: ()
