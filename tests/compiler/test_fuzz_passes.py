"""Random programs through the pipeline: whatever the passes make of them, the values stay."""

import numpy as np
import pytest
from compiler_tools import graph_of, interpret
from hypothesis import HealthCheck, given, settings, strategies as st
from random_steps import DTYPES, STEPS

from needle.compiler import pipeline
from needle.compiler.schedule import schedule
from needle.graph import verify

VALUES = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, np.inf, -np.inf, np.nan, -7.25]


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
