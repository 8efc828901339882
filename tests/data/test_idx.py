"""IDX files: what they hold, and every way in which they can be broken."""

import gzip
import math
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, strategies as st

from needle.data import read_idx
from needle.errors import DataError, DataNotFoundError

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def encode(array: np.ndarray) -> bytes:
    """The IDX form of an array, written independently of the reader."""
    code = CODES[array.dtype.str[1:]]
    head = struct.pack(">BBBB", 0, 0, code, array.ndim)
    extents = b"".join(struct.pack(">I", n) for n in array.shape)
    return head + extents + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), (4, 1, 2), (2, 0, 5), (1,) * 32])
@pytest.mark.parametrize("compress", [False, True])
def test_round_trip(tmp_path, dtype, shape, compress):
    array = (np.arange(math.prod(shape)) - 3).astype(dtype).reshape(shape)
    data = encode(array)
    path = tmp_path / "any.name"
    path.write_bytes(gzip.compress(data) if compress else data)
    result = read_idx(str(path))
    assert result.dtype == np.dtype(dtype)
    assert result.dtype.isnative
    np.testing.assert_array_equal(result, array)
    result[...] = 0  # the array is the reader's own


GOOD = encode(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found nothing"),
        (GOOD[:3], "found 00 00 08"),
        (b"\x01" + GOOD[1:], "found 01 00 08 03"),
        (b"\x00\x00\x07\x03" + GOOD[4:], "found 00 00 07 03"),
        (b"\x00\x00\x08\x00" + GOOD[4:], "announces 0 axes"),
        (b"\x00\x00\x08\xff" + GOOD[4:], "announces 255 axes"),
        (GOOD[:10], "truncated in the header: 3 extents take 12 bytes, found 6"),
        (GOOD[:-1], r"truncated: .* shape \(2, 3, 4\) \(24 bytes\), .* at most 23"),
        (GOOD + b"x", "too long: .* followed by more than 24 bytes"),
        (b"<!DOCTYPE html>", "not an IDX file"),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, 0, 2**32 - 1, 2**32 - 1), "impossible"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_broken(tmp_path, data, message, compress):
    path = tmp_path / "train-images"
    path.write_bytes(gzip.compress(data) if compress else data)
    if compress:
        # How much a compressed file can hold is only bounded, so truncation shows later.
        message = message.replace(", .* at most 23", ", but it is followed by 23")
    with pytest.raises(DataError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataNotFoundError, match="no such file"):
        read_idx(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):  # so that callers may also catch the builtin
        read_idx(tmp_path)


@pytest.mark.parametrize("keep", [1, 5, 12, 20, -8, -1])
def test_truncated_gzip(tmp_path, keep):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(GOOD)[:keep])
    with pytest.raises(DataError, match=r"x\.gz"):
        read_idx(path)


@pytest.mark.parametrize("compress", [False, True])
def test_huge_header_does_not_allocate(tmp_path, compress):
    data = struct.pack(">BBBBII", 0, 0, 0x0E, 2, 2**32 - 1, 2**31) + b"\0" * 50
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(data) if compress else data)
    assert_refused_in_little_memory(path)


def test_gzip_bomb_is_expanded_no_further_than_announced(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(200_000_000)))
    assert_refused_in_little_memory(path)


def assert_refused_in_little_memory(path):
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_idx(path)
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


@given(
    data=st.one_of(
        st.binary(max_size=60),
        st.builds(
            lambda at, new: GOOD[:at] + new + GOOD[at + len(new) :],
            st.integers(0, len(GOOD)),
            st.binary(max_size=8),
        ),
        st.builds(lambda end: GOOD[:end], st.integers(0, len(GOOD) - 1)),
        st.builds(
            lambda extents, rest: (
                bytes([0, 0, 8, len(extents)])
                + b"".join(struct.pack(">I", n) for n in extents)
                + rest
            ),
            st.lists(st.integers(0, 2**32 - 1), max_size=40),
            st.binary(max_size=20),
        ),
    ),
    compress=st.booleans(),
    cut=st.integers(0, 30),
)
def test_fuzz_only_data_errors_come_out(tmp_path_factory, data, compress, cut):
    path = tmp_path_factory.getbasetemp() / "fuzz-idx"
    content = gzip.compress(data, mtime=0) if compress else data
    path.write_bytes(content[: len(content) - cut] if compress else content)
    array, message = None, str(path)
    tracemalloc.start()
    try:
        array = read_idx(path)
    except DataError as error:
        message = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3_000_000
    assert str(path) in message
    # Whatever is accepted says about itself exactly what the bytes say.
    if array is not None and array.dtype == np.uint8:
        assert encode(array) == data
