"""Gradients of tables, of which a step reads few rows: computed for these rows, not for all.

The gradient of `embedding` and `take` by a table is `untake_at`: zeros with a few rows added in.
Here it becomes

- ``total``, a row for each index: the sum, in their order, of all values of its row, which stands
  with the last index of that row; and
- ``table[v]``, which index that is, or −1: so the gradient is ``total[table]`` or 0 where it is
  read, and never in memory.

What is elementwise of the gradient and numbers is known for all other rows, too: what it is of 0.
So a sum (the norm of the gradient) where that is 0 needs the rows of ``total`` only; and an update
``w − f(gradient)`` in place writes these rows, and all others only if f(0) is not 0, say because
the learning rate is not finite. Everything else (momentum, Adam) reads all rows, as its formula
says.

The bits are those of the dense gradient, but that the norm is summed in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from needle import dtypes
from needle.compiler.rows import rows_in
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import apply, constant, is_same_number, number_of
from needle.ops.arithmetic import maximum, subtract
from needle.ops.comparison import less, where
from needle.ops.movement import reshape
from needle.ops.places import take_at, untake_at
from needle.ops.record import Kind, Op
from needle.ops.reduce import sum as sum_
from needle.ops.updates import update_at, update_rest
from needle.shapes import Spec

#: A table has at least so many times as many rows as there are indices, and so many bytes: else to
#: find out which rows they are costs more than to fill all with zeros.
MOST_ROWS = 2
LEAST_BYTES = 1 << 18


class _Rows(NamedTuple):
    """An array that is elementwise of a table's gradient and of numbers.

    Attributes:
        places: the index of each row that was read, flat.
        slots: where in ``total`` the row of each of them stands.
        total: the array's rows, as in the module's docstring.
        zero: what stands in all other rows: 0-d.
    """

    places: Value
    slots: Value
    total: Value
    zero: Value


def keep_rows(graph: Graph) -> Graph:
    """Return the graph with gradients of large tables in the form of rows."""
    if not any(_is_sparse(node) for node in graph.nodes):
        return graph
    sources = {graph.outputs[o]: graph.inputs[i] for o, i in graph.donations.items()}
    rows: dict[Value, _Rows] = {}

    def transform(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        if _is_sparse(node):
            value, rows[value] = _gathered(node, inputs)
            return (value,)
        if not any(v in rows for v in inputs):
            return keep(node, inputs).results
        if node.op is sum_.op:
            summed = rows[inputs[0]]
            zero = number_of(summed.zero)
            if 0 in node.attrs["axes"] and zero is not None and is_same_number(zero, 0):
                return (apply(node.op, (summed.total,), node.attrs, node),)
        elif node.op is subtract.op and sources.get(node.result) is inputs[0]:
            step = rows.get(inputs[1])
            if step is not None and inputs[0].shape == inputs[1].shape:
                return (_updated(node, inputs[0], step),)
        kept = keep(node, inputs)
        made = _elementwise(kept, rows)
        if made is not None:
            rows[kept.result] = made
        return kept.results

    return graph.rebuild(transform)


def _is_sparse(node: Node) -> bool:
    """Whether a node adds few rows into a large table of zeros."""
    if node.op is not untake_at.op or node.attrs["axes"] != (0,):
        return False
    result, count = node.result, node.inputs[1].size
    if result.ndim < 2 or any(map(rows_in, (*result.shape, count))):
        return False
    return 0 < count * MOST_ROWS <= result.shape[0] and result.nbytes >= LEAST_BYTES


def _gathered(node: Node, inputs: Sequence[Value]) -> tuple[Value, _Rows]:
    """Return the gradient as it is read from its rows, and these."""
    g, index = inputs
    shape = node.attrs["shape"]
    count = index.size

    def at(op: Op, *values: Value, **attrs: Any) -> Value:
        return apply(op, values, attrs, node)

    places = at(reshape.op, index, shape=(count,))
    numbers = np.arange(count, dtype=np.int32)
    order = Value(Spec((count,), dtypes.int32), constant=numbers)
    nothing = constant(-1, dtypes.int32, (shape[0],))
    table = at(update_at.op, nothing, order, places, axes=(0,))
    slots = at(take_at.op, table, places, axes=(0,), signed=True)
    values = at(reshape.op, g, shape=(count, *shape[1:]))
    total = at(untake_at.op, values, slots, shape=(count, *shape[1:]), axes=(0,))
    zero = constant(0, g.dtype)
    chosen = at(maximum.op, table, constant(0, dtypes.int32))
    row = at(take_at.op, total, chosen, axes=(0,), signed=False)
    is_empty = at(less.op, table, constant(0, dtypes.int32))
    is_empty = at(reshape.op, is_empty, shape=(shape[0],) + (1,) * (len(shape) - 1))
    return at(where.op, is_empty, zero, row), _Rows(places, slots, total, zero)


def _elementwise(node: Node, rows: dict[Value, _Rows]) -> _Rows | None:
    """Return the rows of a result that is elementwise of others in this form, and of numbers."""
    if node.op.kind is not Kind.ELEMENTWISE or node.op.fault is not None:
        return None
    found = [rows.get(v) for v in node.inputs]
    first = next(r for r in found if r is not None)
    for value, own in zip(node.inputs, found, strict=True):
        if own is None and value.size != 1:
            return None
        if own is not None and own.slots is not first.slots:
            return None
    if len(node.results) != 1 or node.result.shape[1:] != first.total.shape[1:]:
        return None

    def number(value: Value) -> Value:
        return value if value.ndim == 0 else apply(reshape.op, (value,), {"shape": ()}, node)

    pairs = list(zip(node.inputs, found, strict=True))
    totals = tuple(number(v) if r is None else r.total for v, r in pairs)
    zeros = tuple(number(v) if r is None else r.zero for v, r in pairs)
    zero = apply(node.op, zeros, node.attrs, node)
    known = [v.constant for v in zeros]
    if all(array is not None for array in known):
        zero = Value(zero.spec, constant=np.asarray(node.op.reference(*known, **node.attrs)))
    return first._replace(total=apply(node.op, totals, node.attrs, node), zero=zero)


def _updated(node: Node, table: Value, step: _Rows) -> Value:
    """Return a table less a step, whose rows are computed before any of them is written."""
    by_row: dict[str, Any] = {"axes": (0,), "signed": True}
    old = apply(take_at.op, (table, step.places), by_row, node)
    change = apply(take_at.op, (step.total, step.slots), {**by_row, "signed": False}, node)
    new = apply(subtract.op, (old, change), {}, node)
    return apply(update_rest.op, (table, new, step.zero, step.places), {"axes": (0,)}, node)
