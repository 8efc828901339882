"""Collation: a list of samples becomes one batch of Tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from needle.arrays import maker
from needle.creation import asarray
from needle.dtypes import as_dtype
from needle.errors import ArgumentError, ArgumentTypeError, DTypeError, OutOfRangeError, ShapeError
from needle.tensor import Tensor


def default_collate(samples: Sequence[Any]) -> Any:
    """Return a batch: the samples' structure, its leaves stacked to Tensors along a new first axis.

    =====================  ==============================================================
    a leaf of the samples  becomes
    =====================  ==============================================================
    Tensor, NumPy array    Tensor of the same dtype, ``[batch, *shape]``
    NumPy scalar, bool     Tensor of the same dtype, ``[batch]``
    int                    int64 ``[batch]``
    float                  float32 ``[batch]``
    str, bytes             a list of them
    =====================  ==============================================================

    No Tensor of a batch requires gradients. All samples must have the same structure, shapes and
    dtypes: what one sample becomes never depends on the others in its batch.

    Args:
        samples: at least one sample, each a nest of tuples, named tuples, lists and dicts.

    Raises:
        ShapeError: samples differ in shape or structure; the message names the first that does.
        DTypeError: samples differ in dtype, or hold something that is no number.
        ArgumentTypeError: a leaf is of a type that has no place in a batch.
        ArgumentError: there is no sample.

    Example:
        >>> import numpy as np
        >>> from needle.data import default_collate
        >>> samples = [{"x": np.zeros(3), "y": 1}, {"x": np.ones(3), "y": 2}]
        >>> batch = default_collate(samples)
        >>> batch["x"].shape, batch["y"].tolist(), batch["y"].dtype
        ((2, 3), [1, 2], dtype('int64'))
    """
    if len(samples) == 0:
        raise ArgumentError("cannot make a batch of no samples; is the list of indices empty?")
    return _collate(samples, "")


def _collate(samples: Sequence[Any], path: str) -> Any:
    first = samples[0]
    if isinstance(first, Tensor):
        return asarray(_stack([_detached(s) for s in samples], path))
    if isinstance(first, (np.ndarray, np.generic)):
        return asarray(_stack(samples, path))
    if isinstance(first, (bool, int, float)):
        return asarray(_stack_numbers(samples, path))
    if isinstance(first, (str, bytes)):
        _check_types(samples, path)
        return list(samples)
    if isinstance(first, dict):
        return _collate_dicts(samples, path)
    if isinstance(first, (tuple, list)):
        return _collate_sequences(samples, path)
    raise ArgumentTypeError(
        f"a sample{_at(path)} is of type {type(first).__name__}, which no batch can hold; return "
        "arrays, numbers, strings, or nests of them, or pass a collate_fn of your own"
    )


def _collate_dicts(samples: Sequence[Any], path: str) -> dict[Any, Any]:
    _check_types(samples, path)
    keys = samples[0].keys()
    for i, sample in enumerate(samples):
        if sample.keys() != keys:
            raise ShapeError(
                f"sample {i}{_at(path)} has the keys {list(sample)}, but sample 0 has {list(keys)}"
            )
    return {k: _collate([s[k] for s in samples], f"{path}[{k!r}]") for k in keys}


def _collate_sequences(samples: Sequence[Any], path: str) -> Any:
    _check_types(samples, path)
    first = samples[0]
    for i, sample in enumerate(samples):
        if len(sample) != len(first):
            raise ShapeError(
                f"sample {i}{_at(path)} is a {type(sample).__name__} of {len(sample)} parts, but "
                f"sample 0 has {len(first)}; sequences of different lengths belong in arrays that "
                "are padded to one length, or in a collate_fn of your own"
            )
    parts = [_collate(part, f"{path}[{i}]") for i, part in enumerate(zip(*samples, strict=True))]
    if isinstance(first, list):
        return parts
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def _stack(arrays: Sequence[Any], path: str) -> np.ndarray[Any, Any]:
    first = arrays[0]
    for i, array in enumerate(arrays):
        if not isinstance(array, (np.ndarray, np.generic)):
            raise ArgumentTypeError(
                f"sample {i}{_at(path)} is of type {type(array).__name__}, but sample 0 is an array"
            )
        if array.shape != first.shape:
            raise ShapeError(
                f"sample {i}{_at(path)} has shape {array.shape}, but sample 0 has shape "
                f"{first.shape}; pad or crop them to one shape in a transform, or pass a "
                "collate_fn of your own"
            )
        if array.dtype != first.dtype:
            raise DTypeError(
                f"sample {i}{_at(path)} has dtype {array.dtype}, but sample 0 has {first.dtype}; "
                "convert them in the dataset, so that a batch's dtype does not depend on which "
                "samples it holds"
            )
    try:
        as_dtype(first.dtype)
    except DTypeError as error:
        raise DTypeError(f"sample 0{_at(path)}: {error}") from None
    return np.stack(arrays, out=maker((len(arrays), *first.shape), first.dtype)())


def _stack_numbers(numbers: Sequence[Any], path: str) -> np.ndarray[Any, Any]:
    _check_types(numbers, path)
    kind = type(numbers[0])
    if issubclass(kind, bool):
        return np.array(numbers, np.bool_)
    if issubclass(kind, float):
        return np.array(numbers, np.float32)
    try:
        return np.array(numbers, np.int64)
    except OverflowError:
        i = next(i for i, x in enumerate(numbers) if not -(2**63) <= x < 2**63)
        raise OutOfRangeError(
            f"sample {i}{_at(path)} is {numbers[i]}, which does not fit int64"
        ) from None


def _check_types(samples: Sequence[Any], path: str) -> None:
    kind = type(samples[0])
    for i, sample in enumerate(samples):
        if type(sample) is not kind:
            raise ArgumentTypeError(
                f"sample {i}{_at(path)} is of type {type(sample).__name__}, but sample 0 is of "
                f"type {kind.__name__}; all samples of a dataset must have one structure"
            )


def _detached(sample: Any) -> Any:
    return sample.detach().numpy() if isinstance(sample, Tensor) else sample


def _at(path: str) -> str:
    return f" at {path}" if path else ""
