"""Attach the methods and operators of `Tensor`, from the op records, when the package is
imported."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from needle._methods import attach_method
from needle.dtypes import float32, float64
from needle.extents import Formula
from needle.inplace import assign_item, copy_, fill_, update, zero_
from needle.ops.elementwise import NO_ATTRS, wear
from needle.ops.engine import engine
from needle.ops.methods import COMPARISONS, OPERATORS, UNARY
from needle.ops.record import REGISTRY, Entry, OpFunction
from needle.tensor import Tensor

#: What an operator accepts on its other side; anything else is left to the other's own operator.
_OPERANDS = (Tensor, np.ndarray, np.generic, bool, int, float, list, tuple, Formula)


def method_of(entry: Entry) -> Callable[..., Any]:
    """Return an op as a method, which takes shapes and axes one by one where its record says so."""
    function = entry.function
    if not entry.unpacks:
        return function

    @functools.wraps(function)
    def unpacked(self: Tensor, *shape: Any) -> Tensor:
        single = len(shape) == 1 and isinstance(shape[0], (tuple, list))
        result: Tensor = function(self, shape[0] if single else shape)
        return result

    return unpacked


def _binary(function: OpFunction[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the operator and the reflected one."""
    record = function.op

    def forward(self: Tensor, other: Any) -> Any:
        # The common cases, two floats of one dtype or a Python number, skip promotion.
        dtype = self._data.dtype
        if dtype is float32 or dtype is float64:
            kind = other.__class__
            if kind is float or kind is int:
                return engine.apply(record, (self, as_tensor(other, dtype)), NO_ATTRS)
            if isinstance(other, Tensor) and other._data.dtype is dtype:
                return engine.apply(record, (self, other), NO_ATTRS)
        return function(self, other) if isinstance(other, _OPERANDS) else NotImplemented

    def reflected(self: Tensor, other: Any) -> Any:
        return function(other, self) if isinstance(other, _OPERANDS) else NotImplemented

    def general(self: Tensor, other: Any) -> Any:
        return function(self, other) if isinstance(other, _OPERANDS) else NotImplemented

    as_tensor = engine.as_tensor
    takes_floats = record.promotion is not None and "float" in record.promotion
    return (forward if takes_floats else general), reflected


def _in_place(function: OpFunction[..., Any]) -> Callable[..., Any]:
    def write(self: Tensor, other: Any) -> Any:
        return update(self, function, other) if isinstance(other, _OPERANDS) else NotImplemented

    return write


def attach_methods() -> None:
    """Give `Tensor` a method for each record that asks for one, and the operators."""
    for entry in list(REGISTRY.values()):
        for name in (entry.name, *entry.aliases):
            if entry.is_method:
                attach_method(name, method_of(entry))
    for dunder, name in OPERATORS.items():
        function: Any = REGISTRY[name].function
        forward, reflected = _binary(function)
        stem = dunder[2:]
        attach_method(dunder, _named(forward, dunder, function))
        attach_method(f"__r{stem}", _named(reflected, f"__r{stem}", function))
        attach_method(f"__i{stem}", _named(_in_place(function), f"__i{stem}", function))
    for dunder, name in COMPARISONS.items():
        function = REGISTRY[name].function
        attach_method(dunder, _named(_binary(function)[0], dunder, function))
    for dunder, name in UNARY.items():
        attach_method(dunder, REGISTRY[name].function)
    attach_method("__getitem__", REGISTRY["getitem"].function)
    attach_method("__setitem__", assign_item)
    for write in (copy_, fill_, zero_):
        attach_method(write.__name__, write)


def _named(method: Callable[..., Any], name: str, function: Any) -> Callable[..., Any]:
    wear(method, function)
    method.__name__ = name
    return method


def attach_aliases(namespace: dict[str, Any]) -> None:
    """Add the public functions of all records, under all their names, to a module's namespace."""
    for entry in REGISTRY.values():
        for name in (entry.name, *entry.aliases):
            namespace.setdefault(name, entry.function)
