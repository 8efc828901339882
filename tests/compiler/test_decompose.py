"""Decompositions: what each computes is what the op's reference computes, in every dtype."""

import numpy as np
import pytest
from compiler_tools import graph_of, interpret, ops_of

import needle as ndl
from needle import dtypes
from needle.compiler.passes.decompose import decompose
from needle.errors import NeedleError, OutOfRangeError
from needle.ops.engine import engine
from needle.ops.record import REGISTRY, Kind, Op
from needle.testing import assert_close, cases_under_test
from needle.testing.compare import epsilon_of

COMPOUND = [e for e in REGISTRY.values() if isinstance(e, Op) and e.decompose is not None]
CASES = cases_under_test(COMPOUND)
#: Of bad values; what else is bad, `infer` refuses.
BAD_CASES = [c for c in cases_under_test(COMPOUND, bad=True) if c.sample.error is OutOfRangeError]


def calls_of(case, dtype):
    """Return the primitive calls of the op that the case makes, as arrays and attributes."""
    calls = []
    apply = engine.apply

    def recording(op, inputs, attrs):
        if op is case.entry:
            calls.append(([t.numpy() for t in inputs], attrs))
        return apply(op, inputs, attrs)

    def convert(array):
        is_float = dtypes.is_float(array.dtype)
        return ndl.Tensor(array.astype(dtype) if is_float else array.copy(), requires_grad=False)

    engine.apply = recording
    try:
        case.call(convert)
    except NeedleError:
        if case.sample.error is None:
            raise
    finally:
        engine.apply = apply
    return calls


def decomposed(op, arrays, attrs):
    graph = decompose(graph_of(lambda *ts: engine.apply(op, ts, attrs), *arrays))
    assert not any(node.op.decompose for node in graph.nodes), ops_of(graph)
    return interpret(graph, *arrays)


@pytest.mark.parametrize("dtype", dtypes.FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_decomposition_is_the_reference(case, dtype):
    calls = calls_of(case, dtype)
    assert calls
    for arrays, attrs in calls:
        with np.errstate(all="ignore"):
            outcome = case.entry.reference(*arrays, **attrs)
        expected = outcome if isinstance(outcome, tuple) else (outcome,)
        # Long sums in another order differ by more.
        step = (16 if case.entry.kind is Kind.CONTRACTION else 4) * epsilon_of(dtype)
        for a, e in zip(decomposed(case.entry, arrays, attrs), expected, strict=True):
            assert_close(a, e, check_dtype=True, rtol=step, atol=step)


@pytest.mark.parametrize("case", BAD_CASES, ids=str)
def test_bad_values_are_refused_by_decompositions_too(case):
    calls = calls_of(case, np.float32)
    assert calls
    for arrays, attrs in calls:
        with pytest.raises(case.sample.error, match=case.sample.match):
            decomposed(case.entry, arrays, attrs)


def test_there_are_bad_values():
    assert {c.entry.name for c in BAD_CASES} >= {
        "label_cross_entropy",
        "select_labels",
        "place_labels",
        "one_hot",
        "last_at",
    }
