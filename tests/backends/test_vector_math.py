"""The vector math against exact values: units of the last place, special values, all lanes alike.

The oracle is mpmath, with 40 digits, or for float32 NumPy's float64 where that is right to a
thousandth of float32's last place.
"""

from __future__ import annotations

import math
import time

import elementwise_kernels as kernels
import mpmath as mp
import numpy as np
import pytest

from needle import dtypes
from needle.backends.cpu.vector_math import ULP

float64_erf = np.vectorize(math.erf, otypes=[np.float64])

EXACT = {
    "exp": (mp.exp, np.exp),
    "expm1": (mp.expm1, np.expm1),
    "log": (mp.log, np.log),
    "log2": (lambda x: mp.log(x, 2), np.log2),
    "log1p": (mp.log1p, np.log1p),
    "sin": (mp.sin, np.sin),
    "cos": (mp.cos, np.cos),
    "tan": (mp.tan, np.tan),
    "tanh": (mp.tanh, np.tanh),
    "sigmoid": (lambda x: 1 / (1 + mp.exp(-x)), lambda x: 1 / (1 + np.exp(-x))),
    "softplus": (
        lambda x: mp.log1p(mp.exp(x)),
        lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    ),
    "erf": (mp.erf, float64_erf),
    "sqrt": (mp.sqrt, np.sqrt),
    "rsqrt": (lambda x: 1 / mp.sqrt(x), lambda x: 1 / np.sqrt(x)),
    "reciprocal": (lambda x: 1 / x, lambda x: 1 / x),
}
PAIRS = {
    "power": (lambda x, y: mp.power(x, y), np.power),
    "hypot": (mp.hypot, np.hypot),
    "div": (lambda x, y: x / y, np.divide),
}
FLOATS = (dtypes.float32, dtypes.float64)
each_target = pytest.mark.parametrize("target", kernels.RUNNABLE)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


def compiled(name, dtype, target="host", lanes=None, count=1):
    def build(b, *operands):
        return getattr(b, name)(*operands)

    return kernels.compile_map(build, [dtype] * count, dtype, lanes, kernels.RUNNABLE[target])


def bit_patterns(dtype, count, seed=0):
    """Return floats of random bits: all exponents alike."""
    bits = np.dtype(f"u{dtype.itemsize}")
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(bits).max, count, bits, endpoint=True).view(dtype)


def every_exponent(dtype):
    """Return powers of two of both signs, subnormal ones too, with their neighbours."""
    info = np.finfo(dtype)
    powers = np.ldexp(dtype.type(1), np.arange(info.minexp - info.nmant, info.maxexp))
    powers = np.concatenate([powers, powers * dtype.type(1.37)])
    near = [powers, np.nextafter(powers, dtype.type(0)), np.nextafter(powers, info.max)]
    sizes = np.concatenate(near).astype(dtype)
    return np.concatenate([sizes, -sizes])


def thresholds(dtype):
    """Return numbers next to where results overflow, vanish or saturate, and special values."""
    info = np.finfo(dtype)
    edges = [
        math.log(float(info.max)), math.log(float(info.tiny)),
        math.log(2.0) * (info.minexp - info.nmant - 1), math.log(2.0) * (info.minexp - info.nmant),
        math.pi / 4, math.pi / 2, math.pi, 2 * math.pi, 0.92, 3.95, 5.95, 9.0, 10.0, 17.33, 20.0,
        math.sqrt(0.5), math.sqrt(2.0), 0.5 * math.log(2.0), 1.0, 2.0**15, 2.0**20, 2.0**44,
    ]  # fmt: skip
    values = np.array(edges, dtype)
    steps = [values]
    for _ in range(3):
        steps += [np.nextafter(steps[-1], info.max)]
    below = values
    for _ in range(3):
        below = np.nextafter(below, dtype.type(0))
        steps.append(below)
    sizes = np.concatenate(steps)
    special = [0.0, np.inf, info.max, info.tiny, info.smallest_subnormal, np.nan, info.eps]
    sizes = np.concatenate([sizes, np.array(special, dtype)])
    return np.concatenate([sizes, -sizes])


def points(dtype, dense):
    rng = np.random.default_rng(3)
    spans = [(-1, 1), (-8, 8), (-100, 100), (-750, 720), (-1e5, 1e5)]
    drawn = [rng.uniform(low, high, dense).astype(dtype) for low, high in spans]
    close = (1 + rng.normal(0, 1e-3, dense)).astype(dtype)
    return np.concatenate(
        [*drawn, close, bit_patterns(dtype, 2 * dense), every_exponent(dtype), thresholds(dtype)]
    )


