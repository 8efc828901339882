"""Datasets: anything with a length and samples by index; arrays as one; parts of one."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from needle.data.streams import draw_seed, random_bits
from needle.dtypes import as_dtype
from needle.errors import ArgumentError, ArgumentTypeError, DTypeError, OutOfRangeError, ShapeError
from needle.random import Generator
from needle.tensor import Tensor

T_co = TypeVar("T_co", covariant=True)
Array = NDArray[Any]


class Dataset(Generic[T_co]):
    """Samples that are read by index (map style): derive, and write the two methods.

    A sample is any nest of tuples, lists and dicts of NumPy arrays, Python numbers, strings and
    Tensors; `default_collate` turns a list of samples into Tensors.

    A dataset that can read many samples at once sets ``batched`` and writes `get_batch`; a
    `DataLoader` then asks for a whole batch instead of sample by sample. Both ways must give the
    same values.

    Example:
        >>> from needle.data import DataLoader, Dataset
        >>> class Squares(Dataset):
        ...     def __len__(self):
        ...         return 5
        ...     def __getitem__(self, index):
        ...         return index, float(index * index)
        >>> [x.tolist() for x, y in DataLoader(Squares(), batch_size=2)]
        [[0, 1], [2, 3], [4]]
    """

    #: Whether `get_batch` can be used.
    batched: bool = False

    def __len__(self) -> int:
        """Return the number of samples."""
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __getitem__(self, index: int) -> T_co:
        """Return sample ``index``; an index outside of the dataset is an IndexError."""
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    def get_batch(self, indices: NDArray[np.int64]) -> Any:
        """Return the samples at ``indices`` as one: arrays whose first axis is the samples.

        Args:
            indices: int64 [batch].
        """
        raise NotImplementedError(f"{type(self).__name__} reads sample by sample")


class TensorDataset(Dataset[tuple[Any, ...]]):
    """Arrays (or Tensors) of the same length; sample ``i`` is the tuple of their rows ``i``.

    Nothing is copied: the dataset reads the memory of the arrays it was given. Samples are NumPy
    arrays and scalars; a `DataLoader` indexes each array once per batch.

    Args:
        tensors: Tensors, NumPy arrays, or lists of numbers (floats become float32), each with at
            least one axis and all with the same first extent.

    Raises:
        ArgumentError: no array is given.
        ShapeError: the lengths differ, or an array has no axis.

    Example:
        >>> import numpy as np
        >>> from needle.data import TensorDataset
        >>> data = TensorDataset(np.ones((3, 2), np.float32), np.array([0, 1, 2]))
        >>> len(data), data[1]
        (3, (array([1., 1.], dtype=float32), np.int64(1)))
    """

    batched = True

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ArgumentError("TensorDataset: give at least one tensor or array")
        self.arrays = tuple(_as_array(t, position) for position, t in enumerate(tensors))
        lengths = [a.shape[0] for a in self.arrays]
        if len(set(lengths)) > 1:
            shapes = ", ".join(str(a.shape) for a in self.arrays)
            raise ShapeError(
                f"TensorDataset: the first axes must be equal (one row per sample), got lengths "
                f"{lengths} from shapes {shapes}"
            )

    def __len__(self) -> int:
        return int(self.arrays[0].shape[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        i = as_index(index, len(self), "TensorDataset")
        return tuple(a[i] for a in self.arrays)

    def get_batch(self, indices: NDArray[np.int64]) -> tuple[Array, ...]:
        """Return the rows at ``indices`` of each array."""
        rows = as_indices(indices, len(self), "TensorDataset")
        return tuple(a[rows] for a in self.arrays)

    def __repr__(self) -> str:
        parts = ", ".join(f"{a.dtype.name}{list(a.shape)}" for a in self.arrays)
        return f"TensorDataset({parts})"


class Subset(Dataset[T_co]):
    """The samples of ``dataset`` at ``indices``, in that order.

    Raises:
        OutOfRangeError: an index lies outside of the dataset.

    Example:
        >>> from needle.data import Digits, Subset
        >>> len(Subset(Digits(), range(100)))
        100
    """

    def __init__(self, dataset: Dataset[T_co], indices: Sequence[int] | NDArray[np.int64]) -> None:
        self.dataset = dataset
        self.indices = as_indices(indices, len(dataset), "Subset")

    @property
    def batched(self) -> bool:  # type: ignore[override]
        """Whether the dataset below reads many samples at once."""
        return getattr(self.dataset, "batched", False)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> T_co:
        return self.dataset[int(self.indices[as_index(index, len(self), "Subset")])]

    def get_batch(self, indices: NDArray[np.int64]) -> Any:
        """Return the samples at ``indices`` of the subset as one."""
        return self.dataset.get_batch(self.indices[as_indices(indices, len(self), "Subset")])

    def __repr__(self) -> str:
        return f"Subset({len(self)} of {self.dataset!r})"


def random_split(
    dataset: Dataset[T_co],
    lengths: Sequence[int] | Sequence[float],
    generator: Generator | None = None,
) -> list[Subset[T_co]]:
    """Split ``dataset`` into disjoint random parts.

    Args:
        dataset: what to split.
        lengths: the size of each part; or fractions that sum to 1, each rounded down, the samples
            left over going to the first parts, one each.
        generator: source of randomness; None means the default one (``ndl.manual_seed``).

    Returns:
        One `Subset` for each length.

    Raises:
        ArgumentError: the lengths do not sum to the number of samples (or the fractions to 1).

    Example:
        >>> import needle as ndl
        >>> from needle.data import Digits, random_split
        >>> train, valid = random_split(Digits(), [0.9, 0.1], ndl.random.Generator(0))
        >>> len(train), len(valid)
        (1618, 179)
    """
    total = len(dataset)
    sizes = _part_sizes(lengths, total)
    order = np.argsort(random_bits(draw_seed(generator), total), kind="stable")
    ends = np.cumsum(sizes)
    return [Subset(dataset, order[end - n : end]) for n, end in zip(sizes, ends, strict=True)]


def _part_sizes(lengths: Sequence[int] | Sequence[float], total: int) -> list[int]:
    if any(not math.isfinite(x) or x < 0 for x in lengths):
        raise ArgumentError(f"random_split: lengths must not be negative, got {list(lengths)}")
    if all(isinstance(x, (int, np.integer)) for x in lengths):
        sizes = [int(x) for x in lengths]
        if sum(sizes) != total:
            raise ArgumentError(
                f"random_split: lengths {sizes} sum to {sum(sizes)}, but the dataset has {total} "
                "samples; give lengths that sum to it, or fractions that sum to 1"
            )
        return sizes
    if not math.isclose(sum(lengths), 1.0, abs_tol=1e-6):
        raise ArgumentError(
            f"random_split: fractions {list(lengths)} sum to {sum(lengths)}; they must sum to 1"
        )
    sizes = [math.floor(total * x) for x in lengths]
    for i in range(total - sum(sizes)):
        sizes[i % len(sizes)] += 1
    return sizes


def as_index(index: Any, length: int, name: str) -> int:
    """Return ``index`` as an int in [0, length); negative indices count from the end.

    Raises:
        ArgumentTypeError: it is no integer.
        OutOfRangeError: it lies outside of the dataset.
    """
    try:
        i = operator.index(index)
    except TypeError:
        raise ArgumentTypeError(
            f"{name}: an index must be an integer, got {type(index).__name__}; "
            "for several samples at once use Subset(dataset, indices)"
        ) from None
    if not -length <= i < length:
        raise OutOfRangeError(f"{name}: index {i} is out of range for {length} samples")
    return i + length if i < 0 else i


def as_indices(indices: Any, length: int, name: str) -> NDArray[np.int64]:
    """Return ``indices`` as an int64 array of values in [0, length); see `as_index`."""
    array = np.asarray(indices)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ArgumentTypeError(
            f"{name}: indices must be a flat sequence of integers, got {array.dtype} of shape "
            f"{array.shape}"
        )
    array = array.astype(np.int64, copy=False)
    outside = (array < -length) | (array >= length)
    if outside.any():
        i = int(array[outside][0])
        raise OutOfRangeError(f"{name}: index {i} is out of range for {length} samples")
    return np.where(array < 0, array + length, array)


def _as_array(value: Any, position: int) -> Array:
    if isinstance(value, Tensor):
        array: Array = value.detach().numpy()
    elif isinstance(value, np.ndarray):
        array = value
    else:
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ShapeError(
                f"TensorDataset: argument {position} is a ragged sequence ({error}); "
                "write a Dataset whose samples differ in shape, and pad them in collate_fn"
            ) from None
        if array.dtype == np.float64:
            array = array.astype(np.float32)
    if array.ndim == 0:
        raise ShapeError(
            f"TensorDataset: argument {position} has no axis (a single number); the first axis "
            "is the samples"
        )
    try:
        as_dtype(array.dtype)
    except DTypeError as error:
        raise DTypeError(f"TensorDataset: argument {position}: {error}") from None
    return array
