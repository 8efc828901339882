"""A compiled training step is the eager one, and 100 of them stay together.

Losses of eager and compiled training are equal but for rounding. In float32 that can end at any
step: an input of a ReLU that is zero but for rounding has a gradient on one side only, and so two
runs that differ in the last bit are suddenly apart by a thousandth. Then nothing about the
compiled run is wrong, and no constant says how far apart it may be. Eager runs whose parameters
begin one unit in the last place away say it: a compiled run may leave its eager twin as they do.
A step that is wrong cannot hide in this, because steps are compared one by one, too, each
from the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from compiled_models import (
    LARGE,
    LARGE_SEQUENCES,
    PROBLEMS,
    SEQUENCES,
    Problem,
    batches,
    tokens,
)

import needle as ndl
from needle import nn, optim

STEPS = 100
#: How far losses may be apart, relative to the eager ones.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
#: By how much of its length a step may differ from the eager step from the same state. Most of
#: it is the rounding of parameters, which are far larger than the step.
STEP_TOLERANCE = {"float32": 3e-5, "float64": 1e-13}
#: Nudged eager runs that a chaotic setting is measured by, and how many times as far as the
#: farthest of them the compiled run may go.
NUDGES = range(1, 6)
FACTOR = 4.0

DROPOUT = 0.1
SMALL = {**PROBLEMS, **SEQUENCES}
FULL = {**LARGE, **LARGE_SEQUENCES}

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "momentum": lambda p, **o: optim.SGD(p, lr=0.1, momentum=0.9, **o),
    "momentum-sum": lambda p, **o: optim.SGD(p, lr=0.02, momentum=0.9, dampening=0.0, **o),
    "adam": lambda p, **o: optim.Adam(p, lr=1e-3, **o),
    "adamw-clip-schedule": lambda p, **o: optim.AdamW(p, lr=1e-3, weight_decay=0.05, **o),
}

CASES = [
    ("mlp", "momentum"),
    ("mlp", "adam"),
    ("mlp-resnet", "momentum"),
    ("mlp-resnet", "momentum-sum"),
    ("mlp-resnet", "adamw-clip-schedule"),
    ("cnn", "momentum-sum"),
    ("cnn", "adam"),
    ("lstm", "adamw-clip-schedule"),
    ("gpt", "momentum-sum"),
    ("gpt", "adamw-clip-schedule"),
]
#: Whose steps are compared one by one.
STEP_CASES = [*((problem, "momentum-sum") for problem in SMALL), ("gpt", "adamw-clip-schedule")]


def data_of(problem: Problem, count: int, dtype: str) -> list[tuple[Any, Any]]:
    if problem.vocabulary:
        return tokens(problem, count)
    return batches(problem.shape, count, dtype)


class Learner:
    """A model that is trained by a loop of one's own.

    Args:
        problem: what to train.
        optimizer: which of `OPTIMIZERS`.
        dtype: of the parameters.
        is_compiled: whether the step is compiled.
        nudge: unless 0, moves each parameter to one of its neighbours: the seed for which.
        options: of the optimizer.
    """

    def __init__(
        self,
        problem: Problem,
        optimizer: str,
        dtype: str,
        is_compiled: bool,
        nudge: int = 0,
        **options: Any,
    ) -> None:
        ndl.manual_seed(0)
        self.model = problem.make(DROPOUT).to(dtype)
        if nudge:
            move_by_one_ulp(self.model, nudge)
        parameters = list(self.model.parameters())
        self.optimizer = OPTIMIZERS[optimizer](parameters, **options)
        is_scheduled = optimizer.endswith("clip-schedule")
        self.scheduler = (
            optim.CosineAnnealingLR(self.optimizer, T_max=STEPS) if is_scheduled else None
        )

        def step(x: Any, y: Any) -> Any:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.model(x), y)
            loss.backward()
            if is_scheduled:
                optim.clip_grad_norm_(parameters, 0.5)
            self.optimizer.step()
            return loss.detach()

        self._step = ndl.compile(step) if is_compiled else step

    def step(self, batch: tuple[Any, Any]) -> float:
        """Take a step and return the loss before it."""
        loss = self._step(*batch).item()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss

    def roles(self) -> dict[str, list[Any]]:
        """Return the floating tensors that training changes, by what they are."""
        found = {"parameters": list(self.model.parameters()), "buffers": [*self.model.buffers()]}
        for parameter in found["parameters"]:
            for name, tensor in self.optimizer.state.get(parameter, {}).items():
                found.setdefault(name, []).append(tensor)
        floats = {r: [t for t in ts if t.dtype.kind == "f"] for r, ts in found.items()}
        return {role: tensors for role, tensors in floats.items() if tensors}


def move_by_one_ulp(model: nn.Module, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with ndl.no_grad():
        for parameter in model.parameters():
            before = parameter.numpy().copy()
            towards = np.where(rng.random(before.shape) < 0.5, -np.inf, np.inf)
            parameter.copy_(ndl.asarray(np.nextafter(before, towards.astype(before.dtype))))
            assert (parameter.numpy() != before).all()


def losses_of(problem: Problem, optimizer: str, dtype: str, *args: Any, **options: Any) -> Any:
    learner = Learner(problem, optimizer, dtype, *args, **options)
    return np.array([learner.step(batch) for batch in data_of(problem, STEPS, dtype)])


def drift(losses: Any, eager: Any) -> float:
    return float(np.max(np.abs(losses - eager) / np.abs(eager)))


def check_losses(problem: Problem, optimizer: str, dtype: str) -> None:
    eager = losses_of(problem, optimizer, dtype, False)
    found = drift(losses_of(problem, optimizer, dtype, True), eager)
    assert np.isfinite(eager).all()
    assert len(set(eager)) > STEPS // 2  # it learns
    if found <= TOLERANCE[dtype]:
        return
    nudged = [drift(losses_of(problem, optimizer, dtype, False, seed), eager) for seed in NUDGES]
    assert found <= FACTOR * max(nudged), f"apart {found:.2g}, nudged eager runs {nudged}"


def steps_apart(
    problem: Problem, optimizer: str, dtype: str, steps: int, **compiled: Any
) -> Iterator[tuple[str, float]]:
    """Yield for each step and role how far compiled and eager step are apart, from equal states.

    In lengths of the eager step. Adam divides a gradient by its size, even one that is zero but
    for rounding, such as that of a bias ahead of a normalisation; a large epsilon leaves it small.
    """
    options = {"eps": 1e-3} if optimizer.startswith("adam") else {}
    twins = [
        Learner(
            problem, optimizer, dtype, is_compiled, **options, **(compiled if is_compiled else {})
        )
        for is_compiled in (False, True)
    ]
    eager, other = twins
    before: dict[str, Any] = {}
    for i, batch in enumerate(data_of(problem, steps, dtype)):
        losses = []
        for learner in twins:
            ndl.manual_seed(i)  # for equal dropout
            losses.append(learner.step(batch))
        yield "loss", abs(losses[1] - losses[0]) / abs(losses[0])
        theirs = other.roles()
        for role, tensors in eager.roles().items():
            after = np.concatenate([t.numpy().ravel() for t in tensors])
            reached = np.concatenate([t.numpy().ravel() for t in theirs[role]])
            if role in before:
                length = np.linalg.norm(after - before[role])
                yield role, float(np.linalg.norm(reached - after) / length)
            before[role] = after
            with ndl.no_grad():
                for tensor, twin in zip(tensors, theirs[role], strict=True):
                    twin.copy_(tensor)


def check_steps(problem: Problem, optimizer: str, dtype: str, steps: int) -> None:
    seen = set()
    for role, distance in steps_apart(problem, optimizer, dtype, steps):
        seen.add(role)
        assert distance <= STEP_TOLERANCE[dtype], role
    assert {"loss", "parameters"} < seen


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("problem", "optimizer"), CASES)
def test_losses_stay_together(problem, optimizer, dtype):
    check_losses(SMALL[problem], optimizer, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("problem", "optimizer"), STEP_CASES)
def test_each_step_is_the_eager_one(problem, optimizer, dtype):
    check_steps(SMALL[problem], optimizer, dtype, 4)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("problem", FULL)
def test_losses_of_full_sizes_stay_together(problem, optimizer, dtype):
    check_losses(FULL[problem], optimizer, dtype)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("problem", FULL)
def test_each_step_of_full_size_is_the_eager_one(problem, optimizer, dtype):
    check_steps(FULL[problem], optimizer, dtype, 10)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_slightly_wrong_step_is_seen(dtype):
    """Else the tests above would show nothing: the compiled run has a little weight decay."""
    distances = steps_apart(SMALL["mlp-resnet"], "momentum", dtype, 3, weight_decay=2e-4)
    assert max(d for role, d in distances if role == "parameters") > 10 * STEP_TOLERANCE[dtype]
