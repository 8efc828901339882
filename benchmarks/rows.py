"""What is measured: rows with their targets, as data, by chapter of docs/BENCHMARKS.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.harness import Row


@dataclass(frozen=True)
class Case:
    """A row, and the program (by its name in every framework's file) that it times."""

    row: Row
    program: str
    args: dict[str, Any]


def _case(
    name: str,
    program: str,
    *,
    times: float | None = None,
    at_most: float | None = None,
    moved: float | None = None,
    main: bool = False,
    **args: Any,
) -> Case:
    """A row in µs; ``times``: as many times as fast as the best peer; ``at_most``: µs."""
    target = f"≥ {times:g}×" if times is not None else f"≤ {at_most:g} µs" if at_most else ""
    # Within 3 % is a tie.
    ratio = 0.97 if times == 1.0 else times
    row = Row(name, "µs", target=target, limit=at_most, ratio=ratio, moved=moved, is_main=main)
    return Case(row, program, args)


def _network(
    name: str, network: str, what: str, batch: int, size: int = 32, classes: int = 10, **more: Any
) -> Case:
    """A row of an image classifier: its SGD step, or its forward pass."""
    words = {"step": "step", "forward": "inference"}
    images = {"batch": batch, "size": size, "classes": classes}
    title = f"{name} {words[what]}, batch {batch}"
    title += ", bfloat16" if more.get("precision") == "bfloat16" else ""
    return _case(title, f"network_{what}", network=network, **images, **more)


_ROWS, _COLUMNS = 4096, 768
_LARGE = {"rows": _ROWS, "columns": _COLUMNS}
#: Bytes of one array of 4096×768 float32.
_PLANE = 4.0 * _ROWS * _COLUMNS
_BLOCK = [64, 192, 256]
#: A GPT of 10.7 M parameters, and one of the size of GPT-2 small.
_GPT = {"layers": 6, "heads": 6, "width": 384}
_GPT2 = {"layers": 12, "heads": 12, "width": 768, "vocabulary": 50257, "context": 1024}

#: Networks whose forward pass is measured.
_CLASSIFIERS: list[tuple[str, str, dict[str, Any]]] = [
    ("ResNet-20 CIFAR", "resnet20", {}),
    ("ResNet-18 CIFAR", "resnet18_cifar", {}),
    ("ResNet-50 224²", "resnet50", {"size": 224, "classes": 1000}),
]

#: Penn Treebank, in the small model's batches.
_PTB = {"time": 35, "batch": 20, "vocabulary": 10_000, "width": 200}

#: Chapters with their rows, in the order of the page.
CHAPTERS: dict[str, list[Case]] = {
    "Training steps": [
        _case("MLP SGD step, batch 32", "mlp_sgd_step", times=4.0, main=True, batch=32),
        _case("MLP SGD step, batch 128", "mlp_sgd_step", times=2.0, main=True, batch=128),
        _case("MLP Adam step, batch 32", "mlp_adam_step", times=4.0, main=True, batch=32),
        _case("MLP Adam step, batch 128", "mlp_adam_step", times=2.0, batch=128),
        _case("MLPResNet Adam step, batch 100", "mlp_resnet_step", times=4.0, main=True, batch=100),
        _network("ResNet-20 CIFAR", "resnet20", "step", 128, times=1.6, main=True),
        _network("ResNet-20 CIFAR", "resnet20", "step", 32),
        _network("ResNet-18 CIFAR", "resnet18_cifar", "step", 32, times=1.3, main=True),
        _network("MobileNetV2 CIFAR", "mobilenet_v2_cifar", "step", 32, times=1.3, main=True),
        _network(
            "ResNet-50 224²", "resnet50", "step", 8, times=1.15, main=True, size=224, classes=1000
        ),
        _case(
            "LSTM 2×200 SGD step, 35×20, 10,000 words",
            "recurrent_step",
            times=2.0,
            main=True,
            kind="LSTM",
            **_PTB,
        ),
        _case(
            "GRU 2×200 SGD step, 35×20, 10,000 words",
            "recurrent_step",
            times=1.0,
            kind="GRU",
            **_PTB,
        ),
        _case(
            "RNN 2×200 SGD step, 35×20, 10,000 words",
            "recurrent_step",
            times=1.0,
            kind="RNN",
            **_PTB,
        ),
        _case(
            "GRU 2×200 both ways, SGD step, 35×20, 10,000 words",
            "recurrent_step",
            times=1.0,
            kind="GRU",
            bidirectional=True,
            **_PTB,
        ),
        _case(
            "LSTM 1×650 SGD step, 50×32, 10,000 words",
            "recurrent_step",
            times=1.0,
            kind="LSTM",
            time=50,
            batch=32,
            vocabulary=10_000,
            width=650,
            layers=1,
        ),
        _case(
            "GPT 6×384 AdamW step, batch 8×256",
            "gpt_step",
            times=1.35,
            main=True,
            batch=8,
            context=256,
            vocabulary=65,
            **_GPT,
        ),
        _case(
            "GPT 6×384 AdamW step, batch 8×256, bfloat16",
            "gpt_step",
            times=1.3,
            main=True,
            batch=8,
            context=256,
            vocabulary=65,
            precision="bfloat16",
            **_GPT,
        ),
        _case(
            "GPT 6×384, 64 tokens decoded",
            "gpt_decode",
            times=1.3,
            count=64,
            context=256,
            vocabulary=4096,
            **_GPT,
        ),
        _case(
            "GPT-2 small, 16 tokens decoded", "gpt_decode", times=1.3, main=True, count=16, **_GPT2
        ),
    ],
    "Inference": [
        _case("MLP forward, batch 1", "mlp_forward", at_most=9.0, main=True, batch=1),
        *(
            _network(name, network, "forward", batch, times=1.05, **images)
            for name, network, images in _CLASSIFIERS
            for batch in (1, 32)
        ),
        *(
            _network(name, network, "forward", batch, times=1.0, precision="bfloat16", **images)
            for name, network, images in _CLASSIFIERS
            for batch in (1, 32)
        ),
    ],
    "Elementwise": [
        _case("add, 16 elements", "add", main=True, n=16),
        _case("add, 3 M elements", "add", times=1.0, moved=3 * 4.0 * (3 << 20), n=3 << 20),
        _case("exp 4096×768", "exp", times=1.0, moved=2 * _PLANE, **_LARGE),
        _case("tanh 4096×768", "tanh", times=1.0, moved=2 * _PLANE, **_LARGE),
        _case("GELU 4096×768", "gelu", times=1.0, moved=2 * _PLANE, main=True, **_LARGE),
        _case(
            "relu(x·s + b)·z + x, 4096×768",
            "chain",
            times=1.0,
            moved=3 * _PLANE,
            main=True,
            **_LARGE,
        ),
        _case(
            "Adam update of 10 M parameters",
            "adam_update",
            times=1.0,
            moved=7 * 4e7,  # reads parameter, gradient and two moments, writes all but one
            main=True,
            n=10**7,
        ),
    ],
    "Reductions": [
        _case("sum of all, 4096×768", "total", times=1.0, moved=_PLANE, axis=None, **_LARGE),
        _case("sum of rows, 4096×768", "total", times=1.0, moved=_PLANE, axis=1, **_LARGE),
        _case(
            "sum of columns, 4096×768",
            "total",
            times=1.0,
            moved=_PLANE,
            main=True,
            axis=0,
            **_LARGE,
        ),
        *(
            _case(
                f"sum of axis {axis}, 64×192×256",
                "sum_of_axis",
                times=1.0,
                moved=4.0 * 64 * 192 * 256,
                shape=_BLOCK,
                axis=axis,
            )
            for axis in range(3)
        ),
        _case("softmax 4096×768", "softmax", times=1.3, moved=2 * _PLANE, main=True, **_LARGE),
        _case(
            "layer norm 4096×768", "layer_norm", times=1.3, moved=2 * _PLANE, main=True, **_LARGE
        ),
        _case("cross-entropy 4096×768", "cross_entropy", times=1.3, moved=_PLANE, **_LARGE),
    ],
    "Attention": [
        _case(
            f"causal attention{' and gradients' if grads else ''}, {batch}×6×{length}×64",
            "attention",
            times=1.0,
            main=length == 1024,
            batch=batch,
            heads=6,
            length=length,
            width=64,
            grads=grads,
        )
        for length, batch in ((256, 8), (1024, 2), (4096, 1))
        for grads in (False, True)
    ],
    "Products and convolutions": [
        _case("matmul 64³", "matmul", times=1.2, main=True, m=64, k=64, n=64),
        _case("matmul 127×255×511", "matmul", times=1.0, m=127, k=255, n=511),
        _case("matmul 512³", "matmul", times=1.0, main=True, m=512, k=512, n=512),
        _case("matmul 512³, bfloat16", "matmul_low", times=1.0, m=512, k=512, n=512),
        _case("matmul 1024³, bfloat16", "matmul_low", times=1.0, m=1024, k=1024, n=1024),
        _case("1×768·(50257×768)ᵀ", "matmul_transposed", times=1.0, m=1, k=768, n=50257),
        _case("8×768·768×3072", "matmul", times=1.0, m=8, k=768, n=3072),
        _case(
            "512×256·256×20000, cross-entropy, gradients",
            "classify",
            times=1.0,
            rows=512,
            width=256,
            classes=20000,
        ),
        _case("conv 3×3, 64→64, 32²×8", "conv2d", batch=8, channels=64, size=32, out=64),
    ],
}

#: Steps whose memory and compile times are measured: name, program, arguments, ms to compile cold.
STEPS: list[tuple[str, str, dict[str, Any], float]] = [
    ("MLP step", "mlp_sgd_step", {"batch": 32}, 500.0),
    ("MLPResNet step", "mlp_resnet_step", {"batch": 100}, 2000.0),
    (
        "ResNet-20 CIFAR step",
        "network_step",
        {"network": "resnet20", "batch": 128, "size": 32, "classes": 10},
        4000.0,
    ),
    (
        "ResNet-50 224² step",
        "network_step",
        {"network": "resnet50", "batch": 8, "size": 224, "classes": 1000},
        10000.0,
    ),
]

#: How many milliseconds the first call of a step may take whose code lies on disk, by its program.
WARM = {"mlp_sgd_step": 100.0, "mlp_resnet_step": 100.0, "network_step": 500.0}
