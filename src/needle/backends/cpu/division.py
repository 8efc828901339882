"""Quotients, remainders and roots: floor_divide, remainder, rsqrt, reciprocal, hypot."""

from __future__ import annotations

from needle import dtypes
from needle.backends.cpu.bits import DOUBLE, format_of
from needle.backends.cpu.integer_math import IntegerMath
from needle.backends.cpu.llvm import Operand


class DivisionMath(IntegerMath):
    """Division and roots."""

    def sqrt(self, x: Operand) -> Operand:
        """Return √x, correctly rounded; NaN below 0."""
        return self.intrinsic("sqrt", x)

    def reciprocal(self, x: Operand) -> Operand:
        """Return 1 / x, correctly rounded."""
        return self.div(self.like(1.0, x), x)

    def rsqrt(self, x: Operand) -> Operand:
        """Return 1 / √x: ≤ 1.5 ulp; ∞ at 0, NaN below."""
        return self.reciprocal(self.sqrt(x))

    def hypot(self, x: Operand, y: Operand) -> Operand:
        """Return √(x² + y²): ≤ 1.25 ulp, without overflow on the way; ∞ where one of them is."""
        infinite = self.compare_constant("oeq", self.absolute(x), float("inf"))
        infinite = self.binary(
            "or", infinite, self.compare_constant("oeq", self.absolute(y), float("inf"))
        )
        if x.dtype.itemsize == 4:
            # Squares of float32 are exact in float64.
            a, b = self.convert(x, dtypes.float64), self.convert(y, dtypes.float64)
            result = self.convert(self.sqrt(self._squares(a, b)), x.dtype)
        else:
            largest = self.maximum(self.absolute(x), self.absolute(y))
            # Powers of two that bring the squares among the normal numbers.
            far = DOUBLE.bias // 2 + 89
            large = self.compare_constant("ogt", largest, 2.0**500)
            small = self.compare_constant("olt", largest, 2.0**-450)
            scale = self.replace(self.like(1.0, x), large, 2.0**-far)
            scale = self.replace(scale, small, 2.0**far)
            back = self.replace(self.like(1.0, x), large, 2.0**far)
            back = self.replace(back, small, 2.0**-far)
            root = self.sqrt(self._squares(self.mul(x, scale), self.mul(y, scale)))
            result = self.mul(root, back)
        return self.replace(result, infinite, float("inf"))

    def _squares(self, x: Operand, y: Operand) -> Operand:
        return self.fma(x, x, self.mul(y, y))

    def floor_divide(self, x: Operand, y: Operand) -> Operand:
        """Return ⌊x / y⌋, from the exact remainder as NumPy does; integers: 0 for y = 0."""
        if not x.is_float:
            return self.integer_floor_divide(x, y)
        rest, moved = self._floor_rest(x, y)
        quotient = self.div(self.sub(x, rest), y)
        quotient = self.select(moved, self.plus(quotient, -1.0), quotient)
        floor = self.floor(quotient)
        over = self.compare_constant("ogt", self.sub(quotient, floor), 0.5)
        floor = self.select(over, self.plus(floor, 1.0), floor)
        plain = self.div(x, y)
        nothing = self.compare_constant("oeq", quotient, 0.0)
        floor = self.select(nothing, self.copy_sign(self.like(0.0, x), plain), floor)
        return self.select(self.compare_constant("oeq", y, 0.0), plain, floor)

    def remainder(self, x: Operand, y: Operand) -> Operand:
        """Return x − ⌊x / y⌋ · y, exact before it is rounded; it has the sign of y."""
        if not x.is_float:
            return self.integer_remainder(x, y)
        rest, moved = self._floor_rest(x, y)
        rest = self.select(moved, self.add(rest, y), rest)
        nothing = self.compare_constant("oeq", rest, 0.0)
        return self.select(nothing, self.copy_sign(self.like(0.0, x), y), rest)

    def _floor_rest(self, x: Operand, y: Operand) -> tuple[Operand, Operand]:
        # The truncated remainder, and whether its sign is not the divisor's.
        rest = self.fmod(x, y)
        zero = self.like(0.0, x)
        signs = self.binary("xor", self.less(rest, zero), self.less(y, zero))
        return rest, self.binary("and", signs, self.compare("une", rest, zero))

    def fmod(self, x: Operand, y: Operand) -> Operand:
        """Return the exact remainder of the truncated quotient of floats, with the sign of x.

        Each turn takes off the multiple q · |y| with the leading digits q of the quotient: what is
        left is a float, exactly. Quotients within the precision take one turn.
        """
        size, divisor = self.absolute(x), self.absolute(y)
        form = format_of(x)
        bad = self.compare_constant("oeq", divisor, 0.0)
        bad = self.binary("or", bad, self.compare_constant("uge", size, float("inf")))
        bad = self.binary("or", bad, self.compare("uno", y, y))
        # Infinite divisors leave x as it is.
        whole = self.compare("olt", size, divisor)
        idle = self.binary("or", bad, whole)
        zero, one = self.like(0.0, x), self.like(1.0, x)
        size = self.select(idle, zero, size)
        divisor = self.select(idle, one, divisor)
        # The quotient itself may overflow: large ones are taken against a multiple of the divisor.
        step = 2.0 ** (form.bias * 3 // 4)
        farther = [self.times(divisor, step)]
        farther.append(self.times(farther[0], step))

        def turn(carried: list[Operand]) -> tuple[Operand, list[Operand]]:
            rest = carried[0]
            by = divisor
            for raised in farther:
                by = self.select(self.compare("oge", rest, raised), raised, by)
            q = self.trunc(self.div(rest, by))
            left = self._less_product(rest, q, by)
            # The rounded quotient can be one unit of its last place too large.
            below = self.bitcast(self.plus(self.bits(q), -1), x.dtype)
            smaller = self.select(
                self.compare_constant("ole", q, 2.0**form.mantissa), self.plus(q, -1.0), below
            )
            again = self._less_product(rest, smaller, by)
            left = self.select(self.compare_constant("olt", left, 0.0), again, left)
            return self.any(self.compare("oge", left, divisor)), [left]

        rest = self.repeat([size], turn)[0]
        rest = self.select(whole, self.absolute(x), rest)
        return self.replace(self.copy_sign(rest, x), bad, float("nan"))

    def _less_product(self, x: Operand, q: Operand, y: Operand) -> Operand:
        # x − q · y, which is a float, exactly.
        if self.target.fma:
            return self.fma(self.neg(q), y, x)
        if x.dtype.itemsize == 4:
            a, b, c = (self.convert(o, dtypes.float64) for o in (x, q, y))
            return self.convert(self.sub(a, self.mul(b, c)), x.dtype)
        # Away from where the pieces of the product would overflow: where x is that large, so is y.
        huge = self.binary(
            "or",
            self.compare_constant("ogt", x, 2.0**900),
            self.compare_constant("ogt", y, 2.0**900),
        )
        one = self.like(1.0, x)
        down, up = self.replace(one, huge, 2.0**-64), self.replace(one, huge, 2.0**64)
        high, low = self.two_product(q, self.mul(y, down))
        left = self.mul(self.sub(self.sub(self.mul(x, down), high), low), up)
        return self.select(self.compare_constant("oeq", q, 0.0), x, left)
