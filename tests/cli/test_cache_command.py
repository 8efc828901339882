"""`needle cache info` and `needle cache clear`, from outside."""

import json
import os
import subprocess
import sys
from pathlib import Path

import needle as ndl
from needle.backends.cpu.cache import Cache

SOURCE = str(Path(ndl.__file__).parents[1])


def needle(*arguments, folder, check=0, **variables):
    done = subprocess.run(
        [sys.executable, "-m", "needle", *arguments],
        env={**os.environ, "PYTHONPATH": SOURCE, "NEEDLE_CACHE_DIR": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


def test_info_and_clear(tmp_path):
    described = json.loads(needle("cache", "info", "--json", folder=tmp_path).stdout)
    assert described["entries"] == described["size"] == 0
    assert described["problem"] == ""
    store = Cache(tmp_path / "kernels")
    for n in range(3):
        store.put(f"{n:064x}", bytes(1000 * n), {})
    described = json.loads(needle("cache", "info", "--json", folder=tmp_path).stdout)
    assert described["entries"] == 3
    assert described["size"] == sum(p.stat().st_size for p in store.folder.iterdir())
    assert described["limit"] == 1 << 30
    assert described["folder"] == str(store.folder)
    text = needle("cache", "info", folder=tmp_path).stdout
    assert "entries  3\n" in text
    assert "limit    1.0 GiB\n" in text
    assert str(store.folder) in text
    cleared = needle("cache", "clear", folder=tmp_path).stdout
    assert cleared.startswith("removed 3 entries (3.")
    assert cleared.endswith(f"from {store.folder}\n")
    assert list(store.folder.iterdir()) == []
    assert needle("cache", "clear", folder=tmp_path).stdout.startswith(
        "removed 0 entries (0 bytes)"
    )


def test_info_says_what_is_wrong(tmp_path):
    (tmp_path / "kernels").write_text("in the way")
    assert "not used: " in needle("cache", "info", folder=tmp_path).stdout
    off = needle("cache", "info", folder=tmp_path, NEEDLE_CACHE_SIZE="0").stdout
    assert "switched off" in off
    wrong = needle("cache", "info", folder=tmp_path, NEEDLE_CACHE_SIZE="big", check=1)
    assert wrong.stderr.startswith("needle: the environment variable NEEDLE_CACHE_SIZE")
    assert "Traceback" not in wrong.stderr


def test_help_names_the_commands(tmp_path):
    assert "cache" in needle("--help", folder=tmp_path).stdout
    done = needle("cache", "--help", folder=tmp_path).stdout
    assert "info" in done
    assert "clear" in done
