"""Convolutions of pairs of bfloat16: values, bits, epilogues, on all processors that there are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conv_kernels import TARGETS, Compiled, expected, operands
from hypothesis import HealthCheck, given, settings, strategies as st
from test_conv_kernels import GEOMETRIES, ONE

import needle as ndl
from needle import dtypes
from needle.backends.cpu.conv import pair_plan
from needle.backends.cpu.conv.pair_plan import PairConvPlan
from needle.backends.cpu.conv.pair_sums_plan import PairSumsPlan
from needle.backends.cpu.conv.spec import ConvSpec, Epilogue, Place
from needle.backends.cpu.gemm.pair_instructions import has_tiles
from needle.backends.cpu.llvm import Function, Operand
from needle.backends.cpu.target import AVX512, host
from needle.ops.paired_convolution import PairOrder, pair_weight

Array = Any

PAIRED = {name: replace(s, dtype=dtypes.bfloat16) for name, s in GEOMETRIES.items()} | {
    name: replace(spec, dtype=dtypes.bfloat16)
    for name, spec in {
        "17 channels": ConvSpec("forward", 2, 9, 8, 17, 17, (3, 3), pads=ONE),
        "rows of 48": ConvSpec("forward", 3, 9, 8, 16, 16, (3, 3), pads=ONE),
        "rows of 51, dilated": ConvSpec("forward", 1, 9, 12, 17, 8, (3, 3), (1, 2), ONE, (1, 2)),
        "dilated, in tiles": ConvSpec("forward", 2, 9, 12, 32, 48, (3, 3), (1, 1), ONE, (2, 3)),
        "many images, many weights": ConvSpec("forward", 9, 7, 7, 320, 300, (3, 3), pads=ONE),
        "much padded": ConvSpec("forward", 2, 5, 6, 32, 3, (2, 1), pads=((1, 3), (3, 1))),
        "cut off": ConvSpec("forward", 2, 12, 11, 32, 8, (3, 3), pads=((-1, 2), (1, -2))),
    }.items()
}  # fmt: skip

#: Gradients by weights that sum pairs of pixels, blocks of several images and of rows among them.
SUMS = {
    name: replace(spec, form="weight_grad")
    for name, spec in (
        PAIRED
        | {
            "blocks of images": replace(PAIRED["17 channels"], images=60),
            "blocks of rows": ConvSpec(
                "forward", 2, 70, 64, 40, 48, (3, 3), pads=ONE, dtype=dtypes.bfloat16
            ),
        }
    ).items()
    if spec.stride == (1, 1) and spec.groups == 1 and 0 not in spec.result
}

HOST = host()
#: All instructions that there are for pairs, and none.
PROCESSORS = {name: target for name, target in TARGETS.items() if name != "host"}
if has_tiles(HOST):
    PROCESSORS["tiles"] = HOST
if HOST.has("avx512bf16"):
    features = [f for f in HOST.features.split(",") if "amx" not in f]
    PROCESSORS["pairs"] = replace(HOST, features=",".join(features))
if HOST.vector_bytes == 64:
    PROCESSORS["avx512"] = replace(AVX512, triple="")
each_processor = pytest.mark.parametrize("processor", PROCESSORS)


def compile_and_run(
    spec: ConvSpec, processor: str, first: Array, second: Array, threads: int = 1, extra: Any = None
) -> Array:
    """Run a form on its operands, of which a weight is laid out in tiles."""
    if spec.form == "forward":
        second = in_tiles(second, spec.groups)
    return Compiled(spec, threads, PROCESSORS[processor])(first, second, extra)


def in_tiles(weight: Array, groups: int) -> Array:
    return np.ascontiguousarray(pair_weight(ndl.asarray(weight), groups).numpy())


def convolve(spec: ConvSpec, processor: str, threads: int = 1, whole: bool = True) -> Array:
    return compile_and_run(spec, processor, *operands(spec, whole), threads)


def plan_of(spec: ConvSpec, threads: int = 1) -> PairConvPlan:
    plan = Compiled(spec, threads, HOST).kernel.plan.detail
    assert isinstance(plan, PairConvPlan)
    return plan


@each_processor
@pytest.mark.parametrize("name", PAIRED)
def test_geometries(name: str, processor: str) -> None:
    spec = PAIRED[name]
    want = expected(spec, *operands(spec))
    np.testing.assert_array_equal(convolve(spec, processor, 2), want, strict=True)


@each_processor
@pytest.mark.parametrize("name", SUMS)
def test_gradients_by_weights(name: str, processor: str) -> None:
    spec = SUMS[name]
    want = expected(spec, *operands(spec))
    np.testing.assert_array_equal(convolve(spec, processor, 2), want, strict=True)


@each_processor
@pytest.mark.parametrize("name", ["17 channels", "packed", "blocks of images", "blocks of rows"])
def test_no_number_of_tasks_changes_a_bit_of_a_gradient(name: str, processor: str) -> None:
    spec = SUMS[name]
    want = convolve(spec, processor, 1, whole=False)
    exact = expected(replace(spec, dtype=dtypes.float64), *operands(spec, whole=False))
    np.testing.assert_allclose(want.astype(np.float64), exact, rtol=2**-8, atol=1e-4)
    for threads in (2, 3, 4):
        np.testing.assert_array_equal(convolve(spec, processor, threads, whole=False), want)


@each_processor
def test_random_geometries(processor: str) -> None:
    @st.composite
    def specs(draw: st.DrawFn) -> ConvSpec:
        pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
        kernel, dilation = draw(pair), draw(pair)
        pads = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2))
        height, width = (
            draw(st.integers(max(0, d * (k - 1) + 1 - sum(p)), 24))
            for k, d, p in zip(kernel, dilation, pads, strict=True)
        )
        form = draw(st.sampled_from(["forward", "weight_grad"]))
        is_sum = form == "weight_grad"
        groups = draw(st.sampled_from([1] if is_sum else [1, 1, 1, 2, 3]))
        depth, outs = draw(st.sampled_from([1, 3, 17, 32])), draw(st.sampled_from([1, 16, 33]))
        return ConvSpec(
            form,
            draw(st.integers(1, 5)),
            height,
            width,
            groups * depth,
            groups * outs,
            kernel,
            draw(st.just((1, 1)) if is_sum else st.one_of(st.just((1, 1)), pair)),
            pads,
            dilation,
            groups,
            dtypes.bfloat16,
        )

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(spec=specs(), threads=st.integers(1, 4))
    def check(spec: ConvSpec, threads: int) -> None:
        want = expected(spec, *operands(spec))
        np.testing.assert_array_equal(convolve(spec, processor, threads), want, strict=True)

    check()


@each_processor
def test_sums_are_held_in_float32(processor: str) -> None:
    spec = PAIRED["many images, many weights"]
    first, second = operands(replace(spec, images=1), whole=False)
    exact = replace(spec, images=1, dtype=dtypes.float64)
    want = expected(exact, first, second)
    sizes = expected(exact, abs(first.astype("f8")), abs(second.astype("f8")))
    got = convolve(replace(spec, images=1), processor, whole=False).astype(np.float64)
    # Rounded once to 8 bits; the sum of k products is off by k roundings of float32 at most.
    assert (abs(got - want) <= 2**-8 * abs(want) + 2880 * 2**-24 * sizes).all()


@each_processor
@pytest.mark.parametrize("name", ["packed", "strided", "rows of 48", "2 wide groups", "bands"])
def test_neither_tasks_nor_other_images_change_a_bit(name: str, processor: str) -> None:
    spec = replace(PAIRED[name], images=11)
    first, second = operands(spec, whole=False)
    weight = in_tiles(second, spec.groups)
    target = PROCESSORS[processor]
    want = Compiled(spec, 1, target)(first, weight)
    for threads in (2, 3, 4):
        np.testing.assert_array_equal(Compiled(spec, threads, target)(first, weight), want)
    for count in (1, 2, 6):
        some = Compiled(replace(spec, images=count), 1, target)
        np.testing.assert_array_equal(some(first[4 : 4 + count], weight), want[4 : 4 + count])


def test_a_line_and_gathered_pixels_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So which way is taken, which depends on the batch, too, is left to what it costs."""
    for spec in (PAIRED["17 channels"], PAIRED["dilated, in tiles"], PAIRED["2 wide groups"]):
        first, second = operands(spec, whole=False)
        found = {}
        for is_line in (False, True):
            with monkeypatch.context() as m:
                m.setattr(pair_plan, "_has_lines", lambda *_: True)
                cost = pair_plan._cycles
                m.setattr(
                    pair_plan,
                    "_cycles",
                    lambda p, cost=cost, is_line=is_line: (p.is_line != is_line, cost(p)),
                )
                compiled = Compiled(spec, 1, HOST)
                plan = compiled.kernel.plan.detail
                assert isinstance(plan, PairConvPlan)
                assert plan.is_line == is_line
                found[is_line] = compiled(first, in_tiles(second, spec.groups))
        np.testing.assert_array_equal(found[False], found[True])


