"""Graphs of functions, and their values by the references of the records."""

from __future__ import annotations

from collections import Counter

import numpy as np

from needle.compiler.passes.decompose import record
from needle.graph.ir import Graph, Value, sort
from needle.shapes import Spec


def graph_of(function, *arrays, name="graph"):
    """Return the graph of ``function`` on inputs like ``arrays``."""
    inputs = [Value(Spec(a.shape, a.dtype), name=f"x{i}") for i, a in enumerate(arrays)]
    outputs = list(record(function, inputs))
    return Graph(inputs, sort(outputs), outputs, name=name)


def interpret(graph, *arrays):
    """Return the values of the graph's outputs."""
    values = {}
    for value, array in zip(graph.inputs, arrays, strict=True):
        assert value.spec == (array.shape, array.dtype)
        values[value] = array

    def read(value):
        return value.constant if value.constant is not None else values[value]

    with np.errstate(all="ignore"):
        for node in graph.nodes:
            specs = node.op.infer(*(v.spec for v in node.inputs), **node.attrs)
            expected = (specs,) if isinstance(specs, Spec) else tuple(specs)
            assert expected == tuple(v.spec for v in node.results), node
            outcome = node.op.reference(*map(read, node.inputs), **node.attrs)
            outcome = outcome if isinstance(outcome, tuple) else (outcome,)
            for value, array in zip(node.results, outcome, strict=True):
                values[value] = np.asarray(array)
                assert values[value].shape == value.shape, node
    return [read(v) for v in graph.outputs]


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
