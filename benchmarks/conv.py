"""``python -m benchmarks.conv``: convolutions, programs of one op beside PyTorch's.

PyTorch has its choice of contiguous and channels-last memory; the better one counts. The fastest of
many short turns counts, so that other programs on the machine do little harm.
"""

from __future__ import annotations

import argparse
import re
import statistics

from rich.console import Console
from rich.progress import track

from benchmarks.harness import Row, Worker

#: Of each network: batch, then size of the image, input and output channels, size of the kernel.
NETWORKS: dict[str, list[dict[str, int]]] = {
    "ResNet-20": [
        {"n": 128, "size": 32, "channels": 3, "out": 16, "kernel": 3},
        {"n": 128, "size": 32, "channels": 16, "out": 16, "kernel": 3},
        {"n": 128, "size": 32, "channels": 16, "out": 32, "kernel": 3, "stride": 2},
        {"n": 128, "size": 16, "channels": 32, "out": 32, "kernel": 3},
        {"n": 128, "size": 16, "channels": 32, "out": 64, "kernel": 3, "stride": 2},
        {"n": 128, "size": 8, "channels": 64, "out": 64, "kernel": 3},
    ],
    "ResNet-18": [
        {"n": 32, "size": 32, "channels": 64, "out": 64, "kernel": 3},
        {"n": 32, "size": 16, "channels": 128, "out": 128, "kernel": 3},
        {"n": 32, "size": 8, "channels": 256, "out": 256, "kernel": 3},
        {"n": 32, "size": 4, "channels": 512, "out": 512, "kernel": 3},
    ],
    "ResNet-50": [
        {"n": 8, "size": 224, "channels": 3, "out": 64, "kernel": 7, "stride": 2},
        {"n": 8, "size": 56, "channels": 64, "out": 64, "kernel": 1},
        {"n": 8, "size": 56, "channels": 64, "out": 64, "kernel": 3},
        {"n": 8, "size": 56, "channels": 64, "out": 256, "kernel": 1},
        {"n": 8, "size": 56, "channels": 256, "out": 64, "kernel": 1},
        {"n": 8, "size": 56, "channels": 128, "out": 128, "kernel": 3, "stride": 2},
        {"n": 8, "size": 28, "channels": 128, "out": 128, "kernel": 3},
        {"n": 8, "size": 28, "channels": 128, "out": 512, "kernel": 1},
        {"n": 8, "size": 28, "channels": 512, "out": 1024, "kernel": 1, "stride": 2},
        {"n": 8, "size": 14, "channels": 256, "out": 256, "kernel": 3},
        {"n": 8, "size": 14, "channels": 1024, "out": 256, "kernel": 1},
        {"n": 8, "size": 7, "channels": 512, "out": 512, "kernel": 3},
        {"n": 8, "size": 7, "channels": 512, "out": 2048, "kernel": 1},
    ],
    "dilated": [
        {"n": 8, "size": 28, "channels": 128, "out": 128, "kernel": 3, "dilation": 2},
        {"n": 8, "size": 28, "channels": 256, "out": 256, "kernel": 3, "dilation": 4},
    ],
    "grouped": [
        {"n": 8, "size": 28, "channels": 128, "out": 128, "kernel": 3, "groups": 4},
        {"n": 8, "size": 56, "channels": 128, "out": 128, "kernel": 3, "groups": 32},
        {"n": 8, "size": 14, "channels": 512, "out": 512, "kernel": 3, "groups": 32},
    ],
    "depthwise": [
        {"n": 32, "size": 112, "channels": 32, "out": 32, "kernel": 3, "groups": 32},
        {"n": 32, "size": 112, "channels": 96, "out": 96, "kernel": 3, "stride": 2, "groups": 96},
        {"n": 32, "size": 56, "channels": 144, "out": 144, "kernel": 3, "groups": 144},
        {"n": 32, "size": 14, "channels": 384, "out": 384, "kernel": 3, "groups": 384},
        {"n": 32, "size": 7, "channels": 960, "out": 960, "kernel": 3, "groups": 960},
    ],
}
FORMS = {"forward": "fwd", "input_grad": "dgrad", "weight_grad": "wgrad"}


def name_of(network: str, form: str, case: dict[str, int]) -> str:
    """Return the name of a row."""
    text = "{n}×{channels}×{size}² → {out}, {kernel}×{kernel}".format(**case)
    for attribute in ("stride", "dilation", "groups"):
        if attribute in case:
            text += f", {attribute} {case[attribute]}"
    return f"{network} {FORMS[form]} {text}"


def fastest(
    workers: dict[str, Worker], requests: dict[str, dict[str, object]], seconds: float
) -> dict[str, float]:
    """Return the seconds per call of the fastest repetition of each request, taking turns."""
    best = dict.fromkeys(requests, float("inf"))
    for name, request in requests.items():
        workers[name].ask(do="prepare", program="convolution", args=request)
    for turn in range(max(3, round(seconds / 0.03 / len(requests)))):
        for name in requests if turn % 2 else reversed(requests):
            best[name] = min(best[name], *workers[name].ask(do="run", seconds=0.03))
    return best


def measured(threads: int, seconds: float, only: str = "") -> list[Row]:
    """Return a row for each convolution and gradient whose name matches ``only``.

    Args:
        threads: for both libraries.
        seconds: for each row.
        only: a regular expression.
    """
    cases = [
        (name_of(network, form, case), {"form": form, **case})
        for network, shapes in NETWORKS.items()
        for case in shapes
        for form in FORMS
    ]
    chosen = [case for case in cases if re.search(only, case[0])]
    if not chosen:
        return []
    names = {"needle": "conv", "torch": "torch", "torch channels-last": "torch"}
    workers = {name: Worker(framework, threads) for name, framework in names.items()}
    rows = []
    for name, case in track(chosen, "convolutions", console=Console(stderr=True)):
        requests = dict.fromkeys(names, case)
        requests["torch channels-last"] = {**case, "last": True}
        best = fastest(workers, requests, seconds)
        row = Row(name, "µs", target="≥ 1×", ratio=0.97)  # within 3 % is a tie
        row.values = {
            "needle": best.pop("needle") * 1e6,
            "torch": min(best.values()) * 1e6,
        }
        rows.append(row)
    for worker in workers.values():
        worker.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="a regular expression of rows")
    parser.add_argument("--seconds", type=float, default=0.6, help="for each row")
    args = parser.parse_args()
    rows = measured(args.threads, args.seconds, args.only)
    for row in rows:
        times = f"{row.values['needle']:10.1f} µs   PyTorch {row.values['torch']:10.1f} µs"
        print(f"{row.name:66} {times}   {row.speedup:.2f}")
    if rows:
        ratios = [row.speedup or 0.0 for row in rows]
        print(f"median {statistics.median(ratios):.2f}, least {min(ratios):.2f}")


if __name__ == "__main__":
    main()
