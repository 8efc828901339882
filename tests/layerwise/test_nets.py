"""Nets and solvers: splits, sharing, phases, Python layers, update rules, snapshots, bridges."""

import numpy as np
import pytest

import needle as ndl
from needle import nn, optim
from needle.errors import ArgumentError, CheckpointError, CompileError, DataError
from needle.layerwise import (
    TEST,
    TRAIN,
    AdaGradSolver,
    AdamSolver,
    Blob,
    Layer,
    LayerSpec,
    NesterovSolver,
    Net,
    RMSPropSolver,
    SGDSolver,
    SolverConfig,
    as_function,
    as_layer,
)
from needle.nn import functional as F

XAVIER = {"weight_filler": {"type": "xavier"}}
RNG = np.random.default_rng(0)


class caffe:
    """What pycaffe's programs import."""

    Layer = Layer


class EuclideanLossLayer(caffe.Layer):
    """As in Caffe's example of a layer in Python (examples/pycaffe/layers/pyloss.py computes the
    same): a difference that is kept for the backward pass."""

    def setup(self, bottom, top):
        if len(bottom) != 2:
            raise Exception("Need two inputs to compute distance.")

    def reshape(self, bottom, top):
        if bottom[0].count != bottom[1].count:
            raise Exception("Inputs must have the same dimension.")
        self.diff = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom, top):
        self.diff[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.diff**2) / bottom[0].num / 2.0

    def backward(self, top, propagate_down, bottom):
        for i in range(2):
            if not propagate_down[i]:
                continue
            sign = 1 if i == 0 else -1
            bottom[i].diff[...] = sign * self.diff / bottom[i].num


def mlp(batch=8, loss="SoftmaxWithLoss"):
    return [
        LayerSpec("data", "Input", top=["x", "y"], options={"shape": [[batch, 6], [batch]]}),
        LayerSpec("fc1", "InnerProduct", ["x"], ["h"], {"num_output": 16, **XAVIER}),
        LayerSpec("relu", "ReLU", ["h"], ["h"]),
        LayerSpec("fc2", "InnerProduct", ["h"], ["scores"], {"num_output": 3, **XAVIER}),
        LayerSpec("loss", loss, ["scores", "y"], ["loss"]),
        LayerSpec("accuracy", "Accuracy", ["scores", "y"], ["accuracy"], phases=[TEST]),
    ]


def fed(net, seed=0):
    rng = np.random.default_rng(seed)
    net.blobs["x"].data[...] = rng.normal(size=net.blobs["x"].shape)
    net.blobs["y"].data[...] = rng.integers(0, 3, net.blobs["y"].shape)
    return net


