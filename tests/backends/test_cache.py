"""The cache of object code: what comes out went in, whatever happens to files and processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import needle as ndl
from needle.backends.cpu import cache
from needle.backends.cpu.cache import Cache
from needle.errors import ArgumentError

SOURCE = str(Path(ndl.__file__).parents[1])
KEY, OTHER = "ab" * 32, "cd" * 32
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions and signals")


@pytest.fixture
def store(tmp_path):
    return Cache(tmp_path / "needle" / "kernels")


def entry_path(store, key=KEY):
    return store.folder / f"{key}.code"


def environment(**variables):
    return {**os.environ, "PYTHONPATH": SOURCE, **variables}


def is_root():
    return hasattr(os, "geteuid") and os.geteuid() == 0


def test_what_comes_out_went_in(store):
    metadata = {"exports": ["f"], "plan": {"bytes": 7, "é": None}}
    assert store.get(KEY) is None
    store.put(KEY, b"code", metadata)
    assert store.get(KEY) == ((b"code",), metadata)
    assert store.get(OTHER) is None
    store.put(OTHER, [b"", bytes(range(256)) * 100, b"\n"], {})
    assert store.get(OTHER) == ((b"", bytes(range(256)) * 100, b"\n"), {})
    store.put(KEY, b"newer", metadata)
    assert store.get(KEY).objects == (b"newer",)
    assert store.info().entries == 2
    assert Cache(store.folder).get(KEY).objects == (b"newer",)


@posix
def test_permissions_are_private(store):
    old = os.umask(0)
    try:
        store.put(KEY, b"code", {})
    finally:
        os.umask(old)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert entry_path(store).stat().st_mode & 0o777 == 0o600


def damaged_forms(content):
    random.seed(0)
    yield "empty", b""
    yield "foreign", b"#!/bin/sh\necho hello\n" * 10
    for end in (1, 8, 20, 39, 40, 47, 48, 60, len(content) // 2, len(content) - 1):
        yield f"cut at {end}", content[:end]
    yield "longer", content + b"\0"
    yield "zeros", bytes(len(content))
    for _ in range(60):
        place = random.randrange(len(content))
        bit = 1 << random.randrange(8)
        flipped = bytearray(content)
        flipped[place] ^= bit
        yield f"bit {bit} of byte {place}", bytes(flipped)


def test_damaged_entries_are_dropped_with_a_warning(store):
    store.put(KEY, b"machine code " * 10, {"exports": ["f"]})
    good = entry_path(store).read_bytes()
    for name, content in damaged_forms(good):
        entry_path(store).write_bytes(content)
        entry_path(store).chmod(0o600)
        with pytest.warns(RuntimeWarning, match="dropped, and made again") as caught:
            assert store.get(KEY) is None, name
        assert str(entry_path(store)) in str(caught[0].message)
        assert not entry_path(store).exists(), name
        assert store.get(KEY) is None
    store.put(KEY, b"rebuilt", {})
    assert store.get(KEY).objects == (b"rebuilt",)


def test_a_renamed_entry_is_not_taken_for_another(store):
    store.put(KEY, b"code of key", {})
    os.replace(entry_path(store, KEY), entry_path(store, OTHER))
    with pytest.warns(RuntimeWarning, match="entry of another key"):
        assert store.get(OTHER) is None


@pytest.mark.parametrize(
    "header",
    [b"", b"[]", b"{}", b"\xff", b'{"key": "KEY", "metadata": {}, "sizes": [1]}',
     b'{"key": "KEY", "metadata": {}, "sizes": ["a"]}', b'{"key": "KEY", "metadata": {}}'],
)  # fmt: skip
def test_a_header_that_makes_no_sense(store, header):
    """Not damage but somebody's own file, whose checksum is right."""
    import hashlib

    store.put(KEY, b"", {})
    header = header.replace(b"KEY", KEY.encode())
    rest = len(header).to_bytes(8, "little") + header
    entry_path(store).write_bytes(cache._MAGIC + hashlib.sha256(rest).digest() + rest)
    with pytest.warns(RuntimeWarning, match="dropped"):
        assert store.get(KEY) is None


@posix
def test_a_file_that_others_can_write_is_not_used(store):
    store.put(KEY, b"code", {})
    for mode in (0o620, 0o602, 0o666):
        store.put(KEY, b"code", {})
        entry_path(store).chmod(mode)
        with pytest.warns(RuntimeWarning, match="other users can write"):
            assert store.get(KEY) is None
        assert not entry_path(store).exists()


