"""Linear, activations, losses and penalties, against PyTorch's modules."""

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, ArgumentTypeError, OutOfRangeError, ShapeError


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def both(torch, x):
    """Return ``x`` as a tensor of needle and one of PyTorch, which both require gradients."""
    return ndl.Tensor(x), torch.tensor(x, requires_grad=True)


def assert_same(ours, theirs, inputs, rtol=1e-12):
    """Compare values, and the gradients of a weighted sum by each input."""
    np.testing.assert_allclose(ours.numpy(), theirs.detach().numpy(), rtol=rtol, atol=1e-14)
    weights = normal(*ours.shape, seed=9)
    (ours * ndl.asarray(weights)).sum().backward()
    (theirs * theirs.new_tensor(weights)).sum().backward()
    for a, b in inputs:
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=rtol, atol=1e-13)


@pytest.mark.peers
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_linear_is_pytorchs_after_transposing(bias, lead):
    torch = pytest.importorskip("torch")
    ours = nn.Linear(4, 3, bias=bias, dtype="float64")
    theirs = torch.nn.Linear(4, 3, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(ours.weight.numpy().T.copy()))
        if bias:
            ours.load_state_dict({"bias": normal(3)}, strict=False)
            theirs.bias.copy_(torch.tensor(ours.bias.numpy()))
    x, y = both(torch, normal(*lead, 4))
    assert_same(ours(x), theirs(y), [(x, y)] + ([(ours.bias, theirs.bias)] if bias else []))
    np.testing.assert_allclose(ours.weight.grad.numpy(), theirs.weight.grad.numpy().T, rtol=1e-12)


ACTIVATIONS = [
    ("ReLU", (), ()),
    ("LeakyReLU", (0.2,), (0.2,)),
    ("GELU", (), ()),
    ("GELU", ("tanh",), ("tanh",)),
    ("SiLU", (), ()),
    ("Sigmoid", (), ()),
    ("Tanh", (), ()),
    ("Softplus", (), ()),
    ("Softplus", (3.0,), (3.0,)),
    ("Softmax", (), (-1,)),
    ("Softmax", (0,), (0,)),
    ("LogSoftmax", (1,), (1,)),
]


@pytest.mark.peers
@pytest.mark.parametrize(("name", "args", "peer_args"), ACTIVATIONS)
def test_activations_are_pytorchs(name, args, peer_args):
    torch = pytest.importorskip("torch")
    peer_settings = {"approximate": "tanh"} if peer_args == ("tanh",) else {}
    theirs = getattr(torch.nn, name)(*(() if peer_settings else peer_args), **peer_settings)
    x, y = both(torch, normal(3, 5))
    assert_same(getattr(nn, name)(*args)(x), theirs(y), [(x, y)], rtol=1e-9)


def test_bad_arguments():
    with pytest.raises(ArgumentError, match="approximate"):
        nn.GELU("erf")
    with pytest.raises(ArgumentError, match="positive"):
        nn.Softplus(0)
    with pytest.raises(ArgumentTypeError, match="Softmax: axis"):
        nn.Softmax(None)
    with pytest.raises(ArgumentError, match="in_features must be at least 1"):
        nn.Linear(0, 1)
    with pytest.raises(ArgumentTypeError, match="out_features must be an integer"):
        nn.Linear(1, 1.5)


@pytest.mark.peers
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["MSELoss", "L1Loss", "HuberLoss", "BCEWithLogitsLoss"])
def test_losses_are_pytorchs(name, reduction):
    torch = pytest.importorskip("torch")
    x, y = both(torch, normal(4, 3) * 2)
    target = np.random.default_rng(1).uniform(size=(4, 3))
    ours = getattr(nn, name)(reduction=reduction)(x, ndl.asarray(target))
    assert_same(
        ours, getattr(torch.nn, name)(reduction=reduction)(y, torch.tensor(target)), [(x, y)]
    )


@pytest.mark.peers
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
@pytest.mark.parametrize("tail", [(), (2,)])
def test_classification_losses_are_pytorchs(name, reduction, tail):
    torch = pytest.importorskip("torch")
    x, y = both(torch, normal(4, 5, *tail))
    labels = np.random.default_rng(1).integers(0, 5, (4, *tail))
    labels.flat[0] = -1
    weight = np.random.default_rng(2).uniform(0.5, 2, 5)
    settings = {"ignore_index": -1, "reduction": reduction}
    ours = getattr(nn, name)(weight, **settings)(x, ndl.asarray(labels))
    theirs = getattr(torch.nn, name)(torch.tensor(weight), **settings)(y, torch.tensor(labels))
    assert_same(ours, theirs, [(x, y)])


