"""sin, cos, tan, with arguments of any size.

Angles are reduced by multiples of π, in three parts of π (Cody and Waite's scheme). Then one odd
polynomial does: sin x = ± sin r, and cos x = ± sin r where x = (n + ½) · π + r.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from needle.backends.cpu.bits import BitMath, format_of
from needle.backends.cpu.llvm import Operand


class _Constants(NamedTuple):
    """What a format needs.

    Attributes:
        pi: π in parts, each the rounded rest.
        sine: (sin r − r) / r³ in r², up to π/2.
        short_sine: the same, up to π/4.
        cosine: (cos r − 1 + r²/2) / r⁴ in r², up to π/4.
        tiny: where sin x and tan x round to x.
    """

    pi: tuple[float, ...]
    sine: tuple[float, ...]
    short_sine: tuple[float, ...]
    cosine: tuple[float, ...]
    tiny: float


# The polynomials are fitted by tests/backends/minimax.py.
_CONSTANTS = {
    "float32": _Constants(
        pi=(3.1415927410125732, -8.742277657347586e-08, -3.430247e-15),
        sine=(-0.16666661621798928, 0.008333330920620382, -0.0001984084316151292,
              2.752407858821887e-06, -2.386559357085984e-08),
        short_sine=(-0.16666653863695538, 0.0083321130442523, -0.00019508741690297705),
        cosine=(0.04166664436779991, -0.0013887251485869485, 2.4425681653395974e-05),
        tiny=2.0**-14,
    ),
    "float64": _Constants(
        pi=(3.141592653589793, 1.2246467991473532e-16, -2.9947698097183397e-33),
        sine=(-0.16666666666666666, 0.008333333333333174, -0.0001984126984120141,
              2.7557319209775195e-06, -2.5052106746133326e-08, 1.6058933250039088e-10,
              -7.642821404356646e-13, 2.7193643453908392e-15),
        short_sine=(-0.16666666666666627, 0.00833333333332094, -0.00019841269828618666,
                    2.7557313275977266e-06, -2.505069246829581e-08, 1.5892961296774282e-10),
        cosine=(0.04166666666666658, -0.0013888888888871375, 2.480158728778253e-05,
                -2.7557313865407246e-07, 2.0875657551503565e-09, -1.1356265465272678e-11),
        tiny=2.0**-28,
    ),
}  # fmt: skip


class TrigonometricMath(BitMath):
    """sin, cos, tan."""

    def sin(self, x: Operand) -> Operand:
        """Return sin x: ≤ 2 ulp; NaN at ±∞."""
        n, parity = self._multiple(x, 1 / math.pi, 0.0)
        y = self._flipped(self._sine(self._angle(x, n, 1.0)), parity)
        tiny = self.compare_constant("olt", self.absolute(x), _CONSTANTS[x.dtype.name].tiny)
        return self.select(tiny, x, y)

    def cos(self, x: Operand) -> Operand:
        """Return cos x: ≤ 2 ulp; NaN at ±∞."""
        n, parity = self._multiple(x, 1 / math.pi, -0.5)
        r = self._angle(x, self.plus(n, 0.5), 1.0)
        return self._flipped(self._sine(r), self.plus(parity, 1))

    def tan(self, x: Operand) -> Operand:
        """Return tan x: ≤ 3 ulp; NaN at ±∞."""
        c = _CONSTANTS[x.dtype.name]
        n, parity = self._multiple(x, 2 / math.pi, 0.0)
        r = self._angle(x, n, 0.5)
        z = self.mul(r, r)
        sine = self.fma(self.mul(r, z), self.polynomial(z, c.short_sine), r)
        cosine = self.fma_constants(z, -0.5, 1.0)
        cosine = self.fma(self.mul(z, z), self.polynomial(z, c.cosine), cosine)
        odd = self.not_equal(self.bit_and(parity, 1), self.like(0, parity))
        upper, lower = self.select(odd, cosine, sine), self.select(odd, sine, cosine)
        y = self._flipped(self.div(upper, lower), parity)
        tiny = self.compare_constant("olt", self.absolute(x), c.tiny)
        return self.select(tiny, x, y)

    def _multiple(self, x: Operand, factor: float, term: float) -> tuple[Operand, Operand]:
        # n = round(x · factor + term), and bits of which the lowest are those of n.
        magic = self.like(format_of(x).magic, x)
        marked = self.add(self.fma_constants(x, factor, term), magic)
        return self.sub(marked, magic), self.bits(marked)

    def _angle(self, x: Operand, n: Operand, part: float) -> Operand:
        for pi in _CONSTANTS[x.dtype.name].pi:
            x = self.fma(n, self.like(-pi * part, n), x)
        return x

    def _sine(self, r: Operand) -> Operand:
        z = self.mul(r, r)
        p = self.polynomial(z, _CONSTANTS[r.dtype.name].sine)
        return self.fma(self.mul(r, z), p, r)

    def _flipped(self, y: Operand, parity: Operand) -> Operand:
        # −y where the parity is odd.
        bit = self.shift_left(parity, y.dtype.itemsize * 8 - 1)
        return self.bitcast(self.bit_xor(self.bits(y), bit), y.dtype)
