"""The array API standard's functions of dtypes."""

from __future__ import annotations

import numpy as np
import pytest

import needle as ndl
from needle.errors import ArgumentError, DTypeError


def test_limits() -> None:
    assert ndl.finfo(ndl.float32).eps == np.finfo(np.float32).eps
    assert ndl.finfo(ndl.ones(1, dtype="float64")).max == np.finfo(np.float64).max
    assert float(ndl.finfo("bfloat16").eps) == 2.0**-7
    assert ndl.iinfo(ndl.uint16).max == 65535
    with pytest.raises(DTypeError, match="use iinfo"):
        ndl.finfo(ndl.int32)
    with pytest.raises(DTypeError, match="use finfo"):
        ndl.iinfo(ndl.float32)


def test_kinds() -> None:
    assert ndl.isdtype(ndl.uint8, "integral")
    assert not ndl.isdtype(ndl.uint8, "signed integer")
    assert ndl.isdtype(ndl.bfloat16, ("bool", "real floating"))
    assert not ndl.isdtype(ndl.bool, "numeric")
    assert ndl.isdtype(ndl.float32, ndl.float32)
    with pytest.raises(ArgumentError, match="no kind"):
        ndl.isdtype(ndl.float32, "float")


def test_promotion_is_that_of_the_ops() -> None:
    for a in ndl.dtypes.ALL:
        for b in ndl.dtypes.ALL:
            try:
                expected = (ndl.ones(1, dtype=a) * ndl.ones(1, dtype=b)).dtype
            except DTypeError:
                with pytest.raises(DTypeError):
                    ndl.result_type(a, b)
                continue
            assert ndl.result_type(a, b) == expected
            assert ndl.can_cast(a, b) == (expected == b)
    assert ndl.result_type(ndl.int8, 1.5) == ndl.float32
    with pytest.raises(ArgumentError, match="at least one"):
        ndl.result_type(1, 2)