@pytest.mark.peers
def test_label_smoothing_and_positive_weights_are_pytorchs():
    torch = pytest.importorskip("torch")
    labels = np.array([1, 0, 4])
    x, y = both(torch, normal(3, 5))
    ours = nn.CrossEntropyLoss(label_smoothing=0.1)(x, ndl.asarray(labels))
    theirs = torch.nn.CrossEntropyLoss(label_smoothing=0.1)(y, torch.tensor(labels))
    assert_same(ours, theirs, [(x, y)])
    weight = np.array([1.0, 2.0, 3.0, 0.5, 1.0])
    target = np.random.default_rng(1).uniform(size=(3, 5))
    x, y = both(torch, normal(3, 5))
    ours = nn.BCEWithLogitsLoss(pos_weight=weight)(x, ndl.asarray(target))
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weight))(y, torch.tensor(target))
    assert_same(ours, theirs, [(x, y)])


def test_loss_errors():
    with pytest.raises(ArgumentError, match="MSELoss: reduction must be"):
        nn.MSELoss("average")
    with pytest.raises(ArgumentError, match="label_smoothing must lie in 0 … 1"):
        nn.CrossEntropyLoss(label_smoothing=2)
    with pytest.raises(ArgumentError, match="delta"):
        nn.HuberLoss(delta=-1)
    with pytest.raises(ShapeError, match="same shape"):
        nn.MSELoss()(ndl.zeros((3, 1)), ndl.zeros(3))
    with pytest.raises(OutOfRangeError):
        nn.CrossEntropyLoss()(ndl.zeros((2, 3)), ndl.asarray([0, 3]))
    assert nn.SoftmaxLoss is nn.CrossEntropyLoss
    assert nn.CrossEntropyLoss(weight=[1.0, 2.0]).state_dict() == {}


def test_penalties():
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    flat = np.concatenate([p.numpy().ravel() for p in model.parameters()])
    assert nn.L1Penalty(model, 0.5)().item() == pytest.approx(0.5 * abs(flat).sum())
    penalty = nn.L2Penalty(model, 0.5)
    assert penalty().item() == pytest.approx(0.25 * (flat**2).sum())
    penalty().backward()
    for p in model.parameters():  # the gradient is that of a coupled weight decay
        np.testing.assert_allclose(p.grad.numpy(), 0.5 * p.numpy(), rtol=1e-6)
    one = nn.L1Penalty([model[0].weight, model[0]], 1.0)
    assert one().item() == pytest.approx(abs(model[0].weight.numpy()).sum())
    assert repr(one) == "L1Penalty(weight=1.0)"
    model[1].weight = nn.Parameter([[1.0], [1.0]])
    assert nn.L2Penalty(model[1], 2.0)().item() == 2.0


def test_penalty_errors():
    with pytest.raises(ArgumentError, match="no parameter"):
        nn.L1Penalty(nn.ReLU(), 1.0)
    with pytest.raises(ArgumentTypeError, match="weight must be a number"):
        nn.L1Penalty(nn.Linear(1, 1), None)
    with pytest.raises(ArgumentTypeError, match="takes modules and tensors"):
        nn.L2Penalty(["x"], 1.0)
    with pytest.raises(ArgumentError, match="at least 0"):
        nn.L2Penalty(nn.Linear(1, 1), -1.0)


def test_a_module_sees_one_step_of_descent_reduce_its_loss():
    ndl.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
    x, labels = ndl.asarray(normal(30, 4).astype("float32")), ndl.asarray(np.arange(30) % 3)
    loss, penalty = nn.SoftmaxLoss(), nn.L2Penalty(model, 1e-3)
    values = []
    for _ in range(20):
        model.zero_grad()
        total = loss(model(x), labels) + penalty()
        total.backward()
        with ndl.no_grad():
            for p in model.parameters():
                p -= 0.2 * p.grad
        values.append(total.item())
    assert values[-1] < 0.8 * values[0]
