"""dtypes of results: the array API's table, PyTorch where that is silent, Python numbers weak."""

import itertools

import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.errors import DTypeError
from needle.testing import assert_close

# Array API standard 2024.12, "Type promotion rules", without the mixed kinds it leaves open.
SIGNED = """
    int8  int16 int32 int64
    int16 int16 int32 int64
    int32 int32 int32 int64
    int64 int64 int64 int64
"""
MIXED = """
    int16 int32 int64
    int16 int32 int64
    int32 int32 int64
    int64 int64 int64
"""


def table(text, rows, columns):
    lines = [line.split() for line in text.strip().splitlines()]
    for row, line in zip(rows, lines, strict=True):
        for column, result in zip(columns, line, strict=True):
            yield row, column, result


INTS = ["int8", "int16", "int32", "int64"]
UINTS = ["uint8", "uint16", "uint32", "uint64"]
STANDARD = [
    *table(SIGNED, INTS, INTS),
    *((f"u{a}", f"u{b}", f"u{c}") for a, b, c in table(SIGNED, INTS, INTS)),
    *table(MIXED, INTS, UINTS[:3]),
    ("float32", "float32", "float32"),
    ("float32", "float64", "float64"),
    ("float64", "float64", "float64"),
    ("bool", "bool", "bool"),
]


@pytest.mark.parametrize(("a", "b", "result"), STANDARD)
def test_standard_table(a, b, result):
    x, y = ndl.ones(2, dtype=a), ndl.ones(2, dtype=b)
    for both in ((x, y), (y, x)):
        assert ndl.add(*both).dtype == result
        assert ndl.equal(*both).dtype == ndl.bool
        assert ndl.concat(list(both)).dtype == result
        assert ndl.where(ndl.asarray([True, False]), *both).dtype == result


@pytest.mark.parametrize("signed", INTS)
def test_no_integer_holds_uint64_and_negative_numbers(signed):
    with pytest.raises(DTypeError, match=f"no integer dtype holds both {signed} and uint64"):
        ndl.ones(1, dtype=signed) + ndl.ones(1, dtype="uint64")


WITH_PEER = ["bool", "uint8", *INTS, "float16", "bfloat16", "float32", "float64"]


@pytest.mark.peers
@pytest.mark.parametrize(
    ("a", "b"),
    list(itertools.combinations_with_replacement(WITH_PEER, 2)),
)
def test_agrees_with_pytorch(a, b, torch):
    expected = torch.promote_types(getattr(torch, a), getattr(torch, b))
    result = ndl.ones(1, dtype=a) + ndl.ones(1, dtype=b)
    assert f"torch.{result.dtype.name}" == str(expected)


@pytest.mark.parametrize("a", dtypes.ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("b", dtypes.ALL, ids=lambda d: d.name)
def test_promotion_is_symmetric_and_0_d_tensors_count_fully(a, b):
    try:
        expected = dtypes.promote(a, b)
    except DTypeError:
        with pytest.raises(DTypeError):
            dtypes.promote(b, a)
        return
    assert dtypes.promote(b, a) == expected
    # Unlike in PyTorch, a 0-d tensor is a tensor like any other (array API).
    assert (ndl.ones((), dtype=a) + ndl.ones(2, dtype=b)).dtype == expected


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=lambda d: d.name)
def test_python_numbers_are_weak(dtype):
    x = ndl.ones(2, dtype=dtype)
    is_float, is_bool = dtypes.is_float(dtype), dtype == ndl.bool
    for result in (x + 1.5, 1.5 + x, x + np.float64(1.5)):
        assert result.dtype == (dtype if is_float else ndl.float32)
    for result in (x + 1, 1 + x):
        assert result.dtype == (ndl.int64 if is_bool else dtype)
    for result in (x * True, True * x):
        assert result.dtype == dtype
    assert (x > 0.5).dtype == ndl.bool
    assert ndl.where(x > 0, x, 0).dtype == (ndl.int64 if is_bool else dtype)


