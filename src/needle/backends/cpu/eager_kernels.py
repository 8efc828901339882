"""Which ops eager execution runs by generated kernels instead of their references.

By their traits: products and convolutions have run-time extents of their own; what normalises, or
scores labels along an ``axis``, is compiled for rows of a length. Of the inputs of an op that says
how many last axes make a row (``normalized``), those that have no other axes are parameters of the
columns; otherwise those that have fewer axes than the first are parameters. Elementwise ops are
compiled for any number of elements where NumPy needs several passes (what is one of its ufuncs
needs one). The vjp rules of elementwise ops, and of normalisation with parameters, run as one
kernel together. The modules of the kernels are imported when they are first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from needle.ops.convolution_form import Convolution, WeightTransform
from needle.ops.record import REGISTRY, BoundRule, Kind, Op

#: Elements from which on a kernel is faster than NumPy where both give the same.
LARGE = 1 << 14


def kernel_of(op: Op) -> Callable[[], Callable[..., Any]] | None:
    """Return what makes the kernel of an op; None for an op that runs its reference.

    The kernel goes from the reference's arguments to its result, or to None for what it leaves to
    the reference.
    """
    is_compound = op.decompose is not None
    if isinstance(op.lower, Convolution | WeightTransform):
        return None  # the forms that programs compute with: only their tests run them eagerly
    if op.kind is Kind.ELEMENTWISE:
        # Conversions have an attribute, and NumPy a pass for them; what is refused, it looks for.
        is_one_pass = op.is_ufunc or op.fault is not None or bool(op.attributes)
        if is_one_pass and not is_compound:
            return None
        return lambda: _module("fused_kernels").forward(op)
    if op.kind is Kind.CONTRACTION and not is_compound:
        return lambda: _module("matmul").matmul
    if op.kind is Kind.CONTRACTION:
        return lambda: _module("convolution").convolution
    if op.kind is Kind.ATTENTION:
        is_forward = len(op.inputs) < 6
        return lambda: getattr(_module("eager_attention"), "forward" if is_forward else "backward")
    if is_compound and op.row_axes:
        return lambda: _module("fused_kernels").forward(op)
    if not is_compound or op.kind not in (Kind.NORMALIZATION, Kind.REDUCTION):
        return None
    if len(op.inputs) == 1:
        return lambda: _module("rowwise").along_rows(op)
    if "normalized" in op.attributes:
        return lambda: _module("rowwise").affine_rows(op)
    if _has_parameters(op):
        return lambda: _module("fused_kernels").forward(op)
    return lambda: _module("rowwise").labelled_rows(op)


def backward_of(op: Op) -> Callable[[], Callable[..., Any]] | None:
    """Return what makes the kernel of an op's vjp rules; None for an op whose rules run as ops."""
    if op.kind is Kind.ELEMENTWISE or _has_parameters(op):
        return lambda: _module("fused_kernels").backward(op)
    return None


def _has_parameters(op: Op) -> bool:
    """Whether an op normalises by parameters that have fewer axes than its first input.

    With ``normalized``, its rules are ops that have kernels; with one ``axis``, it scores labels.
    """
    is_compound = op.kind is Kind.NORMALIZATION and op.decompose is not None
    return is_compound and len(op.inputs) > 1 and not {"normalized", "axis"} & {*op.attributes}


def install() -> None:
    """Tell the ops their kernels."""
    for op in REGISTRY.values():
        if isinstance(op, Op):
            make = kernel_of(op)
            if make is not None:
                op.kernel = _on_demand(op, make)
            make = backward_of(op)
            if make is not None and op.rules:
                op.backward = _backward_on_demand(op, make)


def _module(name: str) -> Any:
    return import_module(f"needle.backends.cpu.{name}")


def _on_demand(op: Op, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Return a kernel that at its first call puts the real one in its place.

    At the first that is worth it: small calls come first in most programs, and shall not import the
    compiler.
    """
    least = LARGE if op.exact else 0

    def kernel(*arrays: Any, **attrs: Any) -> Any:
        if all(a.size < least for a in arrays) or (
            op.kind is Kind.ELEMENTWISE and not any(a.ndim for a in arrays)
        ):
            return None
        op.kernel = make()
        return op.kernel(*arrays, **attrs)

    return kernel


def _backward_on_demand(op: Op, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Return what `_on_demand` does, for the vjp rules."""

    def kernel(calls: list[tuple[BoundRule, list[Any]]]) -> Any:
        is_small = all(getattr(a, "size", 0) < LARGE for a in calls[0][1])
        if is_small and (op.kernel is None or op.exact):
            return None
        op.backward = make()
        return op.backward(calls)

    return kernel


install()