@posix
def test_a_folder_that_others_can_write_is_not_used(store):
    store.put(KEY, b"code", {})
    for mode in (0o770, 0o707, 0o777):
        store.folder.chmod(mode)
        again = Cache(store.folder)
        with pytest.warns(RuntimeWarning, match="other users can write"):
            assert again.get(KEY) is None
        with warnings.catch_warnings():  # once is enough
            warnings.simplefilter("error")
            assert again.get(KEY) is None
            again.put(KEY, b"code", {})
        assert "other users" in again.info().problem
        with pytest.warns(RuntimeWarning, match="other users can write"):
            Cache(store.folder).put(OTHER, b"code", {})
    assert len(list(store.folder.iterdir())) == 1


@posix
@pytest.mark.skipif(not is_root(), reason="only root can give files away")
def test_what_belongs_to_others_is_not_used(store):
    store.put(KEY, b"code", {})
    os.chown(entry_path(store), 12345, -1)
    with pytest.warns(RuntimeWarning, match="another user"):
        assert store.get(KEY) is None
    os.chown(store.folder, 12345, -1)
    with pytest.warns(RuntimeWarning, match="another user"):
        Cache(store.folder).put(KEY, b"code", {})


@posix
def test_links_pipes_and_folders_in_place_of_an_entry(store, tmp_path):
    store.put(KEY, b"code", {})
    elsewhere = tmp_path / "elsewhere"
    os.replace(entry_path(store), elsewhere)
    makers = [
        lambda path: path.symlink_to(elsewhere),
        os.mkfifo,
        lambda path: path.mkdir(),
    ]
    for make in makers:
        make(entry_path(store))
        with pytest.warns(RuntimeWarning, match="dropped"):
            assert store.get(KEY) is None
    assert elsewhere.exists()


@posix
def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        store = Cache(folder)
        with pytest.warns(RuntimeWarning, match=r"cannot be used.*NEEDLE_CACHE_DIR"):
            store.put(KEY, b"code", {})
        with warnings.catch_warnings():  # once is enough
            warnings.simplefilter("error")
            store.put(OTHER, b"code", {})
            assert store.get(KEY) is None
    assert (tmp_path / "file").read_text() == "in the way"


@posix
@pytest.mark.skipif(is_root(), reason="root can write everywhere")
def test_a_folder_that_cannot_be_written_is_still_read(store):
    store.put(KEY, b"code", {})
    store.folder.chmod(0o500)
    try:
        with pytest.warns(RuntimeWarning, match="cannot be used"):
            store.put(OTHER, b"code", {})
        assert store.get(KEY).objects == (b"code",)
    finally:
        store.folder.chmod(0o700)


