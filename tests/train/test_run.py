"""Whole runs of the ready-made tasks: they reach what is promised, and can be picked up again."""

import json

import numpy as np
import pytest

from needle.data import Subset
from needle.errors import ArgumentError, CheckpointError
from needle.train import (
    Run,
    TaskOptions,
    evaluate_run,
    load_checkpoint,
    load_task,
    read_metrics,
    save_checkpoint,
)
from needle.train.run import RunConfig
from needle.train.tasks import Recipe
from needle.train.tasks.text import write_text
from needle.train.tuning import make_optimizer, make_scheduler


def test_digits_reach_97_percent(tmp_path):
    run = Run("digits", tmp_path / "run")
    run.train()
    final = run.finish()
    assert final["test_accuracy"] >= 0.97
    assert final["parameters"] == 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10
    _, _, metrics = evaluate_run(tmp_path / "run")
    assert metrics["test_accuracy"] == final["test_accuracy"]
    report = run.report_path.read_text(encoding="utf-8")
    for part in ["digits · mlp", "Confusion matrix", "data:image/png", "17,226", "1 × 128"]:
        assert part in report


@pytest.mark.slow
def test_mnist_reaches_96_percent(tmp_path, shared_data):
    run = Run("mnist", tmp_path, TaskOptions(data=shared_data), {"epochs": 8})
    run.train()
    assert run.finish()["test_accuracy"] >= 0.96
    assert "8,000" in run.report_path.read_text(encoding="utf-8")


@pytest.mark.nightly
def test_the_lstm_falls_below_2(tmp_path, shared_data):
    run = Run("text", tmp_path, TaskOptions(data=shared_data / "tinyshakespeare.txt"))
    run.train()
    final = run.finish()
    assert final["test_loss"] < 2.0
    assert final["test_bits"] == pytest.approx(final["test_loss"] / np.log(2))


@pytest.fixture(scope="module")
def rhyme(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "rhyme.txt"
    path.write_text("How much wood would a woodchuck chuck?\nA lot.\n" * 60, encoding="utf-8")
    return path


@pytest.mark.parametrize("model", ["lstm", "gpt"])
def test_language_models_learn_a_text(tmp_path, rhyme, model, monkeypatch):
    monkeypatch.setattr("needle.train.tasks.text.SAMPLE_CHARACTERS", 70)
    for name in ("WINDOW", "CONTEXT"):
        monkeypatch.setattr(f"needle.train.tasks.text.{name}", 16)  # compiled in less time
    changes = {"epochs": 4, "batch_size": 8}
    options = TaskOptions(data=rhyme, model=model)
    run = Run("text", tmp_path / "run", options, changes)
    run.train()
    final = run.finish()
    vocabulary = len(set(rhyme.read_text()))
    assert final["test_loss"] < 0.75 * np.log(vocabulary)
    _, task, metrics = evaluate_run(tmp_path / "run")
    assert metrics["test_loss"] == final["test_loss"]
    report = run.report_path.read_text(encoding="utf-8")
    assert "Bits per character" in report
    prompt, written = task.sample()
    assert prompt in rhyme.read_text()
    assert len(written) == 70
    assert task.sample() == (prompt, written)  # the seed decides


def test_a_text_that_has_changed_is_noticed(tmp_path, rhyme, monkeypatch):
    monkeypatch.setattr("needle.train.tasks.text.WINDOW", 8)
    text = tmp_path / "rhyme.txt"
    text.write_text(rhyme.read_text())
    changes = {"epochs": 1, "batch_size": 32}
    run = Run("text", tmp_path / "run", TaskOptions(data=text), changes)
    run.train()
    text.write_text(rhyme.read_text().replace("wood", "xylo"))
    with pytest.raises(CheckpointError, match="was trained with another vocabulary"):
        evaluate_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="was trained with another vocabulary"):
        Run.resume(tmp_path / "run")


def test_sampling_with_a_state_equals_reading_everything_again(rhyme):
    """The recurrent state stands for the text so far."""
    task = load_task("text", TaskOptions(data=rhyme))
    with_state = write_text(task.model, _text(rhyme), "A lot.\n", seed=3, characters=20)

    class Forgetful(type(task.model)):
        def forward(self, tokens, state=None):
            return super().forward(tokens)[0]

    task.model.__class__ = Forgetful
    assert write_text(task.model, _text(rhyme), "A lot.\n", seed=3, characters=20) == with_state


