"""Downloads: the right content or nothing."""

import hashlib
import os
import stat

import pytest

from needle.data.download import RemoteFile, atomic_write, download
from needle.errors import ArgumentError, DownloadError

CONTENT = bytes(range(256)) * 1000


def remote(*urls, name="file.bin", content=CONTENT):
    return RemoteFile(name, urls, len(content), hashlib.sha256(content).hexdigest())


def left_in(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("progress", [True, False])
def test_fetch(tmp_path, web, progress, capsys):
    (web.folder / "file.bin").write_bytes(CONTENT)
    target = tmp_path / "made" / "on the way"
    path = download(remote(web.url + "file.bin"), target, progress=progress)
    assert path.read_bytes() == CONTENT
    assert left_in(target) == ["file.bin"]
    assert ("file.bin" in capsys.readouterr().err) == progress
    download(remote(web.url + "file.bin"), target, progress=False)
    assert web.requests == ["/file.bin"]  # the second time it was there


@pytest.mark.parametrize(
    ("served", "problem"),
    [
        (CONTENT[:-1], "ended after 255999 of 256000 bytes"),
        (CONTENT + b"x", "longer than the expected 256000 bytes"),
        (b"y" + CONTENT[1:], "SHA-256 is [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (b"", "ended after 0 of 256000 bytes"),
    ],
)
def test_wrong_content_leaves_nothing(tmp_path, web, served, problem):
    (web.folder / "file.bin").write_bytes(served)
    target = tmp_path / "target"
    with pytest.raises(DownloadError, match=problem) as caught:
        download(remote(web.url + "file.bin"), target, progress=False)
    assert str(target) in str(caught.value)
    assert left_in(target) == []


def test_mirrors_are_tried_in_turn(tmp_path, web):
    (web.folder / "bad").write_bytes(b"bad")
    (web.folder / "good").write_bytes(CONTENT)
    urls = [web.url + name for name in ("missing", "broken", "bad", "good", "never")]
    path = download(remote("http://127.0.0.1:9/refused", *urls), tmp_path / "t", progress=False)
    assert path.read_bytes() == CONTENT
    assert web.requests == ["/missing", "/broken", "/bad", "/good"]


def test_all_mirrors_fail(tmp_path, web):
    file = remote(web.url + "missing", web.url + "broken")
    with pytest.raises(DownloadError) as caught:
        download(file, tmp_path, progress=False)
    message = str(caught.value)
    assert "missing: HTTPError: HTTP Error 404" in message
    assert "broken: ended after 9 of" in message or "broken: IncompleteRead" in message
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/x", "/etc/hostname"])
def test_other_schemes_are_refused(tmp_path, url):
    with pytest.raises(ArgumentError, match="http://"):
        download(remote(url), tmp_path, progress=False)


def test_atomic_write_leaves_the_old_file_when_it_fails(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert left_in(tmp_path) == ["x"]
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_atomic_write_respects_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "x") as file:
            file.write(b"")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640
