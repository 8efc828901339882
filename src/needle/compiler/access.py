"""Accesses: which elements of which buffers does the computation of one element read?

The records' own lowerings answer. Elementwise ops read their inputs at the same index, broadcast;
ops that move elements are run on symbolic indices with a builder that only takes notes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from needle.compiler import index as ix
from needle.compiler.index import Index, Var
from needle.graph.ir import Node, Value
from needle.ops.ordered import Ordered, Scatter, Sort
from needle.ops.record import Kind
from needle.shapes import Shape

Place = tuple[Index, ...]


class Access(NamedTuple):
    """An element that is read: of a value, at an index."""

    value: Value
    at: Place


def broadcast(index: Sequence[Index], shape: Shape) -> Place:
    """Return the index into ``shape`` of what broadcasts to the element at ``index``."""
    lead = len(index) - len(shape)
    return tuple(ix.ZERO if n == 1 else index[lead + a] for a, n in enumerate(shape))


def moves_elements(node: Node) -> bool:
    """Whether an element of the result is a function of elements at computed indices, so that the
    op needs no memory of its own."""
    op = node.op
    return op.kind in (Kind.MOVEMENT, Kind.INDEXING, Kind.RANDOM) and callable(op.lower)


def is_inline(node: Node) -> bool:
    """Whether elements of the result can be computed where they are used."""
    return node.op.kind is Kind.ELEMENTWISE or moves_elements(node)


def is_literal(value: Value) -> bool:
    """Whether it is a constant of one element, which stands in the code itself."""
    return value.constant is not None and value.size == 1


class Source:
    """An input of an op that moves elements: a function of an index."""

    def __init__(self, value: Value, element: Callable[[Value, Place], Any]) -> None:
        self.value = value
        self.shape = value.shape
        self.dtype = value.dtype
        self._element = element

    def __call__(self, index: Iterable[Index]) -> Any:
        """Return the element at ``index``."""
        return self._element(self.value, tuple(index))


class IndexBuilder:
    """What a lowering of an op that moves elements builds with; here, it only visits.

    Attributes:
        shape: of the result.
        number: which of the op's results is asked for.
    """

    def __init__(self, value: Value) -> None:
        assert value.node is not None
        self.shape = value.shape
        self.number = value.index

    constant = staticmethod(ix.constant)
    ravel = staticmethod(ix.ravel)
    unravel = staticmethod(ix.unravel)
    broadcast = staticmethod(broadcast)

    def where(
        self,
        conditions: Sequence[tuple[Index, int, int]],
        inside: Callable[[], Any],
        outside: Callable[[], Any],
    ) -> Any:
        """Return ``inside()`` where all of ``low ≤ index < high``, else ``outside()``."""
        inside()
        outside()

    def fill(self, value: float) -> Any:
        """Return a constant of the result's dtype."""

    def loaded(
        self,
        source: Source,
        index: Place,
        extent: int,
        what: str,
        *,
        signed: bool = True,
        name: str = "index",
    ) -> Index:
        """Return an integer element as an index into an axis; negative ones count from the end."""
        source(index)
        return ix.loaded(source.value, index, extent, what, signed, name)


class _Visitor(IndexBuilder):
    """Adds what random ops use: they compute with the index itself."""

    def __getattr__(self, name: str) -> Any:
        # Arithmetic on elements reads nothing.
        return lambda *arguments, **options: None


def reads(value: Value, index: Place, is_stored: Callable[[Value], bool]) -> list[Access]:
    """Return what computing ``value`` at ``index`` reads of stored values, each access once.

    Args:
        value: is computed, even if it is stored.
        index: symbolic.
        is_stored: whether a value lies in memory; what does not is computed on the way.
    """
    found: dict[Access, None] = {}
    seen: set[Access] = set()

    def visit(v: Value, at: Place) -> None:
        if is_literal(v):
            return
        if v.node is None or is_stored(v):
            found.setdefault(Access(v, at))
            return
        compute(v, at)

    def compute(v: Value, at: Place) -> None:
        key = Access(v, at)
        if key in seen:
            return
        seen.add(key)
        node = v.node
        assert node is not None
        if node.op.kind is Kind.ELEMENTWISE:
            for operand in node.inputs:
                visit(operand, broadcast(at, operand.shape))
        else:
            assert callable(node.op.lower)
            sources = [Source(operand, visit) for operand in node.inputs]
            node.op.lower(_Visitor(v), at, *sources, **node.attrs)

    compute(value, index)
    return list(found)


