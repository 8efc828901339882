"""Sinking: fewer transpositions, conversions of fewer bytes, and the same values."""

import numpy as np
import pytest
from compiler_tools import assert_same_bits, graph_of, interpret, ops_of

import needle as ndl
from needle.compiler import pipeline
from needle.compiler.passes.sink import sink
from needle.graph import verify

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 4)).astype(np.float32)
Y = RNG.standard_normal((3, 4)).astype(np.float32)
ROW = RNG.standard_normal(3).astype(np.float32)


def checked(function, *arrays, run=sink):
    """Return the graph after ``run``, which must compute what it did before."""
    graph = graph_of(function, *arrays)
    result = verify(run(graph))
    for a, e in zip(interpret(result, *arrays), interpret(graph, *arrays), strict=True):
        assert_same_bits(a, e)
    return result


def test_transpositions_meet_and_cancel():
    result = checked(lambda x, y: (ndl.exp(x.T) * y.T + 1).T, X, Y, run=pipeline.run)
    assert ops_of(result) == {"exp": 1, "multiply": 1, "add": 1}


def test_rows_are_turned_with_the_rest():
    result = checked(lambda x, row: (ndl.relu(x.T) + row).T, X, ROW, run=pipeline.run)
    assert ops_of(result) == {"relu": 1, "add": 1, "reshape": 1}
    column = ROW[:, None]
    kept = checked(lambda x, c: ndl.exp(x.T) + ndl.reshape(c, (1, 3)), X, column)
    assert kept.nodes[-1].op.name == "permute_dims"


def test_products_read_what_is_transposed():
    result = checked(lambda x, w: ndl.matmul(x, ndl.relu(w.T) * 2), X, Y, run=pipeline.run)
    product = result.nodes[-1]
    assert product.op.name == "matmul"
    assert product.inputs[1].node.op.name == "permute_dims"


def test_batches_and_three_axes():
    x = RNG.standard_normal((2, 3, 4)).astype(np.float32)

    def function(x):
        return ndl.permute_dims(ndl.exp(ndl.permute_dims(x, (2, 0, 1))) * 3, (1, 2, 0))

    assert ops_of(checked(function, x, run=pipeline.run)) == {"exp": 1, "multiply": 1}


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x.T + ndl.reshape(y, (4, 3)),  # the other is not transposed
        lambda x, y: ndl.permute_dims(ndl.reshape(x, (1, 3, 4)), (1, 2, 0)) * y.T[0, 0],
        lambda x, y: x.T + ndl.reshape(y, (12, 1, 1))[0],
        lambda x, y: (
            ndl.permute_dims(ndl.reshape(x, (2, 2, 3)), (2, 0, 1))
            * ndl.permute_dims(ndl.reshape(y, (3, 2, 2)), (0, 2, 1))
        ),
        lambda x, y: x.T + ndl.reshape(y.T, (4, 3, 1))[:, :, 0],
    ],
)
def test_others_compute_the_same(function):
    checked(function, X, Y)
    checked(function, X, Y, run=pipeline.run)


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
