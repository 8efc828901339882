"""Object code on disk, so that a program compiles once per machine and not once per process.

An entry is one file, named by its key: a digest of all that determines the code (`key`). It holds
the object code and what a program needs to know to call it (JSON). Nothing of it is used before the
following holds; an entry that fails is dropped with a warning, and rebuilt by whoever asked:

- the folder and the file belong to the user, and nobody else can write to them: object code is
  trusted like the program itself, and a digest would not tell who wrote it;
- the SHA-256 in the file is that of its content, and the key in it is the key asked for: no file
  that was truncated, damaged or renamed gets through.

Files appear by renaming, so any number of processes can write at a time, and a process can be
killed at any point. Where the folder cannot be used there is one warning, and no cache.

Measured (27 KB of code, file in the page cache): `get` 0.06 ms, `put` 0.4 ms; `source_version`,
once per process, 2 ms.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import secrets
import stat
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from needle.backends import IMPORTED
from needle.errors import ArgumentError

_MAGIC = b"needle\x01\n"
_SUFFIX = ".code"
_TEMPORARY = ".new-"
#: Seconds after which an unfinished file is taken for that of a process that was killed.
_STALE = 3600.0
#: Bytes of all entries together, unless NEEDLE_CACHE_SIZE says otherwise.
DEFAULT_LIMIT = 1 << 30

#: The sources that determine what code a graph becomes: these folders, and the package's own files.
_SOURCES = ("backends", "compiler", "graph", "ops")


class Entry(NamedTuple):
    """What an entry holds.

    Attributes:
        objects: object code; one or more, to be linked together.
        metadata: what `put` was given with it, by way of JSON.
    """

    objects: tuple[bytes, ...]
    metadata: dict[str, Any]


class Info(NamedTuple):
    """The state of a cache.

    Attributes:
        folder: where the entries lie.
        entries: how many there are.
        size: their bytes.
        limit: how many bytes there may be; 0 if the cache is switched off.
        problem: why the cache cannot be used; empty if it can.
    """

    folder: Path
    entries: int
    size: int
    limit: int
    problem: str


class _Damaged(Exception):
    """An entry that must not be used; says why."""


class Cache:
    """A folder of entries.

    Args:
        folder: made when the first entry is written.
        limit: bytes of all entries together; those not used for longest go first. 0 switches the
            cache off.
    """

    def __init__(self, folder: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.folder = folder
        self.limit = limit
        self._can_read = self._can_write = bool(limit)

    def get(self, key: str) -> Entry | None:
        """Return the entry of a key; None if there is none, or none that can be trusted.

        Args:
            key: from `key`.
        """
        if not self._can_read or not key:
            return None
        path = self._path(key)
        try:
            _check_folder(self.folder)
            return _unpack(_read(path), key)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(error)
            self._can_read = self._can_write = False
        except _Damaged as reason:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            warnings.warn(
                f"{path}: {reason}; the entry of the compiler's cache is dropped, and made again",
                RuntimeWarning,
                stacklevel=3,
            )
        return None

    def has(self, key: str) -> bool:
        """Return whether there is an entry of a key; it is not read, and does not count as used."""
        return bool(key) and self._can_read and self._path(key).exists()

    def put(self, key: str, objects: bytes | Sequence[bytes], metadata: dict[str, Any]) -> None:
        """Write an entry, over one of the same key; old ones make room for it.

        Args:
            key: from `key`.
            objects: object code.
            metadata: JSON values.
        """
        content = _pack(key, [objects] if isinstance(objects, bytes) else objects, metadata)
        if not self._can_write or not key or len(content) > self.limit:
            return
        path = self._path(key)
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}")
        try:
            self._make_folder()
            try:
                _write(temporary, content)
                os.replace(temporary, path)
            except OSError:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            self._make_room(path)
        except OSError as error:
            if os.name == "nt" and path.exists():  # there, a file that is being read stays
                return
            self._warn(error)
            self._can_write = False

    def info(self) -> Info:
        """Return the state of the cache."""
        problem = ""
        try:
            _check_folder(self.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            problem = _text(error)
        sizes = [status.st_size for path, status in self._files() if path.suffix == _SUFFIX]
        return Info(self.folder, len(sizes), sum(sizes), self.limit, problem)

    def clear(self) -> Info:
        """Remove all entries; return what there was."""
        before = self.info()
        for path, _ in self._files():
            path.unlink(missing_ok=True)
        return before

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_folder(self) -> None:
        try:
            _check_folder(self.folder)
        except FileNotFoundError:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self.folder.mkdir(mode=0o700, exist_ok=True)
            _check_folder(self.folder)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Yield the files that belong to the cache, finished or not; no others that lie there."""
        try:
            with os.scandir(self.folder) as found:
                entries = list(found)
        except OSError:
            return
        for entry in entries:
            if entry.name.endswith(_SUFFIX) or entry.name.startswith(_TEMPORARY):
                with contextlib.suppress(OSError):  # another process has just removed it
                    if entry.is_file(follow_symlinks=False):
                        yield Path(entry.path), entry.stat(follow_symlinks=False)

    def _make_room(self, new: Path) -> None:
        """Remove the entries not used for longest, and what killed processes have left."""
        total, finished = 0, []
        for path, status in self._files():
            if path.suffix == _SUFFIX:
                total += status.st_size
                finished.append((status.st_mtime_ns, status.st_size, path))
            elif time.time() - status.st_mtime > _STALE:
                path.unlink(missing_ok=True)
        if total <= self.limit:
            return
        for _, size, path in sorted(finished):
            if path != new:
                path.unlink(missing_ok=True)
                total -= size
            if total <= self.limit * 9 // 10:  # some room, so that not each new entry has to do it
                return

    def _warn(self, error: OSError) -> None:
        """Warn, once, that the cache cannot be used."""
        if self._can_read and self._can_write:
            warnings.warn(
                "the compiler's cache cannot be used, so each process compiles anew: "
                f"{_text(error)} (choose another folder with NEEDLE_CACHE_DIR, or none with "
                "NEEDLE_CACHE_SIZE=0)",
                RuntimeWarning,
                stacklevel=3,
            )


