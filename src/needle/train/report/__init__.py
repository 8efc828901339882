"""A training run as one HTML file: curves, confusion matrix, mistakes, model, configuration."""

from needle.train.report.confusion import confusion_matrix
from needle.train.report.data import LayerRow, Mistake, ReportData
from needle.train.report.page import report_html, write_report

__all__ = [
    "LayerRow",
    "Mistake",
    "ReportData",
    "confusion_matrix",
    "report_html",
    "write_report",
]
