"""The threads that run tasks: `needle_parallel`, called from generated code.

``needle_parallel(fn, data, tasks)`` runs ``fn(data, t)`` for each t in ``range(tasks)`` and returns
when all have. Task t runs on thread t mod T, where thread 0 is the caller; tasks write to disjoint
memory, and what they compute does not depend on T, so that no number of threads changes a bit.

A worker is a Python thread that has entered native code, where it holds no GIL. It shares one word
with the caller, which changes like this::

                         ┌───────────── the caller takes the share back ◄┐
                         ▼                                               │
    ABSENT ──starts──► IDLE ──caller posts─────────────────────────────► RUN
                       │ ▲                                        ▲      │ worker begins
       worker sleeps   ▼ └─ worker is done ◄── AWAITED ◄─caller───│── RUNNING
                    SLEEPING ──caller posts and wakes─────────────┘  sleeps

Both sides look at the word for some time (`_IDLE_SECONDS`, `_JOIN_SECONDS`) before they sleep on
it: a bounded time, so that idle threads leave their cores to others. To wake a thread whose core
has gone idle takes a virtual machine 0.2 to 0.4 ms, so a caller who has finished its own share does
not wait for a worker that has not begun: it takes the share back. A job is thus never slower than
without the threads, up to what waking costs the waker.

Measured on 2 virtual cores: a job of two tasks takes 0.5 µs more than one of its tasks, jobs one
after the other or up to 0.4 ms apart; after longer pauses, 5 to 20 µs more than both of its tasks
(50 µs on cores that other programs keep busy).

One job runs at a time. A caller who finds the threads busy, because another Python thread runs a
job or because it is itself a task of one, runs its tasks one after the other; so do processes that
have just been forked, until the first job starts threads of their own.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
from collections.abc import Callable

from needle.backends.cpu import linux
from needle.errors import ArgumentError

#: More threads than any machine has that this is for; each has two cache lines in the state.
MAX_THREADS = 256

ABSENT, IDLE, SLEEPING, RUN, RUNNING, AWAITED, STOP = range(7)

#: How long a worker looks for a job before it sleeps: about what a sleep and a wake cost, so that
#: waiting costs at most twice what it would with perfect foresight.
_IDLE_SECONDS = 500e-6
#: How long a caller looks whether a worker is done. Shorter, because a worker that takes longer
#: than the caller may have lost its core to another program, and can have the caller's.
_JOIN_SECONDS = 50e-6
#: After how many looks (0.1 ms) it lets another thread of the same core run, if there is one:
#: on busy machines the worker and the caller may find themselves on one core, each in the other's
#: way. Not while jobs follow each other: who yields on Linux gives away a whole time slice, if only
#: to a program of idle priority, and misses the next jobs (every 6 µs: 10 to 20 % of an LSTM's step
#: beside tests that run in the background).
_YIELD_EVERY = 2048

# Offsets in bytes in the state: settings, the lock and the job on cache lines of their own (128
# bytes: processors fetch lines in pairs), then the words of the workers.
_THREADS, _STARTED, _IDLE_LOOKS, _JOIN_LOOKS, _START = 0, 4, 8, 12, 16
_BUSY = 128
_FN, _DATA, _TASKS, _STRIDE, _MODE = 256, 264, 272, 280, 288
_WORDS, _WORD_BYTES = 384, 128
_SIZE = _WORDS + MAX_THREADS * _WORD_BYTES

_IR = """
@needle_pool = global [{size} x i8] zeroinitializer, align 128

define internal void @pool_share(ptr %fn, ptr %data, i64 %first, i64 %tasks, i64 %stride) #0 {{
entry:
  %any = icmp slt i64 %first, %tasks
  br i1 %any, label %turn, label %done
turn:
  %t = phi i64 [%first, %entry], [%next, %turn]
  call void %fn(ptr %data, i64 %t)
  %next = add nsw i64 %t, %stride
  %more = icmp slt i64 %next, %tasks
  br i1 %more, label %turn, label %done
done:
  ret void
}}

; Look at %word until it is not %value any more; after a while set it to %asleep and sleep.
define internal i32 @pool_await(ptr %word, i32 %value, i32 %asleep, ptr %looks) #0 {{
entry:
  %limit = load atomic i32, ptr %looks monotonic, align 4
  br label %look
