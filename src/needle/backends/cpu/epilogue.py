"""Epilogues: the pieces of a group that take in what its anchor, a sum of products, computes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, Protocol

from needle.backends.cpu.emit import Position
from needle.backends.cpu.gemm.packing import prefetch
from needle.backends.cpu.kernel import KernelFunction
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.operands import Operand, Segment
from needle.backends.cpu.vector_math import MathFunction
from needle.backends.cpu.write import write
from needle.compiler import index as ix
from needle.compiler.fusion import Group, Piece
from needle.compiler.index import Var
from needle.dtypes import DType
from needle.ops.record import Kind

#: Instructions of an op and of a random number, about.
_PER_OP, _PER_DRAW = 2, 200
#: Bytes from which an array that an epilogue reads comes from beyond the L2 cache. A tile reads
#: short pieces of its rows, which lie apart, so that the processor does not foresee them: the piece
#: beside it, which the next tile reads, is asked for ahead.
FAR = 1 << 20


class Place(Protocol):
    """Where a vector of sums stands: along the last axis of the anchor's result.

    Attributes:
        lanes: lanes of the vector; 0 for a scalar.
        mask: the lanes that exist, if not all do.
    """

    @property
    def lanes(self) -> int: ...

    @property
    def mask(self) -> Operand | None: ...


class Fused(NamedTuple):
    """The functions of an epilogue; see `needle.backends.cpu.gemm.Epilogue`."""

    store: Callable[..., None]
    key: Hashable
    begin: Callable[[Function], Any]
    instructions: int
    end: Callable[[Function, Any], None]


def axes_of(piece: Piece) -> list[Var | None]:
    """Return the loop variable of each axis of an anchor's result; None for extent 1."""
    return [None if i.is_constant else next(iter(i.variables)) for i in piece.at]


def fuse(
    kernel: KernelFunction,
    group: Group,
    stand: Callable[[Function, dict[Var, Position], Any, int], None],
    convert: Callable[[Function, Operand, DType], Operand] = Function.convert,
) -> Fused:
    """Return what computes and stores the group's pieces from a vector of sums.

    Args:
        kernel: the group's.
        group: its anchor, and the pieces that come after it.
        stand: says where the variables of the anchor's axes stand at a place, in a level of loops.
        convert: converts sums to the dtype of the anchor's result.
    """
    first = group.pieces[0]
    column = axes_of(first)[-1]
    written = [p for p in group.pieces if kernel.is_written(p.value)]
    distant = [
        (v, at)
        for p in group.pieces[1:]
        for v, at in p.reads
        if kernel.is_loaded(v) and v.size == first.value.size and v.nbytes >= FAR
    ]

    def begin(f: Function) -> Any:
        assert isinstance(f, MathFunction)
        part = kernel.part(f, "%extra")
        return part, f.segment()

    def store(f: Function, sums: Operand, at: Place, state: tuple[KernelFunction, Segment]) -> None:
        part, before = state
        e = part.emitter
        e.own_places = {p.value: p.at for p in group.pieces}
        with e.inside(before):
            stand(f, e.places, at, e.top)
            e.vector = column if at.lanes else None
            e.lanes, e.mask = at.lanes, at.mask
            if at.lanes and column is None:
                sums = f.extract(sums, 0)
            if at.lanes:
                for v, place in distant:
                    here = e.scalar(ix.ravel(place, v.shape)).number
                    ahead = f.add_index(here, at.lanes)
                    prefetch(f, f.pointer(part.pointer_of(v), ahead, v.dtype), 1)
            value = convert(f, sums, first.value.dtype)
            e.bind(first.value, first.at, value, bool(sums.lanes))
            elements = [(p, e.element(p.value, p.at).operand) for p in written]
            for piece, operand in elements:
                write(e, part.pointer_of(piece.value), piece, operand)
            e.vector, e.lanes, e.mask = None, 0, None

    def end(f: Function, state: tuple[KernelFunction, Segment]) -> None:
        state[0].report()

    return Fused(store, ("kernel", kernel.f.name), begin, _instructions(kernel, group), end)


def _instructions(kernel: KernelFunction, group: Group) -> int:
    """Return about how many instructions compute and store the pieces after the first."""
    values = [p.value for p in group.pieces[1:]]
    count = 2 + 2 * sum(kernel.is_written(v) for v in values)
    seen = {group.pieces[0].value}
    while values:
        value = values.pop()
        if value.node is None or value in seen or kernel.is_loaded(value):
            continue
        seen.add(value)
        count += _PER_DRAW if value.node.op.kind is Kind.RANDOM else _PER_OP
        values += value.node.inputs
    return count
