"""x^y = 2^(y · log₂ x), with log₂ x to more digits than the result has.

For float32 these are float64's; float64 takes pairs of numbers that stand for their sum.
"""

from __future__ import annotations

from needle import dtypes
from needle.backends.cpu.bits import DOUBLE, SINGLE
from needle.backends.cpu.integer_math import IntegerMath
from needle.backends.cpu.llvm import Operand
from needle.backends.cpu.logarithm import LogarithmMath

# Fitted by tests/backends/minimax.py: log₂((1 + s) / (1 − s)) / s in s², and (2ᶠ − 1) / f in f;
# (ln((1 + s) / (1 − s)) − 2s − ⅔ s³) / s⁵ in s².
_LOG2 = (2.8853900817900793, 0.9617966733498894, 0.5770835833398886,
         0.41167282201017336, 0.34072810165136247)  # fmt: skip
_EXP2 = (0.6931472018866255, 0.24022647899443997, 0.05550333704213392,
         0.009618440741749036, 0.0013398522944631144, 0.000153521473357136)  # fmt: skip
_LOG = (0.3999999999999998, 0.28571428571445057, 0.222222222175488, 0.18181818868881633,
        0.15384556964007004, 0.13336314000593014, 0.11674885039968638,
        0.1198848019030786)  # fmt: skip
_TWO_THIRDS = (0.6666666666666666, 3.700743415417188e-17)
_LN2 = (0.6931471803691238, 1.9082149292705877e-10)


class PowerMath(LogarithmMath, IntegerMath):
    """Powers."""

    def power(self, x: Operand, y: Operand) -> Operand:
        """Return x^y: ≤ 1.5 ulp, with the special values of C's ``pow``; integers wrap."""
        if not x.is_float:
            return self.integer_power(x, y)
        result = self._size(self.absolute(x), y)
        # Odd exponents keep the sign of x, fractional ones have no real value below 0.
        half = self.times(y, 0.5)
        whole = self.compare("oeq", self.trunc(y), y)
        odd = self.binary("and", whole, self.compare("une", self.trunc(half), half))
        result = self.select(odd, self.copy_sign(result, x), result)
        negative = self.compare_constant("olt", x, 0.0)
        finite = self.compare_constant("ogt", x, float("-inf"))
        undefined = self.binary("and", self.binary("and", negative, finite), self.invert(whole))
        result = self.replace(result, undefined, float("nan"))
        one = self.binary(
            "or", self.compare_constant("oeq", x, 1.0), self.compare_constant("oeq", y, 0.0)
        )
        return self.replace(result, one, 1.0)

    def _size(self, x: Operand, y: Operand) -> Operand:
        # x^y for x ≥ 0.
        if x.dtype.itemsize == 4:
            return self._single_power(x, y)
        return self._double_power(x, y)

    def _single_power(self, x: Operand, y: Operand) -> Operand:
        # An infinite exponent leaves 1 what it is: as the largest number does.
        largest = 3.4028234663852886e38
        y = self.convert(self.at_least(self.at_most(y, largest), -largest), dtypes.float64)
        wide = self.convert(x, dtypes.float64)
        e, f = self._decomposed(wide)
        s = self.div(f, self.plus(f, 2.0))
        log2 = self.fma(s, self.polynomial(self.mul(s, s), _LOG2), e)
        log2 = self.replace(log2, self.compare_constant("oeq", wide, 0.0), float("-inf"))
        log2 = self.select(self.compare_constant("olt", wide, float("inf")), log2, wide)
        t = self.at_least(self.at_most(self.mul(y, log2), 129.0), -151.0)
        magic = self.like(DOUBLE.magic, t)
        n = self.sub(self.add(t, magic), magic)
        f = self.convert(self.sub(t, n), dtypes.float32)
        n = self.convert(n, dtypes.float32)
        p = self.plus(self.mul(f, self.polynomial(f, _EXP2)), 1.0)
        marked = self.bits(self.plus(n, SINGLE.magic + 2 * SINGLE.bias))
        return self.scale(p, n, marked)

    def _double_power(self, x: Operand, y: Operand) -> Operand:
        high, low = self._log_pair(x)
        largest = 1.7976931348623157e308
        y = self.at_least(self.at_most(y, largest), -largest)
        t = self.mul(y, high)
        if self.target.fma:
            rest = self.fma(y, high, self.neg(t))
        else:
            # The product's pieces must not overflow; what is left out of y is beneath its digits.
            rest = self.two_product(self.at_least(self.at_most(y, 2.0**900), -(2.0**900)), high)[1]
        rest = self.fma(y, low, rest)
        inside = self.compare_constant("olt", self.absolute(t), 750.0)
        rest = self.select(inside, rest, self.like(0.0, t))
        return self.exp_sum(self.at_least(self.at_most(t, 710.0), -746.0), rest)

    def _log_pair(self, x: Operand) -> tuple[Operand, Operand]:
        # ln x in two numbers, to 2⁻⁶⁸ of it, by ln(1 + f) = 2s + ⅔ s³ + … with s = f / (2 + f).
        e, f = self._decomposed(x)
        two = self.like(2.0, x)
        divisor, divisor_low = self.two_sum(two, f)
        s = self.div(f, divisor)
        product, error = self.two_product(s, divisor)
        rest = self.sub(self.sub(f, product), error)
        s_low = self.div(self.sub(rest, self.mul(s, divisor_low)), divisor)
        z, z_low = self.two_product(s, s)
        z_low = self.fma(self.add(s, s), s_low, z_low)
        # u = ⅔ + s² · …, w = s³ · u
        u, u_low = self.two_sum(self.like(_TWO_THIRDS[0], x), self.mul(z, self.polynomial(z, _LOG)))
        u_low = self.plus(u_low, _TWO_THIRDS[1])
        v, v_low = self._pair_product(s, s_low, z, z_low)
        w, w_low = self._pair_product(v, v_low, u, u_low)
        # From the largest term to the smallest.
        high, low = self.two_sum(self.times(e, _LN2[0]), self.add(s, s))
        low = self.add(low, self.add(s_low, s_low))
        low = self.add(low, self.times(e, _LN2[1]))
        high, error = self.two_sum(high, w)
        high, low = self.two_sum(high, self.add(low, self.add(error, w_low)))
        # ln 0 = −∞; infinities and NaN stay.
        zero = self.compare_constant("oeq", x, 0.0)
        high = self.replace(high, zero, float("-inf"))
        return self.select(self.compare_constant("olt", x, float("inf")), high, x), low

    def _pair_product(
        self, x: Operand, x_low: Operand, y: Operand, y_low: Operand
    ) -> tuple[Operand, Operand]:
        product, error = self.two_product(x, y)
        return product, self.fma(x, y_low, self.fma(x_low, y, error))
