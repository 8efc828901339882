"""Rewrite rules as data: a pattern of ops, and the smaller expression that takes its place.

    x, y = variables("x y")
    negative, add, subtract = terms(arithmetic.negative, arithmetic.add, arithmetic.subtract)

    RULES = [
        rule(negative(negative(x)), x),
        rule(add(x, negative(y)), subtract(x, y)),
    ]

A pattern is a term over variables, which stand for any value (the same value wherever one of them
occurs twice), numbers, which stand for constants of that number everywhere, and attributes.
`Rewriter` applies a list of rules to a graph from its inputs to its outputs, until none fits.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from needle.dtypes import DType
from needle.errors import NeedleError
from needle.graph.ir import Graph, Node, Value, keep
from needle.ops.movement import broadcast_to
from needle.ops.record import Kind, Op, OpFunction
from needle.ops.samples import Array
from needle.shapes import Spec

Number: TypeAlias = "int | float | bool"

#: A view of a constant may be a copy: of more elements none is made.
_MOST_SHOWN = 1 << 28
#: Rules shrink what they match. A chain this long can only be two rules that undo each other.
_LIMIT = 100


@dataclass(frozen=True)
class Variable:
    """Stands for any value; for the same one wherever it occurs in a pattern."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Constant:
    """Stands for a constant whose elements are all one number, known when compiling."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Attribute:
    """Stands for an attribute's value."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, eq=False)
class Term:
    """An op applied to operands: a pattern, or what is to be built.

    Attributes:
        op: the record.
        operands: terms, variables and numbers; in what is to be built also functions of the match.
        attrs: attributes that must be equal; those that a pattern does not name may be anything.
            In what is to be built, functions of the match give computed ones.
    """

    op: Op
    operands: tuple[Any, ...]
    attrs: Mapping[str, Any]

    def __str__(self) -> str:
        shown = [_show(o) for o in self.operands]
        shown += [f"{name}={_show(value)}" for name, value in self.attrs.items()]
        return f"{self.op.name}({', '.join(shown)})"


def _show(part: Any) -> str:
    if isinstance(part, Variable | Constant | Attribute | Term | int | float | tuple):
        return str(part)
    return "…"  # a function of the match


def variables(names: str) -> tuple[Variable, ...]:
    """Return a variable for each of the names, which are separated by blanks."""
    return tuple(map(Variable, names.split()))


def constants(names: str) -> tuple[Constant, ...]:
    """Return a constant for each of the names, which are separated by blanks."""
    return tuple(map(Constant, names.split()))


def attributes(names: str) -> tuple[Attribute, ...]:
    """Return an attribute for each of the names, which are separated by blanks."""
    return tuple(map(Attribute, names.split()))


def term(function: OpFunction[..., Any]) -> Callable[..., Term]:
    """Return what writes terms of an op: ``term(ndl.add)(x, 0)``."""

    def write(*operands: Any, **attrs: Any) -> Term:
        return Term(function.op, operands, attrs)

    return write


def terms(*functions: OpFunction[..., Any]) -> tuple[Callable[..., Term], ...]:
    """Return `term` of each of the functions."""
    return tuple(map(term, functions))


class Match:
    """What the variables of a pattern stand for, by name: ``match.x``, ``match.axes``.

    Attributes:
        root: the value that the whole pattern describes.
    """

    def __init__(self, root: Value, bindings: dict[str, Any], uses: Mapping[Value, int]) -> None:
        self.root = root
        self._bindings = bindings
        self._uses = uses

    def __getattr__(self, name: str) -> Any:
        try:
            return self._bindings[name]
        except KeyError:
            raise AttributeError(f"the pattern has no {name!r}") from None

    def is_used_once(self, value: Value) -> bool:
        """Whether only one place of the graph is known to read ``value``."""
        return self._uses.get(value) == 1