look:
  %n = phi i32 [0, %entry], [%m, %again]
  %seen = load atomic i32, ptr %word acquire, align 4
  %same = icmp eq i32 %seen, %value
  br i1 %same, label %pause, label %changed
pause:
  {pause}
  %m = add i32 %n, 1
  %patient = icmp ult i32 %m, %limit
  br i1 %patient, label %turn, label %give_up
turn:
  %low = and i32 %m, {yield_mask}
  %yields = icmp eq i32 %low, 0
  br i1 %yields, label %yield, label %again
yield:
  call void @pool_yield()
  br label %again
again:
  br label %look
give_up:
  %pair = cmpxchg ptr %word, i32 %value, i32 %asleep seq_cst seq_cst, align 4
  %agreed = extractvalue {{ i32, i1 }} %pair, 1
  %other = extractvalue {{ i32, i1 }} %pair, 0
  br i1 %agreed, label %sleep, label %too_late
sleep:
  call void @pool_wait(ptr %word, i32 %asleep)
  %after = load atomic i32, ptr %word acquire, align 4
  %still = icmp eq i32 %after, %asleep
  br i1 %still, label %sleep, label %woken
changed:
  ret i32 %seen
too_late:
  ret i32 %other
woken:
  ret i32 %after
}}

; Give %word a value; wake the thread that sleeps on it, which %asleep in its place says.
define internal void @pool_set(ptr %word, i32 %value, i32 %asleep) #0 {{
  %old = atomicrmw xchg ptr %word, i32 %value seq_cst, align 4
  %sleeps = icmp eq i32 %old, %asleep
  br i1 %sleeps, label %wake, label %done
wake:
  call void @pool_wake(ptr %word)
  br label %done
done:
  ret void
}}

define void @needle_worker(i64 %id) #0 {{
entry:
  %offset = mul i64 %id, {word_bytes}
  %word = getelementptr i8, ptr {words}, i64 %offset
  store atomic i32 {IDLE}, ptr %word seq_cst, align 4
  br label %wait
wait:
  %seen = call i32 @pool_await(ptr %word, i32 {IDLE}, i32 {SLEEPING}, ptr {idle_looks})
  %stop = icmp eq i32 %seen, {STOP}
  br i1 %stop, label %leave, label %begin
begin:
  %pair = cmpxchg ptr %word, i32 {RUN}, i32 {RUNNING} seq_cst seq_cst, align 4
  %mine = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %mine, label %run, label %wait
run:
  {take_mode}
  %fn = load ptr, ptr {fn}
  %data = load ptr, ptr {data}
  %tasks = load i64, ptr {tasks}
  %stride = load i64, ptr {stride}
  call void @pool_share(ptr %fn, ptr %data, i64 %id, i64 %tasks, i64 %stride)
  call void @pool_set(ptr %word, i32 {IDLE}, i32 {AWAITED})
  br label %wait
leave:
  store atomic i32 {ABSENT}, ptr %word seq_cst, align 4
  ret void
}}

define void @needle_parallel(ptr %fn, ptr %data, i64 %tasks) #0 {{
entry:
  %wanted = load atomic i32, ptr {threads} monotonic, align 4
  %wanted64 = zext i32 %wanted to i64
  %alone = icmp ult i32 %wanted, 2
  %single = icmp slt i64 %tasks, 2
  %trivial = or i1 %alone, %single
  br i1 %trivial, label %serial, label %lock
serial:
  call void @pool_share(ptr %fn, ptr %data, i64 0, i64 %tasks, i64 1)
  ret void
lock:
  %pair = cmpxchg ptr {busy}, i32 0, i32 1 seq_cst seq_cst, align 4
  %locked = extractvalue {{ i32, i1 }} %pair, 1
  br i1 %locked, label %check, label %serial
check:
  %ready = load atomic i32, ptr {started} monotonic, align 4
  %complete = icmp uge i32 %ready, %wanted
  br i1 %complete, label %split, label %start
start:
  %starter = load ptr, ptr {start}
  call void %starter(i32 %wanted)
  br label %split