def test_a_net_is_what_autograd_says():
    ndl.manual_seed(0)
    net = fed(Net(mlp()))
    (w1, b1), (w2, b2) = (
        [ndl.Tensor(p.data.copy()) for p in net.params[n]] for n in ("fc1", "fc2")
    )
    outputs = net.forward()
    net.clear_param_diffs()
    net.backward()
    x, y = ndl.asarray(net.blobs["x"].data), ndl.asarray(net.blobs["y"].data.astype(np.int64))
    loss = F.cross_entropy(F.relu(x @ w1.mT + b1) @ w2.mT + b2, y)
    loss.backward()
    np.testing.assert_allclose(outputs["loss"], loss.item(), rtol=1e-6)
    np.testing.assert_allclose(net.loss, loss.item(), rtol=1e-6)
    for tensor, blob in zip((w1, b1, w2, b2), net.learnable(), strict=True):
        np.testing.assert_allclose(blob.diff, tensor.grad.numpy(), rtol=1e-5, atol=1e-7)
    net.backward()  # adds up, as Caffe's does
    np.testing.assert_allclose(net.learnable()[0].diff, 2 * w1.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_phases_choose_layers():
    assert [s.name for s in Net(mlp(), TRAIN).steps] == ["data", "fc1", "relu", "fc2", "loss"]
    test = fed(Net(mlp(), TEST))
    assert set(test.forward()) == {"loss", "accuracy"}
    assert "Split" in [layer.type for layer in test.layers]


def test_blobs_with_several_readers_are_split():
    """A residual block, with an activation that writes where it reads."""
    specs = [
        LayerSpec("in", "Input", top=["x"], options={"shape": [2, 4]}),
        LayerSpec("a", "InnerProduct", ["x"], ["h"], {"num_output": 4, **XAVIER}),
        LayerSpec("relu", "ReLU", ["h"], ["h"]),
        LayerSpec("b", "InnerProduct", ["h"], ["g"], {"num_output": 4, **XAVIER}),
        LayerSpec("act", "TanH", ["g"], ["g"]),
        LayerSpec("sum", "Eltwise", ["h", "g"], ["out"]),
        LayerSpec("loss", "EuclideanLoss", ["out", "x"], ["loss"]),
    ]
    ndl.manual_seed(0)
    net = Net(specs, force_backward=True)
    x = RNG.normal(size=(2, 4)).astype(np.float32)
    net.forward(x=x)
    net.clear_param_diffs()
    gradient = net.backward()["x"]
    params = [ndl.Tensor(b.data.copy()) for b in net.learnable()]
    t = ndl.Tensor(x)
    h = F.relu(t @ params[0].mT + params[1])
    out = h + ndl.tanh(h @ params[2].mT + params[3])
    (((out - t) ** 2).sum() / 4).backward()
    np.testing.assert_allclose(gradient, t.grad.numpy(), rtol=1e-5, atol=1e-7)
    for tensor, blob in zip(params, net.learnable(), strict=True):
        np.testing.assert_allclose(blob.diff, tensor.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_layers_in_python_run_as_they_are():
    ndl.manual_seed(0)
    results = []
    for make in (None, EuclideanLossLayer):
        ndl.manual_seed(0)
        specs = [
            LayerSpec("in", "Input", top=["x", "y"], options={"shape": [[5, 3], [5, 2]]}),
            LayerSpec("fc", "InnerProduct", ["x"], ["out"], {"num_output": 2, **XAVIER}),
            LayerSpec("loss", "EuclideanLoss", ["out", "y"], ["loss"], loss_weight=[1], make=make),
        ]
        net = Net(specs)
        rng = np.random.default_rng(1)
        for name in ("x", "y"):
            net.blobs[name].data[...] = rng.normal(size=net.blobs[name].shape)
        solver = SGDSolver(net=net, base_lr=0.1, momentum=0.9)
        solver.step(5)
        results.append((solver.losses, net.params["fc"][0].data.copy()))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-5)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-5)
    assert results[0][0][-1] < results[0][0][0]


SOLVERS = {
    "sgd": (
        SGDSolver,
        {"momentum": 0.9},
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.0),
    ),
    "nesterov": (
        NesterovSolver,
        {"momentum": 0.9},
        lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.0, nesterov=True),
    ),
    "adam": (AdamSolver, {"momentum": 0.9}, lambda p: optim.Adam(p, lr=0.1)),
    "adagrad": (AdaGradSolver, {"delta": 1e-10}, lambda p: optim.Adagrad(p, lr=0.1)),
    "rmsprop": (RMSPropSolver, {"rms_decay": 0.99}, lambda p: optim.RMSprop(p, lr=0.1)),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers_are_the_optimizers(name):
    kind, options, own = SOLVERS[name]
    ndl.manual_seed(0)
    net = fed(Net(mlp()))
    params = [ndl.Tensor(b.data.copy()) for b in net.learnable()]
    x, y = ndl.asarray(net.blobs["x"].data), ndl.asarray(net.blobs["y"].data.astype(np.int64))
    solver, optimizer = kind(net=net, base_lr=0.1, **options), own(params)
    for _ in range(4):
        optimizer.zero_grad()
        w1, b1, w2, b2 = params
        F.cross_entropy(F.relu(x @ w1.mT + b1) @ w2.mT + b2, y).backward()
        optimizer.step()
    solver.step(4)
    # Caffe adds delta before Adam's correction, which shows where gradients are tiny.
    atol = 5e-4 if name == "adam" else 2e-5
    for tensor, blob in zip(params, net.learnable(), strict=True):
        np.testing.assert_allclose(blob.data, tensor.detach().numpy(), rtol=2e-4, atol=atol)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_policy": "fixed"}, [1, 1, 1]),
        ({"lr_policy": "step", "gamma": 0.5, "stepsize": 4}, [1, 0.5, 0.25]),
        ({"lr_policy": "exp", "gamma": 0.9}, [1, 0.9**5, 0.9**10]),
        ({"lr_policy": "inv", "gamma": 0.1, "power": 0.75}, [1, 1.5**-0.75, 2**-0.75]),
        ({"lr_policy": "multistep", "gamma": 0.1, "stepvalue": [5, 9]}, [1, 0.1, 0.01]),
        ({"lr_policy": "poly", "power": 2, "max_iter": 20}, [1, 0.75**2, 0.5**2]),
        (
            {"lr_policy": "sigmoid", "gamma": 1, "stepsize": 5},
            [1 / (1 + np.exp(5)), 0.5, 1 / (1 + np.exp(-5))],
        ),
    ],
    ids=lambda o: o["lr_policy"] if isinstance(o, dict) else "",
)
def test_policies(options, expected):
    solver = SGDSolver(SolverConfig(base_lr=2.0, **options), fed(Net(mlp())))
    for it, factor in zip((0, 5, 10), expected, strict=True):
        solver.iter = it
        np.testing.assert_allclose(solver.learning_rate, 2 * factor, rtol=1e-9)


