"""Decoding: a cache of keys and values, the choice of a token, and the loop around them.

All prompts of a batch start at position 0 and advance together, so a position is one number for
all. A prompt that is longer than the shortest feeds its own tokens until they are used up. So no
sequence sees padding, and none depends on the lengths of the others.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from needle.compiled.front import compile
from needle.config import no_grad
from needle.creation import arange, asarray, zeros
from needle.errors import ArgumentError, ArgumentTypeError
from needle.nn.module import Module
from needle.ops.comparison import where
from needle.ops.gather import take_along_axis
from needle.ops.reduce import argmax
from needle.ops.scan import cumulative_sum
from needle.ops.softmax import softmax
from needle.ops.sorting import topk
from needle.random import Generator, default_generator, uniform
from needle.tensor import Tensor


class KeyValueCache:
    """Keys and values of all tokens so far, so that each token is computed once.

    The buffers have room for the whole context and are written in place; how much of them counts is
    a tensor, too. So a compiled function that takes them from outside is one program for all
    positions.

    Args:
        layers: number of attention layers.
        batch: number of sequences.
        heads: number of attention heads.
        context: the longest sequence.
        head_width: features of a head.
        dtype: of keys and values.

    Attributes:
        keys: [batch, heads, context, head_width] for each layer.
        values: likewise.
        position: int64, 0-d: how many tokens the buffers hold.
    """

    def __init__(
        self, layers: int, batch: int, heads: int, context: int, head_width: int, dtype: Any
    ) -> None:
        shape = (batch, heads, context, head_width)
        self.keys = [zeros(shape, dtype=dtype) for _ in range(layers)]
        self.values = [zeros(shape, dtype=dtype) for _ in range(layers)]
        self.position = zeros((), dtype="int64")

    def is_like(self, other: KeyValueCache) -> bool:
        """Whether another cache has as many buffers, of the same shape and dtype."""
        a, b = self.keys, other.keys
        return (len(a), a[0].shape, a[0].dtype) == (len(b), b[0].shape, b[0].dtype)

    def places(self, count: int) -> Tensor:
        """Return the positions of the next ``count`` tokens, [count]."""
        result: Tensor = self.position + arange(count)
        return result

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the next tokens' keys and values, and return those of all tokens.

        These tokens attend to all before them: their causal mask begins at `position`.

        Args:
            layer: number of the layer.
            keys: [batch, heads, count, head_width].
            values: likewise.
        """
        places = self.places(keys.shape[2])
        self.keys[layer][:, :, places] = keys
        self.values[layer][:, :, places] = values
        return self.keys[layer], self.values[layer]


def choose_tokens(
    logits: Tensor,
    draws: Tensor,
    temperature: Tensor | float = 1.0,
    *,
    top_k: int | None = None,
    top_p: Tensor | float | None = None,
) -> Tensor:
    """Draw a token for each row of logits, by inversion of the distribution function.

    The probabilities are ``softmax(logits / temperature)``, of which ``top_k`` keeps the largest k,
    and ``top_p`` the fewest whose sum reaches p; what is kept is scaled to a sum of 1.

    Source for ``top_p``: A. Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019.

    Args:
        logits: [batch, vocabulary].
        draws: uniform in [0, 1), [batch].
        temperature: above 0; below 1 prefers probable tokens.
        top_k: how many tokens are possible; all if not given.
        top_p: probability that the possible tokens have together; 1 if not given.

    Returns:
        int64, [batch].

    Example:
        >>> from needle.models.generation import choose_tokens
        >>> logits = ndl.asarray([[0.0, 2.0, 1.0]] * 3)
        >>> choose_tokens(logits, ndl.asarray([0.05, 0.5, 0.95]))
        Tensor([0, 1, 2], dtype=int64)
        >>> choose_tokens(logits, ndl.asarray([0.05, 0.5, 0.95]), top_k=2)
        Tensor([1, 1, 2], dtype=int64)
    """
    order = None
    if top_k is not None or top_p is not None:
        logits, order = topk(logits, logits.shape[-1] if top_k is None else top_k)
    weights = softmax(logits / temperature, -1)
    sums = cumulative_sum(weights, axis=-1)
    if top_p is not None:
        # The first stays in any case: nothing comes before it.
        weights = where(sums - weights < top_p, weights, 0.0)
        sums = cumulative_sum(weights, axis=-1)
    target = draws.reshape(-1, 1).astype(sums.dtype, copy=False) * sums[:, -1:]
    # Rounding may bring the target up to the whole sum: then it is the last that is possible.
    beyond = ((sums <= target) & (sums < sums[:, -1:])).sum(axis=-1, keepdims=True)
    if order is not None:
        beyond = take_along_axis(order, beyond, axis=-1)
    result: Tensor = beyond[:, 0].astype("int64", copy=False)
    return result


