"""Character text: vocabulary, windows, contiguous batches."""

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

import needle as ndl
from needle.data import CharText, ContiguousBatches, DataLoader
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DataError,
    DataNotFoundError,
    OutOfRangeError,
    StateDictError,
)


@given(st.text(min_size=1))
def test_encode_and_decode_are_inverse(text):
    data = CharText(text + "\n")
    assert data.decode(data.tokens) == text + "\n"
    assert data.decode(data.encode(text)) == text
    assert data.vocabulary == "".join(sorted(set(text + "\n")))
    assert data.encode(text).dtype == np.int64


def test_tokens_take_little_memory():
    assert CharText("abc").tokens.dtype == np.uint8
    many = "".join(chr(300 + i) for i in range(1000))
    assert CharText(many).tokens.dtype == np.uint16


def test_real_text(shared_data):
    text = CharText(shared_data / "tinyshakespeare.txt")
    assert (len(text), text.vocabulary_size) == (1_115_394, 65)
    assert text.decode(text.tokens[:14]) == "First Citizen:"
    train, valid = text.split(0.1)
    assert len(train) + len(valid) == len(text)
    assert len(valid) == 111_539
    assert train.vocabulary == valid.vocabulary == text.vocabulary


def test_unknown_character():
    text = CharText("abc")
    with pytest.raises(ArgumentError, match=r"character 'x' at 2, which is not among the 3"):
        text.encode("abxc")
    with pytest.raises(ArgumentError, match=r"'z' at 0"):
        CharText("z", vocabulary="abc")
    with pytest.raises(ArgumentError, match="vocabulary is empty"):
        CharText("a", vocabulary="")
    assert CharText("ca", vocabulary="cba").tokens.tolist() == [2, 0]
    assert text.encode("").tolist() == []
    for token in (-1, 3):
        with pytest.raises(OutOfRangeError, match=f"token {token} at 1"):
            text.decode([0, token])
    assert text.decode([]) == ""


def test_files(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("naïve\r\n".encode())
    assert CharText(path).decode(CharText(path).tokens) == "naïve\r\n"
    with pytest.raises(ArgumentError, match="is the name of a file"):
        CharText(str(path))
    with pytest.raises(DataNotFoundError, match="is not a file"):
        CharText(tmp_path / "no")
    with pytest.raises(DataNotFoundError, match="is not a file"):
        CharText(tmp_path)
    path.write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="byte 3 is 0xff"):
        CharText(path)
    path.write_bytes(b"")
    with pytest.raises(ArgumentError, match="empty"):
        CharText(path)
    with pytest.raises(ArgumentTypeError, match="bytes"):
        CharText(b"abc")
    long = "a/" * 3000
    assert len(CharText(long)) == 6000
    assert len(CharText("x" * 1000)) == 1000  # longer than a file name, shorter than the limit


@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 7))
def test_windows(n, length, stride):
    text = CharText("".join(chr(100 + i) for i in range(n)))
    if n <= length:
        with pytest.raises(ArgumentError, match=f"at least {length + 1}, got {n}"):
            text.windows(length, stride)
        return
    windows = text.windows(length, stride)
    starts = [s for s in range(0, n, stride) if s + length + 1 <= n]
    assert len(windows) == len(starts)
    for (x, y), start in zip(windows, starts, strict=True):
        assert x.tolist() == list(range(start, start + length))
        assert y.tolist() == list(range(start + 1, start + length + 1))
    batch_x, batch_y = windows.get_batch(np.arange(len(windows)))
    np.testing.assert_array_equal(batch_x, [x for x, _ in windows])
    np.testing.assert_array_equal(batch_y, [y for _, y in windows])


def test_windows_in_batches():
    loader = DataLoader(CharText("abcdefgh").windows(3, 3), 2, shuffle=True)
    x, y = next(iter(loader))
    assert x.shape == y.shape == (2, 3)
    assert x.dtype == ndl.int64
    np.testing.assert_array_equal(x.numpy() + 1, y.numpy())
    with pytest.raises(ArgumentError, match="positive"):
        CharText("abc").windows(0)
    with pytest.raises(ArgumentError, match="positive"):
        CharText("abc").windows(1, 0)


@pytest.mark.parametrize("valid", [0, 1, -0.5, 0.01, 0.99, float("nan")])
def test_split_leaves_no_part_empty(valid):
    with pytest.raises(ArgumentError, match="part empty"):
        CharText("abcdefghij").split(valid)


@given(st.integers(2, 200), st.integers(1, 6), st.integers(1, 9), st.booleans())
def test_contiguous_batches(n, size, steps, batch_first):
    text = CharText("".join(chr(100 + i) for i in range(n)))
    if (n - 1) // size < steps:
        with pytest.raises(ArgumentError, match=f"at least {size * steps + 1}, got {n}"):
            ContiguousBatches(text, size, steps)
        return
    batches = ContiguousBatches(text, size, steps, batch_first)
    parts = [(x.numpy(), y.numpy()) for x, y in batches]
    assert len(parts) == len(batches)
    shape = (size, steps) if batch_first else (steps, size)
    assert all(x.shape == y.shape == shape and x.dtype == np.int64 for x, y in parts)
    axis = 1 if batch_first else 0
    streams = np.concatenate([x for x, _ in parts], axis=axis)
    streams = streams if batch_first else streams.T
    # Each stream is one run of the text, the next begins where it would have ended.
    length = (n - 1) // size
    for row, stream in enumerate(streams):
        start = row * length
        assert stream.tolist() == list(range(start, start + len(parts) * steps))
    for x, y in parts:
        np.testing.assert_array_equal(x + 1, y)


def test_contiguous_batches_resume():
    text = CharText("".join(chr(100 + i) for i in range(41)))

    def batches():
        return ContiguousBatches(text, 2, 4)

    whole = [x.tolist() for x, _ in batches()]
    for stop in range(1, len(whole) + 1):
        first = batches()
        seen = [x.tolist() for x, _ in itertools.islice(first, stop)]
        second = batches()
        second.load_state_dict(first.state_dict())
        assert seen + [x.tolist() for x, _ in second] == whole
        assert [x.tolist() for x, _ in second] == whole  # the next epoch is whole again
    with pytest.raises(StateDictError, match="4 batches"):
        ContiguousBatches(text, 2, 5).load_state_dict(first.state_dict())
    with pytest.raises(StateDictError):
        batches().load_state_dict({})
    for size, steps in ((0, 1), (1, 0)):
        with pytest.raises(ArgumentError, match="positive"):
            ContiguousBatches(text, size, steps)


def test_repr():
    text = CharText("abcde")
    assert repr(text) == "CharText(5 characters, vocabulary of 5)"
    assert repr(text.windows(2)) == "CharWindows(3 of 2 characters, stride 1)"
