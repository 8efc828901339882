"""Masked loads and stores touch what they should, and nothing else, in all widths."""

import ctypes

import numpy as np
import pytest

from needle import dtypes
from needle.backends.cpu import jit
from needle.backends.cpu.module import Module
from needle.backends.cpu.vector_math import MathFunction

#: From what to what stored elements are converted.
PAIRS = [
    ("uint32", "uint16"), ("uint32", "uint8"), ("uint64", "uint32"), ("uint16", "uint8"),
    ("float32", "bfloat16"), ("float32", "float16"), ("float64", "float32"), ("bool", "uint8"),
    ("uint8", "int64"), ("bfloat16", "float32"), ("float32", "float32"),
]  # fmt: skip


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("lanes", [2, 4, 8, 16, 32])
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_first_lanes_alone_are_touched(source, target, lanes, is_known):
    """Found by LLVM: a store of one lane, known when compiling, wrote two narrow ones."""
    given, wanted = (np.dtype(getattr(dtypes, name)) for name in (source, target))
    module = Module()
    names = []
    for count in range(1, lanes):
        names.append(module.unique("store"))
        arguments = {"x": "ptr", "y": "ptr", "n": "i64"}
        f = MathFunction(module, names[-1], arguments, internal=False)
        mask = f.tail_mask(count if is_known else f.argument("n"), lanes)
        x = f.convert(f.load("%x", 0, given, lanes, mask), wanted)
        f.store(x, "%y", 0, mask)
        f.end()
    library = jit.load(module, module.target)
    for count, name in enumerate(names, 1):
        # The memory ends where the mask does, but for what must stay.
        x, y = np.ones(lanes, given), np.full(lanes + 8, 9).astype(wanted)
        store = library.function(name, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        store(x.ctypes.data, y.ctypes.data, count)
        assert y.astype(np.float64).tolist() == [1] * count + [9] * (lanes + 8 - count)
