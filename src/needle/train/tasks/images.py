"""Image classification: digits (in the package), MNIST and CIFAR-10."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle import models, nn
from needle.data import (
    CIFAR10,
    MNIST,
    Digits,
    ImageDataset,
    Subset,
    convert_cifar10_jpeg,
    transforms as T,
)
from needle.errors import ArgumentError, DataNotFoundError
from needle.train.environment import cache_folder
from needle.train.tasks.task import Recipe, Task, TaskOptions

# If MNIST's training files are missing, every fifth of the 10,000 test images is for testing.
TEST_EVERY = 5
CIFAR10_JPEG = "cifar10-jpeg.zip"


@dataclass(frozen=True)
class ModelChoice:
    """A model that a task offers.

    Attributes:
        make: Returns it, initialised.
        recipe: How it is best trained on the task's data.
    """

    make: Callable[[], nn.Module]
    recipe: Recipe


def choose(
    task: str, name: str | None, choices: Mapping[str, ModelChoice]
) -> tuple[str, ModelChoice]:
    """Return the chosen model, by default the first.

    Raises:
        ArgumentError: The task does not offer it.
    """
    name = next(iter(choices)) if name is None else name
    if name not in choices:
        raise ArgumentError(
            f"the task {task} has no model {name!r}; choose one of {', '.join(choices)}"
        )
    return name, choices[name]


def digits(options: TaskOptions) -> Task:
    """Return the task of recognising digits of 8×8 pixels; its data is in the package."""
    transform = _scaled(Digits.MAXIMUM, Digits.MEAN, Digits.STD)
    train, test = Digits(True, transform), Digits(False, transform)
    recipe = Recipe(epochs=30, batch_size=32, lr=3e-3, weight_decay=0.05)
    pixels = 8 * 8
    choices = {
        "mlp": ModelChoice(lambda: models.MLP(pixels, 128, 64, 10), recipe),
        "mlp-resnet": ModelChoice(lambda: models.MLPResNet(pixels, 100), recipe),
    }
    return _image_task("digits", options.model, choices, train, test, test)


def mnist(options: TaskOptions) -> Task:
    """Return the task of recognising MNIST's digits.

    If the folder holds only the 10,000 test images, every fifth of them becomes a test image and
    the other 8,000 training images; the task's notes say so.
    """
    normalise = [T.ToFloat(255), T.Normalize(MNIST.MEAN, MNIST.STD)]
    augment = T.Compose([T.RandomCrop(28, padding=2), *normalise])
    # Files of the user's are used as they are; only the cache is filled from the network.
    fetch = options.data is None
    folder = cache_folder() / "mnist" if options.data is None else options.data
    with _hint_at_fetching(options.data):
        images = MNIST(folder, False, T.Compose(normalise), download=fetch)
    train: Any
    test: Any
    notes: tuple[str, ...] = ()
    try:
        train, test = MNIST(folder, True, augment, download=fetch), images
    except DataNotFoundError:
        indices = np.arange(len(images))
        tested = indices % TEST_EVERY == 0
        train = Subset(MNIST(folder, False, augment), indices[~tested])
        test = Subset(images, indices[tested])
        notes = (
            f"{folder} holds only MNIST's 10,000 test images (t10k-*). Every fifth of them is used "
            f"for testing ({len(test):,}), the others for training ({len(train):,}); accuracies "
            "are not those of the full data set.",
        )
    recipe = Recipe(epochs=20, batch_size=64, lr=2e-3, weight_decay=0.05)
    pixels = 28 * 28
    choices = {
        "mlp": ModelChoice(lambda: models.MLP(pixels, 256, 128, 10), recipe),
        "mlp-resnet": ModelChoice(lambda: models.MLPResNet(pixels, 128), recipe),
        "lenet": ModelChoice(models.LeNet, recipe),
    }
    task = _image_task("mnist", options.model, choices, train, test, images)
    task.notes = notes
    return task


def cifar10(options: TaskOptions) -> Task:
    """Return the task of recognising CIFAR-10's photographs, with random crops and flips."""
    normalise = [T.ToFloat(255), T.Normalize(CIFAR10.MEAN, CIFAR10.STD)]
    augment = T.Compose([T.RandomCrop(32, padding=4), T.RandomHorizontalFlip(), *normalise])
    folder, fetch, notes = _cifar10_folder(options.data)
    with _hint_at_fetching(options.data):
        test = CIFAR10(folder, False, T.Compose(normalise), download=fetch)
        train = CIFAR10(folder, True, augment, download=fetch)
    recipe = Recipe(epochs=10, batch_size=128, optimizer="sgd", lr=0.1, weight_decay=5e-4)
    small = Recipe(epochs=20, batch_size=128, lr=1e-3, weight_decay=0.05)
    choices = {
        f"resnet{depth}": ModelChoice(getattr(models, f"resnet{depth}"), recipe)
        for depth in (20, 32, 44, 56, 110)
    }
    choices["lenet"] = ModelChoice(lambda: models.LeNet(3, size=32), small)
    choices["mlp"] = ModelChoice(lambda: models.MLP(3 * 32 * 32, 512, 256, 10), small)
    task = _image_task("cifar10", options.model, choices, train, test, test)
    task.notes = notes
    return task


def _cifar10_folder(data: Path | None) -> tuple[Path, bool, tuple[str, ...]]:
    """Return the folder with CIFAR-10, whether to fetch what it lacks, and remarks."""
    if data is None:
        return cache_folder() / "cifar10", True, ()
    if data.name == CIFAR10_JPEG:
        data = data.parent
    if (data / CIFAR10_JPEG).is_file() and not any(data.glob("cifar-10-*")):
        folder = cache_folder() / "cifar10-jpeg"
        convert_cifar10_jpeg(data / CIFAR10_JPEG, folder)
        note = (
            f"The images come from JPEG copies ({CIFAR10_JPEG}), which lose some detail: published "
            "accuracies are approached, not matched exactly."
        )
        return folder, False, (note,)
    return data, False, ()


@contextlib.contextmanager
def _hint_at_fetching(data: Path | None) -> Iterator[None]:
    try:
        yield
    except DataNotFoundError as error:
        if data is None:
            raise
        hint = "or leave out --data, and needle fetches the files"
        raise DataNotFoundError(f"{error}; {hint}") from None


def _scaled(maximum: int, mean: Sequence[float], std: Sequence[float]) -> T.Compose:
    return T.Compose([T.ToFloat(maximum), T.Normalize(mean, std)])


def _image_task(
    name: str,
    model: str | None,
    choices: Mapping[str, ModelChoice],
    train: Any,
    test: Any,
    pictures: ImageDataset,
) -> Task:
    chosen, choice = choose(name, model, choices)
    return Task(
        model=choice.make(),
        train_data=train,
        test_data=test,
        loss=nn.functional.cross_entropy,
        name=name,
        model_name=chosen,
        recipe=choice.recipe,
        class_names=pictures.classes,
        picture=_pictures(pictures.images, getattr(test, "indices", None)),
        signature={"training examples": len(train), "test examples": len(test)},
    )


def _pictures(
    images: NDArray[np.uint8], indices: NDArray[np.int64] | None
) -> Callable[[int], NDArray[np.uint8]]:
    """Return a function from a test example's index to its pixels, as they are stored."""
    brightest = max(int(images[: 1 << 10].max(initial=0)), 1)

    def picture(index: int) -> NDArray[np.uint8]:
        image = images[index if indices is None else indices[index]]
        scaled = np.minimum(image.astype(np.float32) * (255 / brightest), 255)
        return scaled.astype(np.uint8).transpose(1, 2, 0)

    return picture
