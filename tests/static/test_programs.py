"""Programs in the style of TensorFlow 1, in its spelling."""

from pathlib import Path

import numpy
import numpy as np
import pytest

import needle as ndl
import needle.static as tf
from needle import nn, optim
from needle.nn import functional as F


@pytest.fixture(autouse=True)
def fresh():
    tf.reset_default_graph()


def test_the_declarative_program():
    """As the design document has it."""
    v1 = tf.Variable()
    v2 = tf.exp(v1)
    v3 = v2 + 1
    v4 = v2 * v3
    v5 = tf.cond(v4 > 0.5, true_fn=lambda: v4 * 2, false_fn=lambda: v4)
    sess = tf.Session()
    value4 = sess.run(v4, feed_dict={v1: numpy.array([1])})
    e = np.exp(np.float32(1))
    np.testing.assert_allclose(value4, [e * (e + 1)], rtol=1e-6)
    with pytest.raises(ndl.errors.ShapeError, match="cond"):
        sess.run(v5, feed_dict={v1: numpy.array([1, 2])})
    for value, factor in ((1.0, 2), (-3.0, 1)):
        x = np.exp(np.float32(value))
        result = sess.run(v5, feed_dict={v1: value})
        np.testing.assert_allclose(result, factor * x * (x + 1), rtol=1e-6)


def test_linear_regression():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 3)).astype(np.float32)
    targets = inputs @ np.float32([[1.0], [-2.0], [0.5]]) + 0.3

    X = tf.placeholder(tf.float32, [None, 3], name="X")
    Y = tf.placeholder(tf.float32, [None, 1], name="Y")
    W = tf.Variable(tf.zeros([3, 1]), name="weight")
    b = tf.Variable(tf.zeros([1]), name="bias")
    prediction = tf.matmul(X, W) + b
    cost = tf.reduce_mean(tf.square(prediction - Y))
    optimizer = tf.train.GradientDescentOptimizer(0.1).minimize(cost)

    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        for _ in range(200):
            _, loss = sess.run([optimizer, cost], feed_dict={X: inputs, Y: targets})
        weights, bias = sess.run([W, b])
    assert loss < 1e-5
    np.testing.assert_allclose(weights[:, 0], [1.0, -2.0, 0.5], atol=1e-2)
    np.testing.assert_allclose(bias, [0.3], atol=1e-2)


def test_an_mlp_on_digits_is_the_imperative_one():
    """Loss by loss, bit by bit: the programs are the same."""
    digits = ndl.data.Digits(train=True)
    images = digits.images.reshape(-1, 64).astype(np.float32) / 16
    labels = np.asarray(digits.labels, np.int64)
    ndl.manual_seed(0)
    layers = [nn.Linear(64, 32), nn.Linear(32, 10)]

    x = tf.placeholder((None, 64), name="x")
    y = tf.placeholder((None,), "int64", name="y")
    params = [tf.Variable(p.numpy().copy()) for layer in layers for p in (layer.weight, layer.bias)]
    w1, b1, w2, b2 = params
    hidden = tf.nn.relu(tf.matmul(x, w1) + b1)
    logits = tf.matmul(hidden, w2) + b2
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits))
    step = tf.train.AdamOptimizer(0.01).minimize(loss)
    correct = tf.equal(tf.argmax(logits, 1), y)
    accuracy = tf.reduce_mean(tf.cast(correct, tf.float32))

    optimizer = optim.Adam([p for layer in layers for p in (layer.weight, layer.bias)], lr=0.01)

    @ndl.compile
    def imperative(x, y):
        optimizer.zero_grad()
        hidden = F.relu(x @ layers[0].weight + layers[0].bias)
        logits = hidden @ layers[1].weight + layers[1].bias
        loss = F.cross_entropy(logits, y, reduction="none").mean()
        loss.backward()
        optimizer.step()
        return loss

    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        for i in range(60):
            part = slice(20 * i, 20 * i + 20)
            feed = {x: images[part], y: labels[part]}
            _, declared = sess.run([step, loss], feed)
            expected = imperative(ndl.asarray(images[part]), ndl.asarray(labels[part])).item()
            assert declared == expected
        assert sess.run(accuracy, {x: images, y: labels}) > 0.85


