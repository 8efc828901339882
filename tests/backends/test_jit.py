"""From IR to functions: compiling, also side by side, linking, errors."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu import jit
from needle.backends.cpu.llvm import Function
from needle.backends.cpu.module import Module

SOURCE = str(Path(ndl.__file__).parents[1])


def module_of(text):
    module = Module()
    module.add_text(text)
    return module


def store(name, value):
    """A module with ``void name(ptr)``, which stores ``value``."""
    return module_of(
        f"define void @{name}(ptr %p) #0 {{\n store i64 {value}, ptr %p\n ret void\n}}"
    )


def run(library, name):
    result = np.zeros(1, np.int64)
    library.function(name, ctypes.c_void_p)(result.ctypes.data)
    return int(result[0])


def bulky(seed, functions=20):
    """A module of functions that take LLVM some time."""
    module = Module()
    for n in range(functions):
        f = Function(module, f"f{seed}_{n}", {"p": "ptr"}, internal=False)

        def body(i, values, f=f, n=n):
            x = f.load("%p", i, ndl.float32, 16)
            for k in range(20):
                x = f.fma(x, x, f.like(k + seed + n, x))
            f.store(x, "%p", i)
            return values

        f.loop(0, 160, 16, [], body)
        f.end()
    return module


def test_a_function_runs_and_keeps_its_library():
    function = jit.load(store("answer", 42)).function("answer", ctypes.c_void_p)
    result = np.zeros(1, np.int64)
    function(result.ctypes.data)
    assert result[0] == 42


def test_equal_names_in_two_libraries():
    first, second = jit.load(store("same", 1)), jit.load(store("same", 2))
    assert (run(first, "same"), run(second, "same")) == (1, 2)


def test_only_exports_are_found():
    library = jit.load(
        module_of(
            "define internal void @hidden(ptr %p) #0 {\n store i64 3, ptr %p\n ret void\n}\n"
            "define void @shown(ptr %p) #0 {\n call void @hidden(ptr %p)\n ret void\n}\n"
        )
    )
    assert list(library.exports) == ["shown"]
    assert run(library, "shown") == 3
    with pytest.raises(KeyError):
        library.address("hidden")


def test_objects_that_call_each_other():
    caller = module_of(
        "declare void @callee(ptr)\n"
        "define void @caller(ptr %p) #0 {\n call void @callee(ptr %p)\n ret void\n}"
    )
    codes = [jit.compile_object(module) for module in (caller, store("callee", 7))]
    assert run(jit.load_object(codes, ["caller"]), "caller") == 7


def test_symbols_far_away():
    """An address more than 2 GiB away from the code is reached."""
    code = (
        "declare void @far(ptr)\ndefine void @f(ptr %p) #0 {\n call void @far(ptr %p)\n ret void\n}"
    )
    seen = []
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    callback = kind(seen.append)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    jit.load(module_of(code), symbols={"far": address}).function("f", ctypes.c_void_p)(5)
    assert seen == [5]
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return
    import mmap

    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    ]  # fmt: skip
    access = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    place = libc.mmap(0x10000000, 4096, access, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    ctypes.memmove(place, b"\x48\xc7\x07\x09\x00\x00\x00\xc3", 8)  # mov qword [rdi], 9; ret
    library = jit.load(module_of(code), symbols={"far": place})
    assert abs(library.address("f") - place) > 2**31
    assert run(library, "f") == 9


def test_a_missing_function_is_an_error_not_a_crash(capfd):
    code = "declare void @nowhere()\ndefine void @f() #0 {\n call void @nowhere()\n ret void\n}"
    with pytest.raises(RuntimeError, match="symbols"):
        jit.load(module_of(code))
    assert "nowhere" in capfd.readouterr().err


def test_code_that_is_none(capfd):
    code = jit.compile_object(store("f", 1))
    for wrong in (b"", b"no object", code[:100], code[: len(code) // 2]):
        with pytest.raises(RuntimeError):
            jit.load_object(wrong, ["f"])
    with pytest.raises(RuntimeError):
        jit.load_object(code, ["g"])


def test_llvm_says_what_is_wrong_with_the_text():
    wrong = module_of("define void @f() #0 {\n %x = add i32 1, %y\n ret void\n}")
    with pytest.raises(RuntimeError, match="undefined value '%y'"):
        jit.compile_object(wrong)
    parts = bulky(1)
    parts.add_function("wrong", "() #0\n{\n %x = add i32 1, %y\n ret void\n}", internal=True)
    with pytest.raises(RuntimeError, match="undefined value '%y'"):
        jit.compile_objects(parts, nbytes=5000)


def calling(count):
    """A module whose ``all`` calls ``count`` internal functions, with one constant among them."""
    module = Module()
    table = module.constant("table", "[2 x i64] [i64 3, i64 4]")
    names = []
    for n in range(count):
        f = Function(module, f"part{n}", {"p": "ptr"})
        x = f.load(f"@{table}", n % 2, ndl.int64)
        f.store(f.add(x, f.load("%p", 0, ndl.int64)), "%p", 0)
        f.store(f.like(n, x), "%p", 1)
        names.append(f.end())
    f = Function(module, "all", {"p": "ptr"}, internal=False)
    for name in names:
        f.emit(f"call void @{name}(ptr %p)")
    f.end()
    return module


def test_parts_are_compiled_side_by_side_and_linked():
    module = calling(12)
    codes = jit.compile_objects(module, nbytes=400)
    assert len(codes) > 3
    assert codes == jit.compile_objects(module, nbytes=400)
    assert [jit.compile_object(module)] == jit.compile_objects(module)  # small: one part
    result = np.zeros(2, np.int64)
    for code in (codes, jit.compile_object(module)):
        result[:] = 0
        jit.load_object(code, ["all"]).function("all", ctypes.c_void_p)(result.ctypes.data)
        assert result.tolist() == [6 * 3 + 6 * 4, 11]
    with pytest.raises(KeyError):
        jit.load_object(codes, ["all"]).address("part0")


def test_equal_functions_are_one():
    """Of internal functions; what others call keeps its name."""
    module = Module()

    def make(name, value, internal=True):
        f = Function(module, name, {"p": "ptr"}, internal=internal)
        f.store(f.constant(value, ndl.int64), "%p", 0)
        return f.end()

    assert make("a", 1) == make("b", 1) == "a"
    assert make("c", 2) == "c"
    assert [make("d", 1, internal=False), make("e", 1, internal=False)] == ["d", "e"]
    text = module.text()
    assert "@b(" not in text
    assert text.count("define") == 4
    same = module.constant("one", "[1 x i8] [i8 1]"), module.constant("two", "[1 x i8] [i8 1]")
    assert same == ("one", "one")


def test_code_is_generated_outside_of_the_lock():
    """A version of llvmlite for which this fails compiles on one core: look at `_unlocked_emit`."""
    assert jit._unlocked_emit() is not None


def test_threads_that_compile_and_load():
    results, errors = {}, []

    def work(number):
        try:
            for turn in range(10):
                value = 100 * number + turn
                results[value] = run(jit.load(store("f", value)), "f")
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not errors
    assert results == {100 * n + t: 100 * n + t for n in range(4) for t in range(10)}


def test_memory_comes_back():
    """Libraries that nobody refers to are unloaded."""
    psutil = pytest.importorskip("psutil")
    code, process = jit.compile_object(bulky(1, 40)), psutil.Process()
    sizes = []
    for turn in range(600):
        jit.load_object(code, ["f1_0"])
        if turn in (100, 599):
            sizes.append(process.memory_info().rss)
    assert sizes[1] - sizes[0] < 4 << 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_forking_while_others_compile():
    """A child can compile, whatever the parent's threads were doing when it was forked."""
    code = """
import os, signal, threading, time
from tests.backends.test_jit import bulky, store, run
from needle.backends.cpu import jit

jit.load(store("warm", 1))
end = threading.Event()
def work(seed):
    while not end.is_set():
        jit.compile_objects(bulky(seed), nbytes=5000)
workers = [threading.Thread(target=work, args=(seed,)) for seed in (1, 3)]
for worker in workers:
    worker.start()
good = 0
for turn in range(15):
    time.sleep(0.003 * turn)
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a deadlock ends the child
        os._exit(0 if run(jit.load(store("child", turn)), "child") == turn else 1)
    good += os.waitpid(child, 0)[1] == 0
end.set()
for worker in workers:
    worker.join()
print(good)
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([SOURCE, root])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout == "15\n", done.stderr
