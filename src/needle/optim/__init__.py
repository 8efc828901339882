"""Optimizers, gradient clipping, and learning rate schedulers.

Names and arguments are PyTorch's; `SGD` says where its momentum differs. Schedulers are here and,
as in PyTorch, in ``lr_scheduler``.
"""

from needle.optim import schedulers as lr_scheduler
from needle.optim.adagrad import Adagrad
from needle.optim.adam import Adam, AdamW
from needle.optim.clip import clip_grad_norm_, clip_grad_value_, get_total_norm
from needle.optim.optimizer import Optimizer
from needle.optim.param_group import ParamGroup
from needle.optim.rmsprop import RMSprop
from needle.optim.schedulers import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from needle.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "ChainedScheduler",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "ParamGroup",
    "RMSprop",
    "SequentialLR",
    "StepLR",
    "clip_grad_norm_",
    "clip_grad_value_",
    "get_total_norm",
    "lr_scheduler",
]
