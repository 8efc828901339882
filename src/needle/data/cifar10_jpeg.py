"""Converting CIFAR-10 repackaged as JPEG files into the official binary version."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from needle.data.cifar10 import BINARY_FOLDER, CLASSES, FILE_IMAGES, IMAGE_BYTES
from needle.data.download import atomic_write
from needle.errors import DataError, DataNotFoundError, MissingExtraError
from needle.progress import progress_bar

# No JPEG of 32×32 pixels comes near this; a forged one is not expanded beyond.
_MOST_JPEG_BYTES = 1 << 20
_RECORD = 1 + IMAGE_BYTES


def convert_cifar10_jpeg(
    archive: str | os.PathLike[str], folder: str | os.PathLike[str], progress: bool = True
) -> Path:
    """Convert a zip of JPEG files to the official binary version, for `CIFAR10` to read.

    The zip holds ``train/<class>/<number>.jpg`` (50,000) and ``test/<class>/<number>.jpg``
    (10,000). A class is numbered by its place in the alphabet, which is CIFAR-10's own numbering.
    The images are taken in turn from the ten classes, so every file of the result has all classes
    in equal parts; the original order is not known. JPEG is lossy: accuracies come close to
    published ones, not equal.

    A file appears when all of its 10,000 images are converted; a run that was interrupted goes on
    with the files that are missing, and a run that finds them all does nothing.

    Args:
        archive: the zip.
        folder: where to make ``cifar-10-batches-bin``; give it to ``CIFAR10`` as root.
        progress: show a progress bar on the error stream.

    Returns:
        The path of ``cifar-10-batches-bin``.

    Raises:
        MissingExtraError: Pillow is not installed (extra ``images``).
        DataNotFoundError: there is no such zip.
        DataError: the zip is corrupt or incomplete, or an image is no JPEG of 32×32 pixels.
    """
    from zipfile import BadZipFile, ZipFile

    archive = Path(archive).expanduser()
    out = Path(folder).expanduser() / BINARY_FOLDER
    parts = _missing_parts(out)
    if not parts:
        return out
    decode = _decoder()
    if not archive.is_file():
        raise DataNotFoundError(
            f"{archive}: no such file; expected a zip of CIFAR-10 as JPEG files"
        )
    out.mkdir(parents=True, exist_ok=True)
    try:
        with ZipFile(archive) as zipped:
            members = set(zipped.namelist())
            with progress_bar("CIFAR-10", len(parts) * FILE_IMAGES, progress) as advance:
                for name, split, first in parts:
                    with atomic_write(out / name) as file:
                        for label, member in _members(split, first):
                            if member not in members:
                                raise DataError(f"{archive}: does not hold {member}")
                            if zipped.getinfo(member).file_size > _MOST_JPEG_BYTES:
                                raise DataError(
                                    f"{archive}: {member} is too large for 32×32 pixels"
                                )
                            image = decode(zipped.read(member), f"{archive}: {member}")
                            file.write(bytes([label]) + image)
                            advance(1)
    except BadZipFile as error:
        raise DataError(f"{archive}: not a readable zip, truncated or corrupt ({error})") from None
    with atomic_write(out / "batches.meta.txt") as file:
        file.write(("\n".join(CLASSES) + "\n").encode())
    return out


def _missing_parts(out: Path) -> list[tuple[str, str, int]]:
    """Return the files to be made: name, split, and the number of the first image."""
    parts = [(f"data_batch_{i + 1}.bin", "train", i * FILE_IMAGES) for i in range(5)]
    parts.append(("test_batch.bin", "test", 0))

    def is_done(name: str) -> bool:
        path = out / name
        return path.is_file() and path.stat().st_size == FILE_IMAGES * _RECORD

    return [part for part in parts if not is_done(part[0])]


def _members(split: str, first: int) -> Iterator[tuple[int, str]]:
    """Yield the label and the name in the zip of the images of one file."""
    for k in range(first, first + FILE_IMAGES):
        number, label = divmod(k, len(CLASSES))
        yield label, f"{split}/{CLASSES[label]}/{number:04d}.jpg"


def _decoder() -> Callable[[bytes, str], bytes]:
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("pillow", "images", "reading JPEG files") from None

    def decode(data: bytes, source: str) -> bytes:
        try:
            # Pillow must not guess: other formats' decoders are not for untrusted data.
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                if image.size != (32, 32):
                    raise DataError(f"{source}: expected 32×32 pixels, found {image.size}")
                pixels: Any = np.asarray(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{source}: not a readable JPEG file ({error})") from None
        planes: bytes = pixels.transpose(2, 0, 1).tobytes()
        return planes

    return decode