@dataclass(frozen=True, eq=False)
class Rule:
    """A pattern, what replaces it, and when.

    Attributes:
        pattern: the term to look for.
        replacement: the expression to put in its place: a term, a variable, a number, or a function
            from the match to a value, an expression or None (to leave it as it is).
        when: whether the rule holds for a match; None for always.
        dtypes: dtypes of the result for which the rule holds; None for all.
    """

    pattern: Term
    replacement: Any
    when: Callable[[Match], bool] | None = None
    dtypes: frozenset[DType] | None = None

    def __str__(self) -> str:
        return f"{self.pattern} → {_show(self.replacement)}"


def rule(
    pattern: Term,
    replacement: Any,
    *,
    when: Callable[[Match], bool] | None = None,
    dtypes: Iterable[DType] | None = None,
) -> Rule:
    """Return a rule, see `Rule`."""
    return Rule(pattern, replacement, when, None if dtypes is None else frozenset(dtypes))


def is_view(op: Op) -> bool:
    """Whether the op shows the elements of its input in another order or shape, and no others."""
    return op.kind is Kind.MOVEMENT and op.may_alias


def number_of(value: Value) -> Number | None:
    """Return the number that all elements of ``value`` are known to be, or None."""
    while value.node is not None and is_view(value.node.op):
        value = value.node.inputs[0]
    if value.constant is None or value.size != 1:
        return None
    number: Number = value.constant.reshape(()).item()
    return number


def array_of(value: Value) -> Array | None:
    """Return the elements of ``value`` if they are constant: a constant's, or a view's of one."""
    if value.constant is not None or value.node is None or not is_view(value.node.op):
        return value.constant
    if value.size > _MOST_SHOWN:
        return None
    array = array_of(value.node.inputs[0])
    if array is None:
        return None
    shown: Array = value.node.op.reference(array, **value.node.attrs)
    return shown


def is_same_number(x: Number, y: Number) -> bool:
    """Whether two numbers are equal, zeros with their signs."""
    if x != x or y != y:
        return x != x and y != y
    return x == y and math.copysign(1.0, x) == math.copysign(1.0, y)


def constant(number: Number, dtype: DType, shape: tuple[int, ...] = ()) -> Value:
    """Return a constant value; one of more than one element is a broadcast 0-d constant."""
    with np.errstate(all="ignore"):
        array = np.asarray(number).astype(dtype)
    value = Value(Spec((), dtype), constant=array)
    return value if not shape else apply(broadcast_to.op, (value,), {"shape": shape})


def apply(
    op: Op, inputs: tuple[Value, ...], attrs: dict[str, Any], like: Node | None = None
) -> Value:
    """Return the only result of a new node.

    Args:
        op: the record.
        inputs: what it reads.
        attrs: its attributes.
        like: the node that it replaces, whose place in the user's program it takes over.
    """
    spec = op.infer(*[v.spec for v in inputs], **attrs)
    node = Node(op, inputs, attrs, (spec,))
    if like is not None:
        node.take_place(like)
    return node.result


def fitted(value: Value, spec: Spec, like: Node | None = None) -> Value:
    """Return ``value``, broadcast to the shape of ``spec`` if it is of a smaller one.

    Raises:
        NeedleError: it is of another dtype.
    """
    if value.dtype != spec.dtype:
        raise NeedleError(f"a rewrite made {value.spec} out of {spec}")
    if value.shape == spec.shape:
        return value
    return apply(broadcast_to.op, (value,), {"shape": spec.shape}, like)