def exact(function, *arrays):
    """Return mpmath's results as long doubles: 64 digits where there are such, else 53."""
    results = []
    with mp.workdps(40):
        for values in zip(*(a.tolist() for a in arrays), strict=True):
            try:
                result = function(*(mp.mpf(v) for v in values))
            except (ValueError, ZeroDivisionError, OverflowError):
                result = mp.nan
            real = result.real if isinstance(result, mp.mpc) else result
            outside = isinstance(result, mp.mpc) and result.imag != 0
            if real == 0 and values[0] == 0:
                real = values[0]  # mpmath's zero has no sign; functions of 0 that are 0 are odd
            results.append(np.longdouble("nan" if outside else _digits(real)))
    return np.array(results, np.longdouble)


def _digits(value):
    return repr(value) if isinstance(value, float) else mp.nstr(value, 25)


def check(name, result, arrays, truth):
    errors = kernels.units(result, truth)
    i = int(np.argmax(errors))
    assert errors[i] <= ULP[name], (name, [a[i] for a in arrays], result[i], truth[i], errors[i])


@each_target
@pytest.mark.parametrize("name", EXACT)
def test_float32_is_within_its_stated_error(name, target):
    x = points(dtypes.float32, 3000 if name == "erf" else 60_000)
    truth = EXACT[name][1](x.astype(np.float64))
    check(name, compiled(name, dtypes.float32, target)(x), [x], truth)


@each_target
@pytest.mark.parametrize("name", EXACT)
def test_float64_is_within_its_stated_error(name, target):
    x = points(dtypes.float64, 100)
    x = x[np.isfinite(x)]
    keep = slice(None)
    if name in ("log", "log2", "sqrt", "rsqrt"):
        keep = x > 0
    elif name == "log1p":
        keep = x > -1
    elif name == "reciprocal":
        keep = x != 0
    x = x[keep]
    if name in ("exp", "expm1", "softplus", "sigmoid", "tanh", "erf"):
        x = x[np.abs(x) < 1e4]  # mpmath's numbers have no largest exponent
    truth = truths(name, x)
    check(name, compiled(name, dtypes.float64, target)(x), [x], truth)


_truths: dict[str, object] = {}


def truths(name, x):
    """mpmath is slow: one evaluation serves all targets."""
    if name not in _truths:
        _truths[name] = exact(EXACT[name][0], x)
    return _truths[name]


def pairs(dtype, count):
    rng = np.random.default_rng(5)
    x = np.concatenate(
        [rng.uniform(0, 20, count), rng.lognormal(0, 20, count), 1 + rng.normal(0, 1e-4, count)]
    )
    y = np.concatenate(
        [rng.uniform(-30, 30, count), rng.normal(0, 2, count), rng.normal(0, 1e5, count)]
    )
    return x.astype(dtype), y.astype(dtype)


@each_target
@pytest.mark.parametrize("name", PAIRS)
def test_functions_of_two_are_within_their_stated_error(name, target):
    for dtype, count in ((dtypes.float32, 50_000), (dtypes.float64, 1000)):
        x, y = pairs(dtype, count)
        if dtype == dtypes.float32:
            with np.errstate(all="ignore"):
                truth = PAIRS[name][1](x.astype(np.longdouble), y.astype(np.longdouble))
        else:
            key = f"{name} of two"
            if key not in _truths:
                _truths[key] = exact(PAIRS[name][0], x, y)
            truth = _truths[key]
        check(name, compiled(name, dtype, target, count=2)(x, y), [x, y], truth)


SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, 3.0, -3.0, np.inf, -np.inf, np.nan, 1e-30, 1e30,
    -1e30, 7.5, 2.0**23, 2.0**24 + 2, 2.0**53, 2.0**53 + 2, 1e-38, -1e-38, 3.0e38, 0.1, -0.3,
]  # fmt: skip


@each_target
@each_dtype
@pytest.mark.parametrize("name", ["power", "hypot", "floor_divide", "remainder", "fmod"])
def test_special_values_of_functions_of_two_are_numpys(name, dtype, target):
    values = np.array(SPECIAL, dtype)
    x, y = (a.ravel() for a in np.meshgrid(values, values))
    expected = getattr(np, name)(x, y)
    result = compiled(name, dtype, target, count=2)(x, y)
    errors = kernels.units(result, expected.astype(np.longdouble))
    i = int(np.argmax(errors))
    assert errors[i] <= ULP.get(name, 0.0) + 0.5, (x[i], y[i], result[i], expected[i])


