"""Loading the state dict of an optimizer: first compare everything, then write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.config import changes, no_grad
from needle.creation import asarray
from needle.dtypes import DType, accumulation_dtype, int64
from needle.errors import NeedleError, StateDictError
from needle.inplace import assign
from needle.optim.param_group import EXTRA_KEYS, ParamGroup
from needle.shapes import Shape
from needle.tensor import Tensor

if TYPE_CHECKING:
    from needle.optim.optimizer import Optimizer

State = dict[str, Tensor]


def load(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Do what `Optimizer.load_state_dict` says."""
    problems: list[str] = []
    groups, states = _compare(optimizer, state_dict, problems)
    if problems:
        shown = "\n".join(f"  - {p}" for p in problems[:20])
        more = f"\n  … and {len(problems) - 20} more" if len(problems) > 20 else ""
        owner = type(optimizer).__name__
        raise StateDictError(f"{owner}: the state dict does not fit this optimizer:\n{shown}{more}")
    start = 0
    for group, values in zip(optimizer.param_groups, groups, strict=True):
        group.assign(values)
        _restore_group(optimizer, group, {i - start: s for i, s in states.items() if i >= start})
        start += len(group["params"])


def _compare(
    optimizer: Optimizer, state_dict: Mapping[str, Any], problems: list[str]
) -> tuple[list[Mapping[str, Any]], dict[int, State]]:
    """Return the saved groups and states, and add to ``problems`` what does not fit."""
    for key in ("state", "param_groups"):
        if not isinstance(state_dict, Mapping) or key not in state_dict:
            problems.append(f"there is no {key!r}; give what state_dict() of an optimizer returned")
            return [], {}
    groups = list(state_dict["param_groups"])
    count = len(optimizer.param_groups)
    if len(groups) != count:
        problems.append(f"{len(groups)} parameter groups were saved, here are {count}")
        return [], {}
    states: dict[int, State] = {}
    entries = {str(key): entry for key, entry in state_dict["state"].items()}
    start = 0
    for number, (group, saved) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        where = f"param_groups[{number}]"
        params = group["params"]
        count = len(saved.get("params", ()))
        if count != len(params):
            problems.append(f"{where}: {count} parameters were saved, here are {len(params)}")
            return [], {}
        options = _compare_group(optimizer, group, saved, where, problems)
        for i, p in enumerate(params):
            entry = entries.pop(str(start + i), None)
            if entry is not None:
                label = f"state of {where} {group.name_of(i)}"
                states[start + i] = _compare_state(optimizer, p, entry, options, label, problems)
        start += len(params)
    if entries:
        problems.append(f"state of parameters that do not exist: {', '.join(entries)}")
    return groups, states


def _compare_group(
    optimizer: Optimizer,
    group: ParamGroup,
    saved: Mapping[str, Any],
    where: str,
    problems: list[str],
) -> frozenset[str]:
    """Compare hyper-parameters and names; return the options that the saved group has."""
    known = optimizer.hyperparameters.names
    missing = [key for key in known if key not in saved]
    unknown = [key for key in saved if key not in known and key not in EXTRA_KEYS]
    if missing:
        problems.append(f"{where}: no {', '.join(missing)} was saved")
    if unknown:
        problems.append(f"{where}: this optimizer has no {', '.join(unknown)}")
    names, saved_names = group.get("param_names"), saved.get("param_names")
    if names is not None and saved_names is not None:
        for i, (name, saved_name) in enumerate(zip(names, saved_names, strict=False)):
            if name != saved_name:
                problems.append(
                    f"{where}: params[{i}] is {name!r}, saved was {saved_name!r}; state is matched "
                    "by order (delete param_names from the state dict if only the names changed)"
                )
                break
    if missing or unknown:
        return frozenset()
    try:
        trial = ParamGroup(type(optimizer).__name__, optimizer.hyperparameters, (), None, saved)
        optimizer.check_group(trial)
    except NeedleError as error:
        problems.append(f"{where}: {error}")
        return frozenset()
    return trial.options


def _compare_state(
    optimizer: Optimizer,
    param: Tensor,
    entry: Mapping[str, Any],
    options: frozenset[str],
    label: str,
    problems: list[str],
) -> State:
    """Compare the state of one parameter; return copies of its tensors."""
    known = optimizer.hyperparameters
    everything = known.flags | known.switches | known.optional
    counter = ("step",) if optimizer.counts_steps else ()
    required = {*counter, *optimizer.state_names(options)}
    allowed = {*counter, *optimizer.state_names(everything)}
    if missing := sorted(required - set(entry)):
        problems.append(f"{label}: no {', '.join(missing)}")
    if unknown := sorted(set(entry) - allowed):
        problems.append(f"{label}: this optimizer has no {', '.join(unknown)}")
    state: State = {}
    for name in sorted(allowed & set(entry)):
        shape: Shape = () if name == "step" else param.shape
        dtype: DType = int64 if name == "step" else accumulation_dtype(param.dtype)
        value = entry[name]
        if not isinstance(value, (Tensor, np.ndarray, np.generic)):
            problems.append(f"{label}: {name} is a {type(value).__name__}, not a tensor")
            continue
        tensor = asarray(value, copy=True)
        if tensor.shape != shape:
            problems.append(f"{label}: {name} has shape {list(tensor.shape)}, not {list(shape)}")
        elif tensor.dtype != dtype:
            problems.append(f"{label}: {name} is {tensor.dtype.name}, not {dtype.name}")
        elif name == "step" and tensor.item() < 0:
            problems.append(f"{label}: step is {tensor.item()}")
        else:
            state[name] = tensor
    return state


def _restore_group(optimizer: Optimizer, group: ParamGroup, states: Mapping[int, State]) -> None:
    """Write the states into the tensors that are there, so that who holds those sees the values."""
    changes.note()
    counters: dict[int, Tensor] = {}
    taken: set[int] = set()
    for i, p in enumerate(group["params"]):
        old = optimizer.state.pop(p, {})
        if i not in states:
            continue
        new = states[i]
        if "step" in new:
            # Parameters at the same count share their counter, as they did when it was saved.
            count = int(new["step"].item())
            if count not in counters:
                existing = old.get("step")
                counters[count] = (
                    new["step"] if existing is None or id(existing) in taken else existing
                )
                taken.add(id(counters[count]))
                _write(counters[count], new["step"])
            new["step"] = old["step"] = counters[count]
        optimizer.state[p] = {
            name: _write(old[name], t) if name in old else t for name, t in new.items()
        }


def _write(target: Tensor, value: Tensor) -> Tensor:
    if target is not value:
        with no_grad():
            assign(target, value, "load_state_dict")
    return target
