"""Fusion: which nodes share a kernel, and which values need memory at all.

First it is decided which values are *stored*: results of anchors (reductions, products …), outputs,
and what would be costly to compute where it is used. Each stored value is a `Piece`: an expression
over other stored values, and the loops that run over its elements. Pieces then join into `Group`s,
one kernel each: a piece joins the group of what it reads if, in the group's loops, it reads exactly
the element that is computed there. A value that is read in its own group only needs no memory.

A join (`concat`) that is stored is no piece. Each of its parts is one, in the memory of the whole:
whatever computes a part writes it there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from needle.compiler import index as ix
from needle.compiler.access import (
    Access,
    Place,
    is_inline,
    is_literal,
    ordered_reads,
    reads,
    variables,
    view_of,
)
from needle.compiler.index import Index, Var
from needle.compiler.passes.split_folds import LONG
from needle.compiler.rows import rows_in
from needle.compiler.storage import stored_values
from needle.graph.ir import Graph, Node, Value
from needle.ops.fold import Fold
from needle.ops.ordered import Joined, Ordered
from needle.ops.record import Kind

#: Pieces in one kernel.
MOST_PIECES = 40


class Part(NamedTuple):
    """Where a part of a join lies.

    Attributes:
        whole: the join.
        axis: along which it goes.
        start: where in it the part begins.
    """

    whole: Value
    axis: int
    start: int


@dataclass(eq=False)
class Piece:
    """A stored value with the loops that compute it.

    Attributes:
        value: the value.
        kept: loop variables over its elements; those of extent 1 are left out.
        reduced: loop variables over what is combined to one element, for a reduction.
        at: which element of the value the loops' variables mean.
        body: for a reduction, the input and its index; None otherwise.
        reads: stored values that it reads, and where.
        part: what it is a part of, and lies in the memory of.
    """

    value: Value
    kept: tuple[Var, ...]
    reduced: tuple[Var, ...]
    at: Place
    body: Access | None
    reads: list[Access]
    part: Part | None = None

    @property
    def target(self) -> Access:
        """The element that is written, if the value gets memory."""
        if self.part is None:
            return Access(self.value, self.at)
        whole, axis, start = self.part
        at = list(self.at)
        at[axis] = at[axis] + start
        return Access(whole, tuple(at))

    def substitute(self, mapping: dict[Var, Index]) -> Piece:
        """Return it in other variables."""

        def moved(place: Place) -> Place:
            return tuple(i.substitute(mapping) for i in place)

        return Piece(
            self.value,
            (),
            (),
            moved(self.at),
            None if self.body is None else Access(self.body.value, moved(self.body.at)),
            [Access(v, moved(at)) for v, at in self.reads],
            self.part,
        )


@dataclass(eq=False)
class Group:
    """Pieces that share a kernel.

    Attributes:
        kept: loops over elements that are independent of each other.
        inner: loops inside of these, over what reductions combine.
        pieces: in an order in which they can be computed, all in the group's variables.
        anchor: the node of a kernel of its own kind (a product, a scatter …), whose result the
            pieces after the first take in; None for plain loops.
        number: rises in the order of creation.
        recomputation: of the first piece; see `Node`.
    """

    kept: list[Var]
    inner: list[Var]
    pieces: list[Piece] = field(default_factory=list)
    anchor: Node | None = None
    number: int = 0
    recomputation: int = field(init=False)

    def __post_init__(self) -> None:
        self.recomputation = _recomputation(self.pieces[0])

    def defines(self) -> Iterator[Value]:
        """Yield the values that it computes."""
        for piece in self.pieces:
            yield piece.value

    def joins(self) -> Iterator[Value]:
        """Yield the joins that it computes parts of."""
        for piece in self.pieces:
            if piece.part is not None:
                yield piece.part.whole

    def place_of(self, value: Value) -> Place | None:
        """Return the element of ``value`` that it computes, or None if it does not."""
        for piece in self.pieces:
            if piece.value is value:
                return piece.at
        return None


def piece_of(value: Value, is_stored: Callable[[Value], bool]) -> Piece:
    """Return a stored value as a piece with variables of its own."""
    node = value.node
    assert node is not None
    if isinstance(node.op.lower, Fold):
        source = node.inputs[0]
        loop = variables(source.shape)
        axes = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["axis"],)
        kept = tuple(v for a, v in enumerate(loop) if a not in axes)
        reduced = tuple(v for a, v in enumerate(loop) if a in axes)
        keeps = node.attrs["keepdims"]
        at = tuple(ix.of(v) if v in kept else ix.ZERO for v in loop if keeps or v in kept)
        body = Access(source, tuple(ix.of(v) for v in loop))
        if is_literal(source):
            found = []
        elif source.node is None or is_stored(source):
            found = [body]
        else:
            found = reads(source, body.at, is_stored)
        if not _wide(reduced):  # the element itself, which needs no turns
            return Piece(value, _wide(kept), (), at, None, found)
        return Piece(value, _wide(kept), _wide(reduced), at, body, found)
    loop = variables(value.shape)
    at = tuple(ix.of(v) for v in loop)
    found = reads(value, at, is_stored) if is_inline(node) else []
    return Piece(value, _wide(loop), (), at, None, found)


def _wide(loop: Iterable[Var]) -> tuple[Var, ...]:
    return tuple(v for v in loop if v.extent != 1)


class Fusion:
    """Groups the stored values of one graph, in the order of its nodes."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.stored = stored_values(graph)
        self.groups: list[Group] = []
        self.group_of: dict[Value, Group] = {}
        #: The parts of each join that is stored.
        self.parts: dict[Value, list[Value]] = {}
        #: For each group, the groups that it needs, directly.
        self.needs: dict[Group, set[Group]] = {}
        self._count = 0
        #: For each stored value, the groups with reductions that read it.
        self._reducers: dict[Value, list[Group]] = {}

    def run(self) -> list[Group]:
        """Return the groups, in no particular order."""
        for node in self.graph.nodes:
            if is_inline(node) or isinstance(node.op.lower, Fold):
                for value in node.results:
                    if value in self.stored and not self._place_parts(node):
                        self._place(piece_of(value, self.stored.__contains__))
            else:
                self._anchor(node)
        return self.groups

    def _place_parts(self, node: Node) -> bool:
        """Place the parts of a join one by one; return whether there are any."""
        if not isinstance(node.op.lower, Joined) or len(node.inputs) < 2:
            return False
        whole, axis = node.results[0], node.attrs["axis"]
        if any(rows_in(v.shape[axis]) for v in node.inputs):
            return False
        start = 0
        parts: list[Value] = []
        for source in node.inputs:
            if source.size:
                # The part for itself: a join of one.
                alone = Node(node.op, (source,), node.attrs, [source.spec])
                alone.take_place(node)
                value = alone.results[0]
                self.stored.add(value)
                piece = piece_of(value, self.stored.__contains__)
                piece.part = Part(whole, axis, start)
                self._place(piece, [self.group_of[v] for v in parts])
                parts.append(value)
            start += source.shape[axis]
        if parts:
            self.parts[whole] = parts
        return bool(parts)

    def groups_of(self, value: Value) -> list[Group]:
        """Return the groups that compute a value, or its parts."""
        values = self.parts.get(value, (value,))
        return [self.group_of[v] for v in values if v in self.group_of]

    def _new(self, group: Group) -> Group:
        self._count += 1
        group.number = self._count
        self.groups.append(group)
        self.needs[group] = set()
        return group

    def _anchor(self, node: Node) -> None:
        """Give a node of a kind of its own a group."""
        value = node.results[0]
        piece = piece_of(value, self.stored.__contains__)
        if isinstance(node.op.lower, Ordered):
            piece.reads.extend(ordered_reads(node, piece.at, self.stored.__contains__))
        else:
            for operand in node.inputs:
                view = view_of(operand, self.stored.__contains__)
                piece.reads.append(Access(operand if view is None else view.base, ()))
        group = self._new(Group(list(piece.kept), [], [piece], node))
        for result in node.results[1:]:
            other = piece_of(result, self.stored.__contains__)
            group.pieces.append(other)
        for result in node.results:
            self.group_of[result] = group
        self._add_needs(group, piece)

    def _add_needs(self, group: Group, piece: Piece) -> None:
        for value, _ in piece.reads:
            self.needs[group].update(g for g in self.groups_of(value) if g is not group)

    def _place(self, piece: Piece, siblings: Iterable[Group] = ()) -> None:
        """Let a piece join a group, one of ``siblings`` if need be, or make one of it."""
        producers: dict[Group, None] = {}
        for value, _ in piece.reads:
            group = self.group_of.get(value)
            if group is not None:
                producers[group] = None
        candidates = sorted(producers, key=lambda g: -g.number)
        others = dict.fromkeys(g for g in siblings if g not in producers)
        candidates += [g for g in others if g.anchor is None and not g.inner]
        if not piece.kept and not piece.reduced:
            # Scalars keep each other company, related or not.
            candidates += [g for g in self.groups if not g.kept and not g.inner and not g.anchor]
        for group in candidates:
            if self._join(piece, group):
                for other in candidates:
                    if other is not group and other in self.needs:
                        self._merge(piece, group, other)
                return
        if self._join_beside(piece):
            return
        self._note(piece, self._new(Group(list(piece.kept), list(piece.reduced), [piece])))

    def _join_beside(self, piece: Piece) -> bool:
        """Add a reduction to a group whose loops read the same elements for another: once for both.

        Of all elements that a channel has, normalisation needs two sums, back and forth.
        """
        if not piece.reduced or _is_long(set(piece.reduced)):
            return False
        loops = (*piece.kept, *piece.reduced)
        for value, _ in piece.reads:
            for group in self._reducers.get(value, ()):
                own = (*group.kept, *group.inner)
                if group not in self.needs or [v.extent for v in own] != [v.extent for v in loops]:
                    continue
                if len(piece.reduced) != len(group.inner) or len(group.pieces) >= MOST_PIECES:
                    continue
                if _recomputation(piece) != group.recomputation:
                    continue
                places = {a: ix.of(b) for a, b in zip(loops, own, strict=True)}
                moved = piece.substitute(places)
                seen = {a for p in group.pieces for a in p.reads}
                shared = any(a.value is value and a in seen for a in moved.reads)
                if shared and self._may_merge({group}, piece):
                    self._add(moved, group)
                    return True
        return False

    def _join(self, piece: Piece, group: Group) -> bool:
        """Add ``piece`` to ``group`` if both can share loops."""
        if len(group.pieces) >= MOST_PIECES or not self._may_merge({group}, piece):
            return False
        if _recomputation(piece) not in (0, group.recomputation):
            return False  # it would run too early, and be kept
        if group.anchor is not None:
            places = match_anchor(piece, group)
            if places is None:
                return False
            self._add(piece.substitute(places), group)
            return True
        mapping = match(piece, group)
        if mapping is None:
            return False
        if piece.reduced and not group.inner:
            inner = [mapping[v] for v in piece.reduced]
            group.inner = [v for v in group.kept if v in inner]
            group.kept = [v for v in group.kept if v not in inner]
        self._add(piece.substitute({a: ix.of(b) for a, b in mapping.items()}), group)
        return True

    def _add(self, piece: Piece, group: Group) -> None:
        """Add a piece in the group's variables."""
        group.pieces.append(piece)
        self._note(piece, group)

    def _note(self, piece: Piece, group: Group) -> None:
        """Take notes of a new piece of a group."""
        self.group_of[piece.value] = group
        self._add_needs(group, piece)
        if piece.body is not None:
            for value, _ in piece.reads:
                self._reducers.setdefault(value, []).append(group)

    def _merge(self, piece: Piece, group: Group, other: Group) -> None:
        """Take ``other``, which ``piece`` reads too, into ``group``, if it fits."""
        if other.anchor is not None or other.recomputation != group.recomputation:
            return
        if len(group.pieces) + len(other.pieces) > MOST_PIECES:
            return
        if not self._may_merge({group, other}, None):
            return
        # What `piece` reads of `other` says which of its variables are which of the group's.
        placed = group.pieces[-1]
        mapping: dict[Var, Var] = {}
        for value, at in placed.reads:
            own = other.place_of(value)
            if own is not None and not _unify(own, at, mapping):
                return
        loops = {*other.kept, *other.inner}
        if set(mapping) != loops or len(set(mapping.values())) != len(mapping):
            return
        if {mapping[v] for v in other.kept} != set(group.kept):
            return
        if {mapping[v] for v in other.inner} != set(group.inner):
            return
        moved = [p.substitute({a: ix.of(b) for a, b in mapping.items()}) for p in other.pieces]
        together = [*moved, *group.pieces]
        wholes = {p.part.whole for p in together if p.part is not None}
        if not _read_in_place(together) or any(v in wholes for p in together for v, _ in p.reads):
            return
        # An anchor comes first: what it reads must be there before its kernel begins.
        first = group.pieces[:1] if group.anchor is not None else []
        if any(v in set(other.defines()) for p in first for v, _ in p.reads):
            return
        group.pieces = [*first, *moved, *group.pieces[len(first) :]]
        for p in moved:
            self.group_of[p.value] = group
        self.groups.remove(other)
        self.needs[group] |= self.needs.pop(other)
        for needed in self.needs.values():
            if other in needed:
                needed.discard(other)
                needed.add(group)
        self.needs[group].discard(group)
        self._order(group)

    def _order(self, group: Group) -> None:
        """Put the pieces of a group in an order in which they can be computed."""
        first = group.pieces[:1] if group.anchor is not None else []
        rest = group.pieces[len(first) :]
        own = {p.value for p in rest}
        ordered: list[Piece] = []
        done: set[Value] = set()
        while rest:
            for p in rest:
                if all(v not in own or v in done for v, _ in p.reads):
                    ordered.append(p)
                    done.add(p.value)
                    rest.remove(p)
                    break
            else:
                raise AssertionError("pieces of a group depend on each other in a circle")
        group.pieces = [*first, *ordered]

    def _may_merge(self, members: set[Group], piece: Piece | None) -> bool:
        """Whether no way leads from one of the members, through other groups, back to one."""
        frontier: set[Group] = set()
        for g in members:
            frontier |= self.needs[g]
        if piece is not None:
            for value, _ in piece.reads:
                groups = self.groups_of(value)
                if value in self.parts and not members.isdisjoint(groups):
                    return False  # it reads parts that are not there yet
                frontier.update(groups)
        frontier -= members
        seen: set[Group] = set()
        while frontier:
            g = frontier.pop()
            if g in seen:
                continue
            seen.add(g)
            needed = self.needs[g]
            if needed & members:
                return False
            frontier |= needed - seen
        return True


