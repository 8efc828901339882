"""The call path: programs run on arrays that fit, and on no others."""

import ctypes
import gc
import itertools
import sys
import threading
import weakref

import ml_dtypes
import numpy as np
import pytest

from needle.backends.cpu import arguments, jit
from needle.backends.cpu.arguments import DONE, WRONG_COUNT
from needle.backends.cpu.module import Module
from needle.shapes import Spec

#: entry: adds 1 to the first byte of what slot 0 points to, and counts in slot 5.
IR = """
define void @entry(ptr %table) #0 {
  %array = load ptr, ptr %table
  %v = load i8, ptr %array
  %w = add i8 %v, 1
  store i8 %w, ptr %array
  %count_at = getelementptr ptr, ptr %table, i64 5
  %count = load ptr, ptr %count_at
  %old = atomicrmw add ptr %count, i64 1 seq_cst
  ret void
}
declare void @callback()
define void @calls_back(ptr %table) #0 {
  call void @callback()
  ret void
}
"""


class Program:
    """A loaded `entry`, its table and how often it ran."""

    def __init__(self, make, specs, slots=None, written=()):
        module = Module()
        module.add_text(IR)
        self.library = jit.load(module, symbols={"callback": 1})  # not called
        self.table = (ctypes.c_void_p * 40)()
        self.count = np.zeros(1, np.int64)
        self.table[5] = self.count.ctypes.data
        entry = self.library.address("entry")
        slots = [s + (s >= 5) for s in range(len(specs))] if slots is None else slots
        self.call = make(entry, self.table, specs, slots, written, self.library)

    @property
    def runs(self):
        return int(self.count[0])


@pytest.fixture(params=["native", "Python"])
def make(request):
    """Both ways: that of this machine, and that of machines where it does not hold."""
    if request.param == "Python":
        return arguments._make_python_call
    assert arguments.layout() is not None
    return arguments.make_call


def spec(shape, dtype=np.float32):
    return Spec(shape, np.dtype(dtype))


DTYPES = [
    *(np.dtype(c) for c in "?bBhHiIqQefd"),
    np.dtype(ml_dtypes.bfloat16),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (1, 1), (4, 0), (0,), (2, 3, 4, 5, 6)])
def test_addresses(make, dtype, shape):
    first = np.zeros(4, np.uint8)
    program = Program(make, [spec((4,), np.uint8), Spec(shape, dtype)])
    array = np.zeros(shape, dtype)
    for turn in range(1, 4):
        assert program.call((first, array)) == DONE
        assert program.table[0] == first.ctypes.data
        assert program.table[1] == array.ctypes.data
        assert program.runs == turn
    assert first[0] == 3


def test_slots_and_many_arrays(make):
    specs = [spec((n + 1,), np.int32) for n in range(20)]
    slots = [0, *range(39, 20, -1)]
    program = Program(make, specs, slots)
    arrays = tuple(np.zeros(n + 1, np.int32) for n in range(20))
    assert program.call(arrays) == DONE
    assert [program.table[s] for s in slots] == [a.ctypes.data for a in arrays]
    assert program.table[6] is None


def misfits():
    right = np.zeros((4, 6), np.float32)
    padded = np.zeros((8, 12), np.float32)
    unaligned = np.zeros(4 * 6 * 4 + 1, np.uint8)[1:].view(np.float32).reshape(4, 6)
    assert not unaligned.flags.aligned

    class Derived(np.ndarray):
        pass

    yield "dtype", right.astype(np.float64)
    yield "dtype of the same size", right.astype(np.int32)
    yield "byte order", right.astype(">f4")
    yield "transposed", right.reshape(6, 4).T
    yield "Fortran order", np.asfortranarray(right + 1)
    yield "every other row", padded[::2, :6]
    yield "part of the columns", padded[:4, :6]
    yield "backwards", right[::-1]
    yield "broadcast", np.broadcast_to(np.float32(1), (4, 6))
    yield "unaligned", unaligned
    yield "shape", np.zeros((6, 4), np.float32)
    yield "flat", right.reshape(-1)
    yield "one axis more", right[None]
    yield "scalar", np.float32(1)
    yield "fewer rows", right[:3]
    yield "derived class", right.view(Derived)
    yield "None", None
    yield "list", right.tolist()
    yield "number", 1.0


