"""Files that are either the old one or the new one, never something in between.

A file is written under a temporary name in the same folder, flushed to the disk, and renamed over
the old one. POSIX promises that a rename is atomic; the `fsync` before it makes sure that the name
never points at data that the disk does not hold yet, and the `fsync` of the folder after it makes
the new name last.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"


def temporary_path(target: Path) -> Path:
    """Return the name under which this process writes `target` before renaming it."""
    return target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def write_atomically(path: str | os.PathLike[str], data: bytes | str) -> Path:
    """Write `data` to `path`, so that a crash leaves the old content or the new one.

    Args:
        path: The file to write. Its folder has to exist.
        data: The whole new content; text is written as UTF-8.

    Returns:
        The path written.

    Raises:
        OSError: The folder is missing, full or not writable. The old file is untouched.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from needle.train.atomic import write_atomically
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_atomically(Path(folder) / "notes.txt", "hello")
        ...     path.read_text()
        'hello'
    """
    target = Path(path)
    temporary = temporary_path(target)
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            flush_to_disk(file.fileno())
        commit(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return target


def commit(temporary: Path, target: Path) -> None:
    """Rename a finished, flushed temporary file over `target`, durably."""
    os.replace(temporary, target)
    sync_folder(target.parent)


def flush_to_disk(descriptor: int) -> None:
    """Wait until the disk holds what was written to an open file."""
    # Some network and FUSE file systems refuse fsync; the rename is still atomic there.
    with contextlib.suppress(OSError):
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the disk holds the names in `folder` (a no-op where folders cannot be synced)."""
    if os.name != "posix":
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            flush_to_disk(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def folder_lock(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold a lock on `folder` against the other needle processes that use it.

    Writers take it exclusively, readers share it, so that a reader never sees a file vanish between
    two reads. The lock belongs to the open folder and ends with the process: a killed process
    leaves nothing to clean up. Where the file system has no such locks, there is none.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
