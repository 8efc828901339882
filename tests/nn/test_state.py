"""State dicts: out, in, and what is said about those that do not fit."""

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentTypeError, StateDictError


def mlp():
    return nn.Sequential({"fc1": nn.Linear(4, 3), "act": nn.ReLU(), "fc2": nn.Linear(3, 2)})


class Counter(nn.Module):
    def __init__(self):
        self.count = nn.Buffer(0, dtype="int64")
        self.table = nn.Buffer(ndl.zeros(2), persistent=False)


class Tied(nn.Module):
    def __init__(self):
        self.a = nn.Linear(2, 2, bias=False)
        self.b = nn.Linear(2, 2)
        self.b.weight = self.a.weight


def test_round_trip():
    a, b = mlp(), mlp()
    storages = [p._data for p in b.parameters()]
    report = b.load_state_dict(a.state_dict())
    assert report == nn.LoadReport([], [])
    for p, q, storage in zip(a.parameters(), b.parameters(), storages, strict=True):
        np.testing.assert_array_equal(p.numpy(), q.numpy())
        assert q._data is storage
        assert q._data is not p._data


def test_state_shares_the_storage_and_has_no_history():
    model = mlp()
    state = model.state_dict("model")
    assert list(state) == [f"model.{n}" for n, _ in model.named_parameters()]
    assert not any(t.requires_grad for t in state.values())
    with ndl.no_grad():
        model.fc1.bias += 1
    assert state["model.fc1.bias"].tolist() == [1.0, 1.0, 1.0]


def test_values_may_be_arrays_of_another_dtype():
    layer = nn.Linear(2, 1)
    layer.load_state_dict({"weight": np.ones((2, 1)), "bias": [2.0]})
    assert layer.weight.dtype == ndl.float32
    assert layer(ndl.ones((1, 2))).tolist() == [[4.0]]


def test_only_persistent_buffers_are_in_it():
    assert list(Counter().state_dict()) == ["count"]


def test_one_error_reports_all_that_does_not_fit():
    model = mlp()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {
        "fc1.weight": ndl.zeros((4, 3)),
        "fc1.bais": ndl.zeros(3),
        "fc2.weight": ndl.zeros((2, 3)),
        "fc2.bias": ndl.zeros(5),
    }
    with pytest.raises(StateDictError) as caught:
        model.load_state_dict(state)
    assert str(caught.value) == (
        "the state dict does not fit Sequential:\n"
        "  missing (1): fc1.bias [3]\n"
        "  unexpected (1): fc1.bais [3] (did you mean fc1.bias?)\n"
        "  other shape (2): fc2.weight is [3, 2], got [2, 3] (the transpose: needle keeps weights "
        "as [in, out], PyTorch as [out, in]), fc2.bias is [2], got [5]"
    )
    for key, value in model.state_dict().items():  # all or nothing
        assert value.tolist() == before[key].tolist()


def test_not_strict_reports_and_loads_the_rest():
    model = mlp()
    report = model.load_state_dict({"fc1.bias": ndl.ones(3), "other": ndl.ones(1)}, strict=False)
    assert report.missing == ["fc1.weight", "fc2.weight", "fc2.bias"]
    assert report.unexpected == ["other"]
    assert model.fc1.bias.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(StateDictError, match="other shape"):
        model.load_state_dict({"fc1.bias": ndl.ones(4)}, strict=False)


def test_bad_values():
    layer = nn.Linear(2, 1)
    with pytest.raises(StateDictError, match=r"weight: .*NoneType"):
        layer.load_state_dict({"weight": None, "bias": ndl.zeros(1)})
    with pytest.raises(ArgumentTypeError, match="list"):
        layer.load_state_dict([1])
    with pytest.raises(StateDictError, match="count: is int64, got float32, which would lose"):
        Counter().load_state_dict({"count": 1.5})
    with (
        nn.defaults(device="meta"),
        pytest.raises(StateDictError, match="meta device, which holds no values"),
    ):
        nn.Linear(2, 1).load_state_dict(layer.state_dict())
    with pytest.raises(StateDictError, match="missing"):
        layer.load_state_dict({})


def test_shared_parameters():
    tied = Tied()
    assert list(tied.state_dict()) == ["a.weight", "b.bias"]
    ones = ndl.ones((2, 2))
    tied.load_state_dict({"b.weight": ones, "b.bias": ndl.zeros(2)})
    assert tied.a.weight.tolist() == ones.tolist()
    tied.load_state_dict({"a.weight": ones * 2, "b.weight": ones * 2, "b.bias": ndl.zeros(2)})
    assert tied.a.weight.tolist() == (ones * 2).tolist()
    with pytest.raises(StateDictError, match=r"a\.weight and b\.weight are one shared parameter"):
        tied.load_state_dict({"a.weight": ones, "b.weight": ones * 2, "b.bias": ndl.zeros(2)})


def test_exchanging_parameters_through_their_own_storage():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    first, second = model[0].weight.tolist(), model[1].weight.tolist()
    state = model.state_dict()
    state["0.weight"], state["1.weight"] = state["1.weight"], state["0.weight"]
    model.load_state_dict(state)
    assert model[0].weight.tolist() == second
    assert model[1].weight.tolist() == first


def test_loading_is_seen_by_recorded_graphs():
    layer = nn.Linear(2, 2)
    y = layer(layer(ndl.ones((1, 2)))).sum()
    layer.load_state_dict(nn.Linear(2, 2).state_dict())
    with pytest.raises(ndl.errors.GradientError, match="overwritten"):
        y.backward()


def test_two_tensors_of_one_path():
    class Clash(nn.Module):
        def __init__(self):
            self.parts = {"1": nn.Parameter(1.0), 1: nn.Parameter(2.0)}

    with pytest.raises(StateDictError, match=r"two tensors of Clash have the path 'parts\.1'"):
        Clash().state_dict()