@posix
def test_a_full_disk(store, tmp_path):
    """Writing fails in the middle: one warning, no rest of the file."""
    code = """
import resource, signal, sys, warnings
from pathlib import Path
from needle.backends.cpu.cache import Cache
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Cache(Path(sys.argv[1]))
store.put("a" * 64, b"x" * 1000, {})
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    store.put("b" * 64, b"x" * 10000, {})
    store.put("c" * 64, b"x" * 10000, {})
assert len(caught) == 1, caught
assert "cannot be used" in str(caught[0].message)
assert store.get("a" * 64).objects == (b"x" * 1000,)
assert store.get("b" * 64) is None
print(sorted(p.name[0] for p in store.folder.iterdir()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)],
        env=environment(), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "['a']\n", done.stderr


def test_old_entries_make_room(tmp_path):
    store = Cache(tmp_path / "c", limit=50_000)
    keys = [f"{n:064x}" for n in range(12)]
    for n, key in enumerate(keys[:4]):
        store.put(key, bytes(10_000), {})
        os.utime(entry_path(store, key), (1000 + n, 1000 + n))
    assert store.get(keys[0]) is not None  # used, so no more the oldest
    store.put(keys[4], bytes(10_000), {})
    assert store.get(keys[1]) is None
    assert all(store.get(keys[n]) is not None for n in (0, 3, 4))
    for key in keys[5:]:
        store.put(key, bytes(10_000), {})
        assert store.get(key) is not None
        assert store.info().size <= 50_000
    store.put(KEY, bytes(49_000), {})  # nearly all of it
    assert store.get(KEY) is not None
    assert store.info().entries == 1
    store.put(OTHER, bytes(60_000), {})  # more than there may be
    assert store.get(OTHER) is None
    assert store.get(KEY) is not None


def test_limit_zero_is_no_cache(tmp_path):
    store = Cache(tmp_path / "c", limit=0)
    store.put(KEY, b"code", {})
    assert store.get(KEY) is None
    assert not (tmp_path / "c").exists()


def test_clear_removes_only_its_own(store):
    store.put(KEY, b"code", {})
    store.put(OTHER, b"code", {})
    (store.folder / "notes.txt").write_text("mine")
    (store.folder / ".new-123-abc").write_bytes(b"half")
    before = store.clear()
    assert before.entries == 2
    assert before.size > 8
    assert [path.name for path in store.folder.iterdir()] == ["notes.txt"]
    assert store.info()[1:3] == (0, 0)
    assert store.clear().entries == 0


def test_rests_of_killed_processes_go_after_a_while(store):
    store.put(KEY, b"code", {})
    old, young = store.folder / ".new-1-a", store.folder / ".new-2-b"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 4000,) * 2)
    store.put(OTHER, b"code", {})
    assert not old.exists()
    assert young.exists()


WRITER = """
import random, sys
from pathlib import Path
from needle.backends.cpu.cache import Cache
folder, seed = Path(sys.argv[1]), int(sys.argv[2])
store, draw = Cache(folder, limit=int(sys.argv[3])), random.Random(seed)
print("ready", flush=True)
while True:
    n = draw.randrange(8)
    value, size = draw.randrange(256), draw.randrange(1, 200_000)
    store.put(f"{n:064x}", bytes([value]) * size, {"value": value, "size": size, "key": n})
    n = draw.randrange(8)
    entry = store.get(f"{n:064x}")
    if entry is not None:
        said = entry.metadata
        assert entry.objects == (bytes([said["value"]]) * said["size"],)
        assert said["key"] == n
"""


def writers(store, count, limit=1 << 30):
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(store.folder), str(n), str(limit)],
            env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for n in range(count)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout.readline() == b"ready\n", process.stderr.read()
    return processes


def check_all(store):
    """Every entry that is there is whole."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for n in range(8):
            entry = store.get(f"{n:064x}")
            if entry is not None:
                said = entry.metadata
                assert entry.objects == (bytes([said["value"]]) * said["size"],)


@posix
@pytest.mark.parametrize("limit", [1 << 30, 300_000])
def test_processes_that_write_at_a_time_and_are_killed(store, limit):
    """Also with so little room that they remove each other's entries all the time."""
    running = writers(store, 3, limit)
    time.sleep(1.0)
    assert all(process.poll() is None for process in running), running[0].stderr.read()
    for process in running:
        process.send_signal(signal.SIGKILL)
    for process in running:
        _, errors = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL, errors
        assert errors == b""
    check_all(store)


