"""Long reductions in parts: the same values, whatever their extents and wherever the axes are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu import build
from needle.compiler.passes.split_folds import LONG, split_folds
from needle.graph import trace, verify
from needle.graph.interpret import interpret

CASES: list[tuple[tuple[int, ...], Any]] = [
    ((100_000,), None),
    ((65_536,), 0),
    ((65_537,), 0),
    ((300, 400), None),
    ((3, 50_000), 1),
    ((50_000, 3), 0),
    ((2, 40_000, 3), 1),
    ((8, 5, 90, 90), (0, 2, 3)),
    ((40_000, 2, 2), (0, 2)),
    ((1_000_003,), None),
]


@pytest.mark.parametrize(("shape", "axis"), CASES, ids=str)
@pytest.mark.parametrize("keepdims", [False, True])
def test_values(shape: tuple[int, ...], axis: Any, keepdims: bool) -> None:
    x = np.random.default_rng(0).integers(-50, 50, shape).astype(np.float64)
    for name in ("sum", "max", "min"):
        graph = trace(lambda t, n=name: getattr(ndl, n)(t, axis=axis, keepdims=keepdims), x).graph
        split = split_folds(graph)
        verify(split)
        assert len(split.nodes) > len(graph.nodes)
        for node in split.nodes:
            if node.op.name == name:
                extents = [node.inputs[0].shape[a] for a in node.attrs["axes"]]
                assert np.prod(extents) < LONG
        (expected,) = interpret(graph, [x])
        # Whole numbers: every order gives the same sum.
        np.testing.assert_array_equal(interpret(split, [x])[0], expected)
        found = [build(graph, threads).run([x])[0] for threads in (1, 2, 4)]
        for result in found:
            np.testing.assert_array_equal(result, expected)


def test_long_sums_are_accurate() -> None:
    x = np.random.default_rng(0).uniform(0, 1, 3_000_000).astype(np.float32)
    total = ndl.compile(lambda t: t.sum())(ndl.asarray(x)).item()
    assert total == pytest.approx(x.astype(np.float64).sum(), rel=1e-6)
    half = ndl.asarray(x[:200_000]).astype("bfloat16")
    total = ndl.compile(lambda t: t.sum())(half).item()
    exact = half.astype("float64").sum().item()
    assert total == pytest.approx(exact, rel=2**-8)
