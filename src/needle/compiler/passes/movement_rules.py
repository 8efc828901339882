"""Rewrite rules of the ops that only move elements: those in a row become one, or none."""

from __future__ import annotations

import numpy as np

from needle.graph.ir import Value
from needle.graph.rewrite import (
    Match,
    Term,
    Variable,
    array_of,
    attributes,
    is_same_number,
    rule,
    term,
    terms,
    variables,
)
from needle.ops import movement, reduce, slicing
from needle.ops.contraction import matmul as matmul_
from needle.ops.joining import concat as concat_
from needle.ops.places import take_at as take_at_, untake_at as untake_at_
from needle.shapes import Shape, reduced_shape

x, y, i = variables("x y i")
shape, axes, inner, outer = attributes("shape axes inner outer")
pads, value, starts, stops, steps = attributes("pads value starts stops steps")
inner_starts, inner_steps, inner_pads = attributes("inner_starts inner_steps inner_pads")

reshape, permute, broadcast = terms(movement.reshape, movement.permute_dims, movement.broadcast_to)
strided_slice, unslice, pad = terms(slicing.strided_slice, slicing.unslice, slicing.pad)
concat, matmul = terms(concat_, matmul_)
take_at, untake_at = terms(take_at_, untake_at_)
REDUCTIONS = (reduce.sum, reduce.max, reduce.min)


def _keeps_shape(m: Match) -> bool:
    same: bool = m.x.shape == m.root.shape
    return same


def _composed(m: Match) -> Shape:
    return tuple(m.inner[a] for a in m.outer)


def _only_moves_ones(m: Match) -> bool:
    """Whether a permutation leaves the order of the axes of more than one element."""
    long = [a for a in m.axes if m.x.shape[a] != 1]
    return long == sorted(long)


def _adds_leading_ones(m: Match) -> bool:
    """Whether a reshape does what broadcasting does by itself: new axes of extent 1 in front."""
    source: Shape = m.x.shape
    lead = len(m.shape) - len(source)
    return lead >= 0 and tuple(m.shape) == (1,) * lead + source


def _takes_all(m: Match) -> bool:
    return _keeps_shape(m) and all(
        a == 0 and b >= n and s == 1
        for a, b, s, n in zip(m.starts, m.stops, m.steps, m.x.shape, strict=True)
    )


def _takes_what_was_padded(m: Match) -> bool:
    return all(
        a == before and b == before + n and s == 1
        for a, b, s, n, (before, _) in zip(
            m.starts, m.stops, m.steps, m.x.shape, m.pads, strict=True
        )
    )


def _first(m: Match) -> Shape:
    """Return where the inner of two slices begins, seen from what both are taken of."""
    return tuple(a + s * b for a, s, b in zip(m.starts, m.steps, m.inner_starts, strict=True))


def _strides(m: Match) -> Shape:
    return tuple(a * b for a, b in zip(m.steps, m.inner_steps, strict=True))


def _ends(shape: Shape, starts: Shape, steps: Shape) -> Shape:
    """Return the stops of slices that take ``shape``: just after the last element."""
    return tuple(
        a + (n - 1) * s + (1 if s > 0 else -1) if n else a
        for n, a, s in zip(shape, starts, steps, strict=True)
    )


def _last_taken(m: Match) -> Shape:
    return _ends(m.root.shape, _first(m), _strides(m))


def _last_put(m: Match) -> Shape:
    return _ends(m.x.shape, _first(m), _strides(m))


def _has_elements(m: Match) -> bool:
    return bool(m.root.size and m.x.size)


def _are_padded_alike(m: Match) -> bool:
    return is_same_number(m.inner, m.outer)


def _both_pads(m: Match) -> tuple[tuple[int, int], ...]:
    return tuple((a + c, b + d) for (a, b), (c, d) in zip(m.pads, m.inner_pads, strict=True))


def _progression(m: Match) -> tuple[int, int, int] | None:
    """Return start, stop and step of constant indices that are places of a slice."""
    array = array_of(m.i)
    if array is None or array.ndim != 1 or not array.size or len(m.axes) != 1:
        return None
    first, last = int(array[0]), int(array[-1])
    step = int(array[1]) - first if array.size > 1 else 1
    shape = m.x.shape if m.root.node.op is take_at_.op else m.root.shape  # type: ignore[union-attr]
    inside = min(first, last) >= 0 and max(first, last) < shape[m.axes[0]]
    if not step or not inside or (np.diff(array) != step).any():
        return None
    return first, last + (1 if step > 0 else -1), step


def _sliced(m: Match) -> Term | None:
    found = _progression(m)
    return found and strided_slice(x, **_along(m.x.shape, m.axes[0], found))


