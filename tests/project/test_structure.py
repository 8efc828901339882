"""The house rules: imports go one way, files stay small, the package needs no more than it says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "needle"
FILES = sorted(SOURCE.rglob("*.py"))

#: Each module may import, when it is imported itself, only modules that stand before or beside it.
LAYERS = [
    {"errors", "writes"},
    {"dtypes", "devices", "tree", "dtype_functions", "extents"},
    {"shapes", "config", "progress"},
    {"ops", "_methods"},
    {"arrays"},
    {"tensor"},
    {"gradnode"},
    {"autograd"},
    {"eager", "inplace"},
    {"operators", "creation"},
    {"random"},
    {"function"},
    {"graph"},
    {"control"},
    {"compiler"},
    {"backends"},
    {"compiled"},
    {"", "nn", "optim", "data", "testing"},
    {"static", "layerwise"},
    {"models"},
    {"train"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def part_of(module: str) -> str:
    """Return the layer's name of ``needle.x.y``: ``x``; the package itself is the empty name."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported_modules(node: ast.ImportFrom) -> list[str]:
    """Return the modules of needle that a ``from`` statement imports."""
    if node.module == "needle":
        # `from needle import x`: a module if there is one, else a name of the package.
        return [f"needle.{a.name}" if a.name in RANK else "needle" for a in node.names]
    return [node.module] if (node.module or "").startswith("needle.") else []  # type: ignore[list-item]


def imports_at_import_time(tree: ast.Module) -> list[str]:
    """Return the modules that the statements at module level import."""
    found = []
    stack: list[ast.AST] = [n for n in tree.body if not is_type_checking(n)]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += imported_modules(node)
        stack += list(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_one_way(path: Path) -> None:
    own = part_of(module_of(path))
    assert own in RANK, f"say in LAYERS where {own} stands"
    wrong = [
        name
        for name in imports_at_import_time(ast.parse(path.read_text()))
        if (name == "needle" or name.startswith("needle."))
        and part_of(name) != own
        and RANK[part_of(name)] > RANK[own]
    ]
    assert not wrong, f"{own} must not import {wrong}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_ops_touch_no_tensor_class(path: Path) -> None:
    """Ops work on values that they get; not even inside of functions may they import the engine."""
    if "ops" not in path.relative_to(SOURCE).parts:
        return
    tree = ast.parse(path.read_text())
    typing_only = {id(n) for s in tree.body if is_type_checking(s) for n in ast.walk(s)}
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    for node in (n for n in imports if id(n) not in typing_only):
        for name in imported_modules(node):
            assert RANK.get(part_of(name), 0) <= RANK["ops"], f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_is_one_idea(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= 600, f"{lines} lines: look for the seam"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_nothing_is_unpickled(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {"pickle", "dill", "cloudpickle", "marshal"} & {a.name for a in node.names}
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


def test_importing_needle_imports_nothing_heavy() -> None:
    code = (
        "import sys, needle; heavy = {'llvmlite', 'safetensors', 'rich', 'typer', 'torch', 'PIL'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_generates_code_is_imported_when_code_is_generated() -> None:
    """Half of the modules make kernels; a program read from the cache asks for none of them."""
    code = (
        "import sys, numpy, needle\n"
        "names = {'program', 'emit', 'gemm', 'conv', 'attention'}\n"
        "def show(): print(sorted(n for n in names if f'needle.backends.cpu.{n}' in sys.modules))\n"
        "show(); f = needle.compile(lambda x: x * 2); f(numpy.ones(3, numpy.float32)); show()"
    )
    lines = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        lines.append(done.stdout.splitlines())
    assert lines[0][0] == lines[1][0] == lines[1][1] == "[]"


def test_no_peer_is_imported_by_the_package() -> None:
    peers = {"torch", "jax", "tensorflow", "onnxruntime", "sklearn", "scipy"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not peers & {name.split(".")[0] for name in names}, path
