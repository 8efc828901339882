"""What a backend gives for a graph, and which backends there are."""

from __future__ import annotations

import math
from typing import Protocol

from needle.backends import cpu
from needle.backends.cpu.threads import get_num_threads
from needle.backends.cpu.tuning import Tuning
from needle.errors import ArgumentError, ArgumentTypeError
from needle.graph.interpret import Interpreter
from needle.graph.ir import Graph
from needle.ops.samples import Array

#: The names of the backends, the default first.
BACKENDS = ("cpu", "interpret")


class Executable(Protocol):
    """A graph that can be run.

    One of the CPU has more: see `needle.compiled.preparation`.
    """

    def run(self, arrays: list[Array], /) -> list[Array]:
        """Run the graph; several threads may do so at once.

        Args:
            arrays: one for each input of the graph, C-contiguous and aligned, of its shape and
                dtype. Those that take an output (`Graph.donations`) are writable; nothing else
                shares memory with them.

        Returns:
            An array for each output. A donated input has been overwritten, and is the output that
            it takes; all other outputs are new arrays, which share memory with nothing.
        """


def generates_code(backend: str | None) -> bool:
    """Whether a backend, None being the first, makes native code."""
    return (BACKENDS[0] if backend is None else backend) == "cpu"


#: Seconds that the search for the plans of a program takes at most, unless it is said otherwise.
SEARCH_SECONDS = 120.0


def as_tuning(tune: bool | float, backend: str | None, *, is_frugal: bool) -> Tuning | None:
    """Return how plans of kernels are searched, from `compile`'s option; None if they are not.

    Args:
        tune: whether, or for how many seconds at most.
        backend: one of `BACKENDS`; None is the first.
        is_frugal: whether kernels may take no more memory than without a search.

    Raises:
        ArgumentTypeError: it is neither a bool nor a number.
        ArgumentError: it is no time, or the backend has no plans.
    """
    if tune is False:
        return None
    if not isinstance(tune, bool | int | float):
        raise ArgumentTypeError(
            f"compile: tune is True, False or a number of seconds, got {type(tune).__name__}"
        )
    seconds = SEARCH_SECONDS if tune is True else float(tune)
    if not 0 < seconds < math.inf:
        raise ArgumentError(
            f"compile: tune is the number of seconds that a search may take, got {tune!r}; give a "
            f"number above 0, or True for {SEARCH_SECONDS:g}"
        )
    if not generates_code(backend):
        raise ArgumentError(
            f"compile: tune searches among kernels that are generated, and the backend {backend!r} "
            "generates none; leave out tune, or the backend"
        )
    return Tuning(seconds, is_frugal)


def build(
    graph: Graph,
    backend: str | None = None,
    tuning: Tuning | None = None,
    fixed: tuple[int, ...] = (),
) -> Executable:
    """Return an executable of ``graph``.

    Args:
        graph: what to run.
        backend: one of `BACKENDS`; None is the first.
        tuning: how plans of kernels are searched, by a backend that generates code.
        fixed: indices of the inputs that stay what they are for many calls.

    Raises:
        ArgumentError: there is no such backend.
    """
    name = BACKENDS[0] if backend is None else backend
    if name == "cpu":
        return cpu.build(graph, get_num_threads(), tuning, fixed)
    if name == "interpret":
        return Interpreter(graph)
    raise ArgumentError(f"compile: there is no backend {name!r}; there are {', '.join(BACKENDS)}")
