"""Transforms of images: NumPy arrays in, NumPy arrays out, composing.

Every transform takes one image ``[channels, height, width]`` or a batch ``[samples, channels,
height, width]`` and does the same to an image in either. Random ones draw from the streams of the
samples (`needle.data.streams`), so what happens to an image does not depend on its batch.

Crop and flip before `ToFloat`: a quarter of the bytes move.

Example:
    >>> import numpy as np
    >>> from needle.data import transforms
    >>> augment = transforms.Compose([
    ...     transforms.RandomCrop(32, padding=4),
    ...     transforms.RandomHorizontalFlip(),
    ...     transforms.ToFloat(),
    ...     transforms.Normalize(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    ... ])
    >>> augment(np.zeros((3, 32, 32), np.uint8)).shape
    (3, 32, 32)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from needle.data.streams import sample_streams
from needle.errors import ArgumentError, ArgumentTypeError, DTypeError, ShapeError

Array = NDArray[Any]


class Transform:
    """A function of an array; derive, and write ``__call__``.

    A transform that takes batches as well sets ``batched``, and then must treat each image as it
    would alone. Its random numbers come from `sample_streams` (or, unbatched, `sample_generator`).
    """

    #: Whether it also takes a batch.
    batched: bool = False

    def __call__(self, image: Array) -> Any:
        """Return the transformed array; the one given is not changed."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__")


class Compose(Transform):
    """Apply transforms one after another; any callables of one argument.

    It takes batches if all of its transforms do.

    Raises:
        ArgumentTypeError: one of them cannot be called.

    Example:
        >>> from needle.data.transforms import Compose, Flatten, ToFloat
        >>> Compose([ToFloat(), Flatten()])
        Compose(
            ToFloat(maximum=255)
            Flatten()
        )
    """

    def __init__(self, transforms: Iterable[Callable[[Any], Any]]) -> None:
        self.transforms = list(transforms)
        for i, transform in enumerate(self.transforms):
            if not callable(transform):
                raise ArgumentTypeError(
                    f"Compose: transform {i} is of type {type(transform).__name__} and cannot be "
                    "called"
                )

    @property
    def batched(self) -> bool:  # type: ignore[override]
        """Whether all of the transforms take batches."""
        return all(takes_batches(t) for t in self.transforms)

    def __call__(self, image: Array) -> Any:
        """Return what the last transform makes of it."""
        for transform in self.transforms:
            image = transform(image)
        return image

    def __repr__(self) -> str:
        if not self.transforms:
            return "Compose()"
        lines = [f"    {t!r}".replace("\n", "\n    ") for t in self.transforms]
        return "Compose(\n" + "\n".join(lines) + "\n)"


class Lambda(Transform):
    """A function of your own as a transform, with a name to print.

    Args:
        function: takes an array and returns one.
        batched: promise that it takes a batch as well and treats each image as it would alone.

    Example:
        >>> import numpy as np
        >>> from needle.data.transforms import Lambda
        >>> invert = Lambda(np.invert, batched=True)
        >>> invert, invert(np.zeros(2, np.uint8))
        (Lambda(invert), array([255, 255], dtype=uint8))
    """

    def __init__(self, function: Callable[[Array], Any], batched: bool = False) -> None:
        if not callable(function):
            raise ArgumentTypeError(
                f"Lambda: needs a function, got {type(function).__name__} {function!r}"
            )
        self.function = function
        self.batched = batched

    def __call__(self, image: Array) -> Any:
        """Return what the function makes of it."""
        return self.function(image)

    def __repr__(self) -> str:
        return f"Lambda({getattr(self.function, '__name__', repr(self.function))})"


