"""Products of arrays by the generated kernels: all ranks and layouts, the same bits for all."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.arrays import aligned
from needle.backends.cpu.matmul import matmul
from needle.ops.record import REGISTRY

Array = Any


def normal(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


OPERANDS = {
    "matrices": (normal(3, 4), normal(4, 5)),
    "transposed": (normal(4, 3).T, normal(5, 4).T),
    "steps": (normal(6, 8)[::2, ::2], normal(8, 9)[::2, ::3]),
    "backwards": (normal(3, 64)[::-1], normal(64, 30)[::-1, ::-1]),
    "batch by matrix": (normal(2, 3, 4), normal(4, 5)),
    "batches": (normal(2, 3, 4), normal(2, 4, 5)),
    "broadcast batches": (normal(2, 1, 3, 4), normal(3, 4, 2)),
    "matrix by batch": (normal(3, 4), normal(2, 4, 5)),
    "heads": (normal(2, 7, 3, 5).swapaxes(1, 2), normal(2, 7, 3, 5).transpose(0, 2, 3, 1)),
    "three axes": (normal(2, 5, 4, 3, 6).swapaxes(0, 2), normal(4, 5, 2, 6, 3)),
    "one value for all": (np.broadcast_to(normal(1), (3, 4)), np.broadcast_to(normal(1), (4, 2))),
    "vector": (normal(33, 17), normal(17, 1)),
    "vector in steps": (normal(33, 17), normal(34, 1)[::2]),
    "batch of vectors": (normal(5, 33, 17), normal(5, 17, 1)),
    "one row": (normal(1, 17), normal(17, 40)),
    "no rows": (normal(0, 4), normal(4, 5)),
    "nothing to sum": (normal(3, 0), normal(0, 5)),
    "empty batch": (normal(0, 3, 4), normal(4, 5)),
    "packed": (normal(200, 300), normal(300, 1400)),
    "packed both": (normal(300, 200).T, normal(1400, 300).T),
    "blocks of k": (normal(9, 3000), normal(3000, 20)),
    "field of a record": (
        np.zeros(3, [("x", "f4", (4,)), ("y", "i1")])["x"],
        normal(4, 5),
    ),
}


@pytest.mark.parametrize("name", OPERANDS)
@pytest.mark.parametrize("dtype", dtypes.FLOATS, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
def test_all_layouts(name: str, dtype: Any, threads: int) -> None:
    x, y = OPERANDS[name]
    if dtype != np.float32:
        x, y = (convert(z, dtype) for z in (x, y))
    before = ndl.get_num_threads()
    ndl.set_num_threads(threads)
    try:
        got = matmul(x, y)
    finally:
        ndl.set_num_threads(before)
    want = x.astype(np.float64) @ y.astype(np.float64)
    assert got is not None
    assert got.dtype == dtype
    assert got.shape == want.shape
    size = np.abs(x).astype(np.float64) @ np.abs(y).astype(np.float64)
    epsilon = {2: 2.0**-8, 4: 2.0**-22, 8: 2.0**-51}[dtype.itemsize]
    assert (np.abs(got.astype(np.float64) - want) <= 4 * epsilon * size).all()


def convert(values: Array, dtype: Any) -> Array:
    """The same values, as far as possible, in memory of the same layout."""
    base = values
    while isinstance(base.base, np.ndarray):
        base = base.base
    if base.dtype != np.float32:
        return np.ascontiguousarray(values).astype(dtype)
    scale = np.dtype(dtype).itemsize / 4
    start = values.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    strides = [int(s * scale) for s in values.strides]
    return np.ndarray(values.shape, dtype, base.astype(dtype).ravel(), int(start * scale), strides)


def test_what_it_leaves_to_the_reference() -> None:
    assert matmul(np.ones((2, 3), int), np.ones((3, 2), int)) is None
    assert matmul(np.ones((2, 3), "f4"), np.ones((3, 2), "f8")) is None
    assert matmul(np.ones((2, 3), "f4"), np.ones((4, 2), "f4")) is None


@pytest.mark.parametrize("columns", [1, 10, 64])
def test_a_row_has_the_same_bits_in_every_batch(columns: int) -> None:
    x, w = ndl.asarray(normal(64, 100)), ndl.asarray(normal(100, columns, seed=1))
    whole = (x @ w).numpy()
    for count in (1, 3, 17):
        np.testing.assert_array_equal((x[:count] @ w).numpy(), whole[:count])
    stacked = ndl.asarray(normal(64, 100).reshape(4, 16, 100)) @ w
    np.testing.assert_array_equal(stacked.numpy().reshape(64, columns), whole)


def test_compiled_code_has_the_same_bits() -> None:
    x, w = ndl.asarray(normal(33, 100)), ndl.asarray(normal(100, 50, seed=1))
    compiled = ndl.compile(lambda x, w: x @ w)
    np.testing.assert_array_equal(compiled(x, w).numpy(), (x @ w).numpy())


@pytest.mark.parametrize(
    "shape",
    [(64, 65, 161), (97, 512, 300), (130, 1024, 512), (70, 96, 2000), (5, 70, 300)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, 2])
def test_bits_do_not_depend_on_where_arrays_begin(
    shape: tuple[int, int, int], dtype: Any, threads: int
) -> None:
    """Whether B is packed depends on its address, in kernels of known and of unknown sizes."""
    m, n, k = shape
    before = ndl.get_num_threads()
    ndl.set_num_threads(threads)
    try:
        compiled = ndl.compile(lambda x, y: x @ y)
        x = placed(normal(m, k, dtype=dtype), 0)
        expected = matmul(x, placed(normal(k, n, seed=1, dtype=dtype), 0))
        for off in (0, 8, 16, 32, 56):
            y = placed(normal(k, n, seed=1, dtype=dtype), off)
            assert y.ctypes.data % 64 == off
            np.testing.assert_array_equal(matmul(x, y), expected)
            given = ndl.asarray(x), ndl.asarray(y)
            np.testing.assert_array_equal(compiled(*given).numpy(), expected)
    finally:
        ndl.set_num_threads(before)
    np.testing.assert_allclose(expected, x @ y, rtol=1e-3, atol=1e-3)


def test_matrices_of_a_batch_begin_anywhere() -> None:
    """The batch's stride is odd, so that each of its matrices begins elsewhere in a line."""
    x = normal(3, 80, 200)
    rows = placed(normal(3 * (200 * 96 + 1), seed=1), 0).reshape(3, -1)
    y = np.lib.stride_tricks.as_strided(rows, (3, 200, 96), (rows.strides[0], 96 * 4, 4))
    expected = np.stack([matmul(a, placed(b, 0)) for a, b in zip(x, y, strict=True)])
    np.testing.assert_array_equal(matmul(x, y), expected)


def placed(values: Array, off: int) -> Array:
    """Return a copy that begins ``off`` bytes beyond a cache line."""
    memory = aligned((values.nbytes + off,), dtypes.uint8)
    copy: Array = np.ndarray(values.shape, values.dtype, memory, off)
    copy[...] = values
    return copy


def test_threads_of_python_at_once() -> None:
    x, y = normal(300, 200).T, normal(1400, 300).T  # both are packed
    want = matmul(x, y)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: matmul(x, y), range(40)):
            np.testing.assert_array_equal(got, want)


def test_many_shapes_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module("needle.backends.cpu.matmul")
    monkeypatch.setattr(module, "MOST_CALLS", 5)
    for n in range(1, 20):
        np.testing.assert_allclose(
            matmul(normal(2, n), normal(n, 3)), normal(2, n) @ normal(n, 3), 1e-4, 1e-5
        )
        assert len(module._calls) <= 5


def test_eager_execution_multiplies_with_it() -> None:
    assert REGISTRY["matmul"].kernel is not None  # type: ignore[attr-defined]


def test_importing_needle_does_not_load_the_compiler() -> None:
    code = "import sys, needle; assert 'llvmlite' not in sys.modules; print('ok')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout == "ok\n", run.stderr
