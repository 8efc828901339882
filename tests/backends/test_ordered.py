"""Scans, scatters, sorts and random bits at sizes where vectors, blocks and threads come in."""

import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.backends import cpu
from needle.backends.cpu.program import Program
from needle.compiler import pipeline
from needle.errors import OutOfRangeError
from needle.graph import interpret, trace
from needle.testing import assert_close


def both(function, *arrays, threads=(1, 2, 3)):
    """Return what native code and the references make of arrays; the same for all threads."""
    graph = trace(function, *arrays).graph
    expected = interpret(graph, arrays)
    optimised = pipeline.run(graph)
    outcomes = [cpu.build(optimised, n).run([a.copy() for a in arrays]) for n in threads]
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0], other, strict=True):
            assert a.tobytes() == b.tobytes()
    return outcomes[0], expected


def assert_equal(function, *arrays):
    for a, e in zip(*both(function, *arrays), strict=True):
        assert_close(a, e, check_dtype=True, rtol=0, atol=0)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


SHAPES = [
    ((40000,), 0),
    ((7, 3000), 1),
    ((3000, 7), 0),
    ((300, 130), 0),
    ((300, 130), 1),
    ((5, 200, 33), 1),
    ((6, 11, 500), 2),
    ((17, 1, 900), 0),
    ((1, 70000), 0),
]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_running_sums_add_in_order(shape, axis):
    """To the last bit: each line is added up from its start, whatever lies beside it."""
    assert_equal(lambda x: ndl.cumulative_sum(x, axis=axis), draw(*shape))
    assert_equal(lambda x: ndl.cumulative_sum(x * 2 + 1, axis=axis), draw(*shape))


def test_running_sums_of_small_floats_are_rounded_once():
    x = draw(50, 300).astype(dtypes.bfloat16)
    assert_equal(lambda x: ndl.cumulative_sum(x, axis=1), x)


def test_a_running_sum_may_take_the_place_of_its_input():
    def step(total, x):
        total[...] = ndl.cumulative_sum(total + x, axis=0)

    total, x = ndl.asarray(draw(200, 100)), ndl.asarray(draw(200, 100, seed=1))
    expected = np.cumsum(total.numpy() + x.numpy(), axis=0)
    ndl.compile(step)(total, x)
    np.testing.assert_array_equal(total.numpy(), expected)


@pytest.mark.parametrize("rows", [1, 5, 700])
@pytest.mark.parametrize("width", [1, 3, 4, 20, 200])
def test_rows_are_added_in_order(rows, width):
    i = np.random.default_rng(rows).integers(-50, 50, rows)
    g = draw(rows, width)
    (actual,), _ = both(lambda g, i: ndl.untake_at(g, [i], (50, width), [0]), g, i)
    expected = np.zeros((50, width), np.float32)
    for k, row in zip(i, g, strict=True):  # in order, each addition rounded
        expected[k] += row
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_adding_along_an_axis(axis):
    i = np.random.default_rng(axis).integers(0, 9, (30, 40, 50))
    function = ndl.untake_along_axis
    assert_equal(lambda g, i: function(g, i, 9, axis=axis), draw(30, 40, 50), i)


def test_adding_where_the_index_does_not_change():
    """All values meet at one place, which an index outside of the loop names."""
    i = np.full((1, 1), 2)
    g = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    function = ndl.untake_at
    assert_equal(lambda g, i: function(g, [ndl.broadcast_to(i, (3, 4))], (5, 1), [0]), g, i)


@pytest.mark.parametrize("dtype", [np.float64, np.int8, np.bool_])
def test_the_last_value_stays(dtype):
    rng = np.random.default_rng(0)
    x, v = (rng.integers(0, 2, s).astype(dtype) for s in ((60, 300), (100, 300)))
    assert_equal(lambda x, v, i: ndl.setitem(x, i, v), x, v, rng.integers(-60, 60, 100))


def test_updates_in_place():
    def write(cache, row, i):
        cache[i] = row

    cache, row = ndl.zeros((64, 1000)), ndl.asarray(draw(1000))
    address = cache.numpy().ctypes.data
    step = ndl.compile(write)
    for i in (3, 60, 3):
        step(cache, row * i, ndl.asarray(i))
    expected = np.zeros((64, 1000), np.float32)
    expected[3], expected[60] = row.numpy() * 3, row.numpy() * 60
    np.testing.assert_array_equal(cache.numpy(), expected)
    assert cache.numpy().ctypes.data == address