class ToFloat(Transform):
    """Integers 0 … ``maximum`` to float32 in [0, 1]: ``x / maximum``.

    Args:
        maximum: what becomes 1; 255 for bytes, 16 for `Digits`.

    Raises:
        ArgumentError: ``maximum`` is not positive.
        DTypeError: the array does not hold integers (it was converted before, say).

    Example:
        >>> import numpy as np
        >>> from needle.data.transforms import ToFloat
        >>> ToFloat()(np.array([[[0, 51, 255]]], np.uint8))
        array([[[0. , 0.2, 1. ]]], dtype=float32)
    """

    batched = True

    def __init__(self, maximum: float = 255) -> None:
        if not maximum > 0:
            raise ArgumentError(f"ToFloat: maximum must be positive, got {maximum}")
        self.maximum = maximum

    def __call__(self, image: Array) -> NDArray[np.float32]:
        """Return the array as float32."""
        _check_array(self, image)
        if image.dtype.kind not in "ui":
            raise DTypeError(
                f"ToFloat: expected integers (uint8 in images), got {image.dtype}; apply it once, "
                "before transforms that need floats"
            )
        scaled: NDArray[np.float32] = np.divide(image, np.float32(self.maximum), dtype=np.float32)
        return scaled

    def __repr__(self) -> str:
        return f"ToFloat(maximum={self.maximum})"


class Normalize(Transform):
    """Shift and scale each channel: ``(x[c] - mean[c]) / std[c]``.

    Args:
        mean: one number per channel, or one for all.
        std: one positive number per channel, or one for all.

    Raises:
        ArgumentError: ``std`` is not positive, a value is not finite, or the lengths differ.
        ShapeError: the image has another number of channels.
        DTypeError: the image does not hold floats.

    Example:
        >>> import numpy as np
        >>> from needle.data.transforms import Normalize
        >>> Normalize(0.5, 0.25)(np.full((1, 1, 2), 0.75, np.float32))
        array([[[1., 1.]]], dtype=float32)
    """

    batched = True

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean = tuple(np.atleast_1d(np.asarray(mean, np.float64)).tolist())
        self.std = tuple(np.atleast_1d(np.asarray(std, np.float64)).tolist())
        if len(self.mean) != len(self.std):
            raise ArgumentError(
                f"Normalize: mean has {len(self.mean)} values and std {len(self.std)}; "
                "give one of each per channel"
            )
        if not np.isfinite(self.mean).all():
            raise ArgumentError(f"Normalize: mean must be finite, got {self.mean}")
        if not (np.isfinite(self.std).all() and min(self.std, default=0.0) > 0):
            raise ArgumentError(f"Normalize: std must be positive and finite, got {self.std}")

    def __call__(self, image: Array) -> Array:
        """Return the image with each channel shifted and scaled."""
        _check_image(self, image)
        if not np.issubdtype(image.dtype, np.floating):
            raise DTypeError(
                f"Normalize: expected floats, got {image.dtype}; put ToFloat() before it"
            )
        channels = image.shape[-3]
        if len(self.mean) not in (1, channels):
            raise ShapeError(
                f"Normalize: mean and std are for {len(self.mean)} channels, but the image has "
                f"{channels} (shape {image.shape}, channels first)"
            )
        mean = np.array(self.mean, image.dtype).reshape(-1, 1, 1)
        std = np.array(self.std, image.dtype).reshape(-1, 1, 1)
        result: Array = image - mean
        result /= std
        return result

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class RandomCrop(Transform):
    """Cut out a window at a random place, after padding the borders.

    With padding, an image keeps its size and moves: ``RandomCrop(32, padding=4)`` is the usual
    augmentation of CIFAR (He, Zhang, Ren, Sun, "Deep residual learning for image recognition",
    2016).

    Args:
        size: height and width of the window, or one number for both.
        padding: rows and columns added on each side first.
        fill: the value of the padding.

    Raises:
        ArgumentError: a size below 1 or a negative padding.
        ShapeError: the window is larger than the padded image.

    Example:
        >>> import numpy as np
        >>> from needle.data.transforms import RandomCrop
        >>> RandomCrop(24)(np.zeros((16, 3, 32, 32), np.uint8)).shape
        (16, 3, 24, 24)
    """

    batched = True

    def __init__(self, size: int | tuple[int, int], padding: int = 0, fill: float = 0) -> None:
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        if len(self.size) != 2 or min(self.size) < 1:
            raise ArgumentError(
                f"RandomCrop: size must be one or two positive integers, got {size!r}"
            )
        if padding < 0:
            raise ArgumentError(f"RandomCrop: padding must not be negative, got {padding}")
        self.padding = padding
        self.fill = fill

    def __call__(self, image: Array) -> Array:
        """Return a window of each image."""
        _check_image(self, image)
        height, width = self.size
        p = self.padding
        rows, columns = image.shape[-2] + 2 * p - height, image.shape[-1] + 2 * p - width
        if rows < 0 or columns < 0:
            raise ShapeError(
                f"RandomCrop: a window of {height}×{width} does not fit an image of shape "
                f"{image.shape} with padding {p}; use a smaller size or more padding"
            )
        if p:
            borders = [(0, 0)] * (image.ndim - 2) + [(p, p), (p, p)]
            image = np.pad(image, borders, constant_values=self.fill)
        streams = sample_streams(1 if image.ndim == 3 else len(image))
        top, left = streams.integers(0, rows + 1), streams.integers(0, columns + 1)
        if image.ndim == 3 or len(streams) == 1:
            y, x = int(top[0]), int(left[0])
            return np.ascontiguousarray(image[..., y : y + height, x : x + width])
        windows = sliding_window_view(image, self.size, axis=(2, 3))
        cut: Array = windows[np.arange(len(image)), :, top, left]
        return cut

    def __repr__(self) -> str:
        return f"RandomCrop(size={self.size}, padding={self.padding}, fill={self.fill})"


