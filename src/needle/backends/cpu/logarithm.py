"""log, log2, log1p, softplus.

x = m · 2ᵉ with √½ ≤ m < √2, so ln x = e · ln 2 + ln(1 + f), f = m − 1. In float32 the latter is a
polynomial in f; in float64 one in s² with s = f / (2 + f), which converges faster (as in
K. Ng's code for the C library of BSD): ln(1 + f) = f − (f²/2 − s · (f²/2 + R(s²))).
"""

from __future__ import annotations

from typing import NamedTuple

from needle.backends.cpu.bits import format_of
from needle.backends.cpu.exponential import LOG2_E, ExponentialMath
from needle.backends.cpu.llvm import Operand


class _Constants(NamedTuple):
    """What a format needs.

    Attributes:
        ln2_high: the upper bits of ln 2: multiples by exponents are exact.
        ln2_low: ln 2 less that.
        log2_e_low: what the nearest number to 1 / ln 2 lacks.
        root_half: the bits of √½.
        log: float32: (ln(1 + f) − f + f²/2) / f³ in f; float64: R(s²) / s².
        tiny: where ln(1 + x) rounds to x.
    """

    ln2_high: float
    ln2_low: float
    log2_e_low: float
    root_half: int
    log: tuple[float, ...]
    tiny: float


# The polynomials are fitted by tests/backends/minimax.py.
_CONSTANTS = {
    "float32": _Constants(
        ln2_high=0.693359375,
        ln2_low=-2.1219444005469057e-4,
        log2_e_low=1.925963033500011e-8,
        root_half=0x3F3504F3,
        log=(0.3333333172519213, -0.25000821036293064, 0.20001225544147994, -0.16623355312878904,
             0.14201781181600812, -0.13160226716695397, 0.1276146272202254, -0.07634255752128107),
        tiny=2.0**-26,
    ),
    "float64": _Constants(
        ln2_high=0.6931471803691238,
        ln2_low=1.9082149292705877e-10,
        log2_e_low=2.0355273740931033e-17,
        root_half=0x3FE6A09E667F3BCD,
        log=(0.6666666666666734, 0.39999999999416375, 0.2857142874201508, 0.2222219861083208,
             0.1818356240247421, 0.15314098905556706, 0.1479547444736372),
        tiny=2.0**-55,
    ),
}  # fmt: skip


