"""memory_plan and max_batch: how much memory a compiled function needs, before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from needle import tree
from needle.arrays import to_array
from needle.backends.cpu.program import Program
from needle.backends.cpu.recipe import Recipe
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import get_num_threads
from needle.backends.cpu.tuning import Tuning
from needle.backends.cpu.tuning.choices import Choices
from needle.backends.cpu.varying import VaryingProgram
from needle.compiler import pipeline
from needle.compiler.memory import MemoryPlan
from needle.compiler.rows import ROWS, marked
from needle.errors import ArgumentError, MemoryBudgetError, NeedleError
from needle.graph.ir import Graph
from needle.graph.traced import is_array
from needle.shapes import Spec
from needle.tensor import Tensor, wrap


@dataclass(frozen=True)
class Memory:
    """The memory of one call of a compiled function; all sizes are bytes.

    Attributes:
        name: of the function.
        arguments: the tensors among the arguments.
        state: what the function takes from outside: parameters, buffers, optimizer state.
        constants: arrays that the program holds.
        outputs: new arrays that it returns; results written to an argument or to state need none.
        copies: what is copied while it runs, where a result cannot be written in place.
        arena: where the values in between lie, in one block.
        extents: how many extents of a `Dim` the program serves, and why not more; empty if none is
            declared.
        prepared: what is computed of the state alone, and kept from one call to the next; see
            `needle.compiled.preparation`.
        kept: with ``branches="specialise"``, what programs ahead of this one have computed, for
            those that come later. A path has several; this is the one that takes most.
    """

    name: str
    arguments: int
    state: int
    constants: int
    outputs: int
    copies: int
    arena: MemoryPlan
    extents: str = ""
    kept: int = 0
    prepared: int = 0

    @property
    def peak_bytes(self) -> int:
        """The most that is in use at once."""
        parts = (
            self.arguments,
            self.state,
            self.constants,
            self.outputs,
            self.copies,
            self.kept,
            self.prepared,
        )
        return sum(parts) + self.arena.nbytes

    def __str__(self) -> str:
        rows = {
            "arguments": self.arguments,
            "state": self.state,
            "constants": self.constants,
            "new results": self.outputs,
            "copies": self.copies,
            **({"handed on": self.kept} if self.kept else {}),
            **({"prepared": self.prepared} if self.prepared else {}),
            "values in between": self.arena.nbytes,
            "peak": self.peak_bytes,
        }
        lines = [f"{name:<17} {size:>18,} bytes" for name, size in rows.items()]
        if self.extents:
            lines.append(f"extents: {self.extents}")
        return "\n".join([f"{self.name}: planned memory", *lines, "", str(self.arena)])

    def timeline(self, width: int = 72, height: int = 20) -> str:
        """Return a picture of the arena in characters; see `MemoryPlan.timeline`."""
        return self.arena.timeline(width, height)

    def draw(self) -> str:
        """Return a picture of the arena as SVG: kernels from left to right, bytes upwards."""
        return self.arena.draw()

    def _repr_svg_(self) -> str:
        return self.draw()


def memory_of(program: Program, arguments: int) -> Memory:
    """Return the planned memory of a program.

    Args:
        program: of which no code is needed.
        arguments: how many of its inputs are arguments; the rest is state.
    """
    return _memory(program.graph.name, Recipe.of(program), program.layout.memory, arguments)


def memory_at(program: VaryingProgram, extent: int, arguments: int) -> Memory:
    """Return the planned memory of a program for any extent, for one.

    Values that have rows lie in a block of their own, behind the others here.
    """
    source = program.source
    graph = pipeline.run(marked(source.graph, ROWS))
    fixed = [graph.inputs[i] for i in source.fixed]
    layout = Program(
        graph, source.threads, source.target, is_planned=True, mark=ROWS, fixed=fixed
    ).layout
    known, rows = layout.memory, layout.rows_memory
    buffers = [replace(b, nbytes=b.room * extent) for b in rows.buffers]
    arena = MemoryPlan(
        (*known.buffers, *buffers),
        (*known.offsets, *(known.nbytes + offset * extent for offset in rows.offsets)),
        known.nbytes + rows.nbytes * extent,
        known.lower_bound + rows.lower_bound * extent,
        known.steps,
    )
    return _memory(graph.name, program.at(extent).recipe, arena, arguments)


def _memory(name: str, recipe: Recipe, arena: MemoryPlan, arguments: int) -> Memory:
    inputs = [spec.nbytes for spec in recipe.inputs]
    copied = [o.copy[1] for o in recipe.outputs if o.copy is not None and o.copy[0] == "input"]
    return Memory(
        name,
        sum(inputs[:arguments]),
        sum(inputs[arguments:]),
        sum(c.nbytes for c in recipe.constants),
        sum(o.spec.nbytes for o in recipe.outputs if o.slot is not None),
        sum(inputs[i] for i in copied),
        arena,
        prepared=recipe.prepared_bytes,
    )


def plan_memory(
    graph: Graph,
    arguments: int,
    tuning: Tuning | None = None,
    fixed: Sequence[int] = (),
) -> Memory:
    """Return the planned memory of a traced graph; its kernels are planned, not generated.

    Args:
        graph: what was traced.
        arguments: how many of its inputs are arguments; the rest is state.
        tuning: how plans of kernels are searched; those count that have been found.
        fixed: indices of the inputs that stay what they are for many calls.
    """
    graph, threads, target = pipeline.run(graph), get_num_threads(), host()
    choices = Choices(graph, threads, target, tuning) if tuning else None
    inputs = [graph.inputs[i] for i in fixed]
    program = Program(graph, threads, target, is_planned=True, fixed=inputs, choose=choices)
    return memory_of(program, arguments)


def max_batch(
    plan: Callable[..., Memory],
    budget: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    axis: int,
) -> int:
    """Return the largest extent whose plan fits; see `Compiled.max_batch`.

    Args:
        plan: from arguments to the planned memory.
        budget: bytes.
        args: arguments for some batch.
        kwargs: keyword arguments.
        axis: of the batch.
    """
    leaves, structure = tree.flatten((args, kwargs))
    places = _batched(leaves, axis)
    known: dict[int, int] = {}

    def peak(n: int) -> int:
        if n not in known:
            new = list(leaves)
            for i in places:
                new[i] = _resized(leaves[i], axis, n)
            new_args, new_kwargs = tree.unflatten(structure, new)
            try:
                known[n] = plan(*new_args, **new_kwargs).peak_bytes
            except MemoryBudgetError as error:
                if n == 1:
                    raise
                known[n] = max(error.least, budget + 1)  # it would not run, whatever is asked here
            except NeedleError as error:
                error.message += f" (max_batch: while planning for a batch of {n})"
                raise
        return known[n]

    if peak(1) > budget:
        raise ArgumentError(
            f"max_batch: a batch of 1 takes {known[1]:,} bytes, and the budget is {budget:,}: "
            f"allow at least that; memory_plan shows what takes it, and ndl.checkpoint recomputes "
            "what would be kept for the backward pass"
        )
    # The arguments alone say where to stop, whatever else the function holds.
    unit = sum(_resized(leaves[i], axis, 1)._data.nbytes for i in places)
    return _search(peak, budget, budget // max(unit, 1) + 1)


def _search(peak: Callable[[int], int], budget: int, too_many: int) -> int:
    """Return the largest n whose peak fits, by a search between 1, which fits, and ``too_many``.

    Memory grows in proportion to the batch, nearly, so that a line through what is known hits the
    place, or just beside it; when it does not, the search goes on by halves.
    """
    low, high = 1, too_many
    guess = min(8, high - 1)
    for turn in range(200):
        if high - low <= 1:
            break
        guess = min(max(guess, low + 1), high - 1)
        fits = peak(guess) <= budget
        low, high = (guess, high) if fits else (low, guess)
        if turn % 3 == 2 or low == 1:
            guess = (low + high) // 2 if high < too_many else low * 8
        else:
            slope = max((peak(low) - peak(1)) / (low - 1), 1e-9)
            # One more than the line says, when that is known to fit: to see that no more fits.
            line = int(low + (budget - peak(low)) / slope)
            guess = line if line > low else low + 1
    return low


def _batched(leaves: list[Any], axis: int) -> list[int]:
    """Return the places of the arguments that have a batch: those as long as the first one."""
    found = [i for i, leaf in enumerate(leaves) if is_array(leaf) and leaf.ndim > axis >= 0]
    if not found:
        raise ArgumentError(
            f"max_batch: no tensor among the arguments has an axis {axis}; pass arguments for a "
            "batch of any size, such as those of one call"
        )
    extent = leaves[found[0]].shape[axis]
    return [i for i in found if leaves[i].shape[axis] == extent]


def _resized(leaf: Any, axis: int, extent: int) -> Tensor:
    """Return a tensor like ``leaf``, without values, of another extent."""
    data = leaf._data if isinstance(leaf, Tensor) else to_array(leaf, None)
    shape = (*data.shape[:axis], extent, *data.shape[axis + 1 :])
    new = wrap(Spec(shape, data.dtype))
    if isinstance(leaf, Tensor):
        new._requires_grad = leaf._requires_grad
    return new
