"""Generated convolutions of random geometries against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from conv_kernels import FORMS, TARGETS, Compiled, expected, operands
from hypothesis import HealthCheck, given, settings, strategies as st

from needle import dtypes
from needle.backends.cpu.conv.spec import ConvSpec


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(pair)
    pads = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2))
    # At least as large, with its padding, as what the kernel spans.
    height, width = (
        draw(st.integers(max(0, d * (k - 1) + 1 - sum(p)), 24))
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    )
    groups = draw(st.sampled_from([1, 1, 2, 3, 8]))
    return ConvSpec(
        draw(st.sampled_from(FORMS)),
        draw(st.integers(0, 5)),
        height,
        width,
        groups * draw(st.sampled_from([1, 2, 3, 4, 17])),
        groups * draw(st.sampled_from([1, 2, 4, 5, 16, 33])),
        kernel,
        draw(pair),
        pads,
        dilation,
        groups,
        draw(st.sampled_from([dtypes.float32, dtypes.float64])),
    )


@pytest.mark.parametrize("name", TARGETS)
def test_random_geometries(name: str) -> None:
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(spec=specs(), threads=st.integers(1, 4))
    def check(spec: ConvSpec, threads: int) -> None:
        first, second = operands(spec)
        got = Compiled(spec, threads, TARGETS[name])(first, second)
        np.testing.assert_array_equal(got, expected(spec, first, second), strict=True)

    check()
