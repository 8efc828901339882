"""The confusion matrix: which classes are taken for which."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.train.report.png import png_data_uri

# Above this many classes the numbers no longer fit; the matrix becomes a picture.
MAX_TABLE_CLASSES = 20
LISTED_PAIRS = 12


def confusion_matrix(
    true: NDArray[Any], predicted: NDArray[Any], classes: int
) -> NDArray[np.int64]:
    """Count examples by true and predicted class.

    Args:
        true: Class indices, `[examples]`.
        predicted: Class indices, `[examples]`.
        classes: The number of classes.

    Returns:
        Counts, `[true class, predicted class]`.

    Example:
        >>> import numpy as np
        >>> from needle.train.report.confusion import confusion_matrix
        >>> confusion_matrix(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist()
        [[1, 0], [1, 1]]
    """
    pairs = true.astype(np.int64) * classes + predicted.astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def confusion_html(counts: NDArray[np.int64], names: Sequence[str]) -> str:
    """Draw a confusion matrix as a table, or as a picture when there are many classes.

    Args:
        counts: `[true class, predicted class]`.
        names: The names of the classes.
    """
    if len(names) <= MAX_TABLE_CLASSES:
        return _table(counts, names)
    return _picture(counts) + _pairs(counts, names)


def _table(counts: NDArray[np.int64], names: Sequence[str]) -> str:
    rows_total, columns_total = counts.sum(axis=1), counts.sum(axis=0)
    parts = [
        '<div class="scroll"><table class="confusion"><caption class="hidden">Confusion matrix: '
        "rows are true classes, columns predicted classes</caption><thead>"
        f'<tr><td></td><th class="side" colspan="{len(names)}">predicted</th><td></td></tr>'
        '<tr><th class="corner">true</th>'
    ]
    parts += [f'<th scope="col" title="{escape(n)}">{escape(n)}</th>' for n in names]
    parts.append('<th scope="col" class="total">recall</th></tr></thead><tbody>')
    for i, name in enumerate(names):
        parts.append(f'<tr><th scope="row">{escape(name)}</th>')
        for j, other in enumerate(names):
            parts.append(_cell(int(counts[i, j]), int(rows_total[i]), name, other, i == j))
        parts.append(f'<td class="total">{_ratio(counts[i, i], rows_total[i])}</td></tr>')
    parts.append('</tbody><tfoot><tr><th scope="row" class="total">precision</th>')
    for j in range(len(names)):
        parts.append(f'<td class="total">{_ratio(counts[j, j], columns_total[j])}</td>')
    overall = _ratio(np.trace(counts), counts.sum())
    return "".join(parts) + f'<td class="total"><b>{overall}</b></td></tr></tfoot></table></div>'


def _cell(count: int, row_total: int, true: str, predicted: str, right: bool) -> str:
    share = count / row_total if row_total else 0.0
    title = f"true {true}, predicted {predicted}: {count:,} of {row_total:,} ({share:.1%})"
    if right:
        kind, heat = "right", 0.12 + 0.78 * share
    else:
        # A square root: one mistake in a hundred has to be visible beside none.
        kind, heat = "wrong", 0.12 + 0.88 * share**0.5
    if not count:
        return f'<td class="zero" title="{escape(title)}">·</td>'
    strong = " strong" if heat > 0.55 else ""
    return (
        f'<td class="{kind}{strong}" style="--heat:{100 * heat:.0f}%" title="{escape(title)}">'
        f"{count}</td>"
    )


def _ratio(part: Any, whole: Any) -> str:
    return f"{int(part) / int(whole):.1%}" if whole else "–"


def _picture(counts: NDArray[np.int64]) -> str:
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    share = np.sqrt(counts / totals)
    wrong = share * (1 - np.eye(len(counts)))
    right = share * np.eye(len(counts))
    # White paper; blue where the model is right, red where it is wrong.
    paint = np.stack([right, 0.55 * right + 0.85 * wrong, wrong], axis=-1)
    pixels = (255 * (1 - np.clip(paint, 0, 1))).astype(np.uint8)
    return (
        f'<img class="heat pixels" src="{png_data_uri(pixels)}" alt="Confusion matrix of '
        f'{len(counts)} classes: rows are true classes, columns predicted ones">'
    )


def _pairs(counts: NDArray[np.int64], names: Sequence[str]) -> str:
    wrong = counts * (1 - np.eye(len(names), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:LISTED_PAIRS]
    rows = []
    for true, predicted in zip(*np.unravel_index(order, wrong.shape), strict=True):
        if wrong[true, predicted]:
            rows.append(
                f"<tr><td>{escape(names[true])}</td><td>{escape(names[predicted])}</td>"
                f'<td class="number">{wrong[true, predicted]}</td></tr>'
            )
    head = "<thead><tr><th>true</th><th>predicted</th>"
    head += '<th class="number">examples</th></tr></thead>'
    return f'<table class="rows">{head}<tbody>{"".join(rows)}</tbody></table>'
