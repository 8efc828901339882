"""Line charts as inline SVG: axes, ticks, legend, end labels, and the values on hover.

Colours come from the page's style sheet through CSS classes (`series-train`, `series-test`), so one
drawing serves light and dark pages. Every line is also told apart by its marker and dash.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 46, 58, 32, 42
MAX_MARKERS = 80
LABEL_GAP = 14  # between end labels, in the units of the drawing

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        points: `(x, y)` in the order of x. Points that are not finite interrupt the line.
        role: Which style: `"train"`, `"test"`, or `"detail"`, a faint line without markers.
    """

    label: str
    points: Sequence[Point]
    role: Literal["train", "test", "detail"]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    percent: bool = False,
) -> str:
    """Draw a line chart.

    Args:
        title: What the chart shows, for screen readers.
        series: The lines; those without a finite point are left out.
        x_label: What the horizontal axis counts.
        y_label: What the vertical axis measures, with its unit.
        percent: y is a fraction to be shown in percent. Otherwise the vertical axis is
            logarithmic when the values span a factor of 30 or more and are positive.

    Returns:
        An `<svg>` element.

    Example:
        >>> from needle.train.report.chart import Series, line_chart
        >>> svg = line_chart("Loss", [Series("train", [(1, 2.0), (2, 1.0)], "train")],
        ...                  x_label="epoch", y_label="loss")
        >>> svg[:4]
        '<svg'
    """
    drawn = [s for s in series if any(_is_finite(p) for p in s.points)]
    points = [p for s in drawn for p in s.points if _is_finite(p)]
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
    ]
    if not points:
        parts.append(_text(WIDTH / 2, HEIGHT / 2, "no data yet", "middle") + "</svg>")
        return "".join(parts)
    x_axis = _x_axis([x for x, _ in points])
    y_axis = _y_axis([y for _, y in points], percent)
    parts += [_grid(x_axis, y_axis), _axis_titles(x_label, y_label), _legend(drawn)]
    for item in drawn:
        parts.append(_line(item, x_axis, y_axis))
    for item in drawn:
        if item.role != "detail":
            parts.append(_markers(item, x_axis, y_axis, x_label))
    parts += [_end_labels(drawn, x_axis, y_axis), "</svg>"]
    return "".join(parts)


