"""Programs for an extent that each call gives: compiled once, and called with any.

The graph has a mark for the extent (`needle.compiler.rows`), and the code reads the real one from
the status. What is not code, such as the shapes of results, is made for each extent when it is
first met, which takes as long as a few calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from needle.arrays import maker
from needle.backends.cpu import arguments, cache, jit
from needle.backends.cpu.buffers import has_copies
from needle.backends.cpu.executable import (
    Call,
    Executable,
    Source,
    compiled,
    entries,
    exception_of,
)
from needle.backends.cpu.prepared import Store
from needle.backends.cpu.recipe import Output, Recipe
from needle.backends.cpu.status import TASKS_WORD
from needle.backends.cpu.target import host
from needle.compiler.fingerprint import fingerprint
from needle.compiler.rows import MARKS, VariesError, actual, marked
from needle.graph.ir import Graph
from needle.ops.samples import Array
from needle.shapes import Spec

if TYPE_CHECKING:
    from needle.backends.cpu.program import Program

#: Extents for which each table keeps a function that checks arrays.
MOST_EXTENTS = 256


@dataclass(frozen=True)
class VaryingSource(Source):
    """What a program for any extent is made of.

    Attributes:
        graph: with `Extent`s in its shapes.
    """

    def programs(self, is_stamped: bool = False) -> list[Program]:
        """Return the program with each of the marks.

        Raises:
            VariesError: they differ: the extent was taken for a number somewhere.
        """
        from needle.backends.cpu.program import Program
        from needle.compiler import pipeline

        graphs = [pipeline.run(marked(self.graph, mark)) for mark in MARKS]
        programs = [
            Program(
                g,
                self.threads,
                self.target,
                is_stamped=is_stamped,
                mark=mark,
                fixed=[g.inputs[i] for i in self.fixed],
            )
            for g, mark in zip(graphs, MARKS, strict=True)
        ]
        attributes = self.target.attributes
        first, second = (p.module.text(attributes) for p in programs)
        if first != second:
            raise VariesError(_difference(programs, first, second))
        recipes = [Recipe.of(p) for p in programs]
        if _known(recipes[0], MARKS[0]) != _known(recipes[1], MARKS[1]):
            raise VariesError("the memory that it needs is no multiple of the extent")
        return programs

    def key(self) -> str:
        graph = fingerprint(marked(self.graph, MARKS[0]))
        return cache.key("any extent", graph, repr(self.target), str(self.threads), str(self.fixed))


def _known(recipe: Recipe, mark: int) -> tuple[object, ...]:
    """Return what two recipes must have in common."""
    new = replace(recipe, constants=(), inputs=(), outputs=(), faults=())
    specs = [*recipe.inputs, *(o.spec for o in recipe.outputs)]
    shapes = [actual(s.shape, 1) for s in specs]
    return new, shapes, [f.at(1) for f in recipe.faults], [c.tobytes() for c in recipe.constants]


def _difference(programs: Sequence[Program], first: str, second: str) -> str:
    """Return which kernel depends on the mark."""
    for a, b in zip(first.splitlines(), second.splitlines(), strict=False):
        if a.startswith("define"):
            name = a.partition("@")[2].partition("(")[0]
        if a != b:
            break
    else:
        return "its code depends on the extent"
    for group, call in zip(programs[0].groups, programs[0].kernels, strict=True):
        node = group.pieces[0].value.node
        if name.startswith(call.name) and node is not None:
            place = f" at {node.location}" if node.location else ""
            return f"the code of {node.op.name}{place} depends on the extent"
    return "its code depends on the extent"


class VaryingProgram:
    """A loaded program for any extent.

    Args:
        source: what it is made of.
        recipe, code: what `compiled` returned.
        stamps: how many times its entry notes.
    """

    def __init__(
        self, source: VaryingSource, recipe: Recipe, code: Sequence[bytes], stamps: int = 0
    ) -> None:
        self.source = source
        self.recipe = recipe
        self.stamps = stamps
        self.library = jit.load_object(code, entries(recipe))
        self.idle: list[Call] = []
        self.store = Store(recipe) if recipe.prepared_bytes else None

    def at(self, rows: int) -> Executable:
        """Return what runs it for one extent."""
        return _AtRows(self, rows)


class _AtRows(Executable):
    """A program for any extent, with one given."""

    def __init__(self, program: VaryingProgram, rows: int) -> None:
        self.program = program
        self.rows = rows
        self.source = program.source
        self.stamps = program.stamps
        self.recipe = recipe = _recipe_at(program.recipe, rows)
        self._library = program.library
        self._idle = program.idle
        self.store = program.store
        self._new = [maker(*o.spec) for o in recipe.outputs if o.slot is not None]
        self._has_copies = has_copies(recipe)
        self._is_new = len(self._new) == len(recipe.outputs)

    def _new_call(self) -> Call:
        return _RowsCall(self.program)

    def _run(self, call: Call, arrays: Sequence[Array], new: list[Array]) -> None:
        assert isinstance(call, _RowsCall)
        if call.rows != self.rows:
            call.use(self.recipe, self.rows)
        super()._run(call, arrays, new)

    def _fault(self, call: Call) -> Exception:
        number, place, value = call.take_fault()
        self._idle.append(call)
        return exception_of(self.recipe.faults[number - 1].at(self.rows), place, value)

    def stamped(self) -> tuple[Executable, list[Program]]:
        assert isinstance(self.source, VaryingSource)
        programs = self.source.programs(is_stamped=True)
        code = jit.compile_objects(programs[0].module)
        count = len(programs[0].kernels) + 1
        made = VaryingProgram(self.source, Recipe.of(programs[0]), code, count)
        return made.at(self.rows), programs


class _RowsCall(Call):
    """A table that serves one extent after the other."""

    def __init__(self, program: VaryingProgram) -> None:
        self._natives: dict[int, arguments.Call] = {}
        super().__init__(program.recipe, program.library, program.stamps)
        self.status[TASKS_WORD] = 1

    def use(self, recipe: Recipe, rows: int) -> None:
        """Prepare for calls with another extent, whose recipe it is."""
        native = self._natives.get(rows)
        if native is None:
            if len(self._natives) >= MOST_EXTENTS:
                self._natives.clear()
            native = self._natives[rows] = self.function(recipe)
        self.native = native
        self.set_rows(recipe, rows)


def _recipe_at(recipe: Recipe, rows: int) -> Recipe:
    """Return a recipe with the shapes of one extent."""

    def spec(s: Spec) -> Spec:
        return Spec(actual(s.shape, rows), s.dtype)

    outputs = tuple(Output(spec(o.spec), o.slot, o.source, o.copy) for o in recipe.outputs)
    return replace(recipe, inputs=tuple(map(spec, recipe.inputs)), outputs=outputs)


def build_varying(graph: Graph, threads: int = 1, fixed: tuple[int, ...] = ()) -> VaryingProgram:
    """Return a program for any extent, from the cache or compiled.

    Args:
        graph: with `Extent`s in shapes and attributes.
        threads: into how many tasks large kernels are split.
        fixed: indices of the inputs that stay what they are for many calls.

    Raises:
        VariesError: the graph cannot be compiled that way; the message says what is in the way.
    """
    source = VaryingSource(graph, threads, host(), fixed=fixed)
    recipe, code = compiled(source.key(), lambda: source.programs()[0])
    return VaryingProgram(source, recipe, code)
