"""Arrays from whatever users give: numbers, nested sequences, other libraries' arrays, tensors."""

from __future__ import annotations

import ctypes
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from needle import dtypes
from needle._methods import TensorMethods
from needle.config import modes
from needle.dtypes import DType, as_dtype, is_float
from needle.errors import DeviceError, DTypeError, ShapeError
from needle.ops.samples import Array
from needle.shapes import Shape, Spec

#: Bytes to which large arrays are aligned: a cache line, so that threads that work side by side on
#: parts of their rows do not write to one line (the update of a 784×128 weight: 62 µs, 39 µs
#: aligned), and no vector lies in two.
ALIGNMENT = 64
#: Bytes from which arrays are aligned that are made once, and kept.
_LARGE = 4096
#: Bytes from which results are, of which each then costs 0.7 µs more: what an elementwise kernel
#: gains at this size. A product gains ten times that where it writes one, and more where it is B.
LARGE_RESULT = 1 << 18


def aligned_zeros(shape: Shape, dtype: DType) -> Array:
    """Return zeros, aligned if they are many.

    Example:
        >>> import needle.arrays
        >>> needle.arrays.aligned_zeros((64, 64), ndl.float32).ctypes.data % 64
        0
    """
    if math.prod(shape) * dtype.itemsize < _LARGE:
        return np.zeros(shape, dtype)
    return aligned(shape, dtype, np.zeros)