def _text(path):
    from needle.data import CharText

    return CharText(path)


@pytest.mark.parametrize(
    ("name", "model"),
    [("mnist", "lenet"), ("mnist", "mlp-resnet"), ("digits", "mlp-resnet")],
)
def test_other_models_train(tmp_path, name, model, request):
    data = None if name == "digits" else request.getfixturevalue("shared_data")
    run = Run(name, tmp_path, TaskOptions(data=data, model=model), {"epochs": 2})
    small = Subset(run.task.train_data, range(256))
    run.task.train_data, run.task.test_data = small, Subset(run.task.test_data, range(64))
    loader = type(run.trainer.train_loader)(small, batch_size=32, shuffle=True)
    run.trainer.train_loader = loader
    run.trainer.test_loader = type(loader)(run.task.test_data, batch_size=64)
    first, last = run.train().history
    assert last["train_loss"] < first["train_loss"]


def test_the_configuration_is_saved_and_read_back(tmp_path):
    run = Run("digits", tmp_path, TaskOptions(seed=5), {"epochs": 1, "lr": 0.01})
    run.train()
    state = load_checkpoint(run.checkpoint_path)
    config = RunConfig.from_json(json.loads(json.dumps(state["config"]["run"])))
    assert config == run.config
    assert (config.seed, config.recipe.lr, config.recipe.epochs) == (5, 0.01, 1)


def test_a_checkpoint_without_a_run_is_refused(tmp_path):
    save_checkpoint({"epoch": 1, "model": {}}, tmp_path / "checkpoints" / "last.json")
    for use in (evaluate_run, Run.resume):
        with pytest.raises(CheckpointError, match=r"last\.json: the configuration is not that of"):
            use(tmp_path)


def test_a_run_continues_with_its_own_options(tmp_path):
    changes = {"epochs": 1, "lr": 0.02, "batch_size": 100}
    options = TaskOptions(seed=3, model="mlp-resnet")
    Run("digits", tmp_path, options, changes, compile=False).train()
    run = Run.resume(tmp_path, epochs=2)
    assert run.config.recipe.lr == 0.02
    assert (run.config.model, run.config.seed) == ("mlp-resnet", 3)
    run.train()
    assert [r["epoch"] for r in read_metrics(run.metrics_path) if r["event"] == "epoch"] == [1, 2]
    with pytest.raises(CheckpointError, match="is a run of the task digits, not of mnist"):
        Run.resume(tmp_path, task="mnist")
    with pytest.raises(ArgumentError, match="already holds a run"):
        Run("digits", tmp_path)


@pytest.mark.parametrize("name", ["adagrad", "adam", "adamw", "rmsprop", "sgd"])
def test_every_optimizer_of_a_recipe(name):
    task = load_task("digits")
    optimizer = make_optimizer(Recipe(optimizer=name, lr=0.5, weight_decay=0.25), task.model)
    assert type(optimizer).__name__.lower() == name
    decay = {p.ndim: float(g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert decay == {2: 0.25, 1: 0.0}
    assert all(float(group["lr"]) == 0.5 for group in optimizer.param_groups)


@pytest.mark.parametrize("steps", [1, 2, 10, 200])
def test_the_cosine_schedule_rises_and_falls(steps):
    recipe = Recipe(lr=2.0, warmup=0.1)
    optimizer = make_optimizer(recipe, load_task("digits").model)
    scheduler = make_scheduler(recipe, optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step()
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(2.0)
    assert min(rates) > 0
    assert top == round(0.1 * steps) if steps > 1 else top == 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0, abs=1e-12)


def test_batches_come_in_few_sizes(tmp_path, rhyme):
    """Each size is compiled for."""
    options = {"epochs": 1, "batch_size": 5}
    trainer = Run("text", tmp_path / "text", TaskOptions(data=rhyme), options).trainer
    assert len(trainer.train_loader) == len(trainer.train_loader.dataset) // 5
    trainer = Run("digits", tmp_path / "digits").trainer
    assert [len(y) for _, y in trainer.test_loader] == [180, 180]
    few = Run("text", tmp_path / "few", TaskOptions(data=rhyme), {"batch_size": 10_000}).trainer
    assert len(few.train_loader) == 1


def test_a_constant_schedule_is_none():
    recipe = Recipe(schedule="constant")
    assert make_scheduler(recipe, make_optimizer(recipe, load_task("digits").model), 10) is None
