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
