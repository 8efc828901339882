"""The command line from outside: real processes, exit codes, files, Ctrl-C."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import needle as ndl
from needle.train import load_checkpoint, read_metrics

SOURCE = str(Path(ndl.__file__).parents[1])
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": SOURCE,
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TERMINAL_WIDTH": "100",
}
TASK = """
import time
import numpy as np
import needle as ndl
from needle.train import Recipe, Task

def task(options):
    random = np.random.default_rng(0)
    x = random.normal(size=(640, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    return Task(
        model=ndl.nn.Sequential(ndl.nn.Linear(4, 8), ndl.nn.Dropout(0.2), ndl.nn.Linear(8, 2)),
        train_data=ndl.data.TensorDataset(x[:512], y[:512]),
        test_data=ndl.data.TensorDataset(x[512:], y[512:]),
        loss=ndl.nn.functional.cross_entropy,
        class_names=("minus", "plus"),
        recipe=Recipe(epochs=3, batch_size=16, lr=0.05),
    )

def slow(options):
    class Slow(ndl.data.TensorDataset):
        def get_batch(self, indices):
            time.sleep(0.01)
            return super().get_batch(indices)

    made = task(options)
    made.train_data = Slow(*made.train_data.arrays)
    return made

def diverging(options):
    made = task(options)
    loss = made.loss
    made.loss = lambda a, b: loss(a, b) * float("inf")
    return made

def peeking(options):
    class Peeking(ndl.nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            return y if y.sum() > 0 else y * 2

    made = task(options)
    made.model = Peeking(*made.model)
    return made

def endless():
    print("loading", flush=True)
    time.sleep(600)

def broken():
    raise KeyError("my own mistake")
"""


def needle(*arguments, cwd, check=0):
    done = subprocess.run(
        [sys.executable, "-m", "needle", *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(TASK)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of the user's own task."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "mine.py").write_text(TASK)
    done = needle("train", "mine:task", "--out", "out", "--seed", 7, cwd=folder)
    return folder, done


def test_train_says_where_everything_lies(run):
    folder, done = run
    assert done.stderr == ""
    paths = dict(re.findall(r"^  (report|metrics|checkpoint) +(\S+)$", done.stdout, re.M))
    assert all((folder / path).is_file() for path in paths.values())
    assert len(paths) == 3
    assert re.search(r"epoch 3/3 .*train loss .* acc .*test loss .* acc", done.stdout)
    final = read_metrics(folder / paths["metrics"])[-1]
    assert final["event"] == "final"
    accuracy = re.search(r"^test accuracy ([0-9.]+)% after 3 epochs", done.stdout, re.M)
    assert float(accuracy[1]) == pytest.approx(100 * final["test_accuracy"], abs=0.006)
    assert final["test_accuracy"] > 0.9
    report = (folder / paths["report"]).read_text()
    assert f"{final['test_accuracy']:.2%}" in report
    assert "\x1b" not in done.stdout
    assert not list(folder.rglob("*.pkl"))
    assert {p.suffix for p in (folder / "out").rglob("*") if p.is_file()} == {
        ".json", ".jsonl", ".html", ".safetensors",
    }  # fmt: skip


def test_steps_are_compiled(run):
    folder, done = run
    found = re.findall(
        r"^compiled the (.+) step for batches of (\d+) in \d+\.\d\d s$", done.stdout, re.M
    )
    assert found == [("training", "16"), ("evaluation", "128")]
    report = (folder / "out" / "report.html").read_text()
    assert re.search(r'<th scope="row">compiling</th><td>\d+\.\d\d s</td>', report)


def test_training_in_bfloat16(run):
    folder, _ = run
    needle("train", "mine:task", "--out", "low", "--seed", 7, "--precision", "bf16", cwd=folder)
    low, full = (read_metrics(folder / f / "metrics.jsonl")[-1] for f in ("low", "out"))
    assert low["test_loss"] != full["test_loss"]
    assert low["test_loss"] == pytest.approx(full["test_loss"], rel=0.05)
    done = needle("eval", "low", "--task", "mine:task", "--json", cwd=folder)
    assert json.loads(done.stdout)["test_loss"] == pytest.approx(low["test_loss"], rel=1e-6)
    done = needle("train", "mine:task", "--out", "x", "--precision", "f16", cwd=folder, check=2)
    assert "bf16" in done.stderr


def test_eager_steps_give_nearly_the_same(run):
    folder, _ = run
    done = needle("train", "mine:task", "--out", "eager", "--seed", 7, "--eager", cwd=folder)
    assert "compiled" not in done.stdout
    report = (folder / "eager" / "report.html").read_text()
    assert '<th scope="row">compiling</th><td>none</td>' in report
    eager, compiled = (read_metrics(folder / f / "metrics.jsonl")[-1] for f in ("eager", "out"))
    assert eager["test_loss"] == pytest.approx(compiled["test_loss"], rel=1e-4)
    done = needle("eval", "out", "--task", "mine:task", "--eager", "--json", cwd=folder)
    assert json.loads(done.stdout)["test_loss"] == pytest.approx(compiled["test_loss"], rel=1e-6)


def test_what_cannot_be_compiled_is_an_error_with_a_way_out(folder):
    done = needle("train", "mine:peeking", cwd=folder, check=1)
    words = " ".join(done.stderr.split())
    assert re.search(r"mine\.py:\d+", words)
    assert "needle train --eager" in words
    needle("train", "mine:peeking", "--eager", "--epochs", 1, cwd=folder)


def test_eval_gives_the_same_figures(run):
    folder, _ = run
    final = read_metrics(folder / "out" / "metrics.jsonl")[-1]
    done = needle("eval", "out", "--task", "mine:task", "--json", cwd=folder)
    found = json.loads(done.stdout)
    assert found["test_accuracy"] == final["test_accuracy"]
    assert found["test_loss"] == pytest.approx(final["test_loss"], rel=1e-6)
    best = needle("eval", "out", "--task", "mine:task", "--checkpoint", "best", cwd=folder)
    epochs = [r for r in read_metrics(folder / "out" / "metrics.jsonl") if r["event"] == "epoch"]
    assert f"{max(r['test_accuracy'] for r in epochs):.2%}" in best.stdout


def test_eval_runs_no_function_that_only_the_checkpoint_names(run):
    folder, _ = run
    done = needle("eval", "out", cwd=folder, check=1)
    assert "give --task mine:task" in done.stderr
    done = needle("eval", "out", "--task", "mine:slow", cwd=folder, check=1)
    assert "is a run of the task mine:task, not of mine:slow" in done.stderr


def test_a_run_is_not_overwritten(run):
    folder, _ = run
    done = needle("train", "mine:task", "--out", "out", cwd=folder, check=1)
    assert "out already holds a run; continue it with --resume" in done.stderr


def test_the_same_seed_gives_the_same_tensors(run):
    folder, _ = run
    needle("train", "mine:task", "--out", "again", "--seed", 7, cwd=folder)
    first, again = (load_checkpoint(folder / f / "checkpoints/last.json") for f in ("out", "again"))
    for name, tensor in first["model"].items():
        assert tensor.numpy().tobytes() == again["model"][name].numpy().tobytes()


def test_a_finished_run_can_be_trained_longer(run):
    folder, _ = run
    needle("train", "mine:task", "--out", "longer", "--epochs", 1, cwd=folder)
    done = needle("train", "mine:task", "--out", "longer", "--resume", "--epochs", 2, cwd=folder)
    assert "continuing after step 32 of 64" in done.stdout
    records = read_metrics(folder / "longer" / "metrics.jsonl")
    assert [r["epoch"] for r in records if r["event"] == "epoch"] == [1, 2]
    assert [r["event"] for r in records].count("final") == 1


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_is_saved_and_continued(folder, number, code):
    needle("train", "mine:slow", "--out", "whole", cwd=folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "needle", "train", "mine:slow", "--out", "part"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        process.stdout.readline()  # the model is made; training begins
        time.sleep(0.3)
        process.send_signal(number)
        output = process.stdout.read()
        assert process.wait(60) == code
    assert "Continue with: needle train mine:slow --out part --resume" in output
    stopped = load_checkpoint(folder / "part" / "checkpoints" / "last.json")
    assert 0 < stopped["step"] < 96
    assert not (folder / "part" / "report.html").exists()
    needle("train", "mine:slow", "--out", "part", "--resume", cwd=folder)
    whole, part = (load_checkpoint(folder / f / "checkpoints/last.json") for f in ("whole", "part"))
    for name, tensor in whole["model"].items():
        assert tensor.numpy().tobytes() == part["model"][name].numpy().tobytes()
    assert whole["random"].tolist() == part["random"].tolist()


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_ctrl_c_before_the_training_begins(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "needle", "train", "mine:endless"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "needle: stopped\n"
    assert process.returncode == 130


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_killed_run_is_continued(folder):
    process = subprocess.Popen(
        [sys.executable, "-m", "needle", "train", "mine:slow", "--out", "part"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        for line in process.stdout:
            if line.startswith("epoch 2/3"):
                process.kill()
    assert process.returncode == -signal.SIGKILL
    needle("train", "mine:slow", "--out", "part", "--resume", cwd=folder)
    records = read_metrics(folder / "part" / "metrics.jsonl")
    assert [r["epoch"] for r in records if r["event"] == "epoch"] == [1, 2, 3]
    steps = [r["step"] for r in records if r["event"] == "step"]
    assert steps == sorted(set(steps))


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_gets_a_progress_bar(folder):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "needle", "train", "mine:slow", "--epochs", "1", "--out", "out"],
        cwd=folder,
        env={**ENVIRONMENT, "TERM": "xterm-256color", "COLUMNS": "120"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                seen += os.read(ours, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
    os.close(ours)
    text = seen.decode()
    assert process.wait() == 0, text
    for part in ["epoch 1/1", "%", "loss", "accuracy", "examples/s", "left", "test accuracy"]:
        assert part in text
    assert "\x1b[" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train"], 2, "needle train"),
        (["train", "digits", "--epochs", "0"], 2, "--epochs"),
        (["train", "digits", "--epochs", "many"], 2, "--epochs"),
        (["train", "digits", "--optimizer", "magic"], 2, "magic"),
        (["train", "digits", "--resume"], 2, "--out"),
        (["train", "digits", "--resume", "--out", "x", "--lr", "1"], 2, "leave out --lr"),
        (["train", "digits", "--resume", "--out", "x", "--eager"], 2, "leave out --eager"),
        (["frobnicate"], 2, "frobnicate"),
        (["train", "digits", "--lr", "0"], 1, "needle: lr must be greater than 0"),
        (["train", "digit"], 1, "Did you mean digits?"),
        (["train", "digits", "--model", "gpt"], 1, "has no model 'gpt'"),
        (["train", "mine:nothing"], 1, "has no 'nothing'"),
        (["train", "mine:diverging"], 1, "epoch 1, step 1: the loss is"),
        (["train", "digits", "--resume", "--out", "none"], 1, "there is no such checkpoint"),
        (["train", "mine:task", "--out", "mine.py"], 1, "mine.py"),
        (["eval", "none"], 1, "there is no such checkpoint"),
        (["train", "mnist", "--data", "none"], 1, "none"),
    ],
)
def test_mistakes_are_one_message(folder, arguments, code, words):
    done = needle(*arguments, cwd=folder, check=code)
    flat = " ".join(done.stderr.replace("│", " ").split())
    assert words in flat
    assert "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.startswith("needle: ")


def test_a_traceback_on_request_and_for_errors_of_ones_own(folder):
    done = needle("train", "mine:nothing", "--traceback", cwd=folder, check=1)
    assert "Traceback" in done.stderr
    assert "ArgumentError" in done.stderr
    done = needle("train", "mine:broken", cwd=folder, check=1)
    assert "my own mistake" in done.stderr
    assert "mine.py" in done.stderr


def test_a_damaged_checkpoint_is_named(run):
    folder, _ = run
    needle("train", "mine:task", "--out", "hurt", "--epochs", 1, cwd=folder)
    (tensors,) = (folder / "hurt" / "checkpoints").glob("*.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-10])
    done = needle("eval", "hurt", "--task", "mine:task", cwd=folder, check=1)
    assert f"{tensors.name}: is truncated" in done.stderr


def test_version_and_info(tmp_path):
    assert needle("--version", cwd=tmp_path).stdout == f"needle {ndl.__version__}\n"
    text = needle("info", cwd=tmp_path).stdout
    assert "bfloat16" in text
    assert "cores" in text
    info = json.loads(needle("info", "--json", cwd=tmp_path).stdout)
    assert info["versions"]["needle"] == ndl.__version__
    assert 1 <= info["machine"]["cores_available"] <= info["machine"]["cores_of_machine"]
    assert max(map(len, text.splitlines())) <= 130


def test_help_lists_the_commands(tmp_path):
    for arguments in (["--help"], ["-h"]):
        text = needle(*arguments, cwd=tmp_path).stdout
        assert all(command in text for command in ("train", "eval", "info", "--version"))


def test_the_console_script_is_the_same_program(tmp_path):
    code = "import sys; sys.argv = ['needle', '--version']; from needle.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"needle {ndl.__version__}\n"


def test_version_does_not_import_the_framework_beyond_the_package(tmp_path):
    code = (
        "import sys; import needle; before = set(sys.modules);"
        "sys.argv = ['needle', '--version']\n"
        "from needle.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "new = {m for m in set(sys.modules) - before if m.startswith('needle')}\n"
        "assert {name.split('.')[1] for name in new} == {'cli'}, new\n"
        # The package, the commands, those of the cache, that of the comparison, messages.
        "assert len(new) <= 5, new"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
