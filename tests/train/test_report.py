"""Reports: one file, nothing loaded, everything escaped, figures where they belong."""

import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from needle.errors import DTypeError, ShapeError
from needle.train.report import (
    LayerRow,
    Mistake,
    ReportData,
    confusion_matrix,
    report_html,
    write_report,
)
from needle.train.report.chart import Series, line_chart, log_ticks, nice_ticks, short_number
from needle.train.report.page import byte_size, quantity
from needle.train.report.png import encode_png

EVIL = "<script>alert('x')</script>\"&"
VOID = {"meta", "img", "br", "circle", "line", "rect", "path"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and insists that tags nest."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def records(epochs, **columns):
    return [
        {"event": "epoch", "epoch": e, **{name: f(e) for name, f in columns.items()}}
        for e in range(1, epochs + 1)
    ]


def full_report(text="plain"):
    return ReportData(
        title=text,
        outcome={text: text},
        records=[
            *records(
                3,
                train_loss=lambda e: 1 / e,
                test_loss=lambda e: 2 / e,
                train_accuracy=lambda e: 0.9,
                test_accuracy=lambda e: 0.8,
                test_bits=lambda e: 2.0,
            ),
            {"event": "step", "position": 0.5, "train_loss": 1.5},
        ],
        class_names=[text, "other"],
        confusion=np.array([[7, 1], [0, 4]]),
        mistakes=[Mistake(5, 0, 1, 0.75, 0.25, np.zeros((8, 8, 3), np.uint8))],
        examples=12,
        layers=[LayerRow(text, text, (1, 2), 12, 34, 56)],
        configuration={text: text, "dropout": None, "shuffle": True, "lr": 0.001},
        environment={text: text},
        timing={text: text},
        notes=[text],
        sample=text,
        sample_prompt=text,
    )


def test_every_text_is_escaped():
    page = Checker(report_html(full_report(EVIL)))
    assert "script" not in page.tags
    assert page.text.count(EVIL) >= 10
    assert ("alt", f"test example 5, a {EVIL}") in page.attributes


def test_nothing_is_loaded_from_elsewhere():
    html = report_html(full_report())
    page = Checker(html)
    for name, value in page.attributes:
        if name in {"src", "href", "srcset", "data", "action"}:
            assert value.startswith("data:image/png;base64,")
        assert not name.startswith("on")
    outside = set(re.findall(r"https?://[^\"' ]+", html)) - {"http://www.w3.org/2000/svg"}
    assert not outside
    assert "@import" not in html
    assert "url(" not in html


def test_the_page_says_what_happened(tmp_path):
    path = write_report(full_report(), tmp_path / "report.html")
    page = Checker(path.read_text(encoding="utf-8"))
    for heading in [
        "Loss",
        "Accuracy",
        "Bits per character",
        "Confusion matrix",
        "Worst mistakes",
        "A sample",
        "Model",
        "Configuration",
        "Environment",
        "Timing",
    ]:
        assert heading in page.words
    assert ("title", "true plain, predicted other: 1 of 8 (12.5%)") in page.attributes
    assert "of 1 wrong answers among 12" in page.text
    assert {"87.5%", "100.0%", "91.7%"} <= set(page.words)  # recalls and accuracy


def test_an_empty_report_has_no_empty_sections():
    page = Checker(report_html(ReportData("nothing", {})))
    assert "section" not in page.tags


def test_many_classes_become_a_picture_and_a_list():
    counts = np.diag(np.full(30, 9))
    counts[3, 4] = 5
    page = Checker(
        report_html(
            ReportData("t", {}, class_names=[f"<{i}>" for i in range(30)], confusion=counts)
        )
    )
    assert "img" in page.tags
    assert page.words[page.words.index("<3>") :][:3] == ["<3>", "<4>", "5"]


def test_confusion_matrix_counts_every_example():
    random = np.random.default_rng(1)
    true, predicted = random.integers(0, 4, 500), random.integers(0, 4, 500)
    counts = confusion_matrix(true, predicted, 5)
    for i in range(5):
        for j in range(5):
            assert counts[i, j] == np.sum((true == i) & (predicted == j))
    assert confusion_matrix(true[:0], predicted[:0], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.peers
@pytest.mark.parametrize("shape", [(1, 1), (8, 8), (5, 7, 1), (32, 30, 3)])
def test_png_is_read_back_by_pillow(shape):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    decoded = np.asarray(image.open(io.BytesIO(encode_png(pixels))))
    np.testing.assert_array_equal(
        decoded, pixels.squeeze(2) if shape[-1] == 1 < len(shape) - 1 else pixels
    )


def test_png_refuses_what_is_no_picture():
    with pytest.raises(DTypeError, match="float32"):
        encode_png(np.zeros((2, 2), np.float32))
    for shape in [(2,), (2, 2, 4), (0, 3), (1, 2, 3, 3)]:
        with pytest.raises(ShapeError, match="encode_png"):
            encode_png(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.871, 0.9992), (-3, 12345), (1, 1), (0, 0), (1e-9, 3e-9)]
)
def test_ticks_cover_the_range_with_round_numbers(low, high):
    ticks = nice_ticks(low, high)
    steps = np.diff(ticks)
    assert ticks[0] <= min(low, high) or low == high
    assert ticks[-1] >= high
    assert 3 <= len(ticks) <= 9
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)
    assert float(f"{steps[0]:.0e}") == pytest.approx(steps[0], rel=1e-3)


