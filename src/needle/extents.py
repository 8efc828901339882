"""Extents that vary: what stands in shapes for the extent of a `Dim` while a function is traced.

A program that serves a batch of any size must not have been shaped by the size it was traced with.
So the trace does not see a number. It sees an `Extent`: a multiple of an extent that each call
gives, which computes as an integer does. What is computed from it and is no multiple is a
`Formula`: what it is worth is asked again for each extent that is met. To compare is to decide:
the program is good for those extents for which all its comparisons have the same outcome. And
whoever needs a number (``range(n)``, ``np.zeros(n)``) gets none: that ends the trace, and each
extent gets a program of its own.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import numpy as np

from needle.errors import TraceError

Number: TypeAlias = "int | float"


class NeedsNumberError(BaseException):
    """Ends a trace that needs to know an extent that varies.

    No `Exception`, so that no function that is traced takes it for its own.
    """


class Symbol:
    """An extent that each call gives, and what a trace has asked about it.

    Args:
        name: of the `Dim`.
        hint: an extent for which the function is traced: it decides comparisons.

    Attributes:
        guards: the comparisons, with their outcomes.
        numbers: what the program needs to know as numbers, by formula and dtype: values of a graph.
        reason: why there can be no program for all extents; empty if nothing is known against it.
        is_closed: whether the trace is over, so that nothing can be asked any more.
    """

    def __init__(self, name: str, hint: int) -> None:
        self.name = name
        self.hint = hint
        self.guards: dict[str, tuple[Formula, bool]] = {}
        self.numbers: dict[tuple[str, Any], tuple[Formula, Any]] = {}
        self.reason = ""
        self.is_closed = False

    @property
    def extent(self) -> Extent:
        """The extent itself."""
        return Extent(self, 1)

    def refuse(self, what: str) -> NoReturn:
        """End the trace, because of ``what``."""
        if self.is_closed:
            raise TraceError(
                f"{what} at {_line()}: it is the extent of a tensor of a traced function, which "
                "left it behind; return it from the function, or read the shape of a tensor outside"
            )
        self.reason = self.reason or f"{what} at {_line()}"
        raise NeedsNumberError(self.reason)

    def decide(self, condition: Formula) -> bool:
        """Return what a condition is for the hint, and remember it."""
        if self.is_closed:
            self.refuse(f"{condition} is decided")
        outcome = bool(condition.at(self.hint))
        self.guards.setdefault(condition.text, (condition, outcome))
        return outcome

    def differs_at(self, extent: int) -> str:
        """Return a comparison that has another outcome for ``extent``; empty if there is none."""
        for text, (condition, outcome) in self.guards.items():
            try:
                same = bool(condition.at(extent)) is outcome
            except ArithmeticError:
                same = False
            if not same:
                return text
        return ""


_PACKAGE = __file__.rpartition("extents")[0]
_LIBRARIES = (_PACKAGE, np.__file__.rpartition("__init__")[0])


def _line() -> str:
    """Return ``file:line`` of the innermost frame outside of needle and NumPy."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _is_ours() -> bool:
    """Whether needle itself asks, which knows that this is no number."""
    return sys._getframe(2).f_code.co_filename.startswith(_PACKAGE)


