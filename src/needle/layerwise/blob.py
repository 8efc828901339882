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
        is_turned: whether axes lie in memory in the opposite order: the last one has the longest
            stride. So the weight of a product lies as the product reads it.

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

    def __init__(self, *shape: int, is_turned: bool = False) -> None:
        stored = tuple(shape[::-1]) if is_turned else tuple(shape)
        self._hold(aligned_zeros(stored, float32), is_turned)
        self.lr_mult = 1.0
        self.decay_mult = 1.0

    @classmethod
    def of(cls, data: Array) -> Blob:
        """Return a blob whose values lie in an array that somebody else holds, too."""
        blob = cls()
        blob._hold(data, False)
        return blob

    def _hold(self, stored: Array, is_turned: bool) -> None:
        """Take an array for the values, with axes in the order of the memory."""
        #: The values with axes in that order: one array for all that share the blob.
        self.stored = stored
        self.is_turned = is_turned
        self._data = stored.T if is_turned else stored
        self._diff: Array | None = None

    @property
    def data(self) -> Array:
        """The values."""
        return self._data

    @property
    def diff(self) -> Array:
        """The gradient; zeros until something is written."""
        if self._diff is None or self._diff.shape != self._data.shape:
            self._diff = self.zeros()
        return self._diff

    def zeros(self) -> Array:
        """Return a new array of zeros that lies in memory as the values do."""
        return self.as_stored(aligned_zeros(self.stored.shape, self._data.dtype))

    def as_stored(self, array: Array) -> Array:
        """Return gradient or history with axes in the order of the memory, or the reverse."""
        return array.T if self.is_turned else array

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
            self._hold(self._data.reshape(shape), False)
        else:
            self._hold(aligned_zeros(shape, self._data.dtype), False)

    def share(self, other: Blob) -> None:
        """Let this blob's values be those of another."""
        self._hold(other.stored, other.is_turned)

    def __repr__(self) -> str:
        return f"<blob {list(self.shape)}>"


class Blobs(list[Blob]):
    """The parameters of a layer."""

    def add_blob(self, *shape: int, is_turned: bool = False) -> Blob:
        """Add a parameter of zeros; return it."""
        self.append(Blob(*shape, is_turned=is_turned))
        return self[-1]
