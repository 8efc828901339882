"""Conversions between all dtypes on all targets, against NumPy's; none calls a library."""

import itertools

import elementwise_kernels as kernels
import numpy as np
import pytest

from needle import dtypes

each_target = pytest.mark.parametrize("name", kernels.RUNNABLE)


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def converter(source, target_dtype, name, lanes=None):
    return kernels.compile_map(
        lambda b, x: b.convert(x, target_dtype),
        [source],
        target_dtype,
        lanes,
        kernels.RUNNABLE[name],
    )


def same_numbers(actual, expected):
    """Whether all bits are equal, those of NaN aside."""
    width = f"u{actual.dtype.itemsize}"
    nan = np.isnan(actual.astype(np.float64))
    assert np.array_equal(nan, np.isnan(expected.astype(np.float64)))
    different = np.flatnonzero((actual.view(width) != expected.view(width)) & ~nan)
    assert not different.size, (different[:4], actual[different[:4]], expected[different[:4]])


def many_floats(dtype):
    """Bit patterns at random, all halves and their neighbours, and the points between halves."""
    rng = np.random.default_rng(0)
    bits = np.dtype(f"u{dtype.itemsize}")
    random = rng.integers(0, np.iinfo(bits).max, 100_000, bits, endpoint=True).view(dtype)
    found = [random, rng.normal(0, 1, 50_000).astype(dtype)]
    for half in (dtypes.float16, dtypes.bfloat16):
        values = np.sort(kernels.all_halves(half).astype(dtype))
        middle = values[:-1] + (values[1:] - values[:-1]) / 2
        for points in (values, middle):
            found += [points, np.nextafter(points, dtype.type(np.inf))]
            found += [np.nextafter(points, dtype.type(-np.inf))]
    return np.concatenate(found)


@each_target
@pytest.mark.parametrize("half", [dtypes.float16, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("lanes", [0, None, 3], ids=["scalar", "vector", "odd"])
def test_every_half_widens_exactly(half, lanes, name):
    values = kernels.all_halves(half)
    for wide in (dtypes.float32, dtypes.float64):
        same_numbers(converter(half, wide, name, lanes)(values), values.astype(wide))


@each_target
@pytest.mark.parametrize("half", [dtypes.float16, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("wide", [dtypes.float32, dtypes.float64], ids=str)
@pytest.mark.parametrize("lanes", [0, None], ids=["scalar", "vector"])
def test_floats_are_rounded_to_halves_as_numpy_does(wide, half, lanes, name):
    values = many_floats(wide)
    expected = values.astype(half)
    same_numbers(converter(wide, half, name, lanes)(values), expected)


@each_target
def test_halves_convert_to_each_other(name):
    pair = (dtypes.float16, dtypes.bfloat16)
    for source, target in itertools.permutations(pair):
        values = kernels.all_halves(source)
        expected = values.astype(np.float32).astype(target)
        same_numbers(converter(source, target, name)(values), expected)


def some_values(dtype):
    if dtype == dtypes.bool:
        return np.array([True, False, True])
    if dtypes.is_integer(dtype):
        limits = np.iinfo(dtype)
        rng = np.random.default_rng(1)
        edges = [limits.min, limits.min + 1, 0, 1, 2, limits.max - 1, limits.max, 3, 77]
        return np.concatenate(
            [np.array(edges, dtype), rng.integers(limits.min, limits.max, 500, dtype)]
        )
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(0, 40, 500), [0.0, -0.0, 0.5, -0.5, 0.99, 100.0, 127.9]])
    return values.astype(dtype)


@each_target
@pytest.mark.parametrize("source", dtypes.ALL, ids=str)
def test_all_pairs_convert_as_in_numpy(source, name):
    """Within the range of the target; integers that do not fit wrap."""
    values = some_values(source)
    for target in dtypes.ALL:
        taken = values
        if dtypes.is_float(source) and dtypes.is_integer(target):
            limits = np.iinfo(target)
            exact = np.trunc(values.astype(np.float64))
            taken = values[(exact >= limits.min) & (exact <= limits.max)]
        expected = taken.astype(target)
        for lanes in (0, None):
            actual = converter(source, target, name, lanes)(taken)
            assert np.array_equal(actual, expected), (target, lanes)


def saturated(value, limits):
    if np.isnan(value):
        return 0
    if np.isinf(value):
        return limits.max if value > 0 else limits.min
    return min(max(int(value), limits.min), limits.max)


@each_target
@pytest.mark.parametrize("source", [dtypes.float32, dtypes.float64, dtypes.float16], ids=str)
def test_floats_beyond_an_integer_saturate(source, name):
    values = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 300.7, -300.7, -0.9]).astype(source)
    for target in dtypes.INTEGERS:
        limits = np.iinfo(target)
        expected = [saturated(float(v), limits) for v in values]
        for lanes in (0, None):
            actual = converter(source, target, name, lanes)(values)
            assert actual.tolist() == expected, (target, lanes)


@pytest.mark.parametrize("name", kernels.EVERY)
def test_no_conversion_calls_a_function(name):
    target = kernels.EVERY[name]
    for source, to in itertools.permutations(dtypes.ALL, 2):
        for lanes in (0, target.lanes(source)):
            module = kernels.emit_map(
                lambda b, x, to=to: b.convert(x, to), [source], to, lanes, target
            )
            assert not kernels.calls_of(module, target), (source, to, lanes)