class Formula:
    """A number that depends on an extent that varies.

    Attributes:
        symbol: the extent.
        at: from an extent to the number.
        text: how it reads; equal texts are equal formulas.
    """

    __slots__ = ("at", "symbol", "text")

    # NumPy hands operations on it back.
    __array_ufunc__ = None

    def __init__(self, symbol: Symbol, at: Callable[[int], Number], text: str) -> None:
        self.symbol = symbol
        self.at = at
        self.text = text

    def __str__(self) -> str:
        if not (self.symbol.is_closed or _is_ours()):
            self.symbol.refuse(f"{self.text} is made text")
        return self.text

    def __repr__(self) -> str:
        if not (self.symbol.is_closed or _is_ours()):
            self.symbol.refuse(f"{self.text} is made text")
        return self.text

    def __format__(self, spec: str) -> str:
        if not (self.symbol.is_closed or _is_ours()):
            self.symbol.refuse(f"{self.text} is made text")
        return self.text

    def __hash__(self) -> int:
        if not _is_ours():
            self.symbol.refuse(f"{self.text} is looked up in a set or a dict")
        return hash((id(self.symbol), self.text))

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        if not _is_ours():
            self.symbol.refuse(f"the type of {self.text} is asked for")
        return type(self)

    # Arithmetic

    def _with(self, function: Callable[..., Any], sign: str, other: Any, swap: bool) -> Any:
        """Return ``self sign other``, or the reverse."""
        if isinstance(other, np.generic):
            other = other.item()
        if isinstance(other, Formula):
            if other.symbol is not self.symbol:
                self.symbol.refuse(f"{self} meets {other}, an extent of another trace,")
        elif isinstance(other, np.ndarray):
            self.symbol.refuse(f"{self} meets an array of NumPy")
        elif not isinstance(other, int | float):
            return NotImplemented
        left, right = (other, self) if swap else (self, other)
        text = f"({left} {sign} {right})"
        return Formula(self.symbol, lambda n: function(_at(left, n), _at(right, n)), text)

    def __add__(self, other: Any) -> Any:
        return self._with(operator.add, "+", other, False)

    def __radd__(self, other: Any) -> Any:
        return self._with(operator.add, "+", other, True)

    def __sub__(self, other: Any) -> Any:
        return self._with(operator.sub, "-", other, False)

    def __rsub__(self, other: Any) -> Any:
        return self._with(operator.sub, "-", other, True)

    def __mul__(self, other: Any) -> Any:
        return self._with(operator.mul, "*", other, False)

    def __rmul__(self, other: Any) -> Any:
        return self._with(operator.mul, "*", other, True)

    def __truediv__(self, other: Any) -> Any:
        return self._with(operator.truediv, "/", other, False)

    def __rtruediv__(self, other: Any) -> Any:
        return self._with(operator.truediv, "/", other, True)

    def __floordiv__(self, other: Any) -> Any:
        return self._with(operator.floordiv, "//", other, False)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._with(operator.floordiv, "//", other, True)

    def __mod__(self, other: Any) -> Any:
        return self._with(operator.mod, "%", other, False)

    def __rmod__(self, other: Any) -> Any:
        return self._with(operator.mod, "%", other, True)

    def __pow__(self, other: Any) -> Any:
        return self._with(operator.pow, "**", other, False)

    def __rpow__(self, other: Any) -> Any:
        return self._with(operator.pow, "**", other, True)

    def __neg__(self) -> Any:
        return 0 - self

    def __pos__(self) -> Any:
        return self

    # Comparisons

    def _compare(self, function: Callable[..., bool], sign: str, other: Any) -> Any:
        condition = self._with(function, sign, other, False)
        return condition if condition is NotImplemented else self.symbol.decide(condition)

    def __eq__(self, other: object) -> Any:
        return self._compare(operator.eq, "==", other)

    def __ne__(self, other: object) -> Any:
        return self._compare(operator.ne, "!=", other)

    def __lt__(self, other: Any) -> Any:
        return self._compare(operator.lt, "<", other)

    def __le__(self, other: Any) -> Any:
        return self._compare(operator.le, "<=", other)

    def __gt__(self, other: Any) -> Any:
        return self._compare(operator.gt, ">", other)

    def __ge__(self, other: Any) -> Any:
        return self._compare(operator.ge, ">=", other)

    def __bool__(self) -> bool:
        return self.symbol.decide(self)

    # What needs a number

    def __index__(self) -> int:
        self.symbol.refuse(f"{self} is used as a number")

    def __int__(self) -> int:
        self.symbol.refuse(f"{self} is made an int")

    def __float__(self) -> float:
        self.symbol.refuse(f"{self} is made a float")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        self.symbol.refuse(f"{self} is made an array")


