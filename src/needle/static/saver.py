"""Saver: the values of variables in a file, as safetensors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from needle.errors import CheckpointError, GraphError
from needle.static.graph import get_default_graph
from needle.static.session import Session
from needle.static.symbol import Variable


class Saver:
    """Saves the variables of a session, and restores them.

    Args:
        var_list: which variables; all of the default graph if not given.

    Example:
        >>> import tempfile
        >>> import needle.static as tf
        >>> with tf.Graph().as_default(), tempfile.TemporaryDirectory() as folder:
        ...     w = tf.Variable([1.0, 2.0], name="w")
        ...     saver, first = tf.train.Saver(), tf.Session()
        ...     first.run(w.initializer)
        ...     path = saver.save(first, f"{folder}/model")
        ...     second = tf.Session()
        ...     saver.restore(second, path)
        ...     second.run(w)
        array([1., 2.], dtype=float32)
    """

    def __init__(self, var_list: Iterable[Variable] | None = None) -> None:
        chosen = get_default_graph().variables if var_list is None else var_list
        self.variables = list(chosen)

    def save(self, session: Session, path: str | Path) -> str:
        """Write the values to ``path``.safetensors; return its name.

        Raises:
            GraphError: a variable has no value.
        """
        arrays = {}
        for variable in self.variables:
            if variable not in session.values:
                raise GraphError(f"Saver: {variable} has no value yet, so it cannot be saved")
            value = session.values[variable].numpy()
            arrays[variable.operation.name] = np.array(value, order="C")
        file = Path(path).with_suffix(".safetensors")
        temporary = file.with_suffix(".partial")
        save_file(arrays, temporary)
        temporary.replace(file)
        return str(file)

    def restore(self, session: Session, path: str | Path) -> None:
        """Give the variables the values in a file.

        Raises:
            CheckpointError: the file is missing, damaged, or lacks a variable.
            ShapeError: a value has another shape than its variable.
        """
        file = Path(path).with_suffix(".safetensors")
        try:
            arrays = load_file(file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: cannot be read: {error}") from None
        missing = [v for v in self.variables if v.operation.name not in arrays]
        if missing:
            raise CheckpointError(f"{file}: has no value for {missing[0]}; it has {sorted(arrays)}")
        for variable in self.variables:
            session.load(variable, arrays[variable.operation.name])
