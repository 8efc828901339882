"""Every option that PyTorch has means the same here, over twenty steps in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optim_problems import SHAPES, make_params, set_grads

from needle import optim

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch")

STEPS = 20

SAME: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.0}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "dampening": 0.0, "weight_decay": 0.2}),
    ("Adam", {}),
    ("Adam", {"lr": 0.1, "betas": (0.5, 0.9), "eps": 0.1}),
    ("Adam", {"lr": 0.1, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("Adam", {"lr": 0.1, "maximize": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.5, "amsgrad": True}),
    ("RMSprop", {}),
    ("RMSprop", {"lr": 0.1, "alpha": 0.5, "eps": 0.1, "weight_decay": 0.1}),
    ("RMSprop", {"lr": 0.1, "centered": True}),
    ("RMSprop", {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    ("RMSprop", {"lr": 0.1, "centered": True, "momentum": 0.5, "weight_decay": 0.1}),
    ("Adagrad", {}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.5, "eps": 0.1, "maximize": True}),
]


def compare(ours: Any, theirs: Any, params: Any, tensors: Any, first: Any = None) -> None:
    for step in range(STEPS):
        set_grads(params, step)
        for p, t in zip(params, tensors, strict=True):
            t.grad = torch.tensor(p.grad.numpy().copy())
        if step == 0 and first is not None:
            first()
        ours.step()
        theirs.step()
        for p, t in zip(params, tensors, strict=True):
            np.testing.assert_allclose(
                p.detach().numpy(), t.detach().numpy(), rtol=1e-12, atol=1e-12
            )


def both() -> tuple[Any, Any]:
    params = make_params(np.float64)
    return params, [torch.tensor(p.numpy().copy(), requires_grad=True) for p in params]


@pytest.mark.parametrize(("name", "options"), SAME, ids=str)
def test_same_as_torch(name: str, options: dict[str, Any]) -> None:
    params, tensors = both()
    compare(
        getattr(optim, name)(params, **options),
        getattr(torch.optim, name)(tensors, **options),
        params,
        tensors,
    )


@pytest.mark.parametrize("dampening", [None, 0.3, 1.0])
def test_dampened_momentum_is_torchs_with_a_buffer_of_zeros(dampening: float | None) -> None:
    # PyTorch does not dampen the first gradient; ours is the plain recursion from zero.
    params, tensors = both()
    theirs = torch.optim.SGD(
        tensors, lr=0.1, momentum=0.9, dampening=0.9 if dampening is None else dampening
    )

    def start_at_zero() -> None:
        for t in tensors:
            theirs.state[t]["momentum_buffer"] = torch.zeros_like(t)

    ours = optim.SGD(params, lr=0.1, momentum=0.9, dampening=dampening)
    compare(ours, theirs, params, tensors, start_at_zero)


@pytest.mark.parametrize("nesterov", [False, True])
def test_averaged_momentum_is_summed_momentum_with_smaller_steps(nesterov: bool) -> None:
    params, tensors = both()
    ours = optim.SGD(params, lr=0.1, momentum=0.75, nesterov=nesterov)
    theirs = torch.optim.SGD(tensors, lr=0.1 * 0.25, momentum=0.75, nesterov=nesterov)
    compare(ours, theirs, params, tensors)


def test_decoupled_decay_of_adam_is_torchs_adamw() -> None:
    params, tensors = both()
    ours = optim.Adam(params, lr=0.1, weight_decay=0.3, decoupled=True)
    compare(ours, torch.optim.AdamW(tensors, lr=0.1, weight_decay=0.3), params, tensors)


def test_a_parameter_without_gradient_stays_and_counts_no_step() -> None:
    params, tensors = both()
    ours, theirs = optim.Adam(params, lr=0.1), torch.optim.Adam(tensors, lr=0.1)
    for step in range(12):
        set_grads(params, step)
        for i, p in enumerate(params):
            if (step + i) % 3 == 0 or (i == 1 and step < 5):
                p.grad = None
        for p, t in zip(params, tensors, strict=True):
            t.grad = None if p.grad is None else torch.tensor(p.grad.numpy().copy())
        ours.step()
        theirs.step()
    for p, t in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), t.detach().numpy(), rtol=1e-12, atol=1e-12)
        assert ours.state[p]["step"].item() == theirs.state[t]["step"].item()


def test_groups_have_their_own_hyperparameters() -> None:
    params, tensors = both()

    def groups(ps: Any) -> Any:
        return [
            {"params": ps[:1], "lr": 0.3},
            {"params": ps[1:], "weight_decay": 0.5, "betas": (0.5, 0.6)},
        ]

    ours = optim.AdamW(groups(params), lr=0.1)
    compare(ours, torch.optim.AdamW(groups(tensors), lr=0.1), params, tensors)
    assert len(SHAPES) > 2


def test_hyperparameters_changed_between_steps_count() -> None:
    params, tensors = both()
    ours, theirs = optim.AdamW(params, lr=0.1), torch.optim.AdamW(tensors, lr=0.1)
    for step, (lr, decay) in enumerate([(0.1, 0.0), (0.3, 0.2), (0.0, 0.1), (0.2, 0.0)]):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.param_groups[0]["weight_decay"] = decay
        set_grads(params, step)
        for p, t in zip(params, tensors, strict=True):
            t.grad = torch.tensor(p.grad.numpy().copy())
        ours.step()
        theirs.step()
    for p, t in zip(params, tensors, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), t.detach().numpy(), rtol=1e-12, atol=1e-12)
