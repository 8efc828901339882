"""Small models run for real: against a twin in PyTorch, and by what they promise."""

import numpy as np
import pytest

import needle as ndl
from needle import models, nn


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def torch_cifar_resnet(torch, p, x, blocks, pre_activation):
    """CifarResNet in training mode, written with PyTorch's functions and our parameters ``p``."""
    F = torch.nn.functional

    def norm(name, y):
        return F.batch_norm(y, None, None, p[f"{name}.weight"], p[f"{name}.bias"], training=True)

    y = F.conv2d(x, p["conv.weight"], padding=1)
    if not pre_activation:
        y = F.relu(norm("norm", y))
    for i in range(blocks):
        name, before = f"blocks.{i}", y
        first = p[f"{name}.conv1.weight"]
        stride = 2 if first.shape[0] > first.shape[1] else 1
        shortcut = before[:, :, ::stride, ::stride]
        extra = (first.shape[0] - first.shape[1]) // 2
        shortcut = F.pad(shortcut, (0, 0, 0, 0, extra, extra))
        if pre_activation:
            y = F.conv2d(F.relu(norm(f"{name}.norm1", y)), first, stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(f"{name}.norm2", y)), p[f"{name}.conv2.weight"], padding=1)
            y = shortcut + y
        else:
            y = F.relu(norm(f"{name}.norm1", F.conv2d(y, first, stride=stride, padding=1)))
            y = norm(f"{name}.norm2", F.conv2d(y, p[f"{name}.conv2.weight"], padding=1))
            y = F.relu(shortcut + y)
    if pre_activation:
        y = F.relu(norm("norm", y))
    return y.mean((2, 3)) @ p["fc.weight"] + p["fc.bias"]


@pytest.mark.peers
@pytest.mark.parametrize("pre_activation", [False, True])
def test_cifar_resnet_equals_its_twin(pre_activation):
    torch = pytest.importorskip("torch")
    with nn.defaults(dtype="float64", generator=ndl.Generator(0)):
        model = models.CifarResNet(8, pre_activation=pre_activation)
    x, y = normal(3, 3, 16, 16), ndl.asarray([1, 7, 3])
    loss = nn.CrossEntropyLoss()(model(ndl.asarray(x)), y)
    loss.backward()
    p = {n: torch.tensor(t.numpy(), requires_grad=True) for n, t in model.state_dict().items()}
    logits = torch_cifar_resnet(torch, p, torch.tensor(x), 3, pre_activation)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(y.tolist()))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(
            parameter.grad.numpy(), p[name].grad.numpy(), rtol=1e-6, atol=1e-10, err_msg=name
        )


