"""The pipeline: what the compiler does to a graph, in order, before it schedules kernels.

Each pass is a function from a graph to a graph that computes the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from needle.compiler.passes.canonicalise import canonicalise
from needle.compiler.passes.control import tidy_control
from needle.compiler.passes.dead_code import remove_dead_code
from needle.compiler.passes.decompose import decompose
from needle.compiler.passes.fold import fold_constants
from needle.compiler.passes.lay_out import lay_out
from needle.compiler.passes.pair import pair
from needle.compiler.passes.products import sum_products
from needle.compiler.passes.share import share
from needle.compiler.passes.simplify import simplify
from needle.compiler.passes.sink import sink
from needle.compiler.passes.sparse_rows import keep_rows
from needle.compiler.passes.split_folds import split_folds
from needle.compiler.passes.widen import widen
from needle.compiler.passes.winograd import winograd
from needle.graph.ir import Graph, everywhere
from needle.graph.verify import verify


class Pass(NamedTuple):
    """A pass and what it is for, as `explain` tells it."""

    name: str
    run: Callable[[Graph], Graph]
    purpose: str


PASSES: tuple[Pass, ...] = (
    Pass("remove dead code", remove_dead_code, "drop what no output needs"),
    Pass("decompose", decompose, "write compound ops with simpler ones"),
    Pass("pair", pair, "multiply and add up pairs of bfloat16 in convolutions"),
    Pass("widen", widen, "hold sums of 16-bit floats in float32"),
    Pass("winograd", winograd, "convolve tiles of pixels with fewer products, where that pays"),
    Pass("canonicalise", canonicalise, "of two ways to say the same, keep one"),
    Pass("simplify", simplify, "apply the rewrite rules"),
    Pass("fold constants", fold_constants, "compute what depends on constants alone"),
    Pass("share", share, "compute equal expressions once"),
    Pass("tidy control", tidy_control, "pass, carry, stack and choose only what is needed"),
    Pass("sum products", sum_products, "add up products over the turns of a loop at once"),
    Pass("keep rows", keep_rows, "compute gradients of tables for the rows that were read"),
    Pass("lay out", lay_out, "store values in the order of axes in which they are computed"),
    Pass("sink", sink, "move conversions to where they cost least"),
    # What sharing, folding and sinking uncover.
    Pass("canonicalise again", canonicalise, "of two ways to say the same, keep one"),
    Pass("simplify again", simplify, "apply the rewrite rules"),
    Pass("share again", share, "compute equal expressions once"),
    Pass("split folds", split_folds, "cut long reductions into parts that threads share"),
)

#: Is called after each pass with the pass and the graph that it made.
Observer = Callable[[Pass, Graph], None]


def run(graph: Graph, observer: Observer | None = None, passes: Sequence[Pass] = PASSES) -> Graph:
    """Return the graph that the passes make of ``graph``, one after the other.

    With ``NEEDLE_VERIFY=1`` in the environment the graph is verified before and after each.

    Args:
        graph: what was traced; it stays as it is.
        observer: is called after each pass.
        passes: which passes, in order.
    """
    check = is_verified()
    if check:
        verify(graph)
    for p in passes:
        graph = everywhere(graph, p.run)
        if check:
            verify(graph)
        if observer is not None:
            observer(p, graph)
    return graph


def is_verified() -> bool:
    """Whether graphs are verified after each pass: ``NEEDLE_VERIFY=1``."""
    return os.environ.get("NEEDLE_VERIFY", "0") not in ("", "0")
