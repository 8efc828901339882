"""MNIST: the real files, the places where they may lie, and broken ones."""

import gzip
import hashlib
import struct

import numpy as np
import pytest

from needle.data import MNIST, DataLoader, FashionMNIST, transforms
from needle.errors import DataError, DataNotFoundError, DownloadError


def write(folder, prefix="t10k", images=None, labels=None, ending="", sep="-"):
    folder.mkdir(parents=True, exist_ok=True)
    if images is None:
        images = np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)
    labels = np.array([7, 0, 9]) if labels is None else np.array(labels)
    n, h, w = images.shape
    parts = {
        f"{prefix}-images{sep}idx3-ubyte": struct.pack(">IIII", 0x803, n, h, w) + images.tobytes(),
        f"{prefix}-labels{sep}idx1-ubyte": struct.pack(">II", 0x801, len(labels))
        + labels.astype(np.uint8).tobytes(),
    }
    for name, data in parts.items():
        (folder / f"{name}{ending}").write_bytes(gzip.compress(data) if ending else data)
    return images


def test_real_files(shared_data):
    data = MNIST(shared_data, train=False)
    assert len(data) == 10_000
    assert data.images.shape == (10_000, 1, 28, 28)
    # Checksums of the official files' contents, which do not depend on how they were compressed.
    pixels = hashlib.md5(struct.pack(">IIII", 0x803, 10_000, 28, 28) + data.images.tobytes())
    assert pixels.hexdigest() == "2646ac647ad5339dbf082846283269ea"
    labels = hashlib.md5(struct.pack(">II", 0x801, 10_000) + data.labels.astype(np.uint8).tobytes())
    assert labels.hexdigest() == "27ae3e4e09519cfbb04c329615203637"
    image, label = data[0]
    assert (image.dtype, image.shape, label) == (np.uint8, (1, 28, 28), 7)
    assert type(label) is int
    assert np.bincount(data.labels).tolist() == [
        980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009,
    ]  # fmt: skip


def test_real_files_in_batches(shared_data):
    pipeline = transforms.Compose([transforms.ToFloat(), transforms.Flatten()])
    loader = DataLoader(MNIST(shared_data, train=False, transform=pipeline), 2500)
    for images, labels in loader:
        assert images.shape == (2500, 784)
        assert images.dtype == np.float32
        assert labels.shape == (2500,)
        assert 0.12 < float(images.numpy().mean()) < 0.15


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("sep", ["-", "."])
def test_where_files_may_lie(tmp_path, place, ending, sep):
    for prefix in ("train", "t10k"):
        images = write(tmp_path / place, prefix, ending=ending, sep=sep)
    for train in (True, False):
        data = MNIST(str(tmp_path), train=train)
        np.testing.assert_array_equal(data.images[:, 0], images)
        assert [label for _, label in data] == [7, 0, 9]
        assert repr(data) == "MNIST(3 images 1×28×28, 10 classes)"


def test_missing_files_name_the_way_out(tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        FashionMNIST(tmp_path / "no", train=True)
    message = str(caught.value)
    assert "train-images-idx3-ubyte" in message
    assert str(tmp_path / "no") in message
    assert "FashionMNIST(root, download=True)" in message


def test_counts_differ(tmp_path):
    write(tmp_path, labels=[1, 2])
    with pytest.raises(DataError, match=r"3 images but labels of shape \(2,\)"):
        MNIST(tmp_path, train=False)


def test_label_out_of_range(tmp_path):
    write(tmp_path, labels=[1, 2, 10])
    with pytest.raises(DataError, match=r"label 10 of sample 2 .* 0 … 9"):
        MNIST(tmp_path, train=False)


def test_swapped_files(tmp_path):
    write(tmp_path)
    a, b = tmp_path / "t10k-images-idx3-ubyte", tmp_path / "t10k-labels-idx1-ubyte"
    a.rename(tmp_path / "x")
    b.rename(a)
    (tmp_path / "x").rename(b)
    with pytest.raises(DataError, match=r"magic number 2051.*swapped"):
        MNIST(tmp_path, train=False)


def test_other_image_size(tmp_path):
    write(tmp_path, images=np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(DataError, match="expected images of 28×28, found 32×32"):
        MNIST(tmp_path, train=False)


def test_images_cannot_be_overwritten_by_a_transform(tmp_path):
    write(tmp_path)

    def in_place(image):
        image += 1
        return image

    with pytest.raises(ValueError, match="read-only"):
        MNIST(tmp_path, train=False, transform=in_place)[0]


@pytest.mark.parametrize("dataset", [MNIST, FashionMNIST])
def test_download_tables_are_complete(dataset):
    for prefix in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            size, checksum = dataset.FILES[f"{prefix}-{kind}-ubyte"]
            assert size > 4000
            assert len(bytes.fromhex(checksum)) == 32
    assert len(dataset.CLASSES) == 10


def test_download_goes_through_the_checksum(tmp_path, web, monkeypatch):
    write(web.folder, ending=".gz")
    monkeypatch.setattr(MNIST, "MIRRORS", (web.url,))
    with pytest.raises(DownloadError, match="t10k-images-idx3-ubyte"):
        MNIST(tmp_path / "a", train=False, download=True)
    files = {
        path.name.removesuffix(".gz"): (
            path.stat().st_size,
            hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in web.folder.iterdir()
    }
    monkeypatch.setattr(MNIST, "FILES", files)
    data = MNIST(tmp_path / "b", train=False, download=True)
    assert len(data) == 3
    web.stop()
    assert len(MNIST(tmp_path / "b", train=False, download=True)) == 3  # nothing more to fetch
