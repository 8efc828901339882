"""Eager execution: run an op now, and record it if gradients are wanted.

This is the engine behind `needle.ops.engine`. On the meta device nothing runs: the record's `infer` gives shape
and dtype of the result.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from needle.autograd import GradNode, OpNode, connect, first_non_finite
from needle.config import modes
from needle.dtypes import DType, is_float
from needle.errors import AnomalyError, ArgumentTypeError, DeviceError, NeedleError
from needle.ops.engine import engine
from needle.ops.record import Kind, Op
from needle.shapes import Spec
from needle.tensor import Tensor, to_array, wrap

_PACKAGE = str(Path(__file__).parent)


def apply(op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
    """Run ``op``: the result is a tensor, or a tuple for an op of several results.

    Raises:
        NeedleError: the inputs do not fit the op; what `infer` of the record says.
    """
    arrays = [t._data for t in inputs]
    for array in arrays:
        if array.__class__ is Spec:
            return _apply_meta(op, inputs, attrs)
    quiet = modes.quiet
    try:
        if op.kind is not Kind.ELEMENTWISE:
            # NumPy broadcasts and refuses as elementwise ops do; for others it might accept, silently,
            # what the op does not allow.
            op.infer(*arrays, **attrs)
        value = quiet(op.reference, *arrays, **attrs) if attrs else quiet(op.reference, *arrays)
    except NeedleError:
        raise
    except (ValueError, TypeError, IndexError, OverflowError, MemoryError) as error:
        _explain(op, arrays, attrs, error)
        raise
    if value.__class__ is tuple:
        results = tuple([wrap(np.asarray(v)) for v in value])
    else:
        if value.__class__ is not np.ndarray:
            value = np.asarray(value)
        result = wrap(value)
        results = (result,)
        if op.may_alias and (value.base is not None or value is arrays[0]):
            source = inputs[0]
            if np.may_share_memory(value, arrays[0]):
                result._version = source._version
    if modes.anomaly:
        _check_finite(op, arrays, results)
    if modes.grad and op.differentiable:
        needed = tuple([t._requires_grad for t in inputs])
        if True in needed:
            _record(op, inputs, attrs, results, needed)
    return results if value.__class__ is tuple else result


def _record(
    op: Op,
    inputs: tuple[Tensor, ...],
    attrs: dict[str, Any],
    results: tuple[Tensor, ...],
    needed: tuple[bool, ...],
) -> None:
    floating = [is_float(r._data.dtype) for r in results]
    if True not in floating or not any(
        op.input_name(i) in op.rules for i, n in enumerate(needed) if n
    ):
        return
    node = OpNode(op, inputs, attrs, results, needed)
    if modes.anomaly:
        node.location = user_line()
    for index, result in enumerate(results):
        if floating[index]:
            connect(result, node, index)


def _apply_meta(op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
    for t in inputs:
        # Constants (Python numbers, attributes turned to tensors) may live anywhere.
        if t._data.__class__ is not Spec and t.ndim and t._requires_grad:
            raise DeviceError(
                f"{op.name}: some inputs are on the meta device, another of shape {list(t.shape)} is on "
                "the CPU; move them to one device with to()"
            )
    specs = op.infer(*[Spec(t.shape, t.dtype) for t in inputs], **attrs)
    for listener in meta_listeners:
        listener(op, inputs, attrs, specs)
    several = not isinstance(specs, Spec)
    results = tuple([wrap(s) for s in (specs if several else (specs,))])
    if modes.grad and op.differentiable and any(t._requires_grad for t in inputs):
        for result in results:
            result._requires_grad = is_float(result.dtype)
    return results if several else results[0]


#: Called for each op on the meta device, with the specs of its results: how models are summarised.
meta_listeners: list[Any] = []


def _explain(op: Op, arrays: list[Any], attrs: dict[str, Any], error: Exception) -> None:
    """Raise the error that the record's `infer` has for these inputs, if it has one."""
    if isinstance(error, MemoryError):
        return
    try:
        op.infer(*[Spec(a.shape, a.dtype) for a in arrays], **attrs)
    except NeedleError as teaching:
        raise teaching from None


def _check_finite(op: Op, arrays: list[Any], results: tuple[Tensor, ...]) -> None:
    for result in results:
        if not is_float(result.dtype):
            continue
        bad = first_non_finite(result._data)
        if bad is None:
            continue
        if any(is_float(a.dtype) and first_non_finite(a) is not None for a in arrays):
            return
        raise AnomalyError(f"{op.name}: {bad} appeared in the result at {user_line()}")


def user_line() -> str:
    """Return ``file:line`` of the innermost frame outside of needle."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


_constants: dict[tuple[Any, DType], Tensor] = {}


def as_tensor(value: Any, dtype: DType | None = None) -> Tensor:
    """Return ``value`` as a tensor; a tensor comes back as it is.

    Python numbers become constants, which are kept: the same few come again and again.
    """
    if isinstance(value, Tensor):
        return value
    kind = value.__class__
    if kind is float or kind is int:
        if dtype is None or value == 0 or value != value or modes.inference:
            return wrap(_number(value, dtype))  # 0.0 and −0.0 are one key; NaN is none
        key = (value, dtype)
        constant = _constants.get(key)
        if constant is None:
            if len(_constants) > 1000:
                _constants.clear()
            constant = _constants[key] = wrap(_number(value, dtype))
            constant._data.flags.writeable = False
        return constant
    if isinstance(value, str | bytes | dict | set) or value is None:
        raise ArgumentTypeError(
            f"expected a tensor, an array or a number, got {type(value).__name__} ({value!r:.60})"
        )
    return wrap(to_array(value, dtype))


def _number(value: int | float, dtype: DType | None) -> Any:
    return to_array(value, dtype)


engine.apply = apply
engine.as_tensor = as_tensor

__all__ = ["GradNode", "apply", "as_tensor"]
