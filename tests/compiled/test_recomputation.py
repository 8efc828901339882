"""Values that are computed again instead of being kept: checkpoint and memory_budget."""

import numpy as np
import pytest

import needle as ndl
from needle import nn, optim
from needle.errors import CompileError
from needle.nn import functional as F

ROWS, WIDTH = 64, 16


def blocks(kind, count):
    """Residual blocks with much in between."""
    made = []
    for _ in range(count):
        if kind == "dropout":
            layers = [nn.Linear(WIDTH, 8 * WIDTH), nn.GELU(), nn.Dropout(0.3)]
            layers.append(nn.Linear(8 * WIDTH, WIDTH))
        elif kind == "norm":
            layers = [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 8 * WIDTH), nn.SiLU()]
            layers.append(nn.Linear(8 * WIDTH, WIDTH))
        else:
            layers = [nn.Conv2d(4, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()]
            layers.append(nn.Conv2d(16, 4, 3, padding=1))
        made.append(nn.Sequential(*layers))
    return made


def training(kind, count=4, *, is_checkpointed=False, **options):
    """Return a compiled training step, its model and a batch."""
    ndl.manual_seed(0)
    parts = blocks(kind, count)
    model = nn.Sequential(*parts)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    shape = (8, 4, 12, 12) if kind == "conv" else (ROWS, WIDTH)
    x = ndl.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))

    def step(x):
        optimizer.zero_grad()
        h = x
        for part in parts:
            h = h + (ndl.checkpoint(part, h) if is_checkpointed else part(h))
        loss = (h * h).mean()
        loss.backward()
        optimizer.step()
        return loss

    return ndl.compile(step, **options), model, x


def outcome(program, model, x, steps=3):
    losses = [program(x).item() for _ in range(steps)]
    return losses, [p.numpy().copy() for p in model.parameters()]


def assert_same(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", ["dropout", "norm"])
def test_checkpoint_saves_memory_in_compiled_steps(kind):
    plain, model, x = training(kind, 8)
    expected = outcome(plain, model, x)
    saved, model, x = training(kind, 8, is_checkpointed=True)
    assert_same(outcome(saved, model, x), expected)
    arenas = [program.memory_plan(x).arena.nbytes for program in (plain, saved)]
    assert arenas[1] < 0.4 * arenas[0]
    assert "recomputed" in str(saved.graph(x))


@pytest.mark.parametrize(
    ("kind", "shares"), [("dropout", (0.9, 0.6)), ("norm", (0.9, 0.8)), ("conv", (0.99,))]
)
def test_a_budget_is_kept_and_changes_no_bit(kind, shares, monkeypatch):
    monkeypatch.setenv("NEEDLE_VERIFY", "1")
    plain, model, x = training(kind)
    expected = outcome(plain, model, x)
    whole = plain.memory_plan(x)
    outside = whole.peak_bytes - whole.arena.nbytes
    for share in shares:
        budget = int(outside + share * whole.arena.nbytes)
        program, model, x = training(kind, memory_budget=budget)
        assert program.memory_plan(x).peak_bytes <= budget
        assert_same(outcome(program, model, x), expected)
        assert any(node.recomputation for node in program.graph(x).nodes)


def test_a_budget_that_fits_changes_nothing():
    plain, _, x = training("norm")
    same, _, x = training("norm", memory_budget=plain.memory_plan(x).peak_bytes)
    assert str(same.graph(x)) == str(plain.graph(x))


def test_a_budget_that_cannot_be_kept():
    program, _, x = training("norm", memory_budget=10_000)
    with pytest.raises(CompileError, match=r"memory_budget is 10,000: allow at least [\d,]+, or"):
        program(x)
    least = 10_000_000
    program, _, x = training("norm", memory_budget=least)
    program(x)


def test_max_batch_of_a_function_with_a_budget():
    """What does not fit even with everything computed again is too large, and no error."""
    plain, _, x = training("norm")
    budget = 2 * plain.memory_plan(x).peak_bytes
    program, _, x = training("norm", memory_budget=budget)
    most = program.max_batch(10 * budget, x)
    assert most >= plain.max_batch(budget, x)
    assert program.memory_plan(ndl.zeros((most, *x.shape[1:]))).peak_bytes <= budget
    with pytest.raises(CompileError, match="memory_budget"):
        program.memory_plan(ndl.zeros((most + 1, *x.shape[1:])))
    tiny, _, x = training("norm", memory_budget=1000)
    with pytest.raises(CompileError, match=r"memory_budget is 1,000:"):
        tiny.max_batch(budget, x)


def test_long_chains_are_recomputed_in_parts():
    """Nothing is computed again from the beginning of the network."""
    ndl.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(60)]
    optimizer = optim.SGD([p for layer in layers for p in layer.parameters()], lr=0.01)
    x = ndl.asarray(np.random.default_rng(0).standard_normal((2000, WIDTH), dtype=np.float32))

    def step(x):
        optimizer.zero_grad()
        for layer in layers:
            x = F.tanh(layer(x)) * 1.5
        loss = (x * x).mean()
        loss.backward()
        optimizer.step()
        return loss

    plain = ndl.compile(step)
    whole = plain.memory_plan(x)
    budget = whole.peak_bytes - whole.arena.nbytes // 2
    program = ndl.compile(step, memory_budget=budget)
    assert program.memory_plan(x).peak_bytes <= budget
    count, again = len(plain.graph(x).nodes), len(program.graph(x).nodes)
    assert count < again < 2 * count


def test_the_backward_pass_outside_has_no_budget():
    """What is differentiated outside keeps what its backward pass takes; values are the same."""
    w = ndl.Tensor(np.linspace(-1, 1, WIDTH, dtype=np.float32))
    x = ndl.ones((ROWS, WIDTH))

    def loss(x):
        return (F.gelu(x * w) ** 2).sum()

    results = []
    for function in (loss, ndl.compile(loss, memory_budget=10_000_000)):
        w.grad = None
        value = function(x)
        value.backward()
        results.append((value.item(), w.grad.numpy()))
    np.testing.assert_allclose(results[1][0], results[0][0], rtol=1e-6)
    np.testing.assert_allclose(results[1][1], results[0][1], rtol=1e-5)
