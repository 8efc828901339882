"""Laying out: what is computed from transposed values is computed in the order of the originals.

A convolution computes images with the channels last and gives them out, transposed, with the
channels second, where they are normalised, activated, added, pooled, padded and joined, transposed
again and read by the next convolution. This pass walks from the inputs of a graph to its outputs
and moves each transposition behind what reads it: an elementwise op computes in the order in which
its operands lie, a reduction renumbers its axes, a slice its bounds. So transpositions meet, and
those that undo each other cancel: what is stored, and the loops over it, have the axes in one order
from layer to layer. The same happens to matrices.

Where operands disagree, the order in which most bytes lie wins. What is given (inputs, and state
that is overwritten) counts for the order that it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from needle.compiler.access import view_of
from needle.graph.ir import Graph, Node, Value, keep
from needle.graph.rewrite import apply, is_view
from needle.ops.fold import Fold
from needle.ops.movement import permute_dims, reshape
from needle.ops.record import Kind
from needle.shapes import Shape


class Turned(NamedTuple):
    """What a value is a transposition of: its axis ``a`` is the source's axis ``axes[a]``."""

    source: Value
    axes: Shape


def lay_out(graph: Graph) -> Graph:
    """Return the graph with transpositions moved behind what reads them."""
    return graph.rebuild(_Layout(graph).transform)