def _recomputation(piece: Piece) -> int:
    node = piece.value.node
    return 0 if node is None else node.recomputation


def _variable(index: Index) -> Var | None:
    """Return the variable that an index is; None for anything else."""
    if index.constant or len(index.terms) != 1:
        return None
    ((atom, c),) = index.terms
    return atom if isinstance(atom, Var) and c == 1 else None


def _unify(own: Place, read: Place, mapping: dict[Var, Var]) -> bool:
    """Extend ``mapping`` so that ``own`` becomes ``read``; False if that cannot be."""
    for a, b in zip(own, read, strict=True):
        if a == ix.ZERO and b == ix.ZERO:
            continue
        x, y = _variable(a), _variable(b)
        if x is None or y is None or x.extent != y.extent:
            return False
        if mapping.setdefault(x, y) is not y:
            return False
    return True


def _read_in_place(pieces: Sequence[Piece]) -> bool:
    """Whether of each other's values, pieces read the elements that are computed in their turn."""
    places = {p.value: p.at for p in pieces}
    return all(
        n == 1 or a == b
        for p in pieces
        for v, at in p.reads
        if v in places
        for n, a, b in zip(v.shape, at, places[v], strict=False)
    )


def match(piece: Piece, group: Group) -> dict[Var, Var] | None:
    """Return which of the group's variables the piece's are, or None if they cannot share loops."""
    mapping: dict[Var, Var] = {}
    for value, at in piece.reads:
        own = group.place_of(value)
        if own is not None and not _unify(at, own, mapping):
            return None
    if len(set(mapping.values())) != len(mapping):
        return None
    # Variables that no read ties down run along what the group has left.
    taken = set(mapping.values())
    for var in (*piece.kept, *piece.reduced):
        if var in mapping:
            continue
        free = group.inner if var in piece.reduced or group.inner else group.kept
        for candidate in free:
            if candidate not in taken and candidate.extent == var.extent:
                mapping[var] = candidate
                taken.add(candidate)
                break
        else:
            return None
    kept = {mapping[v] for v in piece.kept}
    reduced = {mapping[v] for v in piece.reduced}
    if not _fits(piece, group, kept, reduced):
        return None
    return mapping


