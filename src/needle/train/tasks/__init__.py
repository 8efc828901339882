"""Ready-made tasks by name, and the user's own."""

from __future__ import annotations

import difflib
import importlib

from needle.errors import ArgumentError
from needle.train.tasks.task import OPTIMIZERS, Recipe, Task, TaskOptions
from needle.train.tasks.user import load_user_task

#: Where each task is made; imported when it is asked for.
TASKS = {
    "digits": "needle.train.tasks.images",
    "mnist": "needle.train.tasks.images",
    "cifar10": "needle.train.tasks.images",
    "text": "needle.train.tasks.text",
}


def load_task(name: str, options: TaskOptions | None = None) -> Task:
    """Return a task: its model is initialised and its data read.

    Args:
        name: `digits`, `mnist`, `cifar10`, `text`, or `MODULE:FUNCTION` of your own.
        options: Data folder, model and seed.

    Raises:
        ArgumentError: There is no such task, or no such model for it.
        DataError: Its data is missing or damaged.

    Example:
        >>> from needle.train import load_task
        >>> load_task("digits").class_names[:3]
        ('0', '1', '2')
    """
    options = options or TaskOptions()
    if ":" in name:
        return load_user_task(name, options)
    if name not in TASKS:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ArgumentError(
            f"there is no task {name!r}.{hint} There are {', '.join(TASKS)}, "
            "and MODULE:FUNCTION for a task of your own"
        )
    module = importlib.import_module(TASKS[name])
    task: Task = getattr(module, name)(options)
    return task


__all__ = ["OPTIMIZERS", "TASKS", "Recipe", "Task", "TaskOptions", "load_task", "load_user_task"]