@each_target
@each_dtype
@pytest.mark.parametrize("name", ["floor_divide", "remainder", "fmod"])
def test_remainders_are_exact_for_quotients_of_any_size(name, dtype, target):
    rng = np.random.default_rng(7)
    info = np.finfo(dtype)
    x = np.concatenate([bit_patterns(dtype, 20_000, 1), rng.normal(0, 1e3, 20_000)]).astype(dtype)
    y = np.concatenate([bit_patterns(dtype, 20_000, 2), rng.normal(0, 3, 20_000)]).astype(dtype)
    edges = [info.max, info.tiny, info.smallest_subnormal, info.max / 3, info.tiny * 3.5]
    a, b = (v.ravel() for v in np.meshgrid(np.array(edges, dtype), np.array(edges, dtype)))
    x, y = np.concatenate([x, a]), np.concatenate([y, b])
    result = compiled(name, dtype, target, count=2)(x, y)
    np.testing.assert_array_equal(result, getattr(np, name)(x, y))


@each_target
@each_dtype
@pytest.mark.parametrize("name", ["floor", "ceil", "trunc", "round_even"])
def test_roundings_are_exact(name, dtype, target):
    half = np.arange(-40, 40, dtype=dtype) / 4
    x = np.concatenate([points(dtype, 1000), half])
    expected = getattr(np, {"round_even": "rint"}.get(name, name))(x)
    result = compiled(name, dtype, target)(x)
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(np.signbit(result), np.signbit(expected))


@each_target
@each_dtype
@pytest.mark.parametrize("name", [*EXACT, *PAIRS, "remainder", "floor_divide"])
def test_a_result_does_not_depend_on_the_lanes(name, dtype, target):
    """Bit for bit the same from a scalar, a register, and vectors of odd sizes."""
    count = 2 if name in PAIRS or name in ("remainder", "floor_divide") else 1
    arrays = [points(dtype, 200)]
    if count == 2:
        arrays.append(np.roll(arrays[0], 17))
    bits = f"u{dtype.itemsize}"
    scalar = compiled(name, dtype, target, 0, count)(*arrays).view(bits)
    for lanes in (None, 1, 2, 3, 4, 8, 32):
        vector = compiled(name, dtype, target, lanes, count)(*arrays).view(bits)
        same = (vector == scalar) | (np.isnan(vector.view(dtype)) & np.isnan(scalar.view(dtype)))
        assert same.all(), (lanes, [a[~same][0] for a in arrays])


@each_dtype
def test_fused_targets_agree_bit_for_bit(dtype):
    """AVX2's and AVX-512's results are the same: so are the operations."""
    both = [name for name in ("avx2", "avx512") if name in kernels.RUNNABLE]
    if len(both) < 2:
        pytest.skip("this machine has no AVX-512")
    x = points(dtype, 500)
    for name in EXACT:
        first, second = (compiled(name, dtype, target)(x) for target in both)
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("target", kernels.EVERY)
def test_no_function_calls_the_c_library(target):
    chosen = kernels.EVERY[target]
    names = dict.fromkeys(EXACT, 1) | dict.fromkeys(PAIRS, 2)
    names |= {"remainder": 2, "floor_divide": 2, "floor": 1, "ceil": 1, "trunc": 1}
    for dtype in FLOATS:
        for name, count in {**names, "round_even": 1}.items():
            for lanes in (0, chosen.lanes(dtype)):
                module = kernels.emit_map(
                    lambda b, *o, name=name: getattr(b, name)(*o),
                    [dtype] * count,
                    dtype,
                    lanes,
                    chosen,
                )
                assert not kernels.calls_of(module, chosen), (name, dtype, lanes)


def test_subnormal_results_are_rounded_once():
    x = np.linspace(-103.97, -87.4, 40_000, dtype=np.float32)
    truth = np.exp(x.astype(np.float64))
    for target in kernels.RUNNABLE:
        check("exp", compiled("exp", dtypes.float32, target)(x), [x], truth)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
def test_exponentials_that_vanish_take_no_longer(dtype):
    exp = compiled("exp", dtype)
    ordinary, vanishing = (np.full(1 << 14, x, dtype) for x in (0.3, -np.inf))

    def seconds(x):
        start = time.perf_counter()
        exp(x)
        return time.perf_counter() - start

    # Underflow takes six times as long; the fastest of many turns is undisturbed by other programs.
    times = [(seconds(ordinary), seconds(vanishing)) for _ in range(60)]
    fast, slow = (min(column) for column in zip(*times, strict=True))
    assert slow < 3 * fast
    assert not exp(vanishing).any()
