"""Executables: native code with what is needed to call it, made now or read from the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from needle.arrays import maker
from needle.backends.cpu import arguments, cache, jit
from needle.backends.cpu.arguments import DONE
from needle.backends.cpu.buffers import Table, collect, has_copies, run_with_copies
from needle.backends.cpu.fault import Fault
from needle.backends.cpu.linux import cpu_name
from needle.backends.cpu.prepared import Prepared, Store
from needle.backends.cpu.recipe import Recipe
from needle.backends.cpu.stamps import stamp_buffer, stamp_times
from needle.backends.cpu.target import Target, host
from needle.compiler.fingerprint import fingerprint
from needle.errors import CompileError, OutOfRangeError
from needle.graph.ir import Graph
from needle.ops.record import REGISTRY, Op
from needle.ops.samples import Array
from needle.shapes import Spec

if TYPE_CHECKING:
    from needle.backends.cpu.program import Program
    from needle.backends.cpu.tuning import Tuning

#: Runs executables in their place while a profile is taken; see `record_with`.
_recorder: Recorder | None = None


class Executable:
    """A loaded program.

    Args:
        recipe: how it is called.
        code: its object code.
        source: what it was made of.
        stamps: how many times its entry notes; 0 unless it was made for a profile.
    """

    def __init__(
        self, recipe: Recipe, code: Sequence[bytes], source: Source, stamps: int = 0
    ) -> None:
        self.recipe = recipe
        self.source = source
        self.stamps = stamps
        #: For how many rows it is; 0 if it has none. See `varying`.
        self.rows = 0
        self._library = jit.load_object(code, entries(recipe))
        self._idle: list[Call] = []
        #: What it takes prepared; None if that is nothing.
        self.store = Store(self.recipe) if self.recipe.prepared_bytes else None
        self._new = [maker(*o.spec) for o in recipe.outputs if o.slot is not None]
        self._has_copies = has_copies(recipe)
        self._is_new = len(self._new) == len(recipe.outputs)

    def run(self, arrays: Sequence[Array], prepared: Prepared | None = None) -> list[Array]:
        """Run the program.

        Args:
            arrays: one for each input, C-contiguous, of its shape and dtype. Those whose storage an
                output takes over are overwritten.
            prepared: what `prepare` gave, for a program that takes something prepared.

        Returns:
            An array for each output: a new one, or the input that was overwritten.

        Raises:
            OutOfRangeError: an index was out of range.
        """
        if _recorder is not None and not self.stamps:
            return _recorder(self, arrays, prepared)
        try:
            call = self._idle.pop()
        except IndexError:
            call = self._new_call()
        if prepared is not None:
            call.slots[self.recipe.prepared_slot] = prepared.address
        new = [make() for make in self._new]
        if self._has_copies:
            return run_with_copies(self.recipe, arrays, new, lambda: self._run(call, arrays, new))
        self._run(call, arrays, new)
        return new if self._is_new else collect(self.recipe, arrays, new)

    def prepare(self, arrays: Sequence[Array], prepared: Prepared) -> None:
        """Compute what the program takes prepared.

        Args:
            arrays: one for each input; only those of `Recipe.origins` are read.
            prepared: where it is written.

        Raises:
            OutOfRangeError: an index was out of range.
        """
        try:
            call = self._idle.pop()
        except IndexError:
            call = self._new_call()
        recipe = self.recipe
        call.slots[recipe.prepared_slot] = prepared.address
        done = call.prepare(recipe)(tuple([arrays[i] for i in recipe.origins]))
        if done != DONE:
            raise self._misfit(arrays, recipe.origins[done] if done >= 0 else done)
        if call.status[0]:
            raise self._fault(call)
        self._idle.append(call)

    def _new_call(self) -> Call:
        return Call(self.recipe, self._library, self.stamps)

    def _run(self, call: Call, arrays: Sequence[Array], new: list[Array]) -> None:
        done = call.native((*arrays, *new))
        if done != DONE:
            raise self._misfit(arrays, done)
        if call.status[0]:
            raise self._fault(call)
        self._idle.append(call)

    def stamped(self) -> tuple[Executable, list[Program]]:
        """Return a variant that notes when its kernels start and end, and the program in it.

        It is made anew, kernel for kernel the same, since programs are not kept in the cache.
        """
        program = self.source.program(is_stamped=True)
        code = jit.compile_objects(program.module)
        recipe = Recipe.of(program)
        return Executable(recipe, code, self.source, len(program.kernels) + 1), [program]

    def last_stamps(self) -> list[int]:
        """Return the times, in nanoseconds, that the call that ended last has noted."""
        return stamp_times(self._idle[-1].stamps)

    def _misfit(self, arrays: Sequence[Array], place: int) -> Exception:
        if place < 0 or place >= len(arrays):
            return CompileError(
                f"the program takes {len(self.recipe.inputs)} arrays, got {len(arrays)}"
            )
        array, spec = arrays[place], self.recipe.inputs[place]
        return CompileError(
            f"array {place} of a program must be a contiguous {spec}, writeable if it is "
            f"overwritten; got {Spec(array.shape, array.dtype)}, strides {array.strides}"
        )

    def _fault(self, call: Call) -> Exception:
        number, place, value = call.take_fault()
        self._idle.append(call)
        return exception_of(self.recipe.faults[number - 1], place, value)


def exception_of(fault: Fault, place: int, value: int) -> Exception:
    """Return the exception that eager execution raises for a bad value.

    Args:
        fault: what was reported.
        place: where in the tensor it stands, in row-major order.
        value: the value.
    """
    at = tuple(int(i) for i in np.unravel_index(place, fault.shape))
    if fault.op:
        record = REGISTRY[fault.op]
        assert isinstance(record, Op)
        assert record.fault is not None
        return record.fault(value, at, **fault.attrs)
    extent, signed, what, name = (fault.attrs[key] for key in ("extent", "signed", "what", "name"))
    low = -extent if signed else 0
    valid = f"valid are {low} to {extent - 1}" if extent else "it has no elements"
    where = f" (at position {list(at)} of the indices)" if at else ""
    return OutOfRangeError(f"{name}: index {value}{where} is out of range for {what}; {valid}")


@dataclass(frozen=True)
class Source:
    """What an executable is made of.

    Attributes:
        graph: what was traced.
        threads: into how many tasks large kernels are split.
        target: the processor.
        tuning: how plans of kernels are searched; None leaves them to the model.
        fixed: indices of the inputs that stay what they are for many calls.
    """

    graph: Graph
    threads: int
    target: Target
    tuning: Tuning | None = None
    fixed: tuple[int, ...] = ()

    def program(self, *, is_stamped: bool = False) -> Program:
        """Return it as kernels, once the passes have run."""
        # Here, since code that is read from the cache needs none of what generates it.
        from needle.backends.cpu.program import Program
        from needle.compiler import pipeline

        graph = pipeline.run(self.graph)
        fixed = [graph.inputs[i] for i in self.fixed]
        choices = None
        if self.tuning is not None:
            from needle.backends.cpu.tuning.choices import Choices

            choices = Choices(graph, self.threads, self.target, self.tuning)
            if not is_stamped:
                choices.search()
        return Program(
            graph,
            self.threads,
            self.target,
            is_stamped=is_stamped,
            fixed=fixed,
            choose=choices,
            is_final=choices is None or choices.is_complete,
        )

    def key(self) -> str:
        """Return the key of its code in the cache."""
        parts = [fingerprint(self.graph), repr(self.target), str(self.threads), str(self.fixed)]
        if self.tuning is not None:
            parts += ["tuned", str(self.tuning.is_frugal), cpu_name()]
        return cache.key(*parts)


#: Runs an executable on arrays, and on what it takes prepared.
Recorder: TypeAlias = "Callable[[Executable, Sequence[Array], Prepared | None], list[Array]]"


def entries(recipe: Recipe) -> list[str]:
    """Return the names of the functions of a program that are called from outside."""
    return ["entry", "prepare"] if recipe.prepared_bytes else ["entry"]


class Call(Table):
    """A table with the native function that fills in the arrays of a call and runs the program."""

    def __init__(self, recipe: Recipe, library: jit.Library, stamps: int = 0) -> None:
        super().__init__(recipe, extra=1)
        self.stamps = stamp_buffer(stamps)
        self.slots[recipe.slots] = ctypes.addressof(self.stamps)
        self._library = library
        self.native = self.function(recipe)
        self._prepare: arguments.Call | None = None

    def function(self, recipe: Recipe) -> arguments.Call:
        """Return the function for arrays of the shapes of a recipe, which is that of the program,
        but for its rows."""
        new = [o for o in recipe.outputs if o.slot is not None]
        slots = [*range(len(recipe.inputs)), *(o.slot for o in new if o.slot is not None)]
        written = {o.source for o in recipe.outputs if o.source is not None}
        written |= {len(recipe.inputs) + i for i in range(len(new))}
        return arguments.make_call(
            self._library.address("entry"),
            self.slots,
            [*recipe.inputs, *(o.spec for o in new)],
            slots,
            written,
            keep=(self._library, self.arena, self.status, self.stamps, recipe.constants),
        )

    def prepare(self, recipe: Recipe) -> arguments.Call:
        """Return the function that prepares, from the inputs that it reads."""
        if self._prepare is None:
            origins = recipe.origins
            self._prepare = arguments.make_call(
                self._library.address("prepare"),
                self.slots,
                [recipe.inputs[i] for i in origins],
                origins,
                keep=(self._library, self.arena, self.status, recipe.constants),
            )
        return self._prepare


def build(
    graph: Graph,
    threads: int = 1,
    target: Target | None = None,
    tuning: Tuning | None = None,
    fixed: tuple[int, ...] = (),
) -> Executable:
    """Return a traced graph as native code: from the cache, or compiled.

    Args:
        graph: what was traced.
        threads: into how many tasks large kernels are split. No bit of a result depends on it.
        target: the processor; this machine's by default.
        tuning: how plans of kernels are searched; None leaves them to the model.
        fixed: indices of the inputs that stay what they are for many calls. What depends on nothing
            else is a function of its own then; see `Executable.prepare`.
    """
    target = target or host()
    source = Source(graph, threads, target, tuning, fixed)
    recipe, code = compiled(source.key(), source.program)
    return Executable(recipe, code, source)


def compiled(key: str, make: Callable[[], Program]) -> tuple[Recipe, Sequence[bytes]]:
    """Return a program as recipe and object code: from the cache, or compiled and put there.

    Args:
        key: of the cache.
        make: returns the program.
    """
    entry = cache.get(key)
    if entry is not None:
        values, *code = entry.objects
        return Recipe.from_json(entry.metadata, values), code
    program = make()
    code = jit.compile_objects(program.module)
    recipe = Recipe.of(program)
    values = b"".join(c.tobytes() for c in recipe.constants)
    if program.is_final:
        cache.put(key, [values, *code], recipe.to_json())
    return recipe, code


def record_with(recorder: Recorder | None) -> Recorder | None:
    """Have ``recorder`` run all executables but the stamped ones, in all threads.

    Args:
        recorder: from an executable and its arrays to the outputs; None to end that.

    Returns:
        The recorder before.
    """
    global _recorder
    before, _recorder = _recorder, recorder
    return before
