"""The thread pool and processes: forks, ends, kills, threads that cannot be had."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pool_programs import IR

import needle as ndl
from needle.backends.cpu import jit, threads
from needle.backends.cpu.module import Module
from needle.backends.cpu.target import host

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

#: Children that other code forks, and ends of processes, are seen from outside only.
PRELUDE = """
import ctypes, os, signal, sys, threading, time
import numpy as np
import needle as ndl
from pool_programs import Kernels
ndl.set_num_threads(3)
def job(tasks=5):
    done = np.zeros(tasks, np.int64)
    for turn in range(3):
        kernels.count(done.ctypes.data, tasks)
    return done.tolist() == [3] * tasks
def workers():
    return sum(t.name.startswith("needle-") for t in threading.enumerate())
def long_jobs(end):
    done = np.zeros((8, 32), np.int64)
    while not end.is_set():
        kernels.long(done.ctypes.data, 8)
"""


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(ndl.__file__).parents[1]), str(Path(__file__).parent)]),
}


def scene(code, kernels=True):
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + "kernels = Kernels()\n" * kernels + code],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_no_thread_starts_before_it_is_needed():
    code = """
before = workers()
kernels.count(np.zeros(1, np.int64).ctypes.data, 1)
single = workers()
job()
print(before, single, workers())
"""
    assert scene(code) == "0 0 2\n"


@posix
def test_a_child_starts_threads_of_its_own():
    code = """
assert job()
child = os.fork()
if child == 0:
    signal.alarm(30)
    before = workers()
    good = job()
    os._exit(0 if good and (before, workers()) == (0, 2) else 1)
print(os.waitpid(child, 0)[1], job(), workers())
"""
    assert scene(code) == "0 True 2\n"


@posix
def test_forks_in_the_middle_of_jobs():
    """Other threads run jobs all the time; children find a pool that is free."""
    code = """
end = threading.Event()
others = [threading.Thread(target=long_jobs, args=(end,)) for _ in range(2)]
for other in others:
    other.start()
good = 0
for turn in range(30):
    time.sleep(0.002)
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        good = job()
        grandchild = os.fork()
        if grandchild == 0:
            signal.alarm(30)
            os._exit(0 if job() else 1)
        os._exit(0 if good and os.waitpid(grandchild, 0)[1] == 0 else 1)
    good += os.waitpid(child, 0)[1] == 0
end.set()
for other in others:
    other.join()
print(good, job())
"""
    assert scene(code) == "30 True\n"


@posix
def test_children_of_multiprocessing():
    code = """
import multiprocessing
def work(n):
    return job(n)
assert job()
with multiprocessing.get_context("fork").Pool(2) as children:
    print(children.map(work, range(2, 12)) == [True] * 10, job())
"""
    assert scene(code) == "True True\n"


@pytest.mark.parametrize(
    "end", ["", "sys.exit(0)", "os._exit(0)", "threading.Thread(target=job).start()"]
)
def test_processes_end_promptly(end):
    """With idle workers, and with jobs that daemon threads go on running."""
    busy = """
threading.Thread(target=long_jobs, args=(threading.Event(),), daemon=True).start()
time.sleep(0.05)
"""
    for code in (end, busy + end):
        start = time.monotonic()
        scene("assert job()\n" + code)
        assert time.monotonic() - start < 30


def test_jobs_at_the_end_of_the_process():
    """Functions registered with atexit before and after the pool's own still get their results."""
    code = """
import atexit
def ended():
    # A worker that has left native code needs the interpreter for its last steps.
    end = time.monotonic() + 20
    while workers() and time.monotonic() < end:
        time.sleep(0.01)
    return workers()
atexit.register(lambda: print("late", job(), ended(), flush=True))
kernels = Kernels()  # registers the pool's own function
assert job()
atexit.register(lambda: print("early", job(), workers(), flush=True))
"""
    assert scene(code, kernels=False) == "early True 2\nlate True 0\n"