class LogarithmMath(ExponentialMath):
    """ln x and what is made of it."""

    def log(self, x: Operand) -> Operand:
        """Return ln x: ≤ 1 ulp, subnormal numbers included; −∞ at 0, NaN below."""
        c = _CONSTANTS[x.dtype.name]
        e, f = self._decomposed(x)
        y = self._log_tail(f, self.times(e, c.ln2_low))
        return self._log_domain(x, self.fma(e, self.like(c.ln2_high, x), self.add(f, y)))

    def log2(self, x: Operand) -> Operand:
        """Return log₂ x: ≤ 2 ulp, exact for powers of two; −∞ at 0, NaN below."""
        c = _CONSTANTS[x.dtype.name]
        e, f = self._decomposed(x)
        tail = self.times(self._log_tail(f, None), LOG2_E)
        y = self.fma(f, self.like(LOG2_E, x), self.fma(f, self.like(c.log2_e_low, x), tail))
        return self._log_domain(x, self.add(e, y))

    def log1p(self, x: Operand) -> Operand:
        """Return ln(1 + x): ≤ 1.5 ulp, also near 0; −∞ at −1, NaN below."""
        c = _CONSTANTS[x.dtype.name]
        form = format_of(x)
        # The exponent of the rounded 1 + x, and then f = (1 + x) / 2ᵉ − 1 with one rounding.
        above = self.plus(self.bits(self.plus(x, 1.0)), -c.root_half)
        exponent = self.shift_right(above, form.mantissa)
        # 4 / 2ᵉ, since 1 / 2ᵉ can be below the normal numbers.
        biased = self.sub(self.like(form.bias + 2, exponent), exponent)
        power = self.bitcast(self.shift_left(biased, form.mantissa), x.dtype)
        f = self.fma(self.times(x, 0.25), power, self.fma_constants(power, 0.25, -1.0))
        e = self._as_float(exponent, x)
        y = self._log_tail(f, self.times(e, c.ln2_low))
        y = self.fma(e, self.like(c.ln2_high, x), self.add(f, y))
        y = self.replace(y, self.compare_constant("oeq", x, float("inf")), float("inf"))
        y = self.replace(y, self.compare_constant("oeq", x, -1.0), float("-inf"))
        y = self.replace(y, self.compare_constant("ult", x, -1.0), float("nan"))
        tiny = self.compare_constant("olt", self.absolute(x), c.tiny)
        return self.select(tiny, x, y)

    def softplus(self, x: Operand) -> Operand:
        """Return ln(1 + eˣ) = max(x, 0) + ln(1 + e⁻|x|): ≤ 1.75 ulp."""
        c = _CONSTANTS[x.dtype.name]
        t = self.exp(self.neg(self.absolute(x)))
        # 1 + t lies between 1 and 2, so that the exponent is 0 or 1.
        upper = self.compare_constant("ogt", t, 0.41421356)
        f = self.select(upper, self.fma_constants(t, 0.5, -0.5), t)
        zero = self.like(0.0, x)
        y = self._log_tail(f, self.select(upper, self.like(c.ln2_low, x), zero))
        y = self.add(self.add(f, y), self.select(upper, self.like(c.ln2_high, x), zero))
        return self.add(self.at_least(x, 0.0), y)

    # Pieces

    def _decomposed(self, x: Operand) -> tuple[Operand, Operand]:
        # e as a float, and f. Subnormal numbers are first brought among the normal ones.
        c = _CONSTANTS[x.dtype.name]
        form = format_of(x)
        small = self.compare_constant("olt", x, 2.0 ** (1 - form.bias))
        x = self.select(small, self.times(x, 2.0**form.mantissa), x)
        above = self.plus(self.bits(x), -c.root_half)
        exponent = self.shift_right(above, form.mantissa)
        m = self.plus(self.bit_and(above, form.fraction), c.root_half)
        f = self.plus(self.bitcast(m, x.dtype), -1.0)
        e = self._as_float(exponent, x)
        return self.select(small, self.plus(e, -float(form.mantissa)), e), f

    def _as_float(self, exponent: Operand, like: Operand) -> Operand:
        # A small integer as a float. There is no instruction for 64 bits before AVX-512.
        form = format_of(like)
        marked = self.plus(exponent, form.magic_bits)
        return self.plus(self.bitcast(marked, like.dtype), -form.magic)

    def _log_tail(self, f: Operand, low: Operand | None) -> Operand:
        # ln(1 + f) − f + low
        c = _CONSTANTS[f.dtype.name]
        square = self.mul(f, f)
        if f.dtype.itemsize == 4:
            cube, p = self.mul(square, f), self.polynomial(f, c.log)
            y = self.mul(cube, p) if low is None else self.fma(cube, p, low)
            return self.fma(square, self.like(-0.5, f), y)
        s = self.div(f, self.plus(f, 2.0))
        z = self.mul(s, s)
        half = self.times(square, 0.5)
        rest = self.fma(z, self.polynomial(z, c.log), half)
        y = self.mul(s, rest) if low is None else self.fma(s, rest, low)
        return self.sub(y, half)

    def _log_domain(self, x: Operand, y: Operand) -> Operand:
        # The values at infinity, zero and where there is no logarithm.
        y = self.select(self.compare_constant("oeq", x, float("inf")), x, y)
        y = self.replace(y, self.compare_constant("oeq", x, 0.0), float("-inf"))
        return self.replace(y, self.compare_constant("ult", x, 0.0), float("nan"))
