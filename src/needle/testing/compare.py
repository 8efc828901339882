"""Comparing values: tolerances by dtype, and a message that shows the worst element."""

from __future__ import annotations

from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from needle import dtypes
from needle.dtypes import DType
from needle.ops.samples import Array
from needle.tensor import Tensor


class Tolerance(NamedTuple):
    """How far values may be apart: ``|actual − expected| ≤ atol + rtol · |expected|``."""

    rtol: float
    atol: float


_TOLERANCES = {
    dtypes.float16: Tolerance(4e-3, 1e-3),
    dtypes.bfloat16: Tolerance(3e-2, 1e-2),
    dtypes.float32: Tolerance(1e-5, 1e-6),
    dtypes.float64: Tolerance(1e-10, 1e-12),
}


def tolerance_of(dtype: DType) -> Tolerance:
    """Return the default tolerance for values computed in ``dtype``; integers must be equal.

    Example:
        >>> from needle.testing import tolerance_of
        >>> tolerance_of(ndl.float32), tolerance_of(ndl.int64)
        (Tolerance(rtol=1e-05, atol=1e-06), Tolerance(rtol=0.0, atol=0.0))
    """
    return _TOLERANCES.get(dtype, Tolerance(0.0, 0.0))


def assert_close(
    actual: Any,
    expected: Any,
    *,
    rtol: float | None = None,
    atol: float | None = None,
    ulp: float | None = None,
    check_dtype: bool = False,
    label: str = "",
) -> None:
    """Raise unless values are equal within a tolerance.

    NaN must stand where NaN is expected, and infinities must be equal.

    Args:
        actual: a tensor, an array, a number, or a tuple or list of them.
        expected: what it should be, of the same structure and shapes.
        rtol: allowed difference, relative to the expected value. By default, for ``rtol`` and
            ``atol`` both, what fits the coarser of the two dtypes, see `tolerance_of`; 0 if only
            ``atol`` is given.
        atol: allowed absolute difference; 0 if only ``rtol`` is given.
        ulp: instead of the two: allowed difference in units in the last place of the expected value
            in the dtype of ``actual``.
        check_dtype: whether the dtypes must be the same, too.
        label: what the message calls the value.

    Raises:
        AssertionError: the values differ; the message names the worst element.

    Example:
        >>> from needle.testing import assert_close
        >>> assert_close(ndl.asarray([1.0, 2.0]), [1.0, 2.0000001])
        >>> assert_close(ndl.asarray([1.0, 2.0]), [1.0, 2.5])
        Traceback (most recent call last):
        ...
        AssertionError: 1 of 2 elements differ; the worst is [1]: got 2.0, expected 2.5 ...
    """
    if isinstance(expected, tuple | list) and isinstance(actual, tuple | list):
        if len(actual) != len(expected):
            raise AssertionError(_named(label, f"{len(actual)} values, expected {len(expected)}"))
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            place = f"{label}[{i}]"
            assert_close(a, e, rtol=rtol, atol=atol, ulp=ulp, check_dtype=check_dtype, label=place)
        return
    a, e = _as_array(actual), _as_array(expected)
    if a.shape != e.shape:
        raise AssertionError(
            _named(label, f"shape {list(a.shape)}, expected shape {list(e.shape)}")
        )
    if check_dtype and a.dtype != e.dtype:
        raise AssertionError(_named(label, f"dtype {a.dtype.name}, expected {e.dtype.name}"))
    if not _is_floating(a) and not _is_floating(e) and not (rtol or atol or ulp):
        different = a != e
        if different.any():
            raise AssertionError(_named(label, _describe(a, e, different, different)))
        return
    exact, given = e.astype(np.float64), a.astype(np.float64)
    with np.errstate(all="ignore"):
        distance = np.where(given == exact, 0.0, np.abs(given - exact))
        both_nan = np.isnan(given) & np.isnan(exact)
        if ulp is not None:
            allowed = ulp * spacing(exact, a.dtype if _is_floating(a) else e.dtype)
            unit = "ulp"
        else:
            relative, absolute = _limits(a, e, rtol, atol)
            allowed = absolute + relative * np.abs(exact)
            unit = ""
        # An infinity is equal (distance 0) or wrong; `inf <= inf` must not let it pass.
        wrong = ~((distance <= allowed) & np.isfinite(distance)) & ~both_nan
        if not wrong.any():
            return
        excess = np.where(wrong, distance / np.maximum(allowed, 5e-324), 0.0)
        excess = np.where(wrong & np.isnan(excess), np.inf, excess)
    detail = _describe(a, e, wrong, excess)
    worst = np.unravel_index(int(np.argmax(excess)), excess.shape)
    bound = f"{ulp:g} ulp = {allowed[worst]:.3g}" if unit else f"{allowed[worst]:.3g}"
    raise AssertionError(_named(label, f"{detail}; apart {distance[worst]:.3g}, allowed {bound}"))


def epsilon_of(dtype: DType) -> float:
    """Return the distance from 1 to the next larger number of a floating ``dtype``."""
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return float(info.eps)


def spacing(values: Array, dtype: DType) -> Array:
    """Return, in float64, the distance between neighbouring numbers of ``dtype`` at ``values``."""
    info: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    _, exponent = np.frexp(np.abs(values))
    finest = float(info.smallest_subnormal)
    result: Array = np.maximum(np.ldexp(float(info.eps), exponent - 1), finest)
    return np.where(np.isfinite(values) & (values != 0), result, finest)


def _limits(a: Array, e: Array, rtol: float | None, atol: float | None) -> Tolerance:
    if rtol is not None or atol is not None:
        return Tolerance(rtol or 0.0, atol or 0.0)
    # A Python number or a list stands for exact values: it must not make float32 strict.
    limits = [tolerance_of(x.dtype) for x in (a, e) if _is_floating(x)]
    return max(limits)


def _as_array(value: Any) -> Array:
    if isinstance(value, Tensor):
        return value.detach().numpy()
    if hasattr(value, "detach"):  # a tensor of PyTorch that may require a gradient
        value = value.detach()
    return np.asarray(value)


def _is_floating(array: Array) -> bool:
    return dtypes.is_float(array.dtype)


def _describe(a: Array, e: Array, wrong: Array, excess: Array) -> str:
    place = np.unravel_index(int(np.argmax(excess)), excess.shape)
    where = f"[{', '.join(map(str, place))}]"
    return (
        f"{int(wrong.sum())} of {wrong.size} elements differ; the worst is {where}: "
        f"got {a[place]}, expected {e[place]}"
    )


def _named(label: str, message: str) -> str:
    return f"{label}: {message}" if label else message
