"""Mathematical functions of scalars and vectors, in plain LLVM IR that serves every target.

`MathFunction` is the builder that lowerings receive: what `Function` emits and, on top, ``exp``,
``log``, ``tanh`` … of float32 and float64. No function calls the C library, and every lane of a
vector is computed by the instructions that compute a scalar, so that a result does not depend on
where in a vector, or in the rest of a loop, its element stood.
"""

from __future__ import annotations

from needle.backends.cpu.division import DivisionMath
from needle.backends.cpu.error_function import ErrorMath
from needle.backends.cpu.power import PowerMath
from needle.backends.cpu.trigonometric import TrigonometricMath


class MathFunction(PowerMath, ErrorMath, TrigonometricMath, DivisionMath):
    """The builder with the functions that lowerings of elementwise ops use."""


#: The largest error of each function in units of the last place, in both precisions and on every
#: target, subnormal results included; those of the processor's instructions are ½. What is not
#: listed is exact: roundings, comparisons, remainders, integers.
ULP: dict[str, float] = {
    "add": 0.5,
    "sub": 0.5,
    "mul": 0.5,
    "div": 0.5,
    "sqrt": 0.5,
    "reciprocal": 0.5,
    "rsqrt": 1.5,
    "hypot": 1.25,
    "exp": 1.0,
    "expm1": 2.0,
    "log": 1.0,
    "log2": 2.0,
    "log1p": 1.5,
    "power": 1.5,
    "sin": 1.75,
    "cos": 1.75,
    "tan": 4.0,
    "tanh": 2.25,
    "sigmoid": 2.25,
    "softplus": 1.75,
    "erf": 1.5,
}
