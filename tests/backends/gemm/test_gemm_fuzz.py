"""Random products: shapes, layouts, dtypes, batches, thresholds, targets, sizes known or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st

from needle import dtypes
from needle.backends.cpu.gemm import GemmSpec, Matrix, plan

Array = Any

extents = st.one_of(st.integers(0, 5), st.integers(0, 40), st.integers(60, 140))


@st.composite
def operands(draw: st.DrawFn, rows: int, columns: int, batch: tuple[int, ...], dtype: Any) -> Array:
    """A matrix of small integers for each of the batch, in one of many layouts."""
    seed = draw(st.integers(0, 1000))
    axes = [1 if draw(st.booleans()) else n for n in batch]
    steps = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3)]))
    turned = draw(st.booleans())
    shape = (
        (columns * steps[1], rows * steps[0]) if turned else (rows * steps[0], columns * steps[1])
    )
    spare = draw(st.integers(0, 3))
    room = np.random.default_rng(seed).integers(-3, 4, (*axes, shape[0], shape[1] + spare))
    values = room.astype(dtype)[..., : shape[1]]
    values = values.swapaxes(-1, -2) if turned else values
    values = values[..., :: steps[0], :: steps[1]]
    return np.broadcast_to(values, (*batch, rows, columns))


def matrix(values: Array) -> Matrix:
    strides = [s // values.itemsize for s in values.strides]
    return Matrix(values.dtype, strides[-2], strides[-1], tuple(strides[:-2]))


def unknown(x: Matrix, draw: Callable[..., bool], keep_column: bool) -> tuple[Matrix, list[int]]:
    """Forget strides of a matrix; return what is left and the strides."""
    values = [x.row, x.column, *x.batch]
    column = None if not keep_column and draw(st.booleans()) else x.column
    row = None if column is None or draw(st.booleans()) else x.row
    return replace(x, row=row, column=column, batch=(None,) * len(x.batch)), values


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_products_of_integers_are_exact(
    data: st.DataObject, compile_product: Any, guards: Any
) -> None:
    """Sums of small integers are exact in every dtype and in every order."""
    draw = data.draw
    m, n, k = draw(extents), draw(extents), draw(extents)
    batch = draw(st.sampled_from([(), (), (3,), (2, 3)]))
    dtype = draw(st.sampled_from([dtypes.float32, dtypes.float32, dtypes.float64, dtypes.int32]))
    kinds = [dtypes.float32, dtypes.bfloat16] if dtype == dtypes.float32 else [dtype]
    a = draw(operands(m, k, batch, draw(st.sampled_from(kinds))))
    b = draw(operands(k, n, batch, draw(st.sampled_from(kinds))))
    c = np.full((*batch, m, n + 2), 77, dtype)
    into = c[..., :n]
    spec = GemmSpec(m, n, k, matrix(a), matrix(b), matrix(into), batch, dtype)
    spec = replace(spec, c=replace(spec.c, column=1))
    sizes = {"m": m, "n": n, "k": k} | {f"batch{i}": e for i, e in enumerate(batch)}
    if draw(st.booleans()):
        forgotten = {}
        for name in "abc":
            left, strides = unknown(getattr(spec, name), draw, keep_column=name == "c")
            forgotten[name] = left
            keys = ["row", "column", *(f"batch{i}" for i in range(len(batch)))]
            sizes |= {f"{name}_{key}": s for key, s in zip(keys, strides, strict=True)}
        known = {e: None for e in ("m", "n", "k") if draw(st.booleans())}
        spec = replace(spec, **forgotten, **known)
    threads = draw(st.integers(1, 5))
    limits = {
        "PACKED_FROM_ROWS": draw(st.sampled_from([0, 1000])),
        "LARGE": draw(st.sampled_from([0, 1 << 20])),
        "PACKED_FROM": draw(st.sampled_from([0, 1 << 20])),
        "SMALL_BLOCKS": draw(st.sampled_from([(50, 16, 32), (64, 64, 128)])),
        "K_WHOLE": draw(st.sampled_from([16, 64, 1000])),
        "PACKED_BYTES": draw(st.sampled_from([1 << 12, 1 << 20])),
        "ROW_BLOCK": draw(st.sampled_from([16, 192])),
        "APART": draw(st.sampled_from([0, 1024])),
        "PARALLEL_FROM": draw(st.sampled_from([0, 1 << 20])),
    }
    with mock.patch.multiple(plan, K_BLOCK=limits["K_WHOLE"], **limits):
        product = compile_product(spec, threads=threads)
        at_end = draw(st.booleans())
        room = guards.copy(c, at_end)
        given_ = {p: sizes[p] for p in product.kernel.parameters if p in sizes}
        product(
            guards.copy(a, at_end),
            guards.copy(b, at_end),
            room,
            sizes=sizes | given_,
            threads=threads,
        )
    want = a.astype(np.float64) @ b.astype(np.float64)
    np.testing.assert_array_equal(room[..., :n], want.astype(dtype))
    assert (room[..., n:] == 77).all()
