"""Every sample of every op, with its gradients, through the pipeline: the values stay."""

import numpy as np
import pytest
from compiler_tools import graph_of, interpret

import needle as ndl
from needle import dtypes, tree
from needle.compiler import pipeline
from needle.errors import NeedleError, TraceError
from needle.testing import assert_close, cases_under_test
from needle.testing.compare import epsilon_of

CASES = cases_under_test()


def function_of(case):
    """Return a function of the arrays of a case: its results, and gradients where it has some."""

    def function(*arrays):
        rest = iter(arrays)
        outcome = case.call(lambda a: next(rest))
        results = [t for t in tree.flatten(outcome)[0] if isinstance(t, ndl.Tensor)]
        smooth = [t for t in results if dtypes.is_float(t.dtype) and t.requires_grad]
        wanted = [t for t in arrays if isinstance(t, ndl.Tensor) and t.requires_grad]
        if not smooth or not wanted:
            return results
        # Cotangents that differ, so that sums of them show mistakes.
        total = sum(ndl.sum(ndl.sin(t.astype("float64"))) for t in smooth)
        found = ndl.grad(total, wanted, allow_unused=True)
        return results + [g for g in found if g is not None]

    return function


def arrays_of(case, dtype):
    found = []

    def collect(array):
        is_float = dtypes.is_float(array.dtype)
        found.append(ndl.Tensor(array.astype(dtype) if is_float else array, requires_grad=is_float))
        return found[-1]

    case.arguments(collect)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_pipeline_keeps_values(case):
    for dtype in (np.float32, dtypes.bfloat16):
        tensors = arrays_of(case, dtype)
        try:
            graph = graph_of(function_of(case), *tensors)
        except TraceError:
            return  # its shape or its course depends on values
        arrays = [t.detach().numpy() for t in tensors]
        try:
            expected = interpret(graph, *arrays)
        except NeedleError:
            continue  # values that the dtype does not have
        result = pipeline.run(graph)
        assert not any(node.op.decompose for node in result.nodes)
        step = 32 * epsilon_of(np.dtype(dtype))
        for a, e in zip(interpret(result, *arrays), expected, strict=True):
            size = np.abs(e[np.isfinite(e)].astype(np.float64)).max(initial=1.0)
            assert_close(a, e, check_dtype=True, rtol=step, atol=step * size)


def test_most_ops_can_be_traced():
    traced = {c.entry.name for c in CASES if can_be_traced(c)}
    assert {c.entry.name for c in CASES} - traced <= {"nonzero"}


def can_be_traced(case):
    try:
        graph_of(function_of(case), *arrays_of(case, np.float32))
    except TraceError:
        return False
    return True
