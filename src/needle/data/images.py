"""Labelled images in memory: what the image datasets have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.data.dataset import Dataset, as_index, as_indices
from needle.data.transforms import takes_batches
from needle.errors import DataError


class ImageDataset(Dataset[tuple[Any, int]]):
    """Images ``[samples, channels, height, width]`` with a class each.

    A sample is ``(image, label)``: the image as it is stored, or what ``transform`` makes of it,
    and the class as an int. If the transform takes batches (all of `needle.data.transforms` do), a
    `DataLoader` reads and transforms a whole batch at once.

    Args:
        images: uint8 [samples, channels, height, width].
        labels: integers [samples], the class of each.
        classes: the classes' names.
        transform: applied to each image; any callable.
        source: what to call the data in an error message.

    Raises:
        DataError: the numbers of images and labels differ, or a label is no class.

    Example:
        >>> import numpy as np
        >>> from needle.data import ImageDataset
        >>> data = ImageDataset(np.zeros((2, 1, 4, 4), np.uint8), [0, 1], classes=["cat", "dog"])
        >>> image, label = data[1]
        >>> image.shape, data.classes[label]
        ((1, 4, 4), 'dog')
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: Sequence[int] | NDArray[np.integer[Any]],
        classes: Sequence[str],
        transform: Callable[[Any], Any] | None = None,
        source: str = "the data",
    ) -> None:
        # Samples are views of this memory: a transform that writes in place must not change it.
        self.images = images.view()
        self.images.flags.writeable = False
        self.labels = np.asarray(labels, np.int64).view()
        self.labels.flags.writeable = False
        self.classes = tuple(classes)
        self.transform = transform
        if images.ndim != 4:
            raise DataError(
                f"{source}: images must have the shape [samples, channels, height, width], got "
                f"{images.shape}"
            )
        if self.labels.shape != (len(images),):
            raise DataError(
                f"{source}: {len(images)} images but labels of shape {self.labels.shape}; each "
                "image needs one label, so one of the files is incomplete or belongs to another "
                "data set"
            )
        check_labels(self.labels, len(self.classes), source)

    @property
    def batched(self) -> bool:  # type: ignore[override]
        """Whether the transform takes batches."""
        return takes_batches(self.transform)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        i = as_index(index, len(self), type(self).__name__)
        image = self.images[i]
        return (image if self.transform is None else self.transform(image)), int(self.labels[i])

    def get_batch(self, indices: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
        """Return the images and the labels at ``indices``."""
        rows = as_indices(indices, len(self), type(self).__name__)
        images = self.images[rows]
        return (images if self.transform is None else self.transform(images)), self.labels[rows]

    def __repr__(self) -> str:
        channels, height, width = self.images.shape[1:]
        return (
            f"{type(self).__name__}({len(self)} images {channels}×{height}×{width}, "
            f"{len(self.classes)} classes)"
        )


def check_labels(labels: NDArray[Any], classes: int, source: str) -> None:
    """Check that labels are classes.

    Raises:
        DataError: one is not; the message names the first, and its place.
    """
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        at = int(np.argmax(wrong))
        raise DataError(
            f"{source}: label {labels[at]} of sample {at} is out of range; labels must lie in "
            f"0 … {classes - 1}. The file is corrupt or of another data set"
        )