split:
  %have = load atomic i32, ptr {started} monotonic, align 4
  %have64 = zext i32 %have to i64
  %few = icmp ult i64 %have64, %wanted64
  %most = select i1 %few, i64 %have64, i64 %wanted64
  %small = icmp slt i64 %tasks, %most
  %stride = select i1 %small, i64 %tasks, i64 %most
  store ptr %fn, ptr {fn}
  store ptr %data, ptr {data}
  store i64 %tasks, ptr {tasks}
  store i64 %stride, ptr {stride}
  {give_mode}
  %several = icmp sgt i64 %stride, 1
  br i1 %several, label %post, label %own
post:
  %p = phi i64 [1, %split], [%p1, %post]
  %poff = mul i64 %p, {word_bytes}
  %pword = getelementptr i8, ptr {words}, i64 %poff
  call void @pool_set(ptr %pword, i32 {RUN}, i32 {SLEEPING})
  %p1 = add i64 %p, 1
  %pmore = icmp slt i64 %p1, %stride
  br i1 %pmore, label %post, label %own
own:
  call void @pool_share(ptr %fn, ptr %data, i64 0, i64 %tasks, i64 %stride)
  br i1 %several, label %join, label %unlock
join:
  %j = phi i64 [1, %own], [%j1, %joined]
  %joff = mul i64 %j, {word_bytes}
  %jword = getelementptr i8, ptr {words}, i64 %joff
  %jpair = cmpxchg ptr %jword, i32 {RUN}, i32 {IDLE} seq_cst seq_cst, align 4
  %idle = extractvalue {{ i32, i1 }} %jpair, 1
  br i1 %idle, label %take, label %await
take:
  call void @pool_share(ptr %fn, ptr %data, i64 %j, i64 %tasks, i64 %stride)
  br label %joined
await:
  %seen = call i32 @pool_await(ptr %jword, i32 {RUNNING}, i32 {AWAITED}, ptr {join_looks})
  br label %joined
joined:
  %j1 = add i64 %j, 1
  %jmore = icmp slt i64 %j1, %stride
  br i1 %jmore, label %join, label %unlock
unlock:
  store atomic i32 0, ptr {busy} release, align 4
  ret void
}}

; Return in %result whether the pool was free, and take it; return it.
define void @needle_pool_lock(ptr %result) #0 {{
  %pair = cmpxchg ptr {busy}, i32 0, i32 1 seq_cst seq_cst, align 4
  %locked = extractvalue {{ i32, i1 }} %pair, 1
  %wide = zext i1 %locked to i32
  store i32 %wide, ptr %result
  ret void
}}
define void @needle_pool_stop(i64 %id) #0 {{
  %offset = mul i64 %id, {word_bytes}
  %word = getelementptr i8, ptr {words}, i64 %offset
  call void @pool_set(ptr %word, i32 {STOP}, i32 {SLEEPING})
  ret void
}}
; How long a look takes: for the length of the spins.
define void @needle_pool_pauses(i32 %count) #0 {{
entry:
  br label %turn
turn:
  %n = phi i32 [0, %entry], [%m, %turn]
  %seen = load atomic i32, ptr {busy} acquire, align 4
  {pause}
  %m = add i32 %n, 1
  %more = icmp ult i32 %m, %count
  br i1 %more, label %turn, label %done
