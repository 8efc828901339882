"""Programs as they stand in tutorials of TensorFlow 1: only the line of the import is changed."""

import numpy as np
import pytest

import needle as ndl
import needle.static as tf
from needle.errors import ArgumentError


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


def windows(x, size, stride, padding, value):
    """For each place of a window in [N, H, W, C] what it sees, in NumPy."""
    _, high, wide, _ = x.shape
    if padding == "SAME":
        pads = [max((-(-m // stride) - 1) * stride + size - m, 0) for m in (high, wide)]
        sides = [(0, 0), *((p // 2, p - p // 2) for p in pads), (0, 0)]
        x = np.pad(x, sides, constant_values=value)
    rows = range(0, x.shape[1] - size + 1, stride)
    columns = range(0, x.shape[2] - size + 1, stride)
    return np.stack(
        [np.stack([x[:, i : i + size, j : j + size] for j in columns], 1) for i in rows], 1
    )


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (2, 2), (5, 3)])
def test_images_as_tensorflow_has_them(padding, size, stride):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 8, 7, 3)).astype(np.float32)
    w = rng.normal(size=(size, size, 3, 4)).astype(np.float32)
    image = tf.placeholder(tf.float32, [None, 8, 7, 3])
    strides = [1, stride, stride, 1]
    conv = tf.nn.conv2d(image, w, strides=strides, padding=padding)
    pool = tf.nn.max_pool(image, ksize=[1, size, size, 1], strides=strides, padding=padding)
    turned = tf.nn.conv2d(
        tf.transpose(image, [0, 3, 1, 2]), w, [1, 1, stride, stride], padding, data_format="NCHW"
    )
    found = tf.Session().run([conv, pool, turned], {image: x})
    seen = windows(x, size, stride, padding, 0.0)
    expected = np.einsum("nijabc,abco->nijo", seen, w)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2], expected.transpose(0, 3, 1, 2), rtol=1e-4, atol=1e-5)
    highest = windows(x, size, stride, padding, -np.inf).max(axis=(3, 4))
    np.testing.assert_array_equal(found[1], highest)


def test_mistakes_with_images():
    x, w = tf.placeholder(tf.float32, [2, 8, 8, 1]), tf.ones([3, 3, 1, 4])
    with pytest.raises(ArgumentError, match="SAME or VALID, got 'same'"):
        tf.nn.conv2d(x, w, [1, 1, 1, 1], "same")
    with pytest.raises(ArgumentError, match="1 along batch and channels"):
        tf.nn.max_pool(x, [1, 2, 2, 1], [2, 2, 2, 1], "SAME")
    with pytest.raises(ArgumentError, match="NHWC or NCHW"):
        tf.nn.conv2d(x, w, [1, 1, 1, 1], "SAME", data_format="HWC")
    with pytest.raises(ArgumentError, match="either keep_prob or rate"):
        tf.nn.dropout(x)


def test_a_convolutional_network_for_experts():
    images, labels = one_hot_digits(train=True)

    def weight_variable(shape):
        initial = tf.truncated_normal(shape, stddev=0.1)
        return tf.Variable(initial)

    def bias_variable(shape):
        initial = tf.constant(0.1, shape=shape)
        return tf.Variable(initial)

    def conv2d(x, W):
        return tf.nn.conv2d(x, W, strides=[1, 1, 1, 1], padding="SAME")

    def max_pool_2x2(x):
        return tf.nn.max_pool(x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="SAME")

    x = tf.placeholder(tf.float32, shape=[None, 64])
    y_ = tf.placeholder(tf.float32, shape=[None, 10])
    x_image = tf.reshape(x, [-1, 8, 8, 1])
    W_conv1 = weight_variable([3, 3, 1, 8])
    b_conv1 = bias_variable([8])
    h_conv1 = tf.nn.relu(conv2d(x_image, W_conv1) + b_conv1)
    h_pool1 = max_pool_2x2(h_conv1)
    W_fc1 = weight_variable([4 * 4 * 8, 32])
    b_fc1 = bias_variable([32])
    h_pool1_flat = tf.reshape(h_pool1, [-1, 4 * 4 * 8])
    h_fc1 = tf.nn.relu(tf.matmul(h_pool1_flat, W_fc1) + b_fc1)
    keep_prob = tf.placeholder(tf.float32)
    h_fc1_drop = tf.nn.dropout(h_fc1, keep_prob)
    W_fc2 = weight_variable([32, 10])
    b_fc2 = bias_variable([10])
    y_conv = tf.matmul(h_fc1_drop, W_fc2) + b_fc2

    cross_entropy = tf.reduce_mean(
        tf.nn.softmax_cross_entropy_with_logits(labels=y_, logits=y_conv)
    )
    train_step = tf.train.AdamOptimizer(1e-2).minimize(cross_entropy)
    correct_prediction = tf.equal(tf.argmax(y_conv, 1), tf.argmax(y_, 1))
    accuracy = tf.reduce_mean(tf.cast(correct_prediction, tf.float32))

    ndl.manual_seed(0)
    with tf.Session() as sess:
        sess.run(tf.global_variables_initializer())
        assert np.abs(sess.run(W_fc1)).max() <= 0.2
        for i in range(100):
            part = slice(100 * (i % 14), 100 * (i % 14) + 100)
            train_step.run(feed_dict={x: images[part], y_: labels[part], keep_prob: 0.5})
        images, labels = one_hot_digits(train=False)
        assert accuracy.eval(feed_dict={x: images, y_: labels, keep_prob: 1.0}) > 0.9
        kept, every = sess.run([h_fc1_drop, h_fc1], {x: images, keep_prob: 0.75})
        some = every > 0
        assert 0.7 < (kept[some] > 0).mean() < 0.8
        np.testing.assert_allclose(kept[kept > 0], every[kept > 0] / 0.75, rtol=1e-5)