def test_a_recurrent_network_of_any_length():
    """Dynamic length with while_loop; gradients flow through it."""
    size, most = 3, 6
    x = tf.placeholder((most, 2), name="x")
    length = tf.placeholder((), "int64", name="length")
    w = tf.Variable(np.random.default_rng(0).normal(size=(size, size)).astype(np.float32) * 0.5)
    u = tf.Variable(np.random.default_rng(1).normal(size=(2, size)).astype(np.float32))

    def condition(t, h):
        return t < length

    def body(t, h):
        return t + 1, tf.tanh(tf.matmul(h, w) + tf.matmul(tf.take(x, t.reshape((1,)), axis=0), u))

    _, last = tf.while_loop(
        condition, body, [tf.constant(0), tf.zeros([1, size])], maximum_iterations=most
    )
    (grad,) = tf.gradients(tf.reduce_sum(last), w)
    data = np.random.default_rng(2).normal(size=(most, 2)).astype(np.float32)
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        weights, inputs = sess.run([w, u])
        for count in (0, 1, 4, 6):
            value, slope = sess.run([last, grad], {x: data, length: count})
            weight = ndl.Tensor(weights)
            h = ndl.zeros((1, size))
            for t in range(count):
                h = ndl.tanh(h @ weight + ndl.asarray(data[t : t + 1]) @ ndl.asarray(inputs))
            np.testing.assert_allclose(value, h.numpy(), rtol=1e-5)
            if count > 1:
                h.sum().backward()
                np.testing.assert_allclose(slope, weight.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_modules_share_their_parameters():
    ndl.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = tf.placeholder((None, 4))
    y = tf.function(model)(x)
    assert y.shape == (None, 2)
    data = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    with tf.Session() as sess:
        first = sess.run(y, {x: data})
        np.testing.assert_allclose(first, model(ndl.asarray(data)).detach().numpy(), rtol=1e-6)
        with ndl.no_grad():
            model[2].bias += 1.0
        np.testing.assert_allclose(sess.run(y, {x: data}), first + 1, rtol=1e-6)


@pytest.mark.parametrize("kind", ["momentum", "nesterov", "adam", "adagrad", "rmsprop"])
def test_optimizers_are_those_of_the_library(kind):
    start = np.float32([1.0, -2.0, 3.0])
    declared, own = {
        "momentum": (
            lambda: tf.train.MomentumOptimizer(0.1, 0.9),
            lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.0),
        ),
        "nesterov": (
            lambda: tf.train.MomentumOptimizer(0.1, 0.9, use_nesterov=True),
            lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.0, nesterov=True),
        ),
        "adam": (lambda: tf.train.AdamOptimizer(0.1), lambda p: optim.Adam(p, lr=0.1)),
        "adagrad": (
            lambda: tf.train.AdagradOptimizer(0.1),
            lambda p: optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.1),
        ),
        "rmsprop": (
            lambda: tf.train.RMSPropOptimizer(0.1),
            lambda p: optim.RMSprop(p, lr=0.1, alpha=0.9, eps=1e-10),
        ),
    }[kind]
    w = tf.Variable(start)
    count = tf.Variable(0, trainable=False)
    step = declared().minimize(tf.reduce_sum(w**4), global_step=count)
    parameter = ndl.Tensor(start.copy())
    optimizer = own([parameter])
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        for _ in range(5):
            sess.run(step)
            optimizer.zero_grad()
            (parameter**4).sum().backward()
            optimizer.step()
        np.testing.assert_allclose(sess.run(w), parameter.detach().numpy(), rtol=1e-5)
        assert sess.run(count) == 5


def test_a_learning_rate_can_be_fed():
    w = tf.Variable(4.0)
    rate = tf.placeholder(())
    step = tf.train.GradientDescentOptimizer(rate).minimize(w * w)
    with tf.Session() as sess:
        sess.run(w.initializer)
        sess.run(step, {rate: 0.25})
        assert sess.run(w) == 2
        sess.run(step, {rate: 0.5})
        assert sess.run(w) == 0


def test_values_are_saved_and_restored(tmp_path: Path):
    w, b = tf.Variable([[1.0, 2.0]], name="w"), tf.Variable(3, name="b")
    saver = tf.train.Saver()
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        sess.run([w.assign(w * 2), b.assign_add(4)])
        path = saver.save(sess, tmp_path / "model")
    with tf.Session() as sess:
        saver.restore(sess, path)
        np.testing.assert_array_equal(sess.run(w), [[2.0, 4.0]])
        assert sess.run(b) == 7
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ndl.errors.CheckpointError, match="cannot be read"):
        saver.restore(tf.Session(), path)