def test_numpy_scalars_of_float64_are_weak_but_exact():
    """They are Python floats; rounding 0.1 to float32 on the way would spoil float64."""
    x = ndl.asarray(np.ones(2))
    assert_close(x * np.float64(0.1), np.full(2, 0.1), ulp=0)
    assert_close(np.float64(0.1) * x, np.full(2, 0.1), ulp=0)
    x += np.float64(0.1)
    assert_close(x, np.full(2, 1.1), ulp=0)
    assert (ndl.ones(2) * np.float64(0.1)).dtype == ndl.float32


def test_arrays_and_other_numpy_scalars_keep_their_dtype():
    x = ndl.ones(2)
    assert (x * np.ones(2)).dtype == ndl.float64
    assert (np.ones(2) * x).dtype == ndl.float64
    assert isinstance(np.ones(2) * x, ndl.Tensor)
    assert (ndl.arange(2) * np.float32(1)).dtype == ndl.float32
    assert (x * np.int64(2)).dtype == ndl.float32
    assert ndl.add(x, [1, 2]).dtype == ndl.float32


def test_numbers_that_do_not_fit():
    small = ndl.asarray([1, 200], dtype="uint8")
    for number in (300, -1, 2**70):
        with pytest.raises(DTypeError, match="does not fit into uint8"):
            small + number
        with pytest.raises(DTypeError, match="does not fit into uint8"):
            number * small
    with pytest.raises(DTypeError, match="does not fit into int64"):
        ndl.arange(2) + 2**63
    assert_close(small * 2, [2, 144])  # like NumPy: results wrap, numbers do not
    assert_close(ndl.ones(1) * 2**70, [2.0**70])
    assert np.isinf((ndl.ones(1, dtype="float16") + 1e6).numpy())
    assert np.isinf((ndl.ones(1) + 1e300).numpy())
    with pytest.raises(DTypeError, match="does not fit"):
        ndl.ones(1) * 2**2000


def test_integers_become_floats_where_they_must():
    n = ndl.arange(1, 3)
    for result in (n / 2, n.exp(), n.mean(), n**0.5, n.sigmoid()):
        assert result.dtype == ndl.float32
    assert (n // 2).dtype == ndl.int64
    assert n.sum().dtype == ndl.int64
    assert ndl.ones(3, dtype="int8").sum().dtype == ndl.int64
    assert ndl.ones(3, dtype="uint8").sum().dtype == ndl.uint64
    assert ndl.ones(3, dtype="bool").sum().dtype == ndl.int64
    assert ndl.ones(3, dtype="float16").sum().dtype == ndl.float16


def test_reductions_of_16_bit_floats_do_not_stall():
    """Added in float16, ones would stop at 2048; in bfloat16 at 256."""
    for dtype in ("float16", "bfloat16"):
        assert ndl.ones(4096, dtype=dtype).sum().item() == 4096
        assert ndl.ones(4096, dtype=dtype).mean().item() == 1
        assert (ndl.ones((1, 4096), dtype=dtype) @ ndl.ones((4096, 1), dtype=dtype)).item() == 4096


def test_names_of_dtypes():
    for name in dtypes.NAMES:
        assert dtypes.as_dtype(name) is getattr(ndl, name)
        assert dtypes.as_dtype(getattr(ndl, name)) is getattr(ndl, name)
    assert dtypes.as_dtype(float) == ndl.float32
    assert dtypes.as_dtype(int) == ndl.int64
    assert dtypes.as_dtype(bool) == ndl.bool
    assert dtypes.as_dtype(np.float64) == ndl.float64
    for wrong in ("complex64", "foo", None, object, "datetime64[s]", 3):
        with pytest.raises(DTypeError, match="is not a dtype of needle; it has bool, int8"):
            dtypes.as_dtype(wrong)
