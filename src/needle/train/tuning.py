"""From a recipe to the optimizer and the learning rate schedule it names."""

from __future__ import annotations

from typing import Any

from needle import optim
from needle.nn import Module
from needle.train.tasks import Recipe


def make_optimizer(recipe: Recipe, model: Module) -> optim.Optimizer:
    """Return the recipe's optimizer over a model's parameters.

    Weight decay acts on matrices and kernels only. Biases and the scales of normalisation layers
    (one axis) are not decayed: it does not regularise, and hurts (T. He et al., "Bag of tricks for
    image classification with convolutional neural networks", CVPR 2019).

    Args:
        recipe: Names the optimizer, its learning rate and its weight decay.
        model: Whose parameters it updates.
    """
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return optim.SGD(groups, lr=recipe.lr, momentum=0.9, dampening=0.0, nesterov=True)
    kinds = {
        "adagrad": optim.Adagrad,
        "adam": optim.Adam,
        "adamw": optim.AdamW,
        "rmsprop": optim.RMSprop,
    }
    return kinds[recipe.optimizer](groups, lr=recipe.lr)


def make_scheduler(
    recipe: Recipe, optimizer: optim.Optimizer, steps: int
) -> optim.LRScheduler | None:
    """Return the recipe's schedule, to be stepped after every optimizer step.

    Args:
        recipe: Names the schedule.
        optimizer: Whose learning rate it sets.
        steps: The number of steps in the whole training.
    """
    if recipe.schedule == "constant":
        return None
    rising = min(round(recipe.warmup * steps), steps - 1)
    falling = optim.CosineAnnealingLR(optimizer, T_max=max(steps - rising, 1))
    if rising < 1:
        return falling
    # The first step already has a share of the learning rate: at 0 it would be wasted.
    warm_up = optim.LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising)
    return optim.SequentialLR(optimizer, [warm_up, falling], milestones=[rising])
