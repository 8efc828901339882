"""Summary: shapes, parameters, arithmetic and memory of each layer, without running data.

A copy of the model on the meta device, where ops have shapes but no values, is called once. So the
model is not touched, and one of any size is summarised in milliseconds.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from needle import creation, dtypes
from needle.config import no_grad
from needle.devices import META
from needle.dtypes import as_dtype
from needle.eager import meta_listeners
from needle.errors import ArgumentTypeError
from needle.nn.hooks import Hooks
from needle.nn.module import Module, plain_tensors
from needle.nn.parameter import Buffer, Parameter
from needle.ops.record import Op, flops_of
from needle.shapes import Spec, as_shape
from needle.tensor import Tensor
from needle.tree import flatten


@dataclass
class LayerSummary:
    """One module of a model. What is counted is its own: without that of modules inside.

    Attributes:
        path: its path in the model; empty for the model itself.
        kind: its class.
        depth: how many modules it is inside of.
        inputs: shapes and dtypes of the tensors that it was called with first.
        outputs: shapes and dtypes of what it returned.
        calls: how often it was called.
        parameters: number of elements of its parameters; a shared one counts where it stands first.
        trainable: number of those that require gradients.
        parameter_bytes: bytes of its parameters.
        buffer_bytes: bytes of its buffers.
        flops: arithmetic operations of all calls, a multiplication and an addition being two.
        activation_bytes: bytes of all results of its ops (views have none of their own): what a
            forward pass that keeps everything for the backward pass needs at most.
    """

    path: str
    kind: str
    depth: int
    inputs: tuple[Spec, ...] = ()
    outputs: tuple[Spec, ...] = ()
    calls: int = 0
    parameters: int = 0
    trainable: int = 0
    parameter_bytes: int = 0
    buffer_bytes: int = 0
    flops: int = 0
    activation_bytes: int = 0


@dataclass
class Summary:
    """What a model is made of; `str` gives a table.

    Attributes:
        inputs: shapes and dtypes of the model's inputs.
        layers: the model and all modules inside, in their order.
    """

    inputs: tuple[Spec, ...]
    layers: list[LayerSummary] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        """Number of elements of all parameters."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable(self) -> int:
        """Number of elements of the parameters that require gradients."""
        return sum(layer.trainable for layer in self.layers)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(layer.parameter_bytes for layer in self.layers)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(layer.buffer_bytes for layer in self.layers)

    @property
    def flops(self) -> int:
        """Arithmetic operations of a forward pass."""
        return sum(layer.flops for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes of the results of all ops of a forward pass."""
        return sum(layer.activation_bytes for layer in self.layers)

    def __str__(self) -> str:
        return _table(self)


def summary(model: Module, *inputs: Any, dtype: Any = None) -> Summary:
    """Return shapes, parameters, FLOPs and memory of each layer, without running data.

    The model is called in evaluation mode, by a copy without values and without its hooks.

    Args:
        model: any module.
        inputs: the shape of each input, or a tensor or `Spec` like it.
        dtype: dtype of the inputs given by shape; the parameters' if not given.

    Raises:
        ArgumentTypeError: no input, or one that is no shape.
        NeedleError: what a call with such inputs would raise.

    Example:
        >>> from needle import nn
        >>> model = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        >>> print(nn.summary(model, (32, 784)))
        layer    kind        output     parameters   FLOPs  activations
        ---------------------------------------------------------------
        (model)  Sequential  [32, 10]
          0      Linear      [32, 128]     100,480  6.43 M     32.0 KiB
          1      ReLU        [32, 128]              4.10 k     16.0 KiB
          2      Linear      [32, 10]        1,290  82.2 k     2.50 KiB
        ---------------------------------------------------------------
        101,770 parameters (398 KiB), all trainable
        6.51 MFLOP and 50.5 KiB of activations for an input of float32[32, 784]
    """
    if not isinstance(model, Module):
        raise ArgumentTypeError(f"summary: needs a module, got {type(model).__name__}")
    if not inputs:
        raise ArgumentTypeError(
            "summary: needs the shape of each input, with the batch: nn.summary(model, (32, 784))"
        )
    if dtype is None:
        floating = (p.dtype for p in model.parameters())
        chosen = next(floating, dtypes.DEFAULT_FLOAT)
    else:
        chosen = as_dtype(dtype)
    specs = tuple(_as_spec(value, chosen) for value in inputs)
    twin = _on_meta(model).eval()
    layers = _count(model)
    recorder = _Recorder(twin, layers)
    meta_listeners.append(recorder.on_op)
    try:
        with no_grad():
            twin(*(creation.empty(s.shape, dtype=s.dtype, device=META) for s in specs))
    finally:
        meta_listeners.remove(recorder.on_op)
    return Summary(specs, layers)


def _as_spec(value: Any, dtype: Any) -> Spec:
    if isinstance(value, (Spec, Tensor)):
        return Spec(value.shape, value.dtype)
    return Spec(as_shape(value, "summary"), dtype)


def _on_meta(model: Module) -> Module:
    """Return a copy of ``model`` on the meta device, without its hooks; no values are copied."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if module._hooks is not None:
            memo[id(module._hooks)] = Hooks()
        for _, value in module._members():
            for _, tensor in plain_tensors(value, ""):
                memo[id(tensor)] = tensor.detach().to(device=META)
    for _, parameter in model.named_parameters():
        memo[id(parameter)] = Parameter(
            parameter.detach(), device=META, requires_grad=parameter.requires_grad
        )
    for _, buffer in model.named_buffers():
        memo[id(buffer)] = Buffer(buffer.detach(), device=META, persistent=buffer.persistent)
    return copy.deepcopy(model, memo)


def _count(model: Module) -> list[LayerSummary]:
    """Return a row for each module, with its parameters counted."""
    rows: list[LayerSummary] = []
    depths: dict[str, int] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        above = path
        while above and above not in depths:
            above = above.rpartition(".")[0]
        depth = depths[path] = 0 if not path else depths.get(above, 0) + 1
        row = LayerSummary(path, type(module).__name__, depth)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if isinstance(tensor, Parameter):
                row.parameters += tensor.size
                row.parameter_bytes += tensor.nbytes
                row.trainable += tensor.size if tensor.requires_grad else 0
            else:
                row.buffer_bytes += tensor.nbytes
        rows.append(row)
    return rows


class _Recorder:
    """Writes down, in the row of the innermost module being called, what its ops do."""

    def __init__(self, twin: Module, rows: Sequence[LayerSummary]) -> None:
        self.stack: list[LayerSummary] = []
        self.thread = threading.get_ident()
        for module, row in zip(twin.modules(), rows, strict=True):
            self._watch(module, row)

    def _watch(self, module: Module, row: LayerSummary) -> None:
        def enter(_: Module, args: tuple[Any, ...]) -> None:
            row.calls += 1
            if row.calls == 1:
                row.inputs = _specs(args)
            self.stack.append(row)

        def leave(_: Module, args: tuple[Any, ...], result: Any) -> None:
            self.stack.pop()
            if row.calls == 1:
                row.outputs = _specs(result)

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def on_op(self, op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any], specs: Any) -> None:
        """Count an op on the meta device."""
        if not self.stack or threading.get_ident() != self.thread:
            return
        row = self.stack[-1]
        row.flops += flops_of(op, tuple(Spec(t.shape, t.dtype) for t in inputs), specs, attrs)
        if not op.may_alias:
            results: Iterable[Spec] = (specs,) if isinstance(specs, Spec) else specs
            row.activation_bytes += sum(s.nbytes for s in results)


