"""Rows: an extent that is given when a program is called.

A program can be made for any number of rows: in the shapes of its graph a mark stands for the
number, and the code that is generated reads the real one where the mark stands. Extents may be
multiples of it, and so may what is computed from them: strides, offsets.

There are two marks, both primes that are no other extent. A graph compiled with the one and with
the other must give the same code; if it does not, somewhere the mark was taken for a number.
"""

from __future__ import annotations

from typing import Any

from needle.errors import NeedleError
from needle.extents import Extent, Formula, with_extent
from needle.graph.ir import Graph, Node, Value
from needle.ops.record import Kind
from needle.shapes import Shape, Spec

#: Stand for the number of rows in the shapes of a graph.
MARKS = (1_000_000_007, 1_618_033_999)
#: The mark that programs are made with.
ROWS = MARKS[0]
#: How far from a multiple of the mark an offset may be.
_NEAR = 1 << 26


class VariesError(NeedleError):
    """A graph cannot be compiled for any number of rows."""


def rows_in(extent: int) -> int:
    """Return how many times the number of rows an extent is; 0 for one that is known.

    Example:
        >>> from needle.compiler.rows import ROWS, rows_in
        >>> rows_in(3 * ROWS), rows_in(12)
        (3, 0)
    """
    if extent < ROWS:
        return 0
    for mark in MARKS:
        if extent % mark == 0:
            return extent // mark
    return 0


def actual(shape: Shape, rows: int) -> Shape:
    """Return a shape with the number of rows of a call in it.

    Example:
        >>> from needle.compiler.rows import ROWS, actual
        >>> actual((ROWS, 3), 7)
        (7, 3)
    """
    return tuple([rows_in(n) * rows if rows_in(n) else n for n in shape])


def affine_in(number: int, mark: int) -> tuple[int, int]:
    """Return a and b with ``number == a · mark + b``; a is 0 for a number that is known.

    Example:
        >>> from needle.compiler.rows import ROWS, affine_in
        >>> affine_in(2 * ROWS - 1, ROWS), affine_in(12, ROWS)
        ((2, -1), (0, 12))
    """
    times = (number + mark // 2) // mark
    rest = number - times * mark
    return (times, rest) if abs(rest) < _NEAR else (0, number)


def marked(graph: Graph, mark: int) -> Graph:
    """Return a graph with a mark for the extent that varies in it.

    Args:
        graph: with `Extent`s in shapes and attributes.
        mark: one of `MARKS`.

    Raises:
        VariesError: something else than multiples depends on the extent; a size could be taken for
            one; loops and branches.
    """

    def number(formula: Formula) -> int:
        if not isinstance(formula, Extent):
            raise VariesError(f"{formula} stands where only multiples can")
        return formula.factor * mark

    def check(value: Any) -> None:
        if isinstance(value, tuple | list):
            for part in value:
                check(part)
        elif isinstance(value, int) and value >= ROWS and rows_in(value):
            raise VariesError(f"{value} could be taken for an extent that varies")

    def spec(old: Spec) -> Spec:
        check(old.shape)
        new: Spec = with_extent(old, number)
        if sum(rows_in(n) != 0 for n in new.shape) > 1:
            shape = ", ".join(map(str, old.shape))
            raise VariesError(f"a tensor of shape [{shape}] has the extent on two axes")
        return new

    new: dict[Value, Value] = {}
    for value in graph.inputs:
        new[value] = Value(spec(value.spec), name=value.name)
    nodes = []
    for node in graph.nodes:
        if node.op.kind is Kind.CONTROL:
            raise VariesError(f"{node.op.name} at {node.location} runs a graph of its own")
        for attribute in node.attrs.values():
            check(attribute)
        copy = Node(
            node.op,
            [new.get(v, v) for v in node.inputs],
            with_extent(node.attrs, number),
            [spec(v.spec) for v in node.results],
        )
        copy.take_place(node)
        new.update(zip(node.results, copy.results, strict=True))
        nodes.append(copy)
    outputs = [new.get(v, v) for v in graph.outputs]
    return Graph([new[v] for v in graph.inputs], nodes, outputs, dict(graph.donations), graph.name)
