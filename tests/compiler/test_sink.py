"""Sinking: conversions of fewer bytes, and the same values."""

import numpy as np
from compiler_tools import assert_same_bits, graph_of, interpret, ops_of

import needle as ndl
from needle.compiler.passes.sink import sink
from needle.graph import verify

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4)).astype(np.float32)


def checked(function, *arrays):
    """Return the graph after sinking, which must compute what it did before."""
    graph = graph_of(function, *arrays)
    result = verify(sink(graph))
    for a, e in zip(interpret(result, *arrays), interpret(graph, *arrays), strict=True):
        assert_same_bits(a, e)
    return result


def sizes_of_conversions(graph):
    """Return for each conversion how many bytes it reads and writes."""
    return [n.inputs[0].nbytes + n.result.nbytes for n in graph.nodes if n.op.name == "astype"]


def test_conversions_move_to_fewer_bytes():
    half = X.astype(np.float16)
    result = checked(lambda x: x.astype("float32")[1:2] * 2, half)
    assert sizes_of_conversions(result) == [4 * 2 + 4 * 4]
    wide = checked(lambda x: ndl.reshape(x.astype("float32"), (12,)), half)
    assert [n.op.name for n in wide.nodes] == ["reshape", "astype"]
    narrow = checked(lambda x: x.T.astype("float16"), X)
    assert [n.op.name for n in narrow.nodes] == ["astype", "permute_dims"]
    # Broadcast afterwards: there is less to convert before.
    spread = checked(lambda x: ndl.broadcast_to(x.astype("float32"), (5, 3, 4)), half)
    assert [n.op.name for n in spread.nodes] == ["astype", "broadcast_to"]


def test_conversions_that_others_read_stay():
    def function(x):
        wide = x.astype("float32")
        return wide, ndl.reshape(wide, (12,))

    result = checked(function, X.astype(np.float16))
    assert ops_of(result)["astype"] == 1
