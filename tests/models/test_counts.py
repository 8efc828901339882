"""Parameter counts and shapes of the models, on the meta device, where any size costs nothing."""

import pytest

import needle as ndl
from needle import models, nn
from needle.errors import ArgumentError, ShapeError


def on_meta(make, *args, **settings):
    with nn.defaults(device="meta"):
        return make(*args, **settings)


def count(model):
    return sum(p.size for p in model.parameters())


# The papers' tables and, where these round, the numbers of torchvision and of GPT-2's checkpoint.
COUNTS = [
    ("resnet18", 11_689_512),
    ("resnet34", 21_797_672),
    ("resnet50", 25_557_032),
    ("resnet101", 44_549_160),
    ("resnet152", 60_192_808),
    ("resnet20", 269_722),
    ("resnet32", 464_154),
    ("resnet44", 658_586),
    ("resnet56", 853_018),
    ("resnet110", 1_727_962),
    ("AlexNet", 61_100_840),
    ("LeNet", 61_706),
    ("vit_tiny", 5_717_416),
    ("vit_small", 22_050_664),
    ("vit_base", 86_567_656),
    ("MobileNetV2", 3_504_872),
    ("UNet", 31_030_658),
]
CIFAR = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}


@pytest.mark.parametrize(("name", "expected"), COUNTS)
def test_parameter_counts(name, expected):
    assert count(on_meta(getattr(models, name))) == expected


@pytest.mark.parametrize(("name", "millions"), CIFAR.items())
def test_counts_of_cifar_networks_round_to_the_papers(name, millions):
    digits = 1 if millions > 1 else 2
    assert round(count(on_meta(getattr(models, name))) / 1e6, digits) == millions


def test_count_of_gpt2_small():
    model = on_meta(models.GPT, models.GPTConfig())
    assert count(model) == 124_439_808
    assert count(models.MLP(784, 128, 64, 10)) == 784 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10


def test_pre_activation_changes_only_the_norms():
    v1, v2 = on_meta(models.resnet50), on_meta(models.resnet50, pre_activation=True)
    kernels = [sorted(p.shape for p in model.parameters() if p.ndim > 1) for model in (v1, v2)]
    assert kernels[0] == kernels[1]
    # Without those of stem and four projections, and with one at the end.
    norms = [
        [m.num_features for m in v.modules() if isinstance(m, nn.BatchNorm2d)] for v in (v1, v2)
    ]
    assert len(norms[1]) == len(norms[0]) - 1 - 4 + 1
    assert count(v1) - count(v2) == 2 * (sum(norms[0]) - sum(norms[1]))


@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("name", [name for name, _ in COUNTS if name.startswith("resnet")])
def test_shapes_of_resnets(name, pre_activation):
    make = getattr(models, name)
    model = on_meta(make, pre_activation=pre_activation)
    size, classes = (32, 10) if name in CIFAR else (224, 1000)
    assert model(ndl.zeros((2, 3, size, size), device="meta")).shape == (2, classes)
    few = on_meta(make, 7, pre_activation=pre_activation)
    assert few(ndl.zeros((2, 3, size, size), device="meta")).shape == (2, 7)


def test_resnet18_takes_the_papers_arithmetic():
    # 1.8 · 10⁹ multiply-adds for an image of 224 × 224 (table 1).
    flops = on_meta(models.resnet18).summary((1, 3, 224, 224)).flops
    assert round(flops / 2e9, 1) == 1.8


def test_other_shapes():
    assert on_meta(models.AlexNet)(ndl.zeros((2, 3, 224, 224), device="meta")).shape == (2, 1000)
    small = on_meta(models.resnet18, 10, small_images=True)
    assert small(ndl.zeros((2, 3, 32, 32), device="meta")).shape == (2, 10)
    assert on_meta(models.LeNet, size=32)(ndl.zeros((2, 1, 32, 32), device="meta")).shape == (2, 10)
    gpt = on_meta(models.GPT, models.GPTConfig())
    tokens = ndl.zeros((2, 1024), dtype="int64", device="meta")
    assert gpt(tokens).shape == (2, 1024, 50257)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base", "MobileNetV2"])
def test_shapes_of_networks_for_224(name):
    model = on_meta(getattr(models, name), 7)
    assert model(ndl.zeros((2, 3, 224, 224), device="meta")).shape == (2, 7)


def test_shapes_of_unet_are_the_papers():
    assert on_meta(models.UNet)(ndl.zeros((1, 1, 572, 572), device="meta")).shape == (
        1,
        2,
        388,
        388,
    )
    padded = on_meta(models.UNet, 3, 5, width=8, depth=3, padded=True, norm=nn.BatchNorm2d)
    assert padded(ndl.zeros((2, 3, 24, 40), device="meta")).shape == (2, 5, 24, 40)


def test_count_of_narrow_mobilenet():
    # As the public checkpoints of these widths.
    assert round(count(on_meta(models.MobileNetV2, width=1.4)) / 1e6, 1) == 6.1
    assert round(count(on_meta(models.MobileNetV2, width=0.35)) / 1e6, 1) == 1.7


def test_mobilenet_takes_the_papers_arithmetic():
    # 300 · 10⁶ multiply-adds for an image of 224 × 224 (table 4).
    flops = on_meta(models.MobileNetV2).summary((1, 3, 224, 224)).flops
    assert round(flops / 2e8) == 3


def test_errors():
    with pytest.raises(ArgumentError, match=r"6n \+ 2"):
        models.CifarResNet(21)
    with pytest.raises(ArgumentError, match=r"one of \[18, 34, 50, 101, 152\], got 20"):
        models.ResNet(20)
    with pytest.raises(ArgumentError, match="at least the inputs and the outputs"):
        models.MLP(3)
    with pytest.raises(ArgumentError, match="no multiple of the 3 heads"):
        models.GPT(models.GPTConfig(width=64, heads=3, vocabulary=5))
    gpt = models.GPT(models.GPTConfig(vocabulary=5, context=4, layers=1, heads=1, width=4))
    with pytest.raises(ShapeError, match=r"^model: expected tokens .* at most 4 \(context\)"):
        gpt(ndl.zeros((1, 5), dtype="int64"))
    with pytest.raises(
        ShapeError, match=r"^model\.layers\.1: expected last axis 4 \(in_features\)"
    ):
        models.MLP(4, 3, 2)(ndl.zeros((1, 5)))
    with pytest.raises(ShapeError, match=r"^model\.conv: expected axis 1 3 \(in_channels\)"):
        models.resnet20()(ndl.zeros((1, 1, 32, 32)))
    with pytest.raises(ArgumentError, match="do not tile"):
        models.ViT(30, patch=8)
    with pytest.raises(ShapeError, match=r"\[batch, channels, 32, 32\]"):
        on_meta(models.ViT, 32, 8, 16, 1, 2)(ndl.zeros((1, 3, 24, 32), device="meta"))
    with pytest.raises(ArgumentError, match="width must be positive"):
        models.MobileNetV2(width=0.0)
    with pytest.raises(ArgumentError, match="depth must be at least 1"):
        models.UNet(depth=0)
    with pytest.raises(ShapeError, match="must be even"):
        on_meta(models.UNet, padded=True)(ndl.zeros((1, 1, 40, 36), device="meta"))
