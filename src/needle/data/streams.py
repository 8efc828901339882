"""Random numbers for samples: what sample 7 draws in epoch 3 depends on nothing else.

A random crop or flip must not change with the batch size, with the order in which samples are read,
or with the number of workers that read them; and a run that is resumed in the middle of an epoch
must see the crops that the uninterrupted run saw. A generator that all samples share cannot give
that. So each sample has its own stream, named by (seed, epoch, index, repeat), and a counter-based
generator computes any stream from its name alone: Philox4x64-10 (Salmon, Moraes, Dror, Shaw:
"Parallel random numbers: as easy as 1, 2, 3", SC 2011), with the name in the counter and the seed
in the key:

    counter = (block, repeat, index, epoch)      key = (seed, domain)

Philox rather than a hash of our own because it passes the statistical test suites, and because
NumPy ships the same generator: `numpy.random.Philox` computes the streams of single samples and is
the oracle for the vectorised form below, which computes those of a whole batch at once. Only its
raw 64-bit output is used (NumPy guarantees that stream for ever; the distributions of
``numpy.random.Generator`` it does not), so results survive an upgrade of NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.errors import ArgumentError, ShapeError
from needle.random import Generator, randint

# The second word of the key keeps apart what is drawn for different ends from one seed.
_ORDER, _SAMPLE, _GENERATOR = 1, 2, 3

_MASK64 = 2**64 - 1
_MASK32 = np.uint64(0xFFFFFFFF)
_SHIFT32 = np.uint64(32)
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_MULTIPLIER = np.array([[m] for m in _MULTIPLIERS], np.uint64)
_MULTIPLIER_LOW = _MULTIPLIER & _MASK32
_MULTIPLIER_HIGH = _MULTIPLIER >> _SHIFT32

# Below this many streams, NumPy's own Philox, one after another, is quicker than our vector form.
_FEW = 14


def draw_seed(generator: Generator | None) -> int:
    """Return the next 62-bit seed from ``generator`` (None: the default one), which advances."""
    high, low = randint(0, 2**31, (2,), generator=generator).tolist()
    return int(high) << 31 | int(low)


def random_bits(seed: int, count: int) -> NDArray[np.uint64]:
    """Return ``count`` random 64-bit words that depend on ``seed`` alone (for samplers)."""
    key = np.array([seed & _MASK64, _ORDER], np.uint64)
    return np.random.Philox(key=key).random_raw(count)


def as_uniform(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return random words as doubles in [0, 1) with 53 random bits."""
    uniform: NDArray[np.float64] = (bits >> np.uint64(11)) * 2.0**-53
    return uniform


