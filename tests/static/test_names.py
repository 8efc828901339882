"""TensorFlow 1's names: what they give is what NumPy gives."""

import numpy as np
import pytest

import needle as ndl
import needle.static as tf
from needle.static.names import NAMES, NN_NAMES

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
P = np.exp(Y) / np.exp(Y).sum(1, keepdims=True)
LOG = X - np.log(np.exp(X).sum(1, keepdims=True))

CASES = {
    "reduce_sum": (lambda x, y: tf.reduce_sum(x, [0, 1]), X.sum()),
    "reduce_mean": (lambda x, y: tf.reduce_mean(x, 1, keep_dims=True), X.mean(1, keepdims=True)),
    "reduce_max": (lambda x, y: tf.reduce_max(x, axis=0), X.max(0)),
    "reduce_min": (lambda x, y: tf.reduce_min(x), X.min()),
    "reduce_prod": (lambda x, y: tf.reduce_prod(x, axis=1), X.prod(1)),
    "reduce_all": (lambda x, y: tf.reduce_all(x > 0, axis=1), (X > 0).all(1)),
    "reduce_any": (lambda x, y: tf.reduce_any(x > 0, axis=1), (X > 0).any(1)),
    "cast": (lambda x, y: tf.cast(x, tf.int32), X.astype(np.int32)),
    "identity": (lambda x, y: tf.identity(x), X),
    "matmul": (lambda x, y: tf.matmul(x, y, transpose_b=True), X @ Y.T),
    "one_hot": (lambda x, y: tf.one_hot(tf.argmax(x, 1), 4), np.eye(4)[X.argmax(1)]),
    "shape": (lambda x, y: tf.shape(x), [3, 4]),
    "reshape": (lambda x, y: tf.reshape(x, [2, -1]), X.reshape(2, 6)),
    "transpose": (lambda x, y: tf.transpose(x), X.T),
    "concat": (lambda x, y: tf.concat([x, y], 1), np.concatenate([X, Y], 1)),
    "argmax": (lambda x, y: tf.argmax(x), X.argmax()),
    "stop_gradient": (lambda x, y: tf.stop_gradient(x), X),
    "zeros": (lambda x, y: tf.zeros([2]), np.zeros(2)),
    "ones": (lambda x, y: tf.ones([2], tf.int64), np.ones(2)),
    "add_n": (lambda x, y: tf.add_n([x, y, x]), 2 * X + Y),
    "squared_difference": (lambda x, y: tf.squared_difference(x, y), (X - Y) ** 2),
    "fill": (lambda x, y: tf.fill([2, 3], 0.5), np.full((2, 3), 0.5)),
    "softmax_cross_entropy_with_logits": (
        lambda x, y: tf.nn.softmax_cross_entropy_with_logits(labels=y, logits=x),
        -(P * LOG).sum(1),
    ),
    "sparse_softmax_cross_entropy_with_logits": (
        lambda x, y: tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels=tf.constant([0, 1, 3]), logits=x
        ),
        -LOG[[0, 1, 2], [0, 1, 3]],
    ),
    "sigmoid_cross_entropy_with_logits": (
        lambda x, y: tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=x),
        np.log1p(np.exp(X)) - P * X,
    ),
    "bias_add": (lambda x, y: tf.nn.bias_add(x, tf.constant([1.0, 2, 3, 4])), X + np.arange(1, 5)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_name_means_what_it_means_elsewhere(name):
    build, expected = CASES[name]
    with tf.Graph().as_default():
        x, y = tf.placeholder(tf.float32, [None, 4]), tf.placeholder(tf.float32, [None, 4])
        declared = build(x, y)
        value = tf.Session().run(declared, {x: X, y: P if "entropy" in name else Y})
        if declared.shape is not None:
            known = [n for n in declared.shape if n is not None]
            assert all(n in value.shape for n in known)
        assert declared.dtype == value.dtype
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)


def test_every_name_is_tried():
    random = {"random_normal", "random_uniform", "truncated_normal", "dropout"}
    random |= {"softmax_cross_entropy_with_logits_v2", "conv2d", "max_pool"}  # tried elsewhere
    assert set(CASES) | random == set(NAMES) | set(NN_NAMES)


def test_random_numbers():
    with tf.Graph().as_default():
        normal = tf.random_normal([2000], mean=3.0, stddev=0.5)
        uniform = tf.random_uniform([2000], -1.0, 1.0)
        session = tf.Session()
        a, b = session.run([normal, uniform])
        assert abs(a.mean() - 3) < 0.05
        assert abs(a.std() - 0.5) < 0.05
        assert b.min() >= -1
        assert b.max() < 1
        assert not np.array_equal(session.run(uniform), b)


def test_ops_of_the_library_are_there():
    assert {"exp", "softmax", "conv2d", "sum"} <= set(dir(tf))
    assert {"relu", "dropout", "max_pool2d"} <= set(dir(tf.nn))
    with tf.Graph().as_default():
        x = tf.placeholder((None, 2))
        y = tf.nn.softmax(x.sum(axis=0, keepdims=True), axis=1)
        np.testing.assert_allclose(tf.Session().run(y, {x: [[1, 2], [0, -1]]}), [[0.5, 0.5]])
        assert tf.float64 is ndl.float64
        assert tf.eye(3).shape == (3, 3)