def _unsliced(m: Match) -> Term | None:
    found = _progression(m)
    return found and unslice(x, shape=m.shape, **_along(m.shape, m.axes[0], found))


def _along(shape: Shape, axis: int, part: tuple[int, int, int]) -> dict[str, Shape]:
    """Return the attributes of a slice that takes a part of one axis, and all of the others."""
    whole = [(0, n, 1) for n in shape]
    whole[axis] = part
    starts, stops, steps = zip(*whole, strict=True)
    return {"starts": starts, "stops": stops, "steps": steps}


def _drops_kept_axes(m: Match) -> bool:
    """Whether a reshape removes the axes that a reduction has kept, which nobody else reads."""
    reduced: Value = m.root.node.inputs[0]  # type: ignore[union-attr]
    return m.is_used_once(reduced) and m.root.shape == reduced_shape(m.x.shape, m.axes, False)


def _has_nothing_to_combine(m: Match) -> bool:
    return all(m.x.shape[a] == 1 for a in m.axes)


def _is_transposed_product(m: Match) -> bool:
    """Whether a permutation exchanges rows and columns of products that nobody else reads."""
    product: Value = m.root.node.inputs[0]  # type: ignore[union-attr]
    n = len(m.axes)
    return m.is_used_once(product) and m.axes == (*range(n - 2), n - 1, n - 2)


def _transposed(name: str) -> Term:
    """Return an operand of a product with rows and columns exchanged."""

    def swapped(m: Match) -> Shape:
        n = getattr(m, name).ndim
        return (*range(n - 2), n - 1, n - 2)

    return permute(Variable(name), axes=swapped)


#: A product is transposed by transposing its operands, which it reads as they are. Each element is
#: the same sum of the same products in the same order.
PRODUCTS = [
    rule(
        permute(matmul(x, y), axes=axes),
        matmul(_transposed("y"), _transposed("x")),
        when=_is_transposed_product,
    ),
]

MOVEMENT = [
    rule(reshape(x), x, when=_keeps_shape),
    rule(reshape(reshape(x), shape=shape), reshape(x, shape=shape)),
    rule(permute(x, axes=axes), x, when=lambda m: list(m.axes) == sorted(m.axes)),
    rule(permute(permute(x, axes=inner), axes=outer), permute(x, axes=_composed)),
    rule(
        permute(x, axes=axes),
        reshape(x, shape=lambda m: m.root.shape),
        when=_only_moves_ones,
    ),
    rule(broadcast(x), x, when=_keeps_shape),
    rule(broadcast(broadcast(x), shape=shape), broadcast(x, shape=shape)),
    rule(
        broadcast(reshape(x, shape=shape), shape=outer),
        broadcast(x, shape=outer),
        when=_adds_leading_ones,
    ),
    rule(strided_slice(x, starts=starts, stops=stops, steps=steps), x, when=_takes_all),
    rule(
        strided_slice(pad(x, pads=pads), starts=starts, stops=stops, steps=steps),
        x,
        when=_takes_what_was_padded,
    ),
    rule(
        strided_slice(
            unslice(x, starts=starts, stops=stops, steps=steps),
            starts=starts,
            stops=stops,
            steps=steps,
        ),
        x,
        when=_keeps_shape,
    ),
    rule(unslice(x, starts=starts, stops=stops, steps=steps), x, when=_takes_all),
    rule(pad(x), x, when=_keeps_shape),
    rule(concat(x), x),
    rule(
        strided_slice(
            strided_slice(x, starts=starts, steps=steps), starts=inner_starts, steps=inner_steps
        ),
        strided_slice(x, starts=_first, stops=_last_taken, steps=_strides),
        when=_has_elements,
    ),
    rule(
        unslice(
            unslice(x, starts=inner_starts, steps=inner_steps),
            shape=shape,
            starts=starts,
            steps=steps,
        ),
        unslice(x, shape=shape, starts=_first, stops=_last_put, steps=_strides),
        when=_has_elements,
    ),
    rule(
        pad(pad(x, pads=inner_pads, value=inner), pads=pads, value=outer),
        pad(x, pads=_both_pads, value=outer),
        when=_are_padded_alike,
    ),
    rule(take_at(x, i, axes=axes), _sliced),
    rule(untake_at(x, i, shape=shape, axes=axes), _unsliced),
    *(
        rule(
            term(op)(x, axes=axes),
            reshape(x, shape=lambda m: m.root.shape),
            when=_has_nothing_to_combine,
        )
        for op in REDUCTIONS
    ),
    *(
        rule(
            reshape(term(op)(x, axes=axes, keepdims=True)),
            term(op)(x, axes=axes, keepdims=False),
            when=_drops_kept_axes,
        )
        for op in REDUCTIONS
    ),
]
