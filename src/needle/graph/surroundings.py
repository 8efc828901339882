"""What a function takes from around it besides tensors' values, and what it does to that.

A compiled function does not run its Python again. So numbers that it takes from its closure, its
globals or the attributes of the object that it is a method of are constants of the program: when
one changes, the function is traced anew. And what it changes there itself would be changed once,
by the trace, and not by each call: that is an error.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from needle.extents import Formula

#: What is compared by value; all else is compared by identity.
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
#: What is part of the program text rather than of its surroundings.
_CODE = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    staticmethod,
    classmethod,
)
#: How many items of a container are looked at, and how deep.
_ITEMS, _DEPTH = 1000, 4

MISSING = object()


class Same:
    """An object that equals only itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return repr(self.value)


def frozen(value: Any, depth: int = _DEPTH) -> Any:
    """Return a form of ``value`` that stays as it is now, and is equal as long as that is so."""
    if isinstance(value, _PLAIN):
        return value.__class__, value
    if isinstance(value, Formula) and not value.symbol.is_closed:
        value.symbol.refuse(f"{value} is kept beyond the call")
    if isinstance(value, (list, tuple, dict, set)) and depth and len(value) <= _ITEMS:
        items: Any = value.items() if isinstance(value, dict) else value
        parts = [frozen(item, depth - 1) for item in items]
        return value.__class__, frozenset(parts) if isinstance(value, set) else tuple(parts)
    if isinstance(value, (list, dict, set)):
        return value.__class__, len(value), Same(value)
    return Same(value)


def is_plain(value: Any) -> bool:
    """Whether a value, with all that is in it, is compared by value."""
    if isinstance(value, dict):
        return all(is_plain(key) and is_plain(part) for key, part in value.items())
    if isinstance(value, (list, tuple, set)):
        return len(value) <= _ITEMS and all(map(is_plain, value))
    return isinstance(value, _PLAIN)


class Reference:
    """A name by which a function takes something from around it.

    Attributes:
        what: what errors call it: ``the global scale``.
        holder: the dict or the cell that has the value.
        name: the key in the dict; empty for a cell.
    """

    __slots__ = ("holder", "name", "what")

    def __init__(self, what: str, holder: Any, name: str = "") -> None:
        self.what = what
        self.holder = holder
        self.name = name

    def value(self) -> Any:
        """Return what it stands for now; `MISSING` if nothing."""
        if self.name:
            return self.holder.get(self.name, MISSING)
        try:
            return self.holder.cell_contents
        except ValueError:
            return MISSING

    def probe(self) -> Any:
        """Return what is compared."""
        return frozen(self.value())


def references_of(function: Callable[..., Any], args: tuple[Any, ...]) -> list[Reference]:
    """Return what ``function`` takes from its closure, its globals and the object it belongs to.

    Args:
        function: any callable; only functions written in Python have such references.
        args: its arguments; the first may be the object.
    """
    while isinstance(function, functools.partial):
        args = (*function.args, *args)
        function = function.func
    if isinstance(function, types.MethodType):
        args = (function.__self__, *args)
    function = inspect.unwrap(function)
    if isinstance(function, types.MethodType):
        function = function.__func__
    if not isinstance(function, types.FunctionType):
        return []
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    found = [Reference(f"the variable {name}", cell) for name, cell in cells]
    names = sorted(set(_names(code)))
    space = function.__globals__
    found += [Reference(f"the global {name}", space, name) for name in names if name in space]
    owner = args[0] if args and code.co_varnames[:1] == ("self",) else None
    own = getattr(owner, "__dict__", None)
    if own is not None and not hasattr(owner, "named_modules"):
        found += [Reference(f"the attribute {name}", own, name) for name in names if name in own]
    return [r for r in found if not isinstance(r.value(), _CODE)]


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in a function and in those inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def difference(before: Any, now: Any) -> str:
    """Return how two frozen values differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in (*now, *before):
            if before.get(name, MISSING) != now.get(name, MISSING):
                return f"its attribute {name!r}"
    if isinstance(before, tuple) and isinstance(now, tuple) and len(before) == len(now) == 2:
        kind, parts = now
        if before[0] is kind and isinstance(parts, tuple) and isinstance(before[1], tuple):
            if len(parts) != len(before[1]):
                return f"a {kind.__name__} of {len(before[1])} items has {len(parts)} now"
            return f"the items of the {kind.__name__}"
        if kind in _PLAIN and before[0] in _PLAIN:
            return f"{before[1]!r} is {parts!r} now"
    return "another object"
