"""The polynomials of the vector math, fitted anew: each coefficient, and how near they come.

``python tests/backends/test_coefficients.py`` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mpmath as mp
import pytest
from minimax import Function, polynomial

from needle.backends.cpu import (
    error_function,
    exponential,
    logarithm,
    power,
    trigonometric,
)


@dataclass
class Fit:
    """A polynomial to be found.

    Attributes:
        function: what it approximates.
        low: where its interval starts.
        high: where it ends.
        weight: what its error is multiplied by to be relative to the final result.
        used: the coefficients in the package, by precision: "float32" or "float64".
        bits: how near the weighted error comes to 0, in bits, for each of them.
    """

    function: Function
    low: Any
    high: Any
    weight: Function
    used: dict[str, tuple[float, ...]]
    bits: dict[str, float]


def precise(function: Function, at_zero: Any) -> Function:
    """Return ``function`` with digits to spare for what cancels, and its limit at 0."""

    def compute(x: Any) -> Any:
        with mp.workdps(120):
            return function(mp.mpf(x)) if abs(x) > mp.mpf("1e-20") else mp.mpf(at_zero)

    return compute


def relative(term: Function, result: Function, least: str = "1e-4") -> Function:
    """Return |term / result|: what an error of the factor of ``term`` is to the result.

    Next to 0, where both vanish, it is held as it is at ``least``, so that the fit is well defined.
    """

    def weight(x: Any) -> Any:
        x = mp.mpf(least) if abs(x) < mp.mpf(least) else x
        return abs(term(x) / result(x))

    return weight


def constants(module: Any, name: str) -> dict[str, tuple[float, ...]]:
    """Return a field of a module's constants, for both precisions."""
    return {key: getattr(c, name) for key, c in module._CONSTANTS.items()}


with mp.workdps(60):
    LN2 = mp.log(2)
    BELOW, ABOVE = mp.sqrt(0.5) - 1, mp.sqrt(2) - 1
    WIDEST = (ABOVE / (2 + ABOVE)) ** 2
    OCTANT = (mp.pi / 4 * mp.mpf("1.01")) ** 2
    JOINT = mp.mpf("0.92")

    def series(z: Any) -> Any:
        """Return ln((1 + s) / (1 − s)) / s for z = s²."""
        return 2 * mp.atanh(mp.sqrt(z)) / mp.sqrt(z) if z else mp.mpf(2)

    FITS = {
        "exp": Fit(
            precise(lambda r: (mp.exp(r) - 1 - r) / r**2, 0.5),
            -LN2 / 2,
            LN2 / 2,
            relative(lambda r: r**2, mp.exp, "0.1"),
            constants(exponential, "exp"),
            {"float32": 28.2, "float64": 63.9},
        ),
        "expm1": Fit(
            precise(lambda r: (mp.exp(r) - 1 - r) / r**2, 0.5),
            -LN2 / 2,
            LN2 / 2,
            relative(lambda r: r**2, mp.expm1, "0.1"),
            constants(exponential, "expm1"),
            {"float32": 31.4, "float64": 58.3},
        ),
        "log": Fit(
            precise(lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3, mp.mpf(1) / 3),
            BELOW,
            ABOVE,
            relative(lambda f: f**3, mp.log1p, "0.1"),
            {"float32": logarithm._CONSTANTS["float32"].log},
            {"float32": 27.2},
        ),
        "log by s": Fit(
            precise(lambda z: (series(z) - 2) / z, mp.mpf(2) / 3),
            0,
            WIDEST,
            relative(lambda z: z, series),
            {"float64": logarithm._CONSTANTS["float64"].log},
            {"float64": 59.0},
        ),
        "log for powers": Fit(
            precise(lambda z: (series(z) - 2 - 2 * z / 3) / z**2, mp.mpf(2) / 5),
            0,
            WIDEST,
            relative(lambda z: z**2, series),
            {"float64": power._LOG},
            {"float64": 72.0},
        ),
        "log2 for powers": Fit(
            precise(lambda z: series(z) / LN2, 2 / LN2),
            0,
            WIDEST,
            lambda z: 1 / series(z),
            {"float32": power._LOG2},
            {"float32": 37.2},
        ),
        "exp2 for powers": Fit(
            precise(lambda f: (mp.mpf(2) ** f - 1) / f, LN2),
            -0.5,
            0.5,
            relative(lambda f: f, lambda f: mp.mpf(2) ** f, "0.1"),
            {"float32": power._EXP2},
            {"float32": 28.5},
        ),
        "sine": Fit(
            precise(lambda z: (mp.sin(mp.sqrt(z)) / mp.sqrt(z) - 1) / z, mp.mpf(-1) / 6),
            0,
            OCTANT,
            relative(lambda z: z, lambda z: mp.sin(mp.sqrt(z)) / mp.sqrt(z)),
            constants(trigonometric, "sine"),
            {"float32": 27.8, "float64": 57.7},
        ),
        "cosine": Fit(
            precise(lambda z: (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2, mp.mpf(1) / 24),
            0,
            OCTANT,
            relative(lambda z: z**2, lambda z: mp.cos(mp.sqrt(z))),
            constants(trigonometric, "cosine"),
            {"float32": 32.5, "float64": 63.2},
        ),
        "erf near 0": Fit(
            precise(lambda z: mp.erf(mp.sqrt(z)) / mp.sqrt(z) - 1, 2 / mp.sqrt(mp.pi) - 1),
            0,
            JOINT**2,
            lambda z: mp.sqrt(z) / mp.erf(mp.sqrt(z)) if z else mp.sqrt(mp.pi) / 2,
            constants(error_function, "inner"),
            {"float32": 25.9, "float64": 59.5},
        ),
        "erf to 3.95": Fit(
            lambda x: mp.log(mp.erfc(x)),
            JOINT,
            mp.mpf("3.95"),
            lambda x: mp.erfc(x) / mp.erf(x),
            {"float32": error_function._CONSTANTS["float32"].outer},
            {"float32": 29.2},
        ),
        "erf to 5.95": Fit(
            lambda x: mp.log(mp.erfc(x)),
            JOINT,
            mp.mpf("5.95"),
            lambda x: mp.erfc(x) / mp.erf(x),
            {"float64": error_function._CONSTANTS["float64"].outer},
            {"float64": 58.4},
        ),
    }
CASES = [(name, dtype) for name, fit in FITS.items() for dtype in fit.used]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_coefficients_are_those_of_the_best_polynomial(name: str, dtype: str) -> None:
    fit = FITS[name]
    used = fit.used[dtype]
    found, worst = polynomial(fit.function, fit.low, fit.high, len(used), weight=fit.weight)
    assert -mp.log(worst, 2) >= fit.bits[dtype]
    # The last coefficients weigh the least, and are the least determined.
    assert used == pytest.approx(found, rel=1e-5)
    # Rounded to float64, they are as good, but for its last digit.
    with mp.workdps(60):
        for i in range(41):
            x = mp.mpf(fit.low) + (mp.mpf(fit.high) - fit.low) * i / 40
            error = fit.function(x) - mp.polyval([mp.mpf(c) for c in used[::-1]], x)
            assert abs(error * fit.weight(x)) <= 1.01 * worst + mp.mpf(2) ** -54


if __name__ == "__main__":
    for name, dtype in CASES:
        fit = FITS[name]
        terms = len(fit.used[dtype])
        found, worst = polynomial(fit.function, fit.low, fit.high, terms, weight=fit.weight)
        print(f"{name} {dtype}: {float(-mp.log(worst, 2)):.2f} bits\n    {found}")
