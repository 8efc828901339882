"""Metrics files: complete lines at once, and tolerant of a torn last one."""

import json

import pytest

from needle.errors import DataError
from needle.train import MetricsWriter, keep_metrics, read_metrics


def test_a_line_can_be_read_before_the_file_is_closed(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    with MetricsWriter(path) as metrics:
        metrics.write({"event": "step", "train_loss": 0.1 + 0.2, "name": "naïve\n"})
        assert read_metrics(path) == [{"event": "step", "train_loss": 0.1 + 0.2, "name": "naïve\n"}]


def test_every_line_is_json_even_with_nan(tmp_path):
    with MetricsWriter(tmp_path / "m.jsonl") as metrics:
        metrics.write({"loss": float("nan"), "accuracy": float("inf"), "epoch": 1})
    text = (tmp_path / "m.jsonl").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert record == {"loss": None, "accuracy": None, "epoch": 1}


def test_a_torn_line_is_skipped_and_not_glued_to_the_next(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"epoch": 1}\n{"epoch": 2, "lo')
    assert read_metrics(path) == [{"epoch": 1}]
    with MetricsWriter(path) as metrics:
        metrics.write({"epoch": 2})
    assert read_metrics(path) == [{"epoch": 1}, {"epoch": 2}]


def test_keep_drops_records_and_mends_the_file(tmp_path):
    path = tmp_path / "m.jsonl"
    keep_metrics(path, lambda record: True)
    assert not path.exists()
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    keep_metrics(path, lambda record: record["step"] < 2)
    assert path.read_text() == '{"step": 1}\n'


def test_other_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        read_metrics(tmp_path / "none.jsonl")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\xff")
    with pytest.raises(DataError, match=r"x\.png: is not a metrics file"):
        read_metrics(tmp_path / "x.png")
    (tmp_path / "empty").touch()
    assert read_metrics(tmp_path / "empty") == []
