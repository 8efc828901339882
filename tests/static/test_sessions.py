"""Sessions: pruning, feeding, variables, control dependencies, errors."""

import numpy as np
import pytest

import needle as ndl
import needle.static as tf
from needle.errors import ArgumentTypeError, GraphError, ShapeError, TraceError


@pytest.fixture(autouse=True)
def fresh():
    tf.reset_default_graph()


def needed(session):
    """The names of what the last program that a session made computes."""
    (*_, program) = session._programs.values()
    return [o.name for o in program.plan.operations]


def test_only_what_the_fetches_need_runs():
    x = tf.placeholder((2,), name="x")
    a = tf.exp(x, name="a")
    b = tf.sin(a, name="b")
    tf.cos(a * tf.Variable(name="no_value"), name="c")
    session = tf.Session()
    np.testing.assert_allclose(session.run(b, {x: [1, 2]}), np.sin(np.exp([1, 2])), rtol=1e-6)
    assert needed(session) == ["a", "b"]
    session.run(a, {x: [3, 4]})
    assert needed(session) == ["a"]
    np.testing.assert_allclose(session.run(b, {a: [3, 4]}), np.sin([3, 4]), rtol=1e-6)
    assert needed(session) == ["b"]  # a is fed, so neither it nor x is needed


@pytest.mark.parametrize("is_compiled", [True, False])
def test_anything_can_be_fed(is_compiled):
    w = tf.Variable(2.0)
    x = tf.placeholder(())
    y = w * x
    z = y + 1
    session = tf.Session(compile=is_compiled)
    assert session.run(z, {y: 5}) == 6
    assert session.run(z, {w: 3, x: 4}) == 13
    session.run(w.initializer)
    assert session.run(z, {x: 4}) == 9
    assert session.run([z, y], {y: 1, x: 100}) == [2, 1]


def test_fetches_keep_their_structure():
    x = tf.constant([1.0, 2.0], name="x")
    y = x * 2
    session = tf.Session()
    result = session.run({"a": [x, (y,)], "b": y.operation, "c": "x:0"})
    np.testing.assert_array_equal(result["a"][0], [1, 2])
    np.testing.assert_array_equal(result["a"][1][0], [2, 4])
    assert result["b"] is None
    np.testing.assert_array_equal(result["c"], [1, 2])


def test_variables_belong_to_sessions():
    w = tf.Variable([1.0])
    double = w.assign(w * 2)
    one, two = tf.Session(), tf.Session()
    for session in (one, two):
        session.run(w.initializer)
    one.run(double)
    one.run(double)
    assert (one.run(w), two.run(w)) == (4, 1)


def test_a_variable_without_a_value_gets_one():
    v = tf.Variable(name="v")
    w = tf.Variable(dtype="int64")
    session = tf.Session()
    with pytest.raises(GraphError, match=r"'v:0'.*test_sessions.py:\d+, has no value"):
        session.run(v)
    assert session.run(v * 2, {v: 4}) == 8
    session.run([v.assign([1.0, 2.0]), w.assign(3)])
    np.testing.assert_array_equal(session.run(v), [1, 2])
    session.run(v.assign([3.0]))  # another shape
    np.testing.assert_array_equal(session.run(v), [3])
    assert session.run(w) == 3
    assert session.run(w).dtype == np.int64


def test_initial_values_may_be_random_or_depend_on_others():
    a = tf.Variable(tf.random_normal([1000], stddev=0.1))
    b = tf.Variable(lambda: tf.zeros([3]) + 7)
    ndl.manual_seed(1)
    session = tf.Session()
    session.run(tf.global_variables_initializer())
    first = session.run(a)
    assert 0.08 < first.std() < 0.12
    np.testing.assert_array_equal(session.run(b), [7, 7, 7])
    session.run(a.initializer)
    assert not np.array_equal(session.run(a), first)