class _Layout:
    """One walk over a graph."""

    def __init__(self, graph: Graph) -> None:
        self._outputs = set(graph.outputs)
        self._turned: dict[Value, Turned] = {}
        #: Inputs, and what is computed from one element by element, in its order.
        self._given: set[Value] = set(graph.inputs)

    def transform(self, node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        """Return what replaces the results of ``node``."""
        made = self._moved(node, inputs) if len(node.results) == 1 else None
        if made is not None:
            return (made,)
        results = keep(node, inputs).results
        if node.op.kind is Kind.ELEMENTWISE:
            self._given.update(
                r for r in results if any(v in self._given and v.shape == r.shape for v in inputs)
            )
        return results

    def _moved(self, node: Node, inputs: tuple[Value, ...]) -> Value | None:
        op = node.op
        if op is permute_dims.op:
            return self._turn(inputs[0], node.attrs["axes"], node)
        if op.fault is not None or not any(v in self._turned for v in inputs):
            return None  # the error of an op that refuses values says where, in the user's terms
        if op.kind is Kind.ELEMENTWISE:
            return self._elementwise(node, inputs)
        if isinstance(op.lower, Fold):
            return self._fold(node, self._turned[inputs[0]])
        if op.per_axis is not None:
            return self._axis_by_axis(node, inputs)
        if is_view(op) and len(inputs) == 1:
            return self._view(node, inputs)
        return None

    def _turn(self, value: Value, axes: Shape, like: Node | None) -> Value:
        """Return a transposition of ``value``: one of its source, or none."""
        if value in self._turned:
            source, inner = self._turned[value]
            value, axes = source, tuple(inner[a] for a in axes)
        if list(axes) == sorted(axes):
            return value
        turned = Turned(value, axes)
        if _keeps_order(turned):
            shape = tuple(value.shape[a] for a in axes)
            result = apply(reshape.op, (value,), {"shape": shape}, like)
        else:
            result = apply(permute_dims.op, (value,), {"axes": axes}, like)
        self._turned[result] = turned
        return result

    def _elementwise(self, node: Node, inputs: tuple[Value, ...]) -> Value | None:
        axes = self._choose(node, inputs)
        if axes is None:
            return None
        sources = tuple(self._before(v, axes) for v in inputs)
        made = apply(node.op, sources, node.attrs, node)
        result = self._turn(made, axes, node)
        return result if result.spec == node.result.spec else None

    def _choose(self, node: Node, inputs: tuple[Value, ...]) -> Shape | None:
        """Return which transposition of its result an op of several operands should make.

        Returns:
            The axes; None for no transposition.
        """
        ndim = node.result.ndim
        votes: Counter[Shape] = Counter()
        for v in inputs:
            if v in self._turned and v.ndim == ndim:
                votes[self._turned[v].axes] += v.nbytes
            elif v in self._given and v.shape == node.result.shape:
                votes[tuple(range(ndim))] += v.nbytes
        if node.result in self._outputs:
            votes[tuple(range(ndim))] += node.result.nbytes
        if not votes:
            return None
        most = max(votes.values())
        # Of equals a transposition: as likely as not it meets another.
        (axes, *_) = sorted(a for a, n in votes.items() if n == most)[::-1]
        return None if list(axes) == sorted(axes) else axes

    def _before(self, value: Value, axes: Shape) -> Value:
        """Return what becomes ``value``, or broadcasts like it, by a transposition."""
        if not value.ndim:
            return value
        lead = len(axes) - value.ndim
        if lead:
            shape = (1,) * lead + value.shape
            value = apply(reshape.op, (value,), {"shape": shape}, value.node)
        return self._turn(value, _inverse(axes), value.node)

    def _fold(self, node: Node, turned: Turned) -> Value:
        """Return a reduction of the source, along the axes that it has there."""
        source, axes = turned
        attrs = _renamed(node.attrs, axes)
        made = apply(node.op, (source,), attrs, node)
        if made.ndim == source.ndim:
            return self._turn(made, axes, node)
        gone = {attrs["axis"]} if "axis" in attrs else set(attrs["axes"])
        left = [a for a in axes if a not in gone]
        order = sorted(left)
        return self._turn(made, tuple(order.index(a) for a in left), node)

    def _axis_by_axis(self, node: Node, inputs: tuple[Value, ...]) -> Value | None:
        """Return the result of an op that treats each axis by itself."""
        assert node.op.per_axis is not None
        if any(v.ndim != node.result.ndim for v in inputs):
            return None
        axes = self._choose(node, inputs)
        if axes is None:
            return None
        attrs = _renamed(node.attrs, axes)
        for name in node.op.per_axis:
            entries = node.attrs[name]
            attrs[name] = tuple(entries[a] for a in _inverse(axes))
        sources = tuple(self._before(v, axes) for v in inputs)
        return self._turn(apply(node.op, sources, attrs, node), axes, node)

    def _view(self, node: Node, inputs: tuple[Value, ...]) -> Value | None:
        """Return a view with the innermost axis of its source in mind, as the last axis.

        Nothing is moved: the result is the view as it is, but what reads it goes on in that order.
        """
        made = keep(node, inputs).result
        source, axes = self._turned[inputs[0]]
        below = apply(permute_dims.op, (source,), {"axes": axes})
        view = view_of(apply(node.op, (below,), node.attrs), lambda v: v is source)
        if view is None or not source.size:
            return made
        inner = [
            a for a, (n, s) in enumerate(zip(made.shape, view.strides, strict=True))
            if n > 1 and s == 1
        ]  # fmt: skip
        if inner and any(n > 1 for n in made.shape[inner[0] + 1 :]):
            order = (*(a for a in range(made.ndim) if a != inner[0]), inner[0])
            turned = apply(permute_dims.op, (made,), {"axes": order}, node)
            self._turned[made] = Turned(turned, _inverse(order))
        return made


def _keeps_order(turned: Turned) -> bool:
    """Whether a transposition leaves the order of the axes of more than one element."""
    long = [a for a in turned.axes if turned.source.shape[a] != 1]
    return long == sorted(long)


def _inverse(axes: Shape) -> Shape:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def _renamed(attrs: dict[str, Any], axes: Shape) -> dict[str, Any]:
    """Return attributes whose ``axis`` and ``axes`` are those of the source of a transposition."""
    renamed = dict(attrs)
    if "axis" in attrs:
        renamed["axis"] = axes[attrs["axis"]]
    if "axes" in attrs:
        renamed["axes"] = tuple(sorted(axes[a] for a in attrs["axes"]))
    return renamed
