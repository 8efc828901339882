"""Transforms: one image or a batch, against plain loops; random ones against their streams."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from needle.data import SampleStreams
from needle.data.streams import sample_scope
from needle.data.transforms import (
    Compose,
    Flatten,
    Lambda,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    ToFloat,
    Transform,
)
from needle.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError


def batch(n=6, c=3, h=8, w=10, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, c, h, w), dtype=np.uint8)


EVERY = [
    ToFloat(),
    Compose([ToFloat(), Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))]),
    RandomCrop(5),
    RandomCrop((6, 10), padding=2, fill=9),
    RandomCrop(8, padding=4),
    RandomHorizontalFlip(),
    RandomHorizontalFlip(0.1),
    Flatten(),
    Lambda(np.negative, batched=True),
    Compose([RandomCrop(7, padding=1), RandomHorizontalFlip(), ToFloat(), Flatten()]),
    Compose([]),
]


@pytest.mark.parametrize("transform", EVERY, ids=repr)
@pytest.mark.parametrize("n", [1, 6, 40])
def test_batch_equals_its_images(transform, n):
    images = batch(n)
    before = images.copy()
    images.flags.writeable = False
    indices = np.arange(n) * 3
    with sample_scope(SampleStreams(1, 2, indices)):
        together = transform(images)
    for i in range(n):
        with sample_scope(SampleStreams(1, 2, [int(indices[i])])):
            alone = transform(images[i])
        assert alone.dtype == together.dtype
        np.testing.assert_array_equal(together[i], alone)
    np.testing.assert_array_equal(images, before)
    assert transform.batched


def test_to_float():
    x = np.array([[[0, 51, 255]]], np.uint8)
    np.testing.assert_array_equal(ToFloat()(x), np.float32([[[0, 0.2, 1]]]))
    assert ToFloat(16)(x).max() == np.float32(255 / 16)
    for dtype in (np.float32, np.bool_):
        with pytest.raises(DTypeError, match=f"expected integers.*{np.dtype(dtype)}"):
            ToFloat()(x.astype(dtype))
    with pytest.raises(ArgumentError, match="positive"):
        ToFloat(0)


@pytest.mark.peers
def test_normalize_equals_torch():
    torch = pytest.importorskip("torch")
    x = batch().astype(np.float32) / 255
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    ours = Normalize(mean, std)(x)
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    np.testing.assert_array_equal(ours, ((torch.from_numpy(x) - m) / s).numpy())
    assert ours.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_normalize_keeps_the_dtype(dtype):
    x = np.full((2, 3, 3), 0.5, dtype)
    y = Normalize((0.0, 0.5), (0.5, 1.0))(x)
    assert y.dtype == dtype
    assert (y[0] == 1).all()
    assert (y[1] == 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 0.0), "positive"),
        ((0.0, -1.0), "positive"),
        ((0.0, float("nan")), "positive"),
        ((0.0, float("inf")), "finite"),
        ((float("nan"), 1.0), "mean must be finite"),
        (((0.0, 0.0), (1.0,)), "mean has 2 values and std 1"),
        (((), ()), "positive"),
    ],
)
def test_normalize_rejects(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        Normalize(*arguments)


def test_normalize_rejects_images():
    with pytest.raises(DTypeError, match="put ToFloat"):
        Normalize(0.5, 0.5)(batch())
    with pytest.raises(ShapeError, match="for 3 channels, but the image has 1"):
        Normalize((0.0,) * 3, (1.0,) * 3)(np.zeros((1, 4, 4), np.float32))


@settings(max_examples=50, deadline=None)
@given(
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    padding=st.integers(0, 3),
    data=st.data(),
    seed=st.integers(0, 2**62),
)
def test_crop_is_a_window_of_the_padded_image(h, w, padding, data, seed):
    size = (
        data.draw(st.integers(1, h + 2 * padding)),
        data.draw(st.integers(1, w + 2 * padding)),
    )
    image = batch(1, 2, h, w, seed=1)[0]
    with sample_scope(SampleStreams(seed, 0, [0])):
        cut = RandomCrop(size, padding, fill=7)(image)
    streams = SampleStreams(seed, 0, [0])
    top = int(streams.integers(0, h + 2 * padding - size[0] + 1)[0])
    left = int(streams.integers(0, w + 2 * padding - size[1] + 1)[0])
    for c in range(2):
        for i in range(size[0]):
            for j in range(size[1]):
                y, x = top + i - padding, left + j - padding
                inside = 0 <= y < h and 0 <= x < w
                assert cut[c, i, j] == (image[c, y, x] if inside else 7)


def test_crops_reach_every_place():
    image = np.arange(25, dtype=np.uint8).reshape(1, 5, 5)
    with sample_scope(SampleStreams(0, 0, range(500))):
        cut = RandomCrop(3)(np.repeat(image[None], 500, axis=0))
    assert set(cut[:, 0, 0, 0].tolist()) == {0, 1, 2, 5, 6, 7, 10, 11, 12}


def test_flip_probability():
    images = np.tile(np.arange(2, dtype=np.uint8), (4000, 1, 1, 1))
    for p, slack in ((0.0, 0.0), (0.25, 0.028), (1.0, 0.0)):
        with sample_scope(SampleStreams(0, 0, range(4000))):
            flipped = RandomHorizontalFlip(p)(images)[:, 0, 0, 0] == 1
        assert abs(flipped.mean() - p) <= slack


def test_one_sample_of_many_frames_is_transformed_as_one():
    frames = np.repeat(batch(1), 5, axis=0)
    with sample_scope(SampleStreams(0, 0, [3])):
        cut = Compose([RandomCrop(4), RandomHorizontalFlip()])(frames)
    assert (cut == cut[:1]).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomCrop(0), "positive"),
        (lambda: RandomCrop((3, 3, 3)), "one or two"),
        (lambda: RandomCrop(3, padding=-1), "padding must not be negative"),
        (lambda: RandomHorizontalFlip(1.5), r"\[0, 1\], got 1.5"),
        (lambda: RandomHorizontalFlip(float("nan")), r"\[0, 1\]"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_bad_images():
    with pytest.raises(ShapeError, match=r"9×9 does not fit .* padding 0"):
        RandomCrop(9)(batch(h=8, w=8))
    flat = np.zeros(64, np.float32)
    for transform in (Normalize(0, 1), RandomCrop(2), RandomHorizontalFlip(), Flatten()):
        with pytest.raises(ShapeError, match=r"got shape \(64,\); Flatten comes last"):
            transform(flat)
        with pytest.raises(ShapeError, match=r"x\[None\]"):
            transform(flat.reshape(8, 8))
        with pytest.raises(ArgumentTypeError, match="got list"):
            transform([1, 2])
    for wrong in (3, None):
        with pytest.raises(ArgumentTypeError):
            Lambda(wrong)
        with pytest.raises(ArgumentTypeError, match="transform 1"):
            Compose([ToFloat(), wrong])
    with pytest.raises(NotImplementedError, match="__call__"):
        Transform()(flat)


def test_compose_takes_any_callable_and_is_batched_only_if_all_are():
    compose = Compose([ToFloat(), np.sum])
    assert compose(np.full((1, 1, 2), 255, np.uint8)) == 2
    assert not compose.batched
    assert not Compose([Compose([Lambda(np.sum)])]).batched
    assert Compose([Compose([ToFloat()]), Flatten()]).batched


def test_repr_shows_the_pipeline():
    text = repr(Compose([RandomCrop(32, 4), Compose([ToFloat()]), Normalize(0.5, 0.25)]))
    assert text == (
        "Compose(\n"
        "    RandomCrop(size=(32, 32), padding=4, fill=0)\n"
        "    Compose(\n"
        "        ToFloat(maximum=255)\n"
        "    )\n"
        "    Normalize(mean=(0.5,), std=(0.25,))\n"
        ")"
    )
    assert repr(RandomHorizontalFlip(0.3)) == "RandomHorizontalFlip(p=0.3)"
    assert repr(Compose([])) == "Compose()"
