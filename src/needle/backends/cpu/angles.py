"""The reduction of angles of any size: x = n · π/2 + r with the smallest r.

Up to a limit n times π/2 is subtracted in pieces, so short that the products are exact (Cody and
Waite's scheme), or rounded once where the processor fuses. Beyond it only the digits of 1/π matter
that x does not turn into even integers: M. Payne, R. Hanek, "Radian reduction for trigonometric
functions", 1983. A vector that has such an element takes a branch, to a function that treats these
elements one by one.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import NamedTuple

from needle import dtypes
from needle.backends.cpu.bits import DOUBLE, BitMath, Format, format_of
from needle.backends.cpu.llvm import Function, Operand

_DIGITS = 1500


@cache
def pi_digits() -> int:
    """Return ⌊π · 2¹⁵⁰⁰⌋, by Machin's formula."""

    def arctangent(n: int) -> int:
        # arctan(1 / n) = Σ (−1)ᵏ / ((2k + 1) · n²ᵏ⁺¹), with digits to spare
        total, power, k = 0, (1 << (_DIGITS + 32)) // n, 0
        while power:
            total += power // (2 * k + 1) * (-1) ** k
            power, k = power // (n * n), k + 1
        return total

    return (16 * arctangent(5) - 4 * arctangent(239)) >> 32


@cache
def pi_pieces(bits: int, count: int) -> tuple[float, ...]:
    """Return numbers of ``bits`` bits, the last of 53, whose sum is π to that many digits."""
    rest, pieces = pi_digits(), []
    for i in range(count):
        keep = bits if i + 1 < count else 53
        drop = rest.bit_length() - keep
        piece = rest >> drop << drop
        pieces.append(math.ldexp(rest >> drop, drop - _DIGITS))
        rest -= piece
    return tuple(pieces)


class _Scheme(NamedTuple):
    limit: float
    pieces: tuple[float, ...]


def _scheme(form: Format, has_fma: bool) -> _Scheme:
    # x · 2/π must be right to 1/256; without fused products, integers up to it times a piece exact.
    single = form.mantissa == 23
    if has_fma:
        return _Scheme(2.0**15 if single else 2.0**44, pi_pieces(form.mantissa + 1, 3))
    return _Scheme(2.0**12, pi_pieces(11, 4)) if single else _Scheme(2.0**20, pi_pieces(32, 4))


class AngleMath(BitMath):
    """Reduction of angles."""

    def reduced(self, x: Operand) -> tuple[Operand, Operand]:
        """Return r and n modulo 4, such that x = n · π/2 + r.

        Args:
            x: radians.

        Returns:
            r, at most π/4 in size (and a little more), NaN where x is not finite; and an integer
            whose lowest two bits are n's.
        """
        form = format_of(x)
        scheme = _scheme(form, self.target.fma)
        magic = self.like(form.magic, x)
        marked = self.fma(x, self.like(2 / math.pi, x), magic)
        n = self.sub(marked, magic)
        r = x
        for piece in scheme.pieces:
            r = self.fma(n, self.like(-piece / 2, x), r)
        quadrant = self.bits(marked)
        large = self.compare_constant("ogt", self.absolute(x), scheme.limit)

        def exactly() -> list[Operand]:
            # Through memory, since the function takes the elements one by one.
            slots = [self.at_entry(f"alloca {o.type}, align 64") for o in (x, r, quadrant)]
            for operand, slot in zip((x, r, quadrant), slots, strict=True):
                self.store(operand, slot, 0)
            name = _reducer(self, form, scheme.limit)
            arguments = ", ".join(f"ptr {slot}" for slot in slots)
            self.emit(f"call void @{name}({arguments}, i64 {max(x.lanes, 1)})")
            return [
                self.load(slots[1], 0, x.dtype, x.lanes),
                self.load(slots[2], 0, form.integer, x.lanes),
            ]

        r, quadrant = self.branch(self.any(large), exactly, lambda: [r, quadrant])
        return r, quadrant


def _reducer(f: Function, form: Format, limit: float) -> str:
    """Return the name of the module's function that reduces the large ones among angles."""
    key = ("reduced", form)
    name = f.module.memo.get(key)
    if name is not None:
        return name
    name = f.module.unique(f"reduced_{form.dtype.name}")
    arguments = {"x": "ptr", "r": "ptr", "quadrant": "ptr", "n": "i64"}
    b = AngleMath(f.module, name, arguments, inline="noinline")

    def body(i: object, _: list[Operand]) -> None:
        assert isinstance(i, Operand)
        x = b.load("%x", i, form.dtype)

        def large() -> None:
            r, quadrant = _exactly(b, b.convert(x, dtypes.float64))
            b.store(b.convert(r, form.dtype), "%r", i)
            b.store(b.convert(quadrant, form.integer), "%quadrant", i)

        b.branch(b.compare_constant("ogt", b.absolute(x), limit), large)

    b.loop(0, b.argument("n"), 1, [], body, runs=True)
    name = f.module.memo[key] = b.end()
    return name


