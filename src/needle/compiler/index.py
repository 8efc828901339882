"""Symbolic indices: which element of its input does an element of a result come from?

An index is a sum of integer multiples of *atoms* plus a constant. Atoms are the variables of the
loops, quotients and remainders that a reshape leaves behind, and integers read from a tensor. Sums
are kept in a normal form, so that a chain of reshapes, permutations and slices that amounts to a
stride is seen as that stride: the generated code then loads neighbours into a vector.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from needle.shapes import Shape


@dataclass(frozen=True, eq=False)
class Var:
    """A loop's variable, in ``range(extent)``; each is distinct.

    Attributes:
        name: for people.
        extent: how many values it takes.
    """

    name: str
    extent: int

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value."""
        return 0, max(self.extent - 1, 0)

    def variables(self) -> frozenset[Var]:
        """Return the loop variables that it depends on."""
        return frozenset((self,))

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Quotient:
    """``⌊value / divisor⌋`` of an index that is not negative."""

    value: Index
    divisor: int

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value."""
        low, high = self.value.bounds
        return low // self.divisor, high // self.divisor

    def variables(self) -> frozenset[Var]:
        """Return the loop variables that it depends on."""
        return self.value.variables

    def __repr__(self) -> str:
        return f"({self.value})//{self.divisor}"


@dataclass(frozen=True)
class Remainder:
    """``value mod divisor`` of an index that is not negative."""

    value: Index
    divisor: int

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value."""
        return 0, self.divisor - 1

    def variables(self) -> frozenset[Var]:
        """Return the loop variables that it depends on."""
        return self.value.variables

    def __repr__(self) -> str:
        return f"({self.value})%{self.divisor}"


