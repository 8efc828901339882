"""Answers: what a traced function gets for the values that it asks for in Python.

The first answers are given: those of the path that a call has taken so far. Beyond them a value is
computed, from the arguments of the call, by the kernels of eager execution. That is a guess of what
the compiled program will compute, which may differ in the last bit; it only says which path is
traced. Which path a call takes, its programs decide.
"""

from __future__ import annotations

import linecache
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from needle import dtypes
from needle.compiled.branches.keys import Keys, Numbers
from needle.config import autocast, no_grad, untraced
from needle.eager import user_line
from needle.errors import TraceError
from needle.graph.interpret import run_node
from needle.graph.ir import Node, Value
from needle.graph.tracing import Trace
from needle.ops.samples import Array

#: How many answers one path may have; each ends a program.
MOST_QUESTIONS = 256


@dataclass(frozen=True, eq=False)
class Question:
    """Something that a traced function has asked.

    Attributes:
        value: of one element.
        key: of the value.
        convert: makes the answer of a Python number: `bool` or `int`.
        location: the user's line.
        answer: what the function got.
        answers: all that it has got by then, this one not included.
        captured: how many tensors from outside it had used by then.
    """

    value: Value
    key: int
    convert: Callable[[Any], Any]
    location: str
    answer: Any
    answers: tuple[Any, ...]
    captured: int

    @property
    def line(self) -> str:
        """The place and the text of the user's line."""
        file, _, number = self.location.rpartition(":")
        text = linecache.getline(file, int(number)).strip()
        return f"{self.location}: {text}" if text else self.location


class Answers:
    """Guides a trace along one path; see `needle.graph.guide.Guide`.

    Args:
        name: of the function.
        numbers: for the keys of values.
        given: the first answers.

    Attributes:
        questions: what was asked, in order.
        keys: of all values of the trace.
    """

    def __init__(self, name: str, numbers: Numbers, given: Sequence[Any] = ()) -> None:
        self.name = name
        self._numbers = numbers
        self._given = given
        self.begin((), ())

    def begin(self, inputs: Sequence[Value], arrays: Sequence[Any]) -> None:
        """Begin, perhaps anew."""
        self.questions: list[Question] = []
        self.keys = Keys(self._numbers)
        for place, value in enumerate(inputs):
            self.keys.add_argument(value, place)
        self._asked: dict[Any, Any] = {}
        self._places: dict[Node, int] = {}
        self._captures = 0
        self._held: dict[Value, Any] = dict(zip(inputs, arrays, strict=True))

    def answer(self, trace: Trace, value: Value, use: str) -> Any:
        """Return what Python gets; the same as before for what was asked before."""
        self._look(trace)
        convert: Callable[[Any], Any] = int
        if use == "bool()" or (use == "item()" and value.dtype == dtypes.bool):
            convert = bool
        # What is computed again for a backward pass must take the same path again.
        again = self.keys.plain(value), convert
        if again in self._asked:
            return self._asked[again]
        count = len(self.questions)
        if count == MOST_QUESTIONS:
            raise TraceError(
                f"{use} at {user_line()}: {self.name} has asked for {count} values on one path, "
                'each of which ends a program, and that is the most that branches="specialise" '
                "follows; write the loop with ndl.while_loop, ndl.fori_loop or ndl.scan"
            )
        if count < len(self._given):
            answer = self._given[count]
        else:
            answer = convert(self._compute(trace, value).item())
        self._asked[again] = answer
        before = tuple([q.answer for q in self.questions])
        captured = len(self.keys.captured)
        self.questions.append(
            Question(value, self.keys[value], convert, user_line(), answer, before, captured)
        )
        return answer

    def end(self, trace: Trace) -> None:
        """Give all values their keys, and let go of the arrays."""
        self._look(trace)
        self._held.clear()

    def _look(self, trace: Trace) -> None:
        """Give what has come since the last question its keys."""
        for capture in list(trace.captures.values())[self._captures :]:
            self._captures += 1
            if not capture.is_number:
                self.keys.add_captured(capture.value)
        for place in range(len(self._places), len(trace.nodes)):
            self._places[trace.nodes[place]] = place
            self.keys.add_node(trace.nodes[place])

    def _compute(self, trace: Trace, value: Value) -> Array:
        """Return the values of ``value`` in this call."""
        needed: set[Node] = set()
        stack = [value]
        while stack:
            v = stack.pop()
            if v.node is not None and v not in self._held and v.node not in needed:
                needed.add(v.node)
                stack.extend(v.node.inputs)
        # Not kept: the end of a trace asks who else holds an array.
        outside = {c.value: c.array for c in trace.captures.values()}

        def array(v: Value) -> Array:
            found = v.constant
            if found is None:
                found = self._held[v] if v in self._held else outside.get(v)
            if found is None:
                raise backward_error(self.name, user_line())
            if not isinstance(found, np.ndarray):
                raise TraceError(
                    f"{self.name}: which path it takes at {user_line()} depends on values, and "
                    "an argument has none: pass tensors with values, not of the meta device; "
                    "max_batch cannot tell"
                )
            return found

        with untraced(), no_grad(), autocast(enabled=False):
            for node in sorted(needed, key=self._places.__getitem__):
                results = _run(node, [array(v) for v in node.inputs])
                self._held.update(zip(node.results, results, strict=True))
        return array(value)


def backward_error(name: str, where: str) -> TraceError:
    """Return the error for a question in a backward pass that the caller runs."""
    return TraceError(
        f"{name}: a value is asked for at {where}, in the backward pass, which the caller runs; a "
        "branch there cannot be followed: call backward() or ndl.grad inside of the function that "
        "is compiled, or compute with tensors (ndl.where, ndl.cond)"
    )


def _run(node: Node, arrays: Sequence[Array]) -> tuple[Array, ...]:
    """Return the results of a node: by its kernel, if it has one for these arrays."""
    kernel = node.op.kernel
    value = None if kernel is None else kernel(*arrays, **node.attrs)
    if value is None:
        return run_node(node, arrays)
    return tuple(map(np.asarray, value if isinstance(value, tuple) else (value,)))
