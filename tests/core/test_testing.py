"""The checks themselves: they must fail where something is wrong."""

import numpy as np
import pytest

import needle as ndl
from needle.testing import assert_close, cases_under_test, check_grads, ops_under_test
from needle.testing.compare import spacing


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        ([1.0, 2.0, 4.0], [1.0, 2.5, 3.0], r"2 of 3 elements differ; the worst is \[2\]: got 4.0"),
        ([1.0, np.nan], [1.0, 1.0], r"the worst is \[1\]: got nan, expected 1.0"),
        ([1.0, 1.0], [1.0, np.nan], r"the worst is \[1\]: got 1.0, expected nan"),
        ([np.inf], [-np.inf], "got inf, expected -inf"),
        ([np.inf], [1e300], "got inf, expected 1e"),
        ([1.0], [np.inf], "got 1.0, expected inf"),
        ([[1.0]], [1.0], r"shape \[1, 1\], expected shape \[1\]"),
        ((1.0, 2.0), (1.0,), "2 values, expected 1"),
        ((1.0, 2.0), (1.0, 3.0), r"^\[1\]: 1 of 1 elements differ"),
    ],
)
def test_assert_close_finds_the_difference(actual, expected, message):
    def convert(value):
        return value if isinstance(value, tuple) else np.array(value)

    with pytest.raises(AssertionError, match=message):
        assert_close(convert(actual), convert(expected))


def test_assert_close_accepts_what_is_equal():
    special = np.array([np.nan, np.inf, -np.inf, 0.0])
    assert_close(ndl.asarray(special), special)
    assert_close(np.zeros((0, 3)), np.zeros((0, 3)))
    assert_close((ndl.ones(2), [ndl.arange(3)]), (np.ones(2), [np.arange(3)]))


def test_default_tolerance_is_that_of_the_coarser_dtype():
    x = np.array([1.0, 1.001])
    y = x.astype(ndl.bfloat16)
    assert_close(y, x)
    assert_close(x, y)
    with pytest.raises(AssertionError):
        assert_close(x.astype(np.float32), x + 1e-4)


def test_integers_must_be_equal():
    with pytest.raises(AssertionError, match=r"got 2, expected 3"):
        assert_close(np.array([1, 2]), np.array([1, 3]))
    assert_close(np.array([1, 2]), np.array([1, 3]), atol=1)
    with pytest.raises(AssertionError, match="dtype int64, expected int32"):
        assert_close(np.arange(2), np.arange(2, dtype=np.int32), check_dtype=True)


@pytest.mark.parametrize("dtype", [ndl.float16, ndl.bfloat16, ndl.float32, ndl.float64])
def test_spacing_is_the_distance_to_the_next_number(dtype):
    integer = {2: np.uint16, 4: np.uint32, 8: np.uint64}[dtype.itemsize]
    values = np.array([1.0, 1.5, 3.0, 100.0, 0.007], dtype=dtype)
    following = (values.view(integer) + 1).view(dtype)
    expected = following.astype(np.float64) - values.astype(np.float64)
    np.testing.assert_array_equal(spacing(values.astype(np.float64), dtype), expected)


def test_ulp_counts_steps_of_the_dtype():
    one = np.float32(1.0)
    third = np.array([one + 3 * np.finfo(np.float32).eps])
    assert_close(third, np.array([one]), ulp=3)
    with pytest.raises(AssertionError, match="allowed 2 ulp"):
        assert_close(third, np.array([one]), ulp=2)


class Wrong(ndl.Function):
    """x² with a gradient that is wrong for one element."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x * ndl.asarray(np.array([2.0, 2.0, 2.001]))


class WrongAgain(ndl.Function):
    """x³ with a right first gradient that cannot be differentiated again rightly."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 3 * x.detach() * x.detach()


def test_check_grads_finds_a_wrong_element():
    with pytest.raises(AssertionError, match=r"order 1 by input 0 \(shape \[3\]\)"):
        check_grads(Wrong.apply, [np.array([1.0, 2.0, 3.0])])


def test_check_grads_finds_a_wrong_second_order():
    x = np.array([1.0, 2.0])
    check_grads(WrongAgain.apply, [x], order=1)
    with pytest.raises(AssertionError, match="order 2 by input 0"):
        check_grads(WrongAgain.apply, [x])


def test_check_grads_finds_a_missing_dependence():
    with pytest.raises(AssertionError, match="order 1 by input 1"):
        check_grads(lambda x, y: x * y.detach(), [np.array([1.0]), np.array([2.0])])


def test_check_grads_to_third_order_with_constants():
    index = ndl.asarray([0, 1, 1])
    check_grads(
        lambda x, i, y: ((x * i.astype(x.dtype)).sin() * y, (x * y).exp()),
        [np.array([0.3, 0.5, 0.7]), index, np.array(0.4)],
        order=3,
    )


def test_check_grads_refuses_order_0():
    with pytest.raises(ndl.errors.ArgumentError, match="at least 1"):
        check_grads(lambda x: x, [np.ones(1)], order=0)


def test_cases_have_unique_ids_and_convert():
    cases = cases_under_test() + cases_under_test(bad=True)
    assert len({(case.id, case.sample.error) for case in cases}) == len(cases)
    add = next(entry for entry in ops_under_test() if entry.name == "add")
    case = cases_under_test([add])[0]
    args, kwargs = case.arguments(lambda array: array.shape)
    assert args == ((3, 4), (3, 4))
    assert kwargs == {}
    assert case.call().shape == (3, 4)