done:
  ret void
}}
"""

#: What differs between processors: a pause between two looks, and how the caller's floating-point
#: mode (rounding, denormals) becomes the workers', so that theirs are the caller's results.
_PROCESSOR = {
    "x86": {
        "declarations": (
            "declare void @llvm.x86.sse2.pause()\n"
            "declare void @llvm.x86.sse.stmxcsr(ptr)\n"
            "declare void @llvm.x86.sse.ldmxcsr(ptr)"
        ),
        "pause": "call void @llvm.x86.sse2.pause()",
        "give_mode": "call void @llvm.x86.sse.stmxcsr(ptr {mode})",
        "take_mode": "call void @llvm.x86.sse.ldmxcsr(ptr {mode})",
    },
    "aarch64": {
        "declarations": (
            "declare void @llvm.aarch64.isb(i32)\n"
            "declare i64 @llvm.aarch64.get.fpcr()\n"
            "declare void @llvm.aarch64.set.fpcr(i64)"
        ),
        "pause": "call void @llvm.aarch64.isb(i32 15)",
        "give_mode": "%m0 = call i64 @llvm.aarch64.get.fpcr()\n  store i64 %m0, ptr {mode}",
        "take_mode": "%m0 = load i64, ptr {mode}\n  call void @llvm.aarch64.set.fpcr(i64 %m0)",
    },
    "": {"declarations": "", "pause": "", "give_mode": "", "take_mode": ""},
}


def pool_ir(architecture: str, futex: bool = linux.IS_LINUX) -> str:
    """Return the IR of the pool.

    Args:
        architecture: "x86", "aarch64" or "" for any other.
        futex: whether threads sleep on a futex; see `linux.wait_ir`.
    """
    places = {
        name: f"getelementptr (i8, ptr @needle_pool, i64 {offset})"
        for name, offset in {
            "threads": _THREADS, "started": _STARTED, "idle_looks": _IDLE_LOOKS,
            "join_looks": _JOIN_LOOKS, "start": _START, "busy": _BUSY, "fn": _FN,
            "data": _DATA, "tasks": _TASKS, "stride": _STRIDE, "mode": _MODE, "words": _WORDS,
        }.items()
    }  # fmt: skip
    processor = {name: text.format(**places) for name, text in _PROCESSOR[architecture].items()}
    body = _IR.format(
        **places, **processor, size=_SIZE, word_bytes=_WORD_BYTES, yield_mask=_YIELD_EVERY - 1,
        ABSENT=ABSENT, IDLE=IDLE, SLEEPING=SLEEPING, RUN=RUN, RUNNING=RUNNING, AWAITED=AWAITED,
        STOP=STOP,
    )  # fmt: skip
    return "\n".join([linux.wait_ir(futex), processor["declarations"], body])


class Pool:
    """The pool of this process: native code, its state, and the Python threads that run it.

    Args:
        futex: whether threads sleep on a futex; see `linux.wait_ir`.
    """

    def __init__(self, futex: bool = linux.IS_LINUX) -> None:
        from needle.backends.cpu import jit
        from needle.backends.cpu.module import Module

        module = Module()
        module.add_text(pool_ir(module.target.architecture, futex))
        self._library = jit.load_cached(module, ["needle_pool"], linux.wait_symbols())
        #: Address of ``needle_parallel``.
        self.entry = self._library.address("needle_parallel")
        self._state = self._library.address("needle_pool")
        self._worker = self._library.function("needle_worker", ctypes.c_int64)
        self._stop = self._library.function("needle_pool_stop", ctypes.c_int64)
        self._lock = self._library.function("needle_pool_lock", ctypes.c_void_p)
        self._start_callback = ctypes.CFUNCTYPE(None, ctypes.c_int32)(self._grow)
        self._pauses_per_second = self._measure_pause()
        start = ctypes.cast(self._start_callback, ctypes.c_void_p).value or 0
        ctypes.c_void_p.from_address(self._state + _START).value = start
        self._word(_STARTED).value = 1
        self._is_closed = False
        self.resize(get_num_threads())
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def resize(self, threads: int) -> None:
        """Use ``threads`` threads from the next job on."""
        if self._is_closed:
            return
        # Where threads outnumber the cores, one that spins keeps another from its work.
        crowded = threads > linux.available_cores()
        for offset, seconds in ((_IDLE_LOOKS, _IDLE_SECONDS), (_JOIN_LOOKS, _JOIN_SECONDS)):
            looks = 0 if crowded else round(seconds * self._pauses_per_second)
            self._word(offset).value = looks
        self._word(_THREADS).value = threads

    def close(self) -> None:
        """Stop the workers; later jobs run on the calling thread alone."""
        self._is_closed = True
        self._word(_THREADS).value = 1
        if not self._take(1.0):
            return  # another thread's job goes on; the process' end will end it
        started = self._word(_STARTED).value
        for worker in range(1, started):
            self._stop(worker)
        self._await(range(1, started), lambda state: state == ABSENT)
        self._word(_STARTED).value = 1
        self._word(_BUSY).value = 0

    def _word(self, offset: int) -> ctypes.c_int32:
        return ctypes.c_int32.from_address(self._state + offset)

    def _measure_pause(self) -> float:
        """Return how many looks at a word a thread takes in a second."""
        pauses = self._library.function("needle_pool_pauses", ctypes.c_int32)
        count, best = 500, 1.0
        for _ in range(5):
            before = time.perf_counter()
            pauses(count)
            best = min(best, time.perf_counter() - before)
        return count / best

    def _take(self, seconds: float) -> bool:
        """Wait until no job runs, and keep the pool from running one."""
        result = ctypes.c_int32()
        deadline = time.monotonic() + seconds
        while True:
            self._lock(ctypes.byref(result))
            if result.value or time.monotonic() > deadline:
                return bool(result.value)
            time.sleep(0.001)

    def _await(self, workers: range, is_done: Callable[[int], bool], seconds: float = 10.0) -> bool:
        """Wait until the words of ``workers`` are as wanted; return whether they are."""
        deadline = time.monotonic() + seconds
        for worker in workers:
            while not is_done(self._word(_WORDS + worker * _WORD_BYTES).value):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.00005)
        return True

    def _grow(self, wanted: int) -> None:
        """Start workers until there are ``wanted`` threads; called by a job that holds the pool."""
        started = self._word(_STARTED).value
        new = range(started, wanted)
        try:
            for worker in new:
                threading.Thread(
                    target=self._worker, args=(worker,), name=f"needle-{worker}", daemon=True
                ).start()
        except RuntimeError:  # no more threads are to be had, or the interpreter is ending
            self._word(_THREADS).value = started
            return
        # A worker counts from when it has entered native code: one that never gets there, because
        # the interpreter is ending, would be waited for without end.
        if self._await(new, lambda state: state != ABSENT):
            self._word(_STARTED).value = wanted

    def _forget(self) -> None:
        """Be a pool without workers: in a child process, where there is only the thread that
        forked."""
        ctypes.memset(self._state + _WORDS, 0, MAX_THREADS * _WORD_BYTES)
        self._word(_BUSY).value = 0
        self._word(_STARTED).value = 1


_count: int | None = None
_pool: Pool | None = None


def pool() -> Pool:
    """Return this process' pool; made when first asked for."""
    global _pool
    if _pool is None:
        from needle.backends.cpu import jit

        with jit.lock:  # which nobody holds in a process that has just been forked
            _pool = _pool or Pool()
    return _pool


