"""CIFAR-10: 50,000 training and 10,000 test images of 32×32, in both official formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from needle.data.download import RemoteFile, atomic_write, download
from needle.data.images import ImageDataset, check_labels
from needle.data.pickled import read_pickled_dict
from needle.errors import DataError, DataNotFoundError

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
BINARY_FOLDER = "cifar-10-batches-bin"
PYTHON_FOLDER = "cifar-10-batches-py"
IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32
#: Images in each of the six files; five are for training.
FILE_IMAGES = 10_000
# A file of the Python version is a little larger than its images; a forged archive is not read
# beyond.
_MOST_BYTES = 64 << 20
_CHUNK = 1 << 20

_ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
_BINARY_ARCHIVE = RemoteFile(
    "cifar-10-binary.tar.gz",
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
    170052171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)

Part = tuple[NDArray[np.uint8], NDArray[np.int64]]


class CIFAR10(ImageDataset):
    """Small photographs in ten classes.

    A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    Images are uint8 [3, 32, 32]; ``MEAN`` and ``STD`` are those of the training images in [0, 1],
    for `transforms.Normalize`.

    Args:
        root: a folder that holds ``cifar-10-batches-bin`` or ``cifar-10-batches-py`` or one of the
            official archives, or is one of those itself. An archive is read where it is, which
            takes a few seconds each time.
        train: the training or the test images.
        transform: applied to each image.
        download: if nothing is found, fetch the binary version into ``root`` (170 MB), check and
            unpack it.

    Raises:
        DataNotFoundError: nothing is found, or a file is missing.
        DataError: a file is truncated, corrupt or, if it is a pickle, asks for more than plain
            data.
        DownloadError: the archive could not be fetched.

    Example:
        The usual augmentation::

            augment = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), ToFloat(),
                               Normalize(CIFAR10.MEAN, CIFAR10.STD)])
            data = CIFAR10("~/data", train=True, transform=augment, download=True)
    """

    CLASSES: ClassVar[tuple[str, ...]] = CLASSES
    MEAN: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    STD: ClassVar[tuple[float, ...]] = (0.2470, 0.2435, 0.2616)

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        place = find_cifar10(Path(root).expanduser(), download)
        images, labels = _read(place, train)
        super().__init__(images, labels, self.CLASSES, transform, str(place))
        self.train = train


def find_cifar10(root: Path, fetch: bool = False) -> Path:
    """Return the folder or archive at ``root`` that holds CIFAR-10.

    Raises:
        DataNotFoundError: there is none; the message says what was looked for.
    """
    if root.is_file():
        if root.suffix == ".zip":
            raise DataError(
                f"{root}: a zip is not an official form of CIFAR-10; if it holds JPEG files as "
                "train/<class>/<number>.jpg, call convert_cifar10_jpeg(zip, folder) and read the "
                "folder"
            )
        return root
    folders = (root / BINARY_FOLDER, root / PYTHON_FOLDER)
    for folder in (*folders, root):
        if any((folder / name).is_file() for form in (True, False) for name in _names(form)):
            return folder
    for archive in _ARCHIVES:
        if (root / archive).is_file():
            return root / archive
    if fetch:
        archive_path = download(_BINARY_ARCHIVE, root)
        unpack(archive_path, root / BINARY_FOLDER)
        archive_path.unlink()
        return root / BINARY_FOLDER
    raise DataNotFoundError(
        f"CIFAR10: found neither {BINARY_FOLDER}/ nor {PYTHON_FOLDER}/ nor "
        f"{' nor '.join(_ARCHIVES)} in {root}; put one of them there, or call CIFAR10(root, "
        "download=True)"
    )


def _names(binary: bool, train: bool | None = None) -> list[str]:
    """Return the names of the files, of one form, of a split (None: of both)."""
    end = ".bin" if binary else ""
    names = [f"data_batch_{i}{end}" for i in range(1, 6)] if train is not False else []
    return names if train is True else [*names, f"test_batch{end}"]


def _read(place: Path, train: bool) -> Part:
    """Return the images and labels of one split."""
    count = 5 * FILE_IMAGES if train else FILE_IMAGES
    images = np.empty((count, *IMAGE_SHAPE), np.uint8)
    labels = np.empty(count, np.int64)
    missing = set(range(count // FILE_IMAGES))
    open_files = _folder_files if place.is_dir() else _archive_files
    names = {name: i for form in (True, False) for i, name in enumerate(_names(form, train))}
    for name, content in open_files(place, set(names)):
        part = names[name]
        source = f"{place / name}"
        read = parse_binary if name.endswith(".bin") else parse_python
        rows = slice(part * FILE_IMAGES, (part + 1) * FILE_IMAGES)
        images[rows], labels[rows] = read(content, source)
        missing.discard(part)
    if missing:
        some = ", ".join(_names(True, train)[i].removesuffix(".bin") for i in sorted(missing))
        raise DataNotFoundError(
            f"{place}: no file {some} (with .bin in the binary version); the data set is "
            "incomplete, so unpack the official archive again, or call CIFAR10(root, "
            "download=True) in an empty folder"
        )
    return images, labels


def parse_binary(content: bytes, source: str, count: int | None = None) -> Part:
    """Return the images and labels in a file of the binary version.

    Each record is one byte for the label and 3,072 for the image: red, green, blue, each row by
    row.

    Args:
        content: the file.
        source: its name, for messages.
        count: how many records it must hold; None means the official 10,000.

    Raises:
        DataError: it has another length, or a label is out of range.
    """
    count = FILE_IMAGES if count is None else count
    record = 1 + IMAGE_BYTES
    if len(content) != count * record:
        problem = "truncated" if len(content) < count * record else "too long"
        raise DataError(
            f"{source}: {problem}: expected {count} records of {record} bytes ({count * record} "
            f"bytes), found {len(content)} bytes"
        )
    records = np.frombuffer(content, np.uint8).reshape(count, record)
    labels = records[:, 0].astype(np.int64)
    check_labels(labels, len(CLASSES), source)
    return records[:, 1:].reshape(count, *IMAGE_SHAPE), labels


def parse_python(content: bytes, source: str, count: int | None = None) -> Part:
    """Return the images and labels in a file of the Python version, without unpickling it.

    Raises:
        DataError: it is no such file, or asks for more than plain data (`needle.data.pickled`).
    """
    count = FILE_IMAGES if count is None else count
    value = read_pickled_dict(content, source)
    data, labels = value.get("data"), value.get("labels")
    images = getattr(data, "array", None)
    if not isinstance(images, np.ndarray) or images.shape != (count, IMAGE_BYTES):
        found = "no array" if images is None else f"shape {images.shape}"
        raise DataError(
            f"{source}: expected uint8 'data' of shape {(count, IMAGE_BYTES)}, found {found} "
            f"among the keys {list(value)}"
        )
    if not isinstance(labels, list) or len(labels) != count:
        found = f"{len(labels)}" if isinstance(labels, list) else type(labels).__name__
        raise DataError(f"{source}: expected a list of {count} 'labels', found {found}")
    for i, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CLASSES):
            raise DataError(
                f"{source}: label {label!r} of sample {i} is out of range; labels must lie in "
                f"0 … {len(CLASSES) - 1}"
            )
    return images.reshape(count, *IMAGE_SHAPE), np.array(labels, np.int64)


def _folder_files(folder: Path, names: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each of the files ``names`` that is in ``folder``."""
    for name in sorted(names):
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                yield name, _read_limited(file, path.stat().st_size, str(path))