class SampleStreams:
    """One independent stream of random numbers for each sample of a batch.

    All draws advance every stream by one, so a transform that draws the same number of times for
    each sample gives a sample the same numbers alone and inside any batch.

    Args:
        seed: the seed of the epoch.
        epoch: which epoch, from 0.
        indices: which samples (their indices in the dataset).
        repeats: how many times the epoch has visited each sample before (samplers with replacement
            visit one more than once, and each visit has a stream of its own); None means 0.

    Example:
        >>> from needle.data import SampleStreams
        >>> together = SampleStreams(seed=0, epoch=3, indices=[7, 8, 9])
        >>> alone = SampleStreams(seed=0, epoch=3, indices=[8])
        >>> bool(together.uniform()[1] == alone.uniform()[0])
        True
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        indices: Sequence[int] | NDArray[np.int64],
        repeats: Sequence[int] | NDArray[np.int64] | None = None,
    ) -> None:
        self._seed = seed & _MASK64
        self._epoch = epoch
        self._indices = indices
        self._repeats = repeats
        self._block = 0
        self._words: list[NDArray[np.uint64]] = []
        self._generator: np.random.Generator | None = None

    def __len__(self) -> int:
        return len(self._indices)

    def uniform(self) -> NDArray[np.float64]:
        """Return the next number of each stream, uniform in [0, 1): an array [samples]."""
        return as_uniform(self._next())

    def integers(self, low: int, high: int) -> NDArray[np.int64]:
        """Return the next number of each stream as an integer in [low, high): an array [samples].

        Raises:
            ArgumentError: the range is empty, or wider than 2**32.
        """
        if not 0 < high - low <= 2**32:
            raise ArgumentError(f"integers: [{low}, {high}) must hold between 1 and 2**32 integers")
        return low + np.floor(self.uniform() * (high - low)).astype(np.int64)

    def generator(self) -> np.random.Generator:
        """Return a NumPy generator of the sample, for distributions that are not offered here.

        Raises:
            ShapeError: these are the streams of several samples.
        """
        if len(self) != 1:
            raise ShapeError(
                f"a generator belongs to one sample, and {len(self)} are being transformed at "
                "once; draw with sample_streams(), or leave the transform unbatched"
            )
        if self._generator is None:
            bits = self._philox(0, _GENERATOR, block=0)
            self._generator = np.random.Generator(bits)
        return self._generator

    def _next(self) -> NDArray[np.uint64]:
        if not self._words:
            # A block of the generator is four words; NumPy numbers the blocks of a stream from 1.
            self._block += 1
            n = len(self)
            if n < _FEW:
                rows = [self._philox(i, _SAMPLE, self._block - 1).random_raw(4) for i in range(n)]
                block = np.array(rows, np.uint64).reshape(n, 4).T
            else:
                counter = np.empty((4, n), np.uint64)
                counter[0] = self._block
                counter[1] = 0 if self._repeats is None else self._repeats
                # By way of int64, as an index counted from the end is negative.
                counter[2] = np.asarray(self._indices, np.int64).astype(np.uint64)
                counter[3] = self._epoch
                block = philox4x64(counter, (self._seed, _SAMPLE))
            self._words = list(block[::-1])
        return self._words.pop()

    def _philox(self, row: int, domain: int, block: int) -> np.random.Philox:
        repeat = 0 if self._repeats is None else int(self._repeats[row])
        name = [block, repeat, int(self._indices[row]) & _MASK64, self._epoch]
        key = [self._seed, domain]
        return np.random.Philox(counter=np.array(name, np.uint64), key=np.array(key, np.uint64))


def philox4x64(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Return the Philox4x64-10 blocks of many counters under one key.

    Args:
        counter: [4, n], the low word first.
        key: two 64-bit words.

    Returns:
        [4, n] random words.
    """
    even, odd = counter[0::2], counter[1::2]
    round_key = [key[0], key[1]]
    for _ in range(_ROUNDS):
        high, low = _multiply(even)
        even = high[::-1] ^ odd ^ np.array([[round_key[0]], [round_key[1]]], np.uint64)
        odd = low[::-1]
        round_key = [(k + w) & _MASK64 for k, w in zip(round_key, _WEYL, strict=True)]
    block = np.empty_like(counter)
    block[0::2], block[1::2] = even, odd
    return block


def _multiply(x: NDArray[np.uint64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the high and the low words of the 128-bit products of ``x`` and the multipliers."""
    low, high = x & _MASK32, x >> _SHIFT32
    middle = high * _MULTIPLIER_LOW + (low * _MULTIPLIER_LOW >> _SHIFT32)
    carry = (middle & _MASK32) + low * _MULTIPLIER_HIGH
    top = high * _MULTIPLIER_HIGH + (middle >> _SHIFT32) + (carry >> _SHIFT32)
    return top, x * _MULTIPLIER


_current: ContextVar[SampleStreams | None] = ContextVar("needle_sample_streams", default=None)


@contextmanager
def sample_scope(streams: SampleStreams) -> Iterator[None]:
    """Make ``streams`` those that transforms draw from, while a loader reads the samples."""
    token = _current.set(streams)
    try:
        yield
    finally:
        _current.reset(token)


def sample_streams(count: int = 1) -> SampleStreams:
    """Return the streams of the samples that are being read; random transforms draw from them.

    Outside of a `DataLoader` (say ``dataset[3]`` at the prompt) the streams are new ones, seeded by
    the default generator, so each call differs and ``ndl.manual_seed`` makes the sequence
    reproducible.

    Args:
        count: how many samples the transform has before it. One stream serves any number: a sample
            that is itself a stack of images (a film, say) is transformed as one.

    Raises:
        ShapeError: several samples are being read, and not ``count``.
    """
    streams = _current.get()
    if streams is None:
        return SampleStreams(draw_seed(None), 0, range(count))
    if len(streams) not in (1, count):
        raise ShapeError(
            f"{len(streams)} samples are being read, but the transform was given {count}; "
            "a transform on batches takes and returns arrays whose first axis is the samples"
        )
    return streams


def sample_generator() -> np.random.Generator:
    """Return the NumPy generator of the sample that is being read, for a transform of your own.

    What it draws depends on the loader's seed, the epoch and the sample's index only: not on the
    batch size, the order of reading or the number of workers.

    Example:
        >>> import numpy as np
        >>> from needle.data import DataLoader, TensorDataset, sample_generator
        >>> class Noisy(TensorDataset):
        ...     batched = False
        ...     def __getitem__(self, index):
        ...         (x,) = super().__getitem__(index)
        ...         return x + sample_generator().normal(size=x.shape).astype(np.float32)
        >>> noisy = Noisy(np.zeros((6, 3), np.float32))
        >>> [batch.shape for batch in DataLoader(noisy, batch_size=4)]
        [(4, 3), (2, 3)]
    """
    return sample_streams().generator()
