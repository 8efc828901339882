"""explain: what the compiler makes of a function, without running it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from needle.backends.cpu import cache, jit
from needle.backends.cpu.executable import Source
from needle.backends.cpu.program import Program
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import get_num_threads
from needle.backends.cpu.tuning import Tuning
from needle.backends.cpu.tuning.choices import Choices
from needle.compiled.kernels import Kernel, kernels_of, preparing_kernels
from needle.compiled.memory_plan import Memory, memory_of
from needle.compiled.wording import listed, quantity
from needle.compiler import pipeline
from needle.errors import ArgumentError
from needle.graph.ir import Graph


@dataclass(frozen=True)
class PassEffect:
    """What a pass has done.

    Attributes:
        name: of the pass.
        purpose: what it is for.
        before: number of nodes before it.
        graph: what it made.
        seconds: how long it took.
    """

    name: str
    purpose: str
    before: int
    graph: Graph
    seconds: float


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the compiler makes of a function for one signature; `str` of it is a report.

    Attributes:
        traced: the graph as it was traced.
        graph: the graph after the passes, which is compiled.
        passes: what each pass did, in order.
        groups: the kernels, in the order in which they run.
        memory: the planned memory.
        is_cached: whether the cache has the code, so that a first call compiles nothing.
        seconds: how long tracing, the passes, code generation and machine code took, by name.
        code_bytes: size of the object code.
        extents: how many extents of a `Dim` one program serves, and why not more; empty if none is
            declared. Kernels and times are those of a program for this extent alone.
        ahead: with ``branches="specialise"``, the programs that run ahead of this one and say which
            path a call takes.
        guards: the tree of the paths that were traced, and how often each was taken.
        tuning: with ``tune``, what is known of the plans of kernels; nothing is searched here.
        preparing: the kernels whose results depend on the state alone and are kept: they run only
            when it has changed, and count neither as kernels of a call nor as its arithmetic.
    """

    traced: Graph
    graph: Graph
    passes: tuple[PassEffect, ...]
    groups: tuple[Kernel, ...]
    memory: Memory
    is_cached: bool
    seconds: dict[str, float]
    code_bytes: int
    extents: str
    _program: Program = field(repr=False)
    ahead: tuple[Explanation, ...] = ()
    guards: str = ""
    tuning: str = ""
    preparing: tuple[Kernel, ...] = ()

    @property
    def flops(self) -> int:
        """Arithmetic operations of one call; an op that two kernels compute counts twice."""
        return sum(k.flops for k in self.groups) + sum(e.flops for e in self.ahead)

    @property
    def bytes_moved(self) -> int:
        """Bytes that the kernels of one call read and write, together."""
        return sum(k.bytes_moved for k in self.groups) + sum(e.bytes_moved for e in self.ahead)

    @cached_property
    def llvm(self) -> str:
        """The generated LLVM IR."""
        return self._program.module.text(self._program.module.target.attributes)

    @cached_property
    def assembly(self) -> str:
        """The machine code, as assembly."""
        return jit.compile_assembly(self._program.module)

    def graph_after(self, name: str) -> Graph:
        """Return the graph that a pass has made.

        Args:
            name: of the pass, as the report lists it.

        Raises:
            ArgumentError: there is no such pass.
        """
        for effect in self.passes:
            if effect.name == name:
                return effect.graph
        names = ", ".join(repr(effect.name) for effect in self.passes)
        raise ArgumentError(f"graph_after: there is no pass {name!r}; there are {names}")

    def draw(self) -> str:
        """Return the compiled graph as SVG, with a frame around the ops of each kernel."""
        framed: set[object] = set()
        frames = []
        for kernel in self.groups:
            own = [node for node in kernel.nodes if node not in framed]
            framed.update(own)
            if own:
                frames.append((kernel.name, own))
        return self.graph.draw(frames)

    def _repr_svg_(self) -> str:
        return self.draw()

    def __str__(self) -> str:
        own = "\n".join([*self._head(), "", *self._kernel_lines(), "", *self._tail()])
        guards = [f"guards: {self.guards}"] if self.guards else []
        return "\n\n".join([*map(str, self.ahead), own, *guards])

    def __repr__(self) -> str:
        return f"<explanation of {self.traced.name}: {len(self.groups)} kernels>"

    def _head(self) -> list[str]:
        lines = [f"{self.traced.name}: {len(self.traced.nodes)} ops traced"]
        width = max(len(p.name) for p in self.passes)
        for p in self.passes:
            after = len(p.graph.nodes)
            change = f"{p.before:5} → {after:5} ops" if p.before != after else f"{after:13} ops"
            lines.append(f"  {p.name:<{width}}  {change}  {p.seconds * 1e3:7.1f} ms  {p.purpose}")
        return lines

    def _kernel_lines(self) -> list[str]:
        lines = [f"{len(self.graph.nodes)} ops in {len(self.groups)} kernels"]
        lines += self._lines_of(self.groups)
        if self.preparing:
            kept = f"{self.memory.prepared:,} bytes are kept from call to call"
            lines.append(f"{len(self.preparing)} kernels more, when the state has changed: {kept}")
            lines += self._lines_of(self.preparing)[:-1]
        return lines

    def _lines_of(self, kernels: Sequence[Kernel]) -> list[str]:
        lines = []
        width = max((len(k.name) for k in kernels), default=0)
        for k in kernels:
            loops = "×".join(map(str, k.loops)) or "1"
            inner = f" over {'×'.join(map(str, k.inner))}" if k.inner else ""
            tasks = "" if k.tasks == 1 else f", {k.tasks or 'as many as fit'} tasks"
            lines.append(
                f"  {k.name:<{width}}  {loops}{inner}{tasks}: {quantity(k.flops, 'FLOP')}, "
                f"{quantity(k.bytes_moved, 'B')}: {listed(k.ops, ' ')}"
            )
            origin = [f"layers {listed(k.scopes)}" if k.scopes else "", listed(k.lines)]
            if any(origin):
                lines.append(f"  {'':<{width}}  from {', at '.join(o for o in origin if o)}")
        flops = quantity(sum(k.flops for k in kernels), "FLOP")
        moved = quantity(sum(k.bytes_moved for k in kernels), "B")
        total = f"{flops}, {moved} read or written"
        return [*lines, f"  {'in all':<{width}}  {total}"]

    def _tail(self) -> list[str]:
        times = ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in self.seconds.items())
        hit = "has it: a first call compiles nothing" if self.is_cached else "does not have it"
        extents = [f"extents: {self.extents}"] if self.extents else []
        tuning = [f"tuning: {self.tuning}"] if self.tuning else []
        return [
            *extents,
            *tuning,
            f"memory: {self.memory.peak_bytes:,} bytes at the peak, of which "
            f"{self.memory.arena.nbytes:,} for values in between",
            f"times: {times}",
            f"code: {self.code_bytes:,} bytes; the cache {hit}",
        ]


