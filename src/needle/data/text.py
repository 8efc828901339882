"""Character text: a vocabulary, and pieces of text for a language model to predict."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.creation import asarray
from needle.data.dataset import Dataset, as_index, as_indices
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    DataNotFoundError,
    OutOfRangeError,
    StateDictError,
)

_LONGEST_FILE_NAME = 1024


class CharText:
    """A text as numbers, one for each character.

    The vocabulary is the text's characters in the order of their code points, so that it does not
    depend on anything but the text.

    Args:
        text: the text itself; or a ``Path``, to read a file in UTF-8.
        vocabulary: the characters, if they are to be those of another text (a model's, say).

    Raises:
        ArgumentError: the text is empty, holds a character that is not in ``vocabulary``, or is the
            name of a file (give a ``Path`` to read it).
        DataNotFoundError: there is no such file.
        DataError: the file is not UTF-8.

    Example:
        >>> from needle.data import CharText
        >>> text = CharText("abracadabra")
        >>> text.vocabulary, text.encode("cab").tolist(), text.decode([2, 0, 1])
        ('abcdr', [2, 0, 1], 'cab')
        >>> data = text.windows(4)
        >>> len(data), [text.decode(part) for part in data[0]]
        (7, ['abra', 'brac'])
    """

    def __init__(
        self, text: str | os.PathLike[str], vocabulary: Iterable[str] | None = None
    ) -> None:
        if isinstance(text, os.PathLike):
            text = _read_text(Path(text).expanduser())
        elif not isinstance(text, str):
            raise ArgumentTypeError(f"CharText: needs a str or a Path, got {type(text).__name__}")
        elif _is_file_name(text):
            raise ArgumentError(
                f"CharText: {text!r} is the name of a file, and would be taken for the text "
                f"itself; to read it write CharText(Path({text!r}))"
            )
        if not text:
            raise ArgumentError("CharText: the text is empty")
        self.vocabulary = "".join(sorted(set(text if vocabulary is None else vocabulary)))
        if not self.vocabulary:
            raise ArgumentError("CharText: the vocabulary is empty")
        points = np.array([ord(c) for c in self.vocabulary], np.uint32)
        self._points = points
        self.tokens = self._encode(text, "the text")

    @classmethod
    def _of_tokens(cls, vocabulary: str, points: NDArray[Any], tokens: NDArray[Any]) -> CharText:
        part = cls.__new__(cls)
        part.vocabulary, part._points, part.tokens = vocabulary, points, tokens
        return part

    def __len__(self) -> int:
        """Return the number of characters."""
        return len(self.tokens)

    @property
    def vocabulary_size(self) -> int:
        """The number of different characters."""
        return len(self.vocabulary)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return the numbers of the characters of ``text``: int64 [characters].

        Raises:
            ArgumentError: a character is not in the vocabulary; the message names it and its place.
        """
        return self._encode(text, "encode").astype(np.int64)

    def decode(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> str:
        """Return the text that ``tokens`` stand for.

        Raises:
            OutOfRangeError: a number is not in the vocabulary.
        """
        indices = np.asarray(tokens, np.int64).reshape(-1)
        wrong = (indices < 0) | (indices >= self.vocabulary_size)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise OutOfRangeError(
                f"decode: token {indices[at]} at {at} is out of range for a vocabulary of "
                f"{self.vocabulary_size}"
            )
        return "".join([self.vocabulary[i] for i in indices.tolist()])

    def split(self, valid: float = 0.1) -> tuple[CharText, CharText]:
        """Return the beginning of the text for training and the end for validation.

        Both keep the vocabulary of the whole, and no window overlaps the other part.

        Args:
            valid: the fraction of the text that is the second part.

        Raises:
            ArgumentError: a part would be empty.
        """
        cut = len(self) - round(len(self) * valid) if 0 < valid < 1 else 0
        if not 0 < cut < len(self):
            raise ArgumentError(
                f"split: valid={valid} of {len(self)} characters leaves a part empty; it must be a "
                "fraction between 0 and 1"
            )
        first, second = (
            self._of_tokens(self.vocabulary, self._points, part)
            for part in (self.tokens[:cut], self.tokens[cut:])
        )
        return first, second

    def windows(self, length: int, stride: int = 1) -> CharWindows:
        """Return the pieces of ``length`` characters that begin every ``stride`` characters."""
        return CharWindows(self.tokens, length, stride)

    def _encode(self, text: str, name: str) -> NDArray[Any]:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        index = np.searchsorted(self._points, points)
        known = self._points[np.minimum(index, len(self._points) - 1)] == points
        if not known.all():
            at = int(np.argmin(known))
            raise ArgumentError(
                f"CharText: {name} has the character {text[at]!r} at {at}, which is not among the "
                f"{self.vocabulary_size} of the vocabulary {self.vocabulary!r}"
            )
        return index.astype(np.min_scalar_type(max(self.vocabulary_size - 1, 0)))

    def __repr__(self) -> str:
        return f"CharText({len(self)} characters, vocabulary of {self.vocabulary_size})"


class CharWindows(Dataset[tuple[NDArray[np.int64], NDArray[np.int64]]]):
    """Pieces of a text, each with the same piece one character later, which is to be predicted.

    Args:
        tokens: integers [characters].
        length: of a piece.
        stride: how far apart pieces begin; ``stride=length`` gives pieces that do not overlap.

    Raises:
        ArgumentError: a length or stride below 1, or a text that is too short for one piece.
    """

    batched = True

    def __init__(self, tokens: NDArray[Any], length: int, stride: int = 1) -> None:
        if length < 1 or stride < 1:
            raise ArgumentError(
                f"windows: length and stride must be positive, got {length} and {stride}"
            )
        if len(tokens) <= length:
            raise ArgumentError(
                f"windows: a piece of {length} characters and the one that follows need a text of "
                f"at least {length + 1}, got {len(tokens)}"
            )
        self.tokens = tokens
        self.length = length
        self.stride = stride

    def __len__(self) -> int:
        return (len(self.tokens) - 1 - self.length) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        start = as_index(index, len(self), "CharWindows") * self.stride
        piece = self.tokens[start : start + self.length + 1].astype(np.int64)
        return piece[:-1], piece[1:]

    def get_batch(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the pieces at ``indices`` and what follows them: int64 [batch, length] each."""
        starts = as_indices(indices, len(self), "CharWindows") * self.stride
        pieces = self.tokens[starts[:, None] + np.arange(self.length + 1)].astype(np.int64)
        return pieces[:, :-1], pieces[:, 1:]

    def __repr__(self) -> str:
        return f"CharWindows({len(self)} of {self.length} characters, stride {self.stride})"


class ContiguousBatches:
    """Batches for truncated backpropagation through time: each row goes on where it ended.

    The text is cut into ``batch_size`` equal streams that lie side by side. Batch ``k`` holds
    ``steps`` characters of each stream, and batch ``k + 1`` the next, so the hidden state of a
    recurrent model carries over from batch to batch (W. Zaremba, I. Sutskever, O. Vinyals,
    "Recurrent neural network regularization", 2014). Characters beyond the last full stream or
    batch are left out.

    Args:
        text: a `CharText`.
        batch_size: the number of streams.
        steps: characters of each stream in a batch.
        batch_first: give ``[batch, steps]`` instead of ``[steps, batch]``.

    Raises:
        ArgumentError: the text is too short for one batch, or a number is below 1.

    Example:
        >>> from needle.data import CharText, ContiguousBatches
        >>> text = CharText("abcdefghi")
        >>> batches = ContiguousBatches(text, batch_size=2, steps=2, batch_first=True)
        >>> [[text.decode(row) for row in x.tolist()] for x, y in batches]
        [['ab', 'ef'], ['cd', 'gh']]
    """

    def __init__(
        self, text: CharText, batch_size: int, steps: int, batch_first: bool = False
    ) -> None:
        if batch_size < 1 or steps < 1:
            raise ArgumentError(
                f"ContiguousBatches: batch_size and steps must be positive, got {batch_size} and "
                f"{steps}"
            )
        # One character of the text is only ever a target: the last.
        length = (len(text) - 1) // batch_size
        if length < steps:
            raise ArgumentError(
                f"ContiguousBatches: {batch_size} streams of {steps} characters need a text of at "
                f"least {batch_size * steps + 1}, got {len(text)}"
            )
        used = batch_size * length
        self._inputs = text.tokens[:used].reshape(batch_size, length)
        self._targets = text.tokens[1 : used + 1].reshape(batch_size, length)
        self.steps = steps
        self.batch_first = batch_first
        self._position = 0
        self._resumed = False

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return int(self._inputs.shape[1]) // self.steps

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """Start at the beginning of the streams, or where `load_state_dict` left off."""
        start, self._resumed = (self._position if self._resumed else 0), False
        return self._batches(start)

    def _batches(self, start: int) -> Iterator[tuple[Any, Any]]:
        for k in range(start, len(self)):
            self._position = k + 1
            columns = slice(k * self.steps, (k + 1) * self.steps)
            yield self._tensor(self._inputs[:, columns]), self._tensor(self._targets[:, columns])
        self._position = 0

    def _tensor(self, part: NDArray[Any]) -> Any:
        wide = part.astype(np.int64)
        return asarray(wide if self.batch_first else np.ascontiguousarray(wide.T))

    def state_dict(self) -> dict[str, Any]:
        """Return how far the epoch has come; in the body of the loop, the batch at hand counts."""
        return {"position": self._position, "batches": len(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next loop begin where the one that was saved had come to.

        Raises:
            StateDictError: the state is not of batches like these.
        """
        if state.keys() != {"position", "batches"} or state["batches"] != len(self):
            raise StateDictError(
                f"ContiguousBatches: expected the state of {len(self)} batches, got {state}"
            )
        self._position, self._resumed = int(state["position"]), True


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise DataNotFoundError(f"CharText: {path} is not a file") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}; "
            "convert the file to UTF-8"
        ) from None


def _is_file_name(text: str) -> bool:
    if len(text) > _LONGEST_FILE_NAME or "\n" in text or "\0" in text:
        return False
    try:
        return Path(text).is_file()
    except OSError:  # longer than a file name may be
        return False
