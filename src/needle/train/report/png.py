"""Pictures as PNG, for reports that need no other file and no imaging library."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.errors import DTypeError, ShapeError

_GREY, _RGB = 0, 2  # colour types of the PNG standard


def encode_png(pixels: NDArray[Any]) -> bytes:
    """Encode an image as PNG.

    Args:
        pixels: uint8, `[height, width]` (grey), `[height, width, 1]` or `[height, width, 3]` (RGB).

    Returns:
        The bytes of a PNG file.

    Raises:
        DTypeError: The pixels are not uint8.
        ShapeError: The shape is another one, or has no pixels.

    Source: ISO/IEC 15948 (PNG, third edition), filter type 0, one IDAT chunk.

    Example:
        >>> import numpy as np
        >>> from needle.train.report.png import encode_png
        >>> encode_png(np.zeros((8, 8), np.uint8))[1:4]
        b'PNG'
    """
    if pixels.dtype != np.uint8:
        raise DTypeError(f"encode_png: expected uint8 pixels, got {pixels.dtype}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or not pixels.size:
        raise ShapeError(
            f"encode_png: expected [height, width] or [height, width, 3], got {pixels.shape}"
        )
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    # Each row starts with the number of its filter; 0 stores the row as it is.
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)
    colour = _GREY if pixels.ndim == 2 else _RGB
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", header)
        + _chunk(b"IDAT", zlib.compress(filtered.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def png_data_uri(pixels: NDArray[Any]) -> str:
    """Return an image as a `data:` address, to be put into `<img src="…">`."""
    return "data:image/png;base64," + base64.b64encode(encode_png(pixels)).decode("ascii")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
