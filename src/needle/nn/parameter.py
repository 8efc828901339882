"""Parameter and Buffer: the tensors that a module owns.

They are tensors in every respect; the class is what marks them, when `Module` looks through its
attributes. Results of ops on them are plain tensors.
"""

from __future__ import annotations

from typing import Any, TypeVar

from needle.config import changes, modes
from needle.dtypes import as_dtype, is_float
from needle.errors import DTypeError
from needle.inplace import assign
from needle.shapes import Spec
from needle.tensor import Tensor, initialise
from needle.writes import expose

T = TypeVar("T", bound=Tensor)


class Parameter(Tensor):
    """A tensor that is trained: modules list it in `parameters()` and in their state dict.

    Args:
        data: a number, nested lists, an array or a tensor. A tensor or a writable array is shared,
            not copied, when its dtype is kept; the history of a computed tensor is not taken over.
        dtype: dtype to convert to.
        device: where the storage lives.
        requires_grad: False for a parameter that stays as it is (frozen).

    Raises:
        DTypeError: data that are no floats, which no gradient can train.

    Example:
        >>> w = ndl.nn.Parameter([1.0, 2.0])
        >>> w
        Parameter([1., 2.], requires_grad=True)
        >>> type(w * 2).__name__
        'Tensor'
    """

    __slots__ = ()

    def __init__(
        self, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = True
    ) -> None:
        _take(self, data, dtype, device)
        if requires_grad and not is_float(self.dtype):
            raise DTypeError(
                f"Parameter: {self.dtype.name} data cannot be trained; convert them with "
                "dtype='float32', or use nn.Buffer for values that are only kept"
            )
        self._requires_grad = requires_grad


class Buffer(Tensor):
    """A tensor that belongs to a module but is not trained: running statistics, masks, tables.

    Args:
        data: as for `Parameter`, of any dtype.
        dtype: dtype to convert to.
        device: where the storage lives.
        persistent: whether it is part of the state dict. False for what the constructor can always
            make again.

    Example:
        >>> ndl.nn.Buffer(ndl.zeros(2))
        Buffer([0., 0.])
    """

    __slots__ = ("persistent",)

    persistent: bool

    def __init__(
        self, data: Any, dtype: Any = None, device: Any = None, persistent: bool = True
    ) -> None:
        _take(self, data, dtype, device)
        self.persistent = persistent

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        result = super().__deepcopy__(memo)
        assert isinstance(result, Buffer)
        result.persistent = self.persistent
        return result


def _take(target: Tensor, data: Any, dtype: Any, device: Any) -> None:
    """Make ``target`` a leaf over ``data``."""
    if isinstance(data, Tensor):
        target_dtype = data.dtype if dtype is None else as_dtype(dtype)
        source = data.detach().astype(target_dtype, copy=False).to(device=device)
    else:
        source = Tensor(data, dtype, device, requires_grad=False)
        if source._data.__class__ is not Spec and not source._data.flags.writeable:
            source = source.clone()
    initialise(target, source._data, is_tracked=True)
    # Whoever shares the storage shares the count of writes, too. A model made in inference mode can
    # still be trained later.
    target._version = source._version
    if source._version is None:
        target._version = [0]
        if isinstance(data, Tensor) and source._data is data._data:
            expose(target._version)


def rebound(buffer: Buffer, value: Tensor) -> Buffer:
    """Return ``value``, storage and history, as a buffer that takes the place of ``buffer``.

    While a function is traced, ``buffer`` is overwritten instead: it is there in all calls.
    """
    trace = modes.state.trace
    if trace is not None and (value.shape, value.dtype) == (buffer.shape, buffer.dtype):
        assign(buffer, value, "assignment to a buffer")
        return buffer
    result = Buffer(value, persistent=buffer.persistent)
    result._version = value._version
    result._node = value._node
    result._index = value._index
    result._history = value._history
    result._requires_grad = value._requires_grad
    return result


def replace_storage(tensor: Tensor, source: Tensor) -> None:
    """Have ``tensor``, whose identity stays, live in the storage of ``source`` from now on.

    Graphs recorded before keep the old storage, so their backward pass stays right.
    """
    if modes.state.trace is not None:
        raise modes.state.trace.unsupported("a module's to(), which gives parameters new storage")
    changes.note()
    tensor._data = source._data
    tensor._version = [0]
    tensor._history = 0
    if tensor._node is not None:  # a buffer that was assigned a computed value
        tensor._node = None
        tensor._requires_grad = False
