"""What is generated from the records: the type stub, the reference pages, and where they end up."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from needle.ops.record import REGISTRY
from needle.tensor import Tensor
from needle.testing.reference import write_pages
from needle.testing.stubs import stub

ROOT = Path(__file__).resolve().parents[2]


def test_stub_names_every_method() -> None:
    tree = ast.parse(stub())
    (methods,) = (n for n in tree.body if isinstance(n, ast.ClassDef))
    names = {n.name for n in methods.body if isinstance(n, ast.FunctionDef)}
    for entry in REGISTRY.values():
        if entry.is_method:
            assert {entry.name, *entry.aliases} <= names
    for name in names:
        assert hasattr(Tensor, name), f"the stub promises {name}"


def test_reference_has_every_op(tmp_path: Path) -> None:
    pages = write_pages(tmp_path)
    text = "".join(page.read_text() for page in pages)
    for name in REGISTRY:
        assert f"## {name}\n" in text
        assert f"#{name})" in (tmp_path / "index.md").read_text()


@pytest.mark.slow
def test_wheel_contains_stub_marker_and_data(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {"needle/_methods.pyi", "needle/py.typed"} <= names
        assert any(name.endswith("digits.npz") for name in names)
        assert b"def exp(self) -> Tensor" in archive.read("needle/_methods.pyi")
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


@pytest.mark.slow
def test_a_users_type_checker_sees_tensors(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    program = tmp_path / "program.py"
    program.write_text(
        "import needle as ndl\n"
        "x = ndl.Tensor([1.0])\n"
        "reveal_type(ndl.matmul(x, x))\n"
        "reveal_type((x.exp() * 2).reshape(1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-incremental", str(program)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT / "src")},
    )
    assert done.stdout.count('Revealed type is "needle.tensor.Tensor"') == 2, done.stdout
