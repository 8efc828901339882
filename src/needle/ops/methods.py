"""Which operator of Python each op answers."""

from __future__ import annotations

#: Operators by op. The reflected one takes its operands the other way round.
OPERATORS: dict[str, str] = {
    "__add__": "add",
    "__sub__": "subtract",
    "__mul__": "multiply",
    "__truediv__": "divide",
    "__floordiv__": "floor_divide",
    "__mod__": "remainder",
    "__pow__": "pow",
    "__matmul__": "matmul",
    "__and__": "bitwise_and",
    "__or__": "bitwise_or",
    "__xor__": "bitwise_xor",
    "__lshift__": "bitwise_left_shift",
    "__rshift__": "bitwise_right_shift",
}

COMPARISONS: dict[str, str] = {
    "__eq__": "equal",
    "__ne__": "not_equal",
    "__lt__": "less",
    "__le__": "less_equal",
    "__gt__": "greater",
    "__ge__": "greater_equal",
}

UNARY: dict[str, str] = {"__neg__": "negative", "__abs__": "abs", "__invert__": "bitwise_invert"}
