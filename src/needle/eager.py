"""Eager execution: run an op now, and record it if gradients are wanted.

This is the engine behind `needle.ops.engine`. On the meta device nothing runs: the record's `infer`
gives shape and dtype of the result.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from needle.arrays import to_array
from needle.autograd import first_non_finite
from needle.config import modes
from needle.dtypes import FLOAT_SET, DType, is_float, promote, scalar_dtype
from needle.errors import AnomalyError, ArgumentTypeError, DeviceError, NeedleError
from needle.extents import Extent, Formula
from needle.gradnode import OpNode, check_constants, connect, watch
from needle.ops.engine import engine
from needle.ops.precision import Precision, cast_inputs
from needle.ops.record import Op
from needle.shapes import Spec
from needle.tensor import Tensor, initialise, note_origin, wrap

_PACKAGE = str(Path(__file__).parent)


def apply(op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
    """Run ``op``: the result is a tensor, or a tuple for an op of several results.

    Raises:
        NeedleError: the inputs do not fit the op; what `infer` of the record says.
    """
    state = modes.state
    if state.autocast is not None and op.precision is not Precision.FOLLOW:
        inputs = cast_inputs(op.precision, inputs, state.autocast)
    if state.trace is not None:
        return state.trace.apply(op, inputs, attrs)
    arrays = [t._data for t in inputs]
    try:
        if op.is_ufunc:
            value = state.quiet(op.reference, *arrays)
        else:
            for array in arrays:
                if array.__class__ is Spec:
                    return _apply_meta(op, inputs, attrs)
            if not op.refuses:
                op.infer(*arrays, **attrs)
            value = op.kernel(*arrays, **attrs) if op.kernel is not None else None
            if value is None:
                value = state.quiet(op.reference, *arrays, **attrs)
    except NeedleError:
        raise
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        if any(array.__class__ is Spec for array in arrays):
            return _apply_meta(op, inputs, attrs)
        _explain(op, arrays, attrs, error)
        raise
    if value.__class__ is not np.ndarray:
        if value.__class__ is tuple:
            return finish(op, inputs, attrs, arrays, tuple([wrap(np.asarray(v)) for v in value]))
        value = np.asarray(value)
    result = initialise(Tensor.__new__(Tensor), value, not state.inference)
    if op.may_alias and value.base is not None and np.may_share_memory(value, arrays[0]):
        result._version = inputs[0]._version
        result._history = inputs[0]._history
    if state.anomaly:
        _check_finite(op, arrays, (result,))
    if state.grad and op.differentiable:
        for t in inputs:
            if t._requires_grad:
                record(op, inputs, attrs, (result,))
                break
        else:
            if watch.is_needed:
                check_constants(inputs, op.name)
    return result


def finish(
    op: Op,
    inputs: tuple[Tensor, ...],
    attrs: dict[str, Any],
    arrays: list[Any],
    results: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """Check and record a call of several results."""
    if modes.state.anomaly:
        _check_finite(op, arrays, results)
    if modes.state.grad and op.differentiable:
        if any(t._requires_grad for t in inputs):
            record(op, inputs, attrs, results)
        elif watch.is_needed:
            check_constants(inputs, op.name)
    return results


def record(
    op: Op,
    inputs: tuple[Tensor, ...],
    attrs: dict[str, Any],
    results: tuple[Tensor, ...],
) -> None:
    """Leave a node behind, if a cotangent of a result would reach an input that wants one."""
    if watch.is_needed:
        check_constants(inputs, op.name)
    needed = tuple([t._requires_grad for t in inputs])
    plan = op.save_plan(needed)
    if not plan.reaches or not any(r._data.dtype in FLOAT_SET for r in results):
        return
    node = OpNode(op, inputs, attrs, results, plan)
    if modes.state.anomaly:
        node.location = user_line()
    for index, result in enumerate(results):
        if result._data.dtype in FLOAT_SET:
            connect(result, node, index)


def _apply_meta(op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
    for t in inputs:
        # Constants (Python numbers, attributes turned to tensors) may live anywhere.
        if t._data.__class__ is not Spec and t.ndim and t._requires_grad:
            raise DeviceError(
                f"{op.name}: some inputs are on the meta device, another of shape {list(t.shape)} "
                "is on "
                "the CPU; move them to one device with to()"
            )
    specs = op.infer(*[Spec(t.shape, t.dtype) for t in inputs], **attrs)
    for listener in meta_listeners:
        listener(op, inputs, attrs, specs)
    several = not isinstance(specs, Spec)
    results = tuple([wrap(s) for s in (specs if several else (specs,))])
    if modes.state.grad and op.differentiable and any(t._requires_grad for t in inputs):
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


#: Kinds of numbers besides Python's that take the dtype of the tensors beside them.
_WEAK = frozenset({np.float64, Extent, Formula})
_constants: dict[tuple[Any, DType | None], Tensor] = {}
#: The arrays of `_constants` by their ids.
_numbers: dict[int, Any] = {}


def as_tensor(value: Any, dtype: DType | None = None) -> Tensor:
    """Return ``value`` as a tensor; a tensor comes back as it is.

    Python numbers become constants, which are kept: the same few come again and again.
    """
    kind = value.__class__
    if kind is Tensor:
        return value
    if kind is float or kind is int:
        constant = _constants.get((value, dtype))
        if constant is None or (not value and _is_negative_zero(value)):
            return _constant(value, dtype)
        return constant
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Formula):
        return _varying(value, dtype)
    if isinstance(value, str | bytes | dict | set) or value is None:
        raise ArgumentTypeError(
            f"expected a tensor, an array or a number, got {type(value).__name__} ({value!r:.60})"
        )
    return note_origin(wrap(to_array(value, dtype)), value)


def _varying(value: Formula, dtype: DType | None) -> Tensor:
    """Return a number that depends on an extent that varies as a tensor of the trace."""
    trace = modes.state.trace
    if trace is None:
        value.symbol.refuse(f"{value} is computed with")
    found: Tensor = trace.number(value, dtype or to_array(value.at(value.symbol.hint), None).dtype)
    return found


def is_number(array: Any) -> bool:
    """Whether ``array`` is that of a constant that `as_tensor` made of a Python number."""
    return _numbers.get(id(array)) is array


def _is_negative_zero(value: float) -> bool:
    return value == 0 and math.copysign(1.0, value) < 0


def _constant(value: int | float, dtype: DType | None) -> Tensor:
    constant = initialise(Tensor.__new__(Tensor), to_array(value, dtype), True)
    # −0.0 and 0.0 are one key (`as_tensor` asks before it looks), and so are 1 and 1.0 where no
    # dtype tells them apart; NaN is none.
    if value == value and not _is_negative_zero(value) and dtype is not None:
        if len(_constants) > 1000:
            _constants.clear()
            _numbers.clear()
        _constants[value, dtype] = constant
        _numbers[id(constant._data)] = constant._data
        constant._data.flags.writeable = False
    return constant


def promoted(*values: Any) -> tuple[Tensor, ...]:
    """Return ``values`` as tensors of their common dtype, Python numbers being weak."""
    dtype: DType | None = None
    numbers = False
    tensors: list[Any] = []
    for v in values:
        kind = v.__class__
        if kind is float or kind is int or kind is bool:
            numbers = True
            tensors.append(v)
            continue
        if kind in _WEAK:  # a Python float for Python, too; as weak, and as exact
            numbers = True
            tensors.append(float(v) if kind is np.float64 else v)
            continue
        t = as_tensor(v)
        tensors.append(t)
        d = t._data.dtype
        dtype = d if dtype is None or dtype is d else promote(dtype, d)
    if numbers:
        if dtype is None:
            return promoted(*(as_tensor(v) for v in values))
        for v in tensors:
            if v.__class__ is float or v.__class__ is int:
                dtype = scalar_dtype(v, dtype)
            elif isinstance(v, Formula):
                dtype = scalar_dtype(v.at(v.symbol.hint), dtype)
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            tensors[i] = as_tensor(t, dtype)
        elif t._data.dtype is not dtype and t._data.dtype != dtype:
            tensors[i] = t.astype(dtype)
    return tuple(tensors)


engine.apply = apply
engine.as_tensor = as_tensor
engine.promoted = promoted
