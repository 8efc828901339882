"""erf, by the rational approximations of W. J. Cody.

"Rational Chebyshev approximations for the error function", Mathematics of Computation 23 (1969).
"""

from __future__ import annotations

from needle.backends.cpu.exponential import ExponentialMath
from needle.backends.cpu.llvm import Operand

# erf x / x in x² up to 0.46875, and e^(x²) · erfc x in x up to 4, which serves until 6, where
# erf is 1 in both precisions. From the constant upwards.
_INNER = 0.46875
_ERF_P = (3.20937758913846947e3, 3.77485237685302021e2, 1.13864154151050156e2,
          3.16112374387056560e0, 1.85777706184603153e-1)  # fmt: skip
_ERF_Q = (2.84423683343917062e3, 1.28261652607737228e3, 2.44024637934444173e2,
          2.36012909523441209e1, 1.0)  # fmt: skip
_ERFC_P = (1.23033935479799725e3, 2.05107837782607147e3, 1.71204761263407058e3,
           8.81952221241769090e2, 2.98635138197400131e2, 6.61191906371416295e1,
           8.88314979438837594e0, 5.64188496988670089e-1, 2.15311535474403846e-8)  # fmt: skip
_ERFC_Q = (1.23033935480374942e3, 3.43936767414372164e3, 4.36261909014324716e3,
           3.29079923573345963e3, 1.62138957456669019e3, 5.37181101862009858e2,
           1.17693950891312499e2, 1.57449261107098347e1, 1.0)  # fmt: skip


class ErrorMath(ExponentialMath):
    """The error function."""

    def erf(self, x: Operand) -> Operand:
        """Return erf x: ≤ 2 ulp."""
        size = self.absolute(x)
        z = self.mul(x, x)
        inner = self.div(self.polynomial(z, _ERF_P), self.polynomial(z, _ERF_Q))
        b = self.at_most(size, 6.0)
        scaled = self.div(self.polynomial(b, _ERFC_P), self.polynomial(b, _ERFC_Q))
        decay = self.exp(self.neg(self.mul(b, b)))
        outer = self.sub(self.like(1.0, x), self.mul(decay, scaled))
        near = self.compare_constant("ole", size, _INNER)
        return self.select(near, self.mul(x, inner), self.copy_sign(outer, x))
