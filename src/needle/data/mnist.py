"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 in ten classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from needle.data.download import RemoteFile, download
from needle.data.idx import read_idx
from needle.data.images import ImageDataset
from needle.errors import DataError, DataNotFoundError

_IMAGE_SHAPE = (28, 28)


class MNIST(ImageDataset):
    """Handwritten digits (Y. LeCun, C. Cortes, C. Burges), read from the official IDX files.

    Images are uint8 [1, 28, 28], 0 the background; ``MEAN`` and ``STD`` are those of the training
    images in [0, 1], for `transforms.Normalize`.

    Args:
        root: the folder that holds ``train-images-idx3-ubyte`` and the others, plain or with
            ``.gz``.
        train: the training or the test images.
        transform: applied to each image.
        download: fetch files that are missing into ``root`` (11 MB) and check them.

    Raises:
        DataNotFoundError: files are missing; the message says where each was looked for.
        DataError: a file is corrupt, or not what its name says.
        DownloadError: the files could not be fetched.

    Example:
        A pass over the data once it is there, in batches::

            data = MNIST("~/data/mnist", train=True, transform=ToFloat(), download=True)
            for images, labels in DataLoader(data, batch_size=64, shuffle=True):
                ...
    """

    CLASSES: ClassVar[tuple[str, ...]] = tuple("0123456789")
    MEAN: ClassVar[tuple[float, ...]] = (0.1307,)
    STD: ClassVar[tuple[float, ...]] = (0.3081,)
    #: Where the files are, by their names; sizes and SHA-256 checksums of the compressed files.
    MIRRORS: ClassVar[tuple[str, ...]] = (
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
    )
    FILES: ClassVar[dict[str, tuple[int, str]]] = {
        "train-images-idx3-ubyte": (
            9912422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        "train-labels-idx1-ubyte": (
            28881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        "t10k-images-idx3-ubyte": (
            1648877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        "t10k-labels-idx1-ubyte": (
            4542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    }

    def __init__(
        self,
        root: str | os.PathLike[str],
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        download: bool = False,
    ) -> None:
        folder = Path(root).expanduser()
        prefix = "train" if train else "t10k"
        images_file = self._locate(folder, f"{prefix}-images-idx3-ubyte", download)
        labels_file = self._locate(folder, f"{prefix}-labels-idx1-ubyte", download)
        images = _read(images_file, axes=3, what="images [samples, rows, columns]")
        labels = _read(labels_file, axes=1, what="labels [samples]")
        if images.shape[1:] != _IMAGE_SHAPE:
            raise DataError(
                f"{images_file}: expected images of {_IMAGE_SHAPE[0]}×{_IMAGE_SHAPE[1]}, found "
                f"{images.shape[1]}×{images.shape[2]}; read other IDX files with read_idx() and "
                "make an ImageDataset of them"
            )
        source = f"{images_file} and {labels_file.name}"
        super().__init__(images[:, None], labels, self.CLASSES, transform, source)
        self.train = train

    @classmethod
    def _locate(cls, folder: Path, name: str, fetch: bool) -> Path:
        # The names with a dot are those of other distributions of the same files; the folder
        # below is where torchvision puts them.
        dotted = name.replace("-idx", ".idx")
        places = (folder, folder / cls.__name__ / "raw")
        for place in places:
            for variant in (name, dotted):
                for path in (place / variant, place / f"{variant}.gz"):
                    if path.is_file():
                        return path
        if fetch:
            size, checksum = cls.FILES[name]
            file = f"{name}.gz"
            urls = tuple(mirror + file for mirror in cls.MIRRORS)
            return download(RemoteFile(file, urls, size, checksum), folder)
        raise DataNotFoundError(
            f"{cls.__name__}: found no {name} (plain or .gz) in {' or '.join(map(str, places))}; "
            f"put the file there, or call {cls.__name__}(root, download=True)"
        )


class FashionMNIST(MNIST):
    """Pictures of clothes in MNIST's format (H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747).

    Arguments and errors are those of `MNIST`; the download is 31 MB.
    """

    CLASSES = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    MEAN = (0.2860,)
    STD = (0.3530,)
    MIRRORS = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    FILES: ClassVar[dict[str, tuple[int, str]]] = {
        "train-images-idx3-ubyte": (
            26421880,
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        "train-labels-idx1-ubyte": (
            29515,
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        "t10k-images-idx3-ubyte": (
            4422102,
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        "t10k-labels-idx1-ubyte": (
            5148,
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    }


def _read(path: Path, axes: int, what: str) -> NDArray[np.uint8]:
    array = read_idx(path)
    if array.dtype != np.uint8 or array.ndim != axes:
        raise DataError(
            f"{path}: expected uint8 {what} (magic number {0x0800 + axes}), found {array.dtype} "
            f"with {array.ndim} axes; images and labels may have been swapped"
        )
    return array
