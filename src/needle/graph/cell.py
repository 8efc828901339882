"""Cell: what a traced tensor has in the place of an array.

Tensors that share storage share a cell, so that a write through one is seen by the others. A cell
that a movement op made, where NumPy would give a view, knows the cell it was made of: a write
through the view goes to the base, and a view whose base was written to since is made anew when it
is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from needle.errors import TraceError
from needle.extents import is_single
from needle.graph.ir import Node, Value
from needle.ops.engine import apply
from needle.ops.movement import broadcast_to, permute_dims, reshape
from needle.ops.slicing import strided_slice
from needle.ops.updates import update_slice

if TYPE_CHECKING:
    from needle.dtypes import DType
    from needle.graph.tracing import Trace
    from needle.ops.record import Op
    from needle.shapes import Shape
    from needle.tensor import Tensor


class Absent:
    """Stands where a tensor's array would: it has a shape and a dtype, but no values.

    Whatever else is done with an array is a use of its values, and raises an error that says why
    there are none.
    """

    __slots__ = ()

    # NumPy hands operations on it back.
    __array_priority__ = 2000

    def refuse(self, use: str) -> NoReturn:
        """Raise the error for a ``use`` of the values."""
        raise NotImplementedError  # abstract: every kind has its own reason

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        self.refuse(f"a use of its values ({name})")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.refuse("a conversion to an array")

    def __array_ufunc__(self, ufunc: Any, *args: Any, **kwargs: Any) -> Any:
        self.refuse(f"np.{ufunc.__name__}")

    def __array_function__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        self.refuse(f"np.{function.__name__}")

    def __getitem__(self, key: Any) -> Any:
        self.refuse("an element")

    def __setitem__(self, key: Any, value: Any) -> None:
        self.refuse("a write to the array")

    def __len__(self) -> int:
        self.refuse("the array")

    def __iter__(self) -> Any:
        self.refuse("the array")


class Cell(Absent):
    """Storage in a traced program: the value that it holds at this point of the trace.

    Attributes:
        trace: the trace that it belongs to.
        value: what it holds; for a view, as of the base's count of writes that it has `seen`.
        shape: extent of each axis.
        dtype: data type of the elements.
    """

    __slots__ = (
        "__weakref__",
        "_barred",
        "_is_contiguous",
        "_is_exact",
        "_lost",
        "_seen",
        "_view_of",
        "_writes",
        "dtype",
        "shape",
        "trace",
        "value",
    )

    def __init__(self, trace: Trace, value: Value, is_contiguous: bool = False) -> None:
        self.trace = trace
        self.value = value
        self.shape: Shape = value.spec.shape
        self.dtype: DType = value.spec.dtype
        self._writes = 0
        #: The cell that this one is a view of, with the op and its attributes.
        self._view_of: tuple[Cell, Op, dict[str, Any]] | None = None
        self._seen = 0
        #: Whether NumPy would give a view, and not a copy because of how the elements lie.
        self._is_exact = True
        self._is_contiguous = is_contiguous
        #: Why the value cannot be known any more; empty while it is.
        self._lost = ""
        #: Why ops must not use the value any more.
        self._barred = ""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.value.spec.size

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.value.spec.nbytes

    # Reading, writing, views

    def make_view(self, base: Cell, op: Op, attrs: dict[str, Any]) -> None:
        """Note that this cell is what ``op`` makes of ``base``, in the same storage."""
        self._view_of = base, op, attrs
        self._seen = base.root._writes
        self._is_exact = op is not reshape.op or _keeps_layout(base, attrs["shape"])
        self._is_contiguous = op is reshape.op and base._is_contiguous

    @property
    def root(self) -> Cell:
        """The cell at the end of the chain of views: that of the storage."""
        cell = self
        while cell._view_of is not None:
            cell = cell._view_of[0]
        return cell

    def read(self) -> Value:
        """Return the value that the cell holds now, for an op to use."""
        if self._barred:
            raise TraceError(self._barred)
        return self.last()

    def last(self) -> Value:
        """Return the value that the cell holds now."""
        if self._lost:
            raise TraceError(self._lost)
        if self._view_of is None:
            return self.value
        base, op, attrs = self._view_of
        writes = base.root._writes
        if writes != self._seen:
            held = base.read()
            if not self._is_exact:
                raise TraceError(
                    "a tensor was overwritten of which this one is a reshape, and it is not known "
                    "whether the two share their storage; clone() one of them before the write"
                )
            self.value = self.trace.emit(op, (held,), attrs)
            self._seen = writes
        return self.value

    def write(self, value: Value, location: str) -> None:
        """Store ``value``, of the same shape and dtype, for all that share the storage."""
        if self._view_of is None:
            self.value = value
            self._lost = ""
            self._writes += 1
            return
        base, op, attrs = self._view_of
        if not self._is_exact:
            # NumPy may have copied. What is sure is what this tensor holds.
            self._view_of = None
            self.value = value
            self._writes = 1
            base.root.lose(
                f"{location} wrote into the result of a reshape, of which it is not known whether "
                "it shares its storage with a tensor that is used later; clone() one of the two "
                "before the write"
            )
            return
        scatter = _SCATTERS.get(op)
        if scatter is None:
            raise TraceError(
                f"in-place write into the result of {op.name}, where several elements share one "
                "place; clone() it first"
            )
        base.write(self.trace.rewrite(scatter, (base.read(), value), attrs), location)
        self.value = value
        self._seen = self.root._writes

    def lose(self, reason: str) -> None:
        """Make it an error, with the message ``reason``, to read the cell from now on."""
        self._lost = reason

    def bar(self, reason: str) -> None:
        """Make it an error, with the message ``reason``, for ops to read the cell from now on."""
        self._barred = reason

    def path(self) -> tuple[Any, ...]:
        """Return the root and the ops by which this view is made of it, for comparison."""
        if self._view_of is None:
            return (id(self),)
        base, op, attrs = self._view_of
        return (*base.path(), op.name, *sorted(attrs.items()))

    # What engines do with arrays

    def astype(self, dtype: DType, copy: bool = True) -> Cell:
        """Return a cell with the values in another dtype."""
        if dtype == self.dtype and not copy:
            return self
        return self.trace.converted(self, dtype)

    def copy(self) -> Cell:
        """Return a cell of its own with the same values."""
        return Cell(self.trace, self.read())

    def refuse(self, use: str) -> NoReturn:
        raise self.trace.error_for(self.value, use)

    def __repr__(self) -> str:
        return f"<traced {self.value.spec}>"


def _keeps_layout(base: Cell, shape: Shape) -> bool:
    """Whether a reshape to ``shape`` is a view, however the elements of ``base`` lie."""
    if base._is_contiguous:
        return True
    return [n for n in base.shape if not is_single(n)] == [n for n in shape if not is_single(n)]


def _scatter_slice(base: Tensor, view: Tensor, **attrs: Any) -> Tensor:
    return apply(update_slice, base, view, **attrs)


def _scatter_reshape(base: Tensor, view: Tensor, **_: Any) -> Tensor:
    return reshape(view, base.shape)


def _scatter_permute(base: Tensor, view: Tensor, axes: Shape) -> Tensor:
    return permute_dims(view, sorted(range(len(axes)), key=axes.__getitem__))


def _scatter_broadcast(base: Tensor, view: Tensor, shape: Shape) -> Tensor:
    if view.size != base.size:
        raise TraceError(
            "in-place write to a read-only tensor (expanded from fewer elements); clone() it first"
        )
    return reshape(view, base.shape)


#: For each op that makes writable views: the base after a write through the view.
_SCATTERS: dict[Op, Callable[..., Tensor]] = {
    strided_slice.op: _scatter_slice,
    reshape.op: _scatter_reshape,
    permute_dims.op: _scatter_permute,
    broadcast_to.op: _scatter_broadcast,
}


def describe(node: Node | None) -> str:
    """Return the op and the line that a value comes from, for an error; empty for an input."""
    if node is None:
        return ""
    place = f" at {node.location}" if node.location else ""
    scope = f" in layer {node.scope}" if node.scope else ""
    return f"the result of {node.op.name}{place}{scope}"
