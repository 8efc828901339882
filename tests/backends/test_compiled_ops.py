"""Every sample of every op, as native code, with its gradients, against the references.

In CI each sample runs in float32 and in one of the other dtypes; nightly, in all of them.
"""

import contextlib
import itertools
import zlib

import numpy as np
import pytest

import needle as ndl
from needle import dtypes, tree
from needle.backends import cpu
from needle.compiler import pipeline
from needle.errors import DTypeError, NeedleError, TraceError
from needle.graph import interpret, trace
from needle.ops import fold
from needle.ops.ordered import Sort
from needle.ops.record import Kind, Op
from needle.testing import assert_close, cases_under_test
from needle.testing.compare import epsilon_of

CASES = cases_under_test()
BAD = cases_under_test(bad=True)
NAMES = list(dict.fromkeys(case.entry.name for case in CASES))
FLOATS = (np.dtype(np.float64), dtypes.bfloat16, np.dtype(np.float16))
INTEGERS = tuple(map(np.dtype, (np.int32, np.uint8, np.int8, np.int16, np.uint64)))
each_op = pytest.mark.parametrize("name", NAMES)


def cases_of(name):
    return [case for case in CASES if case.entry.name == name]


def tensors_of(case, real=np.float32, integer=np.int64):
    """Return the arrays of a sample as tensors, floats and int64 in other dtypes."""
    found = []

    def collect(array):
        is_real = dtypes.is_float(array.dtype)
        dtype = real if is_real else integer if array.dtype == np.int64 else array.dtype
        found.append(ndl.Tensor(array.astype(dtype), requires_grad=is_real))
        return found[-1]

    case.arguments(collect)
    return found


def function_of(case):
    """Return a function of a sample's arrays: its results, and their gradients where it has some.

    The cotangents are weights that differ, so that mistakes do not cancel.
    """

    def function(*arrays):
        rest = iter(arrays)
        outcome = case.call(lambda a: next(rest))
        results = [t for t in tree.flatten(outcome)[0] if isinstance(t, ndl.Tensor)]
        smooth = [t for t in results if dtypes.is_float(t.dtype) and t.requires_grad]
        wanted = [t for t in arrays if t.requires_grad]
        if not smooth or not wanted:
            return results
        rng = np.random.default_rng(3)
        total = sum(ndl.sum(t.astype("float64") * rng.uniform(0.5, 1.5, t.shape)) for t in smooth)
        found = ndl.grad(total, wanted, allow_unused=True)
        return results + [g for g in found if g is not None]

    return function


def call_of(case):
    """Return the call of a sample as a function of its arrays."""

    def function(*arrays):
        rest = iter(arrays)
        return case.call(lambda a: next(rest))

    return function


def is_exact(entry):
    """Whether the results of an op are elements of its inputs, or their places."""
    if not isinstance(entry, Op):
        return False
    moves = entry.kind in (Kind.MOVEMENT, Kind.INDEXING) and callable(entry.lower)
    return moves or entry.lower in (fold.MAX, fold.MIN) or isinstance(entry.lower, Sort)


def compiled(graph, arrays, threads=2):
    """Return what native code makes of arrays."""
    return cpu.build(graph, threads).run([np.array(a, order="C") for a in arrays])


def check(case, tensors):
    """Raise unless compiled code gives what the references give; False if it cannot be traced."""
    try:
        traced = trace(function_of(case), *tensors)
    except TraceError:
        return False  # its shape or its course depends on values
    arrays = traced.arrays(*tensors)
    try:
        expected = interpret(traced.graph, arrays)
    except NeedleError:
        return True  # values that the dtype does not have
    actual = compiled(pipeline.run(traced.graph), arrays)
    reals = [t.dtype for t in tensors if t.requires_grad]
    step = 16 * max(map(epsilon_of, reals), default=epsilon_of(np.dtype(np.float32)))
    exact = is_exact(case.entry) and len(tree.flatten(case.call())[0])
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        label = f"{case.id}, {reals[0] if reals else ''} output {i}"
        if i < exact or not dtypes.is_float(e.dtype):
            assert_close(a, e, check_dtype=True, rtol=0, atol=0, label=label)
            continue
        size = np.abs(e[np.isfinite(e)].astype(np.float64)).max(initial=1.0)
        assert_close(a, e, check_dtype=True, rtol=step, atol=step * size, label=label)
    return True


#: Ops that no compiled function may have: how many elements the result has depends on values.
UNTRACED = frozenset({"nonzero"})


def one_of(case, choices):
    return choices[zlib.crc32(case.id.encode()) % len(choices)]


def has_int64(case):
    found = []
    case.arguments(lambda a: found.append(a.dtype == np.int64))
    return any(found)


@each_op
def test_each_result_alone(name):
    """An op of several results is asked for one of them, and has no place for the others."""
    for case in cases_of(name):
        tensors = tensors_of(case)
        try:
            traced = trace(function_of(case), *tensors)
        except TraceError:
            continue
        if all(len(node.results) < 2 for node in traced.graph.nodes):
            continue
        arrays = traced.arrays(*tensors)
        together = compiled(pipeline.run(traced.graph), arrays)
        for i, expected in enumerate(together):
            alone = trace(lambda *given, i=i: function_of(case)(*given)[i], *tensors)  # noqa: B023
            (actual,) = compiled(pipeline.run(alone.graph), alone.arrays(*tensors))
            assert_close(actual, expected, check_dtype=True, label=f"{case.id} output {i}")
        break


@each_op
def test_float32(name):
    """Every op has code, or says so when it is traced."""
    traced = [check(case, tensors_of(case)) for case in cases_of(name)]
    assert any(traced) is (name not in UNTRACED)


@each_op
def test_another_dtype(name):
    for case in cases_of(name):
        if case.floating_arrays():
            check(case, tensors_of(case, one_of(case, FLOATS)))
        elif has_int64(case):
            check(case, tensors_of(case, integer=one_of(case, INTEGERS)))


@pytest.mark.nightly
@each_op
def test_all_dtypes(name):
    for case, real in itertools.product(cases_of(name), FLOATS):
        if case.floating_arrays():
            check(case, tensors_of(case, real))
    for case, integer in itertools.product(cases_of(name), INTEGERS):
        if has_int64(case):
            with contextlib.suppress(DTypeError):  # a number of the sample's does not fit
                check(case, tensors_of(case, integer=integer))


@pytest.mark.parametrize("case", BAD, ids=str)
def test_values_that_are_refused_are_refused_after_the_call(case):
    """The same error as in eager execution, message and all, where tracing finds nothing wrong."""
    try:
        traced = trace(call_of(case), *tensors_of(case))
    except NeedleError:
        return
    arrays = traced.arrays(*tensors_of(case))
    with pytest.raises(case.sample.error) as eager:
        case.call()
    with pytest.raises(case.sample.error, match=case.sample.match) as native:
        compiled(pipeline.run(traced.graph), arrays)
    assert native.value.message.startswith(eager.value.message)  # the user's line follows


def test_some_values_are_refused():
    """The test above finds something to test."""

    def is_traced(case):
        try:
            trace(call_of(case), *tensors_of(case))
        except NeedleError:
            return False
        return True

    names = {case.entry.name for case in BAD if is_traced(case)}
    assert names >= {"take_at", "untake_at", "update_at", "take_along_axis", "select_labels"}
