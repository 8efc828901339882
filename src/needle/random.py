"""Random numbers with explicit state.

A `Generator` owns a tensor, its state, and every draw is an op on it: `random_bits`, followed by
arithmetic that shapes the bits. The stream depends on nothing but seed and order of draws: not on
the number of threads, nor on whether eager or compiled code draws. Where no generator is given, the
default one is used, which starts from seed 0 in every process, so that a script repeats itself
unless it asks for other numbers (`seed`).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from needle import dtypes, inplace
from needle.config import no_grad
from needle.devices import META, Device, as_device
from needle.dtypes import DType, as_dtype, is_float, is_integer
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.ops import transcendental as special
from needle.ops.elementwise import TensorLike
from needle.ops.engine import as_tensor
from needle.ops.joining import concat, split
from needle.ops.movement import reshape
from needle.ops.random import STATE_WORDS, advanced, random_bits as draw_bits
from needle.ops.slicing import strided_slice
from needle.ops.sorting import argsort
from needle.shapes import Shape, Spec, as_index, as_shape
from needle.tensor import Tensor, wrap

ShapeLike = int | Sequence[int]
DeviceLike = Device | str | None

_WORD = 2**32


def _entropy() -> int:
    """Return 64 bits from the operating system."""
    return int.from_bytes(os.urandom(8), "little")


class Generator:
    """A stream of random numbers: Philox4x32-10 with its state in a tensor.

    Args:
        seed: 0 to 2⁶⁴ − 1; different seeds give independent streams. None takes one from the
            operating system.

    Attributes:
        state: uint32 of shape [6]: key, block counter, number of the stream. Draws advance it in
            place, so it can be registered as a buffer, saved and restored.

    Raises:
        ArgumentError: the seed is out of range.

    Example:
        >>> generator = ndl.random.Generator(seed=1)
        >>> a = ndl.random.uniform(3, generator=generator)
        >>> b = ndl.random.uniform(3, generator=ndl.random.Generator(1))
        >>> (a == b).all().item()
        True
    """

    def __init__(self, seed: int | None = None) -> None:
        self.state = wrap(np.zeros(STATE_WORDS, dtype=np.uint32))
        # Two threads that draw at once must not get the same bits.
        self._lock = threading.Lock()
        self.manual_seed(_entropy() if seed is None else seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of ``seed`` from its beginning, and return the generator.

        Args:
            seed: 0 to 2⁶⁴ − 1.

        Raises:
            ArgumentError: the seed is out of range.
        """
        number = as_index(seed, "seed")
        if not 0 <= number < 2**64:
            raise ArgumentError(f"seed must be in 0 … 2**64 - 1, got {number}")
        words = np.array([number % _WORD, number // _WORD, 0, 0, 0, 0], dtype=np.uint32)
        self.set_state(words)
        return self

    def seed(self) -> int:
        """Seed with entropy of the operating system, and return the seed, to write it down."""
        number = _entropy()
        self.manual_seed(number)
        return number

    def set_state(self, state: TensorLike) -> None:
        """Continue from a state that `state` once was; the values are copied.

        Args:
            state: uint32 of shape [6].

        Raises:
            DTypeError: it is not uint32.
            ShapeError: it has another shape.

        Example:
            >>> generator = ndl.random.Generator(1)
            >>> saved = generator.state.clone()
            >>> a = generator.random_bits(3)
            >>> generator.set_state(saved)
            >>> (a == generator.random_bits(3)).all().item()
            True
        """
        new = as_tensor(state)
        if new.dtype != dtypes.uint32:
            raise DTypeError(f"the state of a generator is uint32, got {new.dtype.name}")
        if new.shape != (STATE_WORDS,):
            raise ShapeError(
                f"the state of a generator has shape [{STATE_WORDS}] (key, counter, stream), "
                f"got {list(new.shape)}"
            )
        with self._lock, no_grad():
            inplace.assign(self.state, new, "set_state")

    def random_bits(self, shape: ShapeLike) -> Tensor:
        """Return uniform uint32 words of a shape; advance the state by ``⌈size / 4⌉`` blocks."""
        with self._lock:
            bits, after = draw_bits(self.state, shape)
            inplace.assign(self.state, after, "random_bits")
        return bits

    def reserve(self, words: int) -> Tensor:
        """Return the state, and advance past so many words, which an op draws itself."""
        with self._lock:
            state = self.state.clone()
            inplace.assign(self.state, advanced(state, -(-words // 4)), "reserve")
        return state

    def clone(self) -> Generator:
        """Return a generator that continues from the same state, on its own."""
        twin = Generator(0)
        twin.set_state(self.state)
        return twin

    def split(self, n: int = 2) -> tuple[Generator, ...]:
        """Return generators of independent streams: one for each layer, worker or example.

        Key and stream number of each come out of this generator's cipher, 128 bits in all, from
        blocks that no draw will use; this generator advances by ``n`` blocks, so that the next
        split gives others.

        Args:
            n: how many.

        Raises:
            ArgumentError: ``n`` is negative.

        Example:
            >>> a, b = ndl.random.Generator(0).split(2)
            >>> a.random_bits(2).tolist() == b.random_bits(2).tolist()
            False
        """
        count = as_index(n, "split: n")
        if count < 0:
            raise ArgumentError(f"split: n must not be negative, got {count}")
        children = []
        for words in self.random_bits((count, 4)).numpy():
            child = Generator(0)
            child.set_state(
                np.array([words[0], words[1], 0, 0, words[2], words[3]], dtype=np.uint32)
            )
            children.append(child)
        return tuple(children)

    __copy__ = clone

    def __deepcopy__(self, memo: dict[int, Any]) -> Generator:
        memo[id(self)] = twin = self.clone()
        return twin

    def __repr__(self) -> str:
        words = [int(w) for w in self.state.numpy()]
        key, counter, stream = (words[i] + words[i + 1] * _WORD for i in (0, 2, 4))
        return f"Generator(key={key:#x}, counter={counter}, stream={stream:#x})"


_default = Generator(0)


def default_generator() -> Generator:
    """Return the generator that is used where none is given.

    Example:
        >>> ndl.random.default_generator() is ndl.manual_seed(0)
        True
    """
    return _default


def manual_seed(seed: int) -> Generator:
    """Seed the default generator, and return it.

    Args:
        seed: 0 to 2⁶⁴ − 1.

    Raises:
        ArgumentError: the seed is out of range.

    Example:
        >>> _ = ndl.manual_seed(7)
        >>> a = ndl.random.normal(3)
        >>> _ = ndl.manual_seed(7)
        >>> (a == ndl.random.normal(3)).all().item()
        True
    """
    return _default.manual_seed(seed)


def seed() -> int:
    """Seed the default generator with entropy of the operating system, and return the seed.

    Example:
        >>> number = ndl.random.seed()
        >>> a = ndl.random.uniform(())
        >>> _ = ndl.manual_seed(number)
        >>> (a == ndl.random.uniform(())).item()
        True
        >>> _ = ndl.manual_seed(0)
    """
    return _default.seed()


def random_bits(
    shape: ShapeLike, *, generator: Generator | None = None, device: DeviceLike = None
) -> Tensor:
    """Uniform random words of 32 bits.

    Args:
        shape: shape of the result.
        generator: the default one if not given.
        device: ``"meta"`` draws nothing.

    Example:
        >>> ndl.random.random_bits((2, 3)).dtype
        dtype('uint32')
    """
    if as_device(device) is META:
        return wrap(Spec(as_shape(shape, "random_bits"), dtypes.uint32))
    return (generator or _default).random_bits(shape)


def _rows(
    count: int, shape: Shape, generator: Generator | None, device: DeviceLike
) -> list[Tensor]:
    """Return ``count`` draws of ``shape``, made in one."""
    bits = random_bits((count, *shape), generator=generator, device=device)
    rows: tuple[Tensor, ...] = split(bits, 1)
    return [reshape(row, shape) for row in rows]


def _unit(shape: Shape, dtype: DType, generator: Generator | None, device: DeviceLike) -> Tensor:
    """Return multiples of 2⁻ᵖ in [0, 1), with p the bits of the dtype's significand."""
    if dtype == dtypes.float64:
        high, low = _rows(2, shape, generator, device)
        whole = (high.astype(dtypes.uint64) >> 5) * 2**26 + (low >> 6)
        return whole.astype(dtype) * 2.0**-53
    digits = {dtypes.float16: 11, dtypes.bfloat16: 8, dtypes.float32: 24}[dtype]
    bits = random_bits(shape, generator=generator, device=device)
    return (bits >> (32 - digits)).astype(dtype) * 2.0**-digits


def _floating(dtype: Any, name: str) -> DType:
    chosen = dtypes.DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    if not is_float(chosen):
        raise DTypeError(f"{name}: samples are floating, got dtype {chosen.name}; use randint")
    return chosen


def uniform(
    shape: ShapeLike = (),
    low: TensorLike = 0.0,
    high: TensorLike = 1.0,
    dtype: Any = None,
    generator: Generator | None = None,
    *,
    device: DeviceLike = None,
) -> Tensor:
    """Uniform samples in [low, high).

    ``low + (high − low) u`` with u a multiple of 2⁻²⁴ (float32) in [0, 1). For other bounds than 0
    and 1 the sum may round up to ``high``.

    Args:
        shape: shape of the result.
        low: lower bound; a tensor broadcasts against ``shape``, and gradients flow to it.
        high: upper bound, likewise.
        dtype: a floating dtype; float32 if not given.
        generator: the default one if not given.
        device: ``"meta"`` draws nothing.

    Raises:
        DTypeError: the dtype is not floating.
        ArgumentError: ``low`` is larger than ``high``, or a bound is not finite.

    Example:
        >>> x = ndl.random.uniform((1000,), -1, 1)
        >>> bool((x >= -1).all()), bool((x < 1).all()), x.shape
        (True, True, (1000,))
    """
    extents = as_shape(shape, "uniform")
    u = _unit(extents, _floating(dtype, "uniform"), generator, device)
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        if not low <= high or math.isinf(high - low):
            raise ArgumentError(f"uniform: needs finite bounds, low ≤ high, got {low} and {high}")
        if low == 0 and high == 1:
            return u
        return u * float(high - low) + float(low)
    return _as(as_tensor(low) + (as_tensor(high) - low) * u, u, "uniform")


def normal(
    shape: ShapeLike = (),
    mean: TensorLike = 0.0,
    std: TensorLike = 1.0,
    dtype: Any = None,
    generator: Generator | None = None,
    *,
    device: DeviceLike = None,
) -> Tensor:
    """Normal samples: ``mean + std · z`` with z standard normal.

    From pairs of uniform numbers, ``√(−2 ln u) cos 2πv`` and ``√(−2 ln u) sin 2πv`` (Box and
    Muller, 1958). 16-bit floats are computed in float32 and rounded once.

    Args:
        shape: shape of the result.
        mean: a tensor broadcasts against ``shape``, and gradients flow to it.
        std: standard deviation, likewise.
        dtype: a floating dtype; float32 if not given.
        generator: the default one if not given.
        device: ``"meta"`` draws nothing.

    Raises:
        DTypeError: the dtype is not floating.
        ArgumentError: ``std`` is negative.

    Example:
        >>> x = ndl.random.normal((10000,), mean=3.0, generator=ndl.random.Generator(0))
        >>> round(x.mean().item(), 1), round(x.std().item(), 1)
        (3.0, 1.0)
    """
    extents = as_shape(shape, "normal")
    target = _floating(dtype, "normal")
    if isinstance(std, (int, float)) and not std >= 0:
        raise ArgumentError(f"normal: std must not be negative, got {std}")
    size = math.prod(extents)
    pairs = -(-size // 2)
    if target == dtypes.float64:
        u = 1.0 - _unit((pairs,), target, generator, device)
        v = _unit((pairs,), target, generator, device)
    else:
        first, second = _rows(2, (pairs,), generator, device)
        # All 32 bits: u is in (0, 1] and as small as 2⁻³³, so that the tails reach 6.7 σ.
        u = first.astype(dtypes.float32) * 2.0**-32 + 2.0**-33
        v = (second >> 8).astype(dtypes.float32) * 2.0**-24
    radius = special.sqrt(special.log(u) * -2.0)
    angle = v * (2 * math.pi)
    z = concat([radius * special.cos(angle), radius * special.sin(angle)])
    if size != 2 * pairs:
        z = strided_slice(z, (0,), (size,), (1,))
    z = reshape(z, extents)
    if isinstance(mean, (int, float)) and isinstance(std, (int, float)):
        if std != 1:
            z = z * float(std)
        if mean != 0:
            z = z + float(mean)
        return z.astype(target, copy=False)
    z = z.astype(target, copy=False)
    return _as(as_tensor(std) * z + mean, z, "normal")


def _as(samples: Tensor, like: Tensor, name: str) -> Tensor:
    if samples.shape != like.shape:
        raise ShapeError(
            f"{name}: the parameters broadcast to {list(samples.shape)}, but the shape asked for "
            f"is {list(like.shape)}"
        )
    return samples.astype(like.dtype, copy=False)


def randint(
    low: int,
    high: int,
    shape: ShapeLike = (),
    dtype: Any = None,
    generator: Generator | None = None,
    *,
    device: DeviceLike = None,
) -> Tensor:
    """Uniform integers in [low, high).

    ``low + ⌊X (high − low) / 2ᵇ⌋`` for a random X of b bits, twice as many as the range needs (64
    up to a range of 2³², then 128): the probability of a value is off by less than 2⁻ᵇ, a factor
    within 1 ± 2⁻³² at worst, and the number of bits drawn does not depend on their values.

    Args:
        low: smallest value.
        high: the values are below it.
        shape: shape of the result.
        dtype: an integer dtype that holds ``low`` and ``high − 1``; int64 if not given.
        generator: the default one if not given.
        device: ``"meta"`` draws nothing.

    Raises:
        ArgumentError: ``low`` is not below ``high``, or the dtype does not hold the values.
        DTypeError: the dtype is not an integer.

    Example:
        >>> x = ndl.random.randint(1, 7, (1000,))
        >>> x.min().item(), x.max().item()
        (1, 6)
    """
    first, last = as_index(low, "randint: low"), as_index(high, "randint: high") - 1
    target = dtypes.DEFAULT_INT if dtype is None else as_dtype(dtype)
    if not is_integer(target):
        raise DTypeError(f"randint: samples are integers, got dtype {target.name}; use uniform")
    if last < first:
        raise ArgumentError(f"randint: low must be below high, got {first} and {last + 1}")
    limits = np.iinfo(target)
    if first < limits.min or last > limits.max:
        raise ArgumentError(
            f"randint: {target.name} holds {limits.min} to {limits.max}, "
            f"not all of {first} to {last}"
        )
    extents = as_shape(shape, "randint")
    scaled = _scale(last - first + 1, extents, generator, device)
    # Modulo 2⁶⁴, as signed integers are represented.
    return (scaled + first % 2**64).astype(target) if first else scaled.astype(target)


def _scale(span: int, shape: Shape, generator: Generator | None, device: DeviceLike) -> Tensor:
    """Return ``⌊X · span / 2ᵇ⌋`` as uint64, by multiplication in limbs of 32 bits."""
    limbs = [span >> 32 * j & _WORD - 1 for j in range(-(-span.bit_length() // 32))]
    digits = 2 * len(limbs)
    rows = _rows(digits, shape, generator, device)
    words: list[Tensor | int] = [0] * (digits + len(limbs))
    for i, row in enumerate(rows):
        x = row.astype(dtypes.uint64)
        carry: Tensor | int = 0
        for j, limb in enumerate(limbs):
            # At most (2³² − 1)² + 2 (2³² − 1) = 2⁶⁴ − 1: never more than a word of 64 bits.
            total = x * limb + words[i + j] + carry
            words[i + j] = total & (_WORD - 1)
            carry = total >> 32
        words[i + len(limbs)] = carry
    value = words[digits]
    if len(limbs) > 1:
        value = value + words[digits + 1] * _WORD
    assert isinstance(value, Tensor)
    return value


def bernoulli(
    shape: ShapeLike = (),
    p: TensorLike = 0.5,
    dtype: Any = None,
    generator: Generator | None = None,
    *,
    device: DeviceLike = None,
) -> Tensor:
    """True with probability ``p``, independently.

    Args:
        shape: shape of the result.
        p: probability in [0, 1], exact to 2⁻³²; a tensor of them broadcasts against ``shape``.
        dtype: of the result; bool if not given.
        generator: the default one if not given.
        device: ``"meta"`` draws nothing.

    Raises:
        ArgumentError: a probability outside of [0, 1].

    Example:
        >>> x = ndl.random.bernoulli((10000,), 0.3, generator=ndl.random.Generator(0))
        >>> x.dtype, round(x.mean().item(), 1)
        (dtype('bool'), 0.3)
    """
    extents = as_shape(shape, "bernoulli")
    bits = random_bits(extents, generator=generator, device=device)
    if isinstance(p, (int, float)):
        if not 0 <= p <= 1:
            raise ArgumentError(f"bernoulli: p is a probability, got {p}")
        threshold = round(p * _WORD)
        # 2³² is no uint32, so the threshold of 1 is compared from the other side.
        drawn = bits < threshold if threshold < _WORD else bits <= _WORD - 1
    else:
        chances = as_tensor(p)
        if chances.device is not META and not bool(((chances >= 0) & (chances <= 1)).all()):
            raise ArgumentError("bernoulli: p has probabilities outside of [0, 1]")
        drawn = bits.astype(dtypes.float64) < chances.astype(dtypes.float64) * float(_WORD)
        if drawn.shape != extents:
            raise ShapeError(
                f"bernoulli: p of shape {list(chances.shape)} does not broadcast to {list(extents)}"
            )
    return drawn if dtype is None else drawn.astype(as_dtype(dtype), copy=False)


def permutation(n: int, generator: Generator | None = None, *, device: DeviceLike = None) -> Tensor:
    """Shuffle the numbers 0 … n − 1: each order is equally likely.

    The order in which random keys of 64 bits sort (two are equal with probability n² / 2⁶⁵).

    Args:
        n: how many.
        generator: the default one if not given.
        device: ``"meta"`` draws nothing.

    Returns:
        int64 of shape [n].

    Raises:
        ArgumentError: ``n`` is negative.

    Example:
        >>> sorted(ndl.random.permutation(5).tolist())
        [0, 1, 2, 3, 4]
    """
    count = as_index(n, "permutation: n")
    if count < 0:
        raise ArgumentError(f"permutation: n must not be negative, got {count}")
    high, low = _rows(2, (count,), generator, device)
    return argsort((high.astype(dtypes.uint64) << 32) | low)


def rand(
    *shape: Any,
    dtype: Any = None,
    generator: Generator | None = None,
    device: DeviceLike = None,
) -> Tensor:
    """Uniform samples in [0, 1): PyTorch's spelling of `uniform`.

    Args:
        shape: extents, one by one or as a tuple.
        dtype: a floating dtype; float32 if not given.
        generator: the default one if not given.
        device: ``"meta"`` draws nothing.

    Example:
        >>> ndl.rand(2, 3).shape
        (2, 3)
    """
    return uniform(_unpacked(shape), dtype=dtype, generator=generator, device=device)


def randn(
    *shape: Any,
    dtype: Any = None,
    generator: Generator | None = None,
    device: DeviceLike = None,
) -> Tensor:
    """Standard normal samples: PyTorch's spelling of `normal`.

    Args:
        shape: extents, one by one or as a tuple.
        dtype: a floating dtype; float32 if not given.
        generator: the default one if not given.
        device: ``"meta"`` draws nothing.

    Example:
        >>> ndl.randn(2, 3).shape
        (2, 3)
    """
    return normal(_unpacked(shape), dtype=dtype, generator=generator, device=device)


def _unpacked(shape: tuple[Any, ...]) -> Any:
    return shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape


#: PyTorch's spelling of `permutation`.
randperm = permutation

__all__ = [
    "Generator",
    "bernoulli",
    "default_generator",
    "manual_seed",
    "normal",
    "permutation",
    "rand",
    "randint",
    "randn",
    "random_bits",
    "randperm",
    "seed",
    "uniform",
]
