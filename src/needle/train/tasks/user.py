"""Tasks of the user's own: `MODULE:FUNCTION` or `FILE.py:FUNCTION`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from needle.errors import ArgumentError
from needle.train.tasks.task import Task, TaskOptions

EXPECTED = (
    "a task function takes no argument, or one (needle.train.TaskOptions), "
    "and returns a needle.train.Task"
)


def load_user_task(spec: str, options: TaskOptions) -> Task:
    """Call the function that `spec` names and return its task.

    Args:
        spec: `package.module:function`, importable from the current folder or installed; or
            `path/to/file.py:function`.
        options: Passed to the function if it takes an argument.

    Raises:
        ArgumentError: The module or function does not exist, or it returns something else. What the
            function itself raises is not touched.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ArgumentError(
            f"{spec!r} does not name a task: expected MODULE:FUNCTION, such as spirals:task, "
            "or FILE.py:FUNCTION"
        )
    module = _import_file(place) if place.endswith(".py") else _import_module(place)
    function = getattr(module, name, None)
    if function is None:
        raise ArgumentError(_missing_function(spec, module, name))
    if not callable(function):
        raise ArgumentError(f"{spec} is a {type(function).__name__}, not a function; {EXPECTED}")
    task = function(*_arguments(spec, function, options))
    if not isinstance(task, Task):
        raise ArgumentError(f"{spec} returned a {type(task).__name__}; {EXPECTED}")
    if task.name == "task":
        task.name = place.rpartition(".")[2] if not place.endswith(".py") else Path(place).stem
    return task


def _import_module(name: str) -> ModuleType:
    folder = str(Path.cwd())
    if folder not in sys.path:
        # A console script, unlike `python -m`, does not find modules of the current folder.
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # Only if it is this module that is missing, not one that it imports.
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise
        raise ArgumentError(
            f"there is no module {name!r} in {folder} or among the installed packages"
        ) from None
    except (TypeError, ValueError):
        raise ArgumentError(f"{name!r} is no module name; write package.module:function") from None


def _import_file(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise ArgumentError(f"there is no file {path}")
    name = Path(path).stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(name, module)
    spec.loader.exec_module(module)
    return module


def _missing_function(spec: str, module: ModuleType, name: str) -> str:
    own = [n for n, value in vars(module).items() if inspect.isfunction(value) and n[0] != "_"]
    close = difflib.get_close_matches(name, own, n=1)
    found = f"; did you mean {close[0]}?" if close else f"; its functions: {', '.join(own) or '–'}"
    return f"{spec}: module {module.__name__!r} has no {name!r}{found}"


def _arguments(spec: str, function: Any, options: TaskOptions) -> tuple[TaskOptions, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return ()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    required += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(required) > 1:
        raise ArgumentError(f"{spec} needs the arguments {', '.join(required)}; {EXPECTED}")
    return (options,) if required or (positional and positional[0].name == "options") else ()