@pytest.mark.parametrize(("low", "high"), [(0.02, 2.3), (1e-6, 10), (1, 100), (0.5, 15.1)])
def test_log_ticks_cover_the_range(low, high):
    ticks = log_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert len(ticks) <= 12


def coordinates(svg):
    (path,) = re.findall(r'<path class="line series-train" d="([^"]*)"', svg)
    return path


def test_a_line_is_interrupted_by_nan_and_stays_inside():
    points = [(1, 1.0), (2, float("nan")), (3, 0.5), (4, 0.25), (5, float("inf"))]
    svg = line_chart("t", [Series("a", points, "train")], x_label="epoch", y_label="")
    path = coordinates(svg)
    assert path.count("M") == 2
    assert path.count("L") == 1
    numbers = [float(n) for n in re.findall(r"[0-9.]+", path)]
    assert all(0 <= x <= 480 for x in numbers[::2])
    assert all(0 <= y <= 280 for y in numbers[1::2])
    assert "nan" not in svg
    assert "inf" not in svg


def test_log_scale_puts_equal_ratios_at_equal_distances():
    points = [(1, 100.0), (2, 10.0), (3, 1.0)]
    svg = line_chart("t", [Series("a", points, "train")], x_label="epoch", y_label="")
    ys = [float(n) for n in re.findall(r"[0-9.]+", coordinates(svg))][1::2]
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.11)


@pytest.mark.parametrize("points", [[], [(1, float("nan"))], [(1, 0.5)], [(1, 0.0)] * 2])
def test_degenerate_charts_are_drawn(points):
    Checker(line_chart("t", [Series("a", points, "test")], x_label="x", y_label="y"))
    Checker(line_chart("t", [Series("a", points, "test")], x_label="x", y_label="y", percent=True))


def test_long_runs_do_not_grow_without_bound():
    long = Series("a", [(i, 1 / (i + 1)) for i in range(5000)], "train")
    svg = line_chart("t", [long], x_label="x", y_label="y")
    assert svg.count('class="hit"') <= 80
    assert "x 4,999 ·" in svg or "x 4999 ·" in svg


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.05, "0.05"),
        (12345, "12,345"),
        (1e-5, "1.0e-05"),
        (2.5, "2.5"),
        (1e7, "1.0e+07"),
    ],
)
def test_short_numbers(value, text):
    assert short_number(value) == text


def test_quantities():
    assert [quantity(n) for n in (0, 999, 1500, 2e6, 3.14159e9, 5e12)] == [
        "0", "999", "1.5 k", "2 M", "3.14 G", "5 T",
    ]  # fmt: skip
    assert [byte_size(n) for n in (0, 1023, 1536, 2**20, 2**31)] == [
        "0 B", "1023 B", "1.5 KiB", "1 MiB", "2 GiB",
    ]  # fmt: skip