@posix
def test_killed_in_the_middle_of_a_job():
    """The process ends, with all of its threads."""
    psutil = pytest.importorskip("psutil")
    code = PRELUDE + 'kernels = Kernels()\nprint("ready", flush=True)\nlong_jobs(threading.Event())'
    for name, status in (("SIGKILL", -signal.SIGKILL), ("SIGTERM", -signal.SIGTERM)):
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        assert process.wait(20) == status
        process.stdout.close()
        assert not psutil.pid_exists(process.pid)


@posix
def test_ctrl_c_in_the_middle_of_jobs():
    """The exception arrives between two jobs, and the pool goes on working."""
    code = """
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    long_jobs(threading.Event())
except KeyboardInterrupt:
    print("interrupted", job(), workers())
"""
    assert scene(code) == "interrupted True 2\n"


def test_where_threads_cannot_be_started():
    """The caller does it alone, and does not ask again."""
    code = """
asked = []
def start(self):
    asked.append(self)
    raise RuntimeError("can't start new thread")
threading.Thread.start = start
print(job(), job(), len(asked))
"""
    assert scene(code) == "True True 1\n"


def test_a_pool_without_futexes():
    """As on other systems: threads look again from time to time."""
    pool = threads.Pool(futex=False)
    pool.resize(3)
    module = Module()
    module.add_text(IR)
    library = jit.load(module, symbols={"needle_parallel": pool.entry})
    count = library.function("count", ctypes.c_void_p, ctypes.c_int64)
    done = np.zeros(9, np.int64)
    for turn in range(1, 400):
        if turn % 40 == 0:
            time.sleep(0.005)  # long enough for the workers to sleep
        count(done.ctypes.data, 9)
        assert done.tolist() == [turn] * 9
    pool.close()
    count(done.ctypes.data, 9)
    assert done.tolist() == [turn + 1] * 9


#: modes: under a floating-point mode, each task stores the mode it sees and where its stack is.
MODE_IR = """
declare void @needle_parallel(ptr, ptr, i64)
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define internal void @task(ptr %p, i64 %t) #0 {
entry:
  %line = mul i64 %t, 32
  %q = getelementptr i32, ptr %p, i64 %line
  %q1 = getelementptr i32, ptr %q, i64 1
  %q2 = getelementptr i32, ptr %q, i64 2
  br label %turn
turn:
  %i = phi i64 [0, %entry], [%j, %turn]
  store volatile i32 0, ptr %q1
  %j = add i64 %i, 1
  %c = icmp slt i64 %j, 20000
  br i1 %c, label %turn, label %done
done:
  call void @llvm.x86.sse.stmxcsr(ptr %q)
  %local = alloca i64
  %stack = ptrtoint ptr %local to i64
  %high = lshr i64 %stack, 16
  %short = trunc i64 %high to i32
  store i32 %short, ptr %q2
  ret void
}
define void @modes(ptr %p, i64 %n, i32 %mode) #0 {
  %old = alloca i32
  %new = alloca i32
  store i32 %mode, ptr %new
  call void @llvm.x86.sse.stmxcsr(ptr %old)
  call void @llvm.x86.sse.ldmxcsr(ptr %new)
  call void @needle_parallel(ptr @task, ptr %p, i64 %n)
  call void @llvm.x86.sse.ldmxcsr(ptr %old)
  ret void
}
"""


@pytest.mark.skipif(host().architecture != "x86", reason="reads x86's MXCSR")
def test_workers_round_as_the_caller_does(use):
    """The caller's floating-point mode holds in all tasks, so that T changes no bit."""
    module = Module()
    module.add_text(MODE_IR)
    library = jit.load(module)
    run = library.function("modes", ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32)
    use(2)
    modes = np.zeros((4, 32), np.int32)
    deadline = time.monotonic() + 30
    stacks = set()
    while len(stacks) < 2:  # until a worker has taken part
        for mode in (0x1F80, 0x9FC0, 0x7F80):
            run(modes.ctypes.data, 4, mode)
            assert (modes[:, 0] & ~0x3F).tolist() == [mode & ~0x3F] * 4
            stacks |= set((modes[:, 2]).tolist())
        assert time.monotonic() < deadline
