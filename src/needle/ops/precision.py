"""Precision: in which dtype an op computes under `autocast`. A trait of its record.

Sums of products gain from 16-bit factors, and lose little: they are held in float32. What adds up
many numbers, divides by small ones or spans many powers of ten computes in float32. All else
follows the dtypes of its inputs.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

from needle import dtypes
from needle.config import modes
from needle.dtypes import DType
from needle.ops.engine import as_tensor, promoted

if TYPE_CHECKING:
    from needle.ops.record import OpFunction
    from needle.tensor import Tensor

P = ParamSpec("P")
R = TypeVar("R")


class Precision(enum.Enum):
    """What becomes of the floating inputs of an op under `autocast`.

    float64 stays what it is, and so do integers and bools.
    """

    LOW = "low"  #: converted to the dtype of `autocast`: sums of products
    FULL = "full"  #: 16-bit floats are converted to float32: sums, statistics, exponentials
    FOLLOW = "follow"  #: left as they are, and promoted among themselves


def target_dtype(precision: Precision, dtype: DType, low: DType) -> DType:
    """Return the dtype that an input of ``dtype`` is converted to under ``autocast(low)``."""
    if precision is Precision.LOW and dtypes.is_float(dtype) and dtype != dtypes.float64:
        return low
    if precision is Precision.FULL:
        return dtypes.accumulation_dtype(dtype)
    return dtype


def cast_inputs(precision: Precision, inputs: Sequence[Tensor], low: DType) -> tuple[Tensor, ...]:
    """Return the inputs of an op as it takes them under ``autocast(low)``.

    The conversions are ops, so gradients come back in the dtype of what was converted.
    """
    return tuple([t.astype(target_dtype(precision, t.dtype, low), copy=False) for t in inputs])


def operands(function: OpFunction[..., Any], *values: Any) -> tuple[Tensor, ...]:
    """Return ``values`` as tensors of one dtype: their common one, or that of `autocast`.

    For ops that promote their inputs: promoted first, a float32 weight would make float32 of an
    input that is to be bfloat16.
    """
    low = modes.state.autocast
    if low is None:
        return promoted(*values)
    return promoted(*cast_inputs(function.op.precision, [as_tensor(v) for v in values], low))


def under(precision: Precision, function: Callable[P, R]) -> Callable[P, R]:
    """Return a function written with ops as one that takes its tensors as `autocast` says."""

    @functools.wraps(function)
    def cast_first(*args: P.args, **kwargs: P.kwargs) -> R:
        low = modes.state.autocast
        if low is None:
            return function(*args, **kwargs)

        def cast(value: Any) -> Any:
            is_tensor = hasattr(value, "dtype") and not isinstance(value, np.generic)
            return cast_inputs(precision, [as_tensor(value)], low)[0] if is_tensor else value

        return function(*map(cast, args), **{k: cast(v) for k, v in kwargs.items()})

    return cast_first


__all__ = ["Precision", "cast_inputs", "operands", "target_dtype", "under"]