class _Decodable(Protocol):
    """What a `Decoder` asks of a model."""

    def new_cache(self, batch: int) -> KeyValueCache: ...

    def next_logits(self, tokens: Tensor, cache: KeyValueCache, count: Tensor) -> Tensor: ...


#: From tokens, how many of them count, draws, temperature and top_p to the tokens that follow.
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Decoder:
    """A model's cache, and its steps compiled; kept by the model from one call to the next.

    Args:
        model: the model.
    """

    def __init__(self, model: _Decodable) -> None:
        self.model = model
        self.cache: KeyValueCache | None = None
        #: There is one cache, so one call at a time.
        self.lock = threading.Lock()
        self._steps: dict[tuple[Any, ...], Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Decoder:
        """Return a decoder of the copied model, without what was compiled for this one."""
        return Decoder(memo.get(id(self.model), self.model))

    def __reduce__(self) -> tuple[type[Decoder], tuple[_Decodable]]:
        """Compiled code and what is in the cache are no part of a pickled model."""
        return Decoder, (self.model,)

    def start(self, batch: int) -> KeyValueCache:
        """Return the cache, at position 0, for so many sequences."""
        fresh = self.model.new_cache(batch)
        if self.cache is None or not self.cache.is_like(fresh):
            self.cache = fresh
            self._steps = {}
        self.cache.position[...] = 0
        return self.cache

    def step(self, greedy: bool, top_k: int | None, has_top_p: bool, compiled: bool) -> Step:
        """Return the step of these options; a compiled one is a native call."""
        key = greedy, top_k, has_top_p, compiled
        found = self._steps.get(key)
        if found is None:
            model, cache = self.model, self.cache
            assert cache is not None

            def step(
                tokens: Tensor, count: Tensor, draws: Tensor, temperature: Tensor, top_p: Tensor
            ) -> Tensor:
                logits = model.next_logits(tokens, cache, count)
                if greedy:
                    return argmax(logits, -1)
                limit = top_p if has_top_p else None
                return choose_tokens(logits, draws, temperature, top_k=top_k, top_p=limit)

            # A program for single tokens, and one for prompts of each power of two.
            found = self._steps[key] = compile(step, budget=32) if compiled else step
        result: Step = found
        return result


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    count: int,
    *,
    context: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop: int | None,
    generator: Generator | None,
    compiled: bool,
) -> list[list[int]]:
    """Continue each prompt by up to ``count`` tokens; see `GPT.generate`."""
    lengths = [len(p) for p in prompts]
    draws = _draws(generator, len(prompts), count, temperature)
    decoder.start(len(prompts))
    step = decoder.step(temperature == 0, top_k, top_p is not None, compiled)
    numbers = [
        asarray(np.float32(x)) for x in (temperature or 1.0, 1.0 if top_p is None else top_p)
    ]
    written = [list(p) for p in prompts]
    is_open = [True] * len(prompts)
    used, fed = 0, min(lengths)
    one = asarray(np.int64(1))
    while True:
        # What lies behind the tokens that count is overwritten before anything attends to it.
        width = 1 if fed == 1 else min(1 << (fed - 1).bit_length(), context)
        block = np.zeros((len(prompts), width), np.int64)
        for row, tokens in zip(block, written, strict=True):
            row[:fed] = tokens[used : used + fed]
        used += fed
        chances = np.array(
            [d[min(max(used - n, 0), count - 1)] for d, n in zip(draws, lengths, strict=True)],
            np.float32,
        )
        following = step(
            asarray(block), one if fed == 1 else asarray(np.int64(fed)), asarray(chances), *numbers
        )
        for i, token in enumerate(following.tolist()):
            tokens = written[i]
            if len(tokens) > used:
                continue  # the prompt goes on
            if is_open[i]:
                tokens.append(token)
                is_open[i] = token != stop and len(tokens) < lengths[i] + count
            else:
                tokens.append(0)  # its place must be fed with something
        fed = 1
        if not any(is_open):
            break
    return [_closed(t, n, count, stop) for t, n in zip(written, lengths, strict=True)]


