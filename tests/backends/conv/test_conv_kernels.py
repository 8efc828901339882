"""Generated convolutions against the reference: values, bits, epilogues, prologues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conv_kernels import FORMS, TARGETS, Compiled, expected, operands

from needle import dtypes
from needle.backends.cpu.conv.spec import ConvSpec, Epilogue, Place, Prologue
from needle.backends.cpu.llvm import Function, Operand

Array = Any

ONE = ((1, 1), (1, 1))
GEOMETRIES = {
    "3x3": ConvSpec("forward", 2, 8, 8, 5, 7, (3, 3), pads=ONE),
    "strided": ConvSpec("forward", 3, 9, 7, 3, 70, (3, 3), (2, 2), ONE),
    "stem": ConvSpec("forward", 1, 23, 20, 3, 33, (7, 7), (2, 2), ((3, 3), (3, 3))),
    "1x1": ConvSpec("forward", 5, 7, 7, 17, 33, (1, 1)),
    "1x1 strided": ConvSpec("forward", 3, 7, 6, 16, 20, (1, 1), (2, 2)),
    "one pixel": ConvSpec("forward", 5, 1, 1, 17, 3, (3, 3), pads=ONE),
    "one channel": ConvSpec("forward", 2, 6, 30, 1, 1, (3, 3), pads=ONE),
    "kernel larger than image": ConvSpec("forward", 2, 2, 3, 4, 5, (5, 6), pads=((2, 3), (4, 1))),
    "stride larger than kernel": ConvSpec("forward", 1, 12, 11, 8, 8, (2, 2), (3, 4)),
    "dilated": ConvSpec("forward", 2, 12, 11, 4, 8, (3, 2), (1, 1), ((1, 2), (3, 0)), (2, 3)),
    "dilated, strided": ConvSpec("forward", 2, 12, 11, 4, 8, (3, 2), (2, 4), ONE, (2, 3)),
    "4 groups": ConvSpec("forward", 2, 12, 11, 8, 12, (3, 3), pads=ONE, groups=4),
    "2 wide groups": ConvSpec("forward", 2, 6, 5, 64, 40, (3, 3), pads=ONE, groups=2),
    "depthwise": ConvSpec("forward", 2, 9, 8, 21, 21, (3, 3), (2, 1), ONE, groups=21),
    "depthwise, several": ConvSpec("forward", 2, 6, 5, 6, 18, (3, 3), pads=ONE, groups=6),
    "depthwise, wide": ConvSpec("forward", 2, 20, 50, 32, 32, (5, 3), pads=ONE, groups=32),
    "depthwise, dilated": ConvSpec("forward", 2, 9, 19, 9, 9, (3, 3), (1, 2), ONE, (2, 3), 9),
    "groups of 2": ConvSpec("forward", 3, 9, 17, 24, 24, (3, 3), (2, 1), ONE, groups=12),
    "groups of 4": ConvSpec("forward", 2, 30, 8, 32, 32, (3, 3), pads=ONE, groups=8),
    "images side by side": ConvSpec("forward", 37, 2, 2, 16, 8, (3, 3), pads=ONE),
    "bands": ConvSpec("forward", 1, 60, 56, 40, 16, (3, 3), pads=ONE),
    "packed": ConvSpec("forward", 40, 4, 4, 48, 100, (3, 3), pads=ONE),
    "no images": ConvSpec("forward", 0, 6, 5, 6, 4, (3, 3), pads=ONE),
    "no columns": ConvSpec("forward", 1, 30, 0, 6, 4, (1, 3), pads=((0, 0), (2, 2))),
    "no rows": ConvSpec("forward", 2, 0, 5, 6, 4, (3, 3), pads=((2, 2), (1, 1))),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(name: str, form: Any, compiled: Callable[..., Compiled]) -> None:
    for dtype in (dtypes.float32, dtypes.float64):
        spec = replace(GEOMETRIES[name], form=form, dtype=dtype)
        first, second = operands(spec)
        got = compiled(spec)(first, second)
        np.testing.assert_array_equal(got, expected(spec, first, second), strict=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["bands", "packed", "strided", "4 groups", "depthwise"])
def test_no_number_of_tasks_changes_a_bit(name: str, form: Any) -> None:
    spec = replace(GEOMETRIES[name], form=form, images=7)
    first, second = operands(spec, whole=False)
    want = Compiled(spec, 1, TARGETS["host"])(first, second)
    for threads in (2, 3, 4, 8):
        kernel = Compiled(spec, threads, TARGETS["host"])
        np.testing.assert_array_equal(kernel(first, second), want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["3x3", "bands", "packed", "4 groups", "groups of 4", "depthwise"])
def test_no_width_of_vectors_changes_a_bit(name: str, form: Any) -> None:
    fused = [target for target in TARGETS.values() if target.fma]
    spec = replace(GEOMETRIES[name], form=form, images=7)
    first, second = operands(spec, whole=False)
    want, *others = (Compiled(spec, 1, target)(first, second) for target in fused)
    for got in others:
        np.testing.assert_array_equal(got, want)


def test_work_is_shared() -> None:
    for name in ("bands", "packed"):
        assert Compiled(GEOMETRIES[name], 2, TARGETS["host"]).kernel.tasks == 2


@pytest.mark.parametrize("form", ["forward", "input_grad"])
@pytest.mark.parametrize("name", ["3x3", "strided", "one pixel", "packed", "depthwise"])
def test_no_other_image_changes_a_bit(
    name: str, form: Any, compiled: Callable[..., Compiled]
) -> None:
    spec = replace(GEOMETRIES[name], form=form, images=11)
    first, second = operands(spec, whole=False)
    want = compiled(spec)(first, second)
    for count in (1, 2, 6):
        some = compiled(replace(spec, images=count))
        np.testing.assert_array_equal(some(first[4 : 4 + count], second), want[4 : 4 + count])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["3x3", "depthwise", "groups of 4", "packed", "dilated", "bands"])
def test_zeros_outside_meet_infinities(
    name: str, form: Any, compiled: Callable[..., Compiled]
) -> None:
    spec = replace(GEOMETRIES[name], form=form)
    first, second = operands(spec)
    clean = compiled(spec)(first, second)
    np.testing.assert_array_equal(clean, expected(spec, first, second), strict=True)
    second[0, 0, 0, 0], second[-1, -1, 0, -1] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        want = expected(spec, first, second)
    got = compiled(spec)(first, second)
    if form == "input_grad":  # the reference has zeros around the cotangent for some shapes only
        assert np.isnan(got[np.isnan(want)]).all()
    else:
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want), strict=True)


def scaled(spec: ConvSpec, long: bool) -> ConvSpec:
    """The form with an epilogue that weighs each element with its place."""
    _, height, width, channels = spec.result

    def begin(f: Function) -> Operand:
        return f.load("%extra", 0, spec.dtype)

    def store(f: Function, sums: Operand, at: Place, state: Operand) -> None:
        place = f.add_index(f.mul_index(at.image, height), at.row)
        place = f.add_index(f.mul_index(place, width), at.column)
        place = f.add_index(f.mul_index(place, channels), at.channel)
        weight = f.load("%extra", f.add_index(place, 1), spec.dtype, at.lanes, at.mask)
        sums = f.add(f.mul(sums, f.splat(state, at.lanes)), weight)
        f.store(sums, "%out", place, at.mask)

    instructions = 100 if long else 4
    return replace(spec, epilogue=Epilogue(store, ("scaled", long), begin, instructions))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_epilogue(name: str, form: Any, compiled: Callable[..., Compiled]) -> None:
    spec = replace(GEOMETRIES[name], form=form)
    first, second = operands(spec)
    bias = np.random.default_rng(3).integers(-9, 9, spec.result).astype(spec.dtype)
    extra = np.concatenate([np.array([2], spec.dtype), bias.ravel()])
    want = 2 * expected(spec, first, second) + bias
    for long in (False, True):
        got = compiled(scaled(spec, long), 2)(first, second, extra)
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["3x3", "1x1", "strided", "packed", "depthwise", "4 groups"])
def test_prologue(name: str, form: Any, compiled: Callable[..., Compiled]) -> None:
    """What is read can be computed: here twice what is there, plus something for each channel."""
    spec = replace(GEOMETRIES[name], form=form)
    first, second = operands(spec)
    _, height, width, channels = first.shape

    def begin(f: Function) -> Operand:
        return f.load("%extra", 0, spec.dtype)

    def load(f: Function, at: Place, state: Operand) -> Operand:
        place = f.add_index(f.mul_index(at.image, height), at.row)
        place = f.add_index(f.mul_index(place, width), at.column)
        place = f.add_index(f.mul_index(place, channels), at.channel)
        x = f.load("%image", place, spec.dtype, at.lanes, at.mask)
        shift = f.load("%extra", f.add_index(at.channel, 1), spec.dtype, at.lanes, at.mask)
        return f.add(f.mul(x, f.splat(state, at.lanes)), shift)

    shift = np.arange(channels, dtype=spec.dtype)
    extra = np.concatenate([np.array([2], spec.dtype), shift])
    computed = replace(spec, prologue=Prologue(load, "twice and more", begin))
    want = expected(spec, 2 * first + shift, second)
    np.testing.assert_array_equal(compiled(computed, 2)(first, second, extra), want)


def test_a_contradiction_is_refused() -> None:
    with pytest.raises(ValueError, match="3 groups do not divide 4 and 6 channels"):
        ConvSpec("forward", 1, 4, 4, 4, 6, (1, 1), groups=3)
    with pytest.raises(ValueError, match="float32 and float64"):
        ConvSpec("forward", 1, 4, 4, 4, 6, (1, 1), dtype=dtypes.float16)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (2, 1)])
def test_sums_over_images_whose_rows_go_on_at_one_distance(
    compiled: Callable[..., Compiled], kernel: tuple[int, int]
) -> None:
    """A step from the last row that is read to the next image is one from row to row, and not all
    blocks have as many images: only some of the rows were summed."""
    spec = ConvSpec("weight_grad", 19, 8, 8, 4, 5, kernel, (2, 2))
    first, second = operands(spec)
    want = expected(spec, first, second)
    np.testing.assert_array_equal(compiled(spec)(first, second), want, strict=True)
