"""Graphs of functions, and their values by the references of the records."""

from __future__ import annotations

from collections import Counter

import numpy as np

from needle import graph as needle_graph


def graph_of(function, *arrays):
    """Return the graph of ``function`` on inputs like ``arrays``."""
    return needle_graph.trace(function, *arrays).graph


def interpret(graph, *arrays):
    """Return the values of the graph's outputs, after checking it."""
    return needle_graph.interpret(needle_graph.verify(graph), arrays)


def ops_of(graph):
    """Return how often each op occurs, by name."""
    return Counter(node.op.name for node in graph.nodes)


def assert_same_bits(actual, expected):
    """Raise unless both have the same dtype, shape and bits; any NaN is like any other."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype.kind in "iub":
        np.testing.assert_array_equal(actual, expected)
        return
    a, e = actual.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(a, e)  # NaN equals NaN
    zero = e == 0
    np.testing.assert_array_equal(np.signbit(a[zero]), np.signbit(e[zero]))
