"""The IDX file format, in which MNIST and its successors are distributed.

A file holds one array: two zero bytes, a byte for the type, a byte for the number of axes, the
extents as big-endian uint32, then the elements in row-major order, big-endian (Y. LeCun, C. Cortes,
C. Burges, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from needle.errors import DataError, DataNotFoundError

if TYPE_CHECKING:
    import gzip

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_GZIP_MAGIC = b"\x1f\x8b"
# No deflate stream is larger than this many times its compressed size (zlib's technical notes).
_MAX_DEFLATE_RATIO = 1032
_MAX_AXES = 32
_CHUNK = 1 << 20


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Return the array that an IDX file holds, plain or compressed by gzip.

    What the header announces is compared with the size of the file before anything is allocated,
    and a compressed file is expanded no further than announced, so a forged file cannot exhaust the
    memory.

    Args:
        path: the file; whether it is compressed is seen from its first bytes, not its name.

    Returns:
        An array in native byte order.

    Raises:
        DataNotFoundError: there is no such file.
        DataError: it is no IDX file, truncated, too long or corrupt.

    Example:
        >>> import tempfile, pathlib
        >>> from needle.data.idx import read_idx
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "labels"
        >>> _ = file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        >>> read_idx(file)
        array([7, 2, 1], dtype=uint8)
    """
    import gzip
    import zlib

    path = Path(path)
    if not path.is_file():
        raise DataNotFoundError(f"{path}: no such file")
    size = path.stat().st_size
    with path.open("rb") as plain:
        compressed = plain.read(2) == _GZIP_MAGIC
        plain.seek(0)
        if not compressed:
            return _read(plain, path, size)
        try:
            with gzip.GzipFile(fileobj=plain) as expanded:
                return _read(expanded, path, size * _MAX_DEFLATE_RATIO)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: the gzip compression is broken ({error}); the file is truncated or "
                "corrupt, so fetch it again"
            ) from None


def _read(file: IO[bytes] | gzip.GzipFile, path: Path, most: int) -> NDArray[Any]:
    """Read an array from ``file``, which holds at most ``most`` bytes."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        raise DataError(
            f"{path}: not an IDX file: expected it to begin with 00 00, a type "
            f"({', '.join(f'{code:02x}' for code in _DTYPES)}) and the number of axes, found "
            f"{magic.hex(' ') or 'nothing'}"
        )
    dtype, axes = np.dtype(_DTYPES[magic[2]]), magic[3]
    if not 1 <= axes <= _MAX_AXES:
        raise DataError(f"{path}: the header announces {axes} axes; expected 1 to {_MAX_AXES}")
    header = file.read(4 * axes)
    if len(header) < 4 * axes:
        raise DataError(
            f"{path}: truncated in the header: {axes} extents take {4 * axes} bytes, found "
            f"{len(header)}"
        )
    shape = struct.unpack(f">{axes}I", header)
    expected = math.prod(shape) * dtype.itemsize
    found = most - 4 - 4 * axes
    if expected > found:
        raise DataError(
            f"{path}: truncated: the header announces an array of shape {shape} ({expected} "
            f"bytes), but the file can hold at most {found}"
        )
    data = _read_at_most(file, expected + 1)
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "too long"
        more = "" if len(data) < expected else "more than "
        raise DataError(
            f"{path}: {problem}: the header announces an array of shape {shape} ({expected} "
            f"bytes), but it is followed by {more}{min(len(data), expected)} bytes"
        )
    try:
        array = np.frombuffer(data, dtype).reshape(shape)
    except ValueError as error:
        # An empty array whose other extents multiply beyond what NumPy can address.
        raise DataError(f"{path}: the announced shape {shape} is impossible ({error})") from None
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_at_most(file: IO[bytes] | gzip.GzipFile, count: int) -> bytearray:
    """Read up to ``count`` bytes, allocating only what is there."""
    data = bytearray()
    while len(data) < count:
        chunk = file.read(min(_CHUNK, count - len(data)))
        if not chunk:
            break
        data += chunk
    return data
