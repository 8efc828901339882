"""Learning rate schedulers: functions of the number of steps, by PyTorch's names."""

from needle.optim.schedulers.combine import ChainedScheduler, SequentialLR
from needle.optim.schedulers.cosine import CosineAnnealingLR, OneCycleLR
from needle.optim.schedulers.factor import (
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiStepLR,
    StepLR,
)
from needle.optim.schedulers.scheduler import LRScheduler

__all__ = [
    "ChainedScheduler",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "SequentialLR",
    "StepLR",
]