def _archive_files(archive: Path, names: set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each of the files ``names`` in a tar archive.

    Members are recognised by the last part of their names and read, never extracted, so it does not
    matter what paths or links an archive contains.
    """
    import gzip
    import tarfile
    import zlib

    try:
        with gzip.open(archive) as expanded, tarfile.open(fileobj=expanded, mode="r|") as tar:
            for member in tar:
                name = member.name.rpartition("/")[2]
                if name in names and member.isreg():
                    file = tar.extractfile(member)
                    if file is not None:
                        yield name, _read_limited(file, member.size, f"{archive}: {member.name}")
            # The checksum is at the end of the compressed data, and checked when that is reached.
            while expanded.read(_CHUNK):
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{archive}: not a readable tar.gz archive, truncated or corrupt ({error}); fetch it "
            "again"
        ) from None


def _read_limited(file: IO[bytes], size: int, source: str) -> bytes:
    if size > _MOST_BYTES:
        raise DataError(
            f"{source}: {size} bytes are too many for a file of CIFAR-10 (about 31 million)"
        )
    return file.read(size)


def unpack(archive: Path, folder: Path) -> None:
    """Write the files of the binary version that ``archive`` holds into ``folder``.

    The destinations are our own list of names and not the archive's, so nothing can be written
    elsewhere. Each file appears whole or not at all.

    Raises:
        DataError: the archive is corrupt, or does not hold all six files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = set(_names(binary=True))
    for name, content in _archive_files(archive, set(missing)):
        parse_binary(content, f"{archive}: {name}")
        with atomic_write(folder / name) as file:
            file.write(content)
        missing.discard(name)
    if missing:
        raise DataError(f"{archive}: does not hold {', '.join(sorted(missing))}")
