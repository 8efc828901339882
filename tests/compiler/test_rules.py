"""Each rewrite rule: what it makes has the bits of what it replaces, special values included."""

import itertools

import numpy as np
import pytest
from compiler_tools import assert_same_bits, interpret

from needle import dtypes
from needle.compiler.passes.movement_rules import MOVEMENT, PRODUCTS
from needle.compiler.passes.rules import CONVERSIONS, FAMILIES, POWERS, RULES, holds_all
from needle.dtypes import ALL, is_float
from needle.errors import NeedleError
from needle.graph.ir import Graph, Value, sort
from needle.graph.rewrite import (
    Attribute,
    Constant,
    Rewriter,
    Term,
    Variable,
    apply,
    constant,
    rule,
    term,
    terms,
    variables,
)
from needle.ops import arithmetic, places, reduce, slicing
from needle.ops.contraction import matmul
from needle.ops.movement import broadcast_to, permute_dims, reshape
from needle.ops.record import Kind
from needle.shapes import Spec
from needle.testing import assert_close

SPECIAL = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 0.3, 6e4, -1e-4, np.inf, -np.inf, np.nan]
#: Powers of two, other numbers, and those of which rules speak.
NUMBERS = [0.0, -0.0, 1.0, -1.0, 2.0, 0.25, -8.0, 3.0, 1e30, np.inf, np.nan]


def values_of(dtype, seed):
    """Return values of ``dtype``, special ones and random ones."""
    rng = np.random.default_rng(seed)
    if dtype == dtypes.bool:
        return np.array([False, True, True, False])
    if is_float(dtype):
        with np.errstate(all="ignore"):
            return np.append(SPECIAL, rng.standard_normal(8) * 3).astype(dtype)
    info = np.iinfo(dtype)
    edges = [0, 1, 2, 7, info.max, info.min, info.max - 1]
    return np.array([*edges, *map(int, rng.integers(0, 100, 5))], dtype)


def variables_of(pattern):
    if isinstance(pattern, Term):
        return {name: v for part in pattern.operands for name, v in variables_of(part).items()}
    return {pattern.name: pattern} if isinstance(pattern, Variable | Constant) else {}


class Instance:
    """A pattern with inputs in the place of its variables: every value against every other."""

    def __init__(self, pattern, dtype, number=2.0, shapes=None):
        self.dtype, self.number = dtype, number
        self.inputs, self.arrays = {}, {}
        names = [n for n, v in variables_of(pattern).items() if isinstance(v, Variable)]
        for i, name in enumerate(names):
            kind = dtypes.bool if name in "pq" else dtype
            array = values_of(kind, i)
            shape = [1] * len(names)
            shape[i] = len(array)
            self.arrays[name] = array.reshape(shape)
            self.inputs[name] = Value(Spec(tuple(shape), kind), name=name)
        root = self.build(pattern, dtype)
        self.graph = Graph(list(self.inputs.values()), sort([root]), [root])

    def build(self, part, dtype):
        if isinstance(part, Variable):
            return self.inputs[part.name]
        if isinstance(part, Constant):
            return constant(self.number, dtype)
        if not isinstance(part, Term):
            return constant(part, dtype)
        operands = [None if isinstance(o, bool | int | float | Constant) else self.build(o, dtype)
                    for o in part.operands]  # fmt: skip
        beside = [o.dtype for o in operands if o is not None]
        for i, o in enumerate(part.operands):
            if operands[i] is None:
                # The condition of a where is bool; other numbers are like their neighbours.
                operands[i] = self.build(o, dtypes.bool if isinstance(o, bool) else beside[-1])
        specs = [o.spec for o in operands]
        result = part.op.infer(*specs, **part.attrs)  # refuses some dtypes
        if part.op.kind is Kind.ELEMENTWISE and not part.attrs:
            with np.errstate(all="ignore"):
                one = part.op.reference(*(np.ones(1, o.dtype) for o in operands))
            # `divide` converts integers before it applies its record.
            if one.dtype != result.dtype:
                raise NeedleError(f"{part.op.name} is not computed in {dtype}")
        return apply(part.op, tuple(operands), dict(part.attrs))

    def run(self, graph):
        return interpret(graph, *self.arrays.values())[0]


ELEMENTWISE = [r for r in RULES if r not in (*MOVEMENT, *CONVERSIONS, *PRODUCTS)]


