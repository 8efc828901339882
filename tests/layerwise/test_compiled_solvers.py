"""Steps of solvers on compiled nets: one native call, and the bits of the steps by layers."""

import numpy as np
import pytest

import needle as ndl
from needle.layerwise import (
    TEST,
    AdaGradSolver,
    AdamSolver,
    LayerSpec,
    NesterovSolver,
    Net,
    RMSPropSolver,
    SGDSolver,
    Solver,
    as_layer,
)
from needle.testing import assert_close

XAVIER = {"weight_filler": {"type": "xavier"}}


def mlp():
    return [
        LayerSpec("data", "Input", top=["x", "y"], options={"shape": [[8, 6], [8]]}),
        LayerSpec("fc1", "InnerProduct", ["x"], ["h"], {"num_output": 16, **XAVIER}),
        LayerSpec("relu", "ReLU", ["h"], ["h"]),
        LayerSpec("drop", "Dropout", ["h"], ["h"], {"dropout_ratio": 0.25}),
        LayerSpec("fc2", "InnerProduct", ["h"], ["scores"], {"num_output": 3, **XAVIER}),
        LayerSpec("loss", "SoftmaxWithLoss", ["scores", "y"], ["loss"], loss_weight=[0.5]),
        LayerSpec("accuracy", "Accuracy", ["scores", "y"], ["accuracy"], phases=[TEST]),
    ]


def solver(kind, *, is_compiled, specs=None, **options):
    ndl.manual_seed(0)
    net = Net(specs or mlp())
    if is_compiled:
        net.compile()
    rng = np.random.default_rng(0)
    net.blobs["x"].data[...] = rng.normal(size=net.blobs["x"].shape)
    net.blobs["y"].data[...] = rng.integers(0, 3, net.blobs["y"].shape)
    return kind(net=net, base_lr=0.1, **options)


def both(kind, specs=None, **options):
    return [solver(kind, is_compiled=c, specs=specs, **options) for c in (False, True)]


def assert_same(one, other):
    assert one.losses == other.losses
    for a, b in zip(one.params, other.params, strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    for a, b in zip(one.history, other.history, strict=True):
        for h, k in zip(a, b, strict=True):
            np.testing.assert_array_equal(h, k)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (SGDSolver, {}),
        (SGDSolver, {"momentum": 0.9, "weight_decay": 0.01}),
        (SGDSolver, {"momentum": 0.9, "lr_policy": "inv", "gamma": 0.1, "power": 0.75}),
        (SGDSolver, {"lr_policy": "step", "gamma": 0.5, "stepsize": 3, "clip_gradients": 0.1}),
        (SGDSolver, {"iter_size": 3, "weight_decay": 0.01, "regularization_type": "L1"}),
        (NesterovSolver, {"momentum": 0.9, "lr_policy": "exp", "gamma": 0.9}),
        (AdaGradSolver, {"weight_decay": 0.1}),
        (RMSPropSolver, {"rms_decay": 0.9}),
        (AdamSolver, {"momentum": 0.9, "lr_policy": "poly", "power": 2, "max_iter": 10}),
        (AdamSolver, {"momentum": 0.9, "iter_size": 2, "clip_gradients": 0.0}),
    ],
)
def test_a_native_step_is_the_step_by_layers(kind, options):
    by_layers, native = both(kind, **options)
    for one in (by_layers, native):
        ndl.manual_seed(1)  # the masks of Dropout
        one.step(6)
    assert_same(by_layers, native)
    assert native.losses[0] != native.losses[-1]
    (program,) = native._native._finish.specializations
    assert program.calls == 6
    assert native._native._gather.specializations == [] or options["iter_size"] > 1


def test_multipliers_and_what_is_changed_between_steps():
    specs = mlp()
    specs[1].param = [{"lr_mult": 2, "decay_mult": 0}, {"lr_mult": 0}]
    two = both(SGDSolver, specs, weight_decay=0.1)
    for one in two:
        ndl.manual_seed(1)
        fixed = one.params[1].data.copy()
        one.step(2)
        np.testing.assert_array_equal(one.params[1].data, fixed)
        one.params[0].lr_mult, one.params[1].lr_mult = 0.0, 1.0
        one.step(2)
        one.config.momentum, one.config.base_lr = 0.9, 0.05
        one.params[2].decay_mult = 3.0
        one.step(2)
        one.params[2].data[...] *= 0.5  # in place, and another array
        one.params[3].reshape(3, 1)
        one.params[3].reshape(3)
        one.step(2)
    assert_same(*two)


