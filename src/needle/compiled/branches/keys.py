"""Keys: numbers that are equal for values which two traces of one function compute alike.

A key covers the op, its attributes and the keys of its inputs. Arguments count by their place, and
tensors from outside by the order in which the trace met them. So the keys of two traces can be
compared as far as both took the same path.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from needle.compiler.fingerprint import attribute_text
from needle.graph.ir import Node, Value

#: Numbers for what keys stand for; shared by the traces that are compared.
Numbers = dict[Any, int]


class Keys:
    """The keys of the values of one trace.

    Args:
        numbers: for what has a key already, in this trace or in another.

    Attributes:
        captured: what stands for tensors from outside, in order.
    """

    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers
        self._of: dict[Value, int] = {}
        #: The same but for the number of a recomputation.
        self._plain: dict[Value, int] = {}
        self._nodes: dict[Node, tuple[int, int]] = {}
        self.captured: list[Value] = []

    def __getitem__(self, value: Value) -> int:
        return self._get(value, self._of)

    def plain(self, value: Value) -> int:
        """Return a key that is also equal for what computes the same again, to save memory."""
        return self._get(value, self._plain)

    def _get(self, value: Value, keys: dict[Value, int]) -> int:
        found = keys.get(value)
        if found is not None:
            return found
        if value.node is not None:
            if value.node in self._nodes:
                self._add_late(value.node)
            else:  # was added at the end of the trace, to write state in the order in which it lies
                self.add_node(value.node)
            return keys[value]
        if value.constant is None:  # stands for a gradient that the caller will pass
            key = self._of[value] = self._plain[value] = self._number("given", len(self._of))
            return key
        content = np.ascontiguousarray(value.constant).tobytes()
        return self._number("constant", str(value.spec), hashlib.sha256(content).digest())

    def _number(self, *what: Any) -> int:
        return self._numbers.setdefault(what, len(self._numbers))

    def add_argument(self, value: Value, place: int) -> None:
        """Give the argument at a place its key."""
        self._of[value] = self._plain[value] = self._number("argument", place)

    def add_captured(self, value: Value) -> None:
        """Give the next tensor from outside its key."""
        key = self._number("captured", len(self.captured))
        self._of[value] = self._plain[value] = key
        self.captured.append(value)

    def add_node(self, node: Node) -> None:
        """Give the results of a node their keys."""
        attrs = attribute_text(node.attrs)
        full = self._number(
            node.op.name, node.recomputation, attrs, *[self[v] for v in node.inputs]
        )
        plain = full
        if node.recomputation or any(self._of.get(v) != self._plain.get(v) for v in node.inputs):
            plain = self._number(node.op.name, 0, attrs, *[self.plain(v) for v in node.inputs])
        self._nodes[node] = full, plain
        for i, value in enumerate(node.results):
            self._of[value] = self._number("result", full, i)
            self._plain[value] = self._number("result", plain, i)

    def _add_late(self, node: Node) -> None:
        """Give keys to results that a node got after it had its own.

        A loop stacks more when its derivative is traced. What it gave before keeps its key.
        """
        full, plain = self._nodes[node]
        attrs = attribute_text(node.attrs)
        for i, value in enumerate(node.results):
            if value not in self._of:
                inputs = [self[v] for v in node.inputs]
                self._of[value] = self._number("late", full, i, attrs, *inputs)
                self._plain[value] = self._number("late", plain, i, attrs, *inputs)
