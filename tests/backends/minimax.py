"""Remez' algorithm: how the coefficients of the vector math were found.

`polynomial` finds the polynomial whose largest weighted error on an interval is the smallest, in
50-digit arithmetic. The tests fit all coefficients of `needle.backends.cpu` anew and compare.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import mpmath as mp

Function = Callable[[Any], Any]


def polynomial(
    function: Function,
    low: Any,
    high: Any,
    terms: int,
    *,
    weight: Function = lambda x: mp.mpf(1),
    variable: Function = lambda x: x,
) -> tuple[list[float], float]:
    """Fit ``function(x) ≈ Σ cₖ variable(x)ᵏ`` on [low, high], k < terms.

    Args:
        function: what to approximate.
        low: where the interval starts.
        high: where it ends.
        terms: the number of coefficients.
        weight: the error is multiplied by it.
        variable: what the polynomial is one of, monotonic on the interval.

    Returns:
        The coefficients, rounded to float64, from the constant upwards, and the largest error.
    """
    upper, _, worst = rational(function, low, high, terms, 1, weight=weight, variable=variable)
    return upper, worst


def rational(
    function: Function,
    low: Any,
    high: Any,
    upper: int,
    lower: int,
    *,
    weight: Function = lambda x: mp.mpf(1),
    variable: Function = lambda x: x,
    rounds: int = 20,
) -> tuple[list[float], list[float], float]:
    """Fit a quotient of polynomials of ``upper`` and ``lower`` terms, the divisor's first being 1.

    Returns:
        The coefficients of dividend and divisor, and the largest error.
    """
    with mp.workdps(50):
        low, high = mp.mpf(low), mp.mpf(high)
        count = upper + lower
        # Chebyshev's extrema are nearly right already; none in the middle, where weights may be 0.
        nodes = [
            (low + high) / 2
            - (high - low) / 2 * mp.cos(mp.pi * (i + mp.mpf("0.1")) / (count - 0.9))
            for i in range(count)
        ]
        dividend: list[Any] = []
        divisor: list[Any] = []
        worst = mp.mpf(0)
        leveled = mp.mpf(0)
        for _ in range(rounds):
            # P(x) = (f(x) ± E / w(x)) · Q(x) at the nodes, with the last E in front of what is
            # unknown of Q.
            for _ in range(1 if lower == 1 else 12):
                rows, values = [], []
                for i, x in enumerate(nodes):
                    v, f, deviation = variable(x), function(x), (-1) ** i / weight(x)
                    q = f + leveled * deviation
                    powers = [v**k for k in range(max(upper, lower))]
                    rows.append([*powers[:upper], *(-q * p for p in powers[1:lower]), -deviation])
                    values.append(f)
                solution = list(mp.lu_solve(mp.matrix(rows), mp.matrix(values)))
                leveled = solution[-1]
            dividend, divisor = solution[:upper], [mp.mpf(1), *solution[upper:-1]]

            def error(x: Any, p: list[Any] = dividend, q: list[Any] = divisor) -> Any:
                v = variable(x)
                return (function(x) - mp.polyval(p[::-1], v) / mp.polyval(q[::-1], v)) * weight(x)

            nodes, worst = _extrema(error, nodes, low, high)
            if worst - abs(leveled) <= worst * mp.mpf("1e-4"):
                break
        return [float(c) for c in dividend], [float(c) for c in divisor], float(worst)


def _extrema(error: Function, nodes: Sequence[Any], low: Any, high: Any) -> tuple[list[Any], Any]:
    # One extremum around each node, found on a grid and refined by a parabola.
    found, worst = [], mp.mpf(0)
    edges = [low, *((a + b) / 2 for a, b in itertools.pairwise(nodes)), high]
    for x, a, b in zip(nodes, edges, edges[1:], strict=False):
        sign = mp.sign(error(x)) or mp.mpf(1)
        points = [a + (b - a) * i / 16 for i in range(17)]
        sizes = [sign * error(p) for p in points]
        i = max(range(17), key=sizes.__getitem__)
        best, size = points[i], sizes[i]
        if 0 < i < 16:
            bend = sizes[i - 1] - 2 * sizes[i] + sizes[i + 1]
            if bend:
                finer = best + (b - a) / 32 * (sizes[i - 1] - sizes[i + 1]) / bend
                if sign * error(finer) > size:
                    best, size = finer, sign * error(finer)
        found.append(best)
        worst = max(worst, size)
    return found, worst
