"""The elementwise family: what all ops that broadcast their inputs share.

An elementwise op is declared by a signature with a docstring, its NumPy function and its gradient:

    @elementwise(np.exp, to_float=True, vjp={"x": lambda g, out: g * out})
    def exp(x: TensorLike) -> Tensor:
        '''Exponential …'''

Conversion, promotion, shape inference and broadcasting of the gradient are the family's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Union, cast

import numpy as np

from needle.dtypes import ALL, DType, accumulation_dtype, float_dtype, is_float, is_integer
from needle.errors import DTypeError
from needle.ops.engine import engine
from needle.ops.precision import Precision
from needle.ops.record import Kind, Lowering, Op, OpFunction, Rule, attach
from needle.ops.samples import Array, Samples, binary_samples, unary_samples
from needle.shapes import Spec, broadcast_shapes

if TYPE_CHECKING:
    from needle.tensor import Tensor

P = ParamSpec("P")
R = TypeVar("R")

#: What a public function takes where it needs a tensor.
TensorLike = Union["Tensor", Array, float, int, bool]

CATEGORIES = ("bool", "integer", "float")
NO_ATTRS: dict[str, Any] = {}


def category(dtype: DType) -> str:
    """Return "bool", "integer" or "float"."""
    return "float" if is_float(dtype) else "integer" if is_integer(dtype) else "bool"


def widened(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``function`` computing in float32 where its arrays are 16-bit floats.

    The result is rounded once, to the 16-bit dtype of the first array.
    """

    def compute(*arrays: Array, **attrs: Any) -> Any:
        dtype = arrays[0].dtype
        if dtype.itemsize != 2:
            return function(*arrays, **attrs)
        wide = accumulation_dtype(dtype)
        if wide == dtype:
            return function(*arrays, **attrs)
        result = function(*(a.astype(wide) if a.dtype == dtype else a for a in arrays), **attrs)
        return result.astype(dtype) if result.dtype == wide else result

    return compute


def elementwise(
    reference: Callable[..., Any],
    *,
    takes: Iterable[str] = CATEGORIES,
    to_float: bool = False,
    result: DType | None = None,
    vjp: Mapping[str, Rule] | None = None,
    lower: Lowering | None = None,
    fault: Callable[..., Exception] | None = None,
    commutes: bool = False,
    exact: bool | None = None,
    chooses: bool = False,
    samples: Samples | None = None,
    aliases: Iterable[str] = (),
    is_method: bool = True,
    peer: str | Callable[..., Any] | None = "",
    precision: Precision = Precision.FOLLOW,
) -> Callable[[Callable[P, R]], OpFunction[P, R]]:
    """Declare the decorated signature as an elementwise op.

    Args:
        reference: the NumPy function; its inputs have one common dtype.
        takes: the categories of dtypes that the op accepts.
        to_float: whether integers and bools are converted to the default float first.
        result: dtype of the result; the inputs' common dtype if not given.
        vjp: a rule for each differentiable input.
        lower: how the compiler builds it.
        fault: what compiled code raises where the lowering refuses a value.
        commutes: whether exchanging its two inputs changes no bit of the result.
        exact: whether its result is the exact one rounded once; by default where floats are taken
            as they are, or become bools.
        chooses: whether each element of its result is one of an input, perhaps with another sign,
            or 0.
        samples: inputs for the tests; by default values in (−3, 3).
        aliases: further names.
        is_method: whether it becomes a Tensor method.
        peer: the PyTorch function; by default that of the same name.
        precision: in which dtype it computes under `autocast`.
    """
    accepted = frozenset(CATEGORIES if to_float else takes)

    def decorate(function: Callable[P, R]) -> OpFunction[P, R]:
        name = function.__name__
        inputs = tuple(inspect.signature(function).parameters)

        def infer(*specs: Spec) -> Spec:
            dtype = specs[0].dtype
            check_dtype(dtype)
            shape = specs[0].shape
            if len(specs) > 1:
                shape = broadcast_shapes(*(s.shape for s in specs), op=name)
            return Spec(shape, result or dtype)

        def check_dtype(dtype: DType) -> None:
            if category(dtype) not in accepted:
                wanted = " or ".join(c for c in CATEGORIES if c in accepted)
                raise DTypeError(
                    f"{name}: takes {wanted} tensors, got {dtype.name}; convert with astype()"
                )

        record = Op(
            name=name,
            function=cast("Callable[..., Any]", function),
            samples=samples or (unary_samples() if len(inputs) == 1 else binary_samples()),
            aliases=tuple(aliases),
            is_method=is_method,
            peer=name if peer == "" else peer,
            kind=Kind.ELEMENTWISE,
            infer=infer,
            reference=reference,
            vjp=vjp,
            lower=lower,
            fault=fault,
            commutes=commutes,
            exact=(not to_float or result is not None) if exact is None else exact,
            chooses=chooses,
            inputs=inputs,
            precision=precision,
            promotion=accepted,
        )

        # The dtypes that need neither conversion nor a look at their category.
        direct = frozenset(
            d for d in ALL if category(d) in accepted and not (to_float and float_dtype(d) != d)
        )

        def unary(x: Any) -> Any:
            t = engine.as_tensor(x)
            if t.dtype not in direct:
                check_dtype(t.dtype)
                t = t.astype(float_dtype(t.dtype))
            return engine.apply(record, (t,), NO_ATTRS)

        def nary(*values: Any) -> Any:
            tensors = engine.promoted(*values)
            dtype = tensors[0].dtype
            if dtype not in direct:
                check_dtype(dtype)
                tensors = tuple(t.astype(float_dtype(dtype)) for t in tensors)
            return engine.apply(record, tensors, NO_ATTRS)

        def binary(x: Any, y: Any) -> Any:
            return nary(x, y)

        front = unary if len(inputs) == 1 else binary if len(inputs) == 2 else nary
        public = cast("Callable[P, R]", wear(front, function))
        record.function = public
        return attach(record, public)

    return decorate


def wear(front: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``front`` under the name, signature and documentation of ``function``."""
    for attribute in ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__"):
        setattr(front, attribute, getattr(function, attribute))
    front.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
    return front


def constant_like(array: Array, value: float) -> Any:
    """Return ``value`` as a scalar of the array's dtype, so that NumPy keeps that dtype."""
    return np.asarray(value, dtype=array.dtype)
