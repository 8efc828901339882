"""Division, remainders, powers and shifts as NumPy defines them: nothing traps, nothing is poison.

Division by zero gives 0, the smallest integer divided by −1 itself, shifts by the width or more (or
by a negative number) move everything out.
"""

from __future__ import annotations

from needle import dtypes
from needle.backends.cpu.bits import BitMath
from needle.backends.cpu.llvm import Operand
from needle.dtypes import DType


class IntegerMath(BitMath):
    """Integer functions, in all widths, signed and unsigned."""

    def left_shift(self, x: Operand, y: Operand) -> Operand:
        """Return x · 2^y, wrapped; 0 for y outside of the width."""
        inside, y = self._shift(x, y)
        return self.select(inside, self.binary("shl", x, y), self.like(0, x))

    def right_shift(self, x: Operand, y: Operand) -> Operand:
        """Return ⌊x / 2^y⌋; 0 or −1 for y outside of the width."""
        inside, amount = self._shift(x, y)
        if not x.is_signed:
            return self.select(inside, self.binary("lshr", x, amount), self.like(0, x))
        last = self.like(x.dtype.itemsize * 8 - 1, x)
        return self.binary("ashr", x, self.select(inside, y, last))

    def _shift(self, x: Operand, y: Operand) -> tuple[Operand, Operand]:
        # Whether the amount is within the width, and the amount where it is, else 0.
        inside = self.compare("ult", y, self.like(x.dtype.itemsize * 8, y))
        return inside, self.select(inside, y, self.like(0, y))

    def integer_floor_divide(self, x: Operand, y: Operand) -> Operand:
        """Return ⌊x / y⌋; 0 for y = 0."""
        zero = self.like(0, x)
        quotient = self._quotient(x, y)
        if x.is_signed:
            rest = self.sub(x, self.mul(quotient, y))
            # Truncation went up where the signs differ and something is left.
            signs = self.less(self.bit_xor(x, y), zero)
            up = self.binary("and", signs, self.not_equal(rest, zero))
            quotient = self.select(up, self.plus(quotient, -1), quotient)
        return self.select(self.equal(y, zero), zero, quotient)

    def integer_remainder(self, x: Operand, y: Operand) -> Operand:
        """Return x − ⌊x / y⌋ · y; 0 for y = 0."""
        zero = self.like(0, x)
        rest = self.sub(x, self.mul(self._quotient(x, y), y))
        if x.is_signed:
            signs = self.less(self.bit_xor(rest, y), zero)
            wrong = self.binary("and", signs, self.not_equal(rest, zero))
            rest = self.select(wrong, self.add(rest, y), rest)
        return self.select(self.equal(y, zero), zero, rest)

    def _quotient(self, x: Operand, y: Operand) -> Operand:
        # x / y, truncated; whatever for y = 0. No vector unit divides integers: the narrower ones
        # are divided as floats of twice their width, where the quotient's error is less than its
        # distance from the next integer.
        size = x.dtype.itemsize
        if size < 8:
            wide: DType = dtypes.float32 if size < 4 else dtypes.float64
            quotient = self.div(self.convert(x, wide), self.convert(y, wide))
            # By way of a wider integer: −2^(n − 1) / −1 wraps instead of saturating.
            middle = dtypes.int32 if size < 4 else dtypes.int64
            return self.convert(self._truncated(quotient, middle), x.dtype)
        zero, one = self.like(0, x), self.like(1, x)
        bad = self.equal(y, zero)
        if x.is_signed:
            minus = self.equal(y, self.like(-1, y))
            divided = self.div(x, self.select(self.binary("or", bad, minus), one, y))
            return self.select(minus, self.neg(x), divided)
        return self.div(x, self.select(bad, one, y))

    def _truncated(self, x: Operand, dtype: DType) -> Operand:
        # Where the divisor was 0 this is not a number: the saturating conversion is defined there.
        return self.convert(x, dtype)

    def integer_power(self, x: Operand, y: Operand) -> Operand:
        """Return x^y, wrapped, by squaring; for y < 0 what of 1 / x^|y| stands before the point."""
        zero, one = self.like(0, x), self.like(1, x)
        exponent = y
        if x.is_signed:
            # 1 and −1 are their own reciprocals, of any other x nothing is left.
            negative = self.less(y, zero)
            unit = self.equal(self.mul(x, x), one)
            unit = self.binary("and", unit, self.less_equal(self.absolute(x), one))
            exponent = self.select(negative, self.bit_and(y, 1), y)

        def turn(carried: list[Operand]) -> tuple[Operand, list[Operand]]:
            result, base, left = carried
            odd = self.not_equal(self.bit_and(left, 1), zero)
            result = self.select(odd, self.mul(result, base), result)
            left = self.shift_right_logical(left, 1)
            return self.any(self.not_equal(left, zero)), [result, self.mul(base, base), left]

        result = self.repeat([one, x, exponent], turn)[0]
        if x.is_signed:
            gone = self.binary("and", negative, self.invert(unit))
            result = self.select(gone, zero, result)
        return result
