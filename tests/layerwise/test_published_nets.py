"""LeNet, cifar10_quick and AlexNet as they are published with Caffe: their definitions train as
they stand, with data sets of needle in the place of databases."""

from pathlib import Path

import numpy as np
import pytest

import needle as ndl
from needle.layerwise import TEST, TRAIN, Net, SGDSolver, read_net, read_solver

DEFINITIONS = Path(__file__).with_name("definitions")


def loader(images, labels, batch):
    data = ndl.data.TensorDataset(images, np.asarray(labels, np.float32))
    return ndl.data.DataLoader(data, batch, shuffle=True, drop_last=True)


def enlarged_digits(size, channels, count=800):
    """Digits of 8×8 pixels, each pixel several times, around zero."""
    digits = ndl.data.Digits()
    images = digits.images[:count].reshape(-1, 1, 8, 8).astype(np.float32) * 16
    images -= images.mean(axis=0)
    times = size // 8
    large = images.repeat(times, axis=2).repeat(times, axis=3).repeat(channels, axis=1)
    return large, digits.labels[:count]


def test_lenet():
    images, labels = enlarged_digits(24, 1)
    images = np.pad(images, ((0, 0), (0, 0), (2, 2), (2, 2))) / 256
    ndl.manual_seed(0)
    solver = read_solver(
        DEFINITIONS / "lenet_solver.prototxt",
        data={"mnist": loader(images, labels, 64)},
        test_data={"mnist": loader(images, labels, 100)},
    )
    assert isinstance(solver, SGDSolver)
    assert (solver.config.max_iter, solver.config.snapshot) == (10000, 5000)
    assert sum(b.count for b in solver.net.learnable()) == 431_080
    assert [b.lr_mult for b in solver.net.params["ip1"]] == [1, 2]
    solver.config.test_iter = 2  # of 100
    solver.net.compile()
    solver.step(40)
    assert [it for it, _ in solver.tests] == [0]
    assert solver.learning_rate == pytest.approx(0.01 * (1 + 0.0001 * 40) ** -0.75)
    assert np.mean(solver.losses[-5:]) < 0.5 * solver.losses[0]
    assert solver.test()[0]["accuracy"] > 0.7


def test_cifar10_quick():
    images, labels = enlarged_digits(32, 3)
    ndl.manual_seed(0)
    solver = read_solver(
        DEFINITIONS / "cifar10_quick_solver.prototxt",
        data={"cifar": loader(images, labels, 100)},
    )
    net = solver.net
    assert net.blobs["pool1"].shape == (100, 32, 16, 16)
    assert net.blobs["pool3"].shape == (100, 64, 4, 4)
    assert sum(b.count for b in net.learnable()) == 145_578
    assert float(net.params["conv1"][0].data.std()) == pytest.approx(1e-4, rel=0.05)
    before = [b.data.copy() for b in net.learnable()]
    net.compile()
    solver.config.test_interval = 0  # without 100 batches of tests
    solver.step(30)
    assert solver.losses[0] == pytest.approx(np.log(10), abs=0.1)
    assert np.mean(solver.losses[-5:]) < solver.losses[0]
    assert all((a != b.data).any() for a, b in zip(before, net.learnable(), strict=True))


def test_alexnet_is_read():
    """All of it but the weights of its largest layers, which take a gigabyte with gradients."""
    specs = {s.name: s for s in read_net(DEFINITIONS / "alexnet_train_val.prototxt")}
    assert len(specs) == 25  # the data layers of both phases have one name
    assert specs["conv2"].options["group"] == 2
    assert specs["norm1"].options == {
        "local_size": 5,
        "alpha": pytest.approx(1e-4),
        "beta": 0.75,
    }
    assert [p["decay_mult"] for p in specs["fc8"].param] == [1, 0]
    images = np.zeros((2, 3, 227, 227), np.float32)
    front = read_net(DEFINITIONS / "alexnet_train_val.prototxt")[:16]
    net = Net(front, TRAIN, data={"data": [(images, np.zeros(2, np.float32))]})
    shapes = {name: net.blobs[name].shape[1:] for name in ("conv1", "pool1", "pool2", "conv5")}
    assert shapes == {
        "conv1": (96, 55, 55),
        "pool1": (96, 27, 27),
        "pool2": (256, 13, 13),
        "conv5": (256, 13, 13),
    }


@pytest.mark.nightly
def test_alexnet():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(8, 3, 227, 227)).astype(np.float32) * 50
    labels = rng.integers(0, 1000, 8)
    ndl.manual_seed(0)
    specs = read_net(DEFINITIONS / "alexnet_train_val.prototxt")
    data = {"data": loader(images, labels, 4)}
    net = Net(specs, TRAIN, data=data)
    assert net.blobs["pool5"].shape == (4, 256, 6, 6)
    assert sum(b.count for b in net.learnable()) == 60_965_224
    net.compile()
    test = Net(specs, TEST, data=data)
    solver = SGDSolver(net=net, test_nets=[test], base_lr=0.01, momentum=0.9, weight_decay=0.0005)
    before = [b.data.copy() for b in net.learnable()]
    solver.step(3)
    assert solver.losses[0] == pytest.approx(np.log(1000), abs=1.0)
    assert np.isfinite(solver.losses).all()
    assert all((a != b.data).any() for a, b in zip(before, net.learnable(), strict=True))
    assert set(test.forward()) == {"loss", "accuracy"}