@dataclass(frozen=True)
class Loaded:
    """An integer read from a tensor while the kernel runs: an index of a gather.

    Attributes:
        value: the tensor: a graph's value.
        index: which element.
        extent: the integer is in ``range(extent)``, after the wrap of negative ones.
        what: what the error calls the range.
        name: of the op, for the error.
        signed: whether negative integers count from the end.
    """

    value: Any
    index: tuple[Index, ...]
    extent: int
    what: str = ""
    signed: bool = True
    name: str = "index"

    @property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value."""
        return 0, max(self.extent - 1, 0)

    def variables(self) -> frozenset[Var]:
        """Return the loop variables that it depends on."""
        return frozenset().union(*(i.variables for i in self.index))

    def __repr__(self) -> str:
        return f"{self.value}[{', '.join(map(str, self.index))}]"


Atom: TypeAlias = Var | Quotient | Remainder | Loaded


@dataclass(frozen=True)
class Index:
    """``Σ coefficient · atom + constant``, in normal form.

    Example:
        >>> from needle.compiler.index import Var, of
        >>> i, j = of(Var("i", 4)), of(Var("j", 6))
        >>> (i * 6 + j) // 6, (i * 6 + j) % 3
        (i, (j)%3)
    """

    terms: frozenset[tuple[Atom, int]]
    constant: int = 0

    @cached_property
    def variables(self) -> frozenset[Var]:
        """The loop variables that it depends on."""
        return frozenset().union(*(a.variables() for a, _ in self.terms))

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """Smallest and largest value, as far as that is known."""
        low = high = self.constant
        for atom, c in self.terms:
            a, b = atom.bounds
            low += min(c * a, c * b)
            high += max(c * a, c * b)
        return low, high

    @property
    def is_constant(self) -> bool:
        """Whether it is a number."""
        return not self.terms

    def stride(self, var: Var) -> int | None:
        """Return by how much it grows with ``var``; None if not by a constant."""
        result = 0
        for atom, c in self.terms:
            if atom is var:
                result = c
            elif var in atom.variables():
                return None
        return result

    def without(self, var: Var) -> Index:
        """Return it for ``var`` = 0, where it has a stride."""
        return Index(frozenset((a, c) for a, c in self.terms if a is not var), self.constant)

    def __add__(self, other: Index | int) -> Index:
        if isinstance(other, int):
            return Index(self.terms, self.constant + other)
        return _sum((*self.terms, *other.terms), self.constant + other.constant)

    __radd__ = __add__

    def __neg__(self) -> Index:
        return self * -1

    def __sub__(self, other: Index | int) -> Index:
        return self + -other

    def __rsub__(self, other: int) -> Index:
        return -self + other

    def __mul__(self, factor: int) -> Index:
        if factor == 0:
            return ZERO
        return Index(frozenset((a, c * factor) for a, c in self.terms), self.constant * factor)

    __rmul__ = __mul__

    def __floordiv__(self, divisor: int) -> Index:
        if divisor == 1:
            return self
        whole, rest = self._split(divisor)
        low, high = rest.bounds
        if low >= 0 and high < divisor:
            return whole
        return whole + _quotient(rest, divisor)

    def __mod__(self, divisor: int) -> Index:
        if divisor == 1:
            return ZERO
        _, rest = self._split(divisor)
        low, high = rest.bounds
        if low >= 0 and high < divisor:
            return rest
        common = _common(rest, divisor)
        if common > 1:
            return (_divided(rest, common) % (divisor // common)) * common
        factor, coarse, fine = _two_scales(rest, divisor)
        if factor > 1:
            return (_divided(coarse, factor) % (divisor // factor)) * factor + fine
        if low < 0:  # the remainder of a negative number is that of one moved up
            rest = rest + divisor * -(low // divisor)
        return _single(Remainder(rest, divisor))

    def _split(self, divisor: int) -> tuple[Index, Index]:
        """Return ``q`` and ``r`` with ``self == q · divisor + r``."""
        whole = frozenset((a, c // divisor) for a, c in self.terms if c % divisor == 0)
        rest = frozenset((a, c) for a, c in self.terms if c % divisor)
        q, r = divmod(self.constant, divisor)
        return Index(whole, q), Index(rest, r)

    def substitute(self, mapping: Mapping[Var, Index]) -> Index:
        """Return it with variables replaced."""
        if not any(v in mapping for v in self.variables):
            return self
        result = constant(self.constant)
        for atom, c in self.terms:
            if isinstance(atom, Var):
                replaced = mapping.get(atom, _single(atom))
            elif isinstance(atom, Quotient):
                replaced = atom.value.substitute(mapping) // atom.divisor
            elif isinstance(atom, Remainder):
                replaced = atom.value.substitute(mapping) % atom.divisor
            else:
                inner = tuple(i.substitute(mapping) for i in atom.index)
                replaced = _single(replace(atom, index=inner))
            result = result + replaced * c
        return result

    def __repr__(self) -> str:
        parts = [str(a) if c == 1 else f"{c}*{a}" for a, c in sorted(self.terms, key=str)]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts)


ZERO = Index(frozenset())


def constant(value: int) -> Index:
    """Return a number as an index."""
    return Index(frozenset(), value)


def _single(atom: Atom) -> Index:
    return Index(frozenset(((atom, 1),)))


def of(var: Var) -> Index:
    """Return a variable as an index; one of extent 1 is 0."""
    return ZERO if var.extent == 1 else _single(var)


def loaded(
    value: Any,
    index: tuple[Index, ...],
    extent: int,
    what: str = "",
    signed: bool = True,
    name: str = "index",
) -> Index:
    """Return an integer read from a tensor as an index; see `Loaded`."""
    return _single(Loaded(value, index, extent, what, signed, name))


def _common(index: Index, divisor: int) -> int:
    """Return the largest factor of all coefficients and the divisor that can be taken out."""
    return math.gcd(divisor, index.constant, *(c for _, c in index.terms))


def _two_scales(index: Index, divisor: int) -> tuple[int, Index, Index]:
    """Return a factor of ``divisor`` and two indices that add up to ``index``: a multiple of the
    factor, and one in ``range(factor)``. The factor is 1 if there is none.

    ⌊(g·x + r) / (g·d)⌋ = ⌊x / d⌋ and (g·x + r) mod (g·d) = g·(x mod d) + r for 0 ≤ r < g.
    """
    for factor in sorted({math.gcd(divisor, c) for _, c in index.terms}, reverse=True):
        if factor <= 1:
            break
        coarse = frozenset((a, c) for a, c in index.terms if c % factor == 0)
        whole, number = divmod(index.constant, factor)
        fine = Index(index.terms - coarse, number)
        low, high = fine.bounds
        if low >= 0 and high < factor:
            return factor, Index(coarse, whole * factor), fine
    return 1, index, ZERO


def _divided(index: Index, factor: int) -> Index:
    return Index(frozenset((a, c // factor) for a, c in index.terms), index.constant // factor)


def _quotient(index: Index, divisor: int) -> Index:
    """Return the quotient of an index none of whose terms the divisor divides."""
    # ⌊(g·x + k) / (g·d)⌋ = ⌊x / d⌋ for 0 ≤ k < g.
    common = math.gcd(divisor, *(c for _, c in index.terms))
    if common > 1:
        return _divided(index, common) // (divisor // common)
    factor, coarse, _ = _two_scales(index, divisor)
    if factor > 1:
        return _divided(coarse, factor) // (divisor // factor)
    if len(index.terms) == 1 and not index.constant:
        ((atom, c),) = index.terms
        if c == 1 and isinstance(atom, Quotient):  # ⌊⌊x / a⌋ / b⌋ = ⌊x / (a·b)⌋
            return atom.value // (atom.divisor * divisor)
    low, _ = index.bounds
    if low < 0:
        lift = -(low // divisor)
        return _single(Quotient(index + lift * divisor, divisor)) + -lift
    return _single(Quotient(index, divisor))


def _sum(terms: Iterable[tuple[Atom, int]], number: int) -> Index:
    total: dict[Atom, int] = {}
    for atom, c in terms:
        total[atom] = total.get(atom, 0) + c
    changed = any(isinstance(a, Remainder) for a in total)
    while changed:
        changed = False
        for atom in list(total):
            if not isinstance(atom, Remainder) or not total.get(atom):
                continue
            # k·(x mod d) + k·d·⌊x / d⌋ = k·x, which undoes what a reshape did.
            k = total[atom]
            quotient = atom.value // atom.divisor
            wanted = {a: c * k * atom.divisor for a, c in quotient.terms}
            if wanted and all(total.get(a) == c for a, c in wanted.items()):
                del total[atom]
                for a in wanted:
                    del total[a]
                number += k * atom.value.constant - k * atom.divisor * quotient.constant
                for a, c in atom.value.terms:
                    total[a] = total.get(a, 0) + k * c
                changed = True
                break
    return Index(frozenset((a, c) for a, c in total.items() if c), number)


def strides_of(shape: Shape) -> tuple[int, ...]:
    """Return the distance, in elements, between neighbours along each axis in row-major order."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 2, -1, -1):
        strides[axis] = strides[axis + 1] * shape[axis + 1]
    return tuple(strides)


def ravel(index: Sequence[Index], shape: Shape) -> Index:
    """Return the place of an element in row-major order."""
    place = ZERO
    for i, stride, extent in zip(index, strides_of(shape), shape, strict=True):
        if extent != 1:
            place = place + i * stride
    return place


def unravel(place: Index, shape: Shape) -> tuple[Index, ...]:
    """Return the index of the element at a place in row-major order."""
    if 0 in shape:  # there are no elements
        return (ZERO,) * len(shape)
    result = []
    for axis, (stride, extent) in enumerate(zip(strides_of(shape), shape, strict=True)):
        if extent <= 1:
            result.append(ZERO)
            continue
        i = place // stride
        # Nothing outside of the shape is asked for, so the first axis needs no remainder.
        outermost = math.prod(shape[:axis]) == 1
        result.append(i if outermost else i % extent)
    return tuple(result)
