"""Every plan that a search may take for a product gives the bits of the model's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from needle import dtypes
from needle.backends.cpu.gemm import GemmSpec, Matrix, plan, uses_pairs
from needle.backends.cpu.target import Target, host
from needle.backends.cpu.tuning.candidates import MOST, candidates

Array = Any

extents = st.one_of(st.integers(1, 6), st.integers(1, 70), st.integers(120, 260))


def stored(rows: int, columns: int, turned: bool, dtype: Any, batch: tuple[int, ...]) -> Array:
    """Normal numbers in one of two orders: their sums differ in any other order."""
    shape = (columns, rows) if turned else (rows, columns)
    values = np.random.default_rng(rows).standard_normal((*batch, *shape)).astype(dtype)
    return values.swapaxes(-1, -2) if turned else values


def matrix(values: Array) -> Matrix:
    *batch, row, column = (s // values.itemsize for s in values.strides)
    return Matrix(values.dtype, row, column, tuple(batch))


@settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_every_candidate_gives_the_same_bits(
    data: st.DataObject, compile_product: Any, guards: Any, target: Target
) -> None:
    draw: Callable[..., Any] = data.draw
    m, n, k = draw(extents), draw(extents), draw(extents)
    batch = draw(st.sampled_from([(), (), (3,)]))
    dtype = draw(st.sampled_from([dtypes.float32, dtypes.float64, dtypes.bfloat16]))
    a = stored(m, k, draw(st.booleans()), dtype, batch)
    b = stored(k, n, draw(st.booleans()), dtype, batch)
    wide = dtypes.accumulation_dtype(dtype)
    c = np.full((*batch, m, n), 7, wide)
    spec = GemmSpec(m, n, k, matrix(a), matrix(b), matrix(c), batch, wide)
    spec = replace(spec, c=replace(spec.c, column=1))
    threads = draw(st.integers(1, 4))
    limits = {
        "PARALLEL_FROM": draw(st.sampled_from([0, 1 << 20])),
        "LARGE": draw(st.sampled_from([0, 1 << 20])),
        "PACKED_FROM": draw(st.sampled_from([0, 1 << 20])),
        "PACKED_FROM_ROWS": draw(st.sampled_from([0, 1000])),
        "K_WHOLE": draw(st.sampled_from([64, 1152])),
        "ROW_BLOCK": draw(st.sampled_from([16, 192])),
    }
    with mock.patch.multiple(plan, **limits):
        found = candidates(spec, target, threads)
    assert len(found) <= MOST
    assert len(set(found)) == len(found)
    first, second = guards.copy(a), guards.copy(b)
    results = [
        compile_product(spec, threads=threads, plan=p)(first, second, guards.copy(c)).tobytes()
        for p in found
    ]
    for number, result in enumerate(results):
        assert result == results[0], (number, found[number], found[0])


def test_there_is_a_choice_where_all_is_known() -> None:
    rows = Matrix(dtypes.float32, 256)
    spec = GemmSpec(256, 256, 256, rows, rows, rows)
    assert len(candidates(spec, host(), 1)) > 4
    assert len(candidates(replace(spec, m=None), host(), 1)) == 1
    assert len(candidates(replace(spec, k=0), host(), 1)) == 1
    low = Matrix(dtypes.bfloat16, 256)
    pairs = GemmSpec(256, 256, 256, low, low, rows)
    if uses_pairs(pairs, host()):
        assert len(candidates(pairs, host(), 2)) > 2


@pytest.mark.parametrize("room", [0, 1 << 16])
def test_a_candidate_takes_little_more_memory(room: int) -> None:
    rows = Matrix(dtypes.float32, 512)
    spec = GemmSpec(96, 512, 512, rows, rows, rows)
    model, *others = candidates(spec, host(), 2, room)
    lanes = host().lanes(dtypes.float32)
    assert others
    most = model.tasks * model.workspace_bytes(spec, lanes, 96) + room  # type: ignore[union-attr]
    assert all(p.tasks * p.workspace_bytes(spec, lanes, 96) <= most for p in others)  # type: ignore[union-attr]