def _text(error: OSError) -> str:
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def _check_owner(status: os.stat_result, path: Path) -> None:
    """Check that nobody but this user can write to a file or folder."""
    if not hasattr(os, "geteuid"):  # Windows: the user's own folders are private by inheritance
        return
    if status.st_uid != os.geteuid():
        raise PermissionError(0, "it belongs to another user", str(path))
    if status.st_mode & 0o022:
        raise PermissionError(0, "other users can write to it (chmod go-w)", str(path))


def _check_folder(folder: Path) -> None:
    status = os.lstat(folder)
    if stat.S_ISLNK(status.st_mode):  # where the link leads counts, and who can change the link
        if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
            raise PermissionError(0, "it is another user's link", str(folder))
        status = os.stat(folder)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(0, "it is no folder", str(folder))
    _check_owner(status, folder)
    if not os.access(folder, os.R_OK | os.X_OK):
        raise PermissionError(0, "it may not be read", str(folder))


def _read(path: Path) -> bytes:
    """Return a file's content, and note that it was used.

    Raises:
        _Damaged: if it is not this user's own file.
    """
    # Not through a link, and not waiting for the other end of a pipe.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _Damaged(error.strerror) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _Damaged("it is no ordinary file")
        try:
            _check_owner(status, path)
        except PermissionError as error:
            raise _Damaged(error.strerror) from None
        with contextlib.suppress(OSError):
            os.utime(descriptor if os.utime in os.supports_fd else path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _write(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o600), "wb") as file:
        file.write(content)


# A file: the magic, the SHA-256 of all that follows, the length of the header (8 bytes, little
# endian), the header (JSON: key, metadata, sizes of the objects), the objects.


def _pack(key: str, objects: Sequence[bytes], metadata: dict[str, Any]) -> bytes:
    header = json.dumps(
        {"key": key, "metadata": metadata, "sizes": [len(code) for code in objects]}
    ).encode()
    rest = b"".join([len(header).to_bytes(8, "little"), header, *objects])
    return b"".join([_MAGIC, hashlib.sha256(rest).digest(), rest])


def _unpack(content: bytes, key: str) -> Entry:
    """Return what a file holds.

    Raises:
        _Damaged: if it is not, to the last bit, what `_pack` made of this key.
    """
    start = len(_MAGIC) + 32
    if content[: len(_MAGIC)] != _MAGIC or len(content) < start + 8:
        raise _Damaged("it is no entry, or its start is missing")
    rest = memoryview(content)[start:]
    if hashlib.sha256(rest).digest() != content[len(_MAGIC) : start]:
        raise _Damaged("its content does not have the checksum that it should have")
    place = 8 + int.from_bytes(rest[:8], "little")
    try:
        header = json.loads(bytes(rest[8:place]))
        owner, metadata, sizes = header["key"], header["metadata"], header["sizes"]
        if owner != key:
            raise _Damaged("it is the entry of another key")
        objects = []
        for size in sizes:
            objects.append(bytes(rest[place : place + size]))
            place += size
    except (ValueError, TypeError, KeyError):
        raise _Damaged("its header cannot be read") from None
    if place != len(rest):
        raise _Damaged("its objects do not have the sizes that they should have")
    return Entry(tuple(objects), metadata)