@posix
@pytest.mark.parametrize("moment", ["half written", "before the name", "after the name", *range(8)])
def test_killed_in_the_middle_of_a_write(store, moment):
    """At chosen moments of `put`, and at others: no entry is ever half there."""
    store.put(f"{0:064x}", bytes([9]) * 10, {"value": 9, "size": 10})
    code = """
import os, signal, sys, threading
from pathlib import Path
from needle.backends.cpu import cache

def die():
    os.kill(os.getpid(), signal.SIGKILL)

moment = sys.argv[2]
replace = os.replace
def write(path, content):
    path.write_bytes(content[: len(content) // 2])
    die()
if moment == "half written":
    cache._write = write
elif moment == "before the name":
    cache.os.replace = lambda old, new: die()
elif moment == "after the name":
    cache.os.replace = lambda old, new: (replace(old, new), die())
else:
    threading.Timer(0.01 + 0.0077 * int(moment), die).start()
store = cache.Cache(Path(sys.argv[1]))
while True:
    for n in range(8):
        store.put(f"{n:064x}", bytes([n]) * 3_000_000, {"value": n, "size": 3_000_000})
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(store.folder), str(moment)],
        env=environment(), capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    check_all(store)
    first = store.get(f"{0:064x}")
    if moment in ("half written", "before the name"):
        assert first.metadata["size"] == 10
        assert len(list(store.folder.glob(".new-*"))) == 1
    elif moment == "after the name":
        assert first.metadata["size"] == 3_000_000


def test_the_key_says_all_that_matters(monkeypatch):
    one = cache.key("graph", b"features")
    assert len(one) == 64
    assert one == cache.key("graph", "features")
    assert one != cache.key("graphf", "eatures")
    assert one != cache.key("graph", "features", "")
    monkeypatch.setattr(cache, "_llvm_version", lambda: "another")
    assert one != cache.key("graph", b"features")
    monkeypatch.undo()
    monkeypatch.setattr(cache, "source_version", lambda: "another")
    assert one != cache.key("graph", b"features")


def copy_of_package(folder):
    import shutil

    skipped = shutil.ignore_patterns("__pycache__", "_files")
    shutil.copytree(Path(ndl.__file__).parent, folder / "needle", ignore=skipped)
    return folder / "needle"


def test_an_edited_generator_has_another_version(tmp_path):
    root = copy_of_package(tmp_path)
    code = "from needle.backends.cpu import cache; print(cache.source_version())"

    def version():
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment(PYTHONPATH=str(tmp_path)),
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return done.stdout.strip()

    def edit(path):
        status = path.stat()
        text = path.read_text()
        path.write_text(text.replace(".", "!", 1))  # same size
        assert path.read_text() != text
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same time

    versions = [version()]
    assert len(versions[0]) == 64
    assert version() == versions[0]
    edited = ["backends/cpu/jit.py", "ops/engine.py", "compiler/__init__.py", "dtypes.py"]
    for name in edited:
        edit(root / name)
        versions.append(version())
    assert len(set(versions)) == 5
    edit(root / "cli" / "app.py")  # generates no code
    assert version() == versions[-1]


def test_an_edit_after_the_start_switches_the_cache_off(tmp_path):
    """What runs is the old source then, and its code must not be kept as that of the new one."""
    root = copy_of_package(tmp_path)
    code = """
import os, sys, time
import needle
path = os.path.join(os.path.dirname(needle.__file__), "ops", "engine.py")
with open(path, "a") as file:
    file.write("# edited\\n")
os.utime(path, (time.time() + 1,) * 2)
from needle.backends.cpu import cache
assert cache.source_version() == ""
assert cache.key("graph") == ""
cache.put("", b"code", {})
assert cache.get("") is None
print(cache.info().entries)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(PYTHONPATH=str(root.parent), NEEDLE_CACHE_DIR=str(tmp_path / "c")),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "0\n", done.stderr


def test_where_entries_lie(monkeypatch, tmp_path):
    monkeypatch.delenv("NEEDLE_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.default_folder() == tmp_path / "xdg" / "needle" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    usual = tmp_path / "home" / ".cache" / "needle" / "kernels"
    assert cache.default_folder() == usual
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_folder() == usual
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.default_folder() == tmp_path / "home/Library/Caches/needle/kernels"
    monkeypatch.setenv("NEEDLE_CACHE_DIR", str(tmp_path / "own"))
    assert cache.default_folder() == tmp_path / "own" / "kernels"


def test_sizes(monkeypatch):
    monkeypatch.delenv("NEEDLE_CACHE_SIZE", raising=False)
    assert cache.default_limit() == 1 << 30
    sizes = {"0": 0, "1000": 1000, "2k": 2048, "1.5 M": 3 << 19, "3GiB": 3 << 30, "4GB": 4 << 30}
    for text, size in sizes.items():
        monkeypatch.setenv("NEEDLE_CACHE_SIZE", text)
        assert cache.default_limit() == size
    for text in ("", "much", "-1", "nan", "inf", "1T2"):
        monkeypatch.setenv("NEEDLE_CACHE_SIZE", text)
        with pytest.raises(ArgumentError, match="NEEDLE_CACHE_SIZE"):
            cache.default_limit()


def test_the_functions_use_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("NEEDLE_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("NEEDLE_CACHE_SIZE", raising=False)
    key = cache.key("a graph")
    cache.put(key, b"code", {"exports": ["f"]})
    assert cache.get(key) == ((b"code",), {"exports": ["f"]})
    assert cache.info().entries == 1
    assert cache.info().folder == tmp_path / "kernels"
    assert json.dumps(cache.get(key).metadata)
    assert cache.clear().entries == 1
    assert cache.get(key) is None
