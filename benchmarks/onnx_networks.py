"""The networks of `torch_networks` as ONNX files, for runtimes that only run what is trained."""

from __future__ import annotations

import contextlib
import io
import warnings

import numpy as np
import torch

from benchmarks import torch_networks


def exported(network: str, batch: int, size: int, classes: int) -> bytes:
    """Return a classifier of images of one size and number as an ONNX model."""
    torch.manual_seed(0)
    model = getattr(torch_networks, network)(classes).eval()
    file = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (torch.zeros(batch, 3, size, size),), file, dynamo=False)
    return file.getvalue()


def images(batch: int, size: int) -> np.ndarray:
    """Return images to classify."""
    shape = (batch, 3, size, size)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
