"""apply: the one door through which every op goes.

Ops know neither tensors nor how they are run: they call `apply`, and whoever runs them (eager
execution, shape inference, a trace) is installed below. So a record cannot reach around the engine,
and every op written once serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from needle.dtypes import DType, accumulation_dtype, float_dtype
from needle.errors import DTypeError

if TYPE_CHECKING:
    from needle.ops.record import Op, OpFunction
    from needle.tensor import Tensor


class Engine:
    """What runs the ops; `needle.eager` installs itself on import.

    Attributes:
        apply: from a record, its input tensors and its attributes to the resulting tensor or tuple.
        as_tensor: from a tensor, array or Python number (with the dtype it should have) to a
            tensor.
        promoted: from tensors, arrays and Python numbers to tensors of their common dtype.
    """

    apply: Callable[[Op, tuple[Any, ...], dict[str, Any]], Any]
    as_tensor: Callable[..., Tensor]
    promoted: Callable[..., tuple[Tensor, ...]]


engine = Engine()


def apply(function: OpFunction[..., Any], *inputs: Tensor, **attrs: Any) -> Tensor:
    """Run the op of a public function on tensors, with its attributes.

    Ops of several results return a tuple; their public functions say so with a cast.
    """
    result: Tensor = engine.apply(function.op, inputs, attrs)
    return result


def as_tensor(value: Any, dtype: DType | None = None) -> Tensor:
    """Return ``value`` as a tensor: itself if it is one, else a constant without gradient.

    Python numbers and lists of them become float32 or int64 (or ``dtype``).
    """
    return engine.as_tensor(value, dtype)


def as_float_tensor(value: Any) -> Tensor:
    """Return ``value`` as a floating tensor; integers and bools become float32."""
    x = as_tensor(value)
    dtype = float_dtype(x.dtype)
    return x if dtype == x.dtype else x.astype(dtype)


def widen(x: Tensor) -> Tensor:
    """Return ``x`` in the dtype that long sums are held in: 16-bit floats as float32."""
    dtype = accumulation_dtype(x.dtype)
    return x if dtype == x.dtype else x.astype(dtype)


def promoted(*values: Any) -> tuple[Tensor, ...]:
    """Return ``values`` as tensors of their common dtype, Python numbers being weak."""
    return engine.promoted(*values)


def require_float(x: Tensor, op: str) -> None:
    """Raise unless ``x`` is floating."""
    if float_dtype(x.dtype) != x.dtype:
        raise DTypeError(
            f"{op}: needs a floating dtype, got {x.dtype.name}; convert with astype('float32')"
        )
