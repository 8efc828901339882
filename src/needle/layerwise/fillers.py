"""Fillers: how parameters are initialised, by the names that Caffe gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from needle.errors import ArgumentError
from needle.ops.samples import Array
from needle.random import rand, randn


def fill(array: Array, filler: Mapping[str, Any] | None, default: str = "constant") -> None:
    """Write initial values into an array.

    Args:
        array: a parameter. Its first axis is of outputs, all others of inputs.
        filler: ``{"type": "gaussian", "std": 0.01}``: constant (value), uniform (min, max),
            gaussian (mean, std), xavier or msra (variance_norm: FAN_IN, FAN_OUT, AVERAGE),
            bilinear.
        default: the type, if there is no filler.

    Raises:
        ArgumentError: there is no such type.
    """
    options = dict(filler or {})
    kind = options.pop("type", default)
    make = FILLERS.get(kind)
    if make is None:
        raise ArgumentError(f"there is no filler {kind!r}; there are {', '.join(FILLERS)}")
    array[...] = make(array, **options)


def _constant(array: Array, value: float = 0.0) -> Any:
    return value


def _uniform(array: Array, min: float = 0.0, max: float = 1.0) -> Any:
    return rand(array.shape).numpy() * (max - min) + min


def _gaussian(array: Array, mean: float = 0.0, std: float = 1.0) -> Any:
    return randn(array.shape).numpy() * std + mean


def _fan(array: Array, variance_norm: str | int) -> float:
    fan_in = array.size / max(array.shape[0], 1)
    fan_out = array.size / max(array.shape[1], 1) if array.ndim > 1 else float(array.size)
    fans = {"FAN_IN": fan_in, "FAN_OUT": fan_out, "AVERAGE": (fan_in + fan_out) / 2}
    if variance_norm not in fans:
        raise ArgumentError(f"variance_norm must be one of {', '.join(fans)}, got {variance_norm}")
    return fans[str(variance_norm)]


def _xavier(array: Array, variance_norm: str = "FAN_IN") -> Any:
    scale = (3 / _fan(array, variance_norm)) ** 0.5
    return _uniform(array, -scale, scale)


def _msra(array: Array, variance_norm: str = "FAN_IN") -> Any:
    return _gaussian(array, 0.0, (2 / _fan(array, variance_norm)) ** 0.5)


def _bilinear(array: Array) -> Any:
    """Weights of a transposed convolution that interpolates."""
    if array.ndim != 4 or array.shape[2] != array.shape[3]:
        raise ArgumentError(f"bilinear fills square kernels, not {list(array.shape)}")
    size = array.shape[3]
    factor = -(-size // 2)
    center = (2 * factor - 1 - factor % 2) / (2 * factor)
    line = 1 - np.abs(np.arange(size) / factor - center)
    return np.outer(line, line)


#: By name.
FILLERS: dict[str, Callable[..., Any]] = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}
