"""exp, expm1, tanh, sigmoid, and 2ˣ for powers.

x = n · ln 2 + r with |r| ≤ ln 2 / 2, so eˣ = 2ⁿ · eʳ: a polynomial, and an addition to an exponent.
ln 2 is split into a part with so few bits that n times it is exact, and a rest (W. J. Cody,
W. Waite, "Software Manual for the Elementary Functions", 1980).
"""

from __future__ import annotations

from typing import NamedTuple

from needle.backends.cpu.bits import SINGLE, BitMath, format_of
from needle.backends.cpu.llvm import Operand

LOG2_E = 1.4426950408889634


class _Constants(NamedTuple):
    """What a format needs.

    Attributes:
        ln2_high: the upper bits of ln 2.
        ln2_low: ln 2 less that.
        exp: (eʳ − 1 − r) / r² as a polynomial, its error relative to eʳ.
        expm1: the same, its error relative to eʳ − 1.
        least: where eˣ rounds to 0.
        most: where it is infinite.
        minus_one: where eˣ − 1 rounds to −1.
        saturated: where tanh is 1.
        tiny: where x + x² rounds to x.
    """

    ln2_high: float
    ln2_low: float
    exp: tuple[float, ...]
    expm1: tuple[float, ...]
    least: float
    most: float
    minus_one: float
    saturated: float
    tiny: float


# The polynomials are fitted by tests/backends/minimax.py.
_CONSTANTS = {
    "float32": _Constants(
        ln2_high=0.693359375,
        ln2_low=-2.1219444005469057e-4,
        exp=(0.4999999345195387, 0.16666520689294334, 0.04166838730719292, 0.008368709877144708,
             0.001381461613914177),
        expm1=(0.5000000029492518, 0.16666666348391482, 0.041666399950732236,
               0.008333398519019585, 0.0013938305841011572, 0.00019839355112819435),
        least=-104.0,
        most=89.0,
        minus_one=-20.0,
        saturated=10.0,
        tiny=2.0**-26,
    ),
    "float64": _Constants(
        ln2_high=0.6931471803691238,
        ln2_low=1.9082149292705877e-10,
        exp=(0.5, 0.16666666666666682, 0.04166666666666632, 0.008333333333318116,
             0.0013888888889057286, 0.0001984126989417997, 2.4801586996500152e-05,
             2.7557236741597676e-06, 2.7557542635350906e-07, 2.5111462994359533e-08,
             2.0834947670934575e-09),
        expm1=(0.5, 0.16666666666666674, 0.04166666666666655, 0.008333333333322791,
               0.0013888888888950333, 0.00019841269883555022, 2.480158718648018e-05,
               2.755724654638388e-06, 2.755739568705843e-07, 2.5108286843224225e-08,
               2.0876474984919405e-09),
        least=-746.0,
        most=710.0,
        minus_one=-40.0,
        saturated=22.0,
        tiny=2.0**-56,
    ),
}  # fmt: skip


#: What AVX-512 scales in one instruction.
_SCALEF = {f"{kind}.{bits}" for kind in ("ps", "pd") for bits in (128, 256, 512)}


