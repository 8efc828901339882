"""The training loop: what is resumed equals what was never interrupted, bit for bit."""

import math
import signal

import numpy as np
import pytest

import needle as ndl
from needle import nn, optim
from needle.data import DataLoader, TensorDataset
from needle.errors import AnomalyError, ArgumentError, CheckpointError, DataError
from needle.train import Callback, Meter, Trainer, evaluate, load_checkpoint, predict, read_metrics

TIMING = {"seconds", "throughput"}


def blobs(count, seed=0):
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, count)
    x = random.normal(size=(count, 4)).astype(np.float32) + 2 * np.eye(3, 4, dtype=np.float32)[y]
    return TensorDataset(x, y)


class StopAt(Callback):
    """Sends a signal after some step, or within some evaluation."""

    def __init__(self, step=None, evaluation=None, number=signal.SIGINT):
        self.step, self.evaluation, self.number = step, evaluation, number

    def on_step(self, trainer):
        if trainer.step == self.step:
            signal.raise_signal(self.number)

    def on_evaluation(self, trainer, done):
        if trainer.epoch + 1 == self.evaluation and done == 1:
            signal.raise_signal(self.number)


@pytest.fixture(autouse=True, params=[False, True], ids=["eager", "compiled"], scope="module")
def mode(request):
    """Everything holds for steps that run op by op, and for compiled ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEFAULTS, "compile", request.param)
        yield request.param


DEFAULTS = {"epochs": 3, "log_every": 2}


def make_trainer(folder=None, callbacks=(), seed=3, test=True, **options):
    ndl.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    options = {**DEFAULTS, **options}
    return Trainer(
        model,
        nn.functional.cross_entropy,
        optimizer,
        DataLoader(blobs(40), batch_size=8, shuffle=True),
        DataLoader(blobs(20, seed=1), batch_size=8) if test else None,
        scheduler=optim.StepLR(optimizer, 2, gamma=0.5),
        folder=folder,
        callbacks=callbacks,
        **options,
    )


def flatten(state, path=()):
    if isinstance(state, dict):
        for key, value in state.items():
            yield from flatten(value, (*path, key))
    elif isinstance(state, (list, tuple)):
        for key, value in enumerate(state):
            yield from flatten(value, (*path, key))
    elif not TIMING & set(path):
        if isinstance(state, ndl.Tensor):
            array = state.detach().numpy()
            state = (array.dtype, array.shape, array.tobytes())
        yield path, state


def metrics_of(trainer):
    return list(flatten(read_metrics(trainer.metrics_path)))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, mode):
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    result = trainer.fit()
    assert result.interrupted is None
    assert len(result.history) == 3
    return trainer


@pytest.mark.parametrize("step", [1, 4, 5, 6, 10, 14, 15])
def test_resumed_equals_uninterrupted(tmp_path, uninterrupted, step):
    stopped = make_trainer(tmp_path, [StopAt(step=step)])
    assert stopped.fit().interrupted is signal.SIGINT
    assert stopped.step == step
    resumed = make_trainer(tmp_path, seed=99)
    resumed.resume()
    assert resumed.step == step
    assert resumed.fit().interrupted is None
    assert dict(flatten(resumed.state_dict())) == dict(flatten(uninterrupted.state_dict()))
    assert metrics_of(resumed) == metrics_of(uninterrupted)


def test_resumed_after_an_interrupted_evaluation(tmp_path, uninterrupted):
    stopped = make_trainer(tmp_path, [StopAt(evaluation=2, number=signal.SIGTERM)])
    assert stopped.fit().interrupted is signal.SIGTERM
    assert (stopped.epoch, stopped.step) == (1, 10)
    resumed = make_trainer(tmp_path, seed=99)
    resumed.resume()
    resumed.fit()
    assert dict(flatten(resumed.state_dict())) == dict(flatten(uninterrupted.state_dict()))
    assert metrics_of(resumed) == metrics_of(uninterrupted)


def test_resumed_from_an_older_checkpoint_forgets_later_records(tmp_path, uninterrupted):
    """A killed process has written metrics that its last checkpoint does not know of."""

    class Die(Callback):
        def on_step(self, trainer):
            if trainer.step == 13:
                raise SystemExit

    with pytest.raises(SystemExit):
        make_trainer(tmp_path, [Die()], save_every=4).fit()
    resumed = make_trainer(tmp_path, seed=99)
    resumed.resume()
    assert resumed.step == 12
    resumed.fit()
    assert metrics_of(resumed) == metrics_of(uninterrupted)
    assert dict(flatten(resumed.state_dict())) == dict(flatten(uninterrupted.state_dict()))


def test_two_interruptions(tmp_path, uninterrupted):
    make_trainer(tmp_path, [StopAt(step=3)]).fit()
    for callbacks in ([StopAt(step=8)], []):
        trainer = make_trainer(tmp_path, callbacks, seed=42)
        trainer.resume()
        trainer.fit()
    assert dict(flatten(trainer.state_dict())) == dict(flatten(uninterrupted.state_dict()))


def test_evaluation_does_not_change_the_training(uninterrupted):
    trainer = make_trainer(test=False)
    trainer.fit()
    left = dict(flatten(trainer.model.state_dict()))
    assert left == dict(flatten(uninterrupted.model.state_dict()))


def test_signal_handlers_are_restored(tmp_path):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    make_trainer(tmp_path, [StopAt(step=1)]).fit()
    make_trainer(epochs=1).fit()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_interrupt_stops_at_once():
    class Twice(Callback):
        def on_step(self, trainer):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(callbacks=[Twice()]).fit()


def test_records_add_up(uninterrupted):
    records = read_metrics(uninterrupted.metrics_path)
    epochs = [r for r in records if r["event"] == "epoch"]
    steps = [r for r in records if r["event"] == "step"]
    assert [r["epoch"] for r in epochs] == [1, 2, 3]
    assert [r["step"] for r in steps] == list(range(2, 16, 2))
    assert epochs == uninterrupted.history
    step = uninterrupted.evaluation_step
    last = evaluate(uninterrupted.model, uninterrupted.loss, uninterrupted.test_loader, step=step)
    assert last.metrics("test_") == {k: epochs[-1][k] for k in ("test_loss", "test_accuracy")}
    assert epochs[-1]["test_accuracy"] > 0.6


def test_best_is_the_epoch_with_the_highest_test_accuracy(uninterrupted):
    best = load_checkpoint(uninterrupted.folder / "checkpoints" / "best.json")
    accuracies = [r["test_accuracy"] for r in uninterrupted.history]
    assert best["epoch"] == 1 + accuracies.index(max(accuracies))


def test_the_training_mode_is_kept_by_evaluation():
    trainer = make_trainer()
    trainer.model.train()
    trainer.model[1].eval()
    state = ndl.random.default_generator().state.numpy().copy()
    buffers = dict(flatten(trainer.model.state_dict()))
    evaluate(trainer.model, trainer.loss, trainer.test_loader)
    assert [m.training for m in trainer.model] == [True, False, True, True, True]
    np.testing.assert_array_equal(ndl.random.default_generator().state.numpy(), state)
    assert dict(flatten(trainer.model.state_dict())) == buffers


def test_predictions(uninterrupted):
    step = uninterrupted.evaluation_step
    found = predict(uninterrupted.model, uninterrupted.test_loader, step)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-12)
    accuracy = np.mean(found.predicted == found.true)
    assert accuracy == uninterrupted.history[-1]["test_accuracy"]
    worst = found.worst_mistakes(100)
    assert len(worst) == np.sum(found.predicted != found.true)
    losses = -np.log(found.probabilities[worst, found.true[worst]])
    assert (np.diff(losses) <= 0).all()


def test_gradients_are_clipped():
    trainer = make_trainer(clip_norm=1e-3, epochs=1, keep_grads=True)
    trainer.fit()
    squares = [np.square(p.grad.numpy()).sum() for p in trainer.model.parameters()]
    assert 0 < math.sqrt(sum(squares)) <= 1e-3 * 1.001


def test_schedule_by_step():
    trainer = make_trainer(schedule_by="step", epochs=1)
    trainer.fit()
    assert trainer.learning_rate == pytest.approx(0.01 * 0.5**2)


def test_a_loss_that_is_not_finite_stops(tmp_path):
    class Poison(Callback):
        def on_step(self, trainer):
            if trainer.step == 7:
                with ndl.no_grad():
                    trainer.model[4].weight *= float("nan")

    trainer = make_trainer(tmp_path, [Poison()])
    with pytest.raises(AnomalyError) as caught:
        trainer.fit()
    message = str(caught.value)
    for part in ["epoch 2, step 8", "nan", "learning rate", "set_detect_anomaly", "last.json"]:
        assert part in message
    saved = load_checkpoint(tmp_path / "checkpoints" / "last.json")
    assert saved["epoch"] == 1
    assert all(np.isfinite(v.numpy()).all() for v in saved["model"].values())


def regression(targets, **options):
    model = nn.Linear(4, 1)
    data = TensorDataset(np.ones((len(targets), 4), np.float32), np.asarray(targets, np.float32))
    return Trainer(
        model,
        lambda outputs, y: ((outputs - y) ** 2).mean(),
        optim.SGD(model.parameters(), lr=0.1),
        DataLoader(data, batch_size=2),
        kind="regression",
        epochs=2,
        compile=DEFAULTS["compile"],
        **options,
    )


def test_regression_has_no_accuracy():
    result = regression(np.zeros((4, 1))).fit()
    assert "train_accuracy" not in result.history[-1]
    assert result.history[1]["train_loss"] < result.history[0]["train_loss"]


def test_nan_labels_are_named():
    with pytest.raises(DataError, match=r"epoch 1, step 2: 1 of 2 targets.*NaN"):
        regression([[0.0], [1.0], [math.nan], [1.0]]).fit()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs must be greater than 0"),
        ({"log_every": 0}, "log_every"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"clip_norm": math.nan}, "clip_norm"),
        ({"schedule_by": "day"}, "schedule_by"),
        ({"kind": "guessing"}, "'classification', 'language', 'regression'"),
    ],
)
def test_senseless_arguments(options, words):
    with pytest.raises(ArgumentError, match=words):
        make_trainer(**options)


def test_empty_data_is_refused():
    model = nn.Linear(4, 3)
    empty = DataLoader(TensorDataset(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)))
    with pytest.raises(DataError, match="train_loader has no batches"):
        Trainer(model, lambda a, b: a, optim.SGD(model.parameters(), lr=1.0), empty, epochs=1)
    with pytest.raises(DataError, match="empty"):
        evaluate(model, nn.functional.cross_entropy, empty)
    with pytest.raises(DataError, match="empty"):
        predict(model, empty)


@pytest.mark.parametrize("batch", [3, (1,), None])
def test_batches_without_targets_are_refused(batch):
    with pytest.raises(DataError, match=r"\(inputs, targets\)"):
        make_trainer().train_step(batch)


def test_outputs_that_are_no_logits_are_refused():
    with pytest.raises(ndl.errors.ShapeError, match=r"accuracy: .*\(4, 3, 2\)"):
        Meter("classification").update(
            0.0, ndl.zeros((4, 3, 2)), ndl.asarray(np.zeros(4, np.int64))
        )


def test_language_metrics_are_those_of_the_loss():
    meter = Meter("language")
    meter.update(1.0, None, ndl.zeros((2, 5), dtype=ndl.int64))
    meter.update(2.0, None, ndl.zeros((1, 5), dtype=ndl.int64))
    metrics = meter.metrics()
    assert meter.examples == 15
    assert metrics["loss"] == pytest.approx(4 / 3)
    assert metrics["bits"] == pytest.approx(4 / 3 / math.log(2))
    assert metrics["perplexity"] == pytest.approx(math.exp(4 / 3))
    meter.update(1e6, None, ndl.zeros((1, 5), dtype=ndl.int64))
    assert meter.metrics()["perplexity"] == math.inf


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    make_trainer(tmp_path, epochs=1).fit()
    other = regression([[0.0]])
    with pytest.raises(CheckpointError, match=r"last\.json: does not fit this training"):
        other.resume(tmp_path / "checkpoints" / "last.json")
    with pytest.raises(CheckpointError, match=r"none\.json: there is no such checkpoint"):
        other.resume(tmp_path / "none.json")
    with pytest.raises(ArgumentError, match="no folder"):
        other.resume()


def test_a_loader_without_state_resumes_only_between_epochs(tmp_path):
    class Plain:
        """Any iterable with a length is a loader."""

        def __init__(self):
            self.batches = list(DataLoader(blobs(24), batch_size=8))

        def __iter__(self):
            return iter(self.batches)

        def __len__(self):
            return len(self.batches)

    def make(callbacks=()):
        trainer = make_trainer(tmp_path, callbacks)
        trainer.train_loader = Plain()
        return trainer

    make([StopAt(step=3)]).fit()
    with pytest.raises(CheckpointError, match="the data loader cannot continue there"):
        make().resume()
    make().fit()
    trainer = make()
    trainer.resume()
    assert trainer.epoch == 3
