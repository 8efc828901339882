"""Branched: a function compiled for one signature, path by path."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle import tree
from needle.compiled.branches.guide import Answers
from needle.compiled.branches.keys import Numbers
from needle.compiled.branches.plan import Path, Point, Programs, plan
from needle.compiled.executable import Executable
from needle.compiled.specialization import Specialization, changed_error
from needle.compiled.storage import is_behaved
from needle.config import State
from needle.errors import TraceError
from needle.graph.ir import Graph
from needle.graph.traced import Traced
from needle.ops.samples import Array


class Missing:
    """Says that a call has come to a guard with an answer that no path has.

    Attributes:
        point: the guard.
        answer: what the program has computed.
        taken: the answers up to here, of those guards that the tree has.
    """

    __slots__ = ("answer", "point", "taken")

    def __init__(self, point: Point, answer: Any, taken: list[Any]) -> None:
        self.point = point
        self.answer = answer
        self.taken = taken


class Branched:
    """The paths of a function for one signature; stands in the place of a `Specialization`.

    A call runs pure programs from guard to guard and the last program of its path, which does
    everything that the function does besides. Where a guard has an answer that is new, nothing has
    been done yet: the path is traced, and the call begins anew.

    Args:
        name: of the function.
        leaves: the flattened arguments that it is first called with.
        structure: of the arguments.
        is_flat: see `Specialization`.
        trace: traces the function for leaves, along a path.
        build: makes an executable of a graph.
        again: calls the function with arguments and keyword arguments.
        most: sets the attribute.

    Attributes:
        paths: those that were traced, in order.
        most: how many there may be.
    """

    family = None

    def __init__(
        self,
        name: str,
        leaves: Sequence[Any],
        structure: tree.TreeDef,
        is_flat: bool,
        trace: Callable[[Any, Answers], Traced],
        build: Callable[[Graph], Executable],
        again: Callable[..., Any],
        most: int,
    ) -> None:
        self.name = name
        self._structure = structure
        self._is_flat = is_flat
        self._trace = trace
        self._build = build
        self._again = again
        self.most = most
        self._numbers: Numbers = {}
        self._programs = Programs(build)
        self._lock = threading.RLock()
        self.paths: list[Path] = []
        self._add(leaves, ())

    @property
    def specializations(self) -> list[Specialization]:
        """The paths as specialisations, in order."""
        return [path.specialization for path in self.paths]

    # Paths

    def _add(self, leaves: Sequence[Any], given: Sequence[Any]) -> None:
        """Trace a path, and plan the tree anew."""
        start = time.perf_counter()
        answers = Answers(self.name, self._numbers, given)
        traced = self._trace(tree.unflatten(self._structure, leaves), answers)
        path = Path(traced, answers)

        def build(graph: Graph, fixed: tuple[int, ...] = ()) -> Any:
            return None if graph is traced.graph else self._build(graph)  # see `Point.compile`

        path.specialization = Specialization(traced, leaves, self._is_flat, build)
        paths = [*self.paths, path]
        root = plan(paths, self._programs)
        if not path.specialization.is_valid():
            raise changed_error(self.name)
        found = [p.specialization for p in paths]
        path.specialization.seconds = time.perf_counter() - start
        self._readers = [s for s in found if s.reads_grads]
        #: The tree, and whether a path does anything besides computing results.
        self._plan = root, any(s.has_effects for s in found)
        self.paths = paths

    def extend(self, leaves: Sequence[Any], missing: Missing) -> None:
        """Trace the path that a call has come to, unless another thread has done so meanwhile.

        Raises:
            TraceError: there are as many paths as there may be.
        """
        taken = [*missing.taken, missing.answer]
        *_, last = self._plan[0].along(taken)
        if last.depth == len(taken):
            return
        question = missing.point.question
        assert question is not None
        if len(self.paths) >= self.most:
            raise TraceError(
                f"{self.name} has been compiled for {len(self.paths)} paths, which is its path "
                f"budget, and this call takes another one, with the answer {missing.answer} at "
                f"{question.line}. Let the program choose, with ndl.where, ndl.cond or "
                "ndl.while_loop, or allow more paths with compile(..., "
                f"path_budget={2 * self.most}); {self.name}.guards() shows those that there are"
            )
        self._add(leaves, (*question.answers, missing.answer))

    # Does it fit?

    def is_valid(self) -> bool:
        """Whether what was captured is still what it was traced with; see `Specialization`."""
        # The first path last: as long as its token is the current one, all others' were.
        return all(s.is_valid() for s in reversed(self.specializations))

    def _fits_grads(self, leaves: Sequence[Any]) -> bool:
        return all(s._fits_grads(leaves) for s in self._readers)

    def accept(self, args: tuple[Any, ...], state: State) -> list[Array] | None:
        """Return the arrays of positional arguments; None if something is not as in the traces."""
        arrays = self.paths[0].specialization.accept(args, state)
        if arrays is None or (self._readers and not self._fits_grads(args)):
            return None
        return arrays

    # Calls

    def call(self, leaves: Sequence[Any], arrays: list[Array]) -> Any:
        """Run on arrays that `accept` returned; see `Specialization.call`."""
        return self._call(leaves, arrays, self.paths[0])

    def call_any(self, leaves: Sequence[Any], arrays: list[Array]) -> Any:
        """Run on any arrays for the arguments; see `Specialization.call_any`."""
        return self._call(leaves, arrays, None)

    def _call(self, leaves: Sequence[Any], arrays: list[Array], first: Path | None) -> Any:
        root, has_effects = self._plan
        if has_effects:  # what the guards were asked of must be what is overwritten
            with self._lock:
                result = self._run(root, leaves, arrays, first)
        else:
            result = self._run(root, leaves, arrays, first)
        if result.__class__ is not Missing:
            return result
        # No lock is held here: to trace takes one that all functions share.
        args, kwargs = tree.unflatten(self._structure, leaves)
        return self._again(args, kwargs, self, result)

    def _run(
        self, point: Point, leaves: Sequence[Any], arrays: list[Array], first: Path | None
    ) -> Any:
        """Run from guard to guard.

        Args:
            point: where the tree begins.
            leaves: of the arguments.
            arrays: of the arguments; where ``first`` is given, with its state.
            first: the path that the arrays are for; None if they may be laid out in any way.
        """
        own = arrays if first is None else arrays[: first.traced.arguments]
        path, given = first, arrays
        live: list[Array] = []
        taken: list[Any] = []
        while True:
            if point.path is not path:
                path = point.path
                given = path.specialization.given(own)
                if first is None or path.specialization.is_odd:
                    given = [a if is_behaved(a) else np.array(a, order="C") for a in given]
            question = point.question
            if question is None:
                break
            program = point.program
            inputs = [*given, *point.pick(live)] if point.takes else given
            if program is None:
                value = inputs[point.asked]
            else:
                value, *handed = program.run(inputs)
                live += handed
            answer = question.convert(value.item())
            following = point.children.get(answer)
            if following is None:
                return Missing(point, answer, taken)
            taken.append(answer)
            point = following
        end = path.specialization
        if first is None or end.is_odd:
            return end.call_any(leaves, own, point.pick(live))
        if path is not first:
            end.check_arguments(own)
        return end.call(leaves, [*given, *point.pick(live)])

    # Looking inside

    @property
    def root(self) -> Point:
        """Where the tree of guards begins."""
        return self._plan[0]

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self.paths)} paths>"
