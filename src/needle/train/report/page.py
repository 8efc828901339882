"""The report page: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from needle.train.atomic import write_atomically
from needle.train.report.chart import Series, line_chart
from needle.train.report.confusion import confusion_html
from needle.train.report.data import LayerRow, Mistake, ReportData
from needle.train.report.png import png_data_uri
from needle.train.report.style import CSS

# What curves are drawn of which metrics, in this order, where the records have them.
CURVES = (
    ("loss", "Loss", "Mean loss per example or character; lower is better.", False),
    ("accuracy", "Accuracy", "Share of examples whose most probable class is the true one.", True),
    ("bits", "Bits per character", "Loss in bits: what a character costs to encode.", False),
)


LONG_TABLE = 40  # rows; longer tables get a scroll bar


def write_report(data: ReportData, path: str | os.PathLike[str]) -> Path:
    """Write a report as one self-contained HTML file, atomically.

    Args:
        data: What to show.
        path: The file to write.

    Returns:
        The path written.

    Example:
        >>> import tempfile
        >>> from needle.train.report import ReportData, write_report
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_report(ReportData("digits", {"test accuracy": "98 %"}),
        ...                         f"{folder}/report.html")
        ...     "98 %" in path.read_text(encoding="utf-8")
        True
    """
    return write_atomically(path, report_html(data))


def report_html(data: ReportData) -> str:
    """Return the report as HTML. Every text that comes from the run is escaped."""
    body = "\n".join(part for part in _parts(data) if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The page may show text a model wrote: no script runs in it, and it loads nothing.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; img-src data:\">\n"
        f"<title>{escape(data.title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _parts(data: ReportData) -> Iterator[str]:
    yield _header(data)
    yield _tiles(data.outcome)
    yield _notes(data.notes)
    yield _curves(data.records)
    if data.confusion is not None:
        about = "Rows are the true classes, columns what the model said; blue is right."
        yield _section("Confusion matrix", about, confusion_html(data.confusion, data.class_names))
    yield _mistakes(data)
    yield _sample(data.sample_prompt, data.sample)
    yield _layers(data.layers)
    run = _facts("Configuration", data.configuration) + _facts("Timing", data.timing)
    machine = _facts("Environment", data.environment)
    if run or machine:
        yield f'<div class="pair"><div>{run}</div><div>{machine}</div></div>'
    version = data.environment.get("needle", "")
    yield f"<footer>Written by needle {escape(version)}. This file is complete in itself.</footer>"


def _header(data: ReportData) -> str:
    finished = escape(str(data.timing.get("finished", "")))
    return (
        '<header><p class="kind">needle training report</p>'
        f'<h1>{escape(data.title)}</h1><p class="when">{finished}</p></header>'
    )


def _tiles(outcome: Mapping[str, str]) -> str:
    tiles = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>"
        for name, value in outcome.items()
    )
    return f'<dl class="tiles">{tiles}</dl>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    paragraphs = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f'<div class="note" role="note">{paragraphs}</div>'


def _curves(records: Sequence[Mapping[str, Any]]) -> str:
    epochs = [r for r in records if r.get("event") == "epoch"]
    steps = [r for r in records if r.get("event") == "step"]
    sections = []
    for key, title, about, percent in CURVES:
        series = [
            Series("train, by step", _points(steps, "position", f"train_{key}"), "detail"),
            Series("train", _points(epochs, "epoch", f"train_{key}"), "train"),
            Series("test", _points(epochs, "epoch", f"test_{key}"), "test"),
        ]
        drawn = [s for s in series if s.points]
        if any(s.role != "detail" for s in drawn):
            chart = line_chart(title, drawn, x_label="epoch", y_label="", percent=percent)
            sections.append(_section(title, about, chart + _values(epochs, key, percent)))
    return f'<div class="pair">{"".join(sections)}</div>' if sections else ""


def _points(
    records: Sequence[Mapping[str, Any]], x: str, y: str
) -> tuple[tuple[float, float], ...]:
    missing = float("nan")
    if not any(y in r for r in records):
        return ()
    return tuple((r.get(x) or 0, missing if r.get(y) is None else r[y]) for r in records)


def _values(epochs: Sequence[Mapping[str, Any]], key: str, percent: bool) -> str:
    """Return the values of a curve as a table, for those who cannot see or hover."""

    def show(value: float | None) -> str:
        if value is None:
            return "–"
        return f"{value:.2%}" if percent else f"{value:.4f}"

    rows = "".join(
        f'<tr><td class="number">{epoch.get("epoch")}</td>'
        f'<td class="number">{show(epoch.get(f"train_{key}"))}</td>'
        f'<td class="number">{show(epoch.get(f"test_{key}"))}</td></tr>'
        for epoch in epochs
    )
    return (
        '<details><summary>Values</summary><div class="scroll"><table class="rows"><thead><tr>'
        '<th class="number">epoch</th><th class="number">train</th><th class="number">test</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _mistakes(data: ReportData) -> str:
    if not data.mistakes:
        return ""
    figures = "".join(_mistake(mistake, data.class_names) for mistake in data.mistakes)
    wrong = len(data.mistakes)
    if data.confusion is not None:
        wrong = int(data.confusion.sum() - data.confusion.trace())
    about = (
        f"The {len(data.mistakes)} test examples with the highest loss, "
        f"of {wrong:,} wrong answers among {data.examples:,}. "
        "The percentages are the probabilities the model gave to its answer and to the true class."
    )
    return _section("Worst mistakes", about, f'<div class="mistakes">{figures}</div>')


def _mistake(mistake: Mistake, names: Sequence[str]) -> str:
    true, predicted = escape(names[mistake.true]), escape(names[mistake.predicted])
    image = ""
    if mistake.picture is not None:
        source = png_data_uri(mistake.picture)
        image = (
            f'<div class="frame"><img class="pixels" src="{source}" '
            f'alt="test example {mistake.index}, a {true}"></div>'
        )
    return (
        f'<figure>{image}<figcaption><span class="true">{true}</span> taken for '
        f'<span class="predicted">{predicted}</span><span class="small">'
        f"{predicted}: {mistake.probability:.1%}<br>{true}: {mistake.true_probability:.2%}<br>"
        f"example {mistake.index:,}</span></figcaption></figure>"
    )


def _sample(prompt: str, text: str) -> str:
    if not text:
        return ""
    about = "Text drawn from the model, one character at a time. The prompt is in colour."
    body = f'<span class="prompt">{escape(prompt)}</span>{escape(text)}'
    return _section("A sample", about, f'<pre class="sample">{body}</pre>')


def _layers(layers: Sequence[LayerRow]) -> str:
    if not layers:
        return ""
    total = sum(layer.parameters for layer in layers)
    flops = sum(layer.flops or 0 for layer in layers)
    memory = sum(layer.memory or 0 for layer in layers)
    head = (
        '<thead><tr><th>layer</th><th>type</th><th class="number">output shape</th>'
        '<th class="number">parameters</th><th>share</th><th class="number">FLOPs</th>'
        '<th class="number">activations</th></tr></thead>'
    )
    rows = "".join(_layer(layer, total) for layer in layers)
    foot = (
        f'<tfoot><tr><td>total</td><td></td><td></td><td class="number">{total:,}</td><td></td>'
        f'<td class="number">{quantity(flops)}</td><td class="number">{byte_size(memory)}</td>'
        "</tr></tfoot>"
    )
    about = "FLOPs and activation memory are those of a forward pass of one example."
    table = f'<table class="rows">{head}<tbody>{rows}</tbody>{foot}</table>'
    long = " long" if len(layers) > LONG_TABLE else ""
    return _section("Model", about, f'<div class="scroll{long}" tabindex="0">{table}</div>')


def _layer(layer: LayerRow, total: int) -> str:
    share = layer.parameters / total if total else 0.0
    bar = ""
    if layer.parameters:
        width = f"{100 * share:.1f}%"
        bar = f'<span class="bar" title="{share:.1%}"><span style="width:{width}"></span></span>'
    shape = " × ".join(map(str, layer.output_shape)) if layer.output_shape is not None else "–"
    flops = quantity(layer.flops) if layer.flops else "–"
    memory = byte_size(layer.memory) if layer.memory else "–"
    parameters = f"{layer.parameters:,}" if layer.parameters else "–"
    name = layer.name.rpartition(".")[2] or "(model)"
    return (
        f'<tr><td style="padding-left:{10 + 16 * layer.depth}px">'
        f'<code title="{escape(layer.name)}">{escape(name)}</code></td>'
        f"<td>{escape(layer.kind)}</td>"
        f'<td class="number">{shape}</td><td class="number">{parameters}</td>'
        f'<td class="share">{bar}</td><td class="number">{flops}</td>'
        f'<td class="number">{memory}</td></tr>'
    )


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    if not facts:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td>{escape(_show(value))}</td></tr>'
        for name, value in facts.items()
    )
    return _section(title, "", f'<table class="rows facts"><tbody>{rows}</tbody></table>')


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _section(title: str, about: str, content: str) -> str:
    intro = f'<p class="about">{escape(about)}</p>' if about else ""
    return f"<section><h2>{escape(title)}</h2>{intro}{content}</section>"


def quantity(count: float) -> str:
    """Format a count with a metric prefix: 1234567 gives `1.23 M`."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{unit}"
    return f"{count:g}"


def byte_size(count: float) -> str:
    """Format a number of bytes with a binary prefix: 2048 gives `2 KiB`."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:g} B"
