"""Module: what is found in attributes, modes, hooks, paths in errors, conversion, printing."""

import copy
import gc
import weakref

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentTypeError, DeviceError, DTypeError, ShapeError


class Block(nn.Module):
    def __init__(self, n):
        self.fc = nn.Linear(n, n)

    def forward(self, x):
        return self.fc(x)


class Net(nn.Module):
    """No super().__init__(), and containers of every kind."""

    def __init__(self):
        self.scale = nn.Parameter(ndl.ones(4))
        self.blocks = [Block(4), Block(4), Block(4)]
        self.heads = {"a": nn.Linear(4, 2), 1: nn.Linear(4, 3)}
        self.pairs = ((nn.Parameter([1.0]), [nn.Buffer([1, 2])]), None, "text")
        self.count = nn.Buffer(0, dtype="int64")
        self.table = nn.Buffer(ndl.zeros(2), persistent=False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["a"](x * self.scale)


def test_everything_in_attributes_is_found_and_named_by_its_place():
    net = Net()
    assert [n for n, _ in net.named_parameters()] == [
        "scale",
        "pairs.0.0",
        "blocks.0.fc.weight",
        "blocks.0.fc.bias",
        "blocks.1.fc.weight",
        "blocks.1.fc.bias",
        "blocks.2.fc.weight",
        "blocks.2.fc.bias",
        "heads.a.weight",
        "heads.a.bias",
        "heads.1.weight",
        "heads.1.bias",
    ]
    assert [n for n, _ in net.named_buffers()] == ["pairs.0.1.0", "count", "table"]
    assert [n for n, _ in net.named_children()] == [
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "heads.a",
        "heads.1",
    ]
    assert [n for n, _ in net.named_modules()][:3] == ["", "blocks.0", "blocks.0.fc"]
    assert [n for n, _ in net.named_parameters("model", recurse=False)] == [
        "model.scale",
        "model.pairs.0.0",
    ]
    assert len(list(net.buffers(recurse=False))) == 3
    assert len(list(net.modules())) == 9


def test_a_shared_parameter_is_yielded_once():
    class Tied(nn.Module):
        def __init__(self):
            self.a = nn.Linear(2, 2)
            self.b = nn.Linear(2, 2)
            self.b.weight = self.a.weight
            self.again = self.a

        def forward(self, x):
            return self.b(self.a(x))

    tied = Tied()
    assert [n for n, _ in tied.named_parameters()] == ["a.weight", "a.bias", "b.bias"]
    assert [n for n, _ in tied.named_children()] == ["a", "b"]
    twin = copy.deepcopy(tied)
    assert twin.b.weight is twin.a.weight is not tied.a.weight
    assert twin.again is twin.a


def test_a_reference_to_a_parent_and_a_list_inside_itself_end():
    net = Net()
    net.blocks[0].parent = net
    loop = [nn.Linear(1, 1)]
    loop.append(loop)
    net.loop = loop
    assert "loop.0.weight" in dict(net.named_parameters())
    net.train(False)
    net.apply(lambda module: None)
    assert "loop.0.weight" in net.state_dict()


def test_many_shared_modules_do_not_take_exponential_time():
    module = nn.Linear(1, 1)
    for _ in range(60):
        module = nn.Sequential(module, module)
    assert len(list(module.parameters())) == 2
    module.eval()


def test_a_plain_tensor_that_looks_like_a_parameter_is_refused():
    net = Net()
    with pytest.raises(ArgumentTypeError, match=r"Net\.w is a plain tensor.*nn\.Parameter"):
        net.w = ndl.Tensor([1.0])
    with pytest.raises(ArgumentTypeError, match=r"Net\.ws\[1\]"):
        net.ws = [nn.Parameter([1.0]), ndl.Tensor([1.0])]
    with pytest.raises(ArgumentTypeError, match=r"Net\.ws\['k'\]"):
        net.ws = {"k": ndl.Tensor([1.0])}
    net.constant = ndl.asarray([1.0])
    net.cache = net.scale * 2  # computed: has a history, is no leaf
    assert not {"constant", "cache"} & {n for n, _ in net.named_parameters()}


def test_a_parameter_is_not_lost_by_assignment():
    net = Net()
    with pytest.raises(ArgumentTypeError, match=r"Net\.scale is a Parameter.*copy_"):
        net.scale = net.scale * 2
    with ndl.no_grad():
        net.scale *= 2
    assert isinstance(net.scale, nn.Parameter)
    assert net.scale.tolist() == [2.0] * 4
    net.scale = None
    net.scale = nn.Parameter([1.0])


def test_a_buffer_stays_a_buffer_when_it_is_assigned():
    net = Net()
    net.count = net.count + 1
    assert isinstance(net.count, nn.Buffer)
    assert net.count.persistent
    assert net.count.item() == 1
    net.table = net.table + net.scale.sum()
    assert isinstance(net.table, nn.Buffer)
    assert not net.table.persistent


def test_a_computed_value_in_a_buffer_keeps_its_history():
    class State(nn.Module):
        def __init__(self):
            self.w = nn.Parameter(2.0)
            self.h = nn.Buffer(1.0)

        def forward(self):
            self.h = self.h * self.w
            return self.h

    state = State()
    state()
    state().backward()
    assert state.w.grad.item() == 4.0  # d(w²)/dw


def test_training_mode():
    net = Net()
    assert net.training
    assert net.eval() is net
    assert not any(m.training for m in net.modules())
    net.train()
    assert all(m.training for m in net.modules())
    with pytest.raises(ArgumentTypeError, match="True or False"):
        net.train(ndl.ones(1))


def test_apply_goes_from_inside_out():
    order = []
    net = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Tanh()), nn.GELU())
    net.apply(lambda module: order.append(type(module).__name__))
    assert order == ["ReLU", "Tanh", "Sequential", "GELU", "Sequential"]