def test_what_must_run_before():
    log = tf.Variable(1.0)
    with tf.control_dependencies([log.assign(log * 10)]):
        later = tf.identity(log) + 1
    free = tf.identity(log) + 1
    session = tf.Session()
    session.run(log.initializer)
    assert session.run(free) == 2
    assert session.run(later) == 11
    assert session.run(later) == 101
    both = tf.group(log.assign_sub(100), later)
    assert session.run(both) is None
    assert session.run(log) == 900  # in the order of declaration: 100 · 10 − 100


def test_gradients_of_gradients_and_of_what_is_fed():
    x = tf.placeholder((None,))
    mid = x**2
    y = mid * 3
    (dx,), (dmid,) = tf.gradients(y, x), tf.gradients(y, mid)
    (ddx,) = tf.gradients(dx, [x])
    session = tf.Session()
    values = session.run([dx, dmid, ddx], {x: [1, 2]})
    np.testing.assert_array_equal(values, [[6, 12], [3, 3], [6, 6]])
    other = tf.placeholder(())
    assert tf.gradients(y, [other, x])[0] is None
    (weighted,) = tf.gradients(y, x, grad_ys=tf.constant([1.0, 10.0]))
    np.testing.assert_array_equal(session.run(weighted, {x: [1, 2]}), [6, 120])
    (stopped,) = tf.gradients(tf.stop_gradient(x) * x, x)
    np.testing.assert_array_equal(session.run(stopped, {x: [3, 4]}), [3, 4])


def test_branches_and_their_gradients():
    x = tf.placeholder(())
    w = tf.Variable(3.0)
    y = tf.cond(x > 0, lambda: tf.cond(x > 10, lambda: x * w * w, lambda: x * w), lambda: -x)
    (dw,) = tf.gradients(y, w)
    session = tf.Session()
    session.run(w.initializer)
    for value, expected in ((-2.0, (2, 0)), (2.0, (6, 2)), (20.0, (180, 120))):
        assert tuple(session.run([y, dw], {x: value})) == expected
    assert tf.cond(True, lambda: 1, lambda: 2) == 1


def test_scans():
    x = tf.placeholder((None, 2))
    sums = tf.scan(lambda total, row: total + row, x, tf.zeros([2]))
    assert sums.shape == (None, 2)
    pairs = tf.scan(
        lambda s, row: {"a": s["a"] + row, "b": s["b"] * 2}, x, {"a": tf.zeros([2]), "b": 1}
    )
    session = tf.Session()
    np.testing.assert_array_equal(session.run(sums, {x: [[1, 2], [3, 4]]}), [[1, 2], [4, 6]])
    result = session.run(pairs, {x: [[1, 2], [3, 4], [5, 6]]})
    np.testing.assert_array_equal(result["b"], [2, 4, 8])
    np.testing.assert_array_equal(result["a"], [[1, 2], [4, 6], [9, 12]])


def test_shapes_are_known_as_far_as_they_can_be():
    x = tf.placeholder((None, 8, 3))
    assert x.sum(axis=1).shape == (None, 3)
    assert (x @ tf.zeros((3, 5))).shape == (None, 8, 5)
    assert tf.reshape(x, (-1, 24)).shape == (None, 24)
    assert (x + tf.zeros((4, 8, 3))).shape is None  # open, and perhaps 4
    assert tf.placeholder().shape is None
    assert x.dtype == ndl.float32
    assert (x > 0).dtype == ndl.bool
    size = tf.Session().run(tf.shape(x), {x: np.zeros((5, 8, 3))})
    np.testing.assert_array_equal(size, [5, 8, 3])
    value = tf.Session().run(x + tf.zeros((4, 8, 3)), {x: np.ones((4, 8, 3))})
    assert value.shape == (4, 8, 3)


def test_names():
    a = tf.placeholder(name="a")
    b = tf.placeholder(name="a")
    with tf.name_scope("layer"):
        c = tf.constant(1, name="c")
        with tf.name_scope("inner"):
            d = tf.exp(c.astype("float32"), name="d")
    assert [s.name for s in (a, b, c, d)] == ["a:0", "a_1:0", "layer/c:0", "layer/inner/d:0"]
    assert tf.get_default_graph().find("layer/inner/d:0") is d
    assert str(c) == "<symbol 'layer/c:0': int64[]>"


