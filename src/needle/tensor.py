"""Tensor: an array that knows how it was computed.

A tensor is a handle: storage (a NumPy array, or only a `Spec` on the meta device), and, where
gradients are recorded, the `GradNode` that made it. Its methods come from the op records; here
stands what is not an op.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from needle import dtypes
from needle._methods import TensorMethods
from needle.arrays import to_array
from needle.config import changes, modes
from needle.devices import CPU, META, Device, as_device
from needle.dtypes import DType, as_dtype, is_float
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    DTypeError,
    GradientError,
    ShapeError,
)
from needle.ops.samples import Array
from needle.shapes import Shape, Spec
from needle.writes import expose

if TYPE_CHECKING:
    from needle.gradnode import GradNode

#: History of a tensor that was detached: writes with gradients do not concern it.
CONSTANT = sys.maxsize

Hook = Callable[["Tensor"], "Tensor | None"]


class Tensor(TensorMethods):
    """An n-dimensional array with automatic differentiation.

    Args:
        data: a number, nested lists of numbers, an array (shared, not copied, when its dtype is
            kept), or a tensor. Python numbers become float32; arrays keep their dtype.
        dtype: dtype to convert to.
        device: where the storage lives; the CPU if not given.
        requires_grad: whether gradients with respect to this tensor are wanted. Only floating
            tensors can; for others this is ignored.

    Raises:
        ShapeError: ragged nested lists.
        DTypeError: data that are not numbers.

    Example:
        >>> x = ndl.Tensor([1.0, 2.0])
        >>> (x * x).sum().backward()
        >>> x.grad
        Tensor([2., 4.])
    """

    __slots__ = (
        "__weakref__",
        "_data",
        "_grad",
        "_history",
        "_hooks",
        "_index",
        "_node",
        "_requires_grad",
        "_version",
    )

    # ndarray + tensor: let the tensor's operator answer.
    __array_priority__ = 1000

    _data: Any
    #: The node that computed this tensor, and which of its results it is; None for a leaf.
    _node: GradNode | None
    _index: int
    #: Writes to the storage so far, in a list shared by all tensors that share the storage. None
    #: for tensors made in inference mode.
    _version: list[int] | None
    #: The count of writes up to which `_node` describes the values.
    _history: int
    _hooks: list[Hook] | None
    _requires_grad: bool
    _grad: Tensor | None

    def __init__(
        self,
        data: Any,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = True,
    ) -> None:
        array: Any = to_array(
            data, None if dtype is None else as_dtype(dtype), default=dtypes.float32
        )
        if as_device(device) is META:
            array = Spec(array.shape, array.dtype)
        initialise(self, array, not modes.state.inference)
        note_origin(self, data)
        self._requires_grad = bool(requires_grad) and is_float(array.dtype)

    # What it is

    @property
    def shape(self) -> Shape:
        """Extent of each axis."""
        shape: Shape = self._data.shape
        return shape

    @property
    def dtype(self) -> DType:
        """Data type of the elements."""
        dtype: DType = self._data.dtype
        return dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._data.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        size: int = self._data.size
        return size

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        nbytes: int = self._data.nbytes
        return nbytes

    @property
    def device(self) -> Device:
        """Where the storage lives."""
        return META if self._data.__class__ is Spec else CPU

    @property
    def T(self) -> Tensor:
        """The transposed matrix; only for two axes."""
        if self.ndim != 2:
            raise ShapeError(
                f"T: needs a matrix, got shape {list(self.shape)}; "
                "use mT for batches of matrices, or permute_dims"
            )
        return self.permute_dims((1, 0))

    @property
    def mT(self) -> Tensor:
        """Each matrix of the last two axes transposed."""
        if self.ndim < 2:
            raise ShapeError(f"mT: needs at least two axes, got shape {list(self.shape)}")
        return self.permute_dims((*range(self.ndim - 2), self.ndim - 1, self.ndim - 2))

    # Gradients

    @property
    def grad(self) -> Tensor | None:
        """What backward passes have added up for this leaf; None before the first."""
        trace = modes.state.trace
        return self._grad if trace is None else trace.read_grad(self)

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        trace = modes.state.trace
        if trace is None:
            self._grad = value
        else:
            trace.write_grad(self, value)

    @property
    def requires_grad(self) -> bool:
        """Whether ops on this tensor are recorded, for gradients."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if value and not is_float(self.dtype):
            raise DTypeError(
                f"only floating tensors can require gradients, this one is {self.dtype.name}; "
                "convert it with astype('float32')"
            )
        if not value and self._node is not None:
            raise GradientError(
                "requires_grad can be switched off only for leaves; "
                "use detach() for a computed tensor"
            )
        if self._requires_grad is not bool(value):
            self._requires_grad = bool(value)
            changes.note()

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set `requires_grad` and return the tensor itself."""
        self.requires_grad = requires_grad
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by the user, not computed by recorded ops: `grad` is for leaves."""
        return self._node is None

    @property
    def grad_node(self) -> GradNode | None:
        """The node that computed this tensor, or None for a leaf."""
        return self._node

    def backward(
        self,
        grad: Tensor | None = None,
        *,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Add the gradients of this tensor to `grad` of each leaf it was computed from.

        Args:
            grad: cotangent, of this tensor's shape; ones if not given.
            retain_graph: keep the graph for another backward pass; otherwise it is freed on the
                way.
            create_graph: record the backward pass itself, for gradients of gradients.

        Raises:
            GradientError: nothing was recorded, the graph was freed, or a value that the backward
                pass needs was overwritten.

        Example:
            >>> x = ndl.Tensor(3.0)
            >>> (x ** 2).backward()
            >>> x.grad
            Tensor(6.)
        """
        from needle.autograd import backward

        backward(self, grad, retain_graph=retain_graph, create_graph=create_graph)

    def detach(self) -> Tensor:
        """Return a tensor that shares the storage but not the history."""
        result = wrap(self._data)
        result._version = self._version
        result._history = CONSTANT
        return result

    @property
    def data(self) -> Tensor:
        """The same storage without history: what `detach` returns."""
        return self.detach()

    def retain_grad(self) -> None:
        """Have the backward pass set `grad` of this computed tensor, too."""
        if self._node is None:
            return
        import weakref

        # The graph must not keep the tensor alive, nor the tensor's grad the graph.
        handle = weakref.ref(self)

        def keep(gradient: Tensor) -> None:
            tensor = handle()
            if tensor is not None:
                tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient

        self.register_hook(keep)

    def register_hook(self, hook: Hook) -> Callable[[], None]:
        """Call ``hook(gradient)`` when the gradient of this tensor is complete.

        Args:
            hook: may return a tensor, which then replaces the gradient.

        Returns:
            A function that removes the hook.

        Raises:
            GradientError: the tensor requires no gradient.

        Example:
            >>> x = ndl.Tensor(3.0)
            >>> remove = x.register_hook(lambda g: g * 10)
            >>> (x ** 2).backward()
            >>> x.grad
            Tensor(60.)
        """
        if not self._requires_grad:
            raise GradientError("a hook needs a tensor that requires a gradient; this one does not")
        if self._node is not None:
            hooks = self._node.hooks_of(self._index)
        else:
            if self._hooks is None:
                self._hooks = []
            hooks = self._hooks
        hooks.append(hook)
        return lambda: hooks.remove(hook)

    # In and out

    def numpy(self) -> Array:
        """Return the values as a NumPy array that shares the storage.

        It is read-only when the tensor requires gradients: writes that the version checks cannot
        see would give wrong gradients. ``x.detach().numpy()`` is writable; what compiled functions
        have prepared of the tensor's values is then computed again at each call.
        """
        array: Array = self._values("numpy()")
        if self._requires_grad:
            array = array.view()
            array.flags.writeable = False
        else:
            expose(self._version)
        return array

    def _values(self, use: str, is_element: bool = False) -> Array:
        """Return the array, for a ``use`` of its values, or of its only element, in Python."""
        array: Any = self._data
        trace = modes.state.trace
        if trace is not None and is_element:
            answer = trace.answer(self, use)
            if answer is not None:
                return np.asarray(answer)
        if array.__class__ is Spec:
            raise DeviceError("a meta tensor has shape and dtype but no values")
        if array.__class__ is not np.ndarray:
            array.refuse(use)
        if trace is not None:
            trace.note_read(self, use)
        values: Array = array
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        array = self._values("numpy()")
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ArgumentError(
                    f"converting {self.dtype.name} to {np.dtype(dtype)} needs a copy"
                )
            return array.astype(dtype)
        return array.copy() if copy else self.numpy()

    def __dlpack__(self, **kwargs: Any) -> Any:
        if self._requires_grad:
            raise GradientError("DLPack carries no gradients; export x.detach()")
        if self.dtype == dtypes.bfloat16:
            raise DTypeError("NumPy cannot export bfloat16 through DLPack; astype('float32') first")
        return self.numpy().__dlpack__(**kwargs)

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self.numpy().__dlpack_device__()
        return device

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        if api_version not in (None, "2021.12", "2022.12", "2023.12", "2024.12"):
            raise ArgumentError(f"array API version {api_version!r} is not supported; 2024.12 is")
        import needle

        return needle

    def item(self) -> Any:
        """Return the only element as a Python number.

        Raises:
            ShapeError: there is not exactly one.
        """
        if self.size != 1:
            raise ShapeError(
                f"item: needs exactly one element, got shape {list(self.shape)}; "
                "index an element or use tolist()"
            )
        return self._values("item()", is_element=True).item()

    def tolist(self) -> Any:
        """Return the values as nested lists of Python numbers."""
        return self._values("tolist()").tolist()

    def __bool__(self) -> bool:
        return bool(self._scalar("bool"))

    def __int__(self) -> int:
        return int(self._scalar("int"))

    def __float__(self) -> float:
        return float(self._scalar("float"))

    def __index__(self) -> int:
        if not dtypes.is_integer(self.dtype):
            raise ArgumentTypeError(f"only integer tensors can be an index, got {self.dtype.name}")
        return int(self._scalar("index"))

    def _scalar(self, kind: str) -> Any:
        if self.size != 1:
            way_out = "; use any() or all()" if kind == "bool" else ""
            raise ShapeError(
                f"{kind}(): needs exactly one element, got shape {list(self.shape)}{way_out}"
            )
        return self._values(f"{kind}()", is_element=True).item()

    def __len__(self) -> int:
        if not self.shape:
            raise ArgumentTypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        for i in range(len(self)):
            yield self[i]

    def __contains__(self, value: Any) -> bool:
        return bool((self.detach() == value).any())

    def __pos__(self) -> Tensor:
        return self.clone()

    def __hash__(self) -> int:
        return id(self)

    def __copy__(self) -> Tensor:
        return self.clone()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise GradientError("only leaves can be deep-copied; detach() the tensor first")
        data = self._data if self._data.__class__ is Spec else self._data.copy(order="K")
        result = initialise(type(self).__new__(type(self)), data, True)
        result._requires_grad = self._requires_grad
        memo[id(self)] = result
        if self.grad is not None:
            result.grad = wrap(self.grad._data.copy(order="K"))
        return result

    def __reduce__(self) -> Any:
        raise ArgumentTypeError(
            "tensors are not pickled: save a state_dict() with safetensors, or use numpy()"
        )

    def __repr__(self) -> str:
        if self._data.__class__ is not np.ndarray:
            device = "device='meta'" if self._data.__class__ is Spec else "traced"
            body = f"..., shape={list(self.shape)}, {device}"
        else:
            values = self._data
            if values.dtype == dtypes.bfloat16:  # NumPy prints it like integers
                values = values.astype(np.float32)
            body = np.array2string(
                values, precision=6, separator=", ", prefix="Tensor(", threshold=200
            )
            if 0 in self.shape and self.shape != (0,):
                body += f", shape={list(self.shape)}"
        if self.dtype != dtypes.float32:
            body += f", dtype={self.dtype.name}"
        if self._node is not None:
            body += f", grad_node={self._node.name}"
        elif self._requires_grad:
            body += ", requires_grad=True"
        return f"{type(self).__name__}({body})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    # Devices and storage

    def to(self, *args: Any, dtype: Any = None, device: Any = None) -> Tensor:
        """Return the tensor in another dtype or on another device.

        Args:
            args: a dtype or a device, in either order.
            dtype: dtype to convert to.
            device: device to move to.
        """
        for argument in args:
            if isinstance(argument, Device) or argument in ("cpu", "meta"):
                device = argument
            else:
                dtype = argument
                if isinstance(argument, str) and argument not in dtypes.NAMES:
                    raise ArgumentError(
                        f"to: {argument!r} is neither a dtype nor a device; devices are 'cpu' and "
                        f"'meta', dtypes {', '.join(dtypes.NAMES)}"
                    )
        result = self if dtype is None else self.astype(as_dtype(dtype))
        if device is not None and as_device(device) is not result.device:
            if as_device(device) is CPU:
                raise DeviceError("a meta tensor has no values to move to the CPU")
            result = wrap(Spec(result.shape, result.dtype))
            result._requires_grad = self._requires_grad
        return result

    def to_device(self, device: Any) -> Tensor:
        """Return the tensor on ``device`` (the array API's name)."""
        return self.to(device=device)

    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        return bool(self._values("is_contiguous()").flags.c_contiguous)


def initialise(tensor: Tensor, data: Any, is_tracked: bool) -> Tensor:
    """Set all slots of a new tensor: a leaf over ``data`` that requires no gradient.

    Without any check, for engines only: this runs once for every op.
    """
    tensor._data = data
    tensor._requires_grad = False
    tensor._node = None
    tensor._index = 0
    tensor._version = [0] if is_tracked else None
    tensor._history = 0
    tensor._hooks = None
    tensor._grad = None
    return tensor


def wrap(data: Any) -> Tensor:
    """Return a new leaf over an array (or a Spec), without any check: for engines only."""
    return initialise(Tensor.__new__(Tensor), data, not modes.state.inference)


def note_origin(tensor: Tensor, data: Any) -> Tensor:
    """Have a new tensor over what `to_array` made of ``data`` know who else can write to it.

    Args:
        tensor: is returned.
        data: what the user gave.
    """
    array = tensor._data
    if isinstance(data, Tensor):
        if array is data._data:
            tensor._version, tensor._history = data._version, CONSTANT
    elif array.__class__ is np.ndarray and not isinstance(data, (bool, int, float, list, tuple)):
        is_new = isinstance(data, (np.ndarray, np.generic)) and array is not data
        if not is_new or array.base is not None:
            expose(tensor._version)
    return tensor


def wrap_shared(array: Array) -> Tensor:
    """Return a new leaf over an array that others write to, without any check."""
    tensor = wrap(array)
    expose(tensor._version)
    return tensor
