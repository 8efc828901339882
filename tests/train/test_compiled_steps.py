"""Compiled training does what eager training does, and the number of threads changes no bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compiled_models import LARGE, OPTIMIZERS, PROBLEMS, Problem, batches

import needle as ndl
from needle import nn, optim
from needle.backends.cpu.program import Program
from needle.compiler import pipeline
from needle.errors import AnomalyError, CompileError, TraceError
from needle.train import Callback, Trainer


def make_trainer(
    problem: Problem, optimizer: str, dtype: str, compiled: bool, steps: int, dropout: float = 0.0
) -> tuple[Trainer, list[Any]]:
    ndl.manual_seed(0)
    model = problem.make(dropout).to(dtype)
    update = OPTIMIZERS[optimizer](model.parameters())
    data = batches(problem.shape, steps, dtype)
    trainer = Trainer(
        model,
        nn.functional.cross_entropy,
        update,
        data,
        epochs=1,
        scheduler=optim.CosineAnnealingLR(update, T_max=steps),
        schedule_by="step",
        clip_norm=1.0,
        compile=compiled,
    )
    return trainer, data


def train(*arguments: Any, **options: Any) -> tuple[Trainer, list[float], list[Any]]:
    """Return the trainer, the loss of each step, and all tensors of model and optimizer."""
    trainer, data = make_trainer(*arguments, **options)
    losses = []
    for batch in data:
        losses.append(trainer.train_step(batch))
        trainer.scheduler.step()
    state = [*trainer.model.parameters(), *trainer.model.buffers()]
    for parameter in trainer.model.parameters():
        state += trainer.optimizer.state.get(parameter, {}).values()
    return trainer, losses, [tensor.numpy().copy() for tensor in state]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_dropout_draws_the_eager_masks(problem, dtype, tolerance):
    _, eager, _ = train(PROBLEMS[problem], "momentum", dtype, False, 30, dropout=0.25)
    after = ndl.random.default_generator().state.tolist()
    _, compiled, _ = train(PROBLEMS[problem], "momentum", dtype, True, 30, dropout=0.25)
    assert ndl.random.default_generator().state.tolist() == after
    np.testing.assert_allclose(compiled, eager, rtol=tolerance, atol=0)


@pytest.mark.parametrize("shape", [(7,), (33, 100), (5, 3, 16, 16)])
def test_dropout_masks_are_equal(shape):
    layer = nn.Dropout(0.4)
    compiled = ndl.compile(layer)
    x = ndl.asarray(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    for seed in (0, 1):
        ndl.manual_seed(seed)
        expected = [layer(x).numpy() for _ in range(3)]
        ndl.manual_seed(seed)
        for y in expected:
            np.testing.assert_array_equal(compiled(x).numpy(), y)


@pytest.fixture
def threads():
    before = ndl.get_num_threads()
    yield ndl.set_num_threads
    ndl.set_num_threads(before)


@pytest.mark.parametrize("problem", LARGE)
def test_threads_change_no_bit(problem, threads, monkeypatch):
    monkeypatch.setattr("needle.backends.cpu.cache.get", lambda key: None)  # to see the kernels
    results = []
    for count in (1, 2, 4):
        threads(count)
        trainer, losses, state = train(LARGE[problem], "adamw", "float32", True, 10)
        (program,) = programs_of(trainer)
        # Else the test would show nothing.
        assert max(kernel.tasks for kernel in program.kernels) == count
        results.append((losses, state))
    for losses, state in results[1:]:
        assert losses == results[0][0]
        for one, other in zip(state, results[0][1], strict=True):
            assert one.tobytes() == other.tobytes()


def programs_of(trainer: Trainer) -> list[Any]:
    """Return the programs of the training step, made again: executables keep their code only."""
    found = []
    for s in trainer.training_step._compiled.specializations:
        source = s.executable.source
        found.append(Program(pipeline.run(source.graph), source.threads, source.target))
    return found


@pytest.mark.parametrize("problem", LARGE)
def test_the_answer_for_an_example_does_not_depend_on_its_batch(problem):
    ndl.manual_seed(0)
    model = LARGE[problem].make(0.1)
    predict = ndl.compile(model)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, *LARGE[problem].shape[1:])).astype(np.float32)
    with ndl.no_grad():
        for _ in range(3):  # running statistics that are no round numbers
            model(ndl.asarray(inputs[rng.permutation(64)[:48]]))
        model.eval()
        whole = predict(ndl.asarray(inputs)).numpy()
        for size in (1, 3, 17):
            for start in range(0, 64 - size, size):
                part = predict(ndl.asarray(inputs[start : start + size])).numpy()
                np.testing.assert_array_equal(part, whole[start : start + size])
    assert len({row.tobytes() for row in whole}) == 64


class Watcher(Callback):
    """Writes down what was compiled."""

    def __init__(self) -> None:
        self.compilations: list[tuple[str, int]] = []

    def on_compile(self, trainer, compilation):
        assert compilation.seconds > 0
        self.compilations.append((compilation.what, compilation.batch))


def fit(model, data=None, test=None, **options):
    """Train a model of 48 inputs on batches of 16, and a last one of 5."""
    data = data or [*batches((16, 48), 3), *batches((5, 48), 1)]
    trainer = Trainer(
        model,
        nn.functional.cross_entropy,
        optim.SGD(model.parameters(), lr=0.1),
        data,
        test,
        epochs=2,
        **options,
    )
    trainer.fit()
    return trainer


def test_steps_are_compiled_once_for_each_size():
    watcher = Watcher()
    trainer = fit(PROBLEMS["mlp"].make(0.0), test=batches((16, 48), 2), callbacks=[watcher])
    sizes = [("training step", 16), ("training step", 5), ("evaluation step", 16)]
    assert watcher.compilations == sizes
    assert trainer.compile_seconds > 0
    assert fit(PROBLEMS["mlp"].make(0.0), compile=False).compile_seconds == 0


def test_gradients_are_kept_on_request():
    class Norm(Callback):
        norms: tuple[float, ...] = ()

        def on_step(self, trainer):
            norms = [p.grad.square().sum().item() for p in trainer.model.parameters()]
            self.norms = (*self.norms, *norms)

    found = {}
    for compiled in (False, True):
        ndl.manual_seed(0)
        found[compiled] = Norm()
        fit(mlp(), compile=compiled, keep_grads=True, callbacks=[found[compiled]])
    np.testing.assert_allclose(found[True].norms, found[False].norms, rtol=1e-5)
    with pytest.raises(TraceError, match="keep_grads=True"):
        fit(mlp(), callbacks=[Norm()])


def mlp() -> nn.Module:
    return PROBLEMS["mlp"].make(0.0)


def test_hooks_run_in_the_compiled_step():
    """Their Python runs while the step is traced; what they do to tensors, in each step."""
    results = []
    for compiled in (False, True):
        ndl.manual_seed(0)
        model = mlp()
        model.register_forward_hook(lambda module, inputs, outputs: outputs * 2)
        results.append(fit(model, compile=compiled).history[-1]["train_loss"])
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert results[1] != pytest.approx(fit(mlp()).history[-1]["train_loss"], rel=1e-3)


class Peeking(nn.Module):
    """Does what cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(48, 10)

    def forward(self, x):
        y = self.linear(x)
        return y if y.sum() > 0 else -y


