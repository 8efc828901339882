"""Gradients: of first and second order against finite differences; in each dtype."""

import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.testing import assert_close, cases_under_test, check_grads
from needle.testing.compare import epsilon_of

CASES = [case for case in cases_under_test() if case.floating_arrays()]
DIFFERENTIABLE = [c for c in CASES if c.entry.differentiable]
SMOOTH = [c for c in DIFFERENTIABLE if c.sample.is_smooth]


def floating(outcome):
    values = outcome if isinstance(outcome, tuple | list) else (outcome,)
    return [v for v in values if dtypes.is_float(v.dtype)]


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_finite_differences(case):
    function, points = case.as_function()
    check_grads(function, points, order=2)


@pytest.mark.nightly
@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_finite_differences_of_third_order(case):
    function, points = case.as_function()
    check_grads(function, points, order=3, rtol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if not c.entry.differentiable], ids=str)
def test_no_gradient_is_promised_where_there_is_none(case):
    function, points = case.as_function()
    for result in floating(function(*[ndl.Tensor(p) for p in points])):
        assert not result.requires_grad


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_gradients_in_each_dtype(case):
    """They have dtype and shape of their input, and the values that float64 gives."""
    for dtype in dtypes.FLOATS[:3]:
        _compare_with_float64(case, dtype)


def _compare_with_float64(case, dtype):
    function, points = case.as_function()

    def gradients(kind):
        inputs = [ndl.Tensor(p.astype(dtype).astype(kind)) for p in points]
        outputs = [o for o in floating(function(*inputs)) if o.requires_grad]
        if not outputs:
            return inputs, [None] * len(inputs)
        rng = np.random.default_rng(0)
        seeds = [ndl.asarray(rng.uniform(0.5, 1.5, o.shape).astype(dtype)) for o in outputs]
        seeds = [s.astype(o.dtype) for s, o in zip(seeds, outputs, strict=True)]
        return inputs, ndl.grad(outputs, inputs, seeds, allow_unused=True)

    inputs, actual = gradients(dtype)
    _, expected = gradients(np.float64)
    steps = 32 * float(epsilon_of(dtype))
    for x, a, e in zip(inputs, actual, expected, strict=True):
        assert (a is None) == (e is None)
        if a is None:
            continue
        assert (a.dtype, a.shape) == (dtype, x.shape)
        size = np.abs(e.numpy()).max(initial=1.0)
        assert_close(a, e.numpy().astype(dtype), rtol=steps, atol=steps * size)