def aligned(shape: Shape, dtype: DType, make: Callable[..., Array] = np.empty) -> Array:
    """Return a new array that begins on a cache line.

    Args:
        shape: extents.
        dtype: of its elements.
        make: makes the memory, from a number of bytes and their dtype.
    """
    raw: Any = make(math.prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -ctypes.addressof(ctypes.c_char.from_buffer(raw)) % ALIGNMENT
    return np.ndarray(shape, dtype, raw, start)


def maker(shape: Shape, dtype: DType) -> Callable[[], Array]:
    """Return what makes arrays for results, their values not set: aligned if they are large."""
    is_large = math.prod(shape) * dtype.itemsize >= LARGE_RESULT
    return functools.partial(aligned if is_large else np.empty, shape, dtype)


def _base_references(array: Array) -> int:
    return sys.getrefcount(array.base)


#: The references to the memory below an aligned array that no other array looks at.
_ALONE = _base_references(aligned((1,), dtypes.float32))


def is_own(array: Array) -> bool:
    """Whether an array is no view of another one: its memory is its own, aligned or not.

    Example:
        >>> import needle.arrays
        >>> x = needle.arrays.aligned((4, 4), ndl.float32)
        >>> needle.arrays.is_own(x), needle.arrays.is_own(x[:2])
        (True, False)
    """
    base = array.base
    if base is None:
        return True
    # A view of another array looks at memory that the other one looks at, or at a part of it.
    fits = base.__class__ is np.ndarray and base.nbytes == array.nbytes + ALIGNMENT
    del base
    return fits and _base_references(array) == _ALONE


def memory_order(array: Array) -> Shape | None:
    """Return the axes from the one whose steps in memory are longest to the shortest.

    Returns:
        None for an array in row-major order, and for one whose elements are not all neighbours.

    Example:
        >>> import numpy as np, needle.arrays
        >>> needle.arrays.memory_order(np.zeros((2, 3, 4)).transpose(2, 0, 1))
        (1, 2, 0)
    """
    if array.flags.c_contiguous:
        return None
    strides, shape = array.strides, array.shape
    # An axis of one element may stand anywhere; its stride says nothing.
    axes = tuple(sorted(range(array.ndim), key=lambda a: (-strides[a], shape[a] == 1)))
    return axes if array.transpose(axes).flags.c_contiguous else None


def in_order(array: Array, axes: Shape | None) -> Array:
    """Return a copy that lies in memory in an order of axes, as `memory_order` gives it.

    Example:
        >>> import numpy as np, needle.arrays
        >>> needle.arrays.in_order(np.zeros((2, 3)), (1, 0)).strides
        (8, 16)
    """
    if axes is None:
        return array.copy()
    turned = array.transpose(axes)
    copy = maker(turned.shape, array.dtype)()
    copy[...] = turned
    return copy.transpose(np.argsort(axes))


def as_lies(array: Array, model: Array) -> Array:
    """Return an array whose axes lie in memory as those of another one of its shape: a copy, if
    need be. A model with gaps stands for row-major order."""
    axes = memory_order(model)
    turned = array if axes is None else array.transpose(axes)
    return array if turned.flags.c_contiguous else in_order(array, axes)


def to_array(data: Any, dtype: DType | None, *, default: DType | None = None) -> Array:
    """Return ``data`` as an array, shared where its dtype is kept.

    Args:
        data: anything array-like, or a tensor.
        dtype: dtype to convert to, or None to keep an array's.
        default: dtype of Python numbers; None makes floats float32 and integers int64.

    Raises:
        ShapeError: ragged nested lists.
        DTypeError: elements that are not numbers.
    """
    if isinstance(data, TensorMethods):
        array: Array = _values(data)
        return array if dtype is None else array.astype(dtype, copy=False)
    leaves = _Leaves()
    if isinstance(data, (bool, int, float, list, tuple)):
        data = leaves.convert(data)
    elif isinstance(data, (np.ndarray, np.generic)):
        leaves.are_numbers = False
    else:
        return to_array(_foreign(data), dtype, default=default)
    is_python = leaves.are_numbers
    if dtype is None and leaves.arrays:
        # Tensors and arrays in a sequence keep their dtype; numbers beside them are weak.
        dtype = functools.reduce(dtypes.promote, leaves.arrays)
        for kind in leaves.numbers:
            dtype = dtypes.scalar_dtype(kind(0), dtype)
    try:
        array = np.asarray(data)
        if array.dtype.kind == "O" and is_python:  # an int of more than 64 bits
            if dtype is None or not is_float(dtype):
                raise OverflowError
            array = np.asarray(data, dtype=np.float64)
    except ValueError as error:
        if "inhomogeneous" in str(error):
            raise ShapeError(
                f"ragged nested sequence: {_ragged(data)}; all parts must have equal lengths"
            ) from None
        raise DTypeError(f"cannot make a tensor of {type(data).__name__}: {error}") from None
    except OverflowError:
        name = (dtype or dtypes.DEFAULT_INT).name
        raise DTypeError(f"a number does not fit into {name}") from None
    if dtype is None and is_python:
        if array.size == 0:
            dtype = default or dtypes.float32
        elif array.dtype.kind == "f":
            dtype = dtypes.DEFAULT_FLOAT
        elif array.dtype.kind in "iu":
            dtype = default or dtypes.DEFAULT_INT
    if array.dtype.kind in _NO_NUMBERS and array.dtype != dtypes.bfloat16:
        raise DTypeError(
            f"cannot make a tensor of {_NO_NUMBERS[array.dtype.kind]}; "
            "tensors hold bools, integers and floats"
        )
    if dtype is None:
        dtype = as_dtype(array.dtype)
    if leaves.numbers and array.dtype.kind in "iu" and dtypes.is_integer(dtype):
        limits = np.iinfo(dtype)
        if array.size and (array.min() < limits.min or array.max() > limits.max):
            raise DTypeError(f"a number does not fit into {dtype.name}")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return modes.state.quiet(array.astype, dtype, copy=False)


_NO_NUMBERS = {
    "O": "objects that are no numbers",
    "U": "text",
    "S": "bytes",
    "M": "dates",
    "m": "time spans",
    "c": "complex numbers",
    "V": "records",
}


class _Leaves:
    """What a nested sequence holds.

    Attributes:
        numbers: the types of its Python numbers.
        arrays: the dtypes of its tensors, arrays and NumPy scalars.
        are_numbers: whether there is nothing but Python numbers.
    """

    def __init__(self) -> None:
        self.numbers: set[type] = set()
        self.arrays: list[DType] = []
        self.are_numbers = True

    def convert(self, data: Any) -> Any:
        """Return ``data`` with its tensors as arrays."""
        if isinstance(data, (list, tuple)):
            return [self.convert(part) for part in data]
        if isinstance(data, (bool, int, float)):  # so are float64 scalars of NumPy
            self.numbers.add(bool if isinstance(data, bool) else type(data))
            return data
        self.are_numbers = False
        if isinstance(data, (TensorMethods, np.ndarray, np.generic)):
            data = _values(data) if isinstance(data, TensorMethods) else data
            if data.dtype.kind not in _NO_NUMBERS or data.dtype == dtypes.bfloat16:
                self.arrays.append(as_dtype(data.dtype))
                if data.dtype == dtypes.bfloat16:  # which NumPy joins with no other dtype
                    data = data.astype(np.float32)
        return data


def _values(tensor: Any) -> Array:
    """Return the array of a tensor (of which only the base class is known here)."""
    if tensor._data.__class__ is Spec:
        raise DeviceError("a meta tensor has shape and dtype but no values")
    array: Array = tensor._data
    return array


def _foreign(data: Any) -> Any:
    """Return an object of another library through the first protocol that it offers."""
    try:
        if hasattr(data, "__array__") or hasattr(data, "__array_interface__"):
            return np.asarray(data)
        if hasattr(data, "__dlpack__"):
            return np.from_dlpack(data)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        name = f"{type(data).__module__}.{type(data).__name__}"
        raise DTypeError(f"cannot make a tensor of this {name}: {error}") from error
    if hasattr(data, "__iter__") and not isinstance(data, (str, bytes, dict, set)):
        return list(data)
    if hasattr(data, "__float__"):
        return float(data)
    raise DTypeError(
        f"cannot make a tensor of {type(data).__name__}; "
        "give a number, nested lists of numbers, or an array"
    )


def _ragged(data: Any, place: str = "data") -> str:
    """Return where a nested sequence first has parts of unequal shapes."""
    shapes = [_shape_of(part) for part in data]
    for i, shape in enumerate(shapes):
        if shape is None:
            return _ragged(data[i], f"{place}[{i}]")
        if shapes[0] is not None and shape != shapes[0]:
            return f"{place}[0] has shape {list(shapes[0])} but {place}[{i}] has {list(shape)}"
    return f"{place} mixes numbers and sequences"


def _shape_of(data: Any) -> Shape | None:
    try:
        return np.shape(data)
    except ValueError:
        return None
