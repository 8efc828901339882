"""Which values are stored: lie in memory, or are shared in a kernel, instead of being computed
wherever they are used."""

from __future__ import annotations

from needle import dtypes
from needle.compiler.access import View, is_dense, is_inline, moves_elements, view_of
from needle.compiler.inner import is_addressable
from needle.graph.ir import Graph, Node, Value
from needle.ops.convolution_form import Convolution, WeightTransform
from needle.ops.fold import Fold
from needle.ops.ordered import Joined, Ordered, Scatter
from needle.ops.record import Kind

#: Nodes in one expression before an intermediate value is stored.
LONGEST = 60
#: Parts of a join of which one is chosen for each element that is read, if it need not be stored.
MOST_CHOSEN = 2
#: Rows for so many of which even one op is rather computed once.
MANY_ROWS = 64
#: Nodes in an expression that is rather computed again than kept for kernels that can only run
#: later, if the value has so many bytes: to write and read an element of what does not fit into
#: caches takes as long as one or two exponentials.
RECOMPUTED = 24
RECOMPUTED_FROM = 1 << 18


def stored_values(graph: Graph) -> set[Value]:
    """Return the values computed by nodes that are to lie in memory, or be shared in a kernel."""
    stored: set[Value] = {v for v in graph.outputs if v.node is not None}
    users = graph.users()
    is_stored = stored.__contains__
    # How often a value is used, and for how many elements at most, behind what moves elements.
    uses: dict[Value, int] = {}
    widest: dict[Value, int] = {}
    for node in reversed(graph.nodes):
        for value in node.results:
            readers = [(user.results[0], moves_elements(user)) for user in users.get(value, ())]
            uses[value] = sum(uses[v] if moves else 1 for v, moves in readers)
            # A part of a join that is stored is computed once for each of its own elements.
            others = [(v, m) for v, m in readers if v.node is None or not _is_long_join(v.node)]
            widest[value] = max(
                (max(v.size, widest[v] if moves else 0) for v, moves in others), default=0
            )
    length: dict[Value, int] = {}
    late = _late(graph, users)
    #: What is read to compute a value that is not stored.
    leaves: dict[Value, set[Value]] = {}
    for node in graph.nodes:
        if not is_inline(node):
            stored.update(node.results)
            lower = node.op.lower
            if isinstance(lower, Scatter) and lower.base is not None:
                # What is made of elements that are replaced is computed before: they may go where
                # those are.
                values = node.inputs[lower.values]
                if node.inputs[lower.base] in leaves.get(values, ()):
                    stored.add(values)
            if _takes_pointers(node):
                for operand in node.inputs:
                    _store_base(operand, stored, _needs_dense(node))
            continue
        if _is_long_join(node):
            stored.update(node.results)
        own = 0 if moves_elements(node) else 1
        cost = own + sum(length.get(v, 0) for v in node.inputs if not is_stored(v))
        below: set[Value] = set()
        for v in node.inputs:
            below |= leaves[v] if v in leaves and not is_stored(v) else {v}
        for value in node.results:
            length[value] = cost
            leaves[value] = below
            if is_stored(value) or moves_elements(node):
                continue
            is_stretched = value.size * 2 <= widest[value]
            # What varies along the last axis is computed for each row, whatever it costs.
            is_row = value.ndim > 0 and 1 < value.shape[-1] == value.size
            repeats = cost > 0 and is_row and value.size * MANY_ROWS <= widest[value]
            if cost > LONGEST or (cost > 1 and is_stretched) or repeats:
                stored.add(value)
            elif cost > 1 and uses[value] > 1:
                # Used late: from one array that is kept in its place, it is computed again.
                large = sum(2 * v.size > value.size for v in below)
                is_cheap = cost <= RECOMPUTED and value.nbytes >= RECOMPUTED_FROM and large <= 1
                if not (is_cheap and value in late):
                    stored.add(value)
    # A value that got memory later may stand between an operand and its base.
    for node in graph.nodes:
        if _takes_pointers(node):
            for i, operand in enumerate(node.inputs):
                view = view_of(operand, is_stored)
                is_control = node.op.kind is Kind.CONTROL
                if (
                    view is None
                    or (is_control and not is_addressable(node, i, view))
                    or (_needs_dense(node) and not is_dense(operand.shape, view.strides))
                ):
                    stored.add(operand)
                is_attention = node.op.kind is Kind.ATTENTION
                if view is not None and is_attention and not _has_rows(operand, view):
                    stored.add(operand)
    return stored


def _late(graph: Graph, users: dict[Value, list[Node]]) -> set[Value]:
    """Return the values that are used in expressions which read what kernels of their own kind
    (products …) have made of them: no kernel can both compute them and serve these uses."""
    level: dict[Value, int] = {}
    for node in graph.nodes:
        after = max((level.get(v, 0) for v in node.inputs), default=0)
        is_anchor = not is_inline(node) and not isinstance(node.op.lower, Fold)
        level.update(dict.fromkeys(node.results, after + is_anchor))
    latest: dict[Value, int] = {}
    for node in reversed(graph.nodes):
        for value in node.results:
            inline = [u for u in users.get(value, ()) if is_inline(u)]
            latest[value] = max(
                (latest[v] for u in inline for v in u.results), default=level[value]
            )
    return {value for value, last in latest.items() if last > level[value]}


def _is_long_join(node: Node) -> bool:
    """Whether a join has so many parts that it is stored in any case."""
    return isinstance(node.op.lower, Joined) and len(node.inputs) > MOST_CHOSEN


def _takes_pointers(node: Node) -> bool:
    """Whether the op's kernel reads its inputs through pointers and strides, not by elements."""
    return not is_inline(node) and not isinstance(node.op.lower, Fold | Ordered)


def _has_rows(value: Value, view: View) -> bool:
    """Whether the last axis of a view has no gaps. That of a mask of bools may have some."""
    is_bool = value.dtype == dtypes.bool
    return is_bool or not value.ndim or value.shape[-1] == 1 or view.strides[-1] == 1


def _needs_dense(node: Node) -> bool:
    """Whether the op's kernel reads its inputs in row-major order, without gaps."""
    return isinstance(node.op.lower, Convolution | WeightTransform)


def _store_base(value: Value, stored: set[Value], needs_dense: bool) -> None:
    """Store what a kernel reads through pointers: the value, or what it is a view of."""
    base = value
    while base.node is not None and base not in stored:
        if not moves_elements(base.node) or len(base.node.inputs) != 1:
            break
        # Is it a view, if only the input of its base is stored?
        inner = base.node.inputs[0]
        view = view_of(value, lambda v, inner=inner: v is inner)  # type: ignore[misc]
        if view is None or (needs_dense and not is_dense(value.shape, view.strides)):
            break
        base = inner
    if base.node is not None:
        stored.add(base)
