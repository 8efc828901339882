"""State dicts: a module's parameters and buffers by path, out and back in."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from needle import inplace
from needle.config import no_grad
from needle.devices import META
from needle.errors import ArgumentTypeError, NeedleError, StateDictError
from needle.nn.parameter import Buffer
from needle.ops.engine import as_tensor
from needle.tensor import Tensor

if TYPE_CHECKING:
    from needle.nn.module import Module


@dataclass
class LoadReport:
    """What did not fit, after ``load_state_dict(state, strict=False)``.

    Attributes:
        missing: keys of the module that the state dict does not have.
        unexpected: keys of the state dict that the module does not have.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def _named(module: Module, prefix: str = "") -> dict[str, Tensor]:
    """Return all parameters and persistent buffers, shared ones under each of their paths."""
    found: dict[str, Tensor] = {}
    for name, tensor in module._all_tensors(prefix, once=False):
        if isinstance(tensor, Buffer) and not tensor.persistent:
            continue
        if found.setdefault(name, tensor) is not tensor:
            raise StateDictError(
                f"two tensors of {type(module).__name__} have the path {name!r}: a dict's key "
                "contains a dot, or two keys print alike; rename one"
            )
    return found


def state_dict(module: Module, prefix: str) -> dict[str, Tensor]:
    """Return the state of ``module``; see `Module.state_dict`."""
    result: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in _named(module, prefix).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            result[name] = tensor.detach()
    return result


def load_state_dict(module: Module, state: Mapping[str, Any], strict: bool) -> LoadReport:
    """Copy ``state`` into ``module``; see `Module.load_state_dict`."""
    if not isinstance(state, Mapping):
        raise ArgumentTypeError(
            f"load_state_dict: needs a dict of tensors by path, got {type(state).__name__}"
        )
    targets = _named(module)
    values: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, value in state.items():
        converted = _converted(value)
        if isinstance(converted, Tensor):
            values[key] = converted
        else:
            problems.append(f"{key}: {converted}")
    # A shared parameter may be given under any of its paths.
    given = {id(targets[key]): key for key in reversed(targets) if key in state}
    firsts: dict[int, str] = {}
    for name, tensor in targets.items():
        firsts.setdefault(id(tensor), name)
    missing = [name for key, name in firsts.items() if key not in given]
    unexpected = [key for key in state if key not in targets]
    misshapen = [
        (key, targets[key], value)
        for key, value in values.items()
        if key in targets and value.shape != targets[key].shape
    ]
    lines = [*problems, *_untied(targets, given, values)]
    if strict:
        lines += _missing_lines(missing, targets)
        lines += _unexpected_lines(unexpected, values, missing or list(targets))
    lines += _misshapen_lines(misshapen)
    for key in given.values():
        if targets[key].device is META:
            lines.append(
                f"{key}: is on the meta device, which holds no values; build it on the CPU"
            )
        elif key in values and key not in {k for k, _, _ in misshapen}:
            lines += _uncastable(key, targets[key], values[key])
    if lines:
        raise StateDictError(
            f"the state dict does not fit {type(module).__name__}:\n  " + "\n  ".join(lines)
        )
    # A value may be the storage of another parameter, which the copies would overwrite first.
    storages = {id(target._data) for target in targets.values()}
    for key in given.values():
        value = values[key]
        if id(value._data) in storages and value._data is not targets[key]._data:
            values[key] = value.detach().clone()
    with no_grad():
        for key in given.values():
            inplace.assign(targets[key], values[key], f"load of {key}")
    return LoadReport(missing, unexpected)


def _converted(value: Any) -> Tensor | NeedleError:
    """Return ``value`` as a tensor, or why it is none."""
    try:
        return as_tensor(value)
    except NeedleError as error:
        return error


def _missing_lines(missing: list[str], targets: dict[str, Tensor]) -> list[str]:
    if not missing:
        return []
    listed = ", ".join(f"{k} {list(targets[k].shape)}" for k in missing)
    return [f"missing ({len(missing)}): {listed}"]


def _unexpected_lines(
    unexpected: list[str], values: dict[str, Tensor], candidates: list[str]
) -> list[str]:
    if not unexpected:
        return []
    listed = []
    for key in unexpected:
        shape = f" {list(values[key].shape)}" if key in values else ""
        close = difflib.get_close_matches(str(key), candidates, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        listed.append(f"{key}{shape}{hint}")
    return [f"unexpected ({len(unexpected)}): " + ", ".join(listed)]


def _misshapen_lines(misshapen: list[tuple[str, Tensor, Tensor]]) -> list[str]:
    if not misshapen:
        return []
    listed = []
    for key, target, value in misshapen:
        text = f"{key} is {list(target.shape)}, got {list(value.shape)}"
        if target.ndim == 2 and value.shape == target.shape[::-1]:
            text += " (the transpose: needle keeps weights as [in, out], PyTorch as [out, in])"
        listed.append(text)
    return [f"other shape ({len(misshapen)}): " + ", ".join(listed)]


def _untied(
    targets: dict[str, Tensor], given: dict[int, str], values: dict[str, Tensor]
) -> list[str]:
    """Return a line for each shared parameter that is given twice, with different values."""
    lines = []
    for key, value in values.items():
        first = given.get(id(targets[key])) if key in targets else None
        if first is None or first == key or first not in values:
            continue
        other = values[first]
        if value.shape != other.shape or not bool((value == other).all()):
            lines.append(
                f"{first} and {key} are one shared parameter here, but their values differ"
            )
    return lines


def _uncastable(key: str, target: Tensor, value: Tensor) -> list[str]:
    try:
        inplace.check_cast(value.dtype, target.dtype, key)
    except NeedleError:
        return [
            f"{key}: is {target.dtype.name}, got {value.dtype.name}, which would lose information"
        ]
    return []
