"""Factories: tensors from nothing or from other libraries' arrays. They require no gradients."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from needle import dtypes
from needle.arrays import aligned_zeros, to_array
from needle.devices import META, Device, as_device
from needle.dtypes import DType, as_dtype
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError
from needle.extents import extents_in
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_tensor
from needle.ops.movement import broadcast_to
from needle.shapes import Shape, Spec, as_index, as_shape
from needle.tensor import Tensor, note_origin, wrap

DeviceLike = Device | str | None


def _filled(shape: Shape, value: Any, dtype: DType, device: DeviceLike) -> Tensor:
    if as_device(device) is META:
        return wrap(Spec(shape, dtype))
    if extents_in(shape):
        return broadcast_to(as_tensor(value, dtype).astype(dtype, copy=False), shape)
    array = aligned_zeros(shape, dtype)
    if value.__class__ is not int or value != 0:
        array[...] = to_array(value, dtype)
    return wrap(array)


def asarray(
    obj: Any, dtype: Any = None, *, device: DeviceLike = None, copy: bool | None = None
) -> Tensor:
    """Return ``obj`` as a tensor without gradient, sharing the storage of arrays where possible.

    Args:
        obj: a number, nested lists of numbers, an array, a tensor, or anything with DLPack.
        dtype: dtype to convert to. Otherwise arrays keep theirs, Python floats become float32, and
            integers int64.
        device: where the tensor shall live.
        copy: True always copies, False never (an error if it would be needed).

    Raises:
        ShapeError: ragged nested lists.
        DTypeError: data that are not numbers.
        ArgumentError: ``copy=False``, but a copy is needed.

    Example:
        >>> import numpy as np
        >>> a = np.zeros(3, dtype=np.float32)
        >>> t = ndl.asarray(a)
        >>> a[0] = 1
        >>> t
        Tensor([1., 0., 0.])
    """
    array = to_array(obj, None if dtype is None else as_dtype(dtype))
    if copy is False:
        source = obj._data if isinstance(obj, Tensor) else obj
        if not (hasattr(source, "__array_interface__") or hasattr(source, "__dlpack__")) or not (
            np.may_share_memory(array, np.asarray(source))
        ):
            raise ArgumentError("asarray: copy=False, but this conversion needs a copy")
    elif copy:
        array = array.copy()
    if as_device(device) is META:
        return wrap(Spec(array.shape, array.dtype))
    return wrap(array) if copy else note_origin(wrap(array), obj)


def from_dlpack(x: Any, /, *, device: DeviceLike = None, copy: bool | None = None) -> Tensor:
    """Return a tensor over the storage of another library's array, through DLPack.

    Args:
        x: any object with ``__dlpack__``.
        device: must be the CPU.
        copy: whether to copy.

    Example:
        >>> import numpy as np
        >>> ndl.from_dlpack(np.arange(3))
        Tensor([0, 1, 2], dtype=int64)
    """
    return asarray(np.from_dlpack(x), device=device, copy=copy)


def zeros(shape: int | Sequence[int], *, dtype: Any = None, device: DeviceLike = None) -> Tensor:
    """Return a tensor of zeros.

    Args:
        shape: extents.
        dtype: float32 if not given.
        device: where it shall live.

    Example:
        >>> ndl.zeros((2, 2), dtype="int32").dtype
        dtype('int32')
    """
    return _filled(as_shape(shape, "zeros"), 0, _dtype(dtype), device)


def ones(shape: int | Sequence[int], *, dtype: Any = None, device: DeviceLike = None) -> Tensor:
    """Return a tensor of ones.

    Args:
        shape: extents.
        dtype: float32 if not given.
        device: where it shall live.

    Example:
        >>> ndl.ones(2)
        Tensor([1., 1.])
    """
    return _filled(as_shape(shape, "ones"), 1, _dtype(dtype), device)


def empty(shape: int | Sequence[int], *, dtype: Any = None, device: DeviceLike = None) -> Tensor:
    """Return a tensor whose values are not set: zeros, so that no run depends on old memory.

    Args:
        shape: extents.
        dtype: float32 if not given.
        device: where it shall live.

    Example:
        >>> ndl.empty((2, 3)).shape
        (2, 3)
    """
    return _filled(as_shape(shape, "empty"), 0, _dtype(dtype), device)


def full(
    shape: int | Sequence[int],
    fill_value: float,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
) -> Tensor:
    """Return a tensor of one value.

    Args:
        shape: extents.
        fill_value: the value.
        dtype: if not given, float32, int64 or bool, as the value is.
        device: where it shall live.

    Example:
        >>> ndl.full(2, 7)
        Tensor([7, 7], dtype=int64)
    """
    if dtype is None:
        dtype = as_tensor(fill_value).dtype
    return _filled(as_shape(shape, "full"), fill_value, as_dtype(dtype), device)


def zeros_like(x: Tensor, *, dtype: Any = None, device: DeviceLike = None) -> Tensor:
    """Return zeros of the shape, dtype and device of ``x``.

    Args:
        x: the model.
        dtype: another dtype.
        device: another device.

    Example:
        >>> ndl.zeros_like(ndl.arange(2))
        Tensor([0, 0], dtype=int64)
    """
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Tensor, *, dtype: Any = None, device: DeviceLike = None) -> Tensor:
    """Return ones of the shape, dtype and device of ``x``.

    Args:
        x: the model.
        dtype: another dtype.
        device: another device.

    Example:
        >>> ndl.ones_like(ndl.arange(2))
        Tensor([1, 1], dtype=int64)
    """
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Tensor, *, dtype: Any = None, device: DeviceLike = None) -> Tensor:
    """Return a tensor of the shape, dtype and device of ``x`` whose values are not set (zeros).

    Args:
        x: the model.
        dtype: another dtype.
        device: another device.

    Example:
        >>> ndl.empty_like(ndl.zeros((2, 3))).shape
        (2, 3)
    """
    return full_like(x, 0, dtype=dtype, device=device)


def full_like(
    x: Tensor, fill_value: float, *, dtype: Any = None, device: DeviceLike = None
) -> Tensor:
    """Return one value in the shape, dtype and device of ``x``.

    Args:
        x: the model.
        fill_value: the value.
        dtype: another dtype.
        device: another device.

    Example:
        >>> ndl.full_like(ndl.zeros(2), 0.5)
        Tensor([0.5, 0.5])
    """
    target = x.dtype if dtype is None else as_dtype(dtype)
    return _filled(x.shape, fill_value, target, x.device if device is None else device)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
) -> Tensor:
    """Return evenly spaced numbers from ``start`` to before ``stop``.

    Args:
        start: the first number; with ``stop`` left out, 0 is, and this is the stop.
        stop: number that is not reached any more.
        step: difference of neighbours; not 0.
        dtype: if not given, int64 for integers, else float32.
        device: where it shall live.

    Raises:
        ArgumentError: ``step`` is 0.
        ArgumentTypeError: an argument is no number.

    Example:
        >>> ndl.arange(1, 7, 2)
        Tensor([1, 3, 5], dtype=int64)
    """
    if stop is None:
        start, stop = 0, start
    given: tuple[object, ...] = (start, stop, step)
    for n in given:
        if not isinstance(n, numbers.Real):
            raise ArgumentTypeError(f"arange: takes numbers, got {type(n).__name__} ({n!r:.60})")
    if step == 0:
        raise ArgumentError("arange: step must not be 0")
    integral = all(isinstance(n, numbers.Integral) for n in given)
    target = as_dtype(dtype) if dtype is not None else dtypes.int64 if integral else dtypes.float32
    count = max(0, math.ceil((stop - start) / step))
    exact = np.int64 if integral else np.float64
    values = np.arange(count, dtype=exact) * exact(step) + exact(start)
    return asarray(values, target, device=device)


def linspace(
    start: float,
    stop: float,
    num: int,
    *,
    dtype: Any = None,
    device: DeviceLike = None,
    endpoint: bool = True,
) -> Tensor:
    """Return ``num`` evenly spaced numbers.

    Args:
        start: the first number.
        stop: the last number, or with ``endpoint=False`` the one that would follow.
        num: how many, at least 0.
        dtype: float32 if not given.
        device: where it shall live.
        endpoint: whether ``stop`` is included.

    Raises:
        ArgumentError: a negative count.

    Example:
        >>> ndl.linspace(0, 1, 5)
        Tensor([0.  , 0.25, 0.5 , 0.75, 1.  ])
    """
    count = as_index(num, "linspace: num")
    if count < 0:
        raise ArgumentError(f"linspace: num must be at least 0, got {num}")
    values = np.linspace(start, stop, count, endpoint=endpoint)
    return asarray(values, _dtype(dtype), device=device)


def eye(
    n_rows: int, n_cols: int | None = None, *, k: int = 0, dtype: Any = None,
    device: DeviceLike = None,
) -> Tensor:  # fmt: skip
    """Return a matrix with ones on a diagonal.

    Args:
        n_rows: number of rows.
        n_cols: number of columns; as many as rows if not given.
        k: which diagonal: 0 the main one, positive above.
        dtype: float32 if not given.
        device: where it shall live.

    Example:
        >>> ndl.eye(2)
        Tensor([[1., 0.],
                [0., 1.]])
    """
    return asarray(np.eye(n_rows, n_cols, k=k, dtype=_dtype(dtype)), device=device)


def _matrices(x: TensorLike, name: str) -> Tensor:
    t = as_tensor(x)
    if t.ndim < 2:
        raise ShapeError(f"{name}: needs a matrix or several, got shape {list(t.shape)}")
    return t


def tril(x: TensorLike, *, k: int = 0) -> Tensor:
    """Return the lower triangle of each matrix; zeros above.

    Args:
        x: [..., m, n].
        k: the last diagonal that is kept: 0 the main one, positive above.

    Raises:
        ShapeError: less than two axes.

    Example:
        >>> ndl.tril(ndl.ones((2, 2)))
        Tensor([[1., 0.],
                [1., 1.]])
    """
    from needle.ops.comparison import where

    t = _matrices(x, "tril")
    mask = wrap(np.tri(t.shape[-2], t.shape[-1], k=k, dtype=bool))
    return where(mask, t, 0)


def triu(x: TensorLike, *, k: int = 0) -> Tensor:
    """Return the upper triangle of each matrix; zeros below.

    Args:
        x: [..., m, n].
        k: the first diagonal that is kept: 0 the main one, positive above.

    Raises:
        ShapeError: less than two axes.

    Example:
        >>> ndl.triu(ndl.ones((2, 2)))
        Tensor([[1., 1.],
                [0., 1.]])
    """
    from needle.ops.comparison import where

    t = _matrices(x, "triu")
    mask = wrap(~np.tri(t.shape[-2], t.shape[-1], k=k - 1, dtype=bool))
    return where(mask, t, 0)


def meshgrid(*axes: Tensor, indexing: str = "xy") -> list[Tensor]:
    """Return coordinate tensors of the grid that vectors span.

    Args:
        axes: vectors.
        indexing: "xy" has the first vector run along axis 1, "ij" along axis 0.

    Raises:
        ArgumentError: another ``indexing``.

    Example:
        >>> [g.tolist() for g in ndl.meshgrid(ndl.arange(2), ndl.arange(2))]
        [[[0, 1], [0, 1]], [[0, 0], [1, 1]]]
    """
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f"meshgrid: indexing must be 'xy' or 'ij', got {indexing!r}")
    order = list(range(len(axes)))
    if indexing == "xy" and len(axes) > 1:
        order[:2] = [1, 0]
    shape = [0] * len(axes)
    for place, axis in zip(order, axes, strict=True):
        shape[place] = axis.size
    return [
        axis.reshape(tuple(n if i == place else 1 for i, n in enumerate(shape))).broadcast_to(shape)
        for place, axis in zip(order, axes, strict=True)
    ]


def _dtype(dtype: Any) -> DType:
    return dtypes.DEFAULT_FLOAT if dtype is None else as_dtype(dtype)


def is_tensor(x: Any) -> bool:
    """Whether ``x`` is a tensor.

    Example:
        >>> ndl.is_tensor(ndl.ones(1)), ndl.is_tensor(1.0)
        (True, False)
    """
    return isinstance(x, Tensor)
