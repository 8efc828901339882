"""Every elementwise op's `lower`, compiled, against its `reference`: all samples, all dtypes."""

from __future__ import annotations

import functools

import elementwise_kernels as kernels
import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.backends.cpu.vector_math import ULP
from needle.errors import ArgumentError, NeedleError
from needle.ops.engine import engine
from needle.ops.record import REGISTRY, Kind, Op
from needle.shapes import Spec
from needle.tensor import Tensor
from needle.testing import cases_under_test

ALL = [e for e in REGISTRY.values() if isinstance(e, Op) and e.kind is Kind.ELEMENTWISE]
#: The others are written with simpler ones before code is made.
ELEMENTWISE = [op for op in ALL if op.decompose is None]
#: Ops whose lowering is a function of the builder by another name, of which `ULP` speaks.
NAMES = {"pow": "power", "subtract": "sub", "multiply": "mul", "divide": "div", "square": "mul"}
each_op = pytest.mark.parametrize("op", ELEMENTWISE, ids=lambda op: op.name)

SPECIAL = [
    0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 1e-30, -1e30, 100.0, -0.3,
    2.0**-149, 3.0e38, 6.0, 8388609.0,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_every_elementwise_op_is_lowered(op):
    assert (op.lower is None) is (op.decompose is not None)


@functools.cache
def kernel(op, takes, gives, lanes, attrs):
    return kernels.compile_map(
        lambda b, *operands: op.lower(b, *operands, **dict(attrs)), takes, gives, lanes
    )


def lowered(op, arrays, attrs, lanes):
    """Run the op's lowering over broadcast arrays, as a loop of the compiler does."""
    takes = tuple(a.dtype for a in arrays)
    specs = [Spec(a.shape, a.dtype) for a in arrays]
    gives = op.infer(*specs, **attrs).dtype
    function = kernel(op, takes, gives, lanes, tuple(attrs.items()))
    return function(*np.broadcast_arrays(*arrays))


def compare(op, arrays, attrs):
    width = 8 // max(a.dtype.itemsize for a in arrays) * 2
    for lanes in (0, width):
        actual = lowered(op, arrays, attrs, lanes)
        allowed = ULP.get(NAMES.get(op.name, op.name), 0.0)
        if allowed and dtypes.is_float(actual.dtype):
            # NumPy's own functions of float32 err by a few units: float64's are the oracle.
            wide = [a.astype(np.float64) if dtypes.is_float(a.dtype) else a for a in arrays]
            expected = np.asarray(op.reference(*wide, **attrs))
            if actual.dtype == np.float64:
                expected = expected.astype(np.longdouble)
                allowed += 2.0 if allowed > 0.5 else 0.0
            errors = kernels.units(actual, expected)
            assert errors.max(initial=0.0) <= allowed, (arrays, actual, expected)
        else:
            expected = np.asarray(op.reference(*arrays, **attrs))
            np.testing.assert_array_equal(actual, expected, err_msg=str(arrays))


def calls(case, dtype):
    """Return the elementwise ops that a case runs on arrays of a dtype: (op, arrays, attrs)."""
    found = []
    run = engine.apply

    def record(op, inputs, attrs):
        if op.kind is Kind.ELEMENTWISE and op.lower is not None:
            found.append((op, [np.array(t.numpy()) for t in inputs], dict(attrs)))
        return run(op, inputs, attrs)

    def convert(array):
        same_kind = dtypes.is_float(array.dtype) == dtypes.is_float(dtype)
        change = same_kind and array.dtype != np.bool_
        return Tensor(array.astype(dtype) if change else array.copy(), requires_grad=False)

    engine.apply = record
    try:
        case.call(convert)
    except NeedleError:  # the values do not fit the narrower dtype
        return []
    finally:
        engine.apply = run
    return found


CASES = cases_under_test(ELEMENTWISE)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_lowering_agrees_with_the_reference(case):
    for dtype in (np.float32, np.float64, *dtypes.INTEGERS):
        for op, arrays, attrs in calls(case, np.dtype(dtype)):
            if any(a.dtype.itemsize == 2 and dtypes.is_float(a.dtype) for a in arrays):
                continue  # sixteen-bit floats never reach a lowering
            compare(op, arrays, attrs)


def accepts(op, dtype):
    kind = "float" if dtypes.is_float(dtype) else "integer" if dtypes.is_integer(dtype) else "bool"
    return op.promotion is not None and kind in op.promotion


def special_values(dtype):
    if dtypes.is_float(dtype):
        return np.array(SPECIAL, dtype)
    if dtype == np.bool_:
        return np.array([False, True])
    limits = np.iinfo(dtype)
    near = {limits.min, limits.min + 1, limits.max, limits.max - 1, 0, 1, 2, 3, 7, 10, 63}
    near |= {v for v in (-1, -2, -3, -10) if limits.min < 0}
    return np.array(sorted(near), dtype)


DTYPES = (np.bool_, *dtypes.INTEGERS, np.float32, np.float64)


@each_op
def test_special_values_are_the_references(op):
    """Extremes, zeros, infinities, NaN: each alone and in all pairs."""
    if op.promotion is None:
        pytest.skip("its operands have different dtypes, see the tests of conversions")
    to_float = op.promotion == {"bool", "integer", "float"} and op.infer is not None
    for dtype in map(np.dtype, DTYPES):
        if not accepts(op, dtype):
            continue
        if to_float and not dtypes.is_float(dtype) and not _takes(op, dtype):
            continue  # the public function converts such dtypes first
        values = special_values(dtype)
        arrays = [values] if len(op.inputs) == 1 else [values[:, None], values[None]]
        if op.name in ("floor_divide", "remainder") and dtypes.is_integer(dtype):
            arrays[1] = values[values != 0][None]
        if op.name == "pow" and dtypes.is_integer(dtype):
            arrays[1] = values[values >= 0][None]
        compare(op, arrays, {})


def _takes(op, dtype):
    # Whether the op's own result for the dtype keeps it: then nothing is converted first.
    found = []
    run = engine.apply

    def record(called, inputs, attrs):
        found.append((called, inputs[0].dtype))
        return run(called, inputs, attrs)

    engine.apply = record
    try:
        one = Tensor(np.ones(1, dtype), requires_grad=False)
        op.function(*[one] * len(op.inputs))
    finally:
        engine.apply = run
    return found[-1] == (op, dtype)


@pytest.mark.parametrize("target", kernels.RUNNABLE)
@pytest.mark.parametrize("dtype", dtypes.INTEGERS, ids=str)
def test_integers_are_numpys_where_the_ops_refuse(dtype, target):
    """No trap: 0 for division by zero, wrapped overflow, shifts that leave nothing."""
    rng = np.random.default_rng(0)
    limits = np.iinfo(dtype)
    drawn = rng.integers(limits.min, limits.max, 300, dtype, endpoint=True)
    values = np.concatenate([special_values(dtype), drawn])
    x, y = (a.ravel() for a in np.meshgrid(values, values))
    functions = {
        "integer_floor_divide": np.floor_divide,
        "integer_remainder": np.remainder,
        "left_shift": np.left_shift,
        "right_shift": np.right_shift,
    }
    for name, reference in functions.items():
        for lanes in (0, None):
            run = kernels.compile_map(
                lambda b, x, y, name=name: getattr(b, name)(x, y),
                [dtype, dtype],
                dtype,
                lanes,
                kernels.RUNNABLE[target],
            )
            np.testing.assert_array_equal(run(x, y), reference(x, y), err_msg=name)


@pytest.mark.parametrize("dtype", dtypes.INTEGERS, ids=str)
def test_integer_powers_wrap_and_negative_ones_truncate(dtype):
    limits = np.iinfo(dtype)
    bases = [b for b in (-7, -2, -1, 0, 1, 2, 3, 10, limits.max) if b >= limits.min]
    exponents = [e for e in (-3, -2, -1, 0, 1, 2, 3, 7, 63, 64, 100, limits.max) if e >= limits.min]
    exponents = [e for e in exponents if e <= limits.max]
    x, y = (a.ravel() for a in np.meshgrid(np.array(bases, dtype), np.array(exponents, dtype)))

    def power(base, exponent):
        if exponent < 0:
            return base**-exponent if abs(base) == 1 else 0
        return pow(base, exponent, 2 ** (8 * dtype.itemsize))

    wrapped = [
        power(b, e) % 2 ** (8 * dtype.itemsize) for b, e in zip(x.tolist(), y.tolist(), strict=True)
    ]
    expected = np.array(wrapped, f"u{dtype.itemsize}").view(dtype)
    for lanes in (0, None, 3):
        run = kernels.compile_map(
            lambda b, x, y: b.integer_power(x, y), [dtype, dtype], dtype, lanes
        )
        np.testing.assert_array_equal(run(x, y), expected)


def test_compiled_code_raises_what_the_reference_raises():
    @ndl.compile
    def divide(x, y):
        return x // y + x % y

    @ndl.compile
    def power(x, y):
        return x**y

    x, y = np.arange(-50, 50), np.full(100, 3)
    y[77] = -2
    np.testing.assert_array_equal(divide(ndl.asarray(x), ndl.asarray(y)).numpy(), x // y + x % y)
    with pytest.raises(ArgumentError, match="negative powers"):
        power(ndl.asarray(x), ndl.asarray(y))
    y[77] = 0
    np.testing.assert_array_equal(power(ndl.asarray(x), ndl.asarray(y)).numpy(), x**y)
    with pytest.raises(ArgumentError, match="divided by zero"):
        divide(ndl.asarray(x), ndl.asarray(y))
