"""Schedules against PyTorch's, saved and resumed, and combined."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest

import needle as ndl
from needle import optim
from needle.errors import ArgumentError, ArgumentTypeError, StateDictError

LRS = (0.1, 0.7)

#: From a namespace (ours or PyTorch's) and an optimizer to a scheduler.
MAKERS: dict[str, Callable[[Any, Any], Any]] = {
    "step": lambda s, o: s.StepLR(o, 3, gamma=0.5),
    "step_default": lambda s, o: s.StepLR(o, 2),
    "multistep": lambda s, o: s.MultiStepLR(o, [2, 5, 5, 9], gamma=0.3),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.9),
    "linear": lambda s, o: s.LinearLR(o, start_factor=0.2, end_factor=0.9, total_iters=6),
    "linear_default": lambda s, o: s.LinearLR(o),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, 7, eta_min=0.01),
    "cosine_zero": lambda s, o: s.CosineAnnealingLR(o, 20),
    "lambda": lambda s, o: s.LambdaLR(o, lambda t: 0.95**t),
    "lambdas": lambda s, o: s.LambdaLR(o, [lambda t: 1 / (t + 1), lambda t: 2.0]),
    "one_cycle": lambda s, o: s.OneCycleLR(o, 0.5, total_steps=20),
    "one_cycle_linear": lambda s, o: s.OneCycleLR(
        o, [0.5, 0.8], epochs=4, steps_per_epoch=5, anneal_strategy="linear", pct_start=0.45
    ),
    "one_cycle_three": lambda s, o: s.OneCycleLR(
        o, 0.5, total_steps=20, three_phase=True, div_factor=5, final_div_factor=10,
        base_momentum=0.5, max_momentum=0.75,
    ),
    "sequential": lambda s, o: s.SequentialLR(
        o,
        [s.LinearLR(o, 0.1, total_iters=4), s.CosineAnnealingLR(o, 10), s.ExponentialLR(o, 0.5)],
        milestones=[4, 11],
    ),
    "chained": lambda s, o: s.ChainedScheduler(
        [s.LinearLR(o, 0.1, total_iters=4), s.ExponentialLR(o, 0.9), s.MultiStepLR(o, [3, 8])]
    ),
}  # fmt: skip


def sgd() -> optim.SGD:
    groups = [{"params": [ndl.Tensor([1.0])], "lr": lr} for lr in LRS]
    return optim.SGD(groups, momentum=0.9)


def rates(optimizer: optim.Optimizer) -> list[float]:
    return [group["lr"].item() for group in optimizer.param_groups]


def sequence(optimizer: optim.Optimizer, scheduler: Any, steps: int) -> list[list[float]]:
    result = [rates(optimizer)]
    for _ in range(steps):
        scheduler.step()
        result.append(rates(optimizer))
    return result


@pytest.mark.peers
@pytest.mark.parametrize("name", MAKERS)
def test_same_as_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    w = [torch.ones(1, requires_grad=True) for _ in LRS]
    theirs = torch.optim.SGD(
        [{"params": [p], "lr": lr} for p, lr in zip(w, LRS, strict=True)], momentum=0.9
    )
    ours = sgd()
    our_scheduler = MAKERS[name](optim, ours)
    their_scheduler = MAKERS[name](torch.optim.lr_scheduler, theirs)
    for _ in range(20):
        for group, expected in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert group["lr"].item() == pytest.approx(expected["lr"], rel=1e-12, abs=1e-15)
            assert group["momentum"].item() == pytest.approx(expected["momentum"], rel=1e-12)
        assert our_scheduler.get_last_lr() == rates(ours)
        ours.step()
        theirs.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about its SequentialLR
            our_scheduler.step()
            their_scheduler.step()


@pytest.mark.peers
def test_one_cycle_sets_the_first_beta_of_adam() -> None:
    torch = pytest.importorskip("torch")
    ours = optim.Adam([ndl.Tensor([1.0])], betas=(0.9, 0.98))
    theirs = torch.optim.Adam([torch.ones(1, requires_grad=True)], betas=(0.9, 0.98))
    our_scheduler = optim.OneCycleLR(ours, 0.1, total_steps=9)
    their_scheduler = torch.optim.lr_scheduler.OneCycleLR(theirs, 0.1, total_steps=9)
    for _ in range(8):
        betas = [b.item() for b in ours.param_groups[0]["betas"]]
        assert betas == pytest.approx(theirs.param_groups[0]["betas"], rel=1e-12)
        theirs.step()
        our_scheduler.step()
        their_scheduler.step()


@pytest.mark.parametrize("name", MAKERS)
def test_resumed_schedule_gives_the_same_bits(name: str) -> None:
    straight = sgd()
    expected = sequence(straight, MAKERS[name](optim, straight), 18)
    first = sgd()
    scheduler = MAKERS[name](optim, first)
    sequence(first, scheduler, 7)
    saved = json.loads(json.dumps({"o": first.state_dict(), "s": scheduler.state_dict()}))
    for order in ("os", "so"):
        second = sgd()
        resumed = MAKERS[name](optim, second)
        for which in order:
            (second if which == "o" else resumed).load_state_dict(saved[which])
        assert sequence(second, resumed, 11) == expected[7:]
    assert first.state_dict()["param_groups"][0]["initial_lr"] == LRS[0]


@pytest.mark.parametrize("name", ["step", "cosine", "sequential"])
def test_starting_at_a_later_step(name: str) -> None:
    straight = sgd()
    expected = sequence(straight, MAKERS[name](optim, straight), 10)
    later = sgd()
    scheduler = optim.StepLR(later, 3, gamma=0.5, last_epoch=5) if name == "step" else None
    if scheduler is not None:
        assert sequence(later, scheduler, 4) == expected[6:]
    for t, row in enumerate(expected):
        fresh = MAKERS[name](optim, sgd())
        assert [fresh.lr_at(t, lr, i) for i, lr in enumerate(LRS)] == row


def test_the_learning_rate_tensor_stays_the_same() -> None:
    optimizer = sgd()
    lr = optimizer.param_groups[0]["lr"]
    optim.ExponentialLR(optimizer, 0.5).step()
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.05


def test_schedule_drives_the_steps() -> None:
    w = ndl.Tensor([0.0])
    optimizer = optim.SGD([w], lr=1.0)
    scheduler = optim.ExponentialLR(optimizer, 0.5)
    for _ in range(3):
        w.grad = ndl.asarray([1.0])
        optimizer.step()
        scheduler.step()
    assert w.item() == -(1 + 0.5 + 0.25)


def test_two_schedulers_on_one_optimizer_are_refused_with_the_way_out() -> None:
    optimizer = sgd()
    one, two = optim.ExponentialLR(optimizer, 0.5), optim.StepLR(optimizer, 1)
    one.step()
    with pytest.raises(ArgumentError, match="ChainedScheduler"):
        two.step()


def test_scaling_by_hand_goes_through_the_initial_rate() -> None:
    optimizer = sgd()
    scheduler = optim.ExponentialLR(optimizer, 0.5)
    for group in optimizer.param_groups:
        group["initial_lr"] *= 0.5
    scheduler.step()
    assert rates(optimizer) == pytest.approx([0.025, 0.175])
    optimizer.param_groups[0]["lr"] = 1.0
    with pytest.raises(ArgumentError, match="initial_lr"):
        scheduler.step()


def test_groups_added_later_are_scheduled_too() -> None:
    optimizer = sgd()
    scheduler = optim.StepLR(optimizer, 1, gamma=0.5)
    optimizer.add_param_group({"params": [ndl.Tensor([1.0])], "lr": 0.4})
    scheduler.step()
    assert rates(optimizer) == [0.05, 0.35, 0.2]
    assert scheduler.base_lrs == [0.1, 0.7, 0.4]


def test_one_cycle_ends_at_its_lowest_rate_and_refuses_more_steps() -> None:
    optimizer = sgd()
    scheduler = optim.OneCycleLR(optimizer, 1.0, total_steps=5, div_factor=10, final_div_factor=10)
    values = [row[0] for row in sequence(optimizer, scheduler, 5)]
    assert max(values) == pytest.approx(scheduler.lr_at(1, 0.0, 0)) or max(values) <= 1.0
    assert values[0] == pytest.approx(0.1)
    assert values[4] == pytest.approx(0.01)
    assert values[5] == values[4]
    with pytest.raises(ArgumentError, match="step 6 of a cycle of 5"):
        scheduler.step()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda o: optim.StepLR(o, 0), "step_size"),
        (lambda o: optim.StepLR(o, 2, gamma=-1.0), "gamma"),
        (lambda o: optim.StepLR(o, 2, last_epoch=-2), "last_epoch"),
        (lambda o: optim.MultiStepLR(o, [5, 3]), "ascend"),
        (lambda o: optim.ExponentialLR(o, math.nan), "gamma"),
        (lambda o: optim.LinearLR(o, start_factor=0.0), "start_factor"),
        (lambda o: optim.LinearLR(o, end_factor=1.5), "end_factor"),
        (lambda o: optim.LinearLR(o, total_iters=0), "total_iters"),
        (lambda o: optim.CosineAnnealingLR(o, 0), "T_max"),
        (lambda o: optim.CosineAnnealingLR(o, 5, eta_min=-1.0), "eta_min"),
        (lambda o: optim.LambdaLR(o, [lambda t: 1.0]), "1 functions for 2"),
        (lambda o: optim.LambdaLR(o, lambda t: -1.0), "lr must be"),
        (lambda o: optim.OneCycleLR(o, 0.1), "total_steps"),
        (lambda o: optim.OneCycleLR(o, 0.1, total_steps=5, pct_start=1.5), "pct_start"),
        (lambda o: optim.OneCycleLR(o, [0.1], total_steps=5), "1 values of max_lr for 2"),
        (lambda o: optim.OneCycleLR(o, 0.1, total_steps=5, div_factor=0.0), "div_factor"),
        (
            lambda o: optim.OneCycleLR(o, 0.1, total_steps=5, anneal_strategy="steep"),
            "anneal_strategy",
        ),
        (lambda o: optim.SequentialLR(o, [], []), "no schedulers"),
        (lambda o: optim.SequentialLR(o, [optim.StepLR(o, 1)], [3]), "need 0"),
        (lambda o: optim.SequentialLR(o, [optim.StepLR(o, 1)] * 3, [3, 3]), "ascend"),
        (lambda o: optim.SequentialLR(o, [optim.StepLR(sgd(), 1)], []), "another optimizer"),
        (lambda o: optim.ChainedScheduler([]), "no schedulers"),
        (
            lambda o: optim.ChainedScheduler([optim.StepLR(o, 1), optim.StepLR(sgd(), 1)]),
            "another optimizer",
        ),
    ],
)
def test_schedules_that_make_no_sense_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        make(sgd())


def test_momentum_can_only_be_cycled_where_there_is_one() -> None:
    for optimizer in (optim.SGD([ndl.Tensor([1.0])]), optim.Adagrad([ndl.Tensor([1.0])])):
        with pytest.raises(ArgumentError, match="cycle_momentum=False"):
            optim.OneCycleLR(optimizer, 0.1, total_steps=5)
        optim.OneCycleLR(optimizer, 0.1, total_steps=5, cycle_momentum=False).step()


@pytest.mark.parametrize(
    "make",
    [
        lambda: optim.StepLR([ndl.Tensor([1.0])], 3),  # type: ignore[arg-type]
        lambda: optim.LambdaLR(None, lambda t: 1.0),  # type: ignore[arg-type]
        lambda: optim.OneCycleLR("sgd", 0.1, total_steps=5),  # type: ignore[arg-type]
        lambda: optim.LambdaLR(sgd(), [1.0, 2.0]),  # type: ignore[list-item]
        lambda: optim.SequentialLR(sgd(), [None], []),  # type: ignore[list-item]
    ],
)
def test_arguments_of_the_wrong_type_are_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ArgumentTypeError):
        make()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"base_lrs": [0.1, 0.7]}, "last_epoch"),
        ({"last_epoch": 3}, "base_lrs"),
        ({"last_epoch": 3, "base_lrs": [0.1]}, "1 learning rates were saved"),
        ({"last_epoch": -3, "base_lrs": [0.1, 0.7]}, "at least 0"),
    ],
)
def test_states_that_do_not_fit_are_refused(state: dict[str, Any], words: str) -> None:
    with pytest.raises(StateDictError, match=words):
        optim.StepLR(sgd(), 3).load_state_dict(state)
