"""Ops that choose among elements need no rounding, and get none."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu.executable import build
from needle.graph import trace
from needle.ops.record import REGISTRY, Kind, Op

CHOOSING = [op for op in REGISTRY.values() if isinstance(op, Op) and op.chooses]


def test_there_are_such_ops() -> None:
    assert {"relu", "maximum", "where", "negative"} <= {op.name for op in CHOOSING}
    assert all(op.kind is Kind.ELEMENTWISE for op in CHOOSING)


@pytest.mark.parametrize("op", CHOOSING, ids=lambda op: op.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_all_values_are_those_of_the_reference(op: Op, dtype: str) -> None:
    if dtype == "float32":
        special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-40, 3.4e38, 1 / 3]
        values = np.array(special, np.float32)
    else:
        values = np.arange(1 << 16, dtype=np.uint16).view(np.dtype(ndl.dtypes.as_dtype(dtype)))
    names = list(inspect.signature(op.function).parameters)
    given = [
        np.arange(values.size) % 3 == 0 if name == "condition" else np.roll(values, 977 * i)
        for i, name in enumerate(names)
    ]
    graph = trace(op.function, *map(ndl.asarray, given)).graph
    (result,) = build(graph).run([np.ascontiguousarray(a) for a in given])
    with np.errstate(all="ignore"):
        expected = op.reference(*given)
        wide, wanted = result.astype(np.float64), expected.astype(np.float64)
    assert result.dtype == expected.dtype
    # All numbers are different floats, but for the sign of a zero, which is left open.
    np.testing.assert_array_equal(wide, wanted)


def test_nothing_is_rounded() -> None:
    x = ndl.zeros(64, dtype="bfloat16")
    text = ndl.compile(lambda x: ndl.relu(x)).explain(x).llvm
    assert "32767" not in text
    assert "32767" in ndl.compile(lambda x: x + x).explain(x).llvm