@each_processor
@pytest.mark.parametrize("name", ["packed", "rows of 48", "17 channels", "stem", "dilated"])
def test_what_a_sum_does_not_read_does_not_change_it(name: str, processor: str) -> None:
    """Infinities reach the results whose windows they are in, and no others."""
    spec = PAIRED[name]
    first, second = operands(spec)
    first[0, -1, -1, 0] = np.inf
    with np.errstate(invalid="ignore"):
        want = expected(spec, first, second)
    got = Compiled(spec, 2, PROCESSORS[processor])(first, in_tiles(second, spec.groups))
    np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[finite], want[finite])


@each_processor
@pytest.mark.parametrize(
    "spec",
    [*PAIRED.values(), *SUMS.values()],
    ids=[*PAIRED, *(f"gradient, {name}" for name in SUMS)],
)
def test_epilogue(spec: ConvSpec, processor: str) -> None:
    """Each element is weighed with its place."""
    _, height, width, channels = spec.result
    f32 = dtypes.float32

    def begin(f: Function) -> Operand:
        return f.load("%extra", 0, f32)

    def store(f: Function, sums: Operand, at: Place, state: Operand) -> None:
        place = f.add_index(f.mul_index(at.image, height), at.row)
        place = f.add_index(f.mul_index(place, width), at.column)
        place = f.add_index(f.mul_index(place, channels), at.channel)
        weight = f.load("%extra", f.add_index(place, 1), f32, at.lanes, at.mask)
        sums = f.add(f.mul(sums, f.splat(state, at.lanes)), weight)
        f.store(f.convert(sums, spec.dtype), "%out", place, at.mask)

    first, second = operands(spec)
    bias = np.random.default_rng(3).integers(-9, 9, spec.result).astype(np.float32)
    extra = np.concatenate([np.array([2], np.float32), bias.ravel()])
    want = 2 * expected(replace(spec, dtype=f32), first, second) + bias
    fused = replace(spec, epilogue=Epilogue(store, "weighed", begin))
    got = compile_and_run(fused, processor, first, second, 2, extra)
    np.testing.assert_array_equal(got, want.astype(spec.dtype))


