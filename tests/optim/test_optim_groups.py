"""Parameter groups: hyper-parameters as tensors, checks, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import optim
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    GradientError,
    ShapeError,
)


def w(*values: float) -> ndl.Tensor:
    return ndl.Tensor(list(values) or [1.0])


def test_numbers_are_0d_float64_tensors_that_stay_the_same() -> None:
    group = optim.Adam([w()], lr=0.1).param_groups[0]
    lr, beta1 = group["lr"], group["betas"][0]
    group["lr"] = 0.25
    group["betas"] = (0.5, 0.75)
    group.update(eps=1e-3)
    assert group["lr"] is lr
    assert group["betas"][0] is beta1
    assert (lr.shape, lr.dtype, lr.item(), beta1.item()) == ((), ndl.float64, 0.25, 0.5)
    assert group["eps"].item() == 1e-3


def test_in_place_arithmetic_on_a_learning_rate_works() -> None:
    a = w(1.0)
    optimizer = optim.SGD([a], lr=1.0)
    optimizer.param_groups[0]["lr"] *= 0.5
    a.grad = ndl.asarray([1.0])
    optimizer.step()
    assert a.item() == 0.5


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int64(1), ndl.asarray(0.5)])
def test_numbers_of_any_kind_set_a_learning_rate(value: Any) -> None:
    group = optim.SGD([w()], lr=value).param_groups[0]
    assert group["lr"].item() == float(value)
    assert isinstance(group["lr"], ndl.Tensor)


def test_turning_momentum_on_later_starts_the_average_then() -> None:
    a = w(0.0)
    optimizer = optim.SGD([a], lr=1.0)
    for momentum in (0.0, 0.5, 0.5):
        optimizer.param_groups[0]["momentum"] = momentum
        a.grad = ndl.asarray([1.0])
        optimizer.step()
    assert a.item() == -(1 + 0.5 + 0.75)


def test_dampening_follows_momentum_unless_given() -> None:
    group = optim.SGD([w()], momentum=0.5).param_groups[0]
    assert group["dampening"] is None
    group["dampening"] = 0.0
    assert group["dampening"].item() == 0.0
    group["dampening"] = None
    assert group["dampening"] is None
    assert dict(group).keys() >= {"params", "lr", "momentum", "dampening"}


def test_named_parameters_keep_their_names_for_messages() -> None:
    a, b = w(), w(1.0, 2.0)
    optimizer = optim.SGD([("fc.weight", a), ("fc.bias", b)], lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ("fc.weight", "fc.bias")
    b.grad = ndl.ones(3)
    with pytest.raises(ShapeError, match=r"'fc\.bias' \(shape \[2\]\) has shape \[3\]"):
        optimizer.step()


def test_a_single_tensor_makes_a_group() -> None:
    optimizer = optim.SGD([{"params": w(), "lr": 0.5}, {"params": iter([w(), w()])}])
    assert [len(g["params"]) for g in optimizer.param_groups] == [1, 2]
    assert optimizer.param_groups[0]["lr"].item() == 0.5


def test_repr_shows_the_hyperparameters() -> None:
    text = repr(optim.SGD([w(), w()], lr=0.25))
    assert "2 parameters" in text
    assert "lr=0.25" in text


@pytest.mark.parametrize(
    ("params", "error", "words"),
    [
        ([], ArgumentError, "no parameters"),
        (iter(()), ArgumentError, "no parameters"),
        ([{"params": []}], ArgumentError, "no parameters"),
        (w(), ArgumentTypeError, "single tensor"),
        ({"params": [w()]}, ArgumentTypeError, "list"),
        ({w()}, ArgumentTypeError, "set"),
        (None, ArgumentTypeError, "NoneType"),
        ("weights", ArgumentTypeError, "str"),
        ([w(), 1.0], ArgumentTypeError, r"params\[1\] must be a tensor, got float"),
        ([{"params": [w()]}, w()], ArgumentTypeError, r"params\[1\] is a Tensor"),
        ([("a", w()), w()], ArgumentTypeError, "name all"),
        ([{"lr": 0.1}], ArgumentError, '"params"'),
        ([{"params": [w()], "param_names": ["a", "b"]}], ArgumentError, "2 param_names"),
        ([{"params": [w()], "learning_rate": 0.1}], ArgumentError, "'learning_rate'.*lr, mom"),
        ([ndl.arange(3)], DTypeError, "int64"),
        ([w() * 2], GradientError, "no leaf"),
    ],
)
def test_parameters_that_are_refused(params: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        optim.SGD(params, lr=0.1)


def test_a_module_instead_of_its_parameters_is_refused_with_the_way_out() -> None:
    class Model:
        def parameters(self) -> list[ndl.Tensor]:
            return [w()]

    with pytest.raises(ArgumentTypeError, match=r"parameters\(\)"):
        optim.SGD(Model())  # type: ignore[arg-type]


def test_a_parameter_given_twice_is_refused() -> None:
    a = w()
    with pytest.raises(ArgumentError, match="twice"):
        optim.SGD([a, w(), a])
    with pytest.raises(ArgumentError, match="twice"):
        optim.SGD([{"params": [a]}, {"params": [w(), a]}])
    optimizer = optim.SGD([a])
    with pytest.raises(ArgumentError, match="twice"):
        optimizer.add_param_group({"params": a})
    assert len(optimizer.param_groups) == 1


BAD: list[tuple[type[optim.Optimizer], dict[str, Any]]] = [
    (optim.SGD, {"lr": -0.1}),
    (optim.SGD, {"lr": math.nan}),
    (optim.SGD, {"lr": math.inf}),
    (optim.SGD, {"momentum": 1.0}),
    (optim.SGD, {"dampening": 1.5, "momentum": 0.9}),
    (optim.SGD, {"weight_decay": -1e-4}),
    (optim.Adam, {"lr": ndl.asarray(-1.0)}),
    (optim.Adam, {"betas": (0.9, 1.0)}),
    (optim.Adam, {"betas": (-0.1, 0.9)}),
    (optim.Adam, {"betas": (math.nan, 0.9)}),
    (optim.Adam, {"eps": -1e-8}),
    (optim.AdamW, {"weight_decay": math.nan}),
    (optim.RMSprop, {"alpha": 1.0}),
    (optim.RMSprop, {"momentum": -0.5}),
    (optim.Adagrad, {"lr_decay": -1.0}),
    (optim.Adagrad, {"initial_accumulator_value": -1.0}),
    (optim.SGD, {"lr": ndl.ones(2)}),
]


@pytest.mark.parametrize(("kind", "options"), BAD, ids=str)
def test_numbers_out_of_range_are_refused_when_made_and_when_set(
    kind: type[optim.Optimizer], options: dict[str, Any]
) -> None:
    key, value = next(iter(options.items()))
    with pytest.raises(ArgumentError, match=f"{kind.__name__}: {key}"):
        kind([w()], **options)
    group = kind([w()], **({"momentum": 0.9} if "momentum" in options else {})).param_groups[0]
    before = group.plain()
    with pytest.raises(ArgumentError, match=key):
        group[key] = value
    assert group.plain() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", "0.1"), ("lr", None), ("lr", True), ("betas", 0.9), ("betas", (0.9,)),
        ("betas", ("a", 0.9)), ("amsgrad", 1), ("amsgrad", None),
    ],
)  # fmt: skip
def test_values_of_the_wrong_type_are_refused(key: str, value: Any) -> None:
    group = optim.Adam([w()]).param_groups[0]
    with pytest.raises(ArgumentTypeError, match=key):
        group[key] = value


def test_keys_are_fixed() -> None:
    group = optim.Adam([w()]).param_groups[0]
    for act in (
        lambda: group.update(beta=1.0),
        lambda: group.pop("lr"),
        lambda: group.__setitem__("params", [w()]),
    ):
        with pytest.raises(ArgumentError):
            act()
    with pytest.raises(KeyError):
        group["momentum"]


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ArgumentError, match="momentum"):
        optim.SGD([w()], nesterov=True)


def test_gradients_that_do_not_fit_are_refused() -> None:
    a = w(1.0, 2.0)
    optimizer = optim.Adam([a])
    a.grad = ndl.ones((2, 1))
    with pytest.raises(ShapeError, match=r"params\[0\] \(shape \[2\]\) has shape \[2, 1\]"):
        optimizer.step()
    a.grad = ndl.ones(2, dtype="float64")
    with pytest.raises(DTypeError, match="float64"):
        optimizer.step()
    assert not optimizer.state
    assert a.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("create_graph", [False, True])
def test_zero_grad_fills_or_drops(create_graph: bool) -> None:
    a, b = w(1.0, 2.0), w()
    optimizer = optim.SGD([a, b])
    (a * a * a).sum().backward(create_graph=create_graph)
    optimizer.zero_grad(set_to_none=False)
    assert a.grad is not None
    assert a.grad.tolist() == [0.0, 0.0]
    assert not a.grad.requires_grad
    assert b.grad is None
    optimizer.zero_grad()
    assert a.grad is None


def test_frozen_parameters_are_passed_over() -> None:
    frozen = ndl.Tensor([1.0], requires_grad=False)
    a = w(1.0)
    optimizer = optim.Adam([frozen, a], lr=0.5)
    (a * frozen).sum().backward()
    optimizer.step()
    assert frozen.item() == 1.0
    assert frozen not in optimizer.state
