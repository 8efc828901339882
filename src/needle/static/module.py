"""Modules in declared graphs: called with symbols, with the parameters that they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from needle.static.declare import declare


def function(module: Callable[..., Any]) -> Callable[..., Any]:
    """Return a module, or any function over tensors, as one over symbols.

    Its parameters stay its own: all sessions and eager code share them.

    Args:
        module: what to bring in.

    Example:
        >>> import needle.static as tf
        >>> layer = ndl.nn.Linear(2, 1)
        >>> with tf.Graph().as_default():
        ...     x = tf.placeholder((None, 2))
        ...     y = tf.function(layer)(x)
        ...     y.shape, tf.Session().run(y, {x: [[0, 0]]}).tolist()
        ((None, 1), [[0.0]])
    """

    def declaring(*args: Any, **kwargs: Any) -> Any:
        name = kwargs.pop("name", None) or type(module).__name__.lower()
        return declare(module, *args, name=name, **kwargs)

    return declaring
