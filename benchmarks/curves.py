"""``python -m benchmarks.curves TASK --data DIR``: a task trained by needle and by PyTorch.

Both start from the same weights and see the same batches, in the same order, with the same learning
rates. What is left to differ is rounding; as training amplifies it, the curves do not lie on each
other, but they have to end in the same place.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F

from benchmarks import report
from benchmarks.harness import ROOT
from benchmarks.torch_gpt import GPT
from benchmarks.torch_networks import resnet20
from needle.train import Callback, Run, TaskOptions
from needle.train.report.chart import Series, line_chart
from needle.train.report.style import CSS

RESULTS = ROOT / "benchmarks" / "curves.json"
PAGE = ROOT / "docs" / "TRAINING.md"

Record = dict[str, Any]

#: What is trained: the model of the task, and for how many epochs.
TASKS: dict[str, tuple[str, int]] = {"cifar10": ("resnet20", 4), "text": ("gpt", 8)}


class _Progress(Callback):
    """Prints a line after each epoch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_epoch(self, trainer: Any, record: Record) -> None:
        show(self.name, record)


def show(name: str, record: Record) -> None:
    """Print what an epoch came to."""
    numbers = (f"{k} {v:.4g}" for k, v in record.items() if isinstance(v, float))
    Console(stderr=True).print(f"{name}, epoch {record['epoch']}: {', '.join(numbers)}")


def make_run(task: str, data: Path, folder: str, epochs: int, precision: str = "float32") -> Run:
    """Return needle's run, not yet started."""
    options = TaskOptions(data=data, model=TASKS[task][0])
    return Run(
        task, folder, options, {"epochs": epochs}, [_Progress(precision)], precision=precision
    )


def train_needle(task: str, data: Path, epochs: int, precision: str) -> list[Record]:
    """Train with needle; return the records of its epochs."""
    with tempfile.TemporaryDirectory() as folder:
        result = make_run(task, data, folder, epochs, precision).train()
    return [dict(record) for record in result.history]


def torch_model(task: str, model: Any) -> Any:
    """Return PyTorch's form of a model of needle's, with the same weights."""
    if task == "cifar10":
        twin: Any = resnet20(10)
    else:
        c = model.config
        twin = GPT(c.vocabulary, c.context, c.layers, c.heads, c.width, c.dropout)
    # Linear layers hold their weights the other way round.
    turned = {id(m.weight) for m in twin.modules() if isinstance(m, torch.nn.Linear)}
    with torch.no_grad():
        for own, other in zip(twin.parameters(), model.parameters(), strict=True):
            values = other.numpy()
            values = values.T if id(own) in turned else values
            own.copy_(torch.from_numpy(np.array(values)))
    return twin


def check_twin(task: str, run: Run, twin: Any) -> None:
    """Raise unless both models say the same of a batch before they are trained."""
    x, _ = next(iter(run.trainer.test_loader))
    own = run.task.model.eval()(x).numpy()
    other = twin.eval()(torch.from_numpy(x.numpy())).detach().numpy()
    run.task.model.train()
    np.testing.assert_allclose(own.reshape(other.shape), other, rtol=1e-3, atol=1e-3)


