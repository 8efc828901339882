"""Blob: an array with the gradient of the loss by it, as layers pass them to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from needle.arrays import aligned_zeros
from needle.dtypes import float32
from needle.errors import ShapeError
from needle.ops.samples import Array


class Blob:
    """Values and their gradient, two arrays of one shape.

    Args:
        shape: extents.

    Attributes:
        lr_mult: factor of the learning rate, for parameters.
        decay_mult: factor of the weight decay, for parameters.

    Example:
        >>> from needle.layerwise import Blob
        >>> blob = Blob(2, 3)
        >>> blob.data[...] = 1
        >>> blob.reshape(3, 2)
        >>> blob.data.sum(), blob.diff.shape, blob.count
        (np.float32(6.0), (3, 2), 6)
    """

    def __init__(self, *shape: int) -> None:
        self._data: Array = aligned_zeros(tuple(shape), float32)
        self._diff: Array | None = None
        self.lr_mult = 1.0
        self.decay_mult = 1.0

    @classmethod
    def of(cls, data: Array) -> Blob:
        """Return a blob whose values lie in an array that somebody else holds, too."""
        blob = cls()
        blob._data = data
        return blob

    @property
    def data(self) -> Array:
        """The values."""
        return self._data

    @property
    def diff(self) -> Array:
        """The gradient; zeros until something is written."""
        if self._diff is None or self._diff.shape != self._data.shape:
            self._diff = aligned_zeros(self._data.shape, self._data.dtype)
        return self._diff

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis."""
        return self._data.shape

    @property
    def count(self) -> int:
        """How many elements it has."""
        return self._data.size

    @property
    def num(self) -> int:
        """Extent of the first axis, 1 if there is none."""
        return self._legacy(0)

    @property
    def channels(self) -> int:
        """Extent of the second axis, 1 if there is none."""
        return self._legacy(1)

    @property
    def height(self) -> int:
        """Extent of the third axis, 1 if there is none."""
        return self._legacy(2)

    @property
    def width(self) -> int:
        """Extent of the fourth axis, 1 if there is none."""
        return self._legacy(3)

    def _legacy(self, axis: int) -> int:
        return self.shape[axis] if axis < len(self.shape) else 1

    def reshape(self, *extents: int | Sequence[int]) -> None:
        """Change the shape; values are kept if there are as many elements."""
        shape: tuple[int, ...] = ()
        for item in extents:
            shape += (item,) if isinstance(item, int) else tuple(item)
        if any(n < 0 for n in shape):
            raise ShapeError(f"Blob: an extent of {list(shape)} is negative")
        if shape == self.shape:
            return
        if math.prod(shape) == self.count:
            self._data = self._data.reshape(shape)
        else:
            self._data = aligned_zeros(shape, self._data.dtype)
        self._diff = None

    def share(self, other: Blob) -> None:
        """Let this blob's values be those of another."""
        self._data = other._data
        self._diff = None

    def __repr__(self) -> str:
        return f"<blob {list(self.shape)}>"


class Blobs(list[Blob]):
    """The parameters of a layer."""

    def add_blob(self, *shape: int) -> Blob:
        """Add a parameter of zeros; return it."""
        self.append(Blob(*shape))
        return self[-1]