def test_multipliers_decay_clipping_and_accumulation():
    specs = mlp()
    specs[1].param = [{"lr_mult": 2, "decay_mult": 0}, {"lr_mult": 0}]
    ndl.manual_seed(0)
    net = fed(Net(specs))
    before = [b.data.copy() for b in net.learnable()]
    SGDSolver(net=net, base_lr=0.1, weight_decay=0.5).step(1)
    diffs = [b.diff for b in net.learnable()]  # with their decay
    np.testing.assert_allclose(net.learnable()[0].data, before[0] - 0.2 * diffs[0], rtol=1e-5)
    np.testing.assert_array_equal(net.learnable()[1].data, before[1])
    np.testing.assert_allclose(net.learnable()[2].data, before[2] - 0.1 * diffs[2], rtol=1e-5)
    results = []
    for size in (1, 3):  # the same batch three times is the same step
        ndl.manual_seed(0)
        net = fed(Net(mlp()))
        SGDSolver(net=net, base_lr=0.1, iter_size=size, clip_gradients=0.01 * size).step(2)
        results.append(net.learnable()[0].data.copy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5)


def test_a_run_goes_on_from_its_snapshot(tmp_path):
    def start():
        ndl.manual_seed(0)
        return AdamSolver(net=fed(Net(mlp())), base_lr=0.01, momentum=0.9)

    whole = start()
    whole.step(6)
    first = start()
    first.step(3)
    path = first.snapshot(tmp_path / "three.safetensors")
    second = start()
    second.step(1)
    second.restore(path)
    second.step(3)
    assert second.iter == 6
    for a, b in zip(whole.params, second.params, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    other = SGDSolver(net=fed(Net(mlp())))
    with pytest.raises(CheckpointError, match="another solver"):
        other.restore(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        second.restore(path)


def test_training_and_testing_on_digits():
    digits = [
        ndl.data.DataLoader(
            ndl.data.TensorDataset(
                d.images.reshape(-1, 1, 8, 8).astype(np.float32) / 16,
                np.asarray(d.labels, np.float32),
            ),
            64,
            shuffle=is_train,
            drop_last=True,
        )
        for is_train in (True, False)
        for d in [ndl.data.Digits(train=is_train)]
    ]
    specs = [
        LayerSpec("digits", "Data", top=["x", "y"]),
        LayerSpec(
            "conv", "Convolution", ["x"], ["c"], {"num_output": 8, "kernel_size": 3, **XAVIER}
        ),
        LayerSpec("pool", "Pooling", ["c"], ["p"], {"kernel_size": 2, "stride": 2}),
        LayerSpec("relu", "ReLU", ["p"], ["p"]),
        LayerSpec("fc", "InnerProduct", ["p"], ["scores"], {"num_output": 10, **XAVIER}),
        LayerSpec("loss", "SoftmaxWithLoss", ["scores", "y"], ["loss"]),
        LayerSpec("accuracy", "Accuracy", ["scores", "y"], ["accuracy"], phases=[TEST]),
    ]
    ndl.manual_seed(0)
    train = Net(specs, TRAIN, data={"digits": digits[0]})
    test = Net(specs, TEST, data={"digits": digits[1]})
    config = SolverConfig(base_lr=0.1, momentum=0.9, test_iter=4, test_interval=100, max_iter=150)
    solver = SGDSolver(config, train, [test])
    solver.solve()
    assert [it for it, _ in solver.tests] == [0, 100]
    assert solver.test()[0]["accuracy"] > 0.9
    with pytest.raises(DataError, match=r"'digits' \(Data\) has no data: pass Net"):
        Net(specs)


def test_parameters_are_shared_and_saved(tmp_path):
    specs = [
        LayerSpec("in", "Input", top=["x"], options={"shape": [2, 4]}),
        LayerSpec("a", "InnerProduct", ["x"], ["h"], {"num_output": 4}, [{"name": "w"}]),
        LayerSpec("b", "InnerProduct", ["h"], ["y"], {"num_output": 4}, [{"name": "w"}]),
        LayerSpec("loss", "EuclideanLoss", ["y", "x"], ["loss"]),
    ]
    net = Net(specs)
    assert net.params["a"][0] is net.params["b"][0]
    assert len(net.learnable()) == 3
    net.params["a"][0].data[...] = 3
    net.save(tmp_path / "net.safetensors")
    other = Net(specs)
    other.copy_from(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(other.params["b"][0].data, 3)


def test_layers_as_functions_of_tensors():
    ndl.manual_seed(0)
    inner = as_function(
        Net(mlp()).layer("fc1").__class__(LayerSpec("fc", options={"num_output": 3, **XAVIER}))
    )
    loss = as_function(EuclideanLossLayer())
    x, y = ndl.Tensor(RNG.normal(size=(4, 5)).astype(np.float32)), ndl.zeros((4, 3))
    value = loss(inner(x) * 2, y)
    value.sum().backward()
    weight, bias = (ndl.Tensor(p.detach().numpy().copy()) for p in inner.parameters())
    x2 = ndl.Tensor(x.detach().numpy())
    expected = (((x2 @ weight.mT + bias) * 2) ** 2).sum() / 8
    expected.backward()
    np.testing.assert_allclose(value.numpy()[0], expected.item(), rtol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), x2.grad.numpy(), rtol=1e-5, atol=1e-7)
    own = next(iter(inner.parameters()))
    np.testing.assert_allclose(own.grad.numpy(), weight.grad.numpy(), rtol=1e-5, atol=1e-7)


def test_modules_as_layers():
    ndl.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    specs = [
        LayerSpec("data", "Input", top=["x", "y"], options={"shape": [[8, 6], [8]]}),
        LayerSpec("model", bottom=["x"], top=["scores"], make=lambda: as_layer(model)),
        LayerSpec("twice", bottom=["scores"], top=["s"], make=lambda: as_layer(lambda x: x * 2)),
        LayerSpec("loss", "SoftmaxWithLoss", ["s", "y"], ["loss"]),
    ]
    net = fed(Net(specs))
    solver = SGDSolver(net=net, base_lr=0.5)
    solver.step(30)
    assert solver.losses[-1] < 0.5 * solver.losses[0]
    for blob, parameter in zip(net.params["model"], model.parameters(), strict=True):
        np.testing.assert_array_equal(blob.data, parameter.detach().numpy())


def test_mistakes():
    with pytest.raises(ArgumentError, match=r"reads the blob 'x', which no layer before it writes"):
        Net([LayerSpec("fc", "ReLU", ["x"], ["y"])])
    with pytest.raises(ArgumentError, match="two layers named 'data'"):
        Net([*mlp(), *mlp()])
    net = fed(Net(mlp()))
    with pytest.raises(ArgumentError, match="no blob 'z'"):
        net.forward(z=np.zeros(3))
    with pytest.raises(ArgumentError, match="no layer 'fc9'"):
        net.forward(end="fc9")
    with pytest.raises(ArgumentError, match="no lr_policy 'magic'"):
        SolverConfig(lr_policy="magic")
    with pytest.raises(ArgumentError, match="needs a net"):
        SGDSolver()
    net.blobs["y"].data[...] = 7
    with pytest.raises(ndl.NeedleError, match=r"layer 'loss' \(SoftmaxWithLoss\): .*7"):
        net.forward()

    class Forward(Layer):
        def reshape(self, bottom, top):
            top[0].reshape(*bottom[0].shape)

        def forward(self, bottom, top):
            top[0].data[...] = bottom[0].data

    layer, blobs = Forward(), [Blob(1)]
    with pytest.raises(NotImplementedError, match="it has no gradient"):
        layer.backward(blobs, [True], blobs)


def test_parts_of_a_net():
    ndl.manual_seed(0)
    net = fed(Net(mlp(), force_backward=True))
    hidden = net.forward(end="relu")["h"].copy()
    assert (hidden >= 0).all()
    net.forward()
    part = net.forward(["h"], start="fc2")
    np.testing.assert_array_equal(part["h"], hidden)
    found = net.backward(["h"], start="fc2", end="fc2", scores=np.ones((8, 3)))
    np.testing.assert_allclose(
        found["h"], np.tile(net.params["fc2"][0].data.sum(0), (8, 1)), rtol=1e-5
    )


def conv_net():
    return [
        LayerSpec("data", "Input", top=["x", "y"], options={"shape": [[4, 2, 8, 8], [4]]}),
        LayerSpec("c", "Convolution", ["x"], ["c"], {"num_output": 4, "kernel_size": 3, **XAVIER}),
        LayerSpec("bn", "BatchNorm", ["c"], ["b"]),
        LayerSpec("scale", "Scale", ["b"], ["b"], {"bias_term": True}),
        LayerSpec("relu", "ReLU", ["b"], ["b"]),
        LayerSpec("pool", "Pooling", ["b"], ["p"], {"kernel_size": 2, "stride": 2}),
        LayerSpec("side", "InnerProduct", ["p"], ["s"], {"num_output": 3, **XAVIER}),
        LayerSpec("fc", "InnerProduct", ["p"], ["scores"], {"num_output": 3, **XAVIER}),
        LayerSpec("sum", "Eltwise", ["s", "scores"], ["both"]),
        LayerSpec("loss", "SoftmaxWithLoss", ["both", "y"], ["loss"]),
    ]


@pytest.mark.parametrize("specs", [mlp, conv_net])
def test_a_compiled_net_is_the_net(specs):
    results = []
    for is_compiled in (False, True):
        ndl.manual_seed(0)
        net = fed(Net(specs()))
        if is_compiled:
            net.compile()
        solver = SGDSolver(net=net, base_lr=0.1, momentum=0.9, weight_decay=0.01)
        solver.step(6)
        results.append((solver.losses, [b.data.copy() for b in net.learnable()]))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-4)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-5)


def test_gradients_of_inputs_from_a_compiled_net():
    ndl.manual_seed(0)
    net = fed(Net(mlp(), force_backward=True))
    net.forward()
    expected = net.backward()["x"].copy()
    compiled = fed(Net(mlp(), force_backward=True).compile())
    compiled.share_with(net)
    compiled.forward()
    np.testing.assert_allclose(compiled.backward()["x"], expected, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_compiled():
    specs = [
        *mlp()[:-2],
        LayerSpec("loss", bottom=["scores", "scores"], top=["l"], make=EuclideanLossLayer),
    ]
    with pytest.raises(CompileError, match=r"layer 'loss' .* computes in NumPy"):
        Net(specs).compile()
    net = fed(Net(mlp()).compile())
    with pytest.raises(CompileError, match="runs as a whole"):
        net.forward(end="fc1")
