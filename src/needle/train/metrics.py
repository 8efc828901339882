"""Metrics as JSON lines: one object per event, readable while the run goes on.

Every record has the key `event`: `"step"` (every few steps), `"epoch"` (after each epoch and its
evaluation) or `"final"` (once, with `test_accuracy` for a classifier). `step` counts optimizer
steps from the start of training, `epoch` counts from 1. A line is flushed as soon as it is written,
so that a killed run loses at most the line being written.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from needle.errors import DataError
from needle.train.atomic import write_atomically

Record = dict[str, Any]


class MetricsWriter:
    """Appends records to a JSON lines file.

    Args:
        path: The file; it is made with its folder if missing, and appended to if it exists.

    Example:
        >>> import tempfile
        >>> from needle.train import MetricsWriter, read_metrics
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with MetricsWriter(f"{folder}/metrics.jsonl") as metrics:
        ...         metrics.write({"event": "epoch", "epoch": 1, "test_accuracy": 0.93})
        ...     read_metrics(f"{folder}/metrics.jsonl")[0]["test_accuracy"]
        0.93
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = _ends_in_torn_line(self.path)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        if torn:
            self._file.write("\n")

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record and hand it to the operating system.

        Args:
            record: JSON values by name. NaN and infinities become null, which is what JSON has.
        """
        line = json.dumps({key: _json_value(value) for key, value in record.items()})
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_metrics(path: str | os.PathLike[str]) -> list[Record]:
    """Read a metrics file, also of a run that is still writing or was killed.

    Args:
        path: The JSON lines file.

    Returns:
        The records in order. A line that is not a JSON object (one torn by a crash) is skipped.

    Raises:
        DataError: The file cannot be read, or none of its lines is a record.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    records = [record for line in lines if (record := _parse(line)) is not None]
    if any(line.strip() for line in lines) and not records:
        raise DataError(f"{path}: is not a metrics file: no line of it is a JSON object")
    return records


def keep_metrics(path: str | os.PathLike[str], keep: Callable[[Record], bool]) -> None:
    """Rewrite a metrics file with the records for which `keep` is true; it may be missing.

    A resumed run drops in this way what was recorded after its checkpoint and will be again.
    """
    if not Path(path).exists():
        return
    lines = [json.dumps(record) + "\n" for record in read_metrics(path) if keep(record)]
    write_atomically(path, "".join(lines))


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _json_value(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_in_torn_line(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