def test_gradients_can_be_dropped_and_parameters_frozen():
    layer = nn.Linear(3, 2)
    layer(ndl.ones((1, 3))).sum().backward()
    assert layer.weight.grad is not None
    layer.zero_grad()
    assert layer.weight.grad is None
    assert layer.requires_grad_(False) is layer
    assert not layer(ndl.ones((1, 3))).requires_grad


def test_hooks_see_and_replace_and_can_be_removed():
    layer = nn.Linear(2, 2)
    seen = []
    before = layer.register_forward_pre_hook(lambda m, args: (args[0] * 0,))
    first = layer.register_forward_hook(lambda m, args, out: seen.append((m, args, out)))
    after = layer.register_forward_hook(lambda m, args, out: out + 1)
    assert layer(ndl.ones((1, 2))).tolist() == [[1.0, 1.0]]
    module, args, out = seen[0]
    assert module is layer
    assert args[0].tolist() == [[0.0, 0.0]]
    assert out.tolist() == [[0.0, 0.0]]
    before.remove()
    first()
    with after:
        pass
    after.remove()
    assert len(seen) == 1
    assert layer(ndl.ones((1, 2))).tolist() == (ndl.ones((1, 2)) @ layer.weight).tolist()
    with pytest.raises(ArgumentTypeError, match="callable"):
        layer.register_forward_hook(1)


def test_a_pre_hook_may_return_a_single_argument():
    layer = nn.Identity()
    layer.register_forward_pre_hook(lambda m, args: args[0] + 1)
    assert layer(ndl.zeros(1)).tolist() == [1.0]


def test_a_hook_may_remove_itself():
    layer = nn.Identity()
    calls = []
    handle = layer.register_forward_hook(lambda *a: (calls.append(1), handle.remove())[1])
    layer.register_forward_hook(lambda *a: calls.append(2))
    layer(ndl.zeros(1))
    layer(ndl.zeros(1))
    assert calls == [1, 2, 2]


def test_an_error_names_the_path_of_the_layer():
    net = Net()
    net.blocks[2].fc = nn.Linear(6, 4)
    with pytest.raises(ShapeError) as caught:
        net(ndl.ones((2, 4)))
    assert str(caught.value) == (
        "model.blocks.2.fc: expected last axis 6 (in_features), got 4 in shape [2, 4]"
    )


def test_an_error_names_a_layer_that_its_parents_parent_calls():
    class Outer(nn.Module):
        def __init__(self):
            self.inner = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(3, 3)))

        def forward(self, x):
            return self.inner[1][0](x)

    with pytest.raises(ShapeError, match=r"^model\.inner\.1\.0: "):
        Outer()(ndl.ones((1, 2)))


def test_a_path_is_found_for_a_module_that_stands_nowhere():
    hidden = nn.Linear(3, 3)

    class Outer(nn.Module):
        def forward(self, x):
            return hidden(x)

    with pytest.raises(ShapeError, match=r"^model\.0: expected"):
        nn.Sequential(Outer())(ndl.ones((1, 2)))


def test_errors_of_wrong_inputs():
    layer = nn.Linear(2, 3)
    with pytest.raises(ArgumentTypeError, match=r"^model: expected a tensor.*str"):
        layer("text")
    with pytest.raises(ArgumentTypeError, match="NoneType"):
        layer(None)
    with pytest.raises(ShapeError, match=r"last axis of 2 \(in_features\)"):
        layer(1.0)
    assert layer(np.ones((4, 2), np.float32)).shape == (4, 3)
    assert layer([[1, 2]]).shape == (1, 3)
    with pytest.raises(NotImplementedError, match="Empty has no forward"):
        type("Empty", (nn.Module,), {})()(1)


