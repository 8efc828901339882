"""Every example runs: docstrings of the package, code blocks of the Markdown files."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import pytest

import needle
from needle.ops.record import REGISTRY

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(needle.__path__, "needle.")
    if not info.name.endswith("__main__")
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = finder.find(module, module.__name__, extraglobs={"ndl": needle})
    # The public function of an elementwise op is made by its family: doctest takes it for foreign.
    own = {test.name for test in found}
    for entry in REGISTRY.values():
        if entry.module == module.__name__ and f"{module.__name__}.{entry.name}" not in own:
            found += finder.find(entry.function, entry.name, globs={"ndl": needle})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report: list[str] = []
    failures = 0
    for test in examples_of(importlib.import_module(name)):
        needle.manual_seed(0)
        runner = doctest.DocTestRunner(
            verbose=False, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
        )
        failures += runner.run(test, out=report.append).failed
    assert not failures, "".join(report)


@pytest.mark.parametrize("entry", REGISTRY.values(), ids=lambda e: e.name)
def test_every_op_is_documented(entry: object) -> None:
    text = inspect.getdoc(entry.function) or ""  # type: ignore[attr-defined]
    assert re.match(r"\S.*[.:]", text), "needs a summary"
    assert "Args:" in text, "needs its arguments"
    assert ">>> " in text, "needs an example"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_code_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}  # later blocks go on where earlier ones end
    for code in blocks(page):
        exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize(
    "code",
    [
        blocks(ROOT / "README.md")[0],
        *blocks(ROOT / "docs" / "CONTROL_FLOW.md"),
        "".join(blocks(ROOT / "docs" / "STATIC_GRAPHS.md")),
        "".join(blocks(ROOT / "docs" / "LAYERWISE.md")),
        "".join(blocks(ROOT / "docs" / "three-abstractions.md")),
        *blocks(ROOT / "docs" / "EXTENTS.md"),
    ],
    ids=lambda code: str(code.count("\n")),
)
def test_printed_values_are_true(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a line says ``print(x)  # text``, it prints that text."""
    said = re.findall(r"^print\(.*\)\s+# (.+)$", code, flags=re.MULTILINE)
    assert said
    exec(compile(code, "page", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip().splitlines() == said
