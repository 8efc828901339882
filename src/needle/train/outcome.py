"""What came out of a training, gathered for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from needle import nn
from needle.data import DataLoader
from needle.train import environment
from needle.train.evaluation import Predictions, evaluate, predict, split_batch
from needle.train.metrics import Record
from needle.train.report import LayerRow, Mistake, ReportData, confusion_matrix
from needle.train.steps import EvaluationStep
from needle.train.tasks import Task

SHOWN_MISTAKES = 24


@dataclass(frozen=True)
class Outcome:
    """A trained model, measured.

    Attributes:
        metrics: Test metrics by name.
        examples: How many examples were tested.
        parameters: How many numbers the model learned.
        predictions: What a classifier says about each test example; None for other tasks.
        sample: A prompt and what a language model makes of it.
    """

    metrics: Mapping[str, float]
    examples: int
    parameters: int
    predictions: Predictions | None = None
    sample: tuple[str, str] = ("", "")


def describe_outcome(
    task: Task, batches: DataLoader[Any], step: EvaluationStep | None = None
) -> Outcome:
    """Measure the task's model on its test data.

    Args:
        task: The task, trained.
        batches: Its test data, in order.
        step: What runs on each batch; by default the model runs op by op.
    """
    meter = evaluate(task.model, task.loss, batches, task.kind, step=step)
    assert meter is not None
    return Outcome(
        meter.metrics("test_"),
        meter.examples,
        sum(parameter.size for parameter in task.model.parameters()),
        predict(task.model, batches, step) if task.kind == "classification" else None,
        task.sample() if task.sample is not None else ("", ""),
    )


def report_data(
    task: Task,
    config: Mapping[str, Any],
    outcome: Outcome,
    records: Sequence[Record],
    timing: Mapping[str, str],
) -> ReportData:
    """Return what the report of a run shows.

    Args:
        task: The task, trained.
        config: The run's configuration.
        outcome: The model, measured.
        records: The run's metrics.
        timing: Where the time went.
    """
    names, confusion, mistakes = tuple(task.class_names), None, []
    if outcome.predictions is not None:
        predictions = outcome.predictions
        classes = predictions.probabilities.shape[1]
        names = names if len(names) == classes else tuple(map(str, range(classes)))
        confusion = confusion_matrix(predictions.true, predictions.predicted, classes)
        mistakes = [
            _mistake(task, predictions, int(i)) for i in predictions.worst_mistakes(SHOWN_MISTAKES)
        ]
    prompt, sample = outcome.sample
    recipe = config["recipe"]
    configuration = {k: v for k, v in config.items() if k != "recipe"}
    configuration["model"] = task.model_name or config["model"]
    return ReportData(
        title=" · ".join(part for part in (task.name, task.model_name) if part),
        outcome=headline(task, outcome, records),
        records=records,
        class_names=names,
        confusion=confusion,
        mistakes=mistakes,
        examples=outcome.examples,
        layers=_layers(task),
        configuration={**configuration, **recipe},
        environment=environment.describe(),
        timing=timing,
        notes=task.notes,
        sample=sample,
        sample_prompt=prompt,
    )


def headline(task: Task, outcome: Outcome, records: Sequence[Record]) -> dict[str, str]:
    """Return the most important figures of a run, formatted, by name."""
    metrics = outcome.metrics
    epochs = [record for record in records if record.get("event") == "epoch"]
    figures: dict[str, str] = {}
    if "test_accuracy" in metrics:
        figures["test accuracy"] = f"{metrics['test_accuracy']:.2%}"
    if "test_bits" in metrics:
        figures["test bits/char"] = f"{metrics['test_bits']:.3f}"
        figures["test perplexity"] = f"{metrics['test_perplexity']:.3g}"
    figures["test loss"] = f"{metrics['test_loss']:.4f}"
    figures["parameters"] = f"{outcome.parameters:,}"
    figures["epochs"] = str(len(epochs))
    if epochs:
        seconds = epochs[-1]["seconds"]
        figures["training time"] = (
            f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
        )
        unit = "characters" if task.kind == "language" else "examples"
        figures[f"{unit}/s"] = f"{epochs[-1]['throughput']:,.0f}"
    return figures


def _mistake(task: Task, predictions: Predictions, index: int) -> Mistake:
    probabilities = predictions.probabilities[index]
    true, predicted = int(predictions.true[index]), int(predictions.predicted[index])
    picture = None if task.picture is None else task.picture(index)
    return Mistake(
        index, true, predicted, float(probabilities[predicted]), float(probabilities[true]), picture
    )


def _layers(task: Task) -> list[LayerRow]:
    """Return the model summary for one test example."""
    example = next(iter(DataLoader(task.test_data, batch_size=1)))
    inputs, _ = split_batch(example)
    try:
        rows = nn.summary(task.model, *inputs).layers
    except Exception:
        # The model of a user may do what cannot be done without values. A report that comes after
        # hours of training does not fail for that: it goes without shapes and FLOPs.
        return [
            LayerRow(
                path,
                type(module).__name__,
                None,
                sum(p.size for p in module.parameters(recurse=False)),
                depth=path.count(".") + 1 if path else 0,
            )
            for path, module in task.model.named_modules()
        ]
    return [
        LayerRow(
            row.path,
            row.kind,
            row.outputs[0].shape if row.outputs else None,
            row.parameters,
            row.flops,
            row.activation_bytes,
            row.depth,
        )
        for row in rows
    ]
