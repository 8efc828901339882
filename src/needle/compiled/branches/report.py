"""What there is to see of a function with several paths: its guards, its programs, its memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from needle.compiled.branches.branched import Branched
from needle.compiled.branches.plan import Path, Point
from needle.graph.ir import Value
from needle.graph.text import constant_text
from needle.ops.record import Kind

if TYPE_CHECKING:
    from needle.backends.cpu.tuning import Tuning
    from needle.compiled.explain import Explanation
    from needle.compiled.memory_plan import Memory

#: How deep an expression is written out.
_DEPTH = 4


def guards_text(branched: Branched) -> str:
    """Return the guards as a tree: the user's line, what it asks, where each answer leads.

    What comes after the last answer of a guard stands below, not further to the right: so the turns
    of a loop stand one below the other.
    """
    paths = branched.paths
    graph = paths[0].traced.graph
    inputs = graph.inputs[: paths[0].traced.arguments]
    arguments = ", ".join(f"{v.name}: {v.spec}" for v in inputs)
    number = {id(path): i for i, path in enumerate(paths, 1)}
    count = f"{len(paths)} path{'s' * (len(paths) > 1)} of at most {branched.most}"
    return "\n".join([f"{branched.name}({arguments}): {count}", *_lines(branched.root, number)])


def _lines(point: Point, number: dict[int, int]) -> Iterator[str]:
    question = point.question
    if question is None:
        yield _end(point, number)
        return
    yield f"{question.line.rpartition('/')[2]}  # {expression(question.value)}"
    # The longest way last: it goes on at the left.
    children = sorted(point.children.items(), key=lambda item: sum(1 for _ in item[1].points()))
    for answer, child in children[:-1]:
        first, *rest = _lines(child, number)
        yield f"├─ {answer} ({_calls(child)}): {first}"
        yield from (f"│  {line}" for line in rest)
    answer, child = children[-1]
    if child.question is None:
        yield f"└─ {answer} ({_calls(child)}): {_end(child, number)}"
        return
    yield f"└─ {answer} ({_calls(child)}):"
    yield from _lines(child, number)


def _end(point: Point, number: dict[int, int]) -> str:
    return f"path {number[id(point.path)]}"


def _calls(point: Point) -> str:
    ends = [p for p in point.points() if p.question is None]
    calls = sum(p.path.specialization.calls for p in ends)
    return f"{calls} call{'s' * (calls != 1)}"


def expression(value: Value, depth: int = _DEPTH) -> str:
    """Return what a value is, as Python: ``greater(sum(x), 1.0)``."""
    node = value.node
    if value.constant is not None:
        return constant_text(value) or f"constant {value.spec}"
    if node is None:
        return value.name or "state"
    if not depth:
        return "…"
    if node.op.kind is Kind.MOVEMENT and len(node.inputs) == 1 == value.size == node.inputs[0].size:
        return expression(node.inputs[0], depth)  # a 0-d tensor made of one with an axis
    inputs = ", ".join(expression(v, depth - 1) for v in node.inputs)
    part = f"[{value.index}]" if len(node.results) > 1 else ""
    return f"{node.op.name}({inputs}){part}"


def guards_with(known: Branched | None, preview: Branched) -> str:
    """Return the guards of what there is, for the path of a preview.

    Args:
        known: what serves the same arguments; None if they have never been passed.
        preview: was made for the arguments alone.
    """
    if known is None:
        return guards_text(preview)
    answers = [q.answer for q in preview.paths[0].questions]
    *_, last = known.root.along(answers)
    text = guards_text(known)
    if last.question is not None:
        text += f"\nnot there yet: the path with the answers {', '.join(map(str, answers))}"
    return text


def _programs(preview: Branched) -> Iterator[tuple[Path, Point, Sequence[Value]]]:
    """Yield path and end of each program that a call runs, and what was handed on ahead of it."""
    held: list[Value] = []
    for point in preview.root.points():  # one path, one after the other
        if point.program is not None:
            yield point.path, point, list(held)
        held += [point.made[key] for key in point.hands]


def explain_path(
    preview: Branched, guards: str, extents: str, tuning: Tuning | None
) -> Explanation:
    """Return what the compiler makes of a path: of its last program, and of those ahead of it."""
    from needle.compiled.explain import explain

    path = preview.paths[0]
    found: list[Explanation] = []
    for _, point, _ in _programs(preview):
        assert point.program is not None
        seconds = 0.0 if found else path.specialization.seconds
        graph = point.program.graph
        found.append(explain(graph, path.traced.arguments, seconds, tuning=tuning))
    *ahead, last = found
    return replace(last, extents=extents, ahead=tuple(ahead), guards=guards)


def memory_of_path(preview: Branched, extents: str, tuning: Tuning | None) -> Memory:
    """Return the planned memory of a path: that of its program which takes most."""
    from needle.compiled.memory_plan import plan_memory

    plans: list[Memory] = []
    for path, point, held in _programs(preview):
        assert point.program is not None
        memory = plan_memory(point.program.graph, path.traced.arguments, tuning)
        taken = sum(v.nbytes for v in point.takes.values())
        kept = sum(v.nbytes for v in held)
        plans.append(replace(memory, state=memory.state - taken, kept=kept, extents=extents))
    return max(plans, key=lambda memory: memory.peak_bytes)