def test_a_branch_on_values_is_an_error_with_its_layer_and_line():
    model = nn.Sequential(nn.Identity(), Peeking())
    with pytest.raises(TraceError) as caught:
        fit(model)
    message = str(caught.value)
    assert message.startswith("model.1: ")
    for part in ["test_compiled_steps.py:", "ndl.where", "Trainer(..., compile=False)", "--eager"]:
        assert part in message
    fit(model, compile=False)


def test_an_op_without_code_is_an_error_with_its_layer(monkeypatch):
    def refuse(group, *arguments):
        raise CompileError(f"{group.anchor.op.name} in layer {group.anchor.scope}: no code")

    monkeypatch.setattr("needle.backends.cpu.program.plan_anchor", refuse)
    model = nn.Sequential(nn.Identity(), nn.Linear(48, 10), nn.Softplus(beta=1.25))
    with pytest.raises(CompileError, match=r"matmul in layer 1: .*Trainer\(\.\.\., compile=False"):
        fit(model)


def test_batches_of_many_sizes_are_an_error_with_ways_out():
    sizes = [batches((n, 48), 1)[0] for n in range(1, 12)]
    with pytest.raises(TraceError, match=r"(?s)shape of the argument.*Pad it.*--eager"):
        fit(mlp(), sizes)
    fit(mlp(), sizes, compile=False)


def test_a_loss_that_is_not_finite_names_the_step():
    data = batches((16, 48), 4)
    data[2] = (data[2][0] * float("inf"), data[2][1])
    with pytest.raises(AnomalyError, match=r"epoch 1, step 3: the loss is nan.*compile=False"):
        fit(mlp(), data)
    with ndl.detect_anomaly(), pytest.raises(TraceError, match=r"without compile.*--eager"):
        fit(mlp())


def test_gradients_accumulate_over_parts_of_a_batch():
    """A step of one's own: two parts, one update."""
    results = []
    for compiled in (False, True):
        ndl.manual_seed(0)
        model = mlp()
        update = OPTIMIZERS["adam"](model.parameters())

        def step(x, y, model=model, update=update):
            update.zero_grad()
            for i in (0, 8):
                loss = nn.functional.cross_entropy(model(x[i : i + 8]), y[i : i + 8])
                (loss / 2).backward()
            update.step()
            return loss.detach()

        run = ndl.compile(step) if compiled else step
        results.append([run(x, y).item() for x, y in batches((16, 48), 20)])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)
