"""compile(check=True) on whole training steps: no false alarms, and the wrong op by name."""

from __future__ import annotations

from typing import Any

import pytest
from compiled_models import OPTIMIZERS, PROBLEMS, SEQUENCES, Problem, batches, tokens

import needle as ndl
from needle import nn, optim
from needle.errors import DivergenceError
from needle.ops.record import REGISTRY


class Recurrent(nn.Module):
    """Classifies a sequence by the last hidden state."""

    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__()
        self.cell = cell(6, 12, batch_first=True, bidirectional=True, **options)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.cell(x)[0][:, -1])


MODELS = {
    "rnn": Problem(lambda _: Recurrent(nn.RNN), (8, 4, 6)),
    "gru": Problem(lambda _: Recurrent(nn.GRU), (8, 4, 6)),
    **SEQUENCES,
    **{name: PROBLEMS[name] for name in ("mlp-resnet", "cnn", "transformer")},
}


def checked(problem: Problem, optimizer: str, dtype: str, steps: int) -> list[float]:
    """Return the losses of checked training."""
    ndl.manual_seed(0)
    model = problem.make(0.1).to(dtype)
    update = OPTIMIZERS[optimizer](model.parameters())

    @ndl.compile(check=True)
    def step(x: Any, y: Any) -> Any:
        update.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optim.clip_grad_norm_(model.parameters(), 1.0)
        update.step()
        return loss.detach()

    data = tokens(problem, steps) if problem.vocabulary else batches(problem.shape, steps, dtype)
    return [step(x, y).item() for x, y in data]


@pytest.mark.parametrize(("optimizer", "dtype"), [("adamw", "float32"), ("momentum", "float64")])
@pytest.mark.parametrize("model", MODELS)
def test_right_steps_raise_no_alarm(model, optimizer, dtype):
    losses = checked(MODELS[model], optimizer, dtype, 6)
    assert len(set(losses)) == 6


@pytest.mark.parametrize(
    ("model", "op", "named", "file"),
    [
        ("rnn", "tanh", "loop", "test_checked_steps.py"),
        ("lstm", "sigmoid", "loop", "compiled_models.py"),
        ("gpt", "tanh", "gelu", "compiled_models.py"),
        ("cnn", "rsqrt", "rsqrt", "test_checked_steps.py"),
    ],
)
def test_a_broken_lowering_is_named(model, op, named, file, monkeypatch):
    """Code that is wrong by a ten-thousandth: an op, parts of a compound one, an op in a loop."""
    # Nothing of it may come to lie in the cache.
    monkeypatch.setattr("needle.backends.cpu.cache.get", lambda key: None)
    monkeypatch.setattr("needle.backends.cpu.cache.put", lambda *_: None)
    record: Any = REGISTRY[op]
    right = record.lower

    def wrong(b: Any, x: Any, **attrs: Any) -> Any:
        y = right(b, x, **attrs)
        return b.mul(y, b.like(1.0001, y))

    monkeypatch.setattr(record, "lower", wrong)
    with pytest.raises(DivergenceError) as caught:
        checked(MODELS[model], "adamw", "float32", 1)
    message = str(caught.value)
    for part in (f"the compiled result of {named}, in ", f"{file}:", " ulp\n"):
        assert part in message
