"""erf: an odd polynomial near 0, and 1 − e^p(|x|) beyond, where p approximates ln erfc."""

from __future__ import annotations

from typing import NamedTuple

from needle.backends.cpu.exponential import ExponentialMath
from needle.backends.cpu.llvm import Operand


class _Constants(NamedTuple):
    """What a format needs.

    Attributes:
        inner: erf x / x − 1 in x², up to 0.92.
        outer: ln erfc x in x, from 0.92.
        saturated: where erf is 1.
    """

    inner: tuple[float, ...]
    outer: tuple[float, ...]
    saturated: float


# The polynomials are fitted by tests/backends/minimax.py.
_CONSTANTS = {
    "float32": _Constants(
        inner=(0.12837914996278293, -0.3761249645788522, 0.11281845918742187, -0.0267677187128273,
               0.004994828608017046, -0.0005999397636393598),
        outer=(-0.00019567745814045125, -1.1276756176913603, -0.6371822637980065,
               -0.10393158063392793, 0.022226911626327558, -0.0030432149867465636,
               0.0001959369701840228),
        saturated=3.95,
    ),
    "float64": _Constants(
        inner=(0.1283791670955126, -0.37612638903183715, 0.11283791670952947,
               -0.026866170644655334, 0.0052239776200573365, -0.0008548326663036781,
               0.00012055317646248308, -1.492521932132364e-05, 1.6453993182649055e-06,
               -1.626399154001733e-07, 1.3985096333737592e-08, -8.342385232725259e-10),
        outer=(-8.414055179607519e-08, -1.128378278712433, -0.6366240895964166,
               -0.10275987011090755, 0.019103253448778206, 0.00024373018226874483,
               -0.0017279252495492929, 0.0006053710640777018, -2.015105326414858e-05,
               -8.390747204477237e-05, 5.09700851901075e-05, -1.8583901098317553e-05,
               4.897894607777065e-06, -9.73319083278738e-07, 1.4583036713486838e-07,
               -1.6054713950228267e-08, 1.2286760123216761e-09, -5.845322975500635e-11,
               1.302085988347241e-12),
        saturated=5.95,
    ),
}  # fmt: skip

_INNER = 0.92


class ErrorMath(ExponentialMath):
    """The error function."""

    def erf(self, x: Operand) -> Operand:
        """Return erf x: ≤ 1.5 ulp."""
        c = _CONSTANTS[x.dtype.name]
        z = self.mul(x, x)
        inner = self.fma(x, self.polynomial(z, c.inner), x)
        size = self.absolute(x)
        decay = self.exp_moderate(self.polynomial(self.at_most(size, c.saturated), c.outer))
        outer = self.copy_sign(self.sub(self.like(1.0, x), decay), x)
        return self.select(self.compare_constant("olt", size, _INNER), inner, outer)