def _at(value: Any, extent: int) -> Any:
    return value.at(extent) if isinstance(value, Formula) else value


class Extent(Formula):
    """A multiple of an extent that varies, which is at least 1: as good as a number in a shape.

    Attributes:
        factor: how many times it is the extent; at least 1.
    """

    __slots__ = ("factor",)

    def __init__(self, symbol: Symbol, factor: int) -> None:
        text = symbol.name if factor == 1 else f"{factor}·{symbol.name}"
        super().__init__(symbol, lambda n: factor * n, text)
        self.factor = factor

    __hash__ = Formula.__hash__

    def _scaled(self, factor: int) -> Any:
        return Extent(self.symbol, factor) if factor > 0 else Formula.__mul__(self, 0)

    def _sibling(self, other: Any) -> int:
        """Return the factor of another multiple of the same extent; 0 if it is none."""
        is_sibling = other.__class__ is Extent and other.symbol is self.symbol
        return other.factor if is_sibling else 0

    def __add__(self, other: Any) -> Any:
        if other.__class__ is int and other == 0:
            return self
        factor = self._sibling(other)
        return self._scaled(self.factor + factor) if factor else super().__add__(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        if other.__class__ is int and other == 0:
            return self
        factor = self._sibling(other)
        if factor == self.factor:
            return 0
        return self._scaled(self.factor - factor) if factor else super().__sub__(other)

    def __mul__(self, other: Any) -> Any:
        if other.__class__ is int:
            return self._scaled(self.factor * other) if other else 0
        return super().__mul__(other)

    __rmul__ = __mul__

    def __floordiv__(self, other: Any) -> Any:
        factor = self._sibling(other)
        if factor and self.factor % factor == 0:
            return self.factor // factor
        if other.__class__ is int and other > 0 and self.factor % other == 0:
            return self._scaled(self.factor // other)
        return super().__floordiv__(other)

    def __mod__(self, other: Any) -> Any:
        factor = self._sibling(other)
        if factor and self.factor % factor == 0:
            return 0
        if other.__class__ is int and other > 0 and self.factor % other == 0:
            return 0
        return super().__mod__(other)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def _compare(self, function: Callable[..., bool], sign: str, other: Any) -> Any:
        factor = self._sibling(other)
        if factor:  # the extent is at least 1
            return function(self.factor, factor)
        if other.__class__ is int and other < self.factor:
            return function(self.factor, other)
        return super()._compare(function, sign, other)

    def __bool__(self) -> bool:
        return True


def is_varying(extent: Any) -> bool:
    """Whether an extent, or what is computed from one, varies."""
    return isinstance(extent, Formula)


def is_single(extent: int) -> bool:
    """Whether an extent is 1 in all calls, so that it is what broadcasts.

    One that varies is not, even if it is 1 in some call: what is computed with it then is the same.
    """
    return not is_varying(extent) and extent == 1


def is_same_shape(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes are equal in all calls: an extent that varies is never like a number."""
    return len(a) == len(b) and all(
        is_varying(x) == is_varying(y) and x == y for x, y in zip(a, b, strict=True)
    )


def extents_in(value: Any) -> bool:
    """Whether there is a formula in a value: in tuples, lists and dicts, too."""
    if isinstance(value, tuple | list):
        return any(map(extents_in, value))
    if isinstance(value, dict):
        return any(map(extents_in, value.values()))
    return isinstance(value, Formula)


def with_extent(value: Any, number: Callable[[Formula], Any]) -> Any:
    """Return ``value`` with what ``number`` makes of each formula in it."""
    if isinstance(value, Formula):
        return number(value)
    if isinstance(value, tuple) and extents_in(value):
        parts = [with_extent(part, number) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list) and extents_in(value):
        return [with_extent(part, number) for part in value]
    if isinstance(value, dict) and extents_in(value):
        return {key: with_extent(part, number) for key, part in value.items()}
    return value
