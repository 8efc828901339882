"""What all vector math rests on: the bits of floats, polynomials, exact products, rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.llvm import Function, Operand
from needle.dtypes import DType


@dataclass(frozen=True)
class Format:
    """A binary floating format of IEEE 754.

    Attributes:
        dtype: the format's dtype.
        integer: the signed integer of the same width.
        mantissa: how many bits are stored after the point.
        bias: what is added to exponents.
    """

    dtype: DType
    integer: DType
    mantissa: int
    bias: int

    @property
    def magic(self) -> float:
        """The number next to which floats are integers: ``x + magic − magic`` rounds x.

        The lowest bits of ``x + magic`` are then those of the integer, in two's complement.
        """
        return 1.5 * 2.0**self.mantissa

    @property
    def magic_bits(self) -> int:
        """The bits of `magic`."""
        return ((self.bias + self.mantissa) << self.mantissa) | (1 << (self.mantissa - 1))

    @property
    def sign(self) -> int:
        """The sign bit, as a signed integer."""
        return -(2 ** (self.integer.itemsize * 8 - 1))

    @property
    def infinity(self) -> int:
        """The bits of infinity."""
        return (2 * self.bias + 1) << self.mantissa

    @property
    def fraction(self) -> int:
        """The mask of the bits after the point."""
        return (1 << self.mantissa) - 1


SINGLE = Format(dtypes.float32, dtypes.int32, 23, 127)
DOUBLE = Format(dtypes.float64, dtypes.int64, 52, 1023)


def format_of(x: Operand) -> Format:
    """Return the format of a float32 or float64 operand."""
    if x.dtype == dtypes.float32:
        return SINGLE
    if x.dtype == dtypes.float64:
        return DOUBLE
    raise TypeError(f"vector math takes float32 and float64, got {x.dtype.name}: convert first")


class BitMath(Function):
    """Bits and integers of floats, polynomials, rounding."""

    # Bits

    def shift_left(self, x: Operand, by: int) -> Operand:
        """Return x · 2^by for an integer."""
        return self.binary("shl", x, self.like(by, x))

    def shift_right(self, x: Operand, by: int) -> Operand:
        """Return ⌊x / 2^by⌋ for an integer, the sign kept if it has one."""
        return self.binary("ashr" if x.is_signed else "lshr", x, self.like(by, x))

    def shift_right_logical(self, x: Operand, by: int) -> Operand:
        """Return the bits of an integer moved down, zeros moved in."""
        return self.binary("lshr", x, self.like(by, x))

    def bit_and(self, x: Operand, y: Operand | int) -> Operand:
        """Return the bits set in both."""
        return self.binary("and", x, self.like(y, x) if isinstance(y, int) else y)

    def bit_or(self, x: Operand, y: Operand | int) -> Operand:
        """Return the bits set in either."""
        return self.binary("or", x, self.like(y, x) if isinstance(y, int) else y)

    def bit_xor(self, x: Operand, y: Operand | int) -> Operand:
        """Return the bits set in one only."""
        return self.binary("xor", x, self.like(y, x) if isinstance(y, int) else y)

    def bits(self, x: Operand) -> Operand:
        """Return the bits of a float as a signed integer."""
        return self.bitcast(x, format_of(x).integer)

    def add(self, x: Operand, y: Operand) -> Operand:
        """Return x + y; integers wrap, of bools whether one is true."""
        return self.bit_or(x, y) if x.dtype == dtypes.bool else super().add(x, y)

    def plus(self, x: Operand, constant: float) -> Operand:
        """Return x + constant."""
        return self.add(x, self.like(constant, x))

    def times(self, x: Operand, constant: float) -> Operand:
        """Return x · constant."""
        return self.mul(x, self.like(constant, x))

    def fma_constants(self, x: Operand, factor: float, term: float) -> Operand:
        """Return x · factor + term."""
        return self.fma(x, self.like(factor, x), self.like(term, x))

    # Selection

    def absolute(self, x: Operand) -> Operand:
        """Return |x|; the smallest integer stays as it is."""
        if x.is_float:
            return self.intrinsic("fabs", x)
        if not x.is_signed:
            return x
        return self.select(self.less(x, self.like(0, x)), self.neg(x), x)

    def copy_sign(self, size: Operand, sign: Operand) -> Operand:
        """Return |size| with the sign of ``sign``."""
        return self.intrinsic("copysign", size, sign)

    def at_most(self, x: Operand, bound: float) -> Operand:
        """Return min(x, bound); NaN stays NaN."""
        limit = self.like(bound, x)
        return self.select(self.compare("olt", limit, x), limit, x)

    def at_least(self, x: Operand, bound: float) -> Operand:
        """Return max(x, bound); NaN stays NaN."""
        limit = self.like(bound, x)
        return self.select(self.compare("ogt", limit, x), limit, x)

    def replace(self, x: Operand, where: Operand, value: float) -> Operand:
        """Return x, and the constant where the condition holds."""
        return self.select(where, self.like(value, x), x)

    def compare_constant(self, predicate: str, x: Operand, constant: float) -> Operand:
        """Return x ⋚ constant."""
        return self.compare(predicate, x, self.like(constant, x))

    def invert(self, x: Operand) -> Operand:
        """Return all bits flipped; a bool's negation."""
        return self.binary("xor", x, self.like(True if x.dtype == dtypes.bool else -1, x))

    def equal(self, x: Operand, y: Operand) -> Operand:
        """Return whether x = y; false for NaN."""
        return self.compare("oeq" if x.is_float else "eq", x, y)

    def not_equal(self, x: Operand, y: Operand) -> Operand:
        """Return whether x ≠ y; true for NaN."""
        return self.compare("une" if x.is_float else "ne", x, y)

    def less_equal(self, x: Operand, y: Operand) -> Operand:
        """Return whether x ≤ y; false for NaN."""
        return self.compare("ole" if x.is_float else "sle" if x.is_signed else "ule", x, y)

    def sign(self, x: Operand) -> Operand:
        """Return −1, 0 or 1; NaN stays NaN, and −0 becomes 0."""
        zero = self.like(0, x)
        positive = self.select(self.less(zero, x), self.like(1, x), zero)
        if not (x.is_float or x.is_signed):
            return positive
        size = self.select(self.less(x, zero), self.like(-1, x), positive)
        return self.select(self.compare("uno", x, x), x, size) if x.is_float else size

    def rectified(self, x: Operand) -> Operand:
        """Return max(x, 0); NaN stays NaN."""
        return self.at_least(x, 0.0) if x.is_float else self.maximum(x, self.like(0, x))

    def is_infinite(self, x: Operand) -> Operand:
        """Return whether a float is ±∞."""
        return self.compare_constant("oeq", self.absolute(x), float("inf"))

    def is_finite(self, x: Operand) -> Operand:
        """Return whether a float is neither infinite nor NaN."""
        return self.compare_constant("olt", self.absolute(x), float("inf"))

    # Polynomials and products

    def polynomial(self, x: Operand, coefficients: Sequence[float]) -> Operand:
        """Return Σ cₖ xᵏ by Horner's rule: the fewest instructions.

        Their latency is hidden by the vectors that the loop computes side by side.
        """
        total = self.like(coefficients[-1], x)
        for c in reversed(coefficients[:-1]):
            total = self.fma(total, x, self.like(c, x))
        return total

    def two_product(self, x: Operand, y: Operand) -> tuple[Operand, Operand]:
        """Return the rounded product and its error: together exactly x · y, barring overflow."""
        product = self.mul(x, y)
        if self.target.fma:
            return product, self.fma(x, y, self.neg(product))
        # T. J. Dekker, "A floating-point technique for extending the available precision", 1971.
        xh, xl = self._halves(x)
        yh, yl = self._halves(y)
        error = self.sub(self.mul(xh, yh), product)
        error = self.add(error, self.mul(xh, yl))
        error = self.add(error, self.mul(xl, yh))
        return product, self.add(error, self.mul(xl, yl))

    def _halves(self, x: Operand) -> tuple[Operand, Operand]:
        # The upper and the lower half of the mantissa (G. Veltkamp's splitting).
        form = format_of(x)
        spread = self.times(x, 2.0 ** ((form.mantissa + 2) // 2) + 1)
        high = self.sub(spread, self.sub(spread, x))
        return high, self.sub(x, high)

    def two_sum(self, x: Operand, y: Operand) -> tuple[Operand, Operand]:
        """Return the rounded sum and its error, for |x| ≥ |y| or x = 0."""
        total = self.add(x, y)
        return total, self.sub(y, self.sub(total, x))

    # Rounding to integers

    def floor(self, x: Operand) -> Operand:
        """Return ⌊x⌋, exact."""
        return self._rounded(x, "floor")

    def ceil(self, x: Operand) -> Operand:
        """Return ⌈x⌉, exact."""
        return self._rounded(x, "ceil")

    def trunc(self, x: Operand) -> Operand:
        """Return x without what stands behind the point, exact."""
        return self._rounded(x, "trunc")

    def round_even(self, x: Operand) -> Operand:
        """Return the nearest integer, halves to the even one, exact."""
        return self._rounded(x, "roundeven")

    def _rounded(self, x: Operand, how: str) -> Operand:
        if not x.is_float:
            return x
        if self.target.rounding:
            return self.intrinsic(how, x)
        # Next to 2^mantissa only integers are floats: adding and subtracting it rounds.
        form = format_of(x)
        size = self.absolute(x)
        large = self.like(2.0**form.mantissa, x)
        near = self.copy_sign(self.sub(self.add(size, large), large), x)
        one = self.like(1.0, x)
        if how == "floor":
            near = self.select(self.compare("ogt", near, x), self.sub(near, one), near)
        elif how == "ceil":
            near = self.select(self.compare("olt", near, x), self.add(near, one), near)
        elif how == "trunc":
            down = self.copy_sign(one, x)
            beyond = self.compare("ogt", self.absolute(near), size)
            near = self.select(beyond, self.sub(near, down), near)
        # Numbers that large, infinities and NaN are what they are; zeros keep their sign.
        return self.select(self.compare("olt", size, large), self.copy_sign(near, x), x)
