"""Epilogues that read large operands ask for them ahead, and compute the same."""

from __future__ import annotations

import numpy as np
import pytest

import needle as ndl


@pytest.mark.parametrize("columns", [64, 70, 256])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_residual(columns: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    rows = (1 << 20) // (2 * columns) + 17
    x, w, r = (
        ndl.asarray(rng.integers(-3, 4, shape).astype(np.float32)).astype(dtype)
        for shape in ((rows, 16), (16, columns), (rows, columns))
    )
    f = ndl.compile(lambda x, w, r: ndl.relu(x @ w + r))
    exact = x.astype("float32").numpy() @ w.astype("float32").numpy() + r.astype("float32").numpy()
    assert np.abs(exact).max() <= 256  # so that bfloat16 holds all sums
    np.testing.assert_array_equal(f(x, w, r).astype("float32").numpy(), np.maximum(exact, 0))
    assert "llvm.prefetch" in f.explain(x, w, r).llvm