def train_torch(task: str, data: Path, epochs: int) -> list[Record]:
    """Train with PyTorch, on needle's batches and by needle's learning rates."""
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(task, data, folder, epochs)
        twin = torch_model(task, run.task.model)
        check_twin(task, run, twin)
        trainer, recipe = run.trainer, run.config.recipe
        groups = [
            {"params": [p for p in twin.parameters() if p.ndim > 1]},
            {"params": [p for p in twin.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        kinds: dict[str, Callable[..., Any]] = {
            "sgd": lambda *a, **k: torch.optim.SGD(*a, momentum=0.9, nesterov=True, **k),
            "adamw": torch.optim.AdamW,
        }
        optimizer = kinds[recipe.optimizer](groups, lr=1.0, weight_decay=recipe.weight_decay)
        records, began = [], time.perf_counter()
        for epoch in range(1, epochs + 1):
            twin.train()
            total, seen = 0.0, 0
            for x, y in trainer.train_loader:
                for group in optimizer.param_groups:
                    group["lr"] = float(trainer.optimizer.param_groups[0]["lr"])
                optimizer.zero_grad()
                loss = F.cross_entropy(twin(_given(x)), _given(y).flatten())
                loss.backward()
                if recipe.clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(twin.parameters(), recipe.clip_norm)
                optimizer.step()
                assert trainer.scheduler is not None
                trainer.scheduler.step()
                total += float(loss.detach()) * len(x)
                seen += len(x)
            record = {"epoch": epoch, "train_loss": total / seen, **evaluate(task, twin, trainer)}
            record["seconds"] = time.perf_counter() - began
            show("PyTorch", record)
            records.append(record)
    return records


def evaluate(task: str, twin: Any, trainer: Any) -> Record:
    """Return loss and, for a classifier, accuracy on the test data."""
    twin.eval()
    total, right, count = 0.0, 0, 0
    with torch.inference_mode():
        for x, y in trainer.test_loader:
            logits, labels = twin(_given(x)), _given(y).flatten()
            total += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
    metrics = {"test_loss": total / count}
    return {**metrics, "test_accuracy": right / count} if task == "cifar10" else metrics


def _given(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x.numpy()))


def picture(task: str, lines: dict[str, list[Record]]) -> str:
    """Return the curves as an SVG that stands for itself."""
    key = "test_accuracy" if task == "cifar10" else "test_loss"
    roles = ("train", "test", "detail")
    series = [
        Series(name, [(r["epoch"], r[key]) for r in records], role)  # type: ignore[arg-type]
        for role, (name, records) in zip(roles, lines.items(), strict=False)
    ]
    label = "accuracy" if task == "cifar10" else "nats per character"
    svg = line_chart(
        f"{task}: {label} on test data",
        series,
        x_label="epoch",
        y_label=label,
        percent=task == "cifar10",
    )
    return svg.replace(">", f"><style>{CSS}</style>", 1)


def page(results: dict[str, Any]) -> str:
    """Return docs/TRAINING.md."""
    parts = [
        "# Training, beside PyTorch\n",
        "Written by `python -m benchmarks.curves`. needle and PyTorch start from the same weights "
        "and see the same batches in the same order, with the same learning rates; what differs "
        "is rounding, and the draws of dropout. How long steps take is in BENCHMARKS.md: the "
        "machine may have done other work while it trained.\n",
    ]
    for task, result in results.items():
        model, lines = TASKS[task][0], result["lines"]
        parts.append(f"## {task}: {model}\n\n{result['conditions']}\n")
        parts.append(f"![curves of {model} on {task}](training-{task}.svg)\n")
        keys = [k for k in ("train_loss", "test_loss", "test_accuracy") if k in _last(lines)]
        head = ["", *(k.replace("_", " ") for k in keys)]
        parts.append(f"| {' | '.join(head)} |\n|---{'|---:' * (len(head) - 1)}|")
        for name, records in lines.items():
            last = records[-1]
            cells = [f"{last[k]:.3f}" for k in keys]
            length = f"{len(records)} epoch{'s' if len(records) > 1 else ''}"
            parts.append(f"| {name}, {length} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def _last(lines: dict[str, list[Record]]) -> Record:
    return next(iter(lines.values()))[-1]


def write(results: dict[str, Any]) -> None:
    """Write the results, the page and its pictures."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    for task, result in results.items():
        path = PAGE.parent / f"training-{task}.svg"
        path.write_text(picture(task, result["lines"]) + "\n", encoding="utf-8")


def keep(task: str, line: str, records: list[Record]) -> None:
    """Write a line as soon as it is trained, beside those that were before, if as long."""
    from benchmarks.__main__ import conditions

    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    before = results[task]["lines"] if task in results else {}
    lines = {n: r for n, r in before.items() if len(r) == len(records)} | {line: records}
    facts = report.conditions_as_text(conditions(torch.get_num_threads()))
    results[task] = {"conditions": facts, "lines": lines}
    write(results)


def main() -> None:
    """Parse the command line, train, and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.curves", description=__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--lines", nargs="+", default=["float32", "bfloat16", "PyTorch"])
    options = parser.parse_args()
    epochs = options.epochs or TASKS[options.task][1]
    for line in options.lines:
        if line == "PyTorch":
            keep(options.task, line, train_torch(options.task, options.data, epochs))
        else:
            name = f"needle, {line}"
            keep(options.task, name, train_needle(options.task, options.data, epochs, line))
    sys.stderr.write(f"written: {PAGE}\n")


if __name__ == "__main__":
    main()
