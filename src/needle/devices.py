"""Devices: where a tensor's storage lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from needle.errors import DeviceError


@dataclass(frozen=True)
class Device:
    """A place for tensors.

    Attributes:
        type: ``"cpu"``, or ``"meta"``: no storage at all, only shape and dtype.
    """

    type: str

    def __str__(self) -> str:
        return self.type


CPU = Device("cpu")
META = Device("meta")


def as_device(device: Any) -> Device:
    """Return the device that ``device`` names; None is the CPU.

    Raises:
        DeviceError: there is no such device.
    """
    if device is None:
        return CPU
    if isinstance(device, Device):
        return device
    for known in (CPU, META):
        if device == known.type:
            return known
    raise DeviceError(f"there is no device {device!r} here; needle has 'cpu' and 'meta'")
