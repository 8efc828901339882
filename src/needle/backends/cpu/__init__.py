"""The CPU backend: kernels generated as LLVM IR.

From the outside in: `executable` calls what `program` makes of a graph; `nest` and `product` emit
kernels; `emit` emits elements; `vector_math` and `llvm` emit instructions; `jit`
makes machine code of them, which `threads` runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from needle.backends.cpu.executable import Executable
    from needle.backends.cpu.tuning import Tuning
    from needle.backends.cpu.varying import VaryingProgram
    from needle.graph.ir import Graph


def build(
    graph: Graph,
    threads: int = 1,
    tuning: Tuning | None = None,
    fixed: tuple[int, ...] = (),
) -> Executable:
    """Return ``graph`` as native code.

    Args:
        graph: what was traced.
        threads: how many threads share the work of large kernels. No bit of a result depends on it.
        tuning: how plans of kernels are searched; None leaves them to the model.
        fixed: indices of the inputs that stay what they are for many calls.
    """
    from needle.backends.cpu.executable import build as build_executable

    return build_executable(graph, threads, tuning=tuning, fixed=fixed)


def build_varying(graph: Graph, threads: int = 1, fixed: tuple[int, ...] = ()) -> VaryingProgram:
    """Return ``graph``, with an `Extent` in its shapes, as native code for any value of it.

    Args:
        graph: what was traced.
        threads, fixed: as for `build`.

    Raises:
        VariesError: the graph cannot be compiled that way; the message says what is in the way.
    """
    from needle.backends.cpu.varying import build_varying as build_program

    return build_program(graph, threads, fixed)
