"""Random programs through the pipeline: whatever the passes make of them, the values stay."""

import numpy as np
import pytest
from compiler_tools import graph_of, interpret
from hypothesis import HealthCheck, given, settings, strategies as st

import needle as ndl
from needle import dtypes
from needle.compiler import pipeline
from needle.compiler.schedule import schedule
from needle.graph import verify

DTYPES = (np.float32, np.float64, np.float16, np.int32, np.bool_)
VALUES = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, np.inf, -np.inf, np.nan, -7.25]
UNARY = ("exp", "abs", "negative", "square", "relu", "floor", "sign", "sqrt", "reciprocal", "isnan")
BINARY = ("add", "subtract", "multiply", "divide", "maximum", "equal", "less", "greater_equal")
NUMBERS = (0, 1, -1, 2, 0.0, -0.0, 0.5, -8.0, 3.0)


def unary(draw, x, others):
    name = draw(st.sampled_from(UNARY))
    if x.dtype == dtypes.bool and name not in ("isnan",):
        return ndl.logical_not(x)
    return getattr(ndl, name)(x)


def binary(draw, x, others):
    name = draw(st.sampled_from(BINARY))
    y = draw(st.sampled_from([o for o in others if fits(x, o)] or [x]))
    if x.dtype == y.dtype == dtypes.bool and name == "subtract":
        name = "multiply"
    pair = (x, y) if draw(st.booleans()) else (y, x)
    return getattr(ndl, name)(*pair)


def with_number(draw, x, others):
    name = draw(st.sampled_from(("add", "subtract", "multiply", "divide", "maximum")))
    number = draw(st.sampled_from(NUMBERS))
    if x.dtype == dtypes.bool:
        return x.astype(np.int32)
    pair = (x, number) if draw(st.booleans()) else (number, x)
    return getattr(ndl, name)(*pair)


def fits(x, y):
    try:
        np.broadcast_shapes(x.shape, y.shape)
    except ValueError:
        return False
    return True


def choice(draw, x, others):
    y = draw(st.sampled_from([o for o in others if o.shape == x.shape]))
    test = x if x.dtype == dtypes.bool else x > 0
    return ndl.where(~test if draw(st.booleans()) else test, x, y)


def convert(draw, x, others):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    if dtypes.is_float(x.dtype) and not dtypes.is_float(dtype):
        # What is no integer of the dtype is undefined.
        x = ndl.where(ndl.abs(x) < 100, x, 1.0)
    return x.astype(dtype)


def permute(draw, x, others):
    return ndl.permute_dims(x, draw(st.permutations(range(x.ndim))))


def reshape(draw, x, others):
    shapes = [(x.size,), (1, *x.shape), (*x.shape, 1), x.shape[::-1]]
    if x.ndim > 1:
        shapes.append((x.shape[0], x.size // x.shape[0] if x.shape[0] else 0))
    return ndl.reshape(x, draw(st.sampled_from(shapes)))


def broadcast(draw, x, others):
    shape = tuple(3 if n == 1 and draw(st.booleans()) else n for n in x.shape)
    return ndl.broadcast_to(x, (2, *shape) if draw(st.booleans()) else shape)


def part(draw, x, others):
    if not x.ndim or 0 in x.shape:
        return x
    slices = []
    for n in x.shape:
        start = draw(st.integers(0, n - 1))
        step = draw(st.sampled_from((1, 1, 2, -1)))
        slices.append(slice(start, None, step) if draw(st.booleans()) else slice(None, None, step))
    return x[tuple(slices)]


def surround(draw, x, others):
    pads = [(draw(st.integers(0, 1)), draw(st.integers(0, 1))) for _ in x.shape]
    return ndl.pad(x, pads, draw(st.sampled_from((0, 1))))


def reduce(draw, x, others):
    axes = tuple(a for a in range(x.ndim) if draw(st.booleans()))
    name = draw(st.sampled_from(("sum", "max", "min")))
    if 0 in x.shape:
        name = "sum"
    return getattr(ndl, name)(x, axes, keepdims=draw(st.booleans()))


def join(draw, x, others):
    same = [o for o in others if o.shape == x.shape]
    return ndl.concat([x, draw(st.sampled_from(same))]) if x.ndim else x


def softmax(draw, x, others):
    return ndl.softmax(x, -1) if x.ndim and x.dtype != dtypes.bool else x


STEPS = (unary, binary, binary, with_number, choice, convert, permute, reshape, broadcast, part,
         surround, reduce, join, softmax)  # fmt: skip


@st.composite
def programs(draw):
    """A function of two arrays that draws what it does, and the arrays."""
    shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    arrays = []
    for _ in range(2):
        dtype = draw(st.sampled_from(DTYPES))
        values = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=8))
        array = np.resize(np.array(values), shape)
        if not np.issubdtype(dtype, np.floating):
            array = np.nan_to_num(array, nan=0, posinf=5, neginf=-5)
        arrays.append(array.astype(dtype))
    count = draw(st.integers(1, 12))

    def function(*inputs):
        values = list(inputs)
        for _ in range(count):
            x = draw(st.sampled_from(values))
            step = draw(st.sampled_from(STEPS))
            made = step(draw, x, values)
            if made.size <= 500 and made.ndim <= 5:
                values.append(made)
        return values[-3:]

    return graph_of(function, *arrays), arrays


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    a, e = (v.astype(np.float64) if v.dtype.kind not in "iub" else v for v in (actual, expected))
    # Zeros may differ in sign: a sum of −0 alone is 0 or −0. Half precision is rounded elsewhere.
    if actual.dtype in (np.float16, np.float32, np.float64):
        step = 8 * float(np.finfo(actual.dtype).eps)
        np.testing.assert_allclose(a, e, rtol=step, atol=step)
    else:
        np.testing.assert_array_equal(a, e)


def check(program):
    graph, arrays = program
    expected = interpret(graph, *arrays)
    result = verify(schedule(pipeline.run(graph)))
    for a, e in zip(interpret(result, *arrays), expected, strict=True):
        assert_same(a, e)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_random_programs_keep_their_values(program):
    check(program)


@pytest.mark.nightly
@settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs())
def test_ten_thousand_random_programs_keep_their_values(program):
    check(program)
