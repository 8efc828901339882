"""The thread pool: tasks run once each, whatever the number of threads and whoever calls."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import needle as ndl
from needle.errors import ArgumentError

SOURCE = str(Path(ndl.__file__).parents[1])


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
