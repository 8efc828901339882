"""Memory: layouts do not matter, inputs stay as they are, results are their own, runs repeat."""

import numpy as np
import pytest

import needle as ndl
from needle.ops.record import Op
from needle.testing import assert_close, cases_under_test

CASES = cases_under_test()
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def fortran(array):
    return np.asarray(array, order="F")


def every_second(array):
    """Return the same values, with gaps between all neighbours."""
    wide = np.zeros([2 * n for n in array.shape], dtype=array.dtype)
    view = wide[(..., *(slice(None, None, 2),) * array.ndim)]
    view[...] = array
    return view


def backwards(array):
    """Return the same values, stored from the last to the first."""
    turn = (..., *(slice(None, None, -1),) * array.ndim)
    return np.array(array[turn], order="C")[turn]


def read_only(array):
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def misaligned(array):
    buffer = np.zeros(array.nbytes + 1, dtype=np.uint8)
    view = buffer[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def as_tuple(outcome):
    return tuple(outcome) if isinstance(outcome, tuple | list) else (outcome,)


def recorded_call(case):
    """Return inputs (requiring gradients where they can) and results."""
    inputs = []

    def convert(array):
        inputs.append(ndl.Tensor(array.copy()))
        return inputs[-1]

    return as_tuple(case.call(convert)), inputs


@each_case
def test_layout_does_not_matter(case):
    expected = as_tuple(case.call())
    for layout in (fortran, every_second, backwards, read_only, misaligned):
        actual = as_tuple(case.call(lambda a, layout=layout: ndl.asarray(layout(a))))
        assert_close(actual, expected, check_dtype=True, label=layout.__name__)


@each_case
def test_inputs_are_left_alone(case):
    results, inputs = recorded_call(case)
    for result in results:
        if result.requires_grad:
            result.backward(retain_graph=True)
    before = []
    case.arguments(before.append)
    for x, array in zip(inputs, before, strict=True):
        np.testing.assert_array_equal(x.detach().numpy(), array)
        assert x._version[0] == 0


@each_case
def test_results_share_memory_only_where_that_is_tracked(case):
    """A view must count writes with its base, or a write would give wrong gradients."""
    results, inputs = recorded_call(case)
    for i, result in enumerate(results):
        for x in inputs:
            if result is not x and np.shares_memory(result._data, x._data):
                assert result._version is x._version
                if isinstance(case.entry, Op):
                    assert case.entry.may_alias
        for other in results[:i]:
            if np.shares_memory(result._data, other._data):
                assert result._version is other._version


@each_case
def test_gradients_do_not_share_memory(case):
    """Users may write to one gradient without changing another, or a value."""
    results, inputs = recorded_call(case)
    for result in results:
        if result.requires_grad:
            result.backward(retain_graph=True)
    grads = [x.grad._data for x in inputs if x.grad is not None]
    others = [x._data for x in inputs] + [r._data for r in results]
    for i, g in enumerate(grads):
        assert g.flags.writeable
        assert not any(np.shares_memory(g, o) for o in [*grads[:i], *others])


@each_case
def test_runs_repeat_to_the_bit(case):
    for a, b in zip(as_tuple(case.call()), as_tuple(case.call()), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
