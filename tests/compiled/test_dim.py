"""Extents that are declared to vary do not count for the budget, and are checked."""

from __future__ import annotations

import pytest

import needle as ndl
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError, TraceError


def test_any_extent_within_a_budget_of_one() -> None:
    n = ndl.Dim("batch", high=100)
    f = ndl.compile(lambda x, y: (x * y).sum(axis=1), dims={"x": n, "y": (n, None)}, budget=1)
    for extent in (1, 2, 7, 7, 100):
        assert f(ndl.ones((extent, 3)), ndl.ones((extent, 3))).tolist() == [3.0] * extent
    assert len(f.specializations) == 4
    with pytest.raises(TraceError, match="budget"):
        f(ndl.ones((2, 4)), ndl.ones((2, 4)))
    with pytest.raises(ShapeError, match="axis 0 of x has extent 101, but batch goes from 0 to"):
        f(ndl.ones((101, 3)), ndl.ones((101, 3)))
    with pytest.raises(ShapeError, match="axis 0 of y has extent 1, axis 0 of x has 5"):
        f(ndl.ones((5, 3)), ndl.ones((1, 3)))


def test_names_of_leaves() -> None:
    n = ndl.Dim("n")
    f = ndl.compile(lambda batch: batch[0] + batch[1], dims={"batch": n}, budget=1)
    for extent in (1, 2, 3):
        assert f([ndl.ones(extent), ndl.ones(extent)]).tolist() == [2.0] * extent
    g = ndl.compile(lambda x, y: x + y, dims={"y": (None, n)}, budget=1)
    for extent in (1, 2, 3):
        assert g(ndl.ones(()), ndl.ones((2, extent))).shape == (2, extent)
    with pytest.raises(ShapeError, match="dims declares 2 axes"):
        g(ndl.ones(()), ndl.ones(2))


def test_declarations_are_checked() -> None:
    with pytest.raises(ArgumentError, match="no extent lies between"):
        ndl.Dim("n", 3, 2)
    with pytest.raises(ArgumentTypeError, match="must hold Dim objects"):
        ndl.compile(lambda x: x, dims={"x": (4,)})  # type: ignore[dict-item]
