"""The thread pool: tasks run once each, whatever the number of threads and whoever calls."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import needle as ndl
from needle.backends.cpu import jit
from needle.backends.cpu.llvm import Module
from needle.errors import ArgumentError

SOURCE = str(Path(ndl.__file__).parents[1])

#: count: task t adds 1 to element t. long: to element 32t, 20,000 times, and it stores where its
#: stack is in the next. nested: it runs 8 tasks of its own, on elements 8t and after.
IR = """
declare void @needle_parallel(ptr, ptr, i64)
define internal void @count_task(ptr %p, i64 %t) #0 {
  %q = getelementptr i64, ptr %p, i64 %t
  %v = load i64, ptr %q
  %w = add i64 %v, 1
  store i64 %w, ptr %q
  ret void
}
define void @count(ptr %p, i64 %n) #0 {
  call void @needle_parallel(ptr @count_task, ptr %p, i64 %n)
  ret void
}
define void @count_often(ptr %p, i64 %n, i64 %times) #0 {
entry:
  br label %turn
turn:
  %i = phi i64 [0, %entry], [%j, %turn]
  call void @needle_parallel(ptr @count_task, ptr %p, i64 %n)
  %j = add i64 %i, 1
  %c = icmp slt i64 %j, %times
  br i1 %c, label %turn, label %done
done:
  ret void
}
define internal void @long_task(ptr %p, i64 %t) #0 {
entry:
  %line = mul i64 %t, 32
  %q = getelementptr i64, ptr %p, i64 %line
  %local = alloca i64
  %stack = ptrtoint ptr %local to i64
  %q1 = getelementptr i64, ptr %q, i64 1
  store i64 %stack, ptr %q1
  br label %turn
turn:
  %i = phi i64 [0, %entry], [%j, %turn]
  %v = load volatile i64, ptr %q
  %w = add i64 %v, 1
  store volatile i64 %w, ptr %q
  %j = add i64 %i, 1
  %c = icmp slt i64 %j, 20000
  br i1 %c, label %turn, label %done
done:
  ret void
}
define void @long(ptr %p, i64 %n) #0 {
  call void @needle_parallel(ptr @long_task, ptr %p, i64 %n)
  ret void
}
define internal void @nested_task(ptr %p, i64 %t) #0 {
  %o = mul i64 %t, 8
  %q = getelementptr i64, ptr %p, i64 %o
  call void @needle_parallel(ptr @count_task, ptr %q, i64 8)
  ret void
}
define void @nested(ptr %p, i64 %n) #0 {
  call void @needle_parallel(ptr @nested_task, ptr %p, i64 %n)
  ret void
}
"""


class Kernels:
    def __init__(self):
        module = Module()
        module.add_function(IR)
        library = jit.load(module)
        pair = (ctypes.c_void_p, ctypes.c_int64)
        self.count = library.function("count", *pair)
        self.count_often = library.function("count_often", *pair, ctypes.c_int64)
        self.long = library.function("long", *pair)
        self.nested = library.function("nested", *pair)


@pytest.fixture(scope="module")
def kernels():
    return Kernels()


@pytest.fixture
def use():
    """Set the number of threads, for one test."""
    before = ndl.get_num_threads()
    yield ndl.set_num_threads
    ndl.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16])
def test_each_task_runs_once(kernels, use, count):
    use(count)
    for tasks in [0, 1, 2, 3, 4, 15, 16, 17, 1000]:
        done = np.zeros(tasks + 8, np.int64)
        for turn in range(1, 4):
            kernels.count(done.ctypes.data, tasks)
            assert done[:tasks].tolist() == [turn] * tasks
            assert not done[tasks:].any()


@pytest.mark.parametrize("count", [2, 3])
def test_jobs_one_after_the_other(kernels, use, count):
    use(count)
    done = np.zeros(8, np.int64)
    kernels.count_often(done.ctypes.data, 5, 100_000)
    assert done.tolist() == [100_000] * 5 + [0] * 3


@pytest.mark.parametrize("count", [2, 3])
def test_threads_share_the_work(kernels, use, count):
    """Each thread has a stack of its own. On busy cores the caller may do all of a job."""
    use(count)
    deadline = time.monotonic() + 30
    stacks = np.zeros((6, 32), np.uint64)
    while True:
        kernels.long(stacks.ctypes.data, 6)
        threads = stacks[:, 1] >> np.uint64(16)
        # Task t runs on thread t mod T.
        assert threads[:count].tolist() == threads[count : 2 * count].tolist()
        if len(set(threads[:count].tolist())) == count:
            break
        assert time.monotonic() < deadline, "no worker ever took part"


def test_a_task_that_runs_tasks(kernels, use):
    use(3)
    done = np.zeros(80, np.int64)
    kernels.nested(done.ctypes.data, 10)
    assert done.tolist() == [1] * 80


def test_several_python_threads_call_at_once(kernels, use):
    use(2)
    arrays = [np.zeros(7, np.int64) for _ in range(4)]
    errors = []

    def work(array):
        try:
            for _ in range(300):
                kernels.count_often(array.ctypes.data, 7, 20)
        except BaseException as error:
            errors.append(error)

    callers = [threading.Thread(target=work, args=(array,)) for array in arrays]
    for caller in callers:
        caller.start()
    for count in [1, 3, 2, 4, 2] * 5:  # the number of threads changes meanwhile
        use(count)
        time.sleep(0.005)
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()
    assert not errors
    assert [array.tolist() for array in arrays] == [[6000] * 7] * 4


def test_after_a_pause(kernels, use):
    use(2)
    done = np.zeros(4, np.int64)
    for turn in range(20):
        time.sleep(0.003)
        kernels.count(done.ctypes.data, 4)
        assert done.tolist() == [turn + 1] * 4


def test_idle_threads_leave_their_cores(kernels, use):
    use(2)
    done = np.zeros(4, np.int64)
    kernels.count(done.ctypes.data, 4)
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.1


@pytest.mark.parametrize("wrong", [0, -1, 257, 1.5, True, "2", None])
def test_set_num_threads_refuses(wrong):
    with pytest.raises(ArgumentError, match="integer from 1 to 256"):
        ndl.set_num_threads(wrong)


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": SOURCE, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_environment_variable():
    code = "import needle as ndl; print(ndl.get_num_threads())"
    assert python(code, NEEDLE_NUM_THREADS="3").stdout == "3\n"
    for wrong in ("", "0", "many", "1000", "-2"):
        done = python(code, NEEDLE_NUM_THREADS=wrong)
        assert done.returncode == 1
        assert "NEEDLE_NUM_THREADS must be an integer" in done.stderr


def test_asking_for_the_number_loads_nothing():
    code = "import sys, needle as ndl; ndl.set_num_threads(3); print('llvmlite' in sys.modules)"
    assert python(code).stdout == "False\n"