@pytest.mark.parametrize("r", ELEMENTWISE, ids=str)
def test_elementwise_rule_changes_no_bit(r):
    fired = 0
    has_number = any(isinstance(v, Constant) for v in variables_of(r.pattern).values())
    for dtype, number in itertools.product(ALL, NUMBERS if has_number else [2.0]):
        try:
            instance = Instance(r.pattern, dtype, number)
            expected = instance.run(instance.graph)
        except NeedleError:
            continue  # no op for this dtype
        rewriter = Rewriter([r])
        rewritten = rewriter(instance.graph)
        if not rewriter.applied[r]:
            continue
        fired += 1
        actual = instance.run(rewritten)
        if r in POWERS and is_float(dtype):
            assert_close(actual, expected, ulp=2, check_dtype=True)
        else:
            assert_same_bits(actual, expected)
    assert fired, "no dtype and no number for which the rule does anything"


def program(*build, shape=(2, 3, 4), dtype=np.float32):
    """Return a graph of ops in a row, each a pair of a function and its attributes."""
    value = first = Value(Spec(shape, np.dtype(dtype)), name="x")
    for function, attrs in build:
        indices = ()
        if isinstance(function, tuple):
            function, array = getattr(places, function[0]), np.array(function[1])
            indices = (Value(Spec(array.shape, array.dtype), constant=array),)
        value = apply(function.op, (value, *indices), attrs)
    return Graph([first], sort([value]), [value])


def sliced(starts, stops, steps):
    return {"starts": starts, "stops": stops, "steps": steps}


FULL = sliced((0, 0, 0), (2, 3, 4), (1, 1, 1))
PART = sliced((0, 2, 1), (2, -1, 4), (1, -1, 2))
TURNED = sliced((0, 1, 2), (2, -1, -1), (1, -1, -2))
ONE = {"axes": (1,), "keepdims": False}
KEPT = {"axes": (0, 2), "keepdims": True}
PADS = {"pads": ((1, 0), (0, 2), (3, 1)), "value": 1.5}
REMAINS = sliced((1, 0, 3), (3, 3, 7), (1, 1, 1))

#: A program for each rule of movement, in their order, and how many nodes are left.
PROGRAMS = [
    ((reshape, {"shape": (2, 3, 4)}),),
    ((reshape, {"shape": (6, 4)}), (reshape, {"shape": (24,)})),
    ((permute_dims, {"axes": (0, 1, 2)}),),
    ((permute_dims, {"axes": (2, 0, 1)}), (permute_dims, {"axes": (0, 2, 1)})),
    ((permute_dims, {"axes": (1, 0, 2)}),),
    ((broadcast_to, {"shape": (2, 3, 4)}),),
    ((broadcast_to, {"shape": (5, 2, 3, 4)}), (broadcast_to, {"shape": (6, 5, 2, 3, 4)})),
    ((reshape, {"shape": (1, 2, 3, 4)}), (broadcast_to, {"shape": (5, 2, 3, 4)})),
    ((slicing.strided_slice, FULL),),
    ((slicing.pad, PADS), (slicing.strided_slice, REMAINS)),
    (
        (slicing.strided_slice, PART),
        (slicing.unslice, {"shape": (2, 3, 4), **PART}),
        (slicing.strided_slice, PART),
    ),
    ((slicing.unslice, {"shape": (2, 3, 4), **FULL}),),
    ((slicing.pad, {"pads": ((0, 0),) * 3, "value": 2.0}),),
    (("concat", {"axis": 0}),),
    ((slicing.strided_slice, PART), (slicing.strided_slice, TURNED)),
    (
        (slicing.unslice, {"shape": (3, 8, 6), **sliced((2, 7, 1), (-1, 0, 5), (-2, -3, 1))}),
        (slicing.unslice, {"shape": (3, 8, 12), **sliced((0, 7, 0), (3, -1, 12), (1, -1, 2))}),
    ),
    (
        (slicing.pad, {"pads": ((1, 0), (0, 2), (3, 1)), "value": 1}),
        (slicing.pad, {"pads": ((0, 0), (1, 2), (0, 1)), "value": 1}),
    ),
    ((("take_at", [3, 1]), {"axes": (2,), "signed": True}),),
    ((("untake_at", [1, 3, 5]), {"axes": (1,), "shape": (2, 7, 4)}),),
    *(((function, ONE),) for function in (reduce.sum, reduce.max, reduce.min)),
    *(
        ((function, KEPT), (reshape, {"shape": (3,)}))
        for function in (reduce.sum, reduce.max, reduce.min)
    ),
]  # fmt: skip
SHAPES = {4: (2, 1, 4), **dict.fromkeys((19, 20, 21), (2, 1, 4))}


