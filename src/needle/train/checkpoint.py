"""Checkpoints: saved training state, as safetensors plus JSON.

A checkpoint is a JSON file (`last.json`) that names a safetensors file in the same folder by its
content (`tensors-<first half of its SHA-256>.safetensors`). The JSON holds everything but the
tensors, and the full SHA-256 and size of the tensors' file. Nothing is pickled: loading a
checkpoint cannot run code.

**The commit point is one rename**, that of the JSON. Saving writes the tensors under a name that no
checkpoint uses yet, waits for the disk, and then renames the new JSON over the old one. Whatever
moment the process is killed at, the name `last.json` leads to a complete pair: the previous one
before the rename, the new one after it. Tensor files that no JSON names any more are deleted
afterwards, so a folder with `last.json` and `best.json` holds at most two of them, and one if both
are the same state (`tag_checkpoint` copies a few hundred bytes of JSON, not the tensors).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from needle.errors import ArgumentError, CheckpointError
from needle.train.atomic import (
    TEMPORARY_SUFFIX,
    commit,
    flush_to_disk,
    folder_lock,
    write_atomically,
)
from needle.train.structure import join, split

FORMAT = "needle-checkpoint"
FORMAT_VERSION = 1

_TENSORS_NAME = re.compile(r"tensors-[0-9a-f]{32}\.safetensors")
_TEMPORARY_NAME = re.compile(r"\..+\.json\.\d+" + re.escape(TEMPORARY_SUFFIX))
# The tensors are written here first; whatever a killed process left in it goes with the next save.
_SCRATCH = ".saving"
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
}
_SAVED_DTYPES = frozenset(_DTYPES.values())


def save_checkpoint(state: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Save training state, atomically.

    Args:
        state: A nest of dicts, lists and tuples of Tensors, NumPy arrays, numbers, strings,
            booleans and None: typically the `state_dict()` of model and optimizer, and counters.
        path: The JSON file to write, `….json`. The folder is made if missing; the tensors go into
            a file beside it. An existing checkpoint of that name is replaced.

    Returns:
        The path of the JSON file.

    Raises:
        ArgumentError: `state` holds something else, or `path` does not end in `.json`.
        CheckpointError: The files could not be written; the previous checkpoint is still there.

    Example:
        >>> import tempfile
        >>> import needle as ndl
        >>> from needle.train import load_checkpoint, save_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_checkpoint({"epoch": 3, "w": ndl.ones((2,))}, f"{folder}/last.json")
        ...     load_checkpoint(path)["w"].tolist()
        [1.0, 1.0]
    """
    target = _checked_path(path)
    structure, arrays = split(dict(state))
    for name, array in arrays.items():
        if array.dtype.newbyteorder("=") not in _SAVED_DTYPES:
            raise ArgumentError(f"cannot save tensor {name!r} of dtype {array.dtype}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with folder_lock(target.parent, exclusive=True):
            tensors, digest, size = _write_tensors(arrays, target.parent)
            manifest = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "needle_version": _needle_version(),
                "tensors": {"file": tensors.name, "bytes": size, "sha256": digest},
                "state": structure,
            }
            write_atomically(target, json.dumps(manifest, indent=1, allow_nan=False) + "\n")
            _delete_unused(target.parent)
    except OSError as error:
        raise CheckpointError(f"{target}: could not save the checkpoint: {error}") from error
    return target


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Load what `save_checkpoint` saved, after checking that both files are whole.

    Args:
        path: The JSON file.

    Returns:
        The state; Tensors come back as Tensors that require no gradient, arrays as writable
        arrays, NumPy scalars as Python numbers.

    Raises:
        CheckpointError: A file is missing, truncated, corrupt, of another format or of a newer
            version. The message names the file and what is wrong with it.
    """
    target = _checked_path(path)
    if not target.exists():
        raise CheckpointError(f"{target}: there is no such checkpoint")
    with folder_lock(target.parent, exclusive=False):
        manifest = _read_manifest(target)
        arrays = _read_tensors(target, manifest["tensors"])
    with _naming(target):
        state = join(manifest["state"], arrays)
    assert isinstance(state, dict)
    return state


def tag_checkpoint(path: str | os.PathLike[str], name: str) -> Path:
    """Give a checkpoint a second name in its folder, without copying the tensors.

    Args:
        path: The JSON file of an existing checkpoint.
        name: The new name without `.json`, such as `"best"`. An old tag of that name is replaced.

    Returns:
        The path of the new JSON file.

    Raises:
        CheckpointError: `path` is missing or corrupt.
    """
    source = _checked_path(path)
    target = _checked_path(source.with_name(f"{name}.json"))
    with folder_lock(source.parent, exclusive=True):
        _read_manifest(source)
        write_atomically(target, source.read_bytes())
        _delete_unused(source.parent)
    return target


def checkpoint_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Return the JSON file and the safetensors file of a checkpoint.

    Args:
        path: The JSON file.

    Raises:
        CheckpointError: The JSON file is missing or corrupt.
    """
    target = _checked_path(path)
    return target, target.parent / _read_manifest(target)["tensors"]["file"]


