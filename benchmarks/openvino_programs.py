"""The programs in OpenVINO: those without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openvino

from benchmarks.onnx_networks import exported, images

Program = Callable[[], Any]

_properties: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}


def set_threads(count: int) -> None:
    """Use so many threads."""
    _properties["INFERENCE_NUM_THREADS"] = count


def network_forward(
    network: str, batch: int, size: int, classes: int, precision: str = "float32"
) -> Program:
    """What an image classifier says; without a hint, OpenVINO computes in bfloat16 where it can."""
    names = {"float32": "f32", "bfloat16": "bf16"}
    core = openvino.Core()
    model = core.read_model(exported(network, batch, size, classes), b"")
    properties = {**_properties, "INFERENCE_PRECISION_HINT": names[precision]}
    request = core.compile_model(model, "CPU", properties).create_infer_request()
    request.set_input_tensor(openvino.Tensor(images(batch, size)))
    return request.infer