def test_conversion_keeps_the_objects():
    net = Net()
    before = list(net.parameters())
    net(ndl.ones((1, 4))).sum().backward()
    assert net.to("float64") is net
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    assert {p.dtype for p in net.parameters()} == {ndl.float64}
    assert net.scale.grad.dtype == ndl.float64
    assert net.count.dtype == ndl.int64
    net.zero_grad()
    net(ndl.ones((1, 4), dtype="float64")).sum().backward()
    assert net.scale.grad.dtype == ndl.float64
    net.to(ndl.bfloat16)
    assert net.scale.dtype == ndl.bfloat16
    with pytest.raises(DTypeError, match="floating"):
        net.to(ndl.int32)


def test_conversion_leaves_recorded_graphs_right():
    layer = nn.Linear(2, 2)
    y = layer(ndl.asarray([[1.0, 2.0]])).sum()
    expected = layer.weight.tolist()
    layer.to(ndl.float64)
    y.backward()
    assert layer.weight.tolist() == pytest.approx(np.asarray(expected))
    assert layer.bias.grad.tolist() == [1.0, 1.0]


def test_meta_device():
    net = Net().to("meta")
    assert net.scale.device.type == "meta"
    assert net(ndl.zeros((5, 4), device="meta")).shape == (5, 2)
    with pytest.raises(DeviceError, match="no values"):
        net.to("cpu")
    with ndl.nn.defaults(device="meta", dtype="float64"):
        layer = nn.Linear(10**6, 10**6)
    assert layer.weight.size == 10**12
    assert layer.weight.dtype == ndl.float64
    assert nn.Linear(1, 1).weight.device.type == "cpu"
    assert copy.deepcopy(layer).weight.device.type == "meta"


def test_copies_are_independent():
    net = Net()
    twin = copy.deepcopy(net)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in twin.parameters())
    assert not twin.table.persistent
    with ndl.no_grad():
        twin.scale += 1
    assert net.scale.tolist() == [1.0] * 4
    assert twin.state_dict().keys() == net.state_dict().keys()


def test_a_model_made_in_inference_mode_can_be_trained():
    with ndl.inference_mode():
        layer = nn.Linear(2, 2)
    layer(ndl.ones((1, 2))).sum().backward()
    assert layer.bias.grad.tolist() == [1.0, 1.0]


def test_a_dropped_module_is_freed_at_once():
    gc.disable()
    try:
        net = Net()
        net(ndl.ones((1, 4)))
        alive = weakref.ref(net)
        del net
        assert alive() is None
    finally:
        gc.enable()


def test_repr_shows_the_tree():
    class Wide(nn.Module):
        def __init__(self):
            self.stem = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU())
            self.blocks = [nn.Identity() for _ in range(3)]

        def extra_repr(self):
            return "width=4"

    assert repr(Wide()) == (
        "Wide(\n"
        "  width=4\n"
        "  (stem): Sequential(\n"
        "    (0): Linear(in_features=4, out_features=3, bias=False)\n"
        "    (1): ReLU()\n"
        "  )\n"
        "  (blocks.0-2): 3 × Identity()\n"
        ")"
    )


def test_parameters_and_buffers():
    array = np.ones(3, np.float32)
    parameter = nn.Parameter(array)
    array[0] = 5
    assert parameter.tolist() == [5.0, 1.0, 1.0]
    assert parameter.is_leaf
    assert parameter.requires_grad
    assert not nn.Parameter(1.0, requires_grad=False).requires_grad
    frozen = np.ones(3, np.float32)
    frozen.flags.writeable = False
    with ndl.no_grad():
        p = nn.Parameter(frozen)
        p += 1
    with pytest.raises(DTypeError, match=r"int64 data cannot be trained.*Buffer"):
        nn.Parameter(np.arange(3))
    assert nn.Parameter([1, 2]).dtype == ndl.float32
    x = ndl.Tensor([2.0])
    assert nn.Parameter(x * x).is_leaf
    assert nn.Parameter(ndl.zeros(2, device="meta")).device.type == "meta"
    assert nn.Parameter(ndl.zeros(2), dtype="float64").dtype == ndl.float64
    assert type(parameter * 2) is ndl.Tensor


def test_a_write_through_the_source_of_a_parameter_is_seen():
    source = ndl.zeros(2)
    parameter = nn.Parameter(source)
    y = parameter * parameter
    source += 1
    with pytest.raises(ndl.errors.GradientError, match="overwritten"):
        y.sum().backward()
