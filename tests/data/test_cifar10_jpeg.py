"""Converting the JPEG form of CIFAR-10."""

import io
import sys
import zipfile

import numpy as np
import pytest

from needle.data import CIFAR10, cifar10, cifar10_jpeg, convert_cifar10_jpeg
from needle.errors import DataError, DataNotFoundError, MissingExtraError
from needle.train.tasks import images

Image = pytest.importorskip("PIL.Image")

COUNT = 20  # images in a file: two of each class


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(cifar10, "FILE_IMAGES", COUNT)
    monkeypatch.setattr(cifar10_jpeg, "FILE_IMAGES", COUNT)


def jpeg(color, size=(32, 32), form="JPEG"):
    out = io.BytesIO()
    Image.new("RGB", size, color).save(out, form)
    return out.getvalue()


def color_of(label, number, split):
    return (label * 20, number * 20, 100 if split == "train" else 200)


def write_zip(path, replace=None, leave_out=()):
    with zipfile.ZipFile(path, "w") as archive:
        for split, numbers in (("train", 10), ("test", 2)):
            for label, name in enumerate(cifar10.CLASSES):
                for number in range(numbers):
                    member = f"{split}/{name}/{number:04d}.jpg"
                    if member not in leave_out:
                        data = (replace or {}).get(member)
                        archive.writestr(member, data or jpeg(color_of(label, number, split)))


def test_conversion(tmp_path, capsys):
    write_zip(tmp_path / "c.zip")
    folder = convert_cifar10_jpeg(tmp_path / "c.zip", tmp_path / "cache")
    assert folder == tmp_path / "cache" / "cifar-10-batches-bin"
    assert "CIFAR-10" in capsys.readouterr().err
    assert (folder / "batches.meta.txt").read_text().split()[:2] == ["airplane", "automobile"]
    for split, count in (("train", 100), ("test", 20)):
        data = CIFAR10(tmp_path / "cache", train=split == "train")
        assert len(data) == count
        assert data.labels.tolist() == list(range(10)) * (count // 10)
        for k, (image, label) in enumerate(data):
            assert image.std(axis=(1, 2)).max() == 0
            color = np.array(color_of(label, k // 10, split))
            assert np.abs(image[:, 0, 0].astype(int) - color).max() <= 3  # JPEG is lossy


def test_resumes_after_an_interruption(tmp_path, monkeypatch):
    write_zip(tmp_path / "bad.zip", replace={"train/bird/0005.jpg": b"no jpeg"})
    with pytest.raises(DataError, match=r"train/bird/0005\.jpg: not a readable JPEG"):
        convert_cifar10_jpeg(tmp_path / "bad.zip", tmp_path, progress=False)
    folder = tmp_path / "cifar-10-batches-bin"
    assert sorted(p.name for p in folder.iterdir()) == ["data_batch_1.bin", "data_batch_2.bin"]
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
    (folder / "data_batch_4.bin").write_bytes(b"of another length")

    write_zip(tmp_path / "good.zip")
    convert_cifar10_jpeg(tmp_path / "good.zip", tmp_path, progress=False)
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert CIFAR10(tmp_path).labels.tolist() == list(range(10)) * 10

    # Once all is there, neither the zip nor Pillow is needed.
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert convert_cifar10_jpeg(tmp_path / "no.zip", tmp_path) == folder


def test_missing_pillow_names_the_extra(tmp_path, monkeypatch):
    write_zip(tmp_path / "c.zip")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"needle-dl\[images\]"):
        convert_cifar10_jpeg(tmp_path / "c.zip", tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (jpeg((0, 0, 0), (64, 64)), r"expected 32×32 pixels, found \(64, 64\)"),
        (jpeg((0, 0, 0), form="PNG"), "not a readable JPEG"),
        (jpeg((1, 2, 3))[:300], "not a readable JPEG"),
        (bytes(2 << 20), "too large for 32×32"),
    ],
)
def test_other_images(tmp_path, data, message):
    write_zip(tmp_path / "c.zip", replace={"train/cat/0000.jpg": data})
    with pytest.raises(DataError, match=message) as caught:
        convert_cifar10_jpeg(tmp_path / "c.zip", tmp_path, progress=False)
    assert "train/cat/0000.jpg" in str(caught.value)


def test_other_archives(tmp_path):
    with pytest.raises(DataNotFoundError, match="no such file"):
        convert_cifar10_jpeg(tmp_path / "no.zip", tmp_path)
    (tmp_path / "x.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match="not a readable zip"):
        convert_cifar10_jpeg(tmp_path / "x.zip", tmp_path, progress=False)
    write_zip(tmp_path / "c.zip", leave_out=["test/truck/0001.jpg"])
    with pytest.raises(DataError, match=r"does not hold test/truck/0001\.jpg"):
        convert_cifar10_jpeg(tmp_path / "c.zip", tmp_path, progress=False)


def test_real_archive(shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar10, "FILE_IMAGES", 500)  # as many as are quick to convert
    monkeypatch.setattr(cifar10_jpeg, "FILE_IMAGES", 500)
    convert_cifar10_jpeg(shared_data / "cifar10-jpeg.zip", tmp_path, progress=False)
    data = CIFAR10(tmp_path)
    assert np.bincount(data.labels).tolist() == [250] * 10
    mean = data.images.mean(axis=(0, 2, 3)) / 255
    np.testing.assert_allclose(mean, CIFAR10.MEAN, atol=0.02)
    # Ships and planes have more blue, as sky and sea do: the classes are where they should be.
    blue = [data.images[data.labels == c, 2].mean() for c in range(10)]
    assert {int(c) for c in np.argsort(blue)[-2:]} == {0, 8}


def test_a_task_takes_the_zip_or_its_folder(monkeypatch, tmp_path):
    (tmp_path / images.CIFAR10_JPEG).touch()
    read = []
    monkeypatch.setattr(images, "convert_cifar10_jpeg", lambda source, folder: read.append(source))
    found = [images._cifar10_folder(p) for p in (tmp_path, tmp_path / images.CIFAR10_JPEG)]
    assert found[0] == found[1]
    assert read == [tmp_path / images.CIFAR10_JPEG] * 2