def operand_reads(value: Value, at: Place, is_stored: Callable[[Value], bool]) -> list[Access]:
    """Return what the element of ``value`` at an index reads: itself, if it lies in memory."""
    if is_literal(value):
        return []
    if value.node is None or is_stored(value):
        return [Access(value, at)]
    return reads(value, at, is_stored)


def ordered_reads(node: Node, at: Place, is_stored: Callable[[Value], bool]) -> list[Access]:
    """Return what an op that goes through elements in an order reads.

    Args:
        node: applies an op that is lowered as a scan, a scatter or a sort.
        at: the element of the result that the loops mean.
        is_stored: whether a value lies in memory.
    """
    lower = node.op.lower
    assert isinstance(lower, Ordered)
    if isinstance(lower, Sort):
        (x,) = node.inputs
        return operand_reads(x, tuple(ix.of(v) for v in variables(x.shape)), is_stored)
    if not isinstance(lower, Scatter):
        return operand_reads(node.inputs[0], at, is_stored)
    found: list[Access] = []

    def visit(value: Value, place: Place) -> None:
        found.extend(operand_reads(value, place, is_stored))

    values = node.inputs[lower.values]
    index = tuple(ix.of(v) for v in variables(values.shape))
    visit(values, index)
    if lower.base is not None:
        visit(node.inputs[lower.base], at)
    if lower.shift is not None:
        visit(node.inputs[lower.shift], ())
    sources = [Source(operand, visit) for operand in node.inputs]
    lower.place(IndexBuilder(node.results[0]), index, *sources, **node.attrs)
    return found


def variables(shape: Shape, names: str = "ijklmnopq") -> tuple[Var, ...]:
    """Return a loop variable for each axis."""
    return tuple(Var(names[a % len(names)], n) for a, n in enumerate(shape))


def is_dense(shape: Shape, strides: Sequence[int]) -> bool:
    """Whether elements with these strides lie in row-major order, without gaps."""
    return 0 in shape or all(
        n == 1 or a == b for n, a, b in zip(shape, strides, ix.strides_of(shape), strict=True)
    )


class View(NamedTuple):
    """A value seen in the memory of another: its element at ``i`` is at ``offset + Σ i·stride``."""

    base: Value
    offset: int
    strides: tuple[int, ...]


def view_of(value: Value, is_stored: Callable[[Value], bool]) -> View | None:
    """Return ``value`` as strides into the memory of a stored value, if it is that."""
    if value.node is None or is_stored(value):
        return View(value, 0, ix.strides_of(value.shape))
    node = value.node
    if not moves_elements(node) or len(node.inputs) != 1:
        return None
    loop = variables(value.shape)
    place: list[Access] = []

    class Follower(IndexBuilder):
        def where(self, conditions: Any, inside: Any, outside: Any) -> Any:
            raise _NoViewError

        def fill(self, value: float) -> Any:
            raise _NoViewError

    def element(v: Value, at: Place) -> None:
        if v.node is None or is_stored(v):
            place.append(Access(v, at))
        elif moves_elements(v.node) and len(v.node.inputs) == 1:
            follow(v, at)
        else:
            raise _NoViewError

    def follow(v: Value, at: Place) -> None:
        assert v.node is not None
        assert callable(v.node.op.lower)
        builder = Follower(v)
        v.node.op.lower(builder, at, Source(v.node.inputs[0], element), **v.node.attrs)

    try:
        follow(value, tuple(ix.of(v) for v in loop))
    except (_NoViewError, AttributeError):
        return None
    if len(place) != 1:
        return None
    base, at = place[0]
    offset = ix.ravel(at, base.shape)
    strides = [0 if v.extent == 1 else offset.stride(v) for v in loop]
    if any(s is None for s in strides):
        return None
    return View(base, offset.constant, tuple(s or 0 for s in strides))


class _NoViewError(Exception):
    pass
