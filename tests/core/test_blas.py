"""The number of BLAS threads is as it was, whatever happens."""

from __future__ import annotations

import numpy as np
import pytest

import needle as ndl
from needle import blas


def test_small_products_run_on_one_thread_and_leave_the_setting_alone() -> None:
    threads = blas._threads()
    if threads is None:
        pytest.skip("NumPy has another BLAS here")
    before = threads.get()
    threads.set(2)
    try:
        assert blas.run_product(10, threads.get) == 1
        assert blas.run_product(blas.SMALL, threads.get) == 2
        with pytest.raises(ValueError, match="mismatch"):
            blas.run_product(10, np.matmul, np.ones((2, 3)), np.ones((2, 3)))
        assert threads.get() == 2
        ndl.ones((3, 4)) @ ndl.ones((4, 5))
        assert threads.get() == 2
    finally:
        threads.set(before)


def test_without_the_library_products_just_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_threads", lambda: None)
    assert (ndl.ones((2, 3)) @ ndl.ones((3, 2))).tolist() == [[3.0, 3.0], [3.0, 3.0]]