def torch_block(torch, p, x, stride, pre_activation, convolutions):
    """One block of an ImageNet ResNet in training mode."""
    F = torch.nn.functional

    def norm(place, y):
        return F.batch_norm(y, None, None, p[f"{place}.weight"], p[f"{place}.bias"], training=True)

    strided = 1 if convolutions == 2 else 2
    active = F.relu(norm("norm1", x)) if pre_activation else x
    y = active
    for i in range(1, convolutions + 1):
        weight = p[f"conv{i}.weight"]
        if pre_activation and i > 1:
            y = F.relu(norm(f"norm{i}", y))
        y = F.conv2d(y, weight, stride=stride if i == strided else 1, padding=weight.shape[-1] // 2)
        if not pre_activation:
            y = norm(f"norm{i}", y)
            y = F.relu(y) if i < convolutions else y
    if pre_activation:
        return y + F.conv2d(active, p["shortcut.weight"], stride=stride)
    shortcut = F.conv2d(x, p["shortcut.0.weight"], stride=stride)
    return F.relu(y + norm("shortcut.1", shortcut))


@pytest.mark.peers
@pytest.mark.parametrize("pre_activation", [False, True])
@pytest.mark.parametrize("name", ["BasicBlock", "Bottleneck"])
def test_blocks_of_resnet_equal_their_twins(name, pre_activation):
    torch = pytest.importorskip("torch")
    from needle.models import resnet

    with nn.defaults(dtype="float64", generator=ndl.Generator(0)):
        block = getattr(resnet, name)(4, 6, 2, pre_activation)
    x = normal(3, 4, 8, 8)
    p = {n: torch.tensor(t.numpy()) for n, t in block.state_dict().items()}
    convolutions = 2 if name == "BasicBlock" else 3
    expected = torch_block(torch, p, torch.tensor(x), 2, pre_activation, convolutions)
    np.testing.assert_allclose(
        block(ndl.asarray(x)).numpy(), expected.numpy(), rtol=1e-9, atol=1e-12
    )


def train(model, loss, steps=30, rate=0.1):
    """Return the loss at the first and at the last of some steps of gradient descent."""
    values = []
    for _ in range(steps):
        model.zero_grad()
        value = loss(model)
        value.backward()
        with ndl.no_grad():
            for p in model.parameters():
                p -= rate * p.grad
        values.append(value.item())
    return values[0], values[-1]


@pytest.mark.parametrize(
    ("make", "shape", "rate"),
    [
        (lambda: models.MLP(16, 32, 16, 3), (12, 4, 4), 0.1),
        (lambda: models.MLP(16, 32, 3, activation=nn.Tanh, dropout=0.1), (12, 16), 0.1),
        (lambda: models.MLPResNet(16, 20, 2, 3), (12, 16), 0.05),
        (lambda: models.MLPResNet(16, 20, 2, 3, norm=nn.LayerNorm, dropout=0.0), (12, 16), 0.05),
        (lambda: models.LeNet(classes=3), (6, 1, 28, 28), 0.1),
        (lambda: models.CifarResNet(8, 3), (6, 3, 16, 16), 0.02),
        (lambda: models.CifarResNet(8, 3, pre_activation=True), (6, 3, 16, 16), 0.02),
    ],
)
def test_classifiers_learn(make, shape, rate):
    ndl.manual_seed(1)
    model = make()
    x = ndl.asarray(normal(*shape).astype("float32"))
    labels = ndl.asarray(np.arange(shape[0]) % 3)
    first, last = train(model, lambda m: nn.SoftmaxLoss()(m(x), labels), rate=rate)
    assert last < 0.7 * first


def small_gpt():
    config = models.GPTConfig(vocabulary=11, context=8, layers=2, heads=2, width=16)
    with nn.defaults(generator=ndl.Generator(3)):
        return models.GPT(config)


def test_gpt_does_not_see_the_future():
    model = small_gpt().eval()
    tokens = np.random.default_rng(0).integers(0, 11, (2, 8))
    other = tokens.copy()
    other[:, 5:] = (other[:, 5:] + 1) % 11
    a, b = model(ndl.asarray(tokens)).numpy(), model(ndl.asarray(other)).numpy()
    np.testing.assert_allclose(a[:, :5], b[:, :5], rtol=1e-5, atol=1e-6)
    assert abs(a[:, 5:] - b[:, 5:]).max() > 1e-4


def test_head_of_gpt_is_its_embedding():
    model = small_gpt()
    assert not any("head" in name for name, _ in model.named_parameters())
    model(ndl.zeros((1, 4), dtype="int64")).sum().backward()
    assert (model.tokens.weight.grad != 0).all(axis=1).any().item()


def test_gpt_learns_a_sequence():
    model = small_gpt()
    tokens = np.arange(18).reshape(2, 9) % 11
    x, y = ndl.asarray(tokens[:, :-1]), ndl.asarray(tokens[:, 1:].reshape(-1))
    first, last = train(
        model, lambda m: nn.SoftmaxLoss()(m(x).reshape(16, 11), y), steps=40, rate=0.3
    )
    assert first == pytest.approx(np.log(11), abs=0.1)
    assert last < 0.5 * first


def test_language_model_may_be_run_in_pieces_and_learns():
    ndl.manual_seed(2)
    model = models.LSTMLanguageModel(11, embedding=8, hidden=16, layers=2)
    tokens = np.arange(18).reshape(2, 9) % 11
    x = ndl.asarray(tokens[:, :-1])
    whole, _ = model(x)
    first, state = model(x[:, :3])
    second, _ = model(x[:, 3:], state)
    np.testing.assert_allclose(
        ndl.concat([first, second], axis=1).numpy(), whole.numpy(), rtol=1e-4, atol=1e-6
    )
    y = ndl.asarray(tokens[:, 1:].reshape(-1))
    start, end = train(
        model, lambda m: nn.SoftmaxLoss()(m(x)[0].reshape(16, 11), y), steps=60, rate=1.0
    )
    assert end < 0.8 * start


def test_state_of_a_model_round_trips():
    a, b = small_gpt(), small_gpt()
    with ndl.no_grad():
        for p in a.parameters():
            p += 1
    b.load_state_dict(a.state_dict())
    x = ndl.zeros((1, 4), dtype="int64")
    assert a(x).tolist() == b(x).tolist()
