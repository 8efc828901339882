"""CIFAR-10 in its official forms, and broken."""

import io
import shutil
import tarfile

import numpy as np
import pytest
from test_pickled import python2_batch

from needle.data import CIFAR10, cifar10
from needle.data.download import RemoteFile
from needle.errors import DataError, DataNotFoundError, DownloadError

COUNT = 4  # images in a file; the official files have 10,000


@pytest.fixture
def content(monkeypatch):
    """The images and labels of six small files, by name."""
    monkeypatch.setattr(cifar10, "FILE_IMAGES", COUNT)
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    return {
        name: (
            rng.integers(0, 256, (COUNT, 3072), dtype=np.uint8),
            rng.integers(0, 10, COUNT).tolist(),
        )
        for name in names
    }


def binary(images, labels):
    return b"".join(bytes([n]) + i.tobytes() for n, i in zip(labels, images, strict=True))


def write(folder, content, form):
    folder.mkdir(parents=True)
    for name, (images, labels) in content.items():
        if form == "bin":
            (folder / f"{name}.bin").write_bytes(binary(images, labels))
        else:
            (folder / name).write_bytes(python2_batch(images, labels))


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)


FOLDERS = {"bin": "cifar-10-batches-bin", "py": "cifar-10-batches-py"}
ARCHIVES = {"bin": "cifar-10-binary.tar.gz", "py": "cifar-10-python.tar.gz"}


@pytest.mark.parametrize("form", ["bin", "py"])
@pytest.mark.parametrize("place", ["parent", "folder", "archive", "archive in parent"])
@pytest.mark.parametrize("train", [True, False])
def test_official_forms(tmp_path, content, form, place, train):
    folder = tmp_path / FOLDERS[form]
    write(folder, content, form)
    if place.startswith("archive"):
        pack(folder, tmp_path / ARCHIVES[form])
        shutil.rmtree(folder)
    root = {"folder": folder, "archive": tmp_path / ARCHIVES[form]}.get(place, tmp_path)
    data = CIFAR10(str(root), train=train)
    names = [n for n in content if n.startswith("data") == train]
    expected = np.concatenate([content[n][0] for n in names]).reshape(-1, 3, 32, 32)
    np.testing.assert_array_equal(data.images, expected)
    assert data.labels.tolist() == [label for n in names for label in content[n][1]]
    assert data.classes[0] == "airplane"
    assert data.train == train


def test_planes_are_red_green_blue_by_rows(tmp_path, content):
    content["test_batch"][0][0] = np.arange(3072) % 256
    write(tmp_path / "x", content, "bin")
    image, _ = CIFAR10(tmp_path / "x", train=False)[0]
    assert image[0, 0, :3].tolist() == [0, 1, 2]
    assert image[0, 1, 0] == 32
    assert image[1, 0, 0] == 1024 % 256
    assert image[2, 31, 31] == 3071 % 256


@pytest.mark.parametrize("change", [-1, -3073, 1, 3073])
def test_binary_file_of_another_length(tmp_path, content, change):
    write(tmp_path / FOLDERS["bin"], content, "bin")
    path = tmp_path / FOLDERS["bin"] / "data_batch_3.bin"
    data = path.read_bytes()
    path.write_bytes(data[:change] if change < 0 else data + bytes(change))
    problem = "truncated" if change < 0 else "too long"
    with pytest.raises(DataError, match=rf"data_batch_3\.bin: {problem}: expected 4 records"):
        CIFAR10(tmp_path)
    CIFAR10(tmp_path, train=False)  # the test images are untouched


@pytest.mark.parametrize("form", ["bin", "py"])
def test_label_out_of_range(tmp_path, content, form):
    content["data_batch_2"][1][3] = 10
    write(tmp_path / FOLDERS[form], content, form)
    with pytest.raises(DataError, match=r"data_batch_2.*label 10 of sample 3 is out of range"):
        CIFAR10(tmp_path)


def test_python_file_with_other_contents(tmp_path, content):
    folder = tmp_path / FOLDERS["py"]
    write(folder, content, "py")
    images, labels = content["test_batch"]
    for data, message in (
        (python2_batch(images[:3], labels[:3]), r"shape \(3, 3072\)"),
        (python2_batch(images, labels[:3]), "expected a list of 4 'labels', found 3"),
        (python2_batch(images[:, :3000], labels), r"shape \(4, 3000\)"),
        (b"\x80\x02}U\x06labels]s.", r"found no array among the keys \['labels'\]"),
        (b"\x80\x02cos\nsystem\nU\x02ls\x85R.", "asks to import 'os.system'"),
        (python2_batch(images, labels)[:-2000], "not a readable pickle"),
    ):
        (folder / "test_batch").write_bytes(data)
        with pytest.raises(DataError, match=message) as caught:
            CIFAR10(tmp_path, train=False)
        assert str(folder / "test_batch") in str(caught.value)


