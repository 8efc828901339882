"""Products of all shapes and layouts: their bits, and that nothing else is read or written."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from needle import dtypes
from needle.backends.cpu.gemm import Epilogue, GemmSpec, Matrix, Place, emit_gemm, plan
from needle.backends.cpu.gemm.pair_instructions import multiplies_pairs
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.dtypes import DType

Array = Any


def chain(a: Array, b: Array, fused: bool = True) -> Array:
    """The oracle: for each element one chain over k, each step rounded to float32 once (fused) or
    twice. In float64 arithmetic that rounds to odd, so that rounding again is harmless."""
    c = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        product = np.float64(a[:, k : k + 1]) * np.float64(b[k : k + 1])  # exact
        if not fused:
            c += np.float32(product)
            continue
        total = product + c
        back = total - product
        error = (product - (total - back)) + (c - back)
        even = (total.view(np.int64) & 1) == 0
        odd = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
        c = np.where((error != 0) & even, odd, total).astype(np.float32)
    return c


def address(array: Array) -> int:
    return array.__array_interface__["data"][0]


def random(rng: Any, shape: tuple[int, ...], dtype: DType = dtypes.float32) -> Array:
    if dtypes.is_float(dtype):
        return rng.standard_normal(shape).astype(dtype)
    # Small enough for sums of products to fit: NumPy warns where they wrap.
    return rng.integers(0, 3, shape).astype(dtype)


def laid_out(values: Array, turned: bool, spare: int = 0) -> Array:
    """The same matrix, perhaps with columns contiguous, perhaps a part of a wider one."""
    rows = values.T if turned else values
    room = np.full((*rows.shape[:-1], rows.shape[-1] + spare), 77, values.dtype)
    room[..., : rows.shape[-1]] = rows
    part = room[..., : rows.shape[-1]]
    return part.T if turned else part


def matrix(values: Array) -> Matrix:
    """How ``values`` lies in memory."""
    strides = [s // values.itemsize for s in values.strides]
    return Matrix(values.dtype, strides[-2], strides[-1], tuple(strides[:-2]))


def spec_of(a: Array, b: Array, c: Array, **rest: Any) -> GemmSpec:
    dtype = np.promote_types(a.dtype, np.float32) if a.dtype.itemsize == 2 else a.dtype
    rest.setdefault("dtype", dtype)
    return GemmSpec(a.shape[-2], b.shape[-1], a.shape[-1], matrix(a), matrix(b), matrix(c), **rest)


#: Decisions for large products, taken for small ones.
SMALL_BLOCKS = {
    "PACKED_FROM_ROWS": 0,
    "LARGE": 0,
    "PACKED_FROM": 0,
    "K_WHOLE": 16,
    "K_BLOCK": 16,
    "PACKED_BYTES": 2 * 16 * 64 * 4,
    "ROW_BLOCK": 30,
    "APART": 0,
}

SHAPES = [
    (1, 1, 1),
    (5, 7, 9),
    (6, 64, 8),
    (13, 16, 3),
    (33, 10, 50),
    (3, 100, 17),
    (1, 200, 33),
    (29, 49, 31),
    (64, 130, 5),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_bits(
    shape: tuple[int, int, int], layout: str, compile_product: Any, target: Any, guards: Any
) -> None:
    m, n, k = shape
    rng = np.random.default_rng(m * n * k)
    a = laid_out(random(rng, (m, k)), layout[0] == "t", spare=2)
    b = laid_out(random(rng, (k, n)), layout[1] == "t", spare=3)
    c = np.empty((m, n + 1), np.float32)[:, :n]
    product = compile_product(spec_of(a, b, c))
    want = chain(a, b, target.fma)
    for at_end in (True, False):
        room = guards.copy(np.full((m, n + 1), 7, np.float32), at_end)
        product(guards.copy(a, at_end), guards.copy(b, at_end), room[:, :n])
        np.testing.assert_array_equal(room[:, :n], want)
        assert (room[:, n:] == 7).all()


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize(
    "dtype", [dtypes.float64, dtypes.int32, dtypes.int64, dtypes.uint8], ids=str
)
def test_dtypes(dtype: DType, layout: str, compile_product: Any, guards: Any) -> None:
    m, n, k = 13, 39, 21
    rng = np.random.default_rng(1)
    a = laid_out(random(rng, (m, k), dtype), layout[0] == "t")
    b = laid_out(random(rng, (k, n), dtype), layout[1] == "t")
    c = np.empty((m, n), dtype)
    product = compile_product(spec_of(a, b, c))
    got = product(guards.copy(a), guards.copy(b), guards.copy(c))
    if dtypes.is_float(dtype):
        np.testing.assert_allclose(got, a @ b, rtol=1e-13, atol=1e-13)
    else:
        np.testing.assert_array_equal(got, a @ b)


@pytest.mark.parametrize("dtype", [dtypes.float16, dtypes.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_16_bit_floats_are_converted_before(
    dtype: DType, layout: str, target: Any, compile_product: Any, guards: Any
) -> None:
    m, n, k = 13, 39, 21
    rng = np.random.default_rng(2)
    a = laid_out(random(rng, (m, k), dtype), layout[0] == "t")
    b = laid_out(random(rng, (k, n), dtype), layout[1] == "t")
    c = np.empty((m, n), np.float32)
    got = compile_product(spec_of(a, b, c))(guards.copy(a), guards.copy(b), guards.copy(c))
    want = chain(a.astype(np.float32), b.astype(np.float32), target.fma)
    if dtype == dtypes.bfloat16 and multiplies_pairs(target):  # in another order: test_pairs
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        return
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)], ids=str)
def test_extents_of_zero(shape: tuple[int, int, int], compile_product: Any, guards: Any) -> None:
    m, n, k = shape
    a, b, c = np.ones((m, k), "f"), np.ones((k, n), "f"), np.full((m, n), 7, "f")
    got = compile_product(spec_of(a, b, c))(*map(guards.copy, (a, b, c)))
    np.testing.assert_array_equal(got, np.zeros((m, n), "f"))


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_blocks_do_not_change_bits(
    layout: str, monkeypatch: pytest.MonkeyPatch, target: Any, compile_product: Any, guards: Any
) -> None:
    """k in blocks, B packed, rows in blocks: what is done for large products, on a small one."""
    for name, value in SMALL_BLOCKS.items():
        monkeypatch.setattr(plan, name, value)
    m, n, k = 100, 300, 130
    rng = np.random.default_rng(3)
    a = laid_out(random(rng, (m, k)), layout[0] == "t")
    b = laid_out(random(rng, (k, n)), layout[1] == "t")
    c = np.empty((m, n), np.float32)
    product = compile_product(spec_of(a, b, c), threads=4)
    assert product.kernel.tasks == 4
    assert product.kernel.plan.k_block == 16
    got = product(*map(guards.copy, (a, b, c)))
    np.testing.assert_array_equal(got, chain(a, b, target.fma))


@pytest.mark.parametrize("m", [1, 4, plan.FEW_ROWS, plan.FEW_ROWS + 1])
@pytest.mark.parametrize("layout", ["nn", "nt"])
@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64], ids=str)
def test_few_rows_have_the_bits_of_many(
    m: int,
    layout: str,
    dtype: DType,
    monkeypatch: pytest.MonkeyPatch,
    compile_product: Any,
    guards: Any,
) -> None:
    """B streams past few rows (in blocks of few k, or turned round in registers), and is blocked
    otherwise or packed for many."""
    monkeypatch.setattr(plan, "LARGE", 0)
    n, k = 75, 103
    rng = np.random.default_rng(m)
    a, b = random(rng, (60, k), dtype), laid_out(random(rng, (k, n), dtype), layout[1] == "t", 3)
    few, many = np.empty((m, n), dtype), np.empty((60, n), dtype)
    product = compile_product(spec_of(a[:m], b, few), threads=2)
    assert product.kernel.plan.turns_b == (layout == "nt" and m <= plan.FEW_ROWS)
    streams = layout == "nn" and m <= plan.FEW_ROWS
    assert (product.kernel.plan.k_block == plan.STREAMED_K) == streams
    for at_end in (True, False):
        got = product(*(guards.copy(x, at_end) for x in (a[:m].copy(), b, few)))
        want = compile_product(spec_of(a, b, many))(a, b, many)
        np.testing.assert_array_equal(got, want[:m])


def test_batches(compile_product: Any, guards: Any, target: Any) -> None:
    rng = np.random.default_rng(4)
    a = random(rng, (3, 1, 5, 9))
    b = random(rng, (3, 2, 9, 20))
    c = np.empty((3, 2, 5, 20), np.float32)
    shape = c.shape[:2]
    wide = [np.broadcast_to(x, (*shape, *x.shape[-2:])) for x in (a, b)]
    want = np.array(
        [[chain(wide[0][i, j], wide[1][i, j], target.fma) for j in (0, 1)] for i in range(3)]
    )
    product = compile_product(spec_of(*wide, c, batch=shape))
    np.testing.assert_array_equal(product(guards.copy(a), guards.copy(b), guards.copy(c)), want)


@pytest.mark.parametrize("dtype", [dtypes.float32, dtypes.float64, dtypes.int32], ids=str)
@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
@pytest.mark.parametrize("shape", [(1, 1), (17, 12), (5, 64), (7, 333), (3, 0)], ids=str)
def test_matrix_times_vector(
    shape: tuple[int, int], layout: str, dtype: DType, compile_product: Any, guards: Any
) -> None:
    m, k = shape
    rng = np.random.default_rng(m * k)
    a = laid_out(random(rng, (m, k), dtype), layout[0] == "t", spare=2)
    b = laid_out(random(rng, (k, 1), dtype), layout[1] == "t", spare=3)
    c = np.empty((m, 2), dtype)[:, :1]
    product = compile_product(spec_of(a, b, c))
    for at_end in (True, False):
        room = guards.copy(np.full((m, 2), 7, dtype), at_end)
        product(guards.copy(a, at_end), guards.copy(b, at_end), room[:, :1])
        tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == dtypes.float32 else {"rtol": 1e-12}
        np.testing.assert_allclose(room[:, :1], a @ b, **tolerance)
        assert (room[:, 1:] == 7).all()


class TestEpilogue:
    @pytest.mark.parametrize("instructions", [1, 100], ids=["inline", "in a loop"])
    @pytest.mark.parametrize("n", [1, 10, 64, 83])
    def test_bias_activation_and_a_second_result(
        self, instructions: int, n: int, compile_product: Any, target: Any, guards: Any
    ) -> None:
        m, k = 15, 12
        rng = np.random.default_rng(5)
        a, b, bias = random(rng, (m, k)), random(rng, (k, n)), random(rng, (n,))
        c, second = np.empty((m, n), "f"), np.empty((m, n), bool)

        def begin(f: Function) -> list[str]:
            return [
                f.value(f"load ptr, ptr {f.pointer('%extra', i, dtypes.int64)}") for i in (0, 1)
            ]

        def store(f: Function, x: Operand, at: Place, state: list[str]) -> None:
            x = f.add(x, f.load(state[0], at.column, dtypes.float32, at.lanes, at.mask))
            offset = f.add_index(f.mul_index(at.row, n), at.column)
            f.store(f.compare("ogt", x, f.like(0, x)), state[1], offset, at.mask)
            f.store(f.maximum(x, f.like(0, x)), "%c", offset, at.mask)

        epilogue = Epilogue(store, "bias relu", begin, instructions)
        product = compile_product(spec_of(a, b, c, epilogue=epilogue))
        bias, second = guards.copy(bias), guards.copy(second)
        extra = np.array([address(bias), address(second)])
        got = product(guards.copy(a), guards.copy(b), guards.copy(c), extra=extra)
        want = chain(a, b, target.fma) + bias
        if n == 1:  # summed in another order
            np.testing.assert_allclose(got, np.maximum(want, 0), atol=1e-5)
            return
        np.testing.assert_array_equal(got, np.maximum(want, 0))
        np.testing.assert_array_equal(second, want > 0)

    def test_update_runs_once_for_each_element(
        self, monkeypatch: pytest.MonkeyPatch, compile_product: Any, target: Any, guards: Any
    ) -> None:
        """W −= lr · Xᵀ·g, with k in blocks and several tasks."""
        monkeypatch.setattr(plan, "K_WHOLE", 8)
        monkeypatch.setattr(plan, "K_BLOCK", 8)
        monkeypatch.setattr(plan, "PARALLEL_FROM", 0)
        rng = np.random.default_rng(6)
        x, g, w = random(rng, (30, 40)), random(rng, (30, 50)), random(rng, (40, 50))

        def store(f: Function, x: Operand, at: Place, state: None) -> None:
            offset = f.add_index(f.mul_index(at.row, 50), at.column)
            old = f.load("%c", offset, dtypes.float32, at.lanes, at.mask)
            f.store(f.sub(old, f.mul(x, f.like(0.5, x))), "%c", offset, at.mask)

        product = compile_product(spec_of(x.T, g, w, epilogue=Epilogue(store, "update")), threads=2)
        assert product.kernel.tasks == 2
        got = product(guards.copy(x).T, guards.copy(g), guards.copy(w))
        np.testing.assert_array_equal(got, w - np.float32(0.5) * chain(x.T, g, target.fma))


def test_computed_operands(compile_product: Any, guards: Any, target: Any) -> None:
    """A² · (B + 1), never in memory."""
    m, n, k = 14, 37, 29
    rng = np.random.default_rng(7)
    a, b, c = random(rng, (m, k)), random(rng, (k, n)), np.empty((m, n), "f")

    def load_a(
        f: Function, batch: Index, i: Index, j: Index, lanes: int, mask: Operand | None
    ) -> Operand:
        x = f.load("%a", f.add_index(f.mul_index(i, k), j), dtypes.float32, lanes, mask)
        return f.mul(x, x)

    def load_b(
        f: Function, batch: Index, i: Index, j: Index, lanes: int, mask: Operand | None
    ) -> Operand:
        x = f.load("%b", f.add_index(f.mul_index(i, n), j), dtypes.float32, lanes, mask)
        return f.add(x, f.like(1, x))

    spec = spec_of(a, b, c)
    spec = replace(spec, a=replace(spec.a, load=load_a), b=replace(spec.b, load=load_b))
    got = compile_product(spec)(*map(guards.copy, (a, b, c)))
    np.testing.assert_array_equal(got, chain(a * a, b + np.float32(1), target.fma))


class TestInvariance:
    @pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
    @pytest.mark.parametrize(("n", "k"), [(10, 64), (1, 33), (130, 40)])
    def test_a_row_does_not_depend_on_the_others(
        self, n: int, k: int, layout: str, compile_product: Any
    ) -> None:
        rng = np.random.default_rng(8)
        a = random(rng, (64, k))
        b = laid_out(random(rng, (k, n)), layout[1] == "t")
        results = []
        for m in (1, 3, 17, 64):
            x = laid_out(a[:m], layout[0] == "t")
            c = np.empty((m, n), np.float32)
            results.append(compile_product(spec_of(x, b, c))(x, b, c))
        for result in results[:-1]:
            np.testing.assert_array_equal(result, results[-1][: len(result)])

    def test_nor_on_the_number_of_threads(
        self, monkeypatch: pytest.MonkeyPatch, compile_product: Any
    ) -> None:
        monkeypatch.setattr(plan, "PARALLEL_FROM", 0)
        rng = np.random.default_rng(9)
        a, b = random(rng, (50, 33)), random(rng, (33, 100))
        results = []
        for threads in (1, 2, 3, 4, 16):
            c = np.full((50, 100), np.nan, np.float32)
            product = compile_product(spec_of(a, b, c), threads=threads)
            assert product.kernel.tasks <= threads
            results.append(product(a, b, c))
        assert product.kernel.tasks > 4
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("layout", ["nn", "nt", "tn", "tt"])
def test_extents_at_run_time(
    layout: str, monkeypatch: pytest.MonkeyPatch, compile_product: Any, guards: Any, target: Any
) -> None:
    """One kernel for all shapes and layouts."""
    monkeypatch.setattr(plan, "PARALLEL_FROM", 100)
    unknown = Matrix(dtypes.float32, None, None, (None,))
    spec = GemmSpec(None, None, None, unknown, unknown, replace(unknown, column=1), (None,))
    product = compile_product(spec)
    rng = np.random.default_rng(10)
    for m, n, k in [*SHAPES, (17, 1, 12), (0, 5, 5), (5, 0, 5), (5, 5, 0)]:
        a = laid_out(random(rng, (m, k)), layout[0] == "t", spare=2)
        b = laid_out(random(rng, (k, n)), layout[1] == "t", spare=3)
        c = np.full((m, n), 7, np.float32)
        sizes = {"m": m, "n": n, "k": k, "batch0": 1}
        for name, x in (("a", a), ("b", b), ("c", c)):
            sizes |= {f"{name}_row": x.strides[0] // 4, f"{name}_column": x.strides[1] // 4}
            sizes |= {f"{name}_batch0": 0}
        for threads in (1, 3):
            got = product(*map(guards.copy, (a, b, c)), sizes=sizes, threads=threads)
            np.testing.assert_array_equal(got, chain(a, b, target.fma))


@pytest.mark.parametrize(
    "change",
    [{"c": Matrix(dtypes.float32, 1, 5)}, {"c": Matrix(dtypes.bfloat16, 5)}, {"batch": (3,)}],
)
def test_contradictions_are_refused(change: dict[str, Any]) -> None:
    x = Matrix(dtypes.float32, 5)
    with pytest.raises(ValueError, match=r"C that are contiguous|batch strides"):
        emit_gemm(Module(), replace(GemmSpec(5, 5, 5, x, x, x), **change))