@pytest.mark.parametrize(("name", "wrong"), list(misfits()), ids=[n for n, _ in misfits()])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_does_not_fit_does_not_run(make, name, wrong, place):
    program = Program(make, [spec((4, 6))] * 3)
    arrays = [np.zeros((4, 6), np.float32) for _ in range(3)]
    assert program.call(tuple(arrays)) == DONE
    arrays[place] = wrong
    assert program.call(tuple(arrays)) == place
    assert program.runs == 1


def test_what_is_written_must_be_writeable(make):
    program = Program(make, [spec((4,))] * 3, written=[0, 2])
    arrays = [np.zeros(4, np.float32) for _ in range(3)]
    arrays[1].flags.writeable = False
    assert program.call(tuple(arrays)) == DONE
    arrays[2].flags.writeable = False
    assert program.call(tuple(arrays)) == 2
    assert program.runs == 1


@pytest.mark.parametrize("wrong", [(), [], None, 3, "aa"])
def test_wrong_numbers_of_arrays(make, wrong):
    program = Program(make, [spec((4,))] * 2)
    arrays = [np.zeros(4, np.float32) for _ in range(3)]
    for given in (wrong, arrays[:2], tuple(arrays), tuple(arrays[:1])):
        assert program.call(given) == WRONG_COUNT
    assert program.runs == 0


def test_views_that_fit(make):
    program = Program(make, [spec((4, 6))])
    base = np.zeros((3, 8, 6), np.float32)
    for view in (base[1, 4:], base[2, :4], base.reshape(-1)[6:30].reshape(4, 6)):
        assert program.call((view,)) == DONE
        assert program.table[0] == view.__array_interface__["data"][0]


def test_references_are_as_before(make):
    program = Program(make, [spec((4,))] * 2)
    good = tuple(np.zeros(4, np.float32) for _ in range(2))
    bad = (good[0], np.zeros(5, np.float32))
    counts = [sys.getrefcount(a) for a in (*good, *bad, good, bad)]
    for _ in range(1000):
        program.call(good)
        program.call(bad)
    assert [sys.getrefcount(a) for a in (*good, *bad, good, bad)] == counts


def test_the_function_keeps_what_it_needs(make):
    class Kept:
        pass

    kept = Kept()
    reference = weakref.ref(kept)
    table = (ctypes.c_void_p * 40)()
    count = np.zeros(1, np.int64)
    table[5] = count.ctypes.data
    module = Module()
    module.add_text(IR)
    library = jit.load(module, symbols={"callback": 1})
    call = make(library.address("entry"), table, [spec((4,))], [0], (), (library, kept))
    del kept, table, library, module
    gc.collect()
    assert reference() is not None
    for _ in range(100):
        assert call((np.zeros(4, np.float32),)) == DONE
    assert count[0] == 100
    del call
    gc.collect()
    assert reference() is None


def test_the_gil_is_released_meanwhile(make):
    """A program that takes the GIL itself, on this thread, and lets another thread run."""
    module = Module()
    module.add_text(IR)
    entered, proceed, seen = threading.Event(), threading.Event(), []

    def callback():
        entered.set()
        seen.append(proceed.wait(30))

    kind = ctypes.CFUNCTYPE(None)
    function = kind(callback)
    library = jit.load(module, symbols={"callback": ctypes.cast(function, ctypes.c_void_p).value})
    call = make(library.address("calls_back"), (ctypes.c_void_p * 2)(), [], [], (), library)
    other = threading.Thread(target=lambda: (entered.wait(30), proceed.set()))
    other.start()
    assert call(()) == DONE
    other.join()
    assert seen == [True]


def test_concurrent_calls(make):
    """Each thread with its table; the arrays' own memory is theirs."""
    programs = [Program(make, [spec((4,), np.uint8)]) for _ in range(4)]

    def work(program):
        for _ in range(2000):
            array = np.zeros(4, np.uint8)
            assert program.call((array,)) == DONE
            assert array[0] == 1

    threads = [threading.Thread(target=work, args=(program,)) for program in programs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [program.runs for program in programs] == [2000] * 4


def test_layout_is_checked(monkeypatch):
    """Wrong offsets are noticed, before native code relies on them."""
    right = arguments.layout()
    assert right is not None
    for field, by in itertools.product(right._fields, (-8, 8)):
        wrong = right._replace(**{field: getattr(right, field) + by})
        assert not arguments._holds(wrong), field


def test_address():
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    for array in (
        base,
        base[1:],
        base.T,
        base[:, 3],
        np.array(1.0),
        base[:0],
        base.view(np.recarray),
    ):
        assert arguments.address(array) == array.__array_interface__["data"][0]
