"""Remez' algorithm: how the coefficients of the vector math were found.

`polynomial` finds the polynomial whose largest weighted error on an interval is the smallest, in
60-digit arithmetic. The tests fit all coefficients of `needle.backends.cpu` anew and compare.
"""

from __future__ import annotations

from collections.abc import Callable
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
    with mp.workdps(60):
        low, high = mp.mpf(low), mp.mpf(high)
        count = terms + 1
        # Chebyshev's extrema are nearly right already; none in the middle, where weights may be 0.
        middle, half = (low + high) / 2, (high - low) / 2
        angles = [mp.pi * (i + mp.mpf("0.1")) / (count - mp.mpf("0.9")) for i in range(count)]
        nodes = [middle - half * mp.cos(angle) for angle in angles]
        coefficients: list[Any] = []
        worst = mp.mpf(0)
        for _ in range(20):
            # p(x) ± e / w(x) = f(x) at the nodes
            rows, values = [], []
            for i, x in enumerate(nodes):
                v = variable(x)
                rows.append([*(v**k for k in range(terms)), (-1) ** i / weight(x)])
                values.append(function(x))
            *coefficients, leveled = mp.lu_solve(mp.matrix(rows), mp.matrix(values))

            def error(x: Any, c: list[Any] = coefficients) -> Any:
                return (function(x) - mp.polyval(c[::-1], variable(x))) * weight(x)

            found, worst = _extrema(error, count, low, high)
            if len(found) < count or worst - abs(leveled) <= worst * mp.mpf("1e-3"):
                break
            nodes = found
        return [float(c) for c in coefficients], float(worst)


def _extrema(error: Function, count: int, low: Any, high: Any) -> tuple[list[Any], Any]:
    # The largest error between each two of its zeros, ``count`` of them with alternating signs, and
    # the largest of all. Seen on a grid that is finer towards the ends, and refined by parabolas.
    steps = 24 * count
    middle, half = (low + high) / 2, (high - low) / 2
    points = [middle - half * mp.cos(mp.pi * i / steps) for i in range(steps + 1)]
    errors = [error(x) for x in points]
    runs: list[list[int]] = []
    for i, e in enumerate(errors):
        if not e:
            continue
        if runs and (errors[runs[-1][0]] > 0) == (e > 0):
            runs[-1].append(i)
        else:
            runs.append([i])
    peaks = [max(run, key=lambda i: abs(errors[i])) for run in runs]
    worst = max(abs(errors[i]) for i in peaks)
    while len(peaks) > count:
        peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
    found = []
    for i in peaks:
        best = points[i]
        if 0 < i < steps:
            slopes = [(errors[j + 1] - errors[j]) / (points[j + 1] - points[j]) for j in (i - 1, i)]
            centres = [(points[j + 1] + points[j]) / 2 for j in (i - 1, i)]
            if slopes[0] != slopes[1]:
                finer = centres[0] - slopes[0] * (centres[1] - centres[0]) / (slopes[1] - slopes[0])
                if abs(error(finer)) > abs(errors[i]):
                    best = finer
        found.append(best)
    return found, worst
