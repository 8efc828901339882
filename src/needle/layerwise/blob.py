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
        self._shape = tuple(shape)
        self._dtype = float32
        self._stored: Array | None = None
        self._data: Array | None = None
        self._diff: Array | None = None
        self.is_turned = is_turned
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
        self._stored, self.is_turned = stored, is_turned
        self._data = stored.T if is_turned else stored
        self._shape, self._dtype = self._data.shape, stored.dtype
        self._diff = None

    @property
    def stored(self) -> Array:
        """The values with axes in the order of the memory; zeros until something is written.

        It is one array for all that share the blob's values.
        """
        if self._stored is None:
            shape = self._shape[::-1] if self.is_turned else self._shape
            self._hold(aligned_zeros(shape, self._dtype), self.is_turned)
        assert self._stored is not None
        return self._stored

    @property
    def data(self) -> Array:
        """The values; zeros until something is written. They take memory once they are used."""
        if self._data is None:
            _ = self.stored
        assert self._data is not None
        return self._data

    @property
    def diff(self) -> Array:
        """The gradient; zeros until something is written."""
        if self._diff is None:
            self._diff = self.zeros()
        return self._diff

    def zeros(self) -> Array:
        """Return a new array of zeros that lies in memory as the values do."""
        shape = self._shape[::-1] if self.is_turned else self._shape
        return self.as_stored(aligned_zeros(shape, self._dtype))

    def as_stored(self, array: Array) -> Array:
        """Return gradient or history with axes in the order of the memory, or the reverse."""
        return array.T if self.is_turned else array

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of each axis."""
        return self._shape

    @property
    def count(self) -> int:
        """How many elements it has."""
        return math.prod(self._shape)

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
        if self._data is not None and math.prod(shape) == self.count:
            self._hold(self._data.reshape(shape), False)
            return
        self._shape, self.is_turned = shape, False
        self._stored = self._data = self._diff = None

    def share(self, other: Blob) -> None:
        """Let this blob's values be those of another."""
        if self._stored is not other.stored:
            self._hold(other.stored, other.is_turned)

    def __repr__(self) -> str:
        return f"<blob {list(self.shape)}>"


class Blobs(list[Blob]):
    """The parameters of a layer."""

    def add_blob(self, *shape: int, is_turned: bool = False) -> Blob:
        """Add a parameter of zeros; return it."""
        self.append(Blob(*shape, is_turned=is_turned))
        return self[-1]