class RandomHorizontalFlip(Transform):
    """Mirror left and right with probability ``p``.

    Raises:
        ArgumentError: ``p`` lies outside of [0, 1].

    Example:
        >>> import numpy as np
        >>> from needle.data.transforms import RandomHorizontalFlip
        >>> RandomHorizontalFlip(p=1)(np.array([[[1, 2, 3]]]))
        array([[[3, 2, 1]]])
    """

    batched = True

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ArgumentError(f"RandomHorizontalFlip: p must lie in [0, 1], got {p}")
        self.p = p

    def __call__(self, image: Array) -> Array:
        """Return each image or its mirror image."""
        _check_image(self, image)
        streams = sample_streams(1 if image.ndim == 3 else len(image))
        flip = streams.uniform() < self.p
        if image.ndim == 3 or len(streams) == 1:
            return np.ascontiguousarray(image[..., ::-1]) if flip[0] else image
        mirrored: Array = image.copy()
        mirrored[flip] = image[flip][..., ::-1]
        return mirrored

    def __repr__(self) -> str:
        return f"RandomHorizontalFlip(p={self.p})"


class Flatten(Transform):
    """An image to a vector: ``[C, H, W]`` to ``[C·H·W]``; a batch keeps its first axis.

    Example:
        >>> import numpy as np
        >>> from needle.data.transforms import Flatten
        >>> Flatten()(np.zeros((1, 28, 28))).shape
        (784,)
    """

    batched = True

    def __call__(self, image: Array) -> Array:
        """Return the image's elements in one axis."""
        _check_image(self, image)
        channels, height, width = image.shape[-3:]
        return image.reshape(*image.shape[:-3], channels * height * width)

    def __repr__(self) -> str:
        return "Flatten()"


def takes_batches(transform: Callable[[Any], Any] | None) -> bool:
    """Whether ``transform`` can be given a batch (no transform at all can)."""
    return transform is None or bool(getattr(transform, "batched", False))


def _check_array(transform: Transform, image: Any) -> None:
    if not isinstance(image, np.ndarray):
        raise ArgumentTypeError(
            f"{type(transform).__name__}: expected a NumPy array, got {type(image).__name__}"
        )


def _check_image(transform: Transform, image: Any) -> None:
    _check_array(transform, image)
    if image.ndim not in (3, 4):
        hint = "add the channel axis with x[None]" if image.ndim == 2 else "Flatten comes last"
        raise ShapeError(
            f"{type(transform).__name__}: expected an image [channels, height, width] or a batch "
            f"[samples, channels, height, width], got shape {image.shape}; {hint}"
        )