def match_anchor(piece: Piece, group: Group) -> dict[Var, Index] | None:
    """Return where the variables of a piece stand when an anchor's kernel has computed an element;
    None unless the piece is made of the elements that are computed, each once.

    Shapes may differ: a product of all pixels, a row for each, may be read as images.
    """
    assert group.anchor is not None
    if group.anchor.op.kind is not Kind.CONTRACTION or piece.reduced:
        return None
    places: dict[Var, Index] = {}
    for value, at in piece.reads:
        own = group.place_of(value)
        if own is None:
            continue
        computed = ix.ravel(own, value.shape)
        digits = _digits(ix.ravel(at, value.shape), value.size)
        if digits is None:
            return None
        for var, stride in digits:
            place = computed // stride
            if stride * var.extent < value.size:
                place = place % var.extent
            if places.setdefault(var, place) != place:
                return None
    return places if set(places) == set(piece.kept) else None


def _digits(index: Index, extent: int) -> list[tuple[Var, int]] | None:
    """Return variables and their strides if they are the digits of a number below ``extent``."""
    terms = sorted(index.terms, key=lambda t: t[1])
    digits: list[tuple[Var, int]] = []
    stride = 1
    for atom, c in terms:
        if not isinstance(atom, Var) or c != stride:
            return None
        digits.append((atom, c))
        stride *= atom.extent
    return digits if stride == extent and not index.constant else None


def _fits(piece: Piece, group: Group, kept: set[Var], reduced: set[Var]) -> bool:
    """Whether the loops of a matched piece are those of the group."""
    own_kept, own_inner = set(group.kept), set(group.inner)
    if reduced:
        if own_inner:
            return reduced == own_inner and kept == own_kept
        # A reduction of what the group computes: rows of it become the kept loops.
        if kept | reduced != own_kept:
            return False
        return not _is_long(reduced)
    if kept == own_kept:
        return True
    if any(rows_in(v.extent) for v in own_inner):
        return kept == own_kept | own_inner
    return bool(own_inner) and kept == own_kept | own_inner and not _is_long(own_inner)


def _is_long(reduced: set[Var]) -> bool:
    """Whether a reduction over these loops is one that `split_folds` would cut, but has left whole:
    over any number of rows, or for the place of an extremum, where cutting means to read all twice.

    Tasks cannot share its inner loops. So what is computed there apart from it, element by element,
    stays a kernel of its own, which they can. Results decide nothing here: their number may be that
    of a batch.
    """
    return math.prod(v.extent for v in reduced) >= LONG
