"""The data set in the package."""

import hashlib

import numpy as np
import pytest

import needle.data.digits as module
from needle.data import DataLoader, Digits, transforms
from needle.errors import DataError


def test_contents_are_pinned():
    data = Digits()
    content = data.images.tobytes() + data.labels.astype(np.uint8).tobytes()
    assert hashlib.sha256(content).hexdigest() == (
        "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    )
    assert data.images.shape == (1797, 1, 8, 8)
    assert (data.images.min(), data.images.max()) == (0, Digits.MAXIMUM)


def test_equals_scikit_learns_copy():
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    np.testing.assert_array_equal(Digits().images[:, 0], theirs.images)
    np.testing.assert_array_equal(Digits().labels, theirs.target)


def test_split_is_fixed_stratified_and_disjoint():
    whole, train, test = Digits(), Digits(train=True), Digits(train=False)
    assert (len(train), len(test)) == (1437, 360)
    share = np.bincount(test.labels) / np.bincount(whole.labels)
    assert share.min() > 0.19
    assert share.max() < 0.21
    parts = np.concatenate([train.images, test.images]).reshape(1797, 64)
    order = np.lexsort(parts.T)
    expected = whole.images.reshape(1797, 64)
    np.testing.assert_array_equal(parts[order], expected[np.lexsort(expected.T)])
    digest = hashlib.sha256(test.images.tobytes() + test.labels.tobytes()).hexdigest()
    assert digest == "973417cfcf53301f21b78f9c5a5539e88014944f3fe3051e93e9892e0008999a"


def test_statistics_are_those_of_the_training_images():
    x = Digits(train=True).images / Digits.MAXIMUM
    assert round(float(x.mean()), 4) == Digits.MEAN[0]
    assert round(float(x.std()), 4) == Digits.STD[0]


def test_in_batches():
    data = Digits(train=False, transform=transforms.ToFloat(maximum=Digits.MAXIMUM))
    images, labels = next(iter(DataLoader(data, 360)))
    assert images.dtype == np.float32
    assert float(images.numpy().max()) == 1
    assert labels.tolist() == data.labels.tolist()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 broken", b"\x93NUMPY"])
def test_damaged_package(tmp_path, monkeypatch, content):
    folder = tmp_path / "_files"
    folder.mkdir()
    if content is not None:
        (folder / "digits.npz").write_bytes(content)
    monkeypatch.setattr(module, "_FILE", folder / "digits.npz")
    with pytest.raises(DataError, match="reinstall needle-dl"):
        Digits()


def test_pickles_in_the_package_are_not_loaded(tmp_path, monkeypatch):
    folder = tmp_path / "_files"
    folder.mkdir()
    np.savez(folder / "digits.npz", images=np.array([print], object), labels=np.zeros(1))
    monkeypatch.setattr(module, "_FILE", folder / "digits.npz")
    with pytest.raises(DataError, match="allow_pickle"):
        Digits()
