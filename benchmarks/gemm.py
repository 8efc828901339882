"""``python -m benchmarks.gemm``: matrix products, needle's kernels beside PyTorch's.

The fastest of many short turns counts, so that other programs on the machine do little harm.
"""

from __future__ import annotations

import argparse
import re

from rich.console import Console
from rich.progress import track

from benchmarks.harness import Row, Worker

#: m, n, k: squares, odd ones, those of an MLP 784-128-64-10 with their gradients, vectors.
SHAPES = (
    [(n, n, n) for n in (64, 100, 128, 256, 512, 1024, 2048)]
    + [(127, 511, 255), (33, 10, 500), (1, 128, 784), (1, 1024, 1024), (512, 1, 512)]
    + [(32, 128, 784), (32, 64, 128), (32, 10, 64), (128, 1024, 1024)]
)
#: And those of a GPT 6×384 with 8×256 tokens, in bfloat16.
GPT_SHAPES = [(2048, 1152, 384), (2048, 384, 384), (2048, 1536, 384), (2048, 384, 1536)]
#: The same for A transposed (gradients of weights), B transposed (gradients of inputs).
TURNED = {
    "nn": SHAPES,
    "tn": [(784, 128, 32), (128, 64, 32), (64, 10, 32), *SHAPES[:9]],
    "nt": [(32, 64, 10), (32, 128, 64), (32, 784, 128), *SHAPES[:9]],
    "tt": SHAPES[:7],
}

#: Squares whose operands begin so many bytes off a cache line, as NumPy's arrays often do.
OFF = 16
OFF_LINE = [(n, n, n) for n in (64, 128, 256, 300, 512, 1024)]


def fastest(workers: list[Worker], args: dict[str, object], seconds: float) -> dict[str, float]:
    """Return the seconds per call of each worker's fastest repetition."""
    for worker in workers:
        worker.ask(do="prepare", program="product", args=args)
    best = {worker.framework: float("inf") for worker in workers}
    for turn in range(max(2, round(seconds / 0.02 / len(workers)))):
        for worker in workers if turn % 2 else reversed(workers):
            times = worker.ask(do="run", seconds=0.02)
            best[worker.framework] = min(best[worker.framework], *times)
    return best


def measured(
    threads: int, seconds: float, only: str = "", *, sizes: str = "known", dtypes: str = "f32,f64"
) -> list[Row]:
    """Return a row for each product whose name matches ``only``.

    Args:
        threads: for both libraries.
        seconds: for each row.
        only: a regular expression.
        sizes: ``"known"`` when a kernel is made, or ``"unknown"`` as in eager mode.
        dtypes: which, with commas between.
    """
    names = {"f32": "float32", "f64": "float64", "bf16": "bfloat16"}
    cases = [
        (f"{m}×{k}·{k}×{n} {layout} {dtype}{' off' if off else ''}", m, n, k, layout, dtype, off)
        for dtype in dtypes.split(",")
        for layout, shapes, off in [*((*item, 0) for item in TURNED.items()), ("nn", OFF_LINE, OFF)]
        for m, n, k in (shapes if dtype != "bf16" or off else [*shapes, *GPT_SHAPES])
    ]
    chosen = [case for case in cases if re.search(only, case[0])]
    if not chosen:
        return []
    workers = [Worker("gemm", threads), Worker("torch", threads)]
    rows = []
    for name, m, n, k, layout, dtype, off in track(
        chosen, "products", console=Console(stderr=True)
    ):
        request = {"m": m, "n": n, "k": k, "layout": layout, "dtype": names[dtype]}
        request |= {"off": off} if off else {}
        best = fastest(
            workers, {**request, "sizes": sizes} if sizes != "known" else request, seconds
        )
        least = 1.2 if max(m, n, k) <= 128 else 1.0
        # Within 3 % is a tie.
        row = Row(name, "µs", target=f"≥ {least:g}×", ratio=0.97 if least == 1.0 else least)
        row.values = {"needle": best["gemm"] * 1e6, "torch": best["torch"] * 1e6}
        rows.append(row)
    for worker in workers:
        worker.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="f32,f64", help="f32, f64, bf16, with commas between")
    parser.add_argument("--only", default="", help="a regular expression of rows")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each row")
    parser.add_argument("--unknown", action="store_true", help="kernels of run-time sizes")
    args = parser.parse_args()
    sizes = "unknown" if args.unknown else "known"
    rows = measured(args.threads, args.seconds, args.only, sizes=sizes, dtypes=args.dtypes)
    for row in rows:
        times = f"{row.values['needle']:10.2f} µs   PyTorch {row.values['torch']:10.2f} µs"
        print(f"{row.name:30} {times}   {row.speedup:.2f}")


if __name__ == "__main__":
    main()
