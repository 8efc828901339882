"""Emission of elements: from a value of the graph and a symbolic index to code that computes it.

The `Emitter` knows which loops are open and where their variables stand. It walks from an element
to what it is computed from, down to loads, and emits each part in the outermost loop in which it
can be computed: what does not change in a loop leaves it, and what is the same for all lanes of a
vector stays a scalar until it meets a vector.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from needle import dtypes
from needle.backends.cpu.conversion import convert, narrow
from needle.backends.cpu.fault import Fault
from needle.backends.cpu.operands import Index, Operand, Segment
from needle.backends.cpu.vector_math import MathFunction
from needle.compiler import index as ix
from needle.compiler.access import Access, IndexBuilder, Place, Source, broadcast, is_literal
from needle.compiler.index import Loaded, Quotient, Remainder, Var
from needle.dtypes import DType
from needle.errors import CompileError
from needle.graph.ir import Node, Value
from needle.ops.fold import Fold
from needle.ops.record import Kind


def no_code(node: Node) -> CompileError:
    """Return the error about an op that has no lowering."""
    place = f" at {node.location}" if node.location else ""
    layer = f" in layer {node.scope}" if node.scope else ""
    return CompileError(
        f"{node.op.name}{place}{layer}: the CPU backend has no code for this op; run the part "
        "that needs it outside of the compiled function"
    )


class Cell(NamedTuple):
    """An operand, and the level of loops at which it was computed."""

    operand: Operand
    level: int


class Position(NamedTuple):
    """A scalar index, perhaps a number, and the level of loops at which it is known.

    A number has a level, too: the variable of a loop of one turn stands at a number, and what is
    computed there must not be taken for what is computed at another.
    """

    number: Index
    level: int


class Block(NamedTuple):
    """Vectors next to each other: where the first begins, a multiple of its lanes, and how many."""

    first: Position
    slots: int


@dataclass
class Level:
    """An open loop.

    Attributes:
        before: the place in the code in front of the loop.
        memo: what was computed at this level.
    """

    before: Segment | None
    memo: dict[Any, Cell] = field(default_factory=dict)


class Guard(NamedTuple):
    """A condition under which elements exist; loads under it touch nothing where it fails.

    Attributes:
        uniform: the part that is the same for all lanes; None if there is none.
        varying: the part that differs between lanes; None if there is none.
        level: at which both are known.
    """

    uniform: Operand | None
    varying: Operand | None
    level: int


class Emitter:
    """Emits elements into one function.

    Args:
        f: the function.
        pointer_of: from a value in memory to the name of its pointer.
        is_loaded: whether a value lies in memory when the kernel starts.
        fault: emits the report of a bad value, from condition, value and place.
        extent: from a number in an index to the number, or to what it is in this call.
    """

    def __init__(
        self,
        f: MathFunction,
        pointer_of: Callable[[Value], str],
        is_loaded: Callable[[Value], bool],
        fault: Callable[[Operand, Operand, Operand, Fault], None],
        extent: Callable[[int], Index],
    ) -> None:
        self.f = f
        self.pointer_of = pointer_of
        self.is_loaded = is_loaded
        self.fault = fault
        self.extent = extent
        self.levels: list[Level] = [Level(None)]
        self.places: dict[Var, Position] = {}
        #: The variable whose neighbours lie in the lanes of vectors, and how many of them.
        self.vector: Var | None = None
        self.lanes = 0
        #: Which lanes exist; None for all.
        self.mask: Operand | None = None
        #: Several vectors may be open at a time: which one is being computed.
        self.slot = 0
        #: The vectors of a block that are open at a time; None if their places are not known.
        self.block: Block | None = None
        self.guards: tuple[Guard, ...] = ()
        #: Which element of the kernel's own values the loops' variables mean.
        self.own_places: dict[Value, Place] = {}
        #: Values kept in memory of the kernel's own: pointer and offset.
        self.rows: dict[Value, tuple[str, ix.Index]] = {}

    # Loops and levels

    @property
    def top(self) -> int:
        """The level of the innermost open loop."""
        return len(self.levels) - 1

    @contextlib.contextmanager
    def inside(self, before: Segment) -> Generator[None]:
        """Open a loop in front of which ``before`` stands."""
        self.levels.append(Level(before))
        try:
            yield
        finally:
            self.levels.pop()

    def place(self, var: Var, index: Index) -> None:
        """Say where a loop's variable stands in the innermost loop."""
        self.places[var] = Position(index, self.top)

    @contextlib.contextmanager
    def at(self, level: int) -> Generator[None]:
        """Emit into the code of an outer level."""
        if level == self.top:
            yield
            return
        before = self.levels[level + 1].before
        assert before is not None
        with self.f.into(before):
            yield

    def _key(self, what: Any, varies: bool) -> Any:
        return (what, self.guards, self.slot if varies else None)

    def find(self, what: Any) -> Cell | None:
        """Return what was kept, in any open loop, if its conditions hold here."""
        # What was computed under fewer conditions serves under more.
        keys = [
            (what, self.guards[:n], slot)
            for n in range(len(self.guards), -1, -1)
            for slot in (self.slot, None)
        ]
        for level in self.levels:
            for key in keys:
                cell = level.memo.get(key)
                if cell is not None:
                    return cell
        return None

    def keep(self, what: Any, cell: Cell, varies: bool) -> Cell:
        """Remember a cell at its level, for the current slot only if it varies."""
        self.levels[cell.level].memo[self._key(what, varies)] = cell
        return cell

    def bind(self, value: Value, at: Place, operand: Operand, varies: bool) -> None:
        """Say what an element is, in the innermost loop: a reduction's result."""
        self.keep((value, at), Cell(operand, self.top), varies)

    # Indices

    def scalar(self, index: ix.Index) -> Position:
        """Return an index; of the first lane, if it varies between lanes."""
        if index.is_constant:
            return Position(self.extent(index.constant), 0)
        found = self.find(index)
        if found is not None:
            return Position(found.operand, found.level)
        parts = [(self._atom(a), c) for a, c in sorted(index.terms, key=lambda t: str(t[0]))]
        # Outer loops first, so that their part is added up outside.
        parts.sort(key=lambda p: p[0].level)
        total = self.extent(index.constant)
        level = 0
        for part, c in parts:
            level = max(level, part.level)
            with self.at(level):
                total = self.f.add_index(total, self.f.mul_index(part.number, self.extent(c)))
        if isinstance(total, int):
            return Position(total, level)
        cell = self.keep(index, Cell(total, level), self.vector in index.variables)
        return Position(cell.operand, level)

    def _atom(self, atom: ix.Atom) -> Position:
        if isinstance(atom, Var):
            return self.places[atom]
        if isinstance(atom, Loaded):
            return Position(*self._loaded(atom))
        inner = self.scalar(atom.value)
        divide = self.f.floordiv_index if isinstance(atom, Quotient) else self.f.mod_index
        with self.at(inner.level):
            return Position(divide(inner.number, self.extent(atom.divisor)), inner.level)

    def _loaded(self, atom: Loaded) -> Cell:
        """Return the index that an integer tensor holds: wrapped, checked and kept in range."""
        what = ("loaded", atom)
        found = self.find(what)
        if found is not None:
            return found
        cell = self.element(atom.value, atom.index)
        f = self.f
        with self.at(cell.level):
            x = raw = f.convert(cell.operand, dtypes.int64)
            extent = self._like(atom.extent, x)
            if atom.signed:
                negative = f.compare("slt", x, f.like(0, x))
                x = f.select(negative, f.add(x, extent), x)
            bad = f.compare("uge", x, extent)
            location = "" if atom.value.node is None else atom.value.node.location
            names = ("extent", "signed", "what", "name")
            range_ = {name: getattr(atom, name) for name in names}
            fault = Fault("", range_, atom.value.shape, location)
            x = f.select(bad, f.like(0, x), x)
        self._report(Cell(bad, cell.level), raw, Access(atom.value, atom.index), fault)
        return self.keep(what, Cell(x, cell.level), bool(x.lanes))

    def _report(self, cell: Cell, x: Operand, access: Access, fault: Fault) -> None:
        """Report ``x``, the element that is accessed, where the cell holds."""
        f = self.f
        bad, level = cell
        conditions = []
        for guard in self.guards:
            conditions += [c for c in (guard.uniform, guard.varying) if c is not None]
            level = max(level, guard.level)
        if self.mask is not None and (bad.lanes or any(c.lanes for c in conditions)):
            conditions.append(self.mask)
            level = self.top
        offset = ix.ravel(access.at, access.value.shape)
        place = self.lane_indices(offset) if bad.lanes else self.cell_of(offset)
        if place.operand.lanes and not bad.lanes:  # what is bad is so in the first lane, too
            with self.at(place.level):
                place = Cell(f.extract(place.operand, 0), place.level)
        level = max(level, place.level)
        with self.at(level):
            lanes = max((c.lanes for c in conditions), default=0)
            if conditions:
                holds = f.splat(conditions[0], lanes)
                for c in conditions[1:]:
                    holds = f.binary("and", holds, f.splat(c, lanes))
                if not bad.lanes:
                    holds = f.any(holds)
                bad = f.binary("and", bad, f.splat(holds, bad.lanes))
            self.fault(bad, f.convert(x, dtypes.int64), place.operand, fault)

    def lane_indices(self, index: ix.Index) -> Cell:
        """Return an index of each lane."""
        f = self.f
        what = ("lanes", index)
        found = self.find(what)
        if found is not None:
            return found
        level = 0
        first = self.extent(index.constant)
        if isinstance(first, int):
            total = f.constant(first, dtypes.int64, self.lanes)
        else:
            with self.at(0):
                total = f.splat(first, self.lanes)
        for atom, c in sorted(index.terms, key=lambda t: str(t[0])):
            if atom is self.vector:
                base = self._as_cell(self.places[atom])
                level = max(level, base.level)
                with self.at(level):
                    part = f.add(
                        f.splat(base.operand, self.lanes), f.iota(dtypes.int64, self.lanes)
                    )
            elif self.vector not in atom.variables():
                cell = self._as_cell(self._atom(atom))
                level = max(level, cell.level)
                with self.at(level):
                    part = f.splat(cell.operand, self.lanes)
            elif isinstance(atom, Loaded):
                cell = self._loaded(atom)
                level = max(level, cell.level)
                with self.at(cell.level):
                    part = f.splat(cell.operand, self.lanes)
            else:
                assert isinstance(atom, Quotient | Remainder)
                cell = self.lane_indices(atom.value)
                level = max(level, cell.level)
                with self.at(level):
                    part = self._divided(cell.operand, atom)
            with self.at(level):
                scaled = part if c == 1 else f.mul(part, self._like(c, part))
                total = f.add(total, scaled)
        return self.keep(what, Cell(total, level), True)

    def _divided(self, x: Operand, atom: Quotient | Remainder) -> Operand:
        f = self.f
        _, high = atom.value.bounds
        name = "udiv" if isinstance(atom, Quotient) else "urem"
        if high < 1 << 31:  # division by a constant is cheap in 32 bits only
            narrow = f.convert(x, dtypes.uint32)
            divided = f.binary(name, narrow, f.like(atom.divisor, narrow))
            return f.convert(divided, dtypes.int64)
        return f.binary(name, x, self._like(atom.divisor, x))

    def _like(self, number: int, x: Operand) -> Operand:
        """Return a number in an index as an operand of the dtype and lanes of ``x``."""
        index = self.extent(number)
        return self.f.like(index, x) if isinstance(index, int) else self.f.splat(index, x.lanes)

    def cell_of(self, index: ix.Index) -> Cell:
        """Return an index as an element of dtype int64."""
        if self.vector is not None and self.vector in index.variables:
            return self.lane_indices(index)
        return self._as_cell(self.scalar(index))

    def _as_cell(self, place: Position) -> Cell:
        return Cell(self.f.operand(place.number), place.level)

    # Elements

    def element(self, value: Value, at: Place) -> Cell:
        """Return the element of ``value`` at the index ``at``."""
        if is_literal(value):
            assert value.constant is not None
            return Cell(self.f.constant(value.constant.reshape(-1)[0], value.dtype), 0)
        # There is one element of a value of the kernel's own at a time, however its index reads.
        what = (value, self.own_places.get(value, at))
        found = self.find(what)
        if found is not None:
            return found
        if value in self.rows:
            cell = self.load_from(*self.rows[value], value.dtype)
        elif self.is_loaded(value):
            cell = self.load(value, at)
        else:
            cell = self.compute(value, at)
        return self.keep(what, cell, bool(cell.operand.lanes))

    def load(self, value: Value, at: Place) -> Cell:
        """Load an element from memory."""
        return self.load_from(self.pointer_of(value), ix.ravel(at, value.shape), value.dtype)

    def load_from(self, pointer: str, offset: ix.Index, dtype: DType) -> Cell:
        """Load the element at an offset."""
        f = self.f
        if self.vector is None or self.vector not in offset.variables:
            return self._load_scalar(pointer, offset, dtype)
        mask = self.mask
        level = 0
        for guard in self.guards:
            level = max(level, guard.level)
            for part in (guard.uniform, guard.varying):
                if part is not None:
                    with self.at(self.top if mask is not None else guard.level):
                        part = f.splat(part, self.lanes)
                        mask = part if mask is None else f.binary("and", mask, part)
        if mask is not None:
            level = self.top
        stride = offset.stride(self.vector)
        if stride == 1:
            base = self.scalar(offset)
            level = max(level, base.level, self.places[self.vector].level)
            with self.at(level):
                return Cell(f.load(pointer, base.number, dtype, self.lanes, mask), level)
        cell = self.lane_indices(offset)
        level = max(level, cell.level)
        with self.at(level):
            return Cell(f.gather(pointer, cell.operand, dtype, mask), level)

    def _load_scalar(self, pointer: str, offset: ix.Index, dtype: DType) -> Cell:
        where, level = self.scalar(offset)
        for guard in self.guards:
            if guard.uniform is not None:
                level = max(level, guard.level)
                with self.at(level):
                    zero = self.f.constant(0, dtypes.int64)
                    where = self.f.select(guard.uniform, self.f.operand(where), zero)
        with self.at(level):
            return Cell(self.f.load(pointer, where, dtype), level)

    def compute(self, value: Value, at: Place) -> Cell:
        """Compute an element from the inputs of its node."""
        node = value.node
        assert node is not None
        if node.op.kind is Kind.ELEMENTWISE:
            cells = [self.element(v, broadcast(at, v.shape)) for v in node.inputs]
            if node.op.lower is None:
                raise no_code(node)
            lower: Any = node.op.lower
            dtype, end = value.dtype, narrow if node.op.chooses else convert

            result = self.combine(
                lambda f, *given: end(f, lower(f, *given, **node.attrs), dtype), cells, dtype
            )
            refusals, self.f.refusals = self.f.refusals, []
            for bad, x in refusals:
                fault = Fault(node.op.name, node.attrs, value.shape, node.location)
                self._report(Cell(bad, result.level), x, Access(value, at), fault)
            return result
        if isinstance(node.op.lower, Fold):
            return self._only_element(node, node.op.lower, at)
        builder = ElementBuilder(self, value)
        sources = [Source(v, self.element) for v in node.inputs]
        lower = node.op.lower
        cell: Cell = lower(builder, at, *sources, **node.attrs)
        return cell

    def _only_element(self, node: Node, fold: Fold, at: Place) -> Cell:
        """Return what a reduction makes of one element: axes of extent 1, or none at all."""
        (source,) = node.inputs
        if fold.gives_place:
            return Cell(self.f.constant(0, node.result.dtype), 0)
        axes = node.attrs["axes"]
        rest = iter(at)
        if not node.attrs["keepdims"]:
            at = tuple(ix.ZERO if a in axes else next(rest) for a in range(source.ndim))
        cell = self.element(source, at)
        with self.at(cell.level):
            return Cell(self.f.convert(cell.operand, node.result.dtype), cell.level)

    def combine(
        self, function: Callable[..., Operand], cells: Sequence[Cell], dtype: DType
    ) -> Cell:
        """Return a function of operands, at the level where the last of them is known.

        16-bit floats are computed in float32 and rounded once.
        """
        f = self.f
        level = max((c.level for c in cells), default=0)
        lanes = max((c.operand.lanes for c in cells), default=0)
        operands = []
        for cell in cells:
            with self.at(cell.level):
                x = self._widened(cell.operand)
                if lanes and not x.lanes:
                    what = ("splat", x, lanes)
                    found = self.find(what)
                    if found is None:
                        found = self.keep(what, Cell(f.splat(x, lanes), cell.level), False)
                    x = found.operand
            operands.append(x)
        with self.at(level):
            result = function(f, *operands)
            return Cell(f.convert(result, dtype), level)

    def _widened(self, x: Operand) -> Operand:
        wide = dtypes.accumulation_dtype(x.dtype) if x.is_float else x.dtype
        return self.f.convert(x, wide)

    # Conditions

    def guard(self, conditions: Sequence[tuple[ix.Index, int, int]]) -> Guard | bool:
        """Return the condition that ``low ≤ index < high`` for all, or a bool if that is known."""
        f = self.f
        uniform: Operand | None = None
        varying: Operand | None = None
        level = 0
        for index, low, high in conditions:
            smallest, largest = index.bounds
            if smallest >= low and largest < high:
                continue
            if largest < low or smallest >= high:
                return False
            if self.vector is not None and self.vector in index.variables:
                cell = self.lane_indices(index)
            else:
                cell = self._as_cell(self.scalar(index))
            level = max(level, cell.level)
            with self.at(level):
                x = f.sub(cell.operand, self._like(low, cell.operand))
                holds = f.compare("ult", x, self._like(high - low, x))
                if holds.lanes:
                    varying = holds if varying is None else f.binary("and", varying, holds)
                else:
                    uniform = holds if uniform is None else f.binary("and", uniform, holds)
        if uniform is None and varying is None:
            return True
        return Guard(uniform, varying, level)

    def where(
        self,
        conditions: Sequence[tuple[ix.Index, int, int]],
        inside: Callable[[], Cell],
        outside: Callable[[], Cell],
    ) -> Cell:
        """Return one of two elements; what the other would load is not touched."""
        f = self.f
        guard = self.guard(conditions)
        if guard is True:
            return inside()
        if guard is False:
            return outside()
        assert isinstance(guard, Guard)
        lanes = self.lanes if guard.varying is not None else 0
        with self.at(guard.level):
            holds = guard.uniform if guard.varying is None else guard.varying
            if guard.uniform is not None and guard.varying is not None:
                holds = f.binary("and", guard.varying, f.splat(guard.uniform, lanes))
            assert holds is not None
            fails = f.logical_not(holds)
        opposite = Guard(None, fails, guard.level) if lanes else Guard(fails, None, guard.level)
        outer = self.guards
        self.guards = (*outer, guard)
        first = inside()
        self.guards = (*outer, opposite)
        second = outside()
        self.guards = outer
        cells = [Cell(holds, guard.level), first, second]
        level = max(c.level for c in cells)
        width = max(c.operand.lanes for c in cells)
        with self.at(level):
            c, x, y = (f.splat(cell.operand, width) for cell in cells)
            return Cell(f.select(c, x, y), level)


