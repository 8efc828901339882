"""Checkpoints come back as they were saved, and survive crashes, truncation and corruption."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import needle as ndl
from needle.errors import ArgumentError, CheckpointError
from needle.train import checkpoint_files, load_checkpoint, save_checkpoint, tag_checkpoint

DTYPES = ["bool", "uint8", "int8", "int16", "uint32", "int64", "float16", "float32", "float64"]


def assert_same(left, right):
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    elif isinstance(left, ndl.Tensor):
        assert_same(left.numpy(), right.numpy())
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()
    else:
        assert repr(left) == repr(right)  # repr tells -0.0 from 0.0 and shows all digits of a float


@pytest.mark.parametrize("dtype", [*DTYPES, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (4, 5)])
def test_every_dtype_and_shape_survives(tmp_path, dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    path = save_checkpoint({"x": array, "t": ndl.asarray(array)}, tmp_path / "a.json")
    state = load_checkpoint(path)
    assert_same(state["x"], np.asarray(array))
    assert isinstance(state["t"], ndl.Tensor)
    assert not state["t"].requires_grad
    assert_same(state["t"].numpy(), np.asarray(array))


def test_special_values_and_strides_survive(tmp_path):
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    strided = np.arange(24, dtype=">i4").reshape(4, 6).T[::2]
    state = load_checkpoint(save_checkpoint({"a": special, "b": strided}, tmp_path / "a.json"))
    assert state["a"].tobytes() == special.tobytes()
    np.testing.assert_array_equal(state["b"], strided)
    state["a"][0] = 1.0  # writable


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
arrays = st.sampled_from(
    [np.float32(2.5) * np.ones((2, 3), np.float32), np.zeros((), np.int64), np.zeros((0, 2))]
)
keys = (
    st.text(max_size=6) | st.integers(-3, 300) | st.sampled_from(["$tensor", "a.b", "__metadata__"])
)
states = st.recursive(
    scalars | arrays,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(state=st.dictionaries(keys, states, max_size=4))
def test_any_nest_survives(tmp_path, state):
    assert_same(load_checkpoint(save_checkpoint(state, tmp_path / "a.json")), state)


def test_parameters_are_saved_without_their_graph(tmp_path):
    weight = ndl.Tensor([1.0, 2.0])
    state = load_checkpoint(save_checkpoint({"w": weight}, tmp_path / "a.json"))
    assert state["w"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": {"b": object()}}, r"state\['a'\]\['b'\].*object"),
        ({"a": [lambda: 0]}, r"state\['a'\]\['0'\].*function"),
        ({1.5: 0}, "key 1.5"),
        ({"a": np.array(["text"])}, "dtype <U4"),
        ({"a": np.array([object()])}, "dtype object"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, state, words):
    save_checkpoint({"old": 1}, tmp_path / "a.json")
    with pytest.raises(ArgumentError, match=words):
        save_checkpoint(state, tmp_path / "a.json")
    assert load_checkpoint(tmp_path / "a.json") == {"old": 1}


def test_a_path_without_json_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"last\.json"):
        save_checkpoint({}, tmp_path / "model.pt")


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_both_files_have_the_mode_that_the_umask_gives(tmp_path):
    path, tensors = checkpoint_files(save_checkpoint({"x": np.ones(3)}, tmp_path / "a.json"))
    (tmp_path / "other").touch()
    assert path.stat().st_mode == tensors.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_only_the_files_in_use_remain(tmp_path):
    for value in range(4):
        path = save_checkpoint({"x": np.full(3, value)}, tmp_path / "last.json")
        if value == 1:
            tag_checkpoint(path, "best")
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert load_checkpoint(tmp_path / "best.json")["x"].tolist() == [1, 1, 1]
    assert load_checkpoint(tmp_path / "last.json")["x"].tolist() == [3, 3, 3]
    tag_checkpoint(path, "best")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]


def test_a_damaged_neighbour_keeps_its_tensors(tmp_path):
    save_checkpoint({"x": np.ones(3)}, tmp_path / "best.json")
    _, tensors = checkpoint_files(tmp_path / "best.json")
    manifest = (tmp_path / "best.json").read_text()
    (tmp_path / "best.json").write_text(manifest[: len(manifest) // 2])
    save_checkpoint({"x": np.zeros(3)}, tmp_path / "last.json")
    assert tensors.exists()


def saved(tmp_path):
    path = save_checkpoint({"w": np.arange(1000.0), "epoch": 3}, tmp_path / "last.json")
    return checkpoint_files(path)


def rewrite(path, **changes):
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        target = manifest
        *parents, last = key.split("__")
        for parent in parents:
            target = target[parent]
        target[last] = value
    path.write_text(json.dumps(manifest))


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"last\.json: there is no such checkpoint"):
        load_checkpoint(tmp_path / "last.json")
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "no" / "folder" / "last.json")
    path, tensors = saved(tmp_path)
    tensors.unlink()
    with pytest.raises(CheckpointError, match=f"{tensors.name}: is missing"):
        load_checkpoint(path)


def test_every_truncation_of_either_file_is_detected(tmp_path):
    path, tensors = saved(tmp_path)
    for file in (path, tensors):
        whole = file.read_bytes()
        # All of the JSON but its last line break.
        for length in sorted({*range(min(len(whole) - 1, 40)), len(whole) // 2, len(whole) - 2}):
            file.write_bytes(whole[:length])
            with pytest.raises(CheckpointError, match=file.name):
                load_checkpoint(path)
        file.write_bytes(whole)
    assert load_checkpoint(path)["epoch"] == 3


def test_flipped_bits_in_the_tensors_are_detected(tmp_path):
    path, tensors = saved(tmp_path)
    whole = bytearray(tensors.read_bytes())
    for position in (0, 5, 40, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        tensors.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{tensors.name}: is corrupt.*SHA-256"):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": "other"}, "not a needle checkpoint"),
        ({"format_version": 2, "needle_version": "9.9"}, "version 2; this needle .*needle 9.9"),
        ({"tensors": None}, "malformed"),
        ({"tensors__file": "../secret.safetensors"}, "malformed"),
        ({"tensors__bytes": "many"}, "malformed"),
        ({"state": []}, "malformed"),
        ({"state__w": {"$array": "nothing"}}, "refers to tensor 'nothing'"),
        ({"state__w": {"$call": "os.system"}}, "not something needle writes"),
        ({"state__w": {"$items": [["a"]]}}, "not something needle writes"),
        ({"state__w": {"$tuple": 3}}, "not something needle writes"),
    ],
)
def test_a_forged_json_is_refused(tmp_path, changes, words):
    path, _ = saved(tmp_path)
    rewrite(path, **changes)
    with pytest.raises(CheckpointError, match=rf"last\.json: .*{words}"):
        load_checkpoint(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "\xff", '{"state": NaN'])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, text):
    (tmp_path / "last.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"last\.json"):
        load_checkpoint(tmp_path / "last.json")


def test_valid_hash_of_an_invalid_tensor_file(tmp_path):
    path, tensors = saved(tmp_path)
    junk = b"not safetensors at all"
    tensors.write_bytes(junk)
    digest = hashlib.sha256(junk).hexdigest()
    rewrite(path, tensors__bytes=len(junk), tensors__sha256=digest)
    with pytest.raises(CheckpointError, match="no valid safetensors"):
        load_checkpoint(path)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not save"):
        save_checkpoint({"x": np.ones(2)}, tmp_path / "file" / "last.json")


def test_a_failed_write_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path, _ = saved(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    for step in ("commit", "flush_to_disk", "write_atomically"):
        with monkeypatch.context() as patch:
            patch.setattr(f"needle.train.checkpoint.{step}", fail)
            with pytest.raises(CheckpointError, match="No space left"):
                save_checkpoint({"w": np.zeros(7), "epoch": 4}, path)
        assert load_checkpoint(path)["epoch"] == 3
    save_checkpoint({"epoch": 5}, path)
    assert len(list(tmp_path.iterdir())) == 2


SAVER = """
import sys
import numpy as np
from needle.train import save_checkpoint, tag_checkpoint
path, start = sys.argv[1], int(sys.argv[2])
for n in range(start, start + 100_000):
    state = {"n": n, "w": np.full(50_000, n), "scalar": np.array(n)}
    tag_checkpoint(save_checkpoint(state, path), "best")
    print(n, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="kills a process with SIGKILL")
def test_a_process_killed_while_saving_leaves_a_readable_checkpoint(tmp_path):
    path = tmp_path / "last.json"
    random = np.random.default_rng(0)
    source = str(Path(ndl.__file__).parents[1])
    start, rounds = 0, 12
    for _ in range(rounds):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path), str(start)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": source},
        )
        with process:
            process.stdout.readline()  # it is saving now
            time.sleep(random.uniform(0.0, 0.03))
            process.send_signal(signal.SIGKILL)
            printed = [int(line) for line in process.stdout if line.endswith(b"\n")]
        state = load_checkpoint(path)
        best = load_checkpoint(tmp_path / "best.json")
        for found in (state, best):
            assert set(found["w"].tolist()) == {found["n"]} == {int(found["scalar"])}
        # Every checkpoint that was reported as saved is there, or a later one.
        assert state["n"] >= max(printed, default=start)
        assert state["n"] - best["n"] in (0, 1)
        start = state["n"] + 1
    save_checkpoint({"n": -1}, path)
    tag_checkpoint(path, "best")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".json", ".json", ".safetensors"]
