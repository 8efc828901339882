"""Sequential, ModuleList, ModuleDict, Identity, Residual."""

import copy

import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, ArgumentTypeError, OutOfRangeError, ShapeError


def names(module):
    return [n for n, _ in module.named_children()]


def test_sequential_indexing():
    a, b, c = nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)
    model = nn.Sequential(a, b, c)
    assert len(model) == 3
    assert list(model) == [a, b, c]
    assert model[0] is a
    assert model[-1] is c
    assert list(model[1:]) == [b, c]
    assert names(model[1:]) == ["0", "1"]
    assert list(model[5:]) == []
    with pytest.raises(OutOfRangeError, match="index 3 is out of range, it has 3"):
        model[3]
    model[1] = nn.Tanh()
    assert isinstance(model[1], nn.Tanh)
    del model[1]
    assert names(model) == ["0", "1"]
    assert model.append(nn.ReLU()) is model
    model.extend([nn.Tanh()])
    assert names(model) == ["0", "1", "2", "3"]


def test_sequential_of_names():
    model = nn.Sequential({"fc": nn.Linear(2, 3), "act": nn.ReLU()})
    assert model.fc is model[0] is model["fc"]
    assert [n for n, _ in model.named_parameters()] == ["fc.weight", "fc.bias"]
    assert names(model[:1]) == ["fc"]
    with pytest.raises(OutOfRangeError, match="there is no module 'x'; it has fc, act"):
        model["x"]
    with pytest.raises(AttributeError, match="no attribute or module 'x'"):
        model.x  # noqa: B018
    del model[0]
    assert names(model) == ["act"]
    assert copy.deepcopy(model).act is not model.act


def test_sequential_is_the_snippet():
    linear_block = nn.Sequential(nn.Linear(28 * 28, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
    assert linear_block(ndl.zeros((5, 784))).shape == (5, 64)


def test_empty_containers():
    assert nn.Sequential()(1) == 1
    assert bool(nn.Sequential())
    assert len(nn.ModuleList()) == 0
    assert repr(nn.Sequential()) == "Sequential()"


def test_sequential_refuses_what_is_no_module():
    with pytest.raises(ArgumentTypeError, match=r"item 1 is the class ReLU.*write ReLU\("):
        nn.Sequential(nn.Linear(1, 1), nn.ReLU)
    with pytest.raises(ArgumentTypeError, match="unpack it"):
        nn.Sequential([nn.ReLU()])
    with pytest.raises(ArgumentTypeError, match="item 0 must be a module, got builtin_function"):
        nn.Sequential(abs)
    with pytest.raises(ArgumentError, match="no name"):
        nn.Sequential({"a.b": nn.ReLU()})
    with pytest.raises(ArgumentError, match="'forward'"):
        nn.Sequential({"forward": nn.ReLU()})
    with pytest.raises(ArgumentTypeError, match="names are strings"):
        nn.Sequential({1: nn.ReLU()})


def test_a_subclass_may_have_more_attributes():
    class Scaled(nn.Sequential):
        def __init__(self, *modules):
            super().__init__(*modules)
            self.scale = nn.Parameter(2.0)

        def forward(self, x):
            return super().forward(x) * self.scale

    model = Scaled(nn.Identity())
    assert [n for n, _ in model.named_parameters()] == ["scale"]
    assert model(ndl.ones(1)).tolist() == [2.0]


def test_a_subclass_that_forgets_init_is_told():
    class Forgetful(nn.Sequential):
        def __init__(self):
            pass

    with pytest.raises(AttributeError, match=r"call super\(\).__init__\(\) first"):
        Forgetful()(1)


def test_module_list():
    layers = nn.ModuleList([nn.ReLU(), nn.Tanh()])
    layers.insert(0, nn.GELU())
    layers.append(nn.SiLU())
    assert [type(m).__name__ for m in layers] == ["GELU", "ReLU", "Tanh", "SiLU"]
    assert names(layers) == ["0", "1", "2", "3"]
    del layers[1]
    layers[-1] = nn.Identity()
    assert [type(m).__name__ for m in layers[1:]] == ["Tanh", "Identity"]
    with pytest.raises(ArgumentTypeError, match="class ReLU"):
        layers.append(nn.ReLU)
    with pytest.raises(NotImplementedError, match="ModuleList has no forward"):
        layers(1)


def test_module_dict():
    heads = nn.ModuleDict({"a": nn.ReLU()})
    heads["b"] = nn.Tanh()
    assert list(heads) == ["a", "b"]
    assert list(heads.keys()) == ["a", "b"]
    assert "a" in heads
    assert [type(m).__name__ for m in heads.values()] == ["ReLU", "Tanh"]
    assert dict(heads.items())["b"] is heads.b
    del heads["a"]
    assert len(heads) == 1
    with pytest.raises(OutOfRangeError, match="there is no module 'a'"):
        heads["a"]
    with pytest.raises(ArgumentError, match="'keys'"):
        heads["keys"] = nn.ReLU()


def test_residual():
    block = nn.Residual(nn.Linear(3, 3))
    x = ndl.ones((2, 3))
    assert block(x).tolist() == (x + block.module(x)).tolist()
    with pytest.raises(
        ShapeError, match=r"^model: Residual: the module turns \[2, 3\] into \[2, 4\]"
    ):
        nn.Residual(nn.Linear(3, 4))(x)
    with pytest.raises(ArgumentTypeError, match="class ReLU"):
        nn.Residual(nn.ReLU)
