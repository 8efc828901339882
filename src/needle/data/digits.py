"""The data set that comes with needle: handwritten digits of 8×8 pixels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from needle.data.images import ImageDataset
from needle.errors import DataError

_FILE = Path(__file__).with_name("_files") / "digits.npz"
_EVERY = 5


class Digits(ImageDataset):
    """Optical recognition of handwritten digits (E. Alpaydin, C. Kaynak, 1998; CC BY 4.0).

    1,797 images, uint8 [1, 8, 8] with values 0 (background) to 16: scale them with
    ``transforms.ToFloat(maximum=Digits.MAXIMUM)``. No file is fetched; the data is part of the
    package.

    The collection has no official split. The one here is fixed and stratified: sorted by class and,
    within a class, in the collection's order, every fifth image is a test image, starting with the
    first. That gives 1,437 for training and 360 for testing, in proportion in every class.

    Args:
        train: True for the training images, False for the test images, None for all.
        transform: applied to each image.

    Raises:
        DataError: the file in the installed package is damaged.

    Example:
        >>> from needle.data import Digits
        >>> len(Digits(train=True)), len(Digits(train=False)), len(Digits())
        (1437, 360, 1797)
        >>> image, label = Digits(train=True)[0]
        >>> image.shape, image.dtype, label
        ((1, 8, 8), dtype('uint8'), 1)
    """

    CLASSES: ClassVar[tuple[str, ...]] = tuple("0123456789")
    MAXIMUM: ClassVar[int] = 16
    #: Of the training images, scaled to [0, 1].
    MEAN: ClassVar[tuple[float, ...]] = (0.3058,)
    STD: ClassVar[tuple[float, ...]] = (0.3762,)

    def __init__(
        self, train: bool | None = None, transform: Callable[[Any], Any] | None = None
    ) -> None:
        images, labels = _load()
        if train is not None:
            test = np.argsort(labels, kind="stable")[::_EVERY]
            chosen = np.full(len(labels), train)
            chosen[test] = not train
            images, labels = images[chosen], labels[chosen]
        super().__init__(images, labels, self.CLASSES, transform, "the digits in the package")
        self.train = train


def _load() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    from zipfile import BadZipFile

    try:
        with _FILE.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return archive["images"][:, None], archive["labels"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise DataError(
            f"{_FILE}: the data set in the package is damaged ({error}); reinstall needle-dl"
        ) from None
