"""x^y = 2^(y · log₂ x), with log₂ x to more digits than the result has.

For float32 these are float64's; float64 takes pairs of numbers that stand for their sum.
"""

from __future__ import annotations

from needle import dtypes
from needle.backends.cpu.bits import DOUBLE, SINGLE
from needle.backends.cpu.integer_math import IntegerMath
from needle.backends.cpu.llvm import Operand
from needle.backends.cpu.logarithm import LogarithmMath

# Fitted by tests/backends/minimax.py: log₂((1 + s) / (1 − s)) / s in s², and (2ᶠ − 1) / f in f.
_LOG2 = (2.885390081790147, 0.961796673275644, 0.5770835961898547, 0.41167210935232573,
         0.34074045582798795)  # fmt: skip
_EXP2 = (0.6931472150113387, 0.24022652785503668, 0.0555031046677744, 0.00961769260637356,
         0.0013406674593519725, 0.00015594759788334453)  # fmt: skip


class PowerMath(LogarithmMath, IntegerMath):
    """Powers."""

    def power(self, x: Operand, y: Operand) -> Operand:
        """Return x^y: ≤ 1 ulp, with the special values of C's ``pow``; integers wrap."""
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
        return self.exp(self.mul(y, self.log(x)))

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
