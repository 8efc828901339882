"""Writing to a tensor: ``x += y``, ``x[i] = v``, `copy_`, with the checks that keep gradients
right.

A write computes the new value with an op, as out of place, then stores it. The storage's version is
bumped, so that a backward pass which needs the old value is an error, never a wrong gradient; and
the tensor takes over the history of the new value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from needle import dtypes
from needle.config import modes
from needle.devices import META
from needle.errors import ArgumentError, DTypeError, GradientError, ShapeError
from needle.gradnode import OpNode, check_history, note_recorded_write
from needle.ops.engine import as_tensor
from needle.ops.indexing import Selection, fit_value, select, setitem
from needle.ops.record import OpFunction
from needle.ops.samples import Array
from needle.ops.slicing import slices
from needle.ops.updates import write_at
from needle.tensor import Tensor


def update(target: Tensor, function: OpFunction[..., Any], *others: Any) -> Tensor:
    """Replace the values of ``target`` by ``function(target, *others)``.

    Raises:
        GradientError: gradients are recorded and ``target`` is a leaf that requires one.
        ShapeError: the result has another shape.
        DTypeError: the result does not convert to the dtype of ``target``.
    """
    record = function.op
    recording = modes.state.grad and (
        target._requires_grad or any(isinstance(o, Tensor) and o._requires_grad for o in others)
    )
    is_eager = modes.state.trace is None
    is_direct = (
        is_eager and not recording and record.is_ufunc and target._data.dtype in dtypes.FLOAT_SET
    )
    if is_direct and _update_directly(target, record.reference, others):
        return target
    return assign(target, function(target, *others), record.name)


def _update_directly(target: Tensor, ufunc: Any, others: tuple[Any, ...]) -> bool:
    """Have NumPy write the result into the storage; False if that needs a conversion, or is
    refused."""
    data = target._data
    arrays = [data]
    for other in others:
        kind = other.__class__
        value = as_tensor(other, data.dtype) if kind is float or kind is int else as_tensor(other)
        if value._data.dtype is not data.dtype:
            return False
        arrays.append(value._data)
    try:
        modes.state.quiet(ufunc, *arrays, out=data)
    except (ValueError, TypeError):
        return False  # the general way explains what is wrong
    _bump(target)
    return True


def assign(target: Tensor, value: Tensor, name: str) -> Tensor:
    """Store ``value`` in ``target``, of the same shape, and take over its history.

    Args:
        target: the tensor to overwrite.
        value: the new value.
        name: what the errors call the operation.
    """
    if value.shape != target.shape:
        raise ShapeError(
            f"in-place {name}: the result has shape {list(value.shape)}, the tensor "
            f"{list(target.shape)}; an in-place operation cannot change the shape"
        )
    if value.dtype != target.dtype:
        check_cast(value.dtype, target.dtype, name)
        value = value.astype(target.dtype)
    recording = modes.state.grad and (target._requires_grad or value._requires_grad)
    if recording:
        _check_leaf(target, name)
        check_history(target, f"in-place {name}")
    if target.device is META:
        return target
    trace = modes.state.trace
    if trace is not None:
        trace.write(target, value)
    else:
        _writable(target)
        np.copyto(target._data, value._data)
    _bump(target)
    if modes.state.grad:
        target._node = value._node
        target._index = value._index
        target._requires_grad = value._requires_grad
        if target._version is not None:
            target._history = target._version[0]
            if value._requires_grad:
                note_recorded_write(target._version)
    return target


def assign_item(target: Tensor, key: Any, value: Any) -> None:
    """Write ``value`` to the elements that ``key`` selects: ``target[key] = value``.

    With gradients recorded, the tensor becomes the result of `setitem`; otherwise only the selected
    elements are touched.

    Args:
        target: the tensor to write to.
        key: as for ``target[key]``.
        value: a number, array or tensor that broadcasts to the shape of ``target[key]``.

    Raises:
        GradientError: gradients are recorded and ``target`` is a leaf that requires one.
        ShapeError: the value does not broadcast.
        DTypeError: the value does not convert to the dtype of ``target``.
        OutOfRangeError: an index is outside of its axis.

    Example:
        >>> x = ndl.zeros(4)
        >>> x[1:3] = 5.0
        >>> x
        Tensor([0., 5., 5., 0.])
    """
    dtype = target._data.dtype
    if value.__class__ in (bool, int, float):
        check_cast(dtypes.scalar_dtype(value, dtype), dtype, "assignment")
        v = as_tensor(value, dtype)
    else:
        v = as_tensor(value)
        check_cast(v._data.dtype, dtype, "assignment")
    recording = modes.state.grad and (target._requires_grad or v._requires_grad)
    if recording or modes.state.trace is not None:
        if recording and _is_own_update(target, key, v):
            target._history = v._history
        assign(target, setitem(target, key, v), "assignment")
        return
    if target.device is META:
        setitem(target, key, v)  # for its checks
        return
    _writable(target)
    chosen = select(target.shape, key)
    place = _place(target, chosen)
    values = v._data
    if values.ndim:  # NumPy broadcasts a single value itself
        values = fit_value(v.detach(), chosen.result)._data
    if chosen.indices:
        values = modes.state.quiet(values.astype, dtype, copy=False)
        if values.ndim:
            values = values.reshape(chosen.taken)
        write_at(place, values, [i._data for i in chosen.indices], chosen.axes)
    else:
        modes.state.quiet(np.copyto, place, values, casting="unsafe")
    _bump(target)


def _is_own_update(target: Tensor, key: Any, value: Tensor) -> bool:
    """Whether ``value`` is ``target[key]``, which alone was written to: ``target[key] += 1``.

    Python runs that as ``view = target[key]; view += 1; target[key] = view``. The write through the
    view made the history of ``target`` wrong for just the elements that now are replaced.
    """
    version = target._version
    if version is None or value._version is not version or value is target:
        return False
    # One write since the history of `target` was right, and it was done by `value`: no view could
    # be made of a stale tensor, so what has a current history, and is no view, is who wrote.
    if not target._history + 1 == version[0] == value._history:
        return False
    if not isinstance(value._node, OpNode) or value._node.op.may_alias:
        return False
    chosen = select(target.shape, key)
    if chosen.indices:
        return False
    trace = modes.state.trace
    if trace is not None:
        return trace.is_same_place(value, target.detach()[key])
    place = _place(target, chosen)
    same = value._data.__array_interface__["data"] == place.__array_interface__["data"]
    return same and (value._data.shape, value._data.strides) == (place.shape, place.strides)


def _place(target: Tensor, chosen: Selection) -> Array:
    """Return the slice that a key selects as a view, before its indices."""
    # The Ellipsis makes it an array for a 0-d tensor, too.
    key = (*slices(chosen.starts, chosen.stops, chosen.steps), Ellipsis)
    view: Array = target._data[key].reshape(chosen.shape)
    return view


def copy_(target: Tensor, source: Any) -> Tensor:
    """Overwrite with the values of ``source``, converted to the dtype, and return the tensor.

    Args:
        target: the tensor to overwrite; the method's ``self``.
        source: a shape that broadcasts to that of ``target``.

    Raises:
        ShapeError: the shape does not broadcast.
        GradientError: gradients are recorded and ``target`` is a leaf that requires one.

    Example:
        >>> x = ndl.zeros(2)
        >>> x.copy_(ndl.asarray([1, 2]))
        Tensor([1., 2.])
    """
    value = as_tensor(source)
    if value.shape != target.shape:
        value = value.broadcast_to(target.shape)
    return assign(target, value.astype(target.dtype, copy=False), "copy_")


def fill_(target: Tensor, value: float) -> Tensor:
    """Set all elements to one value, and return the tensor.

    Args:
        target: the tensor to overwrite; the method's ``self``.
        value: the value.

    Raises:
        GradientError: gradients are recorded and ``target`` is a leaf that requires one.

    Example:
        >>> ndl.zeros(2).fill_(7)
        Tensor([7., 7.])
    """
    return copy_(target, as_tensor(value, target.dtype))


def zero_(target: Tensor) -> Tensor:
    """Set all elements to zero, and return the tensor.

    Args:
        target: the tensor to overwrite; the method's ``self``.

    Raises:
        GradientError: gradients are recorded and ``target`` is a leaf that requires one.

    Example:
        >>> ndl.ones(2).zero_()
        Tensor([0., 0.])
    """
    return fill_(target, 0)


def check_cast(source: Any, target: Any, name: str) -> None:
    """Raise if storing ``source`` in ``target`` would lose the kind (float → int → bool)."""
    rank = [2 if dtypes.is_float(d) else 1 if dtypes.is_integer(d) else 0 for d in (source, target)]
    if rank[0] > rank[1]:
        raise DTypeError(
            f"in-place {name}: the result is {source.name} and would be cut to {target.name}; "
            "convert the tensor with astype() first, or the value if that is meant"
        )


def _check_leaf(target: Tensor, name: str) -> None:
    if target._requires_grad and target._node is None:
        raise GradientError(
            f"in-place {name}: a leaf that requires a gradient is overwritten while ops are "
            "recorded; "
            "put the update inside `with ndl.no_grad():`, or write to a clone()"
        )
    # A view of such a leaf writes to the leaf's storage all the same.
    node = target._node
    while isinstance(node, OpNode) and node.op.may_alias and node.edges:
        edge = node.edges[0]
        if isinstance(edge, Tensor):
            if edge._version is target._version:
                raise GradientError(
                    f"in-place {name}: this is a view of a leaf that requires a gradient, "
                    "which would be overwritten; write to a clone(), or inside "
                    "`with ndl.no_grad():`"
                )
            return
        if edge is None:
            return
        node = edge[0]


def _writable(target: Tensor) -> bool:
    if not target._data.flags.writeable:
        raise ArgumentError(
            "in-place write to a read-only tensor (expanded from fewer elements, or made from a "
            "read-only array); clone() it first"
        )
    return True


def _bump(target: Tensor) -> None:
    """Count a write to the storage of ``target``.

    Its own unrecorded write leaves the history as right, or as wrong, as it was: gradients flow as
    if the values had been these from the start. For all others that share the storage it is wrong
    now.
    """
    version = target._version
    if version is not None:
        if target._history == version[0]:
            target._history += 1
        version[0] += 1
