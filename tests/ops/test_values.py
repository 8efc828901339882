"""Values: in each dtype against float64, shapes and dtypes against `infer` and the meta device."""

import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.errors import DeviceError
from needle.ops.engine import engine
from needle.ops.record import Kind, Op
from needle.shapes import Spec
from needle.testing import Case, assert_close, cases_under_test
from needle.testing.compare import epsilon_of

CASES = cases_under_test()
FLOATING = [case for case in CASES if case.floating_arrays()]
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def tensor(array, dtype=None):
    return ndl.Tensor(array.astype(dtype or array.dtype), requires_grad=False)


def as_tuple(outcome):
    return tuple(outcome) if isinstance(outcome, tuple | list) else (outcome,)


def largest_input(case: Case) -> float:
    sizes = [np.abs(a[np.isfinite(a)]).max(initial=0.0) for a in case.floating_arrays()]
    return max([1.0, *sizes])


@pytest.mark.parametrize("case", FLOATING, ids=str)
def test_each_dtype_agrees_with_float64(case):
    """The same values, rounded to a dtype, give what float64 gives, up to rounding."""
    is_elementary = isinstance(case.entry, Op) and case.entry.kind is Kind.ELEMENTWISE
    # Where terms cancel, the error is relative to them, not to the result.
    size = largest_input(case) if case.sample.is_smooth else 1.0
    for dtype in dtypes.FLOATS:

        def rounded(array, then, dtype=dtype):
            is_float = dtypes.is_float(array.dtype)
            return tensor(array.astype(dtype).astype(then)) if is_float else tensor(array)

        actual = as_tuple(case.call(lambda a, dtype=dtype: rounded(a, dtype)))
        expected = as_tuple(case.call(lambda a: rounded(a, np.float64)))
        steps = (4 if is_elementary else 16) * epsilon_of(dtype)
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            if e.dtype != ndl.float64:
                assert_close(a, e, check_dtype=True, label=dtype.name)
                continue
            if case.entry.name != "astype":
                assert a.dtype in (dtype, dtypes.accumulation_dtype(dtype))
            with np.errstate(over="ignore"):
                values = e.numpy().astype(a.dtype)
            assert_close(a, values, rtol=steps, atol=steps * size, label=dtype.name)


def int64_arrays(case):
    found = []
    case.arguments(lambda a: found.append(a) if a.dtype == np.int64 else None)
    return found


@pytest.mark.parametrize("case", [case for case in CASES if int64_arrays(case)], ids=str)
def test_each_integer_dtype_agrees_with_int64(case):
    """Narrower integers give the result of int64, modulo the size of the dtype."""
    expected = as_tuple(case.call())
    values = [*int64_arrays(case), *(np.asarray(n) for n in case.sample.args if type(n) is int)]
    for dtype in (np.int32, np.int8, np.uint8):
        limits = np.iinfo(dtype)
        if any(v.size and (v.min() < limits.min or v.max() > limits.max) for v in values):
            continue

        def narrow(array, dtype=dtype):
            return tensor(array, dtype if array.dtype == np.int64 else None)

        for a, e in zip(as_tuple(case.call(narrow)), expected, strict=True):
            if dtypes.is_integer(e.dtype):
                assert_close(a, e.numpy().astype(a.dtype), label=dtype.__name__)
            else:
                assert_close(a, e, check_dtype=True, label=dtype.__name__)


def without_values(call):
    """Return what ``call`` returns, or None if it says that this depends on values."""
    try:
        return call()
    except DeviceError as error:
        if "values" not in str(error):
            raise
        return None


@each_case
def test_infer_agrees_with_every_primitive_call(case, monkeypatch):
    calls = []
    apply = engine.apply

    def recording(op, inputs, attrs):
        result = apply(op, inputs, attrs)
        calls.append((op, inputs, attrs, result))
        return result

    monkeypatch.setattr(engine, "apply", recording)
    case.call()
    if isinstance(case.entry, Op):
        assert any(op is case.entry for op, *_ in calls)
    for op, inputs, attrs, result in calls:
        given = [Spec(t.shape, t.dtype) for t in inputs]
        specs = without_values(lambda op=op, given=given, attrs=attrs: op.infer(*given, **attrs))
        if specs is not None:
            expected = (specs,) if isinstance(specs, Spec) else tuple(specs)
            assert [(t.shape, t.dtype) for t in as_tuple(result)] == [
                (s.shape, s.dtype) for s in expected
            ], op.name


@each_case
def test_meta_device_gives_shape_and_dtype(case):
    """Without values; where the shape of the result depends on them, the error says so."""

    def meta(array):
        return tensor(array).to("meta")

    def floats_on_meta(array):
        return meta(array) if dtypes.is_float(array.dtype) else tensor(array)

    expected = [(t.shape, t.dtype) for t in as_tuple(case.call())]
    # Indices and masks may stay where they are.
    for convert in (meta, floats_on_meta):
        actual = without_values(lambda convert=convert: case.call(convert))
        if actual is not None:
            assert [(t.shape, t.dtype) for t in as_tuple(actual)] == expected