def test_ways() -> None:
    """Both ways to read images, blocks of images and of rows, and splits of both are tested."""
    plans = [plan_of(spec, 2) for spec in PAIRED.values() if 0 not in spec.result]
    assert {plan.is_line for plan in plans} == {False, True}
    assert {plan.by_place for plan in plans} == {False, True}
    assert any(plan.images > 1 for plan in plans)
    assert any(plan.bands > 1 for plan in plans)
    assert {(1, 2), (2, 1)} <= {plan.grid for plan in plans}
    sums = [Compiled(spec, 2, HOST).kernel.plan.detail for spec in SUMS.values()]
    assert all(isinstance(plan, PairSumsPlan) for plan in sums)
    assert any(plan.images > 1 and plan.blocks > 1 for plan in sums)
    assert any(plan.bands > 1 for plan in sums)
    assert {(1, 2), (2, 1)} <= {plan.grid for plan in sums}


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (5, 2)])
@pytest.mark.parametrize("depth", [1, 3, 16, 17, 32, 40, 64])
def test_the_order_has_each_product_once(kernel: tuple[int, int], depth: int) -> None:
    count = kernel[0] * kernel[1] * depth
    # All numbers of 16 bits, from 1 on, are different.
    bits = np.arange(0x3F80, 0x3F80 + count, dtype=np.uint16)
    weight = bits.view(dtypes.bfloat16).reshape(*kernel, depth, 1)
    tiles = in_tiles(weight, 1)
    assert tiles.shape[2] == PairOrder(kernel, depth).tiles
    found = tiles[0, 0, :, :, :1].view(np.uint16).view(dtypes.bfloat16).ravel()
    np.testing.assert_array_equal(found[found > 0], weight.ravel())
    assert not tiles[0, 0, :, :, 1:].any()


def test_forms_without_pairs_are_refused() -> None:
    for form, stride in (("input_grad", (1, 1)), ("weight_grad", (2, 1))):
        with pytest.raises(ValueError, match="bfloat16 forward"):
            ConvSpec(form, 1, 4, 4, 4, 6, (1, 1), stride, dtype=dtypes.bfloat16)  # type: ignore[arg-type]
