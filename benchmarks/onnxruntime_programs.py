"""The programs in ONNX Runtime: those without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnxruntime

from benchmarks.onnx_networks import exported, images

Program = Callable[[], Any]

_options = onnxruntime.SessionOptions()


def set_threads(count: int) -> None:
    """Use so many threads."""
    _options.intra_op_num_threads = count
    _options.inter_op_num_threads = 1


def network_forward(
    network: str, batch: int, size: int, classes: int, precision: str = "float32"
) -> Program | None:
    """What an image classifier says; None in bfloat16, which its kernels do not compute in."""
    if precision != "float32":
        return None
    session = onnxruntime.InferenceSession(
        exported(network, batch, size, classes), _options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: images(batch, size)}
    return lambda: session.run(None, feed)