@dataclass(frozen=True)
class Axis:
    """The mapping from data to drawing along one direction.

    Attributes:
        low, high: The range of the data.
        start, end: Where `low` and `high` lie in the drawing.
        ticks: The marked values.
        label: Formats a tick.
        value: Formats a value of the data, more precisely than a tick.
        log: Distances are those of the logarithms.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    label: Callable[[float], str]
    value: Callable[[float], str]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return where `value` lies in the drawing."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) that cover `[low, high]`.

    Example:
        >>> from needle.train.report.chart import nice_ticks
        >>> nice_ticks(0, 9)
        (0.0, 2.0, 4.0, 6.0, 8.0, 10.0)
    """
    if high == low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next((m * power for m in (1, 2, 5) if m * power >= rough * 0.999), 10 * power)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(float(f"{i * step:.10g}") for i in range(first, last + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return 1, 2 and 5 times powers of ten (fewer over many decades) that cover `[low, high]`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    mantissas = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in mantissas]
    below = [t for t in ticks if t <= low * 1.0001]
    above = [t for t in ticks if t >= high * 0.9999]
    return tuple(t for t in ticks if below[-1] <= t <= above[0])


def short_number(value: float) -> str:
    """Format a number for a tick or a label: about three digits, no needless zeros."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:.1e}"


def _x_axis(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 1, high + 1
    # Epochs and steps are whole numbers: ticks stay inside of the data and on whole numbers.
    ticks = tuple(t for t in nice_ticks(low, high, 7) if low <= t <= high and t == int(t))
    return Axis(low, high, LEFT, WIDTH - RIGHT, ticks, "{:,.0f}".format, "{:.4g}".format)


def _y_axis(values: Sequence[float], percent: bool) -> Axis:
    low, high = min(values), max(values)
    bottom, top = HEIGHT - BOTTOM, TOP
    if percent:
        ticks = tuple(t for t in nice_ticks(low, high) if -1e-9 <= t <= 1 + 1e-9)
        tick_format = "{:.0%}" if len(ticks) < 2 or ticks[1] - ticks[0] > 0.0099 else "{:.1%}"
        low, high = min(low, *ticks), max(high, *ticks)
        return Axis(low, high, bottom, top, ticks, tick_format.format, "{:.2%}".format)
    if low > 0 and high / low >= 30:
        ticks = log_ticks(low, high)
        return Axis(ticks[0], ticks[-1], bottom, top, ticks, short_number, short_number, log=True)
    ticks = nice_ticks(0.0 if 0 <= low < 0.3 * high else low, high)
    return Axis(ticks[0], ticks[-1], bottom, top, ticks, short_number, short_number)


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    parts = ['<g class="grid">']
    for tick in y_axis.ticks:
        y = y_axis(tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 8, y + 4, y_axis.label(tick), "end"))
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for tick in x_axis.ticks:
        x = x_axis(tick)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{base}" y2="{base + 5}"/>')
        parts.append(_text(x, base + 19, x_axis.label(tick), "middle"))
    return "".join(parts) + "</g>"


def _axis_titles(x_label: str, y_label: str) -> str:
    middle = (LEFT + WIDTH - RIGHT) / 2
    return (
        '<g class="axis-title">'
        + _text(middle, HEIGHT - 8, x_label, "middle")
        + _text(LEFT - 8, 14, y_label, "end" if len(y_label) < 7 else "start")
        + "</g>"
    )


def _legend(series: Sequence[Series]) -> str:
    parts, x = ['<g class="legend">'], float(WIDTH - RIGHT)
    for item in reversed(series):
        x -= 6.4 * len(item.label)
        parts.append(_text(x, 14, item.label, "start"))
        x -= 30
        parts.append(
            f'<line class="line series-{item.role}" '
            f'x1="{x:.1f}" x2="{x + 24:.1f}" y1="10" y2="10"/>'
        )
        if item.role != "detail":
            parts.append(_dot(item.role, x + 12, 10))
        x -= 18
    return "".join(parts) + "</g>"


def _line(series: Series, x_axis: Axis, y_axis: Axis) -> str:
    path, pen_down = [], False
    for point in series.points:
        if _is_finite(point):
            command = "L" if pen_down else "M"
            path.append(f"{command}{x_axis(point[0]):.1f} {y_axis(point[1]):.1f}")
        pen_down = _is_finite(point)
    return f'<path class="line series-{series.role}" d="{"".join(path)}"/>'


def _markers(series: Series, x_axis: Axis, y_axis: Axis, x_label: str) -> str:
    points = [p for p in series.points if _is_finite(p)]
    stride = -(-len(points) // MAX_MARKERS)
    # Counting from the end keeps the last point, the one people look for.
    shown = points[::-1][::stride][::-1]
    parts = []
    for x, y in shown:
        at_x, at_y = x_axis(x), y_axis(y)
        title = escape(f"{x_label} {x_axis.value(x)} · {series.label}: {y_axis.value(y)}")
        parts.append(
            f'<g class="point"><title>{title}</title>'
            f'<circle class="hit" cx="{at_x:.1f}" cy="{at_y:.1f}" r="9"/>'
            f"{_dot(series.role, at_x, at_y)}</g>"
        )
    return "".join(parts)


def _dot(role: str, x: float, y: float) -> str:
    if role == "test":
        size = 3.2
        return (
            f'<rect class="dot series-{role}" x="{x - size:.1f}" y="{y - size:.1f}" '
            f'width="{2 * size}" height="{2 * size}" transform="rotate(45 {x:.1f} {y:.1f})"/>'
        )
    return f'<circle class="dot series-{role}" cx="{x:.1f}" cy="{y:.1f}" r="3.4"/>'


def _end_labels(series: Sequence[Series], x_axis: Axis, y_axis: Axis) -> str:
    ends = []
    for item in series:
        finite = [p for p in item.points if _is_finite(p)]
        if item.role != "detail":
            x, y = finite[-1]
            ends.append((y_axis(y), x_axis(x), y_axis.value(y), item.role))
    parts, lowest = [], float("-inf")
    for y, x, text, role in sorted(ends):
        lowest = max(y, lowest + LABEL_GAP)  # labels of close lines move apart
        parts.append(
            f'<text class="end series-{role}" x="{x + 9:.1f}" y="{lowest + 4:.1f}">'
            f"{escape(text)}</text>"
        )
    return "".join(parts)


def _text(x: float, y: float, content: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _is_finite(point: Point) -> bool:
    return math.isfinite(point[0]) and math.isfinite(point[1])
