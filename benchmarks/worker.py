"""One framework in a process of its own: reads requests as JSON lines, answers with times.

A framework is ``needle``, ``torch``, ``jax``, ``onnxruntime`` or ``openvino``, or one of the first
two with `` compiled``. Each has a file of programs; one that it lacks, or that returns None, is not
measured.
Requests: ``{"do": "prepare", "program": name, "args": {...}}`` (answers whether it has one),
``{"do": "run", "seconds": s}`` (answers with the seconds per call of each repetition),
``{"do": "memory"}`` (peak resident bytes so far), ``{"do": "tensors"}`` (peak bytes of all tensors
of a step).
"""

from __future__ import annotations

import gc
import importlib
import json
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any


def run(program: Any, seconds: float, calls: int) -> list[float]:
    """Return the seconds per call, of repetitions of ``calls`` calls, until ``seconds`` are
    over."""
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(calls):
            program()
        times.append((time.perf_counter() - start) / calls)
    return times


def peak_memory() -> int:
    """Return the largest resident size so far, in bytes.

    Not from getrusage: its figure survives exec, so that a child starts with its parent's.
    """
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def main(framework: str, threads: int) -> None:
    """Answer requests until standard input ends."""
    library, _, mode = framework.partition(" ")
    module = importlib.import_module(f"benchmarks.{library}_programs")
    module.set_threads(threads)
    if mode:
        module.compile_programs()
    program: Any = None
    calls = 1
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any
        if request["do"] == "prepare":
            program = None
            gc.collect()
            make = getattr(module, request["program"], None)
            if make is None:
                print(json.dumps(False), flush=True)
                continue
            program = make(**request["args"])
            if program is None:
                print(json.dumps(False), flush=True)
                continue
            for _ in range(3):
                program()
            start = time.perf_counter()
            program()
            # Repetitions of about 0.2 ms, so that reading the clock costs nothing.
            calls = max(1, int(2e-4 / max(time.perf_counter() - start, 1e-7)))
            answer = True
        elif request["do"] == "run":
            answer = run(program, request["seconds"], calls)
        elif request["do"] == "tensors":
            answer = module.tensor_peak()
        else:
            answer = peak_memory()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