@pytest.mark.parametrize("number", range(len(MOVEMENT)), ids=lambda i: str(MOVEMENT[i]))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int32, np.bool_])
def test_movement_rule_changes_no_bit(number, dtype):
    from needle.ops.joining import concat

    r, steps = MOVEMENT[number], PROGRAMS[number]
    steps = [(concat if f == "concat" else f, attrs) for f, attrs in steps]
    if dtype in (np.bool_, np.int32) and any(
        f is reduce.sum or (isinstance(f, tuple) and f[0] == "untake_at") for f, _ in steps
    ):
        dtype = np.int64  # to which sums convert first, bools do not add
    graph = program(*steps, shape=SHAPES.get(number, (2, 3, 4)), dtype=dtype)
    size = graph.inputs[0].size
    array = np.resize(values_of(np.dtype(dtype), 0), size).reshape(graph.inputs[0].shape)
    rewriter = Rewriter([r])
    rewritten = rewriter(graph)
    assert rewriter.applied[r] == 1
    simple = (reshape.op, slicing.strided_slice.op, slicing.unslice.op)
    assert len(rewritten.nodes) < len(graph.nodes) or rewritten.nodes[0].op in simple
    actual, expected = interpret(rewritten, array)[0], interpret(graph, array)[0]
    if r.pattern.op is reduce.sum.op:
        actual = actual + array.dtype.type(0)  # a sum of −0 alone may be 0
    assert_same_bits(actual, expected)


def test_every_rule_of_movement_has_a_program():
    assert len(PROGRAMS) == len(MOVEMENT)


def test_a_transposed_product_is_a_product_of_transposed_operands():
    a = Value(Spec((3, 4), np.dtype(np.float32)))
    b = Value(Spec((2, 4, 5), np.dtype(np.float32)))
    product = apply(matmul.op, (a, b), {})
    out = apply(permute_dims.op, (product,), {"axes": (0, 2, 1)})
    graph = Graph([a, b], sort([out]), [out])
    rewritten = Rewriter(PRODUCTS)(graph)
    assert [n.op.name for n in rewritten.nodes] == ["permute_dims", "permute_dims", "matmul"]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(v.shape).astype(np.float32) for v in (a, b)]
    assert_close(interpret(rewritten, *arrays)[0], interpret(graph, *arrays)[0])
    both = Graph([a, b], sort([out, product]), [out, product])
    assert len(Rewriter(PRODUCTS)(both).nodes) == 2, "computed twice"
    turned = apply(permute_dims.op, (product,), {"axes": (2, 0, 1)})
    assert len(Rewriter(PRODUCTS)(Graph([a, b], sort([turned]), [turned])).nodes) == 2


def test_a_product_that_is_transposed_twice_is_the_product():
    """What a rule has made is read by whoever read what was there before."""
    a, b = (Value(Spec(shape, np.dtype(np.float32))) for shape in ((3, 4), (4, 5)))
    once = apply(permute_dims.op, (apply(matmul.op, (a, b), {}),), {"axes": (1, 0)})
    twice = apply(permute_dims.op, (once,), {"axes": (1, 0)})
    rewritten = Rewriter([*PRODUCTS, *MOVEMENT])(Graph([a, b], sort([twice]), [twice]))
    assert [n.op.name for n in rewritten.nodes] == ["matmul"]
    both = Rewriter([*PRODUCTS, *MOVEMENT])(Graph([a, b], sort([twice, once]), [twice, once]))
    assert [n.op.name for n in both.nodes].count("matmul") == 1, "computed twice"


@pytest.mark.parametrize("indices", [[0, 2, 3], [0, 0], [-2, -1], [2, 9], [], [[0, 1]], [0, -1]])
def test_indices_that_are_no_slice_are_gathered(indices):
    x = Value(Spec((4, 5), np.dtype(np.float32)))
    array = np.array(indices, np.int64)
    index = Value(Spec(array.shape, array.dtype), constant=array)
    out = apply(places.take_at.op, (x, index), {"axes": (0,), "signed": True})
    graph = Graph([x], sort([out]), [out])
    assert Rewriter(MOVEMENT)(graph).nodes == graph.nodes


def test_a_reduction_that_others_read_is_not_computed_twice():
    x = Value(Spec((2, 3), np.dtype(np.float32)))
    total = apply(reduce.sum.op, (x,), {"axes": (1,), "keepdims": True})
    flat = apply(reshape.op, (total,), {"shape": (2,)})
    outputs = [flat, total]
    rewritten = Rewriter(MOVEMENT)(Graph([x], sort(outputs), outputs))
    assert [n.op.name for n in rewritten.nodes] == ["sum", "reshape"]