def entry() -> int:
    """Return the address of ``void needle_parallel(ptr fn, ptr data, i64 tasks)``."""
    return pool().entry


def get_num_threads() -> int:
    """Return how many threads compute.

    Unless `set_num_threads` or the environment variable ``NEEDLE_NUM_THREADS`` says otherwise: the
    physical cores that the process may use, by its affinity mask and its control group's quota.

    Example:
        >>> ndl.get_num_threads() >= 1
        True
    """
    global _count
    if _count is None:
        text = os.environ.get("NEEDLE_NUM_THREADS")
        _count = linux.default_threads() if text is None else _from_environment(text)
    return _count


def set_num_threads(threads: int) -> None:
    """Compute with this many threads, from the next compiled call on.

    No result depends on it, not even in the last bit.

    Args:
        threads: 1 … 256. More than there are cores is allowed, and slow.

    Raises:
        ArgumentError: if it is not a number of threads.

    Example:
        >>> before = ndl.get_num_threads()
        >>> ndl.set_num_threads(2)
        >>> ndl.get_num_threads()
        2
        >>> ndl.set_num_threads(before)
    """
    global _count
    if isinstance(threads, bool) or not isinstance(threads, int) or not _is_count(threads):
        raise ArgumentError(
            f"set_num_threads: needs an integer from 1 to {MAX_THREADS}, got {threads!r}"
        )
    _count = threads
    if _pool is not None:
        _pool.resize(threads)


def _is_count(threads: int) -> bool:
    return 1 <= threads <= MAX_THREADS


def _from_environment(text: str) -> int:
    threads = int(text) if text.strip().isdecimal() else 0
    if not _is_count(threads):
        raise ArgumentError(
            f"the environment variable NEEDLE_NUM_THREADS must be an integer from 1 to "
            f"{MAX_THREADS}, it is {text!r}: change it or unset it"
        )
    return threads
