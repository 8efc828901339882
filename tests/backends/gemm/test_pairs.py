"""Products of bfloat16 by pairs: values, layouts, tails, blocks, invariances, both instructions."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from needle import dtypes
from needle.backends.cpu.gemm import Epilogue, GemmSpec, Matrix, Place, emit_gemm, pairs
from needle.backends.cpu.gemm.pair_instructions import has_tiles, multiplies_pairs
from needle.backends.cpu.jit import load
from needle.backends.cpu.llvm import Function, Operand
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import Target, host
from needle.dtypes import DType

Array = Any
BF16, F32 = dtypes.bfloat16, dtypes.float32

HOST = host()
TARGETS = {}
if has_tiles(HOST):
    TARGETS["tiles"] = HOST
if HOST.has("avx512bf16"):
    rest = [f for f in HOST.features.split(",") if "amx" not in f]
    TARGETS["vectors"] = replace(HOST, features=",".join(rest))

pytestmark = pytest.mark.skipif(not TARGETS, reason="no instructions for pairs of bfloat16")


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Target:
    return TARGETS[request.param]


_kernels: dict[Any, Any] = {}


@pytest.fixture
def multiply(compile_product: Any, guards: Any, target: Target) -> Callable[..., Array]:
    """A·B by one kernel of run-time sizes for each pair of dtypes."""

    def run(a: Array, b: Array, c_dtype: DType = F32, threads: int = 1) -> Array:
        key = (target, a.dtype, b.dtype, c_dtype)
        product = _kernels.get(key)
        if product is None:
            given = [Matrix(x.dtype, None, None) for x in (a, b)]
            into = Matrix(c_dtype, None, 1)
            spec = GemmSpec(None, None, None, *given, into, factors=BF16)
            product = _kernels[key] = compile_product(spec, target=target)
        (m, k), n = a.shape, b.shape[1]
        sizes = {"m": m, "n": n, "k": k, "c_row": n}
        for name, x in (("a", a), ("b", b)):
            steps = [s // x.itemsize for s in x.strides]
            sizes |= {f"{name}_row": steps[0], f"{name}_column": steps[1]}
        c = guards.copy(np.full((m, n), 7, c_dtype))
        return product(guards.copy(a), guards.copy(b), c, sizes=sizes, threads=threads)

    return run


def random(*shape: int, dtype: DType = BF16, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32).astype(dtype)


def laid_out(x: Array, layout: str) -> Array:
    """The same values, row by row, column by column, or with gaps between neighbours."""
    if layout == "columns":
        return np.ascontiguousarray(x.T).T
    if layout == "gaps":
        room = np.full((x.shape[0], 2 * x.shape[1]), np.nan, x.dtype)
        room[:, ::2] = x
        return room[:, ::2]
    return x


def assert_near(got: Array, a: Array, b: Array) -> None:
    """What rounds each addition in float32 is off by less than this, in whatever order."""
    a, b = (x.astype(BF16).astype(np.float64) for x in (a, b))
    bound = (a.shape[1] + 2) * 2.0**-24 * (np.abs(a) @ np.abs(b))
    exact = a @ b
    if got.dtype == BF16:
        bound = bound * 1.01 + np.abs(exact) * 2.0**-8
    assert (np.abs(got.astype(np.float64) - exact) <= bound).all()


EXTENTS = (1, 3, 17, 31, 33, 100)
LAYOUTS = ("rows", "columns", "gaps")


@pytest.mark.parametrize("layouts", list(itertools.product(LAYOUTS, repeat=2)))
@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_values(layouts: tuple[str, str], dtype: DType, multiply: Any) -> None:
    rng = np.random.default_rng(1)
    for shape in [*((e, e, e) for e in EXTENTS), *rng.choice(EXTENTS, (8, 3)), (64, 96, 64)]:
        m, n, k = map(int, shape)
        a = laid_out(random(m, k, dtype=dtype), layouts[0])
        b = laid_out(random(k, n, dtype=dtype, seed=2), layouts[1])
        for result in (F32, BF16):
            assert_near(multiply(a, b, result), a, b)


def test_long_sums_in_blocks(multiply: Any) -> None:
    a, b = random(5, 2 * pairs.K_BLOCK + 33), random(2 * pairs.K_BLOCK + 33, 37, seed=3)
    assert_near(multiply(a, b), a, b)


@pytest.mark.parametrize("layout", ["nn", "tn", "nt"])
def test_blocks_and_tasks_change_no_bit(
    layout: str, monkeypatch: pytest.MonkeyPatch, compile_product: Any, guards: Any, target: Target
) -> None:
    m, n, k = 133, 150, 200
    a = laid_out(random(m, k), "columns" if layout[0] == "t" else "rows")
    b = laid_out(random(k, n, seed=4), "columns" if layout[1] == "t" else "rows")

    def run(threads: int) -> Array:
        given = [Matrix(BF16, *(s // 2 for s in x.strides)) for x in (a, b)]
        spec = GemmSpec(m, n, k, *given, Matrix(F32, n, 1))
        product = compile_product(spec, threads=threads, target=target)
        assert product.kernel.tasks == threads
        return product(guards.copy(a), guards.copy(b), guards.copy(np.empty((m, n), F32)))

    whole = run(1)
    assert_near(whole, a, b)
    monkeypatch.setattr(pairs, "K_BLOCK", 64)
    monkeypatch.setattr(pairs, "B_BYTES", 2 * 64 * 64)
    monkeypatch.setattr(pairs, "A_BYTES", 3 * 64 * 64)
    monkeypatch.setattr(pairs, "PARALLEL_FROM", 0)
    for threads in (1, 2, 4):
        np.testing.assert_array_equal(run(threads), whole)


def test_rows_and_columns_do_not_depend_on_their_neighbours(multiply: Any) -> None:
    a, b = random(100, 77), random(77, 90, seed=5)
    whole = multiply(a, b)
    for start, stop in ((0, 1), (5, 8), (30, 47), (0, 64)):
        np.testing.assert_array_equal(multiply(a[start:stop], b), whole[start:stop])
        part = multiply(a, np.ascontiguousarray(b[:, start:stop]))
        np.testing.assert_array_equal(part, whole[:, start:stop])
    turned = laid_out(a, "columns"), laid_out(b, "columns")
    np.testing.assert_array_equal(multiply(*turned), whole)


def test_float32_is_rounded_as_conversions_round(multiply: Any) -> None:
    """Ties, overflow, subnormal numbers that round up to a normal one."""
    values = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, -3.4e38, 1e-45, 2.0**-126]
    a = np.array([values], F32).T
    got = multiply(a, np.ones((1, 1), F32))
    want = a.astype(BF16).astype(F32)
    np.testing.assert_array_equal(got[:5], want[:5])
    np.testing.assert_array_equal(got[5:, 0], [0, 2.0**-126])


def test_subnormal_numbers_count_as_zero(multiply: Any) -> None:
    small = np.full((2, 2), 1e-39, F32).astype(BF16)
    assert (multiply(small, np.full((2, 2), 1e30, BF16)) == 0).all()
    # And so do sums that small.
    assert (multiply(np.full((2, 2), 1e-20, BF16), np.full((2, 2), 1e-20, BF16)) == 0).all()


@pytest.mark.parametrize("special", [np.nan, np.inf], ids=str)
def test_special_values_stay_in_their_row_and_column(special: float, multiply: Any) -> None:
    for k in (7, 32, 45):
        a, b = np.ones((40, k), BF16), np.ones((k, 50), BF16)
        a[33, k - 1] = special
        b[0, 47] = special
        got = multiply(a, b)
        want = np.full((40, 50), k, F32)
        want[33], want[:, 47] = special, special
        np.testing.assert_array_equal(got, want)


def test_epilogue_runs_once_for_each_element(
    compile_product: Any, guards: Any, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "K_BLOCK", 32)
    m, n, k = 45, 39, 70
    a, b, w = random(m, k), random(k, n, seed=6), random(m, n, dtype=F32, seed=7)

    def store(f: Function, x: Operand, at: Place, state: None) -> None:
        offset = f.add_index(f.mul_index(at.row, n), at.column)
        f.store(f.add(f.load("%c", offset, F32, at.lanes, at.mask), x), "%c", offset, at.mask)

    spec = GemmSpec(m, n, k, Matrix(BF16, k), Matrix(BF16, n), Matrix(F32, n))
    plain = compile_product(spec, target=target)
    sums = plain(guards.copy(a), guards.copy(b), guards.copy(w))
    added = compile_product(replace(spec, epilogue=Epilogue(store, "add")), target=target)
    got = added(guards.copy(a), guards.copy(b), guards.copy(w))
    np.testing.assert_array_equal(got, w + sums)


def test_batches(compile_product: Any, guards: Any, target: Target) -> None:
    a, b = random(3, 2, 20, 40), random(1, 2, 40, 18, seed=8)
    b = np.broadcast_to(b, (3, 2, 40, 18))
    c = np.empty((3, 2, 20, 18), BF16)
    given = [
        Matrix(BF16, x.strides[2] // 2, x.strides[3] // 2, tuple(s // 2 for s in x.strides[:2]))
        for x in (a, b, c)
    ]
    spec = GemmSpec(20, 18, 40, *given, (3, 2))
    got = compile_product(spec, target=target)(guards.copy(a), guards.copy(b), guards.copy(c))
    for i, j in itertools.product(range(3), range(2)):
        assert_near(got[i, j], a[i, j], b[i, j])


def test_rounding_of_factors_needs_the_instructions() -> None:
    from needle.backends.cpu.target import AVX2

    spec = GemmSpec(4, 4, 4, *[Matrix(F32, 4)] * 3, factors=BF16)
    assert not multiplies_pairs(AVX2)
    with pytest.raises(ValueError, match="factors are rounded"):
        emit_gemm(Module(AVX2), spec)


def test_both_instructions_agree_within_rounding() -> None:
    """Not bit for bit: they add up in different orders."""
    if len(TARGETS) < 2:
        pytest.skip("only one of the instructions")
    a, b = random(9, 300), random(300, 11, seed=9)
    found = []
    for target in TARGETS.values():
        spec = GemmSpec(9, 11, 300, Matrix(BF16, 300), Matrix(BF16, 11), Matrix(F32, 11))
        module = Module(target)
        kernel = emit_gemm(module, spec, internal=False)
        run = load(module, target).function(kernel.name, *[ctypes.c_void_p] * 6, ctypes.c_int64)
        c, room = np.empty((9, 11), F32), np.empty(kernel.workspace + 64, np.uint8)
        run(a.ctypes.data, b.ctypes.data, c.ctypes.data, 0, room.ctypes.data, 0, 0)
        found.append(c)
        assert_near(c, a, b)
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


DENIED = """
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
# Refuse arch_prctl's request for components of the processor's state: EPERM.
steps = [(0x20, 0, 0, 0), (0x15, 0, 3, 158), (0x20, 0, 0, 16), (0x15, 0, 1, 0x1023),
         (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
code = b"".join(struct.pack("HBBI", *s) for s in steps)
room = ctypes.create_string_buffer(code)
program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(room))
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    raise SystemExit(3)
import numpy as np, needle as ndl
from needle.backends.cpu.target import host
assert "amx" not in host().features
x = ndl.asarray(np.arange(12.0, dtype="f").reshape(3, 4)).astype("bfloat16")
for run in (lambda x: x @ x.T, ndl.compile(lambda x: x @ x.T)):
    assert run(x).astype("float32").tolist() == [[14, 38, 62], [38, 126, 214], [62, 214, 366]]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_without_the_systems_permission_there_are_no_tiles() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DENIED], capture_output=True, text=True, timeout=120
    )
    if done.returncode == 3:
        pytest.skip("this process may not filter system calls")
    assert done.returncode == 0, done.stderr
