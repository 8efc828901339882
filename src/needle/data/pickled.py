"""Reading the pickles of CIFAR-10's Python version without unpickling.

A pickle is a program for a small stack machine, and some of its instructions import and call
whatever the file names: ``pickle.load`` runs the file's code with the reader's rights. So nothing
here loads a pickle. The instructions are listed by `pickletools.genops`, which only decodes them,
and `_Machine` carries out those that build plain values: dicts, lists, tuples, strings, bytes,
integers. Names of functions stay strings, and the few that NumPy writes for an array of bytes are
recognised by comparing them; for those an array is made from the bytes that follow. No name is ever
looked up and no object of the file called, so a hostile file can at worst be refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from needle.errors import DataError


@dataclass(frozen=True)
class _Name:
    """A name that the file would have imported."""

    text: str


@dataclass(eq=False)
class _Bytes:
    """The array that is being rebuilt, until its contents come."""

    array: NDArray[np.uint8] | None = None


_RECONSTRUCT = (
    _Name("numpy.core.multiarray._reconstruct"),
    _Name("numpy._core.multiarray._reconstruct"),  # NumPy 2
)
_NDARRAY = _Name("numpy.ndarray")
_DTYPE = _Name("numpy.dtype")
_ENCODE = _Name("_codecs.encode")  # how Python 3 writes bytes for Python 2
_ALLOWED = frozenset({*_RECONSTRUCT, _NDARRAY, _DTYPE, _ENCODE})
_UINT8 = _Name("numpy.dtype('u1')")

_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "LONG1"}
    | {"BINSTRING", "SHORT_BINSTRING"}
    | {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
    | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)
_PUTS = frozenset({"BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"BINGET", "LONG_BINGET"})
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Refused(Exception):
    """The pickle asks for something that data does not need."""


def read_pickled_dict(data: bytes, source: str) -> dict[str, Any]:
    """Return the dict that a pickle holds, made of plain values and arrays of uint8.

    Args:
        data: the file's content, a pickle of protocol 2 to 5.
        source: what to call it in an error message.

    Returns:
        The dict, its keys as str. Python 2 strings come as str in Latin-1.

    Raises:
        DataError: it is no pickle, truncated, holds something else than a dict, or asks to import a
            name or to carry out an instruction that such data does not need.
    """
    from pickletools import genops

    machine = _Machine()
    position = 0
    try:
        for opcode, argument, at in genops(data):
            position = at or 0
            machine.step(opcode.name, argument)
        value = machine.result()
    except _Refused as refused:
        raise DataError(
            f"{source}: refused at byte {position}: {refused}. Only plain values and arrays of "
            "uint8 are read from a pickle; if this is not the official file, do not trust it"
        ) from None
    except (ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError) as error:
        raise DataError(
            f"{source}: not a readable pickle, truncated or corrupt after byte {position} ({error})"
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"{source}: expected a pickled dict, found {type(value).__name__}")
    return {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in value.items()}


class _Machine:
    """The part of the pickle machine that builds plain values."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        push = self.stack.append
        if name in _IGNORED:
            return
        if name in _LITERALS:
            push(argument)
        elif name in _PUTS:
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in _GETS:
            push(self.memo[argument])
        elif name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _TUPLES:
            push(tuple(self._pop(_TUPLES[name])))
        elif name == "EMPTY_DICT":
            push({})
        elif name == "EMPTY_LIST":
            push([])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            push(tuple(self._pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop_to_mark() if name == "APPENDS" else self._pop(1)
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop_to_mark() if name == "SETITEMS" else self._pop(2)
            self._set_items(items)
        elif name == "GLOBAL":
            push(_allowed(".".join(argument.split(" ", 1))))
        elif name == "STACK_GLOBAL":
            module, attribute = self._pop(2)
            push(_allowed(f"{module}.{attribute}"))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            push(_call(function, arguments))
        elif name == "BUILD":
            (state,) = self._pop(1)
            _build(self.stack[-1], state)
        else:
            raise _Refused(f"the instruction {name} is not needed for data")

    def result(self) -> Any:
        """Return the only value that is left."""
        if len(self.stack) != 1 or self.marks:
            raise ValueError(f"{len(self.stack)} values are left instead of one")
        return self.stack[0]

    def _top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise ValueError(f"expected a {kind.__name__}, found {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def _pop(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise ValueError("the stack is empty")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _pop_to_mark(self) -> list[Any]:
        items = self.stack[self.marks[-1] :]
        del self.stack[self.marks.pop() :]
        return items

    def _set_items(self, items: list[Any]) -> None:
        target = self._top(dict)
        for key, value in zip(items[0::2], items[1::2], strict=True):
            if not isinstance(key, (str, bytes)):
                raise ValueError(f"a key of type {type(key).__name__}")
            target[key] = value


def _allowed(text: str) -> _Name:
    name = _Name(text)
    if name not in _ALLOWED:
        raise _Refused(f"it asks to import {text!r}")
    return name


def _call(function: Any, arguments: Any) -> Any:
    """Return what NumPy's own calls in a pickled array stand for."""
    if not isinstance(function, _Name) or not isinstance(arguments, tuple) or not arguments:
        raise _Refused("it asks to call something")
    if function in _RECONSTRUCT and arguments[0] == _NDARRAY:
        return _Bytes()
    if function == _DTYPE:
        if arguments[0] not in ("u1", "uint8"):
            raise _Refused(f"an array of {arguments[0]!r}")
        return _UINT8
    if function == _ENCODE and len(arguments) == 2 and arguments[1] in ("latin1", "latin-1"):
        return str(arguments[0]).encode("latin-1")
    raise _Refused(f"it asks to call {function.text!r} with arguments that data does not need")


def _build(target: Any, state: Any) -> None:
    """Set the state of a dtype (which has none worth setting) or of an array."""
    if target is _UINT8:
        return
    if not isinstance(target, _Bytes) or not isinstance(state, tuple) or len(state) != 5:
        raise _Refused("it asks to set the state of an object")
    _, shape, dtype, fortran, content = state
    if dtype is not _UINT8:
        raise _Refused("an array that is not of uint8")
    if isinstance(content, str):
        content = content.encode("latin-1")
    flat = np.frombuffer(content, np.uint8)
    target.array = flat.reshape(shape, order="F" if fortran else "C")
