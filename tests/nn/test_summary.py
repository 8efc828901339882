"""Summaries: counted by hand, and without touching the model."""

import copy
import functools
from dataclasses import asdict

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentTypeError, DeviceError, ShapeError
from needle.shapes import Spec


class Net(nn.Module):
    def __init__(self):
        self.table = nn.Embedding(50, 8)
        self.body = [nn.Linear(8, 8), nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.5))]
        self.head = nn.Linear(8, 50, bias=False)
        self.unused = nn.Linear(3, 3)
        self.mask = nn.Buffer(ndl.ones(8))
        self.constant = ndl.ones(8)

    def forward(self, x):
        y = self.table(x)
        for _ in range(2):
            y = self.body[0](y)
        return self.head(self.body[1](y * self.mask * self.constant)), {"hidden": y}


def test_rows():
    net = Net()
    net.body[0].bias.requires_grad = False
    result = net.summary((4, 5), dtype="int64")
    rows = {row.path: row for row in result.layers}
    assert list(rows) == ["", "table", "body.0", "body.1", "body.1.0", "body.1.1", "head", "unused"]
    assert [row.depth for row in result.layers] == [0, 1, 1, 1, 2, 2, 1, 1]
    assert rows[""].kind == "Net"
    assert rows[""].inputs == (Spec((4, 5), ndl.int64),)
    assert rows[""].outputs == (Spec((4, 5, 50), ndl.float32), Spec((4, 5, 8), ndl.float32))
    assert rows["body.0"].calls == 2
    assert rows["body.0"].flops == 2 * (2 * 20 * 8 * 8 + 20 * 8)
    assert rows["body.0"].parameters == 72
    assert rows["body.0"].trainable == 64
    assert rows["head"].flops == 2 * 20 * 8 * 50
    assert rows["head"].activation_bytes == 20 * 50 * 4
    assert rows[""].buffer_bytes == 32
    assert rows[""].flops == 2 * 20 * 8
    assert rows["unused"].calls == 0
    assert rows["unused"].outputs == ()
    assert result.parameters == sum(p.size for p in net.parameters())
    assert result.trainable == result.parameters - 8
    assert result.parameter_bytes == 4 * result.parameters
    assert result.flops == sum(row.flops for row in result.layers)
    assert asdict(rows["head"])["outputs"] == (((4, 5, 50), ndl.float32),)


def test_the_table():
    text = str(Net().summary((4, 5), dtype="int64"))
    lines = text.splitlines()
    assert lines[0].split() == ["layer", "kind", "output", "parameters", "FLOPs", "activations"]
    assert any(line.startswith("  body.0") and "Linear × 2" in line for line in lines)
    assert any(line.startswith("    0 ") and "LayerNorm" in line for line in lines)
    assert "not called" in text
    assert "32 B of buffers" in text
    assert "for an input of int64[4, 5]" in text


def test_the_model_is_not_touched():
    net = Net()
    calls = []
    net.register_forward_hook(lambda *args: calls.append(args))
    ndl.manual_seed(0)
    state = ndl.random.default_generator().state.tolist()
    before = {k: v.tolist() for k, v in net.state_dict().items()}
    parameters = list(net.parameters())
    net.summary((4, 5), dtype="int64")
    assert calls == []
    assert net.training
    assert [a is b for a, b in zip(parameters, net.parameters(), strict=True)]
    assert {k: v.tolist() for k, v in net.state_dict().items()} == before
    assert net.constant.device.type == "cpu"
    assert ndl.random.default_generator().state.tolist() == state
    assert not ndl.eager.meta_listeners
    assert net(ndl.zeros((4, 5), dtype="int64"))[0].shape == (4, 5, 50)


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer, nn.Linear(4, 4))
    model[2].weight = layer.weight
    result = model.summary((1, 4))
    assert result.parameters == 24
    assert [row.calls for row in result.layers] == [1, 2, 1]


def test_large_models_cost_nothing():
    with nn.defaults(device="meta"):
        model = nn.Sequential(*(nn.Linear(10**5, 10**5) for _ in range(10)))
    assert model.summary((1, 10**5)).parameters == 10 * (10**10 + 10**5)


def test_a_model_with_a_cached_result_and_hooks_that_cannot_be_copied():
    import threading

    class Cached(nn.Module):
        def __init__(self):
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            self.last = self.fc(x)
            return self.last

    model = Cached()
    lock = threading.Lock()
    model.register_forward_hook(functools.partial(lambda lock, *a: None, lock))
    model(ndl.ones((1, 2)))
    assert model.summary((3, 2)).layers[0].outputs == (Spec((3, 2), ndl.float32),)


def test_batch_norm_is_summarised_for_a_single_example():
    assert nn.BatchNorm1d(3).summary((1, 3)).buffer_bytes == 24


def test_inputs_like_a_tensor_and_several():
    attention = nn.MultiheadAttention(8, 2, dtype="float64")
    x = ndl.ones((5, 2, 8), dtype="float64")
    result = nn.summary(attention, x, (5, 2, 8), Spec((5, 2, 8), ndl.float64))
    assert {s.dtype for s in result.inputs} == {ndl.float64}
    assert str(result).endswith("inputs of " + ", ".join(["float64[5, 2, 8]"] * 3))


def test_errors():
    layer = nn.Linear(3, 2)
    with pytest.raises(ArgumentTypeError, match="needs the shape of each input"):
        layer.summary()
    with pytest.raises(ShapeError, match=r"^model: expected last axis 3 \(in_features\)"):
        layer.summary((2, 4))
    with pytest.raises(ArgumentTypeError, match="needs a module"):
        nn.summary(abs, (1,))
    with pytest.raises(ArgumentTypeError, match="shape"):
        layer.summary("x")

    class Reads(nn.Module):
        def forward(self, x):
            return x if x.sum().item() > 0 else -x

    with pytest.raises(DeviceError, match="no values"):
        Reads().summary((2,))


def test_counting_agrees_with_a_real_run():
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Softmax())
    x = np.zeros((3, 4), np.float32)
    for module, row in zip(model, model.summary((3, 4)).layers[1:], strict=True):
        x = module(ndl.asarray(x)).detach().numpy()
        assert row.outputs == (Spec(x.shape, x.dtype),)
    assert copy.deepcopy(model).summary((3, 4)) == model.summary((3, 4))
