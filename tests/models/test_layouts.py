"""Compiled networks keep channels last from end to end: only images are transposed."""

import numpy as np
import pytest
from layouts import transposing

import needle as ndl
from needle import models, optim
from needle.compiler import pipeline

#: No number of channels and no extent of a kernel is a multiple of it: what is, is no weight.
BATCH = 11

NETWORKS = {
    "ResNet-20": lambda: (models.resnet20(), 16),
    "ResNet-50": lambda: (models.resnet50(classes=8), 32),
    "MobileNetV2": lambda: (models.MobileNetV2(classes=8), 32),
    "U-Net": lambda: (models.UNet(3, 4, width=8, depth=3, padded=True), 16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_only_images_are_transposed(name):
    ndl.manual_seed(0)
    model, size = NETWORKS[name]()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(x):
        optimizer.zero_grad()
        loss = ndl.mean(ndl.square(model(x)))
        loss.backward()
        optimizer.step()
        return loss

    x = ndl.asarray(np.zeros((BATCH, 3, size, size), "float32"))
    graph = pipeline.run(ndl.compile(step).trace(x).graph)
    moved = [
        (made, read)
        for made, read in transposing(graph)
        if not (read.size % BATCH == 0 and read in graph.inputs)
    ]
    assert not moved
    # The image once: what reads it shares the result.
    images = [n for n in graph.nodes if n.op.name == "permute_dims" and n.result.size % BATCH == 0]
    assert sum(n.inputs[0] in graph.inputs for n in images) == 1
