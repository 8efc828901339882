"""Fetching data sets: only over the checksum, and a file appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from needle.errors import ArgumentError, DownloadError
from needle.progress import progress_bar

_CHUNK = 1 << 16
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web, and how to know it.

    Attributes:
        name: what to call it in the folder.
        urls: where it is, in the order to be tried.
        size: its length in bytes; no more than this is ever read.
        sha256: its SHA-256 checksum, in hexadecimal.
    """

    name: str
    urls: tuple[str, ...]
    size: int
    sha256: str


def download(file: RemoteFile, folder: str | os.PathLike[str], progress: bool = True) -> Path:
    """Fetch a file into ``folder`` unless it is there already, and return its path.

    Args:
        file: what to fetch.
        folder: where to put it; made if missing.
        progress: show a progress bar on the error stream.

    Raises:
        DownloadError: no address delivers a file with the right checksum; the message says what
            happened at each. Nothing is left behind.
        ArgumentError: an address is neither http nor https.
    """
    path = Path(folder) / file.name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    problems = []
    for url in file.urls:
        problem = _try(url, file, path, progress)
        if problem is None:
            return path
        problems.append(f"  {url}: {problem}")
    raise DownloadError(
        f"could not download {file.name}:\n"
        + "\n".join(problems)
        + f"\nFetch it by other means and put it into {path.parent}"
    )


def _try(url: str, file: RemoteFile, path: Path, progress: bool) -> str | None:
    """Fetch ``url`` to ``path``; return what went wrong, if anything did."""
    import hashlib
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    # urlopen would also open file: and ftp: addresses.
    if not url.startswith(("http://", "https://")):
        raise ArgumentError(f"download: an address must begin with http:// or https://, got {url}")
    request = Request(url, headers={"User-Agent": "needle"})
    digest = hashlib.sha256()
    count = 0
    try:
        with (
            urlopen(request, timeout=_TIMEOUT_SECONDS) as response,
            progress_bar(file.name, file.size, progress, in_bytes=True) as advance,
            atomic_write(path) as out,
        ):
            while chunk := response.read(_CHUNK):
                count += len(chunk)
                if count > file.size:
                    raise _WrongContent(f"longer than the expected {file.size} bytes")
                digest.update(chunk)
                out.write(chunk)
                advance(len(chunk))
            if count < file.size:
                raise _WrongContent(f"ended after {count} of {file.size} bytes")
            if digest.hexdigest() != file.sha256:
                raise _WrongContent(f"SHA-256 is {digest.hexdigest()}, expected {file.sha256}")
    except _WrongContent as error:
        return str(error)
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        return f"{type(error).__name__}: {error}"
    return None


class _WrongContent(Exception):
    """What came is not what was announced."""


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the name ``path`` if the block ends well, and vanishes if not."""
    # Each writer has a name of its own, in the same folder: there, a rename is atomic.
    part = path.with_name(f".{path.name}.{os.urandom(8).hex()}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise
