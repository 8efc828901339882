"""Graphs that are exported: pruned to what outputs need, with the values of variables."""

import numpy as np
import pytest

import needle as ndl
import needle.static as tf
from needle.errors import ArgumentError, GraphError, ShapeError
from needle.graph import interpret

X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


@pytest.fixture
def trained():
    """A graph with a training step, a session, and its ends."""
    with tf.Graph().as_default() as graph:
        x = tf.placeholder(tf.float32, [None, 4], name="x")
        label = tf.placeholder(tf.int64, [None], name="label")
        w1 = tf.Variable(tf.random_normal([4, 8]), name="w1")
        w2 = tf.Variable(tf.random_normal([8, 3]), name="w2")
        tf.Variable(3.0, name="unused")
        scores = tf.matmul(tf.nn.relu(tf.matmul(x, w1)), w2)
        prob = tf.nn.softmax(scores, axis=1, name="prob")
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=label, logits=scores)
        step = tf.train.AdamOptimizer(0.1).minimize(tf.reduce_mean(losses))
        session = tf.Session()
        session.run(tf.global_variables_initializer())
        for _ in range(3):
            session.run(step, {x: X, label: [0, 1, 2, 0, 1]})
        yield graph, session, x, label, prob, losses


def test_what_is_exported_computes_what_the_session_does(trained):
    graph, session, x, _, prob, _ = trained
    exported = graph.export(session, {"images": x}, {"prob": prob}, shapes={"images": (5, 4)})
    expected = session.run(prob, {x: X})
    assert list(exported.inputs) == ["images"]
    assert exported.inputs["images"].shape == (5, 4)
    assert exported.outputs["prob"].shape == (5, 3)
    assert list(exported.values) == ["w1", "w2"]
    assert [v.name for v in exported.graph.inputs] == ["images", "w1", "w2"]
    assert not exported.graph.donations
    names = {node.op.name for node in exported.graph.nodes}
    assert not any("entropy" in name for name in names)
    np.testing.assert_array_equal(exported.run({"images": X})["prob"], expected)
    (found,) = interpret(exported.graph, exported.arrays({"images": X}))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_it_is_a_copy(trained):
    graph, session, x, _, prob, _ = trained
    exported = graph.export(session, [x], [prob], shapes={"x": (5, 4)})
    before = exported.run({"x": X})["prob"]
    session.load(graph.variables[0], np.zeros((4, 8)))
    np.testing.assert_array_equal(exported.run({"x": X})["prob"], before)


def test_modules_go_along():
    ndl.manual_seed(0)
    model = ndl.nn.Sequential(ndl.nn.Linear(4, 3), ndl.nn.BatchNorm1d(3), ndl.nn.Dropout(0.5))
    with tf.Graph().as_default() as graph:
        x = tf.placeholder((5, 4), name="x")
        y = tf.function(model)(x, name="y")
        session = tf.Session()
        with pytest.raises(GraphError, match=r"eval\(\)"):
            graph.export(session, [x], [y])
        model.eval()
        exported = graph.export(session, [x], [y])
    expected = model(ndl.asarray(X)).detach().numpy()
    np.testing.assert_allclose(exported.run({"x": X})["y"], expected, rtol=1e-6)


def test_fed_and_constant_outputs():
    with tf.Graph().as_default() as graph:
        x, c = tf.placeholder((2,), name="x"), tf.constant([1.0, 2.0], name="c")
        w = tf.Variable([5.0], name="w")
        session = tf.Session()
        session.run(w.initializer)
        found = graph.export(session, [x], [x, c, w]).run({"x": [3, 4]})
    assert [found[name].tolist() for name in ("x", "c", "w")] == [[3, 4], [1, 2], [5]]


def test_mistakes(trained):
    graph, session, x, _, prob, losses = trained
    with pytest.raises(ShapeError, match=r"'x:0'.* has open extents.*shapes=\{'x'"):
        graph.export(session, [x], [prob])
    with pytest.raises(ShapeError, match=r"cannot have the shape \[5, 5\]"):
        graph.export(session, [x], [prob], shapes={"x": (5, 5)})
    with pytest.raises(GraphError, match=r"'label:0'.* is needed and has no value"):
        graph.export(session, [x], [losses], shapes={"x": (5, 4)})
    with pytest.raises(GraphError, match="is assigned; fetch what only reads"):
        graph.export(session, [], [graph.variables[0].assign_add(1)])
    with pytest.raises(GraphError, match=r"'w1:0'.*has no value: run its initializer"):
        graph.export(tf.Session(graph), [x], [prob], shapes={"x": (5, 4)})
    with pytest.raises(ArgumentError, match="must be a symbol"):
        graph.export(session, ["x"], [prob])
    with tf.Graph().as_default() as other, pytest.raises(GraphError, match="not in the graph"):
        other.export(session, [x], [prob])
    exported = graph.export(session, [x], [prob], shapes={"x": (5, 4)})
    with pytest.raises(ArgumentError, match=r"the inputs are \['x'\], got \['y'\]"):
        exported.run({"y": X})
    with pytest.raises(ShapeError, match=r"'x' has shape \[5, 4\], got \[2, 4\]"):
        exported.run({"x": X[:2]})