def _closed(tokens: list[int], prompt: int, count: int, stop: int | None) -> list[int]:
    """Return the tokens up to the first ``stop`` behind the prompt, or to their number."""
    new = tokens[prompt : prompt + count]
    if stop is not None and stop in new:
        new = new[: new.index(stop) + 1]
    return tokens[:prompt] + new


def _draws(
    generator: Generator | None, batch: int, count: int, temperature: float
) -> list[np.ndarray[Any, Any]]:
    """Return the draws of each sequence, from a stream of its own: whatever others there are."""
    if temperature == 0:
        return [np.zeros(count, np.float32)] * batch
    streams = (default_generator() if generator is None else generator).split(batch)
    return [uniform((count,), generator=stream).numpy() for stream in streams]


def as_prompts(prompts: Any, vocabulary: int) -> list[list[int]]:
    """Return prompts as lists of tokens.

    Args:
        prompts: a tensor or array [batch, time], or a sequence of sequences of tokens.
        vocabulary: number of tokens.

    Raises:
        ArgumentTypeError: tokens that are no integers.
        ArgumentError: no prompt, an empty one, or a token out of range.
    """
    rows = prompts.numpy() if isinstance(prompts, Tensor) else prompts
    if isinstance(rows, np.ndarray) and rows.ndim != 2:
        raise ArgumentError(
            f"generate: prompts must be [batch, time], got shape {list(rows.shape)}; write "
            "prompts[None] for a single one"
        )
    found: list[list[int]] = []
    for row in rows:
        array = np.asarray(row.numpy() if isinstance(row, Tensor) else row)
        if array.ndim != 1:
            raise ArgumentError(
                f"generate: prompts must be a list of lists of tokens, got {row!r:.40} in it"
            )
        if not array.size:
            raise ArgumentError(
                "generate: a prompt is empty; start with a token, such as that of a line's end"
            )
        if array.dtype.kind not in "iu":
            raise ArgumentTypeError(f"generate: tokens are integers, got {array.dtype.name}")
        if array.min() < 0 or array.max() >= vocabulary:
            raise ArgumentError(
                f"generate: tokens must be in 0 … {vocabulary - 1}, got {array.tolist()!r:.60}"
            )
        found.append([int(token) for token in array])
    if not found:
        raise ArgumentError("generate: there is no prompt")
    return found


def check_options(
    longest: int,
    count: int,
    context: int,
    vocabulary: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    """Raise ArgumentError for options of `GPT.generate` that make no sense."""
    if count < 1:
        raise ArgumentError(f"generate: count must be at least 1, got {count}")
    if longest + count > context + 1:
        raise ArgumentError(
            f"generate: a prompt of {longest} tokens and {count} more do not fit into the context "
            f"of {context}; crop the prompt, or ask for {max(context + 1 - longest, 0)}"
        )
    if not 0 <= temperature < math.inf:
        raise ArgumentError(f"generate: temperature must be at least 0, got {temperature}")
    if top_k is not None and not 1 <= top_k <= vocabulary:
        raise ArgumentError(f"generate: top_k must be in 1 … {vocabulary}, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ArgumentError(f"generate: top_p must be above 0 and at most 1, got {top_p}")


@contextmanager
def evaluating(model: Module) -> Iterator[None]:
    """Run a model without gradients and in evaluation mode; restore its mode on leaving."""
    before = [m for m in model.modules() if m.training]
    if before:
        model.eval()
    try:
        with no_grad():
            yield
    finally:
        for module in before:
            module.training = True
