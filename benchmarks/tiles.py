"""``python -m benchmarks.tiles``: the cost models checked against measurement.

For the shapes of `benchmarks.conv` and `benchmarks.gemm`: the plan that the model chooses beside
the fastest of the candidates that ``compile(tune=True)`` searches. A ratio above 1 says how much
faster another plan is; 1.00 that none is faster by more than noise. Only needle runs, so no turns
with others are needed; candidates take turns among themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from benchmarks.conv import FORMS, NETWORKS, name_of
from benchmarks.conv_programs import spec_of
from benchmarks.gemm import GPT_SHAPES, TURNED
from needle import dtypes
from needle.backends.cpu.gemm import GemmSpec, Matrix
from needle.backends.cpu.target import host
from needle.backends.cpu.threads import set_num_threads
from needle.backends.cpu.tuning.candidates import AnyPlan, Spec, candidates
from needle.backends.cpu.tuning.search import search

#: Longer than any search of one kernel.
PATIENCE = 600.0
DTYPES = {"f32": dtypes.float32, "f64": dtypes.float64, "bf16": dtypes.bfloat16}


def products(dtype: str) -> Iterator[tuple[str, Spec]]:
    """Yield name and specification of the rows of `benchmarks.gemm`, of one dtype."""
    kind = DTYPES[dtype]
    wide = dtypes.accumulation_dtype(kind)
    for layout, shapes in TURNED.items():
        for m, n, k in shapes if dtype != "bf16" else [*shapes, *GPT_SHAPES]:
            a = Matrix(kind, 1, m) if layout[0] == "t" else Matrix(kind, k)
            b = Matrix(kind, 1, k) if layout[1] == "t" else Matrix(kind, n)
            name = f"{m}×{k}·{k}×{n} {layout} {dtype}"
            yield name, GemmSpec(m, n, k, a, b, Matrix(wide, n), dtype=wide)


def convolutions(dtype: str) -> Iterator[tuple[str, Spec]]:
    """Yield name and specification of the rows of `benchmarks.conv`, of one dtype."""
    for network, shapes in NETWORKS.items():
        for case in shapes:
            for form in FORMS:
                spec = spec_of(form, **case)
                if dtype != "f32":
                    kind = DTYPES[dtype]
                    is_moved = form == "weight_grad" and spec.stride == (1, 1) and spec.groups == 1
                    if dtype == "bf16" and form != "forward" and not is_moved:
                        continue
                    spec = dataclasses.replace(spec, dtype=kind)
                yield f"{name_of(network, form, case)} {dtype}", spec


def differences(model: Any, other: Any, prefix: str = "") -> Iterator[str]:
    """Yield what distinguishes a plan from the model's, field by field."""
    for field in dataclasses.fields(model):
        ours, theirs = getattr(model, field.name), getattr(other, field.name)
        if ours == theirs or field.name in ("work", "spec", "workspace", "tasks"):
            continue
        if dataclasses.is_dataclass(ours) and field.name in ("detail", "plan"):
            yield from differences(ours, theirs, f"{field.name}.")
        else:
            yield f"{prefix}{field.name} {_text(ours)} → {_text(theirs)}"


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(_text(v) for v in value) + ")"
    return "×".join(map(str, dataclasses.astuple(value))) if _is_record(value) else str(value)  # type: ignore[call-overload]


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kinds", default="products,convolutions", help="which, with commas")
    parser.add_argument("--dtypes", default="f32", help="f32, f64, bf16, with commas between")
    parser.add_argument("--only", default="", help="a regular expression of rows")
    parser.add_argument("--warm", action="store_true", help="caches as in a small program")
    parser.add_argument("--seconds", type=float, default=0.0, help="stop after so many")
    args = parser.parse_args()
    set_num_threads(args.threads)
    makers = {"products": products, "convolutions": convolutions}
    cases = [
        case
        for kind in args.kinds.split(",")
        for dtype in args.dtypes.split(",")
        for case in makers[kind](dtype)
        if re.search(args.only, case[0])
    ]
    gains = []
    start = time.perf_counter()
    for name, spec in track(cases, "searching", console=Console(stderr=True)):
        if args.seconds and time.perf_counter() - start > args.seconds:
            break
        plans: list[AnyPlan] = candidates(spec, host(), args.threads)
        deadline = time.perf_counter() + PATIENCE
        cold = not args.warm
        found = search(spec, plans, host(), args.threads, is_cold=cold, deadline=deadline)
        if found is None or found.tried == 1:
            continue
        gains.append(found.gain)
        what = "; ".join(differences(plans[0], plans[found.choice]))
        times = f"{found.model * 1e6:9.1f} µs → {found.best * 1e6:9.1f}"
        print(f"{name:60} {times} {found.gain:5.2f} {found.tried:3} {what}", flush=True)
    if gains:
        low, median, high = np.quantile(gains, [0.25, 0.5, 0.75])
        beaten = sum(g > 1 for g in gains)
        print(
            f"{len(gains)} kernels; {beaten} faster by another plan; gain: median {median:.2f}, "
            f"quartiles {low:.2f} and {high:.2f}, mean {statistics.mean(gains):.3f}, "
            f"most {max(gains):.2f}"
        )


if __name__ == "__main__":
    main()