def _needle_version() -> str:
    import needle

    return needle.__version__


def _checked_path(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.suffix != ".json":
        raise ArgumentError(
            f"a checkpoint is named by its JSON file, such as run/last.json; got {target}"
        )
    return target


def _write_tensors(arrays: dict[str, NDArray[Any]], folder: Path) -> tuple[Path, str, int]:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    # np.ascontiguousarray would turn 0-d arrays into 1-d ones.
    dense = {
        name: np.require(array, array.dtype.newbyteorder("="), "C")
        for name, array in arrays.items()
    }
    scratch = folder / _SCRATCH
    scratch.mkdir(exist_ok=True)
    temporary = scratch / "tensors.safetensors"
    try:
        try:
            save_file(dense, temporary)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        # Hashing what the file holds, not what was meant to be written, also catches a bad write.
        with open(temporary, "rb+") as file:
            digest, size = _sha256(file)
            flush_to_disk(file.fileno())
        # safetensors makes files that only their owner can read; follow the umask instead.
        temporary.chmod(scratch.stat().st_mode & 0o666)
        target = folder / f"tensors-{digest[:32]}.safetensors"
        commit(temporary, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target, digest, size


def _sha256(file: Any) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(1 << 20):
        digest.update(chunk)
        size += len(chunk)
    return digest.hexdigest(), size


def _delete_unused(folder: Path) -> None:
    """Delete tensor files that no checkpoint names, and what a killed process left behind.

    Runs under the exclusive lock, after the commit: no other process is saving into the folder.
    """
    named = [_named_tensors(path) for path in folder.glob("*.json")]
    if None in named:
        return  # A damaged checkpoint might still be rescued: delete nothing.
    used = {name for names in named if names for name in names}
    for path in folder.iterdir():
        unused = _TENSORS_NAME.fullmatch(path.name) and path.name not in used
        # `….json.<pid>.tmp`: a process was killed just before the commit.
        if unused or _TEMPORARY_NAME.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def _named_tensors(path: Path) -> set[str] | None:
    """Return the tensor file that a JSON file names, if any; None for a damaged checkpoint."""
    try:
        return {_read_manifest(path)["tensors"]["file"]}
    except CheckpointError:
        data = path.read_bytes()
        return None if not data or FORMAT.encode() in data else set()


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: there is no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as error:
        what = "is empty" if not data else f"is truncated or corrupt: {error}"
        raise CheckpointError(f"{path}: {what}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is JSON, but not a needle checkpoint")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {version!r}; this needle reads version {FORMAT_VERSION}. "
            f"It was written by needle {manifest.get('needle_version', 'unknown')}"
        )
    tensors = manifest.get("tensors")
    if (
        not isinstance(tensors, dict)
        # A full match, so that a forged name cannot point outside of the folder.
        or not _TENSORS_NAME.fullmatch(str(tensors.get("file")))
        or not isinstance(tensors.get("sha256"), str)
        or not isinstance(tensors.get("bytes"), int)
        or not isinstance(manifest.get("state"), dict)
    ):
        raise CheckpointError(f"{path}: is corrupt: the entry 'tensors' or 'state' is malformed")
    return manifest


def _read_tensors(manifest_path: Path, entry: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    import safetensors

    path = manifest_path.parent / entry["file"]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: is missing, although {manifest_path.name} names it; "
            "a checkpoint is moved or copied together with its tensors"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) != entry["bytes"]:
        what = "truncated" if len(data) < entry["bytes"] else "too long"
        raise CheckpointError(
            f"{path}: is {what}: {len(data):,} bytes, and {manifest_path.name} says "
            f"{entry['bytes']:,}"
        )
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise CheckpointError(
            f"{path}: is corrupt: its SHA-256 is {digest[:16]}…, and {manifest_path.name} says "
            f"{entry['sha256'][:16]}…"
        )
    arrays: dict[str, NDArray[Any]] = {}
    try:
        for name, info in safetensors.deserialize(data):  # type: ignore[no-untyped-call]
            if info["dtype"] not in _DTYPES:
                raise ValueError(f"tensor {name!r} has dtype {info['dtype']}")
            array = np.frombuffer(bytearray(info["data"]), _DTYPES[info["dtype"]])  # writable
            arrays[name] = array.reshape(info["shape"])
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: is no valid safetensors file: {error}") from None
    return arrays


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except (CheckpointError, RecursionError, TypeError) as error:
        raise CheckpointError(f"{path}: is corrupt: {error}") from None
