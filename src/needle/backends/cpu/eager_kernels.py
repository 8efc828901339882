"""Which ops eager execution runs by generated kernels instead of their references.

By their traits: products and convolutions have run-time extents of their own; what normalises, or
scores labels, is compiled for rows of a length. Of the inputs of an op that says how many last axes
make a row (``normalized``), those that have no other axes are parameters of the columns. The
modules of the kernels are imported when they are first needed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from needle.ops.convolution_form import Convolution
from needle.ops.record import REGISTRY, Kind, Op


def kernel_of(op: Op) -> Callable[[], Callable[..., Any]] | None:
    """Return what makes the kernel of an op; None for an op that runs its reference.

    The kernel goes from the reference's arguments to its result, or to None for what it leaves to
    the reference.
    """
    is_compound = op.decompose is not None
    if isinstance(op.lower, Convolution):
        return None  # the forms that programs compute with: only their tests run them eagerly
    if op.kind is Kind.CONTRACTION and not is_compound:
        return lambda: _module("matmul").matmul
    if op.kind is Kind.CONTRACTION:
        return lambda: _module("convolution").convolution
    if op.kind is Kind.ATTENTION:
        is_forward = len(op.inputs) < 6
        return lambda: getattr(_module("eager_attention"), "forward" if is_forward else "backward")
    if not is_compound or op.kind not in (Kind.NORMALIZATION, Kind.REDUCTION):
        return None
    if len(op.inputs) == 1:
        return lambda: _module("rowwise").along_rows(op)
    if "normalized" in inspect.signature(op.infer).parameters:
        return lambda: _module("rowwise").affine_rows(op)
    return lambda: _module("rowwise").labelled_rows(op)


def install() -> None:
    """Tell the ops their kernels."""
    for op in REGISTRY.values():
        if isinstance(op, Op):
            make = kernel_of(op)
            if make is not None:
                op.kernel = _on_demand(op, make)


def _module(name: str) -> Any:
    return import_module(f"needle.backends.cpu.{name}")


def _on_demand(op: Op, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Return a kernel that at its first call puts the real one in its place."""

    def kernel(*arrays: Any, **attrs: Any) -> Any:
        op.kernel = make()
        return op.kernel(*arrays, **attrs)

    return kernel


install()
