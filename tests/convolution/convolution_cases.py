"""Convolutions of all kinds, drawn at random."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from needle.ops import unfolding

Case = tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Image, weight, cotangent and attributes, pads uneven and negative ones too."""
    groups, inside, outside = (
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.integers(1, 9)),
    )
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(pair)
    pads = tuple((draw(st.integers(0, 4)), draw(st.integers(-1, 4))) for _ in range(2))
    least = [
        max(1, d * (k - 1) + 1 - p[0] - p[1])
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    ]
    size = tuple(draw(st.integers(n, n + 6)) for n in least)
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    x = rng.standard_normal((draw(st.integers(0, 4)), groups * inside, *size))
    weight = rng.standard_normal((groups * outside, inside, *kernel))
    window = unfolding.Window(kernel, stride, pads, dilation, groups)
    g = rng.standard_normal((len(x), len(weight), *window.counts(size, "test")))
    attrs = {"stride": stride, "pads": pads, "dilation": dilation, "groups": groups}
    return x, weight, g, attrs
