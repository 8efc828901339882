"""Preparing: what a function computes of weights alone is kept from one call to the next.

Weights in bfloat16, laid out for the kernels that read them, or scaled by a normalisation: all this
depends on captured state that the function does not overwrite, and is computed anew only where the
state has changed. Whether it has, the counts of writes say (`needle.writes`), which all in-place
operations, optimizers and compiled functions add to. Storage that somebody else can write to, such
as an array that `numpy()` has given out, is exposed: what depends on it is computed at each call.

A function that is differentiated outside, or that gets the gradients of what it reads, prepares
nothing: its weights change from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from needle.graph.traced import Source, Traced
from needle.ops.samples import Array
from needle.writes import is_exposed

if TYPE_CHECKING:
    from needle.backends.cpu.prepared import Prepared
    from needle.compiled.executable import Executable


def fixed_inputs(traced: Traced) -> tuple[int, ...]:
    """Return the indices of a trace's inputs of which a change is certain to be noticed.

    Single numbers are left out, such as learning rates: they change often, and what is computed of
    them alone takes no time.
    """
    if traced.backward is not None:
        return ()
    written = set(traced.graph.donations.values())
    captured = enumerate(traced.sources, traced.arguments)
    return tuple(i for i, s in captured if i not in written and s.array.size > 1 and _is_counted(s))


def _is_counted(source: Source) -> bool:
    """Whether all writes to what a source gives are counted."""
    if source.owner is not None or not source.tensors:
        return False
    counts = [t._version for t in source.tensors]
    return all(c is not None and not is_exposed(c) for c in counts)


class Preparation:
    """Runs an executable on what it takes prepared, which is computed when it has become old.

    Args:
        executable: a program that takes something prepared.
        traced: the trace that it is made of.
    """

    def __init__(self, executable: Any, traced: Traced) -> None:
        self._executable = executable
        first = traced.arguments
        self._sources = [traced.sources[i - first] for i in executable.recipe.origins]
        self._places = [i - first for i in executable.recipe.origins]
        self._arrays: list[Array] = []
        self._counts: list[list[int]] = []
        self._is_certain = False
        self._prepared: Prepared | None = None
        #: Memory of calls that prepare for themselves alone.
        self._spare: list[Prepared] = []

    def bind(self, state: Sequence[Array]) -> None:
        """Take the arrays that the state has now, and the counts of writes to them."""
        self._prepared = None
        self._arrays = [state[i] for i in self._places]
        self._is_certain = all(_is_counted(s) for s in self._sources)
        found = {id(t._version): t._version for s in self._sources for t in s.tensors}
        self._counts = [count for count in found.values() if count is not None]

    def run(self, arrays: list[Array]) -> list[Array]:
        """Run the program; see `Executable.run`."""
        prepared = self._prepared
        if prepared is not None and prepared.counts == self._counts:
            outputs: list[Array] = self._executable.run(arrays, prepared)
            return outputs
        del prepared  # so that its memory can be used again
        return self._run_anew(arrays)

    def _run_anew(self, arrays: list[Array]) -> list[Array]:
        """Prepare, and run the program."""
        self._prepared = None
        executable = self._executable
        if self._is_certain and not any(map(is_exposed, self._counts)):
            prepared = executable.store.find(
                self._arrays, self._counts, lambda p: executable.prepare(arrays, p)
            )
            self._prepared = prepared
            outputs: list[Array] = executable.run(arrays, prepared)
            return outputs
        self._is_certain = False
        own = self._spare.pop() if self._spare else executable.store.new()
        try:
            executable.prepare(arrays, own)
            outputs = executable.run(arrays, own)
        finally:
            self._spare.append(own)
        return outputs


def preparation_of(executable: Executable | None, traced: Traced) -> Preparation | None:
    """Return what runs an executable that takes something prepared; None for one that does not."""
    if getattr(executable, "store", None) is None:
        return None
    return Preparation(executable, traced)
