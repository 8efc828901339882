"""Samplers: the order in which a dataset is visited in one epoch.

The order of an epoch is a pure function of that epoch's seed (`SeededSampler.order`), and the seed
is what a generator draws when the epoch starts. So a loader that is resumed in the middle of an
epoch needs the seed and how far it had come, and no replay of the generator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from needle.data.streams import as_uniform, draw_seed, random_bits
from needle.errors import ArgumentError, ShapeError
from needle.random import Generator

S_co = TypeVar("S_co", covariant=True)


class Sampler(Generic[S_co]):
    """Indices in the order of one epoch; derive, and write ``__iter__`` and ``__len__``.

    A `DataLoader` resumes in mid-epoch by iterating again and passing over what was seen. A sampler
    of your own must therefore repeat itself from the state it had when the epoch began: write
    ``state_dict()`` and ``load_state_dict()`` (of JSON-like values) if it has any, or derive from
    `SeededSampler`, which needs none.
    """

    #: Whether an epoch visits no index twice; see `SampleStreams` for what repeats are for.
    distinct: bool = False

    def __iter__(self) -> Iterator[S_co]:
        raise NotImplementedError(f"{type(self).__name__} must define __iter__")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")


class SeededSampler(Sampler[S_co]):
    """A sampler whose order is a function of a seed; derive, and write `order` and ``__len__``.

    Iterating draws a new seed from ``generator`` (None: the default generator), so that each epoch
    has an order of its own and ``ndl.manual_seed`` fixes them all.
    """

    generator: Generator | None = None

    def order(self, seed: int) -> Iterator[S_co]:
        """Return the indices of the epoch that has this seed."""
        raise NotImplementedError(f"{type(self).__name__} must define order")

    def __iter__(self) -> Iterator[S_co]:
        return self.order(draw_seed(self.generator))


class SequentialSampler(Sampler[int]):
    """0, 1, 2, … to the end of the dataset.

    Example:
        >>> from needle.data import SequentialSampler
        >>> list(SequentialSampler("abc"))
        [0, 1, 2]
    """

    distinct = True

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(SeededSampler[int]):
    """All samples in random order, or draws with replacement.

    Args:
        data_source: the dataset; only its length matters.
        replacement: draw each index independently, so that some come twice and others never.
        num_samples: how many to draw; None means as many as there are.
        generator: source of the epochs' seeds; None means the default generator.

    Raises:
        ArgumentError: ``num_samples`` is not positive, or more than there are without replacement.

    Example:
        >>> import needle as ndl
        >>> from needle.data import RandomSampler
        >>> sorted(RandomSampler(range(5), generator=ndl.random.Generator(0)))
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Generator | None = None,
    ) -> None:
        n = len(data_source)
        if num_samples is not None and (num_samples < 1 or (num_samples > n and not replacement)):
            raise ArgumentError(
                f"RandomSampler: num_samples={num_samples} must lie between 1 and the {n} samples"
                + (" (or draw with replacement=True)" if num_samples > n else "")
            )
        if replacement and n == 0:
            raise ArgumentError("RandomSampler: cannot draw from an empty dataset")
        self.data_source = data_source
        self.replacement = replacement
        self.num_samples = num_samples
        self.generator = generator
        self.distinct = not replacement

    def order(self, seed: int) -> Iterator[int]:
        """Return the indices of the epoch that has this seed."""
        n, count = len(self.data_source), len(self)
        if self.replacement:
            indices = np.floor(as_uniform(random_bits(seed, count)) * n).astype(np.int64)
        else:
            # Sorting random words is a permutation that needs only the generator's raw output,
            # which is the part of NumPy's stream that never changes.
            indices = np.argsort(random_bits(seed, n), kind="stable")[:count]
        return iter(indices.tolist())

    def __len__(self) -> int:
        return len(self.data_source) if self.num_samples is None else self.num_samples


