"""``python -m benchmarks.gemm``: matrix products, needle's kernels beside PyTorch's.

The fastest of many short turns counts, so that other programs on the machine do little harm.
"""

from __future__ import annotations

import argparse
import re

from benchmarks.harness import Worker

#: m, n, k: squares, odd ones, those of an MLP 784-128-64-10 with their gradients, vectors.
SHAPES = (
    [(n, n, n) for n in (64, 100, 128, 256, 512, 1024, 2048)]
    + [(127, 511, 255), (33, 10, 500), (1, 128, 784), (1, 1024, 1024), (512, 1, 512)]
    + [(32, 128, 784), (32, 64, 128), (32, 10, 64), (128, 1024, 1024)]
)
#: The same for A transposed (gradients of weights), B transposed (gradients of inputs).
TURNED = {
    "nn": SHAPES,
    "tn": [(784, 128, 32), (128, 64, 32), (64, 10, 32), *SHAPES[:9]],
    "nt": [(32, 64, 10), (32, 128, 64), (32, 784, 128), *SHAPES[:9]],
    "tt": SHAPES[:7],
}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtypes", default="float32,float64")
    parser.add_argument("--layouts", default="nn,tn,nt,tt")
    parser.add_argument("--only", default="", help="a regular expression of rows")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each row")
    parser.add_argument("--unknown", action="store_true", help="kernels of run-time sizes")
    args = parser.parse_args()
    workers = [Worker("gemm", args.threads), Worker("torch", args.threads)]
    for dtype in args.dtypes.split(","):
        for layout in args.layouts.split(","):
            for m, n, k in TURNED[layout]:
                row = f"{m}×{k}·{k}×{n} {layout} {dtype}"
                if not re.search(args.only, row):
                    continue
                request = {"m": m, "n": n, "k": k, "layout": layout, "dtype": dtype}
                if args.unknown:
                    request["sizes"] = "unknown"
                best = fastest(workers, request, args.seconds)
                rate = 2e-9 * m * n * k / best["gemm"]
                print(
                    f"{row:36} {best['gemm'] * 1e6:10.2f} µs {rate:7.1f} GFLOP/s   PyTorch "
                    f"{best['torch'] * 1e6:10.2f} µs   {best['torch'] / best['gemm']:.2f}",
                    flush=True,
                )
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