class ElementBuilder(IndexBuilder):
    """What lowerings of ops that move elements build with, when code is made."""

    def __init__(self, emitter: Emitter, value: Value) -> None:
        super().__init__(value)
        self._emitter = emitter
        self._value = value
        self._dtype = value.dtype

    def where(
        self,
        conditions: Sequence[tuple[ix.Index, int, int]],
        inside: Callable[[], Any],
        outside: Callable[[], Any],
    ) -> Any:
        return self._emitter.where(conditions, inside, outside)

    def fill(self, value: float) -> Any:
        return Cell(self._emitter.f.constant(value, self._dtype), 0)

    def loaded(
        self,
        source: Source,
        index: Place,
        extent: int,
        what: str,
        *,
        signed: bool = True,
        name: str = "index",
    ) -> ix.Index:
        return ix.loaded(source.value, index, extent, what, signed, name)

    def number_of(self, index: ix.Index) -> Cell:
        """Return an index as an element of dtype int64."""
        return self._emitter.cell_of(index)

    def compute(
        self, function: Callable[..., Operand], *cells: Cell, dtype: DType | None = None
    ) -> Cell:
        """Return ``function(builder, *operands)``, of the result's dtype if none is given."""
        return self._emitter.combine(function, cells, dtype or self._dtype)

    def several(
        self, place: ix.Index, count: int, function: Callable[..., Any], *cells: Cell
    ) -> Cell:
        """Return the element at ``place`` where ``count`` neighbours come from one computation.

        Args:
            place: of the element, counted in row-major order.
            count: how many elements belong together.
            function: from the builder, the number ⌊place / count⌋ and the operands of the cells to
                these elements.
            cells: further operands.
        """
        from needle.backends.cpu.neighbours import neighbour

        return neighbour(self._emitter, self._value, place, count, function, cells)
