"""sin, cos, tan, with arguments of any size.

Angles are reduced by multiples of π/2 to between −π/4 and π/4, where both functions are short
polynomials; the quadrant says which of them is meant, and its sign.
"""

from __future__ import annotations

from typing import NamedTuple

from needle.backends.cpu.angles import AngleMath
from needle.backends.cpu.bits import format_of
from needle.backends.cpu.llvm import Operand


class _Constants(NamedTuple):
    """What a format needs.

    Attributes:
        sine: (sin r − r) / r³ in r², up to π/4.
        cosine: (cos r − 1 + r²/2) / r⁴ in r², up to π/4.
        tiny: where sin x and tan x round to x.
    """

    sine: tuple[float, ...]
    cosine: tuple[float, ...]
    tiny: float


# The polynomials are fitted by tests/backends/minimax.py.
_CONSTANTS = {
    "float32": _Constants(
        sine=(-0.16666653863620393, 0.00833211304034555, -0.00019508741275572967),
        cosine=(0.04166664436779705, -0.0013887251485744216, 2.4425681640657104e-05),
        tiny=2.0**-14,
    ),
    "float64": _Constants(
        sine=(-0.16666666666666627, 0.00833333333332094, -0.00019841269828618674,
              2.7557313275978998e-06, -2.5050692468415276e-08, 1.5892961297836265e-10),
        cosine=(0.04166666666666658, -0.0013888888888871375, 2.4801587287782528e-05,
                -2.755731386540607e-07, 2.0875657551395973e-09, -1.1356265461731656e-11),
        tiny=2.0**-28,
    ),
}  # fmt: skip


class TrigonometricMath(AngleMath):
    """sin, cos, tan."""

    def sin(self, x: Operand) -> Operand:
        """Return sin x: ≤ 1.75 ulp; NaN at ±∞."""
        r, quadrant = self.reduced(x)
        sine, cosine = self._sine_cosine(r)
        y = self._turned(self.select(self._is_odd(quadrant), cosine, sine), quadrant)
        return self._near_zero(x, y)

    def cos(self, x: Operand) -> Operand:
        """Return cos x: ≤ 1.75 ulp; NaN at ±∞."""
        r, quadrant = self.reduced(x)
        sine, cosine = self._sine_cosine(r)
        y = self.select(self._is_odd(quadrant), sine, cosine)
        return self._turned(y, self.plus(quadrant, 1))

    def tan(self, x: Operand) -> Operand:
        """Return tan x: ≤ 4 ulp; NaN at ±∞."""
        r, quadrant = self.reduced(x)
        sine, cosine = self._sine_cosine(r)
        odd = self._is_odd(quadrant)
        upper, lower = self.select(odd, cosine, sine), self.select(odd, sine, cosine)
        y = self.div(upper, lower)
        return self._near_zero(x, self._turned(y, self.shift_left(quadrant, 1)))

    def _sine_cosine(self, r: Operand) -> tuple[Operand, Operand]:
        c = _CONSTANTS[r.dtype.name]
        z = self.mul(r, r)
        sine = self.fma(self.mul(r, z), self.polynomial(z, c.sine), r)
        cosine = self.fma_constants(z, -0.5, 1.0)
        return sine, self.fma(self.mul(z, z), self.polynomial(z, c.cosine), cosine)

    def _is_odd(self, quadrant: Operand) -> Operand:
        return self.not_equal(self.bit_and(quadrant, 1), self.like(0, quadrant))

    def _turned(self, y: Operand, quadrant: Operand) -> Operand:
        # −y where the quadrant's second bit is set.
        bit = self.shift_left(quadrant, y.dtype.itemsize * 8 - 2)
        sign = self.bit_and(bit, format_of(y).sign)
        return self.bitcast(self.bit_xor(self.bits(y), sign), y.dtype)

    def _near_zero(self, x: Operand, y: Operand) -> Operand:
        # x itself, where it is so small: y would lose the sign of −0.
        tiny = self.compare_constant("olt", self.absolute(x), _CONSTANTS[x.dtype.name].tiny)
        return self.select(tiny, x, y)