def explain(
    whole: Graph,
    arguments: int,
    seconds: float,
    extents: str = "",
    tuning: Tuning | None = None,
    fixed: tuple[int, ...] = (),
) -> Explanation:
    """Return what the compiler makes of a trace.

    Args:
        whole: the graph that was traced.
        arguments: how many of its inputs are arguments.
        seconds: how long it took to make.
        extents: see `Explanation`.
        tuning: how plans of kernels are searched; those count that have been found.
        fixed: indices of the inputs that stay what they are for many calls.
    """
    effects: list[PassEffect] = []
    start = last = time.perf_counter()
    size = len(whole.nodes)

    def observe(p: pipeline.Pass, graph: Graph) -> None:
        nonlocal last, size
        now = time.perf_counter()
        effects.append(PassEffect(p.name, p.purpose, size, graph, now - last))
        last, size = time.perf_counter(), len(graph.nodes)

    graph = pipeline.run(whole, observe)
    times = {"trace": seconds, "passes": time.perf_counter() - start}
    source = Source(whole, get_num_threads(), host(), tuning, fixed)
    start = time.perf_counter()
    choices = Choices(graph, source.threads, source.target, tuning) if tuning else None
    inputs = [graph.inputs[i] for i in fixed]
    program = Program(graph, source.threads, source.target, fixed=inputs, choose=choices)
    times["code generation"] = time.perf_counter() - start
    start = time.perf_counter()
    code = jit.compile_objects(program.module)
    times["machine code"] = time.perf_counter() - start
    return Explanation(
        whole,
        graph,
        tuple(effects),
        tuple(kernels_of(program)),
        memory_of(program, arguments),
        cache.has(source.key()),
        times,
        sum(map(len, code)),
        extents,
        program,
        tuning=choices.report() if choices else "",
        preparing=tuple(preparing_kernels(program)),
    )
