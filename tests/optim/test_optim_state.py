"""Saving and loading: resumed is uninterrupted, bit for bit; what does not fit is refused."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from optim_problems import VARIANTS, bits, make_optimizer, make_params, set_grads, train

import needle as ndl
from needle import optim
from needle.errors import StateDictError


def through_a_file(state: dict[str, Any], folder: Any) -> dict[str, Any]:
    """Save as others do: tensors by safetensors, the rest as JSON."""
    from safetensors.numpy import load_file, save_file

    arrays = {
        f"state.{i}.{name}": t.numpy()
        for i, entry in state["state"].items()
        for name, t in entry.items()
    }
    save_file(arrays, folder / "state.safetensors")
    groups = json.loads(json.dumps(state["param_groups"], allow_nan=False))
    restored: dict[str, dict[str, Any]] = {}
    for key, array in load_file(folder / "state.safetensors").items():
        _, i, name = key.split(".")
        restored.setdefault(i, {})[name] = array
    return {"state": restored, "param_groups": groups}


@pytest.mark.parametrize("variant", VARIANTS)
def test_resumed_is_uninterrupted_bit_for_bit(variant: str, tmp_path: Any) -> None:
    straight = make_params()
    uninterrupted = make_optimizer(variant, straight)
    train(uninterrupted, straight, range(10))

    params = make_params()
    first = make_optimizer(variant, params)
    train(first, params, range(4))
    saved = through_a_file(first.state_dict(), tmp_path)
    later = [ndl.Tensor(p.detach().numpy().copy()) for p in params]
    second = type(first)(later)
    second.load_state_dict(saved)
    train(second, later, range(4, 10))

    assert bits(later) == bits(straight)
    for p, q in zip(later, straight, strict=True):
        assert second.state[p].keys() == uninterrupted.state[q].keys()
        for name, t in second.state[p].items():
            assert t.numpy().tobytes() == uninterrupted.state[q][name].numpy().tobytes()


def test_keys_are_strings_numbered_over_all_groups_and_scalars_are_json() -> None:
    params = make_params()
    optimizer = optim.AdamW([{"params": params[:1], "lr": 0.5}, {"params": params[1:]}])
    set_grads(params, 0)
    params[2].grad = None
    optimizer.step()
    state = optimizer.state_dict()
    assert list(state["state"]) == ["0", "1", "3"]
    assert [g["params"] for g in state["param_groups"]] == [[0], [1, 2, 3]]
    assert state["param_groups"][0] == {
        "lr": 0.5, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "amsgrad": False,
        "bias_correction": True, "maximize": False, "decoupled": True, "params": [0],
    }  # fmt: skip
    assert json.loads(json.dumps(state["param_groups"])) == state["param_groups"]


def test_integer_keys_are_taken_too() -> None:
    params = make_params()
    optimizer = optim.Adam(params)
    train(optimizer, params, range(2))
    state = optimizer.state_dict()
    state["state"] = {int(i): entry for i, entry in state["state"].items()}
    other = optim.Adam(make_params())
    other.load_state_dict(state)
    assert len(other.state) == len(params)


def test_loading_copies_and_keeps_the_tensors_that_are_there() -> None:
    params, others = make_params(), make_params(seed=1)
    source, target = optim.Adam(params, lr=0.5), optim.Adam(others)
    train(source, params, range(2))
    train(target, others, range(1))
    held = target.state[others[0]]["exp_avg"]
    step = target.state[others[0]]["step"]
    lr = target.param_groups[0]["lr"]
    target.load_state_dict(source.state_dict())
    assert target.state[others[0]]["exp_avg"] is held
    assert target.state[others[0]]["step"] is step
    assert (lr.item(), step.item()) == (0.5, 2)
    before = held.numpy().copy()
    train(source, params, range(2, 4))
    assert (held.numpy() == before).all()


def test_loading_twice_and_back_is_idempotent() -> None:
    params = make_params()
    optimizer = optim.Adam(params)
    train(optimizer, params, range(3))
    saved = copy.deepcopy(optimizer.state_dict())
    train(optimizer, params, range(3, 5))
    optimizer.load_state_dict(saved)
    optimizer.load_state_dict(optimizer.state_dict())
    again = optimizer.state_dict()
    assert again["param_groups"] == saved["param_groups"]
    for i, entry in saved["state"].items():
        for name, t in entry.items():
            assert again["state"][i][name].numpy().tobytes() == t.numpy().tobytes()


def test_step_counts_that_differ_stay_apart() -> None:
    params = make_params()
    optimizer = optim.Adam(params)
    for step in range(4):
        set_grads(params, step)
        if step < 2:
            params[0].grad = None
        if step == 3:
            params[1].grad = None
        optimizer.step()
    counts = [optimizer.state[p]["step"].item() for p in params]
    assert counts == [2, 3, 4, 4]
    other = optim.Adam(make_params())
    other.load_state_dict(optimizer.state_dict())
    later = other.param_groups[0]["params"]
    train(other, list(later), range(1))
    assert [other.state[p]["step"].item() for p in later] == [3, 4, 5, 5]


def test_parameters_stepped_together_share_one_counter() -> None:
    params = make_params()
    optimizer = optim.Adam(params)
    optimizer.init_state()
    set_grads(params, 0)
    optimizer.step()
    assert len({id(optimizer.state[p]["step"]) for p in params}) == 1


def test_state_that_a_later_switch_needs_is_saved() -> None:
    params = make_params()
    optimizer = optim.SGD(params, lr=0.1)
    train(optimizer, params, range(1))
    optimizer.param_groups[0]["momentum"] = 0.9
    other = optim.SGD(make_params())
    other.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["momentum"] = 0.0
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["momentum"].item() == 0.0


def test_names_must_agree() -> None:
    params = make_params()
    saved = optim.SGD([(f"p{i}", p) for i, p in enumerate(params)]).state_dict()
    assert json.loads(json.dumps(saved["param_groups"])) == saved["param_groups"]
    same = optim.SGD([(f"p{i}", p) for i, p in enumerate(params)])
    same.load_state_dict(json.loads(json.dumps(saved)))
    optim.SGD(params).load_state_dict(saved)
    swapped = optim.SGD([(f"p{i}", p) for i, p in zip((1, 0, 2, 3), params, strict=True)])
    with pytest.raises(StateDictError, match=r"params\[0\] is 'p1', saved was 'p0'"):
        swapped.load_state_dict(saved)


def spoil(change: Any) -> dict[str, Any]:
    params = make_params()
    optimizer = optim.Adam(params, lr=0.5)
    train(optimizer, params, range(1))
    state = copy.deepcopy(optimizer.state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("state"), "no 'state'"),
        (lambda s: s.pop("param_groups"), "no 'param_groups'"),
        (lambda s: s["param_groups"].append({}), "2 parameter groups were saved, here are 1"),
        (lambda s: s["param_groups"][0].update(params=[0]), "1 parameters were saved, here are 4"),
        (lambda s: s["param_groups"][0].pop("eps"), "no eps was saved"),
        (lambda s: s["param_groups"][0].update(momentum=0.9), "this optimizer has no momentum"),
        (lambda s: s["param_groups"][0].update(lr=-1.0), "lr must be"),
        (lambda s: s["param_groups"][0].update(lr="fast"), "lr must be a number"),
        (lambda s: s["state"].update({"7": s["state"]["0"]}), "do not exist: 7"),
        (lambda s: s["state"]["0"].pop("exp_avg"), r"params\[0\] \(shape \[4, 3\]\): no exp_avg"),
        (lambda s: s["state"]["0"].pop("step"), "no step"),
        (lambda s: s["state"]["1"].update(sum=ndl.ones(3)), "this optimizer has no sum"),
        (
            lambda s: s["state"]["1"].update(exp_avg=ndl.ones((3, 1))),
            r"params\[1\] .*: exp_avg has shape \[3, 1\], not \[3\]",
        ),
        (
            lambda s: s["state"]["1"].update(exp_avg=ndl.ones(3, dtype="float64")),
            "exp_avg is float64, not float32",
        ),
        (lambda s: s["state"]["1"].update(exp_avg=[1.0, 2.0, 3.0]), "exp_avg is a list"),
        (lambda s: s["state"]["1"].update(step=ndl.asarray(-3)), "step is -3"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(change: Any, words: str) -> None:
    params = make_params(seed=3)
    optimizer = optim.Adam(params, lr=0.25)
    train(optimizer, params, range(2))
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(StateDictError, match=words):
        optimizer.load_state_dict(spoil(change))
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for i, entry in before["state"].items():
        for name, t in entry.items():
            assert np.array_equal(after["state"][i][name].numpy(), t.numpy())


def test_all_differences_are_listed() -> None:
    def change(s: dict[str, Any]) -> None:
        s["param_groups"][0].pop("eps")
        s["state"]["0"].pop("exp_avg")
        s["state"]["1"].update(step=ndl.ones(2))

    with pytest.raises(StateDictError, match=r"(?s)eps.*exp_avg.*step has shape \[2\]"):
        optim.Adam(make_params()).load_state_dict(spoil(change))