@pytest.mark.parametrize("form", ["bin", "py"])
def test_missing_file(tmp_path, content, form):
    write(tmp_path / FOLDERS[form], content, form)
    for path in (tmp_path / FOLDERS[form]).glob("data_batch_[24]*"):
        path.unlink()
    with pytest.raises(DataNotFoundError, match="no file data_batch_2, data_batch_4"):
        CIFAR10(tmp_path)


def test_nothing_there_names_the_way_out(tmp_path):
    with pytest.raises(DataNotFoundError) as caught:
        CIFAR10(tmp_path / "no")
    for part in (*FOLDERS.values(), *ARCHIVES.values(), "download=True", str(tmp_path)):
        assert part in str(caught.value)
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="convert_cifar10_jpeg"):
        CIFAR10(tmp_path / "x.zip")


def test_corrupt_archive_is_noticed_by_its_checksum(tmp_path, content):
    write(tmp_path / FOLDERS["bin"], content, "bin")
    archive = tmp_path / "cifar.tar.gz"
    pack(tmp_path / FOLDERS["bin"], archive)
    data = bytearray(archive.read_bytes())
    data[-6] ^= 1  # in the checksum itself: all that is unpacked looks right
    archive.write_bytes(data)
    with pytest.raises(DataError, match="CRC"):
        CIFAR10(archive)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_broken_archive(tmp_path, content, keep):
    write(tmp_path / FOLDERS["bin"], content, "bin")
    archive = tmp_path / "cifar.tar.gz"
    pack(tmp_path / FOLDERS["bin"], archive)
    data = archive.read_bytes()
    archive.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises((DataError, DataNotFoundError), match=r"cifar\.tar\.gz"):
        CIFAR10(archive)


def hostile_archive(path, content):
    """An archive whose members try to leave the folder, by name and by links."""
    with tarfile.open(path, "w:gz") as tar:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../../x")):
            link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
            link.type, link.linkname = kind, target
            tar.addfile(link)
        fifo = tarfile.TarInfo("data_batch_1.bin")
        fifo.type = tarfile.FIFOTYPE
        tar.addfile(fifo)
        extra = tarfile.TarInfo("../../evil.txt")
        extra.size = 4
        tar.addfile(extra, io.BytesIO(b"evil"))
        for name, (images, labels) in content.items():
            data = binary(images, labels)
            member = tarfile.TarInfo(f"../../../escape/{name}.bin")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_archive_cannot_write_elsewhere(tmp_path, content):
    inside = tmp_path / "deep" / "er" / "still"
    inside.mkdir(parents=True)
    archive = inside / "a.tar.gz"
    hostile_archive(archive, content)
    cifar10.unpack(archive, inside / "out")
    written = {p.relative_to(inside).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {"a.tar.gz", *(f"out/{name}.bin" for name in content)}
    assert not any(p.is_symlink() for p in tmp_path.rglob("*"))
    np.testing.assert_array_equal(CIFAR10(inside / "out").images, CIFAR10(archive).images)


def test_archive_with_too_large_a_member(tmp_path, content, monkeypatch):
    hostile_archive(tmp_path / "a.tar.gz", content)
    monkeypatch.setattr(cifar10, "_MOST_BYTES", 1000)
    with pytest.raises(DataError, match="too many for a file of CIFAR-10"):
        CIFAR10(tmp_path / "a.tar.gz")


def test_unpack_needs_all_files(tmp_path, content):
    del content["data_batch_5"]
    hostile_archive(tmp_path / "a.tar.gz", content)
    with pytest.raises(DataError, match=r"does not hold data_batch_5\.bin"):
        cifar10.unpack(tmp_path / "a.tar.gz", tmp_path / "out")


def test_download(tmp_path, content, web, monkeypatch):
    import hashlib

    write(tmp_path / FOLDERS["bin"], content, "bin")
    served = web.folder / ARCHIVES["bin"]
    pack(tmp_path / FOLDERS["bin"], served)
    data = served.read_bytes()
    urls = (web.url + served.name,)
    right = RemoteFile(served.name, urls, len(data), hashlib.sha256(data).hexdigest())
    wrong = RemoteFile(served.name, urls, len(data), "0" * 64)

    monkeypatch.setattr(cifar10, "_BINARY_ARCHIVE", wrong)
    with pytest.raises(DownloadError, match="SHA-256"):
        CIFAR10(tmp_path / "new", download=True)
    assert list((tmp_path / "new").iterdir()) == []

    monkeypatch.setattr(cifar10, "_BINARY_ARCHIVE", right)
    images = CIFAR10(tmp_path / "new", download=True).images
    np.testing.assert_array_equal(images, CIFAR10(tmp_path).images)
    assert [p.name for p in (tmp_path / "new").iterdir()] == [FOLDERS["bin"]]
    CIFAR10(tmp_path / "new", train=False, download=True)
    assert len(web.requests) == 2
