"""Training state as JSON plus named arrays, and back.

A state is a nest of dicts, lists and tuples whose leaves are Tensors, NumPy arrays, numbers,
strings, booleans and None. `split` takes the arrays out and leaves JSON in which each of them is a
reference by name; `join` puts them back. What JSON cannot say is written as an object with one key
that starts with `$`:

| object                    | means                                                |
|---------------------------|------------------------------------------------------|
| `{"$tensor": name}`       | a Tensor                                             |
| `{"$array": name}`        | a NumPy array                                        |
| `{"$tuple": [...]}`       | a tuple                                              |
| `{"$float": "nan"}`       | a float that JSON has no literal for                 |
| `{"$items": [[k, v] …]}`  | a dict whose keys are not all plain strings          |

Names follow the path (`model.0.weight`), so that any safetensors tool shows a readable list.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.errors import ArgumentError, CheckpointError
from needle.tensor import Tensor

Arrays = dict[str, NDArray[Any]]


def split(state: Any) -> tuple[Any, Arrays]:
    """Separate a state into JSON and its arrays.

    Args:
        state: The nest described at the top of this module.

    Returns:
        The JSON value, and the arrays by the names it refers to. Arrays are not copied.

    Raises:
        ArgumentError: A leaf is of another type; the message gives its path.

    Example:
        >>> import numpy as np
        >>> from needle.train.structure import split
        >>> split({"model": {"bias": np.zeros(2)}, "epoch": 3})
        ({'model': {'bias': {'$array': 'model.bias'}}, 'epoch': 3}, {'model.bias': array([0., 0.])})
    """
    arrays: Arrays = {}
    return _split(state, (), arrays), arrays


def join(structure: Any, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Rebuild the state that `split` took apart.

    Args:
        structure: The JSON value.
        arrays: The arrays by name.

    Returns:
        The state, with the types of its leaves restored.

    Raises:
        CheckpointError: An object is malformed, or names an array that is not there.
    """
    return _join(structure, (), arrays)


def _split(value: Any, path: tuple[str, ...], arrays: Arrays) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Tensor):
        return {"$tensor": _add(value._values("a checkpoint"), path, arrays)}
    if isinstance(value, np.ndarray):
        return {"$array": _add(value, path, arrays)}
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, Mapping):
        return _split_mapping(value, path, arrays)
    if isinstance(value, (list, tuple)):
        items = [_split(item, (*path, str(i)), arrays) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    raise ArgumentError(
        f"cannot save {_where(path)}: it is a {type(value).__name__}. A checkpoint holds Tensors, "
        "NumPy arrays, numbers, strings, booleans, None, and dicts, lists and tuples of them"
    )


def _split_mapping(value: Mapping[Any, Any], path: tuple[str, ...], arrays: Arrays) -> Any:
    plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
    pairs: list[list[Any]] = []
    for key, item in value.items():
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise ArgumentError(
                f"cannot save {_where(path)}: its key {key!r} is a {type(key).__name__}; "
                "the keys of a dict in a checkpoint are strings or integers"
            )
        pairs.append([key, _split(item, (*path, str(key)), arrays)])
    return dict(pairs) if plain else {"$items": pairs}


def _add(array: NDArray[Any], path: tuple[str, ...], arrays: Arrays) -> str:
    base = ".".join(path) or "value"
    name, count = base, 1
    # {"a.b": x, "a": {"b": y}} gives one path twice; "__metadata__" is taken by safetensors.
    while name in arrays or name == "__metadata__":
        count += 1
        name = f"{base}#{count}"
    arrays[name] = array
    return name


def _join(node: Any, path: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]) -> Any:
    if isinstance(node, list):
        return [_join(item, (*path, str(i)), arrays) for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    if not any(key.startswith("$") for key in node):
        return {key: _join(item, (*path, key), arrays) for key, item in node.items()}
    if len(node) == 1:
        ((tag, value),) = node.items()
        if tag in ("$tensor", "$array") and isinstance(value, str):
            if value not in arrays:
                raise CheckpointError(f"{_where(path)} refers to tensor {value!r}, which is absent")
            array = arrays[value]
            return Tensor(array, requires_grad=False) if tag == "$tensor" else array
        if tag == "$tuple" and isinstance(value, list):
            return tuple(_join(value, path, arrays))
        if tag == "$float" and value in ("nan", "inf", "-inf"):
            return float(value)
        if tag == "$items" and isinstance(value, list):
            return dict(_join_item(pair, path, arrays) for pair in value)
    raise CheckpointError(f"{_where(path)} is not something needle writes: {str(node)[:80]}")


def _join_item(
    pair: Any, path: tuple[str, ...], arrays: Mapping[str, NDArray[Any]]
) -> tuple[str | int, Any]:
    if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], (str, int)):
        return pair[0], _join(pair[1], (*path, str(pair[0])), arrays)
    raise CheckpointError(f"{_where(path)} is not something needle writes: {str(pair)[:80]}")


def _where(path: tuple[str, ...]) -> str:
    return "state" + "".join(f"[{part!r}]" for part in path)