def test_a_compiled_run_goes_on_from_its_snapshot(tmp_path):
    whole, first, second = (
        solver(AdamSolver, is_compiled=True, momentum=0.9, specs=[*mlp()[:3], *mlp()[4:]])
        for _ in range(3)
    )
    whole.step(6)
    first.step(3)
    path = first.snapshot(tmp_path / "three.safetensors")
    second.step(1)
    second.restore(path)
    second.step(3)
    assert second.losses[1:] == whole.losses[3:]
    for a, b in zip(whole.params, second.params, strict=True):
        np.testing.assert_array_equal(a.data, b.data)


def test_test_nets_see_what_a_native_step_writes():
    specs = mlp()
    one = solver(SGDSolver, is_compiled=True)
    tests = [Net(specs, TEST), Net(specs, TEST).compile()]
    for net in tests:
        net.share_with(one.net)
        for name in ("x", "y"):
            net.blobs[name].data[...] = one.net.blobs[name].data
    one.step(30)
    found = [float(net.forward()["loss"]) for net in tests]
    assert found[0] == found[1]
    assert 0.5 * found[0] < one.losses[0]  # of which the losses are a half


def test_parameters_of_several_layers_and_statistics():
    """Gradients of all places where a parameter stands add up; BatchNorm keeps its sums."""
    specs = [
        LayerSpec("in", "Input", top=["x", "y"], options={"shape": [[8, 6], [8]]}),
        LayerSpec("a", "InnerProduct", ["x"], ["h"], {"num_output": 6, **XAVIER}, [{"name": "w"}]),
        LayerSpec("bn", "BatchNorm", ["h"], ["h"]),
        LayerSpec("b", "InnerProduct", ["h"], ["z"], {"num_output": 6}, [{"name": "w"}]),
        LayerSpec("loss", "EuclideanLoss", ["z", "x"], ["loss"]),
        LayerSpec("silence", "Silence", ["y"]),
    ]
    by_layers, native = both(SGDSolver, specs, momentum=0.5)
    for one in (by_layers, native):
        one.step(5)
    assert_close(np.array(native.losses), np.array(by_layers.losses), rtol=1e-5)
    assert native.net.params["bn"][2].data[0] > 4
    for a, b in zip(by_layers.params, native.params, strict=True):
        np.testing.assert_allclose(a.data, b.data, rtol=1e-4, atol=1e-6)


def test_modules_as_layers_train_natively():
    def specs(model):
        return [
            LayerSpec("in", "Input", top=["x", "y"], options={"shape": [[8, 6], [8]]}),
            LayerSpec("model", bottom=["x"], top=["s"], make=lambda: as_layer(model)),
            LayerSpec("loss", "SoftmaxWithLoss", ["s", "y"], ["loss"]),
        ]

    ndl.manual_seed(0)
    models = [ndl.nn.Linear(6, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    by_layers, native = (
        solver(SGDSolver, is_compiled=c, specs=specs(models[c]), momentum=0.9) for c in (0, 1)
    )
    for one in (by_layers, native):
        one.step(4)
    assert_same(by_layers, native)
    np.testing.assert_array_equal(models[1].weight.numpy(), native.params[0].data)


def test_solvers_of_ones_own():
    """A rule over an array namespace becomes part of the native call; an update in NumPy does not,
    and is still what happens."""

    class SignSolver(Solver):
        def update(self, xp, data, diff, rate, history):
            data -= rate * xp.sign(diff)

    by_layers, native = both(SignSolver)
    for one in (by_layers, native):
        ndl.manual_seed(1)
        one.step(3)
    assert_same(by_layers, native)

    class Lazy(SGDSolver):
        def apply_update(self):
            if self.iter % 2 == 0:
                super().apply_update()

    by_layers, compiled = both(Lazy)
    for one in (by_layers, compiled):
        ndl.manual_seed(1)
        one.step(3)
    assert_same(by_layers, compiled)
    assert compiled._native is None


def test_weights_lie_as_products_read_them():
    """[outputs, inputs] to whoever looks, and [inputs, outputs] in memory."""
    net = Net(mlp())
    weight = net.params["fc1"][0]
    assert weight.shape == (16, 6)
    assert weight.data.T.flags.c_contiguous
    assert weight.diff.T.flags.c_contiguous
    other = Net(mlp())
    other.share_with(net)
    assert other.params["fc1"][0].is_turned


def test_nothing_to_train():
    specs = mlp()
    for spec in specs:
        spec.param = [{"lr_mult": 0}, {"lr_mult": 0}]
    by_layers, native = both(SGDSolver, specs, clip_gradients=1.0)
    for one in (by_layers, native):
        ndl.manual_seed(1)
        one.step(2)
    assert_same(by_layers, native)