class Rewriter:
    """Applies rules to graphs.

    Args:
        rules: earlier ones are tried first.

    Attributes:
        applied: how often each rule was.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.applied: Counter[Rule] = Counter()
        self._rules: dict[Op, list[Rule]] = {}
        for r in rules:
            self._rules.setdefault(r.pattern.op, []).append(r)
        self._uses: Counter[Value] = Counter()
        self._depth = 0

    def __call__(self, graph: Graph) -> Graph:
        """Return the graph with the rules applied wherever they fit."""
        self._uses = Counter(graph.read_values())

        def transform(node: Node, inputs: tuple[Value, ...]) -> tuple[Value, ...]:
            kept = keep(node, inputs)
            if kept is not node:
                for old, new in zip(node.results, kept.results, strict=True):
                    self._uses[new] = self._uses[old]
            if len(kept.results) != 1:
                return kept.results
            rewritten = self.rewrite(kept.result)
            if rewritten not in self._uses:  # it is new: who read the old value reads this one
                self._uses[rewritten] = self._uses[kept.result]
            return (rewritten,)

        return graph.rebuild(transform)

    def rewrite(self, value: Value) -> Value:
        """Return what rules make of ``value``, whose node's inputs are rewritten already."""
        self._depth += 1
        try:
            for _ in range(_LIMIT):
                replaced = self._step(value) if self._depth < _LIMIT else value
                if replaced is None:
                    return value
                value = replaced
        finally:
            self._depth -= 1
        raise NeedleError(f"rewriting {value} does not end: two rules undo each other")

    def _step(self, value: Value) -> Value | None:
        node = value.node
        if node is None or len(node.results) != 1:
            return None
        for r in self._rules.get(node.op, ()):
            if r.dtypes is not None and value.dtype not in r.dtypes:
                continue
            for bindings in _matches(r.pattern, value, {}):
                match = Match(value, bindings, self._uses)
                if r.when is not None and not r.when(match):
                    continue
                made = self._build(r.replacement, match, node, None)
                if made is not None:
                    self.applied[r] += 1
                    return fitted(made, value.spec, node)
        return None

    def _build(self, part: Any, match: Match, like: Node, dtype: DType | None) -> Value | None:
        """Return the value of an expression; numbers get ``dtype``, or the root's."""
        if isinstance(part, Term):
            return self._build_term(part, match, like)
        if isinstance(part, Variable | Constant):
            part = getattr(match, part.name)
        elif callable(part):
            return self._build(part(match), match, like, dtype)
        if part is None or isinstance(part, Value):
            return part
        return constant(part, dtype or match.root.dtype)

    def _build_term(self, part: Term, match: Match, like: Node) -> Value | None:
        operands: list[Value | None] = [
            None if _is_number(o) else self._build(o, match, like, None) for o in part.operands
        ]
        # A number is of the dtype of what stands beside it.
        dtypes = [o.dtype for o in operands if o is not None]
        for i, o in enumerate(part.operands):
            if _is_number(o):
                operands[i] = self._build(o, match, like, dtypes[-1] if dtypes else None)
        attrs = {name: _attribute(value, match) for name, value in part.attrs.items()}
        inputs = tuple(o for o in operands if o is not None)
        return self.rewrite(apply(part.op, inputs, attrs, like))


def _is_number(part: Any) -> bool:
    return isinstance(part, int | float | Constant) or (
        callable(part) and not isinstance(part, Term | Variable)
    )


def _attribute(value: Any, match: Match) -> Any:
    if isinstance(value, Attribute):
        return getattr(match, value.name)
    return value(match) if callable(value) else value


def _matches(pattern: Any, value: Value, bindings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the ways in which ``value`` is what ``pattern`` describes."""
    if isinstance(pattern, Variable):
        if bindings.setdefault(pattern.name, value) is value:
            yield bindings
    elif isinstance(pattern, Term):
        yield from _term_matches(pattern, value, bindings)
    else:
        number = number_of(value)
        if number is None:
            return
        if not isinstance(pattern, Constant):
            if is_same_number(pattern, number):
                yield bindings
        elif is_same_number(bindings.setdefault(pattern.name, number), number):
            yield bindings


def _term_matches(
    pattern: Term, value: Value, bindings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    node = value.node
    if node is None or node.op is not pattern.op or len(node.inputs) != len(pattern.operands):
        return
    bound = dict(bindings)
    for name, wanted in pattern.attrs.items():
        actual = node.attrs[name]
        if isinstance(wanted, Attribute):
            wanted = bound.setdefault(wanted.name, actual)
        if wanted != actual:
            return
    orders = [node.inputs]
    if node.op.commutes:
        orders.append(node.inputs[::-1])
    for inputs in orders:
        yield from _all_match(pattern.operands, inputs, bound)


def _all_match(
    patterns: tuple[Any, ...], values: tuple[Value, ...], bindings: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    if not patterns:
        yield bindings
        return
    for bound in _matches(patterns[0], values[0], dict(bindings)):
        yield from _all_match(patterns[1:], values[1:], bound)
