"""Every plan that a search may take for a convolution gives the bits of the model's choice."""

from __future__ import annotations

import numpy as np
import pytest
from conv_kernels import FORMS, TARGETS, Compiled, operands
from hypothesis import HealthCheck, given, settings, strategies as st
from test_pair_convolution import PROCESSORS, in_tiles

from needle import dtypes
from needle.backends.cpu.conv.kernel import ConvPlan
from needle.backends.cpu.conv.spec import ConvSpec
from needle.backends.cpu.target import Target, host
from needle.backends.cpu.tuning.candidates import MOST, candidates

ONE = ((1, 1), (1, 1))
#: For each kind of plan a convolution of which there are many.
KINDS = {
    "dense": ConvSpec("forward", 4, 28, 28, 32, 48, (3, 3), pads=ONE),
    "dense of two strides": ConvSpec("input_grad", 4, 29, 27, 32, 48, (3, 3), (2, 2), ONE),
    "wide groups": ConvSpec("forward", 2, 14, 14, 64, 64, (3, 3), pads=ONE, groups=2),
    "many weights": ConvSpec("forward", 3, 4, 4, 160, 192, (3, 3), pads=ONE),
    "dense sums": ConvSpec("weight_grad", 4, 28, 28, 48, 32, (3, 3), pads=ONE),
    "sums of small images": ConvSpec("weight_grad", 30, 4, 4, 64, 80, (3, 3), pads=ONE),
    "one pixel": ConvSpec("weight_grad", 3, 14, 14, 64, 33, (1, 1)),
    "depthwise": ConvSpec("forward", 2, 30, 30, 48, 48, (3, 3), pads=ONE, groups=48),
    "few in a group": ConvSpec("forward", 2, 30, 30, 48, 48, (3, 3), pads=ONE, groups=12),
    "depthwise sums": ConvSpec("weight_grad", 3, 30, 30, 48, 48, (3, 3), pads=ONE, groups=48),
    "few in a group, sums": ConvSpec(
        "weight_grad", 3, 30, 30, 48, 48, (3, 3), pads=ONE, groups=12
    ),
    "pairs": ConvSpec(
        "forward", 3, 14, 14, 48, 80, (3, 3), pads=ONE, dtype=dtypes.bfloat16
    ),
    "pairs of two strides": ConvSpec(
        "forward", 3, 15, 14, 48, 80, (3, 3), (2, 2), ONE, dtype=dtypes.bfloat16
    ),
    "sums of pairs": ConvSpec(
        "weight_grad", 3, 14, 14, 48, 80, (3, 3), pads=ONE, dtype=dtypes.bfloat16
    ),
}  # fmt: skip


def check(spec: ConvSpec, target: Target, threads: int) -> int:
    """Compare the bits of all candidates; return how many there are."""
    first, second = operands(spec, whole=False)
    if spec.in_pairs and spec.form == "forward":
        second = in_tiles(second, spec.groups)
    found = candidates(spec, target, threads)
    assert len(found) <= MOST
    assert len(set(found)) == len(found)
    want = None
    for plan in found:
        assert isinstance(plan, ConvPlan)
        got = Compiled(spec, threads, target, plan)(first, second).tobytes()
        want = got if want is None else want
        assert got == want, (plan, found[0])
    return len(found)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_candidate_gives_the_same_bits(kind: str, threads: int) -> None:
    assert check(KINDS[kind], host(), threads) > 2


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    pair = st.tuples(st.integers(1, 2), st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(pair)
    pads = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2))
    height, width = (
        draw(st.integers(max(1, d * (k - 1) + 1 - sum(p)), 24))
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    )
    groups = draw(st.sampled_from([1, 1, 1, 2, 8]))
    return ConvSpec(
        draw(st.sampled_from(FORMS)),
        draw(st.integers(1, 7)),
        height,
        width,
        groups * draw(st.sampled_from([1, 2, 3, 17, 40])),
        groups * draw(st.sampled_from([1, 2, 5, 33, 64])),
        kernel,
        draw(pair),
        pads,
        dilation,
        groups,
        draw(st.sampled_from([dtypes.float32, dtypes.float32, dtypes.float64])),
    )


@pytest.mark.parametrize("name", TARGETS)
def test_every_candidate_of_random_geometries(name: str) -> None:
    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(spec=specs(), threads=st.integers(1, 4))
    def inner(spec: ConvSpec, threads: int) -> None:
        check(spec, TARGETS[name], threads)

    inner()


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_candidate_of_random_pairs(name: str) -> None:
    @settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        form=st.sampled_from(["forward", "weight_grad"]),
        sizes=st.tuples(*[st.integers(1, 5)] + [st.integers(3, 20)] * 2),
        channels=st.tuples(st.sampled_from([1, 3, 17, 40]), st.sampled_from([1, 16, 33, 70])),
        pads=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
        threads=st.integers(1, 4),
    )
    def inner(
        form: str,
        sizes: tuple[int, ...],
        channels: tuple[int, int],
        pads: tuple[tuple[int, int], tuple[int, int]],
        threads: int,
    ) -> None:
        low = dtypes.bfloat16
        spec = ConvSpec(form, *sizes, *channels, (3, 2), pads=pads, dtype=low)  # type: ignore[arg-type]
        check(spec, PROCESSORS[name], threads)

    inner()


def test_nothing_to_compute_leaves_no_choice() -> None:
    empty = ConvSpec("forward", 0, 8, 8, 16, 16, (3, 3), pads=ONE)
    assert len(candidates(empty, host(), 2)) == 1
    assert np.prod(empty.result) == 0
