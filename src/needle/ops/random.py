"""Random bits: Philox4x32-10, a cipher that turns a counter into noise.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). Word ``i``
of a draw is word ``i % 4`` of the block for counter ``c + i // 4``: a function of its place alone.
So the stream does not depend on the number of threads or on who computes it, NumPy or compiled
code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import uint32, uint64
from needle.errors import DTypeError, ShapeError
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.joining import concat
from needle.ops.movement import reshape
from needle.ops.record import Kind, op
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.shapes import Shape, Spec, as_shape

if TYPE_CHECKING:
    from needle.tensor import Tensor

#: Words of a generator's state: the key (2), the counter (2), and the number of the stream (2).
STATE_WORDS = 6

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
#: Blocks computed at a time, so that the work stays in the cache.
_BATCH = 16384


def _philox(key: tuple[int, int], counters: Array, stream: tuple[int, int], out: Array) -> None:
    """Write the block of each 64-bit counter, four words of 32 bits, to a row of ``out``."""
    half = np.uint64(32)
    multipliers = np.array(_MULTIPLIERS, dtype=np.uint64)[:, None]
    # A word of 64 bits holds two of the four: rows are (c0, c1) and (c2, c3), each high word first.
    # A round c0, c1 ← hi(M1 c2) ^ c1 ^ k0, lo(M1 c2); c2, c3 ← hi(M0 c0) ^ c3 ^ k1, lo(M0 c0) then
    # is, for both rows at once: (M × the other row's high word) ^ (own low word, moved up) ^ key.
    words = np.empty((2, counters.size), dtype=np.uint64)
    words[0] = (counters << half) | (counters >> half)
    words[1] = stream[0] << 32 | stream[1]
    products = np.empty_like(words)
    for r in range(_ROUNDS):
        keys = [((k + r * step) & _MASK) << 32 for k, step in zip(key, _KEY_STEPS, strict=True)]
        np.right_shift(words, half, out=products)
        np.multiply(products, multipliers, out=products)
        np.left_shift(words, half, out=words)
        np.bitwise_xor(words, products[::-1], out=words)
        np.bitwise_xor(words, np.array(keys, dtype=np.uint64)[:, None], out=words)
    for row in (0, 1):
        out[:, 2 * row] = words[row] >> half
        out[:, 2 * row + 1] = words[row]  # the cast keeps the low word


def _random_bits(state: Array, *, shape: Shape) -> tuple[Array, Array]:
    k0, k1, c0, c1, s0, s1 = (int(word) for word in state)
    size = math.prod(shape)
    blocks = -(-size // 4)
    start = c0 | c1 << 32
    out = np.empty((blocks, 4), dtype=np.uint32)
    for first in range(0, blocks, _BATCH):
        rows = out[first : first + _BATCH]
        counters = np.arange(len(rows), dtype=np.uint64)
        counters += np.uint64((start + first) % 2**64)
        _philox((k0, k1), counters, (s0, s1), rows)
    after = (start + blocks) % 2**64
    following = np.array([k0, k1, after & _MASK, after >> 32, s0, s1], dtype=np.uint32)
    return out.reshape(-1)[:size].reshape(shape), following


def philox_words(b: Any, block: Any, start: Any, stream: Any, *keys: Any) -> tuple[Any, ...]:
    """Return the four words of a block: what `_philox` computes, for one counter or a vector.

    Each word is the low half of 64 bits; the high halves hold what is left of products.
    """

    def low(x: Any) -> Any:
        return b.binary("and", x, b.like(_MASK, x))

    def high(x: Any) -> Any:
        return b.binary("lshr", x, b.like(32, x))

    def xor(x: Any, y: Any) -> Any:
        return b.binary("xor", x, y)

    counter = b.add(b.convert(block, uint64), start)
    words = [counter, high(counter), stream, high(stream)]
    for r in range(_ROUNDS):
        c0, c1, c2, c3 = words
        first, second = (
            b.mul(low(c), b.like(m, c)) for c, m in zip((c0, c2), _MULTIPLIERS, strict=True)
        )
        k0, k1 = keys[2 * r : 2 * r + 2]
        words = [xor(xor(high(second), c1), k0), second, xor(xor(high(first), c3), k1), first]
    return tuple(b.convert(w, uint32) for w in words)


def _lower_random_bits(b: Any, index: Any, state: Any, *, shape: Shape) -> Any:
    """Build an element of the bits (result 0) or of the next state (result 1)."""

    def number(position: int) -> Any:
        """Return the 64 bits that two words of the state hold."""
        parts = state((b.constant(position),)), state((b.constant(position + 1),))
        return b.compute(_joined, *parts, dtype=uint64)

    if b.number == 1:
        (i,) = index
        blocks = -(-math.prod(shape) // 4)

        def advanced(f: Any, x: Any) -> Any:
            return f.add(x, f.like(blocks, x))

        def low_word() -> Any:
            return b.compute(lambda f, x: f.convert(advanced(f, x), uint32), number(2))

        def high_word() -> Any:
            shifted = _shifted_right
            return b.compute(lambda f, x: shifted(f, advanced(f, x)), number(2))

        return b.where(
            [(i, 2, 3)],
            low_word,
            lambda: b.where([(i, 3, 4)], high_word, lambda: state((i,))),
        )
    keys = []
    for r in range(_ROUNDS):
        for position, step in enumerate(_KEY_STEPS):
            word = state((b.constant(position),))
            more = r * step & _MASK
            keys.append(
                b.compute(
                    lambda f, k, more=more: f.convert(f.add(k, f.like(more, k)), uint64),
                    word,
                    dtype=uint64,
                )
            )
    place = b.ravel(index, b.shape)
    return b.several(place, 4, philox_words, number(2), number(4), *keys)


def _joined(b: Any, low: Any, high: Any) -> Any:
    wide = b.convert(high, uint64)
    return b.binary("or", b.convert(low, uint64), b.binary("shl", wide, b.like(32, wide)))


def _shifted_right(b: Any, x: Any) -> Any:
    return b.convert(b.binary("lshr", x, b.like(32, x)), uint32)


def _infer_random_bits(state: Spec, *, shape: Shape) -> tuple[Spec, Spec]:
    if state.dtype != uint32:
        raise DTypeError(
            f"random_bits: the state of a generator is uint32, got {state.dtype.name}; "
            "take it from ndl.random.Generator(seed).state"
        )
    if state.shape != (STATE_WORDS,):
        raise ShapeError(
            f"random_bits: the state of a generator has shape [{STATE_WORDS}] "
            f"(key, counter, stream), got {list(state.shape)}"
        )
    return Spec(shape, uint32), Spec((STATE_WORDS,), uint32)


def _state(*words: int) -> Array:
    return np.array(words, dtype=np.uint32)


def _random_bits_samples() -> Iterable[Sample]:
    yield Sample((_state(1, 2, 3, 4, 5, 6), (3, 5)))
    yield Sample((_state(0, 0, 0, 0, 0, 0), ()), label="0-d")
    yield Sample((_state(0, 0, 0, 0, 0, 0), (0, 3)), label="empty")
    yield Sample((_state(7, 0, _MASK, _MASK, 0, 0), (9,)), label="counter wraps")
    yield bad(DTypeError, "is uint32", integers(0, 9, STATE_WORDS), (3,))
    yield bad(ShapeError, r"has shape \[6\]", _state(1, 2), (3,))
    yield bad(DTypeError, "is uint32", normal(STATE_WORDS), (3,))


@op(
    kind=Kind.RANDOM,
    infer=_infer_random_bits,
    reference=_random_bits,
    lower=_lower_random_bits,
    samples=_random_bits_samples,
    is_method=False,
)
def random_bits(state: TensorLike, shape: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Uniform random words of 32 bits, and the state after them: Philox4x32-10.

    A pure function: the same state gives the same bits. `needle.random.Generator` keeps the state
    for you.

    Args:
        state: uint32 of shape [6]: the key, the block counter and the number of the stream, each as
            low word, high word.
        shape: shape of the result.

    Returns:
        The bits, uint32 of ``shape``, and the state with the counter advanced by ``⌈size / 4⌉``
        blocks.

    Raises:
        DTypeError: the state is not uint32.
        ShapeError: the state has another shape than [6].

    Example:
        >>> bits, state = ndl.random_bits(ndl.zeros(6, dtype="uint32"), 2)
        >>> [hex(word) for word in bits.tolist()], state.tolist()
        (['0x6627e8d5', '0xe169c58d'], [0, 0, 1, 0, 0, 0])
    """
    result: Any = apply(random_bits, as_tensor(state), shape=as_shape(shape, "random_bits"))
    return result


def advanced(state: Tensor, blocks: int) -> Tensor:
    """Return the state of a generator after so many more blocks, without drawing them."""
    low, high = (state[i].astype(uint64) for i in (2, 3))
    counter = (low | high << 32) + blocks
    middle = [reshape(word.astype(uint32), (1,)) for word in (counter & _MASK, counter >> 32)]
    return concat([state[:2], *middle, state[4:]])


__all__ = ["random_bits"]
