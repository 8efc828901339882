"""Laying out: transpositions move behind what reads them until they cancel; values stay."""

import numpy as np
import pytest
from compiler_tools import graph_of, interpret, ops_of
from layouts import transposing

import needle as ndl
from needle.compiler import pipeline
from needle.compiler.passes.lay_out import lay_out
from needle.graph import verify

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


X, Y, ROW = normal(3, 4), normal(3, 4), normal(3)
TO_NHWC, TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


def checked(function, *arrays, run=lay_out):
    """Return the graph after ``run``, which must compute what it did before."""
    graph = graph_of(function, *arrays)
    result = verify(run(graph))
    for a, e in zip(interpret(result, *arrays), interpret(graph, *arrays), strict=True):
        assert a.dtype == e.dtype
        # Sums may be taken in another order.
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)
    return result


def test_transpositions_meet_and_cancel():
    result = checked(lambda x, y: (ndl.exp(x.T) * y.T + 1).T, X, Y, run=pipeline.run)
    assert ops_of(result) == {"exp": 1, "multiply": 1, "add": 1}


def test_rows_are_turned_with_the_rest():
    result = checked(lambda x, row: (ndl.relu(x.T) + row).T, X, ROW, run=pipeline.run)
    assert ops_of(result) == {"relu": 1, "add": 1, "reshape": 1}


def test_products_read_what_is_transposed():
    result = checked(lambda x, w: ndl.matmul(x, ndl.relu(w.T) * 2), X, Y, run=pipeline.run)
    product = result.nodes[-1]
    assert product.op.name == "matmul"
    assert product.inputs[1].node.op.name == "permute_dims"


def test_batches_and_three_axes():
    def function(x):
        return ndl.permute_dims(ndl.exp(ndl.permute_dims(x, (2, 0, 1))) * 3, (1, 2, 0))

    assert ops_of(checked(function, normal(2, 3, 4), run=pipeline.run)) == {"exp": 1, "multiply": 1}


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
        lambda x, y: ndl.concat([x.T, ndl.reshape(y, (4, 3)), y.T], 1),
        lambda x, y: ndl.reshape(ndl.exp(x.T), (2, 6)) * ndl.reshape(y.T, (2, 6)),
        lambda x, y: ndl.sum(x.T * y.T, 0) + ndl.max(y.T, 0, keepdims=True),
        lambda x, y: ndl.where(x.T < 0, 0.0, ndl.reshape(y, (4, 3))) + ndl.argmax(x.T, 0),
        lambda x, y: ndl.broadcast_to(ndl.reshape(x.T, (4, 1, 3)), (4, 5, 3)) * y.T[:, None],
    ],
)
def test_others_compute_the_same(function):
    checked(function, X, Y)
    checked(function, X, Y, run=pipeline.run)


#: What stands between two convolutions: from images NCHW to images NCHW, or to something without
#: pixels.
BETWEEN = {
    "activation": lambda x: ndl.relu(x * 2 + 1),
    "bias": lambda x: x + ndl.reshape(ndl.asarray(np.arange(4.0, dtype="float32")), (1, 4, 1, 1)),
    "fold": lambda x: ndl.max(x, (2, 3), keepdims=True) * x,
    "fold away": lambda x: ndl.mean(x, (2, 3)),
    "place of the largest": lambda x: ndl.argmax(x, 1),
    "softmax": lambda x: ndl.softmax(x, 1),
    "padding": lambda x: ndl.exp(ndl.pad(x, ((0, 0), (0, 0), (1, 2), (0, 1)))),
    "slice": lambda x: x[:, 1:, ::2, -3:],
    "join": lambda x: ndl.concat([x, x * 2], 1),
    "maximum of windows": lambda x: ndl.max_pool2d(x, 3, 2, 1),
    "mean of windows": lambda x: ndl.avg_pool2d(x, 2),
    "uneven means": lambda x: ndl.adaptive_avg_pool2d(x, (4, 3)),
    "normalisation": lambda x: ndl.batch_norm(x, None, None, training=True),
    "global mean": lambda x: ndl.reshape(ndl.adaptive_avg_pool2d(x, 1), (2, 4)),
    "upsampling": lambda x: ndl.reshape(
        ndl.broadcast_to(ndl.reshape(x, (2, 4, 6, 1, 6, 1)), (2, 4, 6, 2, 6, 2)), (2, 4, 12, 12)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
@pytest.mark.parametrize("with_grad", [False, True], ids=["forward", "backward"])
def test_channels_stay_last(name, with_grad):
    """What follows an image whose channels come last touches neighbours only."""
    between = BETWEEN[name]

    def function(x):
        image = ndl.permute_dims(x, TO_NCHW)
        if not with_grad:
            y = between(image)
            return ndl.permute_dims(y, TO_NHWC) if y.ndim == 4 else y
        if name == "place of the largest":
            return ndl.sum(x)
        image = ndl.permute_dims(ndl.exp(x), TO_NCHW)
        y = between(image)
        loss = ndl.sum(y * y)
        (grad,) = ndl.grad([loss], [image])
        return ndl.permute_dims(grad, TO_NHWC)

    x = ndl.asarray(normal(2, 6, 6, 4))
    if with_grad:
        x.requires_grad = True
    graph = graph_of(function, x)
    result = verify(pipeline.run(graph))
    assert not transposing(result)
    (a,), (e,) = interpret(result, x.numpy()), interpret(graph, x.numpy())
    np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def test_state_keeps_its_order():
    """An update computes in the order of what it overwrites, not in that of the gradient."""

    def function(weight, momentum, gradient):
        new = momentum * 0.9 + ndl.permute_dims(gradient, (3, 2, 0, 1))
        return weight - new * 0.1, new

    weight = normal(4, 3, 2, 2)
    result = checked(function, weight, weight, normal(2, 2, 3, 4), run=pipeline.run)
    assert ops_of(result)["permute_dims"] == 1
    assert all(v.node.op.name != "permute_dims" for v in result.outputs)