SORTED = [(1, 1), (3, 2), (200, 5), (50, 39), (50, 40), (50, 41), (9, 1000), (1, 100_000)]


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "bfloat16", "int8", "uint16", "int64", "bool"]
)
@pytest.mark.parametrize("shape", SORTED)
def test_sorting_keeps_equal_elements_in_order(shape, dtype, descending):
    rng = np.random.default_rng(shape)
    dtype = ndl.asarray(0, dtype=dtype).dtype
    x = (rng.standard_normal(shape) * 100).round(1 if dtypes.is_float(dtype) else 0)
    x = (x if dtype.kind != "u" else np.abs(x)).astype(dtype)
    if dtypes.is_float(dtype):
        for value in (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0):
            x[rng.random(shape) < 0.05] = value
    assert_equal(lambda x: ndl.argsort(x, descending=descending), x)


def test_sorting_along_any_axis():
    for axis in (0, 1, 2):
        assert_equal(lambda x, axis=axis: ndl.argsort(x * x, axis=axis), draw(30, 60, 20))


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("k", [1, 5, 32, 33, 250, 1000])
def test_the_best_k(k, largest):
    x = draw(20, 1000).round(1)  # with ties
    x[x > 2.5] = np.nan
    assert_equal(lambda x: ndl.topk(x, k, largest=largest)[0], x)
    assert_equal(lambda x: ndl.topk(x, k, largest=largest)[1], x)
    assert_equal(lambda x: ndl.topk(x, k, axis=0, largest=largest)[1], np.sort(x, axis=1).T)


DRAWS = [(), (1,), (7,), (64,), (1000,), (33, 784), (16, 100), (5, 3, 20), (128, 4), (300, 1000)]


@pytest.mark.parametrize("shape", DRAWS)
def test_random_bits_are_the_references_in_any_layout(shape):
    state = np.array([1, 2, 0xFFFFFFF0, 0xFFFFFFFF, 4, 5], np.uint32)
    bits = ndl.random_bits
    back = tuple(range(len(shape)))[::-1]
    assert_equal(lambda s: bits(s, shape), state)
    assert_equal(lambda s: bits(s, shape)[0].astype("float64") * 0.5, state)
    assert_equal(lambda s: ndl.permute_dims(bits(s, shape)[0], back).astype("float32"), state)
    assert_equal(lambda s: bits(bits(s, shape)[1], shape), state)
    if shape:
        assert_equal(lambda s: ndl.sum(bits(s, shape)[0], axis=-1), state)
        assert_equal(lambda s: ndl.max(ndl.flip(bits(s, shape)[0], -1), axis=0), state)


def test_an_index_out_of_range_is_reported_only_where_it_is_used():
    x = draw(40)
    i = np.arange(30) + 15

    def padded(x, i):  # the last indices are beyond the end, but not asked for
        return ndl.take_at(x, [i[:25]], [0])

    assert_equal(padded, x, i)
    graph = pipeline.run(trace(lambda x, i: ndl.take_at(x, [i], [0]), x, i).graph)
    with pytest.raises(OutOfRangeError, match=r"index 4\d \(at position \[2\d\]"):
        cpu.build(graph, 2).run([x, i])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_of_several_bad_indices_the_first_is_reported(threads):
    x, i = draw(8), np.zeros(60_000, np.int64)
    i[[30_037, 30_038, 59_990]] = 9, 11, -10
    graph = pipeline.run(trace(lambda x, i: ndl.exp(ndl.take_at(x, [i], [0])), x, i).graph)
    run = cpu.build(graph, threads).run
    for _ in range(20):
        with pytest.raises(OutOfRangeError) as raised:
            run([x, i])
        assert "index 9 (at position [30037] of the indices)" in str(raised.value)
    i[100] = 8
    with pytest.raises(OutOfRangeError, match=r"index 8 \(at position \[100\]"):
        run([x, i])
    run([x, np.zeros_like(i)])


def test_a_bad_index_in_the_epilogue_of_a_product():
    def function(x, w, table, i):
        return ndl.relu(x @ w + ndl.take_at(table, [i], [0]))

    x, w, table = draw(40, 70), draw(70, 50), draw(9, 50)
    i = np.arange(40) % 9
    assert_close(*both(function, x, w, table, i), rtol=1e-5, atol=1e-5)
    i[33] = 9
    graph = pipeline.run(trace(function, x, w, table, i).graph)
    assert len(Program(graph, 2).groups) == 1
    with pytest.raises(OutOfRangeError, match=r"index 9 \(at position \[33\]"):
        cpu.build(graph, 2).run([x, w, table, i])
