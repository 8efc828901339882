"""Which plan each kernel of a program takes: what was found before, or is searched now."""

from __future__ import annotations

import math
import time

from needle.backends.cpu.conv.phase import correlations
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.program import Program
from needle.backends.cpu.target import Target
from needle.backends.cpu.tuning.candidates import MORE_WORKSPACE, AnyPlan, Spec, candidates
from needle.backends.cpu.tuning.results import recall, remember, text_of
from needle.backends.cpu.tuning.search import Found, search
from needle.backends.cpu.tuning.tuning import Tuning
from needle.graph.ir import Graph
from needle.progress import progress_bar

#: Bytes of a program, for each thread, up to which caches hold what its kernels read.
WARM_BYTES = 1 << 20
#: Seconds after which a search shows how far it is.
PATIENCE = 1.0


class Choices:
    """The plans of a program's kernels.

    Args:
        graph: what the passes made of a trace.
        threads: into how many tasks large kernels are split.
        target: the processor.
        tuning: how plans are searched.

    Attributes:
        found: for each specification what is known of it; None if nothing is.
        unknown: how many kernels have extents that each call gives, and keep the model's choice.
    """

    def __init__(self, graph: Graph, threads: int, target: Target, tuning: Tuning) -> None:
        self._threads, self._target, self._tuning = threads, target, tuning
        #: Bytes that a kernel may take more than by the model's choice.
        self._room = 0 if tuning.is_frugal else MORE_WORKSPACE
        self.found: dict[str, Found | None] = {}
        self.unknown = 0
        self._specs: dict[str, Spec] = {}
        self._plans: dict[str, list[AnyPlan]] = {}
        asked: list[Spec] = []

        def ask(spec: Spec) -> None:
            asked.append(spec)

        program = Program(graph, threads, target, is_planned=True, choose=ask)
        self._is_cold = _bytes_of(program) > WARM_BYTES * threads
        for spec in asked:
            if not isinstance(spec, ConvSpec) and None in (spec.m, spec.n, spec.k, *spec.batch):
                self.unknown += 1
                continue
            text = self._text(spec)
            if text not in self._specs:
                self._specs[text] = spec
                self._plans[text] = candidates(spec, target, threads, self._room)
                self.found[text] = recall(text, len(self._plans[text]))

    def __call__(self, spec: Spec) -> AnyPlan | None:
        """Return the plan of a kernel; None leaves it to the model."""
        text = self._text(spec)
        found = self.found.get(text)
        return self._plans[text][found.choice] if found is not None else None

    @property
    def is_complete(self) -> bool:
        """Whether all that can be searched has been."""
        return None not in self.found.values()

    def search(self) -> None:
        """Search what is not known yet, what takes longest first, until time is up."""
        missing = [text for text, found in self.found.items() if found is None]
        missing.sort(key=lambda text: -_work(self._specs[text]))
        deadline = time.perf_counter() + self._tuning.seconds
        with progress_bar("searching tiles", len(missing), after=PATIENCE) as advance:
            for text in missing:
                found = search(
                    self._specs[text],
                    self._plans[text],
                    self._target,
                    self._threads,
                    is_cold=self._is_cold,
                    deadline=deadline,
                )
                if found is None:
                    return
                self.found[text] = found
                remember(text, found)
                advance(1)

    def report(self) -> str:
        """Return what is known, in a sentence."""
        if not self.found and not self.unknown:
            return "nothing to search: there are no products or convolutions"
        known = [f for f in self.found.values() if f is not None]
        faster = sorted((f.gain for f in known if f.choice), reverse=True)
        parts = [f"{len(known)} of {len(self.found)} kinds of products and convolutions searched"]
        if faster:
            gains = ", ".join(f"{gain:.2f}" for gain in faster[:8])
            more = ", …" if len(faster) > 8 else ""
            parts.append(f"{len(faster)} faster than by the model's choice ({gains}{more} times)")
        if not self.is_complete:
            parts.append("the others are left to the model until a compilation has time for them")
        if self.unknown:
            parts.append(f"{self.unknown} of unknown extents left to the model")
        return "; ".join(parts)

    def _text(self, spec: Spec) -> str:
        return text_of(spec, self._target, self._threads, is_cold=self._is_cold, room=self._room)


def _bytes_of(program: Program) -> int:
    """Return the bytes of all that a program reads and writes."""
    graph = program.graph
    values = dict.fromkeys((*graph.inputs, *graph.outputs, *graph.constants()))
    return sum(v.nbytes for v in values) + program.layout.memory.nbytes


def _work(spec: Spec) -> int:
    """Return how many products are summed."""
    if isinstance(spec, ConvSpec):
        return correlations(spec).products
    return math.prod(e or 0 for e in (spec.m, spec.n, spec.k, *spec.batch))
