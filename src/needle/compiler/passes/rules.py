"""The algebra that the compiler knows, as rewrite rules.

A rule changes no bit of a result: infinities, NaN and the sign of zero come out as before. So there
is no ``x · 0 → 0`` or ``x − x → 0`` for floats, and ``x + 0 → x`` only for a zero that is negative,
since −0 + 0 is 0. Exceptions are the powers, where a product of correctly rounded factors takes the
place of a function that is not, and NaN, which may come out with another sign bit.
"""

from __future__ import annotations

import math

from needle.compiler.passes.movement_rules import MOVEMENT, PRODUCTS
from needle.dtypes import (
    FLOATS,
    INTEGERS,
    SIGNED,
    DType,
    bfloat16,
    bool as bool_,
    float16,
    float32,
    float64,
    is_float,
    is_integer,
)
from needle.graph.rewrite import Match, Rule, attributes, constants, rule, terms, variables
from needle.ops import activation, arithmetic, bitwise, comparison, copying, transcendental

x, y, z = variables("x y z")
p, q = variables("p q")  # bools
(c,) = constants("c")
middle, last = attributes("middle last")

add, subtract, multiply, divide = terms(
    arithmetic.add, arithmetic.subtract, arithmetic.multiply, arithmetic.divide
)
negative, abs_, square, sign, pow_ = terms(
    arithmetic.negative, arithmetic.abs, arithmetic.square, arithmetic.sign, arithmetic.pow
)
maximum, minimum, relu = terms(arithmetic.maximum, arithmetic.minimum, activation.relu)
sqrt, rsqrt, reciprocal = terms(
    transcendental.sqrt, transcendental.rsqrt, transcendental.reciprocal
)
roundings = terms(arithmetic.floor, arithmetic.ceil, arithmetic.trunc, arithmetic.round)
where, not_, and_, or_, xor = terms(
    comparison.where,
    comparison.logical_not,
    comparison.logical_and,
    comparison.logical_or,
    comparison.logical_xor,
)
equal, not_equal, less, less_equal, greater, greater_equal = terms(
    comparison.equal,
    comparison.not_equal,
    comparison.less,
    comparison.less_equal,
    comparison.greater,
    comparison.greater_equal,
)
bits_and, bits_or, bits_xor, invert, left, right = terms(
    bitwise.bitwise_and,
    bitwise.bitwise_or,
    bitwise.bitwise_xor,
    bitwise.bitwise_invert,
    bitwise.bitwise_left_shift,
    bitwise.bitwise_right_shift,
)
astype, clone = terms(copying.astype, copying.clone)

#: Dtypes in which each op is rounded once, so that two ops in one are the same.
WIDE = (float32, float64)


def has_exact_reciprocal(m: Match) -> bool:
    """Whether ``c`` is a power of two with a normal reciprocal, so that ``x / c = x · (1 / c)``."""
    dtype = m.root.dtype
    if not is_float(dtype) or m.c == 0 or not math.isfinite(m.c):
        return False
    fraction, exponent = math.frexp(m.c)
    # 2¹⁴ and its reciprocal are normal in all floating dtypes; of others hardly anybody divides by.
    return math.fabs(fraction) == 0.5 and -14 <= exponent - 1 <= 14


def _are_integers(m: Match) -> bool:
    return is_integer(m.x.dtype)


ARITHMETIC = [
    rule(add(x, -0.0), x),
    rule(add(x, 0), x, dtypes=INTEGERS),
    rule(add(x, negative(y)), subtract(x, y)),
    rule(subtract(x, 0), x),
    rule(subtract(x, negative(y)), add(x, y)),
    rule(subtract(x, x), 0, dtypes=INTEGERS),
    rule(negative(negative(x)), x),
    rule(multiply(x, 1), x),
    rule(multiply(x, -1), negative(x)),
    rule(multiply(x, 0), 0, dtypes=INTEGERS),
    rule(multiply(negative(x), negative(y)), multiply(x, y)),
    rule(multiply(x, x), square(x), when=lambda m: m.root.dtype != bool_),
    rule(divide(x, 1), x),
    rule(divide(x, c), multiply(x, lambda m: 1 / m.c), when=has_exact_reciprocal),
    rule(divide(negative(x), negative(y)), divide(x, y)),
    rule(divide(1, x), reciprocal(x)),
    rule(reciprocal(sqrt(x)), rsqrt(x), dtypes=WIDE),
]

POWERS = [
    rule(pow_(x, 0), 1),
    rule(pow_(x, 1), x),
    rule(pow_(x, 2), square(x)),
    rule(pow_(x, 3), multiply(square(x), x), dtypes=(*WIDE, *INTEGERS)),
    rule(pow_(x, -1), reciprocal(x), dtypes=WIDE),
]

