"""What a backend gives for a graph, and which backends there are."""

from __future__ import annotations

from typing import Protocol

from needle.backends import cpu
from needle.backends.cpu.threads import get_num_threads
from needle.errors import ArgumentError
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


def build(graph: Graph, backend: str | None = None, fixed: tuple[int, ...] = ()) -> Executable:
    """Return an executable of ``graph``.

    Args:
        graph: what to run.
        backend: one of `BACKENDS`; None is the first.
        fixed: indices of the inputs that stay what they are for many calls.

    Raises:
        ArgumentError: there is no such backend.
    """
    name = BACKENDS[0] if backend is None else backend
    if name == "cpu":
        return cpu.build(graph, get_num_threads(), fixed)
    if name == "interpret":
        return Interpreter(graph)
    raise ArgumentError(f"compile: there is no backend {name!r}; there are {', '.join(BACKENDS)}")
