"""Small problems to optimize, and the optimizers in every shape that they have."""

from __future__ import annotations

from typing import Any

import numpy as np

import needle as ndl
from needle import optim

SHAPES = [(4, 3), (3,), (), (2, 0)]

#: Every optimizer with options that change its arithmetic.
VARIANTS: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {"lr": 0.1}),
    "sgd_decay": (optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "sgd_decoupled": (optim.SGD, {"lr": 0.1, "weight_decay": 0.1, "decoupled": True}),
    "sgd_maximize": (optim.SGD, {"lr": 0.1, "maximize": True}),
    "momentum": (optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "momentum_sum": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.0}),
    "momentum_dampening": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (optim.Adam, {"lr": 0.1}),
    "adam_plain": (optim.Adam, {"lr": 0.1, "bias_correction": False}),
    "adam_amsgrad": (optim.Adam, {"lr": 0.1, "amsgrad": True, "weight_decay": 0.1}),
    "adam_decoupled": (optim.Adam, {"lr": 0.1, "weight_decay": 0.1, "decoupled": True}),
    "adamw": (optim.AdamW, {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-3, "maximize": True}),
    "rmsprop": (optim.RMSprop, {"lr": 0.1}),
    "rmsprop_all": (
        optim.RMSprop,
        {"lr": 0.1, "centered": True, "momentum": 0.9, "weight_decay": 0.1, "eps": 1e-2},
    ),
    "adagrad": (optim.Adagrad, {"lr": 0.1}),
    "adagrad_all": (
        optim.Adagrad,
        {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.5},
    ),
}


def make_optimizer(variant: str, params: Any, **more: Any) -> optim.Optimizer:
    kind, options = VARIANTS[variant]
    return kind(params, **{**options, **more})


def make_params(dtype: Any = np.float32, seed: int = 0) -> list[ndl.Tensor]:
    rng = np.random.default_rng(seed)
    return [ndl.Tensor(np.asarray(rng.standard_normal(s)).astype(dtype)) for s in SHAPES]


def set_grads(params: list[ndl.Tensor], step: int) -> None:
    """Give each parameter a gradient that depends on the step only."""
    rng = np.random.default_rng(1000 + step)
    for p in params:
        p.grad = ndl.asarray(np.asarray(rng.standard_normal(p.shape)).astype(p.dtype))


def train(optimizer: optim.Optimizer, params: list[ndl.Tensor], steps: range) -> None:
    for step in steps:
        set_grads(params, step)
        optimizer.step()


def bits(params: list[ndl.Tensor]) -> list[bytes]:
    return [p.detach().numpy().tobytes() for p in params]