def key(*parts: str | bytes) -> str:
    """Return the key of what is generated from ``parts``, by this version of needle and LLVM; the
    empty key, which has no entry, if the version cannot be told.

    Args:
        parts: all that determines the code: the graph's text, the target's features, options.

    Example:
        >>> from needle.backends.cpu import cache
        >>> cache.key("graph", "avx2") == cache.key("graph", "avx512")
        False
    """
    if not source_version():
        return ""
    digest = hashlib.sha256()
    for part in (source_version(), _llvm_version(), *parts):
        data = part if isinstance(part, bytes) else part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


@functools.cache
def source_version() -> str:
    """Return a digest of the sources that generate code, so that no edit meets stale code.

    Of the sources' contents: times and sizes are those of another file after some installations. If
    a file has changed since needle was imported, what is loaded and what lies on disk may differ:
    the result is empty then, and where there are no such files, as in a zip file.
    """
    root = str(Path(__file__).parents[2])  # text: for 150 files, paths as objects take 5 ms
    folders = [root, *(os.path.join(root, name) for name in _SOURCES)]
    files = []
    for folder in folders:
        for place, inner, names in os.walk(folder):
            files += [os.path.join(place, name) for name in names if name.endswith(".py")]
            if place == root:  # of the package itself, only its own files
                inner.clear()
    digest = hashlib.sha256()
    for path in sorted(files):
        with open(path, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_mtime > IMPORTED:
                return ""
            content = file.read()
        digest.update(f"{os.path.relpath(path, root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest() if files else ""


@functools.cache
def _llvm_version() -> str:
    import llvmlite
    import llvmlite.binding as llvm

    return f"llvmlite {llvmlite.__version__}, LLVM {llvm.llvm_version_info}, {sys.platform}"


def default_folder() -> Path:
    """Return where entries lie: ``kernels`` in ``$NEEDLE_CACHE_DIR``, or in the user's cache folder
    (Linux: ``$XDG_CACHE_HOME/needle`` or ``~/.cache/needle``)."""
    own = os.environ.get("NEEDLE_CACHE_DIR")
    if own:
        return Path(os.path.expanduser(own)).absolute() / "kernels"
    variable = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
    base = Path(os.environ.get(variable, ""))
    if base.is_absolute():
        return base / "needle" / "kernels"
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():  # a user without a home, in some containers
        name = f"needle-{os.geteuid()}" if hasattr(os, "geteuid") else "needle"
        return Path(tempfile.gettempdir()) / name / "kernels"
    usual = {"darwin": "Library/Caches", "win32": "AppData/Local"}.get(sys.platform, ".cache")
    return home / usual / "needle" / "kernels"


def default_limit() -> int:
    """Return how many bytes the entries may take: ``$NEEDLE_CACHE_SIZE``, or 1 GiB.

    Raises:
        ArgumentError: if the variable is no size: a number, perhaps with K, M or G (of 1024).
    """
    text = os.environ.get("NEEDLE_CACHE_SIZE")
    if text is None:
        return DEFAULT_LIMIT
    number, unit = text.strip().upper().removesuffix("B").removesuffix("I"), 1
    for letter, factor in (("K", 1 << 10), ("M", 1 << 20), ("G", 1 << 30)):
        if number.endswith(letter):
            number, unit = number[:-1], factor
    try:
        size = float(number) * unit
    except ValueError:
        size = -1.0
    if not 0 <= size < 1e18:
        raise ArgumentError(
            "the environment variable NEEDLE_CACHE_SIZE must be a number of bytes, such as 500M, "
            f"2G or 0 (no cache); it is {text!r}: change it or unset it"
        )
    return int(size)


@functools.cache
def _cache(folder: Path, limit: int) -> Cache:
    return Cache(folder, limit)


def default() -> Cache:
    """Return the cache that the environment says."""
    return _cache(default_folder(), default_limit())


def get(key: str) -> Entry | None:
    """Return the entry of a key; see `Cache.get`."""
    return default().get(key)


def has(key: str) -> bool:
    """Return whether there is an entry of a key; see `Cache.has`."""
    return default().has(key)


def put(key: str, objects: bytes | Sequence[bytes], metadata: dict[str, Any]) -> None:
    """Write an entry; see `Cache.put`."""
    default().put(key, objects, metadata)


def info() -> Info:
    """Return the state of the cache; see `Cache.info`."""
    return default().info()


def clear() -> Info:
    """Remove all entries; see `Cache.clear`."""
    return default().clear()