@pytest.mark.parametrize("source", ALL, ids=lambda d: d.name)
def test_conversions_by_a_detour(source):
    """Where two conversions become one, no value of the source shows a difference."""
    from needle.ops.copying import astype, clone

    array = values_of(source, 0)
    shortened = 0
    for middle, last in itertools.product(ALL, ALL):
        graph = program(
            (clone, {}), (astype, {"dtype": middle}), (astype, {"dtype": last}),
            shape=array.shape, dtype=source,
        )  # fmt: skip
        rewritten = Rewriter(CONVERSIONS)(graph)
        if len(rewritten.nodes) == 2:
            continue
        shortened += 1
        kept = array
        if is_float(source) and not is_float(last):
            with np.errstate(all="ignore"):  # what has no integer is not defined
                kept = np.where(np.abs(array) < 100, array, 1).astype(source)
                kept[kept < 0] *= -1
        assert_same_bits(interpret(rewritten, kept)[0], interpret(graph, kept)[0])
    assert shortened > len(ALL)


def test_holds_all_knows_what_is_exact():
    for source, target in itertools.product(ALL, ALL):
        if not holds_all(target, source) or source == target:
            continue
        array = values_of(source, 0)
        with np.errstate(all="ignore"):
            assert_same_bits(array.astype(target).astype(source), array)
    assert holds_all(dtypes.float64, dtypes.int32)
    assert not holds_all(dtypes.float64, dtypes.int64)
    assert not holds_all(dtypes.float32, dtypes.int32)
    assert not holds_all(dtypes.bfloat16, dtypes.float16)
    assert holds_all(dtypes.int16, dtypes.uint8)
    assert not holds_all(dtypes.uint16, dtypes.int8)


def test_rules_are_all_in_a_family_and_read_as_formulas():
    assert sum(map(len, FAMILIES.values())) == len(RULES) == len({id(r) for r in RULES})
    shown = [str(r) for r in RULES]
    assert "negative(negative(x)) → x" in shown
    assert "where(logical_not(p), x, y) → where(p, y, x)" in shown
    assert len(set(shown)) == len(shown), "two rules of one pattern, or a pattern that hides much"


x, y = variables("x y")
add, subtract = terms(arithmetic.add, arithmetic.subtract)


def test_two_rules_that_undo_each_other_are_an_error():
    circle = [rule(add(x, y), subtract(x, y)), rule(subtract(x, y), add(x, y))]
    v = Value(Spec((3,), np.dtype(np.float32)))
    out = apply(arithmetic.add.op, (v, v), {})
    with pytest.raises(NeedleError, match="undo each other"):
        Rewriter(circle)(Graph([v], sort([out]), [out]))


def test_a_rule_of_another_dtype_is_an_error():
    from needle.ops.comparison import equal

    wrong = rule(term(equal)(x, y), x)
    v = Value(Spec((3,), np.dtype(np.float32)))
    out = apply(equal.op, (v, v), {})
    with pytest.raises(NeedleError, match="rewrite made"):
        Rewriter([wrong])(Graph([v], sort([out]), [out]))


def test_operands_of_commuting_ops_match_in_both_orders():
    negative = term(arithmetic.negative)
    r = rule(add(negative(x), add(y, x)), y)
    v, w = (Value(Spec((3,), np.dtype(np.float32))) for _ in range(2))
    minus = apply(arithmetic.negative.op, (v,), {})
    for inner in ((v, w), (w, v)):
        total = apply(arithmetic.add.op, inner, {})
        for outer in ((minus, total), (total, minus)):
            out = apply(arithmetic.add.op, outer, {})
            assert Rewriter([r])(Graph([v, w], sort([out]), [out])).outputs == [w]


def test_attributes_of_one_name_must_be_equal():
    (axes,) = (Attribute("axes"),)
    permute = term(permute_dims)
    r = rule(permute(permute(x, axes=axes), axes=axes), x)
    swap = program((permute_dims, {"axes": (0, 2, 1)}), (permute_dims, {"axes": (0, 2, 1)}))
    turn = program((permute_dims, {"axes": (1, 2, 0)}), (permute_dims, {"axes": (0, 2, 1)}))
    assert not Rewriter([r])(swap).nodes
    assert len(Rewriter([r])(turn).nodes) == 2