class ExponentialMath(BitMath):
    """eˣ and what is made of it."""

    def exp(self, x: Operand) -> Operand:
        """Return eˣ: ≤ 1 ulp, subnormal results and overflow included."""
        c = _CONSTANTS[x.dtype.name]
        vanishes = self.compare_constant("olt", x, c.least)
        x = self.at_least(self.at_most(x, c.most), c.least)
        n, marked = self._turns(x, LOG2_E, 2 * format_of(x).bias)
        r = self._rest(x, n)
        if self.target.fma:
            p = self.polynomial(r, (1.0, 1.0, *c.exp))
        else:  # one instruction more, so that what is rounded twice is small
            p = self.plus(self.fma(self.mul(r, r), self.polynomial(r, c.exp), r), 1.0)
        # A product that underflows takes the processor over a hundred cycles; one with 0 does not.
        # Of a causal softmax half of the exponentials are those of −∞.
        p = self.select(vanishes, self.like(0.0, p), p)
        return self.scale(p, n, marked)

    def exp_moderate(self, x: Operand) -> Operand:
        """Return eˣ where it is known to be a normal number: ≤ 1 ulp."""
        n, marked = self._turns(x, LOG2_E, format_of(x).bias)
        r = self._rest(x, n)
        q = self.fma(self.mul(r, r), self.polynomial(r, _CONSTANTS[x.dtype.name].exp), r)
        power = self._power(marked, x)
        return self.fma(q, power, power)

    def exp_sum(self, x: Operand, low: Operand) -> Operand:
        """Return e^(x + low) of float64, for powers: low is a small part of x, and x in range."""
        c = _CONSTANTS[x.dtype.name]
        n, marked = self._turns(x, LOG2_E, 2 * format_of(x).bias)
        high = self.fma(n, self.like(-c.ln2_high, x), x)
        dropped = self.times(n, c.ln2_low)
        r = self.sub(high, dropped)
        low = self.add(low, self.sub(self.sub(high, r), dropped))
        q = self.fma(self.mul(r, r), self.polynomial(r, c.exp), r)
        q = self.add(q, self.fma(q, low, low))
        return self.scale(self.plus(q, 1.0), n, marked)

    def expm1(self, x: Operand) -> Operand:
        """Return eˣ − 1: ≤ 2 ulp, also near 0."""
        c = _CONSTANTS[x.dtype.name]
        inside = self.at_least(self.at_most(x, c.most), c.minus_one)
        # Half of 2ⁿ, since 2ⁿ itself overflows a little before eˣ does.
        n, marked = self._turns(inside, LOG2_E, format_of(x).bias - 1)
        half = self._power(marked, x)
        y = self.fma(half, self._expm1_rest(inside, n), self.plus(half, -0.5))
        tiny = self.compare_constant("olt", self.absolute(x), c.tiny)
        return self.select(tiny, x, self.add(y, y))

    def tanh(self, x: Operand) -> Operand:
        """Return tanh x = −e / (e + 2) with e = expm1(−2|x|), and the sign of x: ≤ 2.25 ulp."""
        c = _CONSTANTS[x.dtype.name]
        size = self.at_most(self.absolute(x), c.saturated)
        n, marked = self._turns(size, -2 * LOG2_E, format_of(x).bias)
        power = self._power(marked, x)
        q = self._expm1_rest(self.times(size, -2.0), n)
        # e and e + 2, each with one rounding: the powers ± 1 are exact, until they do not matter.
        e = self.fma(q, power, self.plus(power, -1.0))
        above = self.fma(q, power, self.plus(power, 1.0))
        return self.copy_sign(self.div(e, above), x)

    def sigmoid(self, x: Operand) -> Operand:
        """Return 1 / (1 + e⁻ˣ): ≤ 2.25 ulp, subnormal results included."""
        e = self.exp(self.neg(self.absolute(x)))
        one = self.like(1.0, x)
        upper = self.select(self.compare_constant("olt", x, 0.0), e, one)
        return self.div(upper, self.add(e, one))

    def scale(self, p: Operand, n: Operand, marked: Operand) -> Operand:
        """Return p · 2ⁿ, rounded once; the lowest bits of ``marked`` are n + 2 · bias.

        2ⁿ may be beyond the exponents there are, so it is split into two factors of which only the
        second can round.
        """
        form = format_of(p)
        register = f"{'ps' if form is SINGLE else 'pd'}.{8 * p.lanes * p.dtype.itemsize}"
        if self.target.name == "avx512" and p.lanes and register in _SCALEF:
            # The same in one instruction.
            name = f"llvm.x86.avx512.mask.scalef.{register}"
            mask = f"i{max(p.lanes, 8)}"
            rounding = [", i32 4"] if register.endswith("512") else []
            self.module.declare(name, p.type, [p.type] * 3 + [mask] + ["i32"] * len(rounding))
            arguments = f"{p.typed}, {n.typed}, {p.type} zeroinitializer, {mask} -1"
            text = self.value(f"call {p.type} @{name}({arguments}{''.join(rounding)})")
            return Operand(text, p.dtype, p.lanes)
        first = self.shift_right_logical(marked, 1)
        second = self.sub(marked, first)
        for part in (first, second):
            factor = self.bitcast(self.shift_left(part, form.mantissa), p.dtype)
            p = self.mul(p, factor)
        return p

    # Pieces

    def _turns(self, x: Operand, factor: float, offset: int) -> tuple[Operand, Operand]:
        # n = round(x · factor), and the bits of a float whose lowest ones are n + offset.
        magic = self.like(format_of(x).magic + offset, x)
        marked = self.fma(x, self.like(factor, x), magic)
        return self.sub(marked, magic), self.bits(marked)

    def _rest(self, x: Operand, n: Operand) -> Operand:
        # x − n · ln 2
        c = _CONSTANTS[x.dtype.name]
        r = self.fma(n, self.like(-c.ln2_high, x), x)
        return self.fma(n, self.like(-c.ln2_low, x), r)

    def _expm1_rest(self, x: Operand, n: Operand) -> Operand:
        # e^(x − n · ln 2) − 1
        r = self._rest(x, n)
        return self.fma(self.mul(r, r), self.polynomial(r, _CONSTANTS[x.dtype.name].expm1), r)

    def _power(self, marked: Operand, like: Operand) -> Operand:
        # The power of two whose biased exponent stands in the lowest bits.
        return self.bitcast(self.shift_left(marked, format_of(like).mantissa), like.dtype)