def test_compiled_once_for_each_fetch_and_shape():
    x = tf.placeholder((None,))
    y, z = x * 2, x * 3
    session = tf.Session()
    for _ in range(3):
        session.run(y, {x: [1, 2]})
        session.run(z, {x: [1, 2]})
        session.run(y, {x: [1, 2, 3]})
    programs = session._programs.values()
    assert sorted(len(p._function.specializations) for p in programs) == [1, 2]


def test_placeholders_in_either_order():
    made = [
        tf.placeholder((None, 3), "int64", "a"),
        tf.placeholder("int64", (None, 3), "b"),
        tf.placeholder(tf.int64, shape=[None, 3], name="c"),
        tf.placeholder(shape=[None, 3], dtype=np.int64),
    ]
    assert {(s.shape, s.dtype) for s in made} == {((None, 3), np.dtype(np.int64))}
    assert [s.operation.name for s in made] == ["a", "b", "c", "placeholder"]
    assert tf.placeholder(tf.float64).shape is None
    assert tf.placeholder(None, "int32").dtype == ndl.int32
    with pytest.raises(ArgumentTypeError, match="shape is given twice"):
        tf.placeholder([3], shape=[2])
    with pytest.raises(ArgumentTypeError, match="no option 'size'"):
        tf.placeholder(tf.float32, size=3)


def test_interactive_sessions():
    w = tf.Variable(2.0)
    session = tf.InteractiveSession()
    w.initializer.run()
    assert (w * 3).eval() == 6
    w.load(5.0)
    assert w.eval() == 5
    session.close()
    with pytest.raises(GraphError, match="there is no session"):
        w.eval()


def test_mistakes():
    x = tf.placeholder((None, 3), name="x")
    y = x * 2
    session = tf.Session()
    with pytest.raises(GraphError, match=r"'x:0': float32\[\?, 3\].*test_sessions.*feed it"):
        session.run(y)
    with pytest.raises(ShapeError, match=r"'x:0'.*fed with an array of shape \[2, 4\]"):
        session.run(y, {x: np.zeros((2, 4))})
    with pytest.raises(GraphError, match=r"'x:0'.* is fed twice: once as 'x:0'"):
        session.run(y, {x: np.zeros((2, 3)), "x:0": np.zeros((2, 3))})
    with pytest.raises(ArgumentTypeError, match="a fetch must be"):
        session.run(3)
    with pytest.raises(GraphError, match="nothing named 'q'"):
        session.run("q")
    with pytest.raises(TraceError, match=r"the truth of .*static\.cond"):
        bool(y > 1)
    with pytest.raises(TraceError, match="has no value before a session runs"):
        y.numpy()
    with pytest.raises(ShapeError):
        tf.matmul(x, tf.zeros((4, 2)))  # at the line that makes it
    with tf.Graph().as_default():
        other = tf.constant(1.0)
        with pytest.raises(GraphError, match="belongs to another graph"):
            other + tf.add(x, x)
    with pytest.raises(GraphError, match="not in the graph of this session"):
        session.run(other)
    with pytest.raises(GraphError, match="true_fn declares"):
        tf.cond(x.sum() > 0, lambda: x, lambda: (x, x))
    with pytest.raises(GraphError, match="dtypes differ"):
        tf.while_loop(lambda i: i < 3, lambda i: i * 0.5, [0])
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        _ = tf.frobnicate
    with tf.Session() as closed:
        pass
    with pytest.raises(GraphError, match="closed"):
        closed.run(y, {x: np.zeros((1, 3))})
    with pytest.raises(GraphError, match="there is no session"):
        y.eval({x: np.zeros((1, 3))})
    with tf.Session():
        np.testing.assert_array_equal(y.eval({x: np.ones((1, 3))}), [[2, 2, 2]])


def test_an_error_inside_names_what_was_declared():
    x = tf.placeholder()
    y = tf.reshape(x, (2, 3), name="folded")
    with pytest.raises(ShapeError, match=r"in 'folded', declared at .*test_sessions"):
        tf.Session(compile=False).run(y, {x: [1.0]})