def _table(b: BitMath) -> str:
    # 64 zero bits, then those of 1/π: enough for the largest float64, 256 bits further.
    bits = 64 * 21
    digits = (1 << (_DIGITS + bits - 64)) // pi_digits()
    words = [(digits >> (bits - 64 * (i + 1))) & (2**64 - 1) for i in range(21)]
    listed = ", ".join(f"i64 {w}" for w in words)
    return "@" + b.module.constant("inverse_pi", f"[21 x i64] [{listed}], align 64")


def _exactly(b: AngleMath, x: Operand) -> tuple[Operand, Operand]:
    # |x| = m · 2ᵉ. Bits of 1/π of weight 2 and more, times m · 2ᵉ, are even integers: the window
    # of 192 bits begins behind them. The upper 128 bits of its product with m, modulo 2¹⁹², are
    # |x| / π modulo 2, of which the first bit is the integer.
    bits = b.bits(b.absolute(x))
    exponent = b.shift_right(bits, DOUBLE.mantissa)
    m = b.bit_or(b.bit_and(bits, DOUBLE.fraction), 1 << DOUBLE.mantissa)
    # e − 1 bits are skipped, and e = exponent − 1075; 64 zeros stand in front.
    skipped = b.plus(exponent, 64 - DOUBLE.bias - DOUBLE.mantissa - 1)
    word, shift = b.shift_right(skipped, 6), b.bit_and(skipped, 63)
    words = [b.load(_table(b), b.plus(word, i), dtypes.int64) for i in range(4)]
    window = [b.intrinsic("fshl", u, v, shift) for u, v in itertools.pairwise(words)]

    def wide(o: Operand) -> str:
        return b.value(f"zext i64 {o.text} to i128")

    products = [b.value(f"mul i128 {wide(m)}, {wide(w)}") for w in window]
    first = b.value(f"shl i128 {products[0]}, 64")
    last = b.value(f"lshr i128 {products[2]}, 64")
    turns = b.value(f"add i128 {b.value(f'add i128 {first}, {products[1]}')}, {last}")
    negative = b.value(f"sub i128 0, {turns}")
    below = b.less(x, b.like(0.0, x))
    turns = b.value(f"select i1 {below.text}, i128 {negative}, i128 {turns}")
    # Twice that, rounded to the nearest integer; what is left is the fraction, read as a signed
    # number.
    fraction = b.value(f"shl i128 {turns}, 2")
    rounded = b.value(f"add i128 {turns}, {1 << 125}")
    quadrant = b.value(f"trunc i128 {b.value(f'lshr i128 {rounded}, 126')} to i64")
    return _radians(b, x, fraction), Operand(quadrant, dtypes.int64)


def _radians(b: AngleMath, x: Operand, fraction: str) -> Operand:
    # fraction / 2¹²⁸ · π/2, to the last digit.
    is_negative = b.value(f"icmp slt i128 {fraction}, 0")
    opposite = b.value(f"sub i128 0, {fraction}")
    size = b.value(f"select i1 {is_negative}, i128 {opposite}, i128 {fraction}")
    b.module.declare("llvm.ctlz.i128", "i128", ["i128", "i1"])
    zeros = b.value(f"call i128 @llvm.ctlz.i128(i128 {size}, i1 false)")
    high = b.value(f"lshr i128 {b.value(f'shl i128 {size}, {zeros}')}, 64")
    top = Operand(b.value(f"trunc i128 {high} to i64"), dtypes.uint64)
    upper = b.convert(b.bit_and(top, 2**64 - 2048), dtypes.float64)
    lower = b.convert(b.bit_and(top, 2047), dtypes.float64)
    pi, rest = pi_pieces(53, 2)
    product, error = b.two_product(upper, b.like(pi, upper))
    error = b.add(error, b.add(b.times(upper, rest), b.times(lower, pi)))
    exponent = Operand(b.value(f"trunc i128 {zeros} to i64"), dtypes.int64)
    exponent = b.sub(b.like(DOUBLE.bias - 64, exponent), exponent)
    power = b.bitcast(b.shift_left(exponent, DOUBLE.mantissa), dtypes.float64)
    r = b.times(b.mul(b.add(product, error), power), 0.5)
    r = b.select(Operand(is_negative, dtypes.bool), b.neg(r), r)
    return b.replace(r, b.is_infinite(x), float("nan"))