def _specs(tree: Any) -> tuple[Spec, ...]:
    return tuple(Spec(t.shape, t.dtype) for t in flatten(tree)[0] if isinstance(t, Tensor))


# The table


def _table(summary: Summary) -> str:
    header = ("layer", "kind", "output", "parameters", "FLOPs", "activations")
    rows = [header, *(_cells(layer, summary.layers) for layer in summary.layers)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:], rule, *_totals(summary)])


def _cells(layer: LayerSummary, layers: list[LayerSummary]) -> tuple[str, ...]:
    if layer.path:
        parents = [o.path for o in layers if o.depth < layer.depth and o.path]
        around = max((p for p in parents if layer.path.startswith(f"{p}.")), key=len, default="")
        name = "  " * layer.depth + layer.path[len(around) :].lstrip(".")
    else:
        name = "(model)"
    outputs = ", ".join(str(list(s.shape)) for s in layer.outputs)
    return (
        name,
        layer.kind + (f" × {layer.calls}" if layer.calls > 1 else ""),
        outputs if layer.calls else "not called",
        f"{layer.parameters:,}" if layer.parameters else "",
        _amount(layer.flops) if layer.flops else "",
        _bytes(layer.activation_bytes) if layer.activation_bytes else "",
    )


def _totals(summary: Summary) -> list[str]:
    trainable = (
        "all trainable"
        if summary.trainable == summary.parameters
        else f"{summary.trainable:,} trainable"
    )
    parameters = (
        f"{summary.parameters:,} parameters ({_bytes(summary.parameter_bytes)}), {trainable}"
    )
    if summary.buffer_bytes:
        parameters += f"; {_bytes(summary.buffer_bytes)} of buffers"
    inputs = ", ".join(map(str, summary.inputs))
    plural = "an input" if len(summary.inputs) == 1 else "inputs"
    return [
        parameters,
        f"{_amount(summary.flops)}FLOP and {_bytes(summary.activation_bytes)} of activations "
        f"for {plural} of {inputs}",
    ]


def _amount(number: int) -> str:
    """Return a count with three digits and a decimal prefix."""
    return _scaled(number, 1000, ("", "k", "M", "G", "T", "P"))


def _bytes(number: int) -> str:
    return _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(number: int, step: int, units: tuple[str, ...]) -> str:
    value, place = float(number), 0
    while value >= step and place < len(units) - 1:
        value /= step
        place += 1
    digits = 0 if place == 0 or value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {units[place]}"
