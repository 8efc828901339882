"""Algebraic simplification: the rewrite rules, wherever they fit."""

from __future__ import annotations

from needle.compiler.passes.rules import RULES
from needle.graph.ir import Graph
from needle.graph.rewrite import Rewriter


def simplify(graph: Graph) -> Graph:
    """Return the graph with the rules of `needle.compiler.passes.rules` applied."""
    return Rewriter(RULES)(graph)