SIGNS = [
    rule(abs_(negative(x)), abs_(x), dtypes=(*SIGNED, *FLOATS)),
    rule(abs_(abs_(x)), abs_(x)),
    rule(abs_(square(x)), square(x), dtypes=WIDE),
    rule(square(negative(x)), square(x)),
    rule(square(abs_(x)), square(x)),
    rule(sign(sign(x)), sign(x)),
]

EXTREMA = [
    rule(maximum(x, x), x),
    rule(minimum(x, x), x),
    rule(maximum(x, -math.inf), x),
    rule(minimum(x, math.inf), x),
    rule(relu(relu(x)), relu(x)),
]

ROUNDING = [
    *(rule(again(first(x)), first(x)) for again in roundings for first in roundings),
    *(rule(first(x), x, dtypes=INTEGERS) for first in roundings),
]

SELECTION = [
    rule(where(p, x, x), x),
    rule(where(True, x, y), x),
    rule(where(False, x, y), y),
    rule(where(not_(p), x, y), where(p, y, x)),
    rule(where(p, where(p, x, y), z), where(p, x, z)),
    rule(where(p, x, where(p, y, z)), where(p, x, z)),
    rule(where(p, True, False), p, dtypes=(bool_,)),
]

LOGIC = [
    rule(not_(not_(p)), p),
    rule(and_(p, p), p),
    rule(and_(p, True), p),
    rule(and_(p, False), False),
    rule(or_(p, p), p),
    rule(or_(p, False), p),
    rule(or_(p, True), True),
    rule(xor(p, p), False),
    rule(xor(p, False), p),
    rule(xor(p, True), not_(p)),
]

COMPARISONS = [
    rule(greater(x, y), less(y, x)),
    rule(greater_equal(x, y), less_equal(y, x)),
    rule(not_(equal(x, y)), not_equal(x, y)),
    rule(not_(not_equal(x, y)), equal(x, y)),
    rule(not_(less(x, y)), less_equal(y, x), when=_are_integers),
    rule(not_(less_equal(x, y)), less(y, x), when=_are_integers),
    rule(less(x, x), False),
    rule(equal(x, x), True, when=_are_integers),
]

BITS = [
    rule(bits_and(x, x), x),
    rule(bits_and(x, 0), 0, dtypes=INTEGERS),
    rule(bits_or(x, x), x),
    rule(bits_or(x, 0), x, dtypes=INTEGERS),
    rule(bits_xor(x, x), 0, dtypes=INTEGERS),
    rule(bits_xor(x, 0), x, dtypes=INTEGERS),
    rule(invert(invert(x)), x),
    rule(left(x, 0), x),
    rule(right(x, 0), x),
]


#: Bits of the significand: integers of so many bits are exact.
_SIGNIFICAND = {float16: 11, bfloat16: 8, float32: 24, float64: 53}


def holds_all(dtype: DType, source: DType) -> bool:
    """Whether each value of ``source`` is exactly one of ``dtype``."""
    if dtype == source or source == bool_:
        return True
    if dtype == bool_:
        return False
    if is_float(source):
        return is_float(dtype) and dtype.itemsize > source.itemsize
    magnitude = 8 * source.itemsize - (source in SIGNED)
    if is_float(dtype):
        return magnitude <= _SIGNIFICAND[dtype]
    fits = magnitude <= 8 * dtype.itemsize - (dtype in SIGNED)
    return fits and (dtype in SIGNED or source not in SIGNED)


def _is_exact_detour(m: Match) -> bool:
    """Whether two conversions, by way of a dtype in the middle, come to the same as one."""
    source, middle, last = m.x.dtype, m.middle, m.last
    if all(map(is_integer, (source, middle, last))) and last.itemsize <= middle.itemsize:
        return True  # bits are cut off, in one step or in two
    if is_float(middle) and is_integer(last) and not is_float(source):
        # An integer that does not fit is cut; a float that does not fit is not.
        return holds_all(middle, source) and holds_all(last, source)
    return holds_all(middle, source)


CONVERSIONS = [
    rule(clone(x), x),
    rule(astype(x), x, when=lambda m: m.x.dtype == m.root.dtype),
    rule(astype(astype(x, dtype=middle), dtype=last), astype(x, dtype=last), when=_is_exact_detour),
]

#: Each family in the order in which its rules are tried.
FAMILIES: dict[str, list[Rule]] = {
    "arithmetic": ARITHMETIC,
    "powers": POWERS,
    "signs": SIGNS,
    "extrema": EXTREMA,
    "rounding": ROUNDING,
    "selection": SELECTION,
    "logic": LOGIC,
    "comparisons": COMPARISONS,
    "bits": BITS,
    "conversions": CONVERSIONS,
    "movement": MOVEMENT,
    "products": PRODUCTS,
}

RULES: list[Rule] = [r for family in FAMILIES.values() for r in family]