class SubsetRandomSampler(SeededSampler[int]):
    """The given indices in random order.

    Example:
        >>> import needle as ndl
        >>> from needle.data import SubsetRandomSampler
        >>> sorted(SubsetRandomSampler([3, 5, 7], ndl.random.Generator(0)))
        [3, 5, 7]
    """

    def __init__(self, indices: Sequence[int], generator: Generator | None = None) -> None:
        self.indices = [int(i) for i in indices]
        self.generator = generator
        self.distinct = len(set(self.indices)) == len(self.indices)

    def order(self, seed: int) -> Iterator[int]:
        """Return the indices of the epoch that has this seed."""
        order = np.argsort(random_bits(seed, len(self.indices)), kind="stable")
        return iter([self.indices[i] for i in order.tolist()])

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(SeededSampler[int]):
    """Draws in proportion to weights, say to balance classes of unequal size.

    With replacement each draw is independent, ``P(i) = wᵢ / Σw`` (inverse of the cumulative sum).
    Without, the draws are successive, each among the samples that are left: those with the largest
    ``log(uᵢ) / wᵢ`` for uniform ``uᵢ`` (Efraimidis and Spirakis, "Weighted random sampling with a
    reservoir", 2006).

    Args:
        weights: [samples], not negative; they need not sum to 1.
        num_samples: how many to draw in an epoch.
        replacement: whether a sample can be drawn again.
        generator: source of the epochs' seeds; None means the default generator.

    Raises:
        ArgumentError: weights are negative, not finite or all zero; or ``num_samples`` is not
            positive, or without replacement more than the weights above zero.
        ShapeError: weights are not one-dimensional.

    Example:
        >>> import needle as ndl
        >>> from needle.data import WeightedRandomSampler
        >>> set(WeightedRandomSampler([0.0, 2.0, 0.0], 4, generator=ndl.random.Generator(0)))
        {1}
    """

    def __init__(
        self,
        weights: ArrayLike,
        num_samples: int,
        replacement: bool = True,
        generator: Generator | None = None,
    ) -> None:
        self.weights: NDArray[np.float64] = np.asarray(weights, dtype=np.float64)
        if self.weights.ndim != 1:
            raise ShapeError(
                f"WeightedRandomSampler: weights must be flat, one per sample; got shape "
                f"{self.weights.shape}"
            )
        wrong = ~np.isfinite(self.weights) | (self.weights < 0)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ArgumentError(
                f"WeightedRandomSampler: weights must be finite and not negative; weight {at} is "
                f"{self.weights[at]}"
            )
        possible = int(np.count_nonzero(self.weights))
        if possible == 0:
            raise ArgumentError("WeightedRandomSampler: at least one weight must be above zero")
        if num_samples < 1 or (num_samples > possible and not replacement):
            raise ArgumentError(
                f"WeightedRandomSampler: num_samples={num_samples} must be positive and, without "
                f"replacement, at most the {possible} weights above zero"
            )
        self.num_samples = num_samples
        self.replacement = replacement
        self.generator = generator
        self.distinct = not replacement

    def order(self, seed: int) -> Iterator[int]:
        """Return the indices of the epoch that has this seed."""
        possible = np.flatnonzero(self.weights)
        weights = self.weights[possible]
        if self.replacement:
            u = as_uniform(random_bits(seed, self.num_samples))
            # Scaled by the largest first, so that no sum of finite weights overflows.
            edges = np.cumsum(weights / weights.max())
            chosen = np.searchsorted(edges, u * edges[-1], side="right")
            # u < 1, but the product may round up to the last edge.
            chosen = np.minimum(chosen, len(possible) - 1)
        else:
            u = as_uniform(random_bits(seed, len(possible)))
            # In logarithms, log(-log u) - log w, so that tiny weights do not overflow the quotient.
            keys = np.log(-np.log1p(-u) + np.finfo(np.float64).tiny) - np.log(weights)
            chosen = np.argsort(keys, kind="stable")[: self.num_samples]
        return iter(possible[chosen].tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(SeededSampler[list[int]]):
    """The indices of ``sampler``, in lists of ``batch_size``.

    Args:
        sampler: indices in order; any iterable with a length.
        batch_size: the length of each list.
        drop_last: leave out a last list that is shorter.

    Raises:
        ArgumentError: ``batch_size`` is not a positive integer.

    Example:
        >>> from needle.data import BatchSampler
        >>> list(BatchSampler(range(5), batch_size=2, drop_last=False))
        [[0, 1], [2, 3], [4]]
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, drop_last: bool) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ArgumentError(f"batch_size must be a positive integer, got {batch_size!r}")
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.distinct = getattr(sampler, "distinct", False)
        self.generator = getattr(sampler, "generator", None)

    def order(self, seed: int) -> Iterator[list[int]]:
        """Return the lists of the epoch that has this seed."""
        return self._group(epoch_order(self.sampler, seed))

    def __iter__(self) -> Iterator[list[int]]:
        return self._group(iter(self.sampler))

    def _group(self, indices: Iterator[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in indices:
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch and not self.drop_last:
            yield batch

    def __len__(self) -> int:
        n = len(self.sampler)  # type: ignore[arg-type]
        return n // self.batch_size if self.drop_last else -(-n // self.batch_size)


def epoch_order(sampler: Iterable[Any], seed: int) -> Iterator[Any]:
    """Return an epoch of any sampler: by ``seed`` if it is a `SeededSampler`, else as it comes."""
    return sampler.order(seed) if isinstance(sampler, SeededSampler) else iter(sampler)
