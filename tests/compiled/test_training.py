"""Compiled training steps do, bit for bit, what the same steps do eagerly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn

N, FEATURES, CLASSES = 6, 4, 3


def batches(count: int, n: int = N) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(7)
    return [
        (
            ndl.asarray(rng.normal(size=(n, FEATURES)).astype(np.float32)),
            ndl.asarray(rng.integers(0, CLASSES, n)),
        )
        for _ in range(count)
    ]


def mlp() -> Any:
    ndl.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES))


def noisy() -> Any:
    ndl.manual_seed(1)
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, CLASSES)
    )


class Training:
    """A model with its step, eager or compiled."""

    def __init__(
        self,
        model: Any,
        optimizer_of: Callable[[Any], Any],
        compiled: bool,
        scheduler_of: Callable[[Any], Any] | None = None,
        clip: float | None = None,
        **options: Any,
    ) -> None:
        self.model = model
        self.optimizer = optimizer_of(model.parameters())
        self.scheduler = None if scheduler_of is None else scheduler_of(self.optimizer)
        self.clip = clip
        self.loss_of = nn.CrossEntropyLoss()
        self.step: Any = ndl.compile(self._step, **options) if compiled else self._step

    def _step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss_of(self.model(x), y)
        loss.backward()
        if self.clip is not None:
            ndl.optim.clip_grad_norm_(self.model.parameters(), self.clip)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return loss

    def state(self) -> list[Any]:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        for p in self.model.parameters():
            tensors += self.optimizer.state.get(p, {}).values()
        tensors += [g["lr"] for g in self.optimizer.param_groups]
        return [t.numpy().copy() for t in tensors]


def check_same(a: Training, b: Training) -> None:
    for x, y in zip(a.state(), b.state(), strict=True):
        np.testing.assert_array_equal(x, y)


def run_both(
    model: Any, optimizer_of: Any, steps: int = 5, **options: Any
) -> tuple[Training, Training]:
    pair = []
    for compiled in (False, True):
        training = Training(copy.deepcopy(model), optimizer_of, compiled, **options)
        ndl.manual_seed(5)
        losses = [training.step(x, y).item() for x, y in batches(steps)]
        pair.append((training, losses, ndl.random.default_generator().state.tolist()))
    assert pair[0][1:] == pair[1][1:]
    check_same(pair[0][0], pair[1][0])
    assert len(pair[1][0].step.specializations) == 1
    return pair[0][0], pair[1][0]


OPTIMIZERS = {
    "sgd": lambda p: ndl.optim.SGD(p, lr=0.1),
    "momentum": lambda p: ndl.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "decay": lambda p: ndl.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: ndl.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: ndl.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: ndl.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: ndl.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: ndl.optim.Adagrad(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    run_both(mlp(), OPTIMIZERS[name])


@pytest.mark.parametrize(
    "scheduler_of",
    [
        lambda o: ndl.optim.StepLR(o, step_size=2),
        lambda o: ndl.optim.CosineAnnealingLR(o, T_max=4),
        lambda o: ndl.optim.LambdaLR(o, lambda t: 1 / (t + 1)),
        lambda o: ndl.optim.OneCycleLR(o, max_lr=0.1, total_steps=6),
    ],
    ids=["step", "cosine", "lambda", "one cycle"],
)
def test_schedulers_and_clipping(scheduler_of: Any) -> None:
    eager, compiled = run_both(
        mlp(), OPTIMIZERS["adam"], scheduler_of=scheduler_of, clip=0.5, steps=5
    )
    assert eager.scheduler.last_epoch == compiled.scheduler.last_epoch == 5


def test_batch_norm_and_dropout() -> None:
    eager, compiled = run_both(noisy(), OPTIMIZERS["momentum"])
    x, _ = batches(1)[0]
    for training in (eager, compiled):
        training.model.eval()
    predict = ndl.compile(compiled.model)
    with ndl.no_grad():
        np.testing.assert_array_equal(predict(x).numpy(), eager.model(x).numpy())


def test_train_and_eval_are_two_specializations() -> None:
    model = noisy()
    predict = ndl.compile(model)
    x, _ = batches(1)[0]
    with ndl.no_grad():
        ndl.manual_seed(3)
        expected = model(x).numpy()
        mean = model[1].running_mean.numpy().copy()
        ndl.manual_seed(3)
        model[1].running_mean.zero_()
        model[1].running_var.fill_(1.0)
        np.testing.assert_array_equal(predict(x).numpy(), expected)
        np.testing.assert_array_equal(model[1].running_mean.numpy(), mean)
        model.eval()
        np.testing.assert_array_equal(predict(x).numpy(), model(x).numpy())
        np.testing.assert_array_equal(model[1].running_mean.numpy(), mean)
        model.train()
        predict(x)
        assert not np.array_equal(model[1].running_mean.numpy(), mean)
    assert len(predict.specializations) == 2


def test_accumulation_without_zero_grad() -> None:
    model = mlp()
    loss_of = nn.CrossEntropyLoss()

    def accumulate(x: Any, y: Any) -> Any:
        loss = loss_of(model(x), y)
        loss.backward()
        return loss

    compiled = ndl.compile(accumulate)
    for x, y in batches(3):
        accumulate(x, y)
    expected = [p.grad.numpy().copy() for p in model.parameters()]
    model.zero_grad()
    for x, y in batches(3):
        compiled(x, y)
    for p, grad in zip(model.parameters(), expected, strict=True):
        np.testing.assert_array_equal(p.grad.numpy(), grad)
    # One for gradients that are missing, one for gradients that are there.
    assert len(compiled.specializations) == 2
    model.zero_grad()
    compiled(*batches(1)[0])
    assert len(compiled.specializations) == 2


def test_gradients_are_set_and_not_shared_between_calls() -> None:
    w = ndl.Tensor([1.0, 2.0])

    @ndl.compile
    def slope(x: Any) -> None:
        w.grad = None
        (w * x).sum().backward()

    slope(ndl.asarray([3.0, 4.0]))
    first = w.grad
    slope(ndl.asarray([5.0, 6.0]))
    assert first.tolist() == [3.0, 4.0]
    assert w.grad.tolist() == [5.0, 6.0]


def test_load_state_dict_between_calls() -> None:
    model = mlp()
    training = Training(model, OPTIMIZERS["adam"], compiled=True)
    data = batches(6)
    training.step(*data[0])
    saved = {k: v.clone() for k, v in model.state_dict().items()}
    saved_optimizer = copy.deepcopy(training.optimizer.state_dict())
    expected = [training.step(*b).item() for b in data[1:3]]
    model.load_state_dict(saved)
    training.optimizer.load_state_dict(saved_optimizer)
    assert [training.step(*b).item() for b in data[1:3]] == expected
    assert len(training.step.specializations) == 1


def test_learning_rate_is_no_constant() -> None:
    eager, compiled = run_both(mlp(), OPTIMIZERS["sgd"], steps=1)
    for training in (eager, compiled):
        training.optimizer.param_groups[0]["lr"] = 0.01
    x, y = batches(1)[0]
    assert eager.step(x, y).item() == compiled.step(x, y).item()
    check_same(eager, compiled)


def test_a_switched_option_is_a_new_specialization() -> None:
    eager, compiled = run_both(mlp(), OPTIMIZERS["sgd"], steps=2)
    for training in (eager, compiled):
        training.optimizer.param_groups[0]["weight_decay"] = 0.1
    for x, y in batches(2):
        assert eager.step(x, y).item() == compiled.step(x, y).item()
    check_same(eager, compiled)
    assert len(compiled.step.specializations) == 2


def test_frozen_parameters_are_a_new_specialization() -> None:
    eager, compiled = run_both(mlp(), OPTIMIZERS["sgd"], steps=2)
    for training in (eager, compiled):
        training.model[0].requires_grad_(False)
    for x, y in batches(2):
        assert eager.step(x, y).item() == compiled.step(x, y).item()
    check_same(eager, compiled)


def test_random_state_continues() -> None:
    draw = ndl.compile(lambda: ndl.random.normal(4))
    ndl.manual_seed(11)
    expected = [ndl.random.normal(4).tolist() for _ in range(3)]
    ndl.manual_seed(11)
    assert [draw().tolist() for _ in range(3)] == expected
    ndl.manual_seed(11)
    ndl.random.normal(4)
    assert draw().tolist() == expected[1]


def test_replaced_storage_is_seen() -> None:
    model = mlp()
    predict = ndl.compile(model)
    x, _ = batches(1)[0]
    with ndl.no_grad():
        predict(x)
        model.to(ndl.float64)
        wide = x.astype(ndl.float64)
        np.testing.assert_array_equal(predict(wide).numpy(), model(wide).numpy())
        model[0] = nn.Linear(FEATURES, 8, dtype=ndl.float64)
        np.testing.assert_array_equal(predict(wide).numpy(), model(wide).numpy())


def test_used_up_gradients_teach() -> None:
    training = Training(mlp(), OPTIMIZERS["sgd"], compiled=True)
    training.step(*batches(1)[0])
    weight = training.model[0].weight
    assert weight.grad is not None
    assert weight.grad.shape == weight.shape
    with pytest.raises(ndl.errors.TraceError, match="keep_grads=True"):
        weight.grad.numpy()
    with pytest.raises(ndl.errors.TraceError, match="keep_grads=True"):
        weight.grad * 2
    with pytest.raises(ndl.errors.TraceError, match="zero_grad"):
        weight.sum().backward()
    training.optimizer.zero_grad()
    weight.sum().backward()
    assert weight.grad.numpy().all()


def test_keep_grads() -> None:
    model = mlp()
    eager = Training(copy.deepcopy(model), OPTIMIZERS["sgd"], compiled=False)
    compiled = Training(model, OPTIMIZERS["sgd"], compiled=True, keep_grads=True)
    for x, y in batches(2):
        eager.step(x, y)
        compiled.step(x, y)
    for a, b in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        np.testing.assert_array_equal(a.grad.numpy(), b.grad.numpy())


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_a_parameter_that_stays_behind_counts_for_itself(name: str) -> None:
    """Its step counter is split from the others' while the function is traced."""
    results = []
    for compiled in (False, True):
        a, b = ndl.Tensor([1.0, 2.0]), ndl.Tensor([3.0, 4.0])
        optimizer = OPTIMIZERS[name]([a, b])

        def step(x: Any, both: bool) -> None:
            optimizer.zero_grad()  # noqa: B023
            loss = (a * x).sum() + ((b * x).sum() if both else 0.0)  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023

        run: Any = ndl.compile(step) if compiled else step
        for both in (True, False, False, True, True):
            run(ndl.asarray([0.5, -1.0]), both)
        steps = [optimizer.state[p]["step"].item() for p in (a, b)]
        results.append((a.tolist(), b.tolist(), steps))
    assert results[0] == results[1]


def test_gradients_that_are_filled_with_zeros() -> None:
    seen = []
    for compiled in (False, True):
        w = ndl.Tensor([1.0, 2.0])
        optimizer = ndl.optim.SGD([w], lr=0.1, momentum=0.5)

        def step(x: Any) -> None:
            optimizer.zero_grad(set_to_none=False)  # noqa: B023
            (w * x).sum().backward()  # noqa: B023
            optimizer.step()  # noqa: B023

        f: Any = ndl.compile(step) if compiled else step
        for i in range(4):
            f(ndl.full(2, float(i)))
        seen.append(w.tolist())
    assert seen[0] == seen[1]
