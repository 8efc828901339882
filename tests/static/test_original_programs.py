"""Programs as they stand in tutorials of TensorFlow 1: only the line of the import is changed."""

import numpy as np
import pytest

import needle as ndl
import needle.static as tf


@pytest.fixture(autouse=True)
def fresh():
    tf.reset_default_graph()


def one_hot_digits(train):
    digits = ndl.data.Digits(train=train)
    images = digits.images.reshape(-1, 64).astype(np.float32) / 16
    return images, np.eye(10, dtype=np.float32)[np.asarray(digits.labels)]


def test_a_program_with_cond_and_while_loop():
    """Newton's square root, as many turns as it needs; negative numbers have none."""
    x = tf.placeholder(tf.float32, shape=[], name="x")
    tolerance = tf.constant(1e-6)

    def condition(i, root):
        error = tf.abs(tf.subtract(tf.square(root), x))
        return tf.logical_and(tf.less(i, 50), tf.greater(error, tf.multiply(tolerance, x)))

    def body(i, root):
        return [tf.add(i, 1), tf.multiply(0.5, tf.add(root, tf.divide(x, root)))]

    def square_root():
        i = tf.constant(0)
        steps, root = tf.while_loop(condition, body, [i, tf.add(x, 1.0)])
        return [tf.cast(steps, tf.int32), root]

    def nothing():
        return [tf.constant(-1, dtype=tf.int32), tf.constant(0.0)]

    steps, root = tf.cond(tf.greater_equal(x, 0.0), square_root, nothing)
    scaled = tf.case(
        [(tf.less(root, 1.0), lambda: root * 10.0), (tf.less(root, 10.0), lambda: root)],
        default=lambda: root / 10.0,
    )

    with tf.Session() as sess:
        for value in (2.0, 9.0, 0.25, 400.0):
            n, r = sess.run([steps, root], feed_dict={x: value})
            assert r == pytest.approx(value**0.5, rel=1e-6)
            assert 0 < n < 15
        assert sess.run(steps, feed_dict={x: 400.0}) > sess.run(steps, feed_dict={x: 2.0})
        assert sess.run([steps, root], feed_dict={x: -1.0}) == [-1, 0.0]
        results = [sess.run(scaled, feed_dict={x: v}) for v in (0.25, 9.0, 400.0)]
        assert results == pytest.approx([5.0, 3.0, 2.0])


def test_softmax_regression_for_beginners():
    images, labels = one_hot_digits(train=True)

    # Create the model
    x = tf.placeholder(tf.float32, [None, 64])
    W = tf.Variable(tf.zeros([64, 10]))
    b = tf.Variable(tf.zeros([10]))
    y = tf.matmul(x, W) + b

    # Define loss and optimizer
    y_ = tf.placeholder(tf.float32, [None, 10])
    cross_entropy = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=y_, logits=y))
    train_step = tf.train.GradientDescentOptimizer(0.5).minimize(cross_entropy)

    sess = tf.InteractiveSession()
    tf.global_variables_initializer().run()
    # Train
    for i in range(200):
        part = slice(100 * (i % 14), 100 * (i % 14) + 100)
        sess.run(train_step, feed_dict={x: images[part], y_: labels[part]})

    # Test trained model
    correct_prediction = tf.equal(tf.argmax(y, 1), tf.argmax(y_, 1))
    accuracy = tf.reduce_mean(tf.cast(correct_prediction, tf.float32))
    images, labels = one_hot_digits(train=False)
    assert sess.run(accuracy, feed_dict={x: images, y_: labels}) > 0.9
    assert accuracy.eval({x: images, y_: labels}) > 0.9
    sess.close()


def test_counting_steps_and_a_decaying_rate():
    """A graph with state of its own: the learning rate is computed of the step."""
    global_step = tf.Variable(0, name="global_step", trainable=False)
    rate = 0.2 * 0.9 ** tf.cast(global_step, tf.float32)
    w = tf.Variable(tf.fill([3], 5.0), name="w")
    loss = tf.reduce_sum(tf.squared_difference(w, tf.constant([1.0, 2.0, 3.0])))
    optimizer = tf.train.GradientDescentOptimizer(rate)
    gradients, variables = zip(*optimizer.compute_gradients(loss), strict=True)
    train_op = optimizer.apply_gradients(
        zip([g * 0.5 for g in gradients], variables, strict=True), global_step=global_step
    )
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        expected = np.full(3, 5.0)
        for i in range(5):
            _, step, _ = sess.run([train_op, global_step, rate])
            expected -= 0.2 * 0.9**i * (expected - [1.0, 2.0, 3.0])
            assert step == i + 1
        np.testing.assert_allclose(sess.run(w), expected, rtol=1e-5)
