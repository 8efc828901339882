"""Net: layers in a given order, and the blobs between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from needle.errors import ArgumentError, CheckpointError, CompileError, NeedleError, ShapeError
from needle.layerwise import layers as _layers  # noqa: F401 - fills the catalogue
from needle.layerwise.blob import Blob, Blobs
from needle.layerwise.layer import TRAIN, Layer, LayerSpec, make_layer
from needle.layerwise.splits import insert_splits
from needle.layerwise.whole import Whole
from needle.ops.samples import Array


@dataclass(eq=False)
class Step:
    """A layer in its place.

    Attributes:
        layer: the layer.
        bottom: the blobs that it reads.
        top: the blobs that it writes.
        propagate_down: for each bottom, whether its gradient is wanted.
        needs_backward: whether anything in front of it, or in it, is trained.
        loss_weight: factor of each top in the loss.
    """

    layer: Layer
    bottom: list[Blob]
    top: list[Blob]
    propagate_down: list[bool]
    needs_backward: bool
    loss_weight: list[float]

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.layer.spec.name


class Net:
    """A net of layers, run forward in their order and backward against it.

    Args:
        specs: what the layers are, in order; or a `.prototxt` file with them.
        phase: `TRAIN` or `TEST`; layers of the other phase are left out.
        data: loaders for data layers, by the layer's name.
        force_backward: whether gradients of all blobs are wanted, those of the inputs, too.

    Attributes:
        blobs: by name. A blob that several layers read has a copy for each, made by `Split`.
        params: the parameters of each layer that has some, by its name.
        layers: all layers, in order.
        inputs: names of the blobs that `Input` layers hold.
        outputs: names of the blobs that no layer reads.

    Raises:
        ArgumentError: a blob that no layer before it writes, a name twice, a type that there is
            not.

    Example:
        >>> from needle.layerwise import LayerSpec, Net
        >>> net = Net([
        ...     LayerSpec("data", "Input", top=["x", "label"],
        ...               options={"shape": [[2, 3], [2]]}),
        ...     LayerSpec("fc", "InnerProduct", ["x"], ["scores"],
        ...               options={"num_output": 4, "weight_filler": {"type": "xavier"}}),
        ...     LayerSpec("loss", "SoftmaxWithLoss", ["scores", "label"], ["loss"]),
        ... ])
        >>> net.blobs["x"].data[...] = 1
        >>> sorted(net.forward()), net.params["fc"][0].shape
        (['loss'], (4, 3))
        >>> gradients = net.backward()
        >>> net.params["fc"][0].diff.shape
        (4, 3)
    """

    def __init__(
        self,
        specs: Iterable[LayerSpec] | str | Path,
        phase: int = TRAIN,
        *,
        data: Mapping[str, Any] | None = None,
        force_backward: bool = False,
    ) -> None:
        self.phase = phase
        self.blobs: dict[str, Blob] = {}
        self.params: dict[str, Blobs] = {}
        self.steps: list[Step] = []
        self._shared: dict[str, Blob] = {}
        self._needs: set[int] = set()
        #: What runs the net as one compiled function, after `compile`.
        self.whole: Whole | None = None
        if isinstance(specs, (str, Path)):
            from needle.layerwise.prototxt import read_net

            specs = read_net(specs)
        chosen = [s for s in specs if phase in s.phases]
        if data:
            chosen = [_with_data(s, data) for s in chosen]
        seen: set[str] = set()
        for spec in insert_splits(chosen):
            if spec.name in seen:
                raise ArgumentError(f"Net: there are two layers named {spec.name!r}")
            seen.add(spec.name)
            self._add(spec, force_backward)
        self._leave_out_what_no_loss_needs(force_backward)
        #: The blobs that are part of the loss, each with its weight.
        self.losses = [
            (blob, weight)
            for step in self.steps
            for blob, weight in zip(step.top, step.loss_weight, strict=True)
            if weight
        ]
        read = {id(b) for step in self.steps for b in step.bottom}
        self.outputs = [n for n, b in self.blobs.items() if id(b) not in read]
        self.inputs = [
            name for s in self.steps if s.layer.type == "Input" for name in s.layer.spec.top
        ]

    @property
    def layers(self) -> list[Layer]:
        """All layers, in order."""
        return [step.layer for step in self.steps]

    def layer(self, name: str) -> Layer:
        """Return the layer of a name.

        Raises:
            ArgumentError: there is none.
        """
        return self._step(name).layer

    def _step(self, name: str) -> Step:
        for step in self.steps:
            if step.name == name:
                return step
        raise ArgumentError(
            f"Net: there is no layer {name!r}; there are {[s.name for s in self.steps]}"
        )

    # Construction

    def _add(self, spec: LayerSpec, force: bool) -> None:
        layer = make_layer(spec, self.phase)
        bottom = []
        for name in spec.bottom:
            if name not in self.blobs:
                raise ArgumentError(
                    f"layer {spec.name!r} ({layer.type}) reads the blob {name!r}, which no layer "
                    f"before it writes; there are {sorted(self.blobs)}"
                )
            bottom.append(self.blobs[name])
        top = []
        for name in spec.top:
            if name in self.blobs and name not in spec.bottom:
                raise ArgumentError(
                    f"Net: two layers write the blob {name!r}, {spec.name!r} is one"
                )
            top.append(self.blobs.setdefault(name, Blob()))
        with _named(layer):
            layer.prepare(bottom, top)
        self._set_up_parameters(layer)
        is_trained = any(b.lr_mult for b in layer.blobs)
        needs = [id(b) in self._needs or (force and bool(spec.bottom)) for b in bottom]
        down = list(spec.propagate_down) or [
            n and i not in layer.fixed_bottoms for i, n in enumerate(needs)
        ]
        needs_backward = is_trained or any(down)
        if needs_backward or (not bottom and force):
            self._needs |= {id(b) for b in top}
        weights = list(spec.loss_weight) or [1.0] * layer.is_loss
        weights += [0.0] * (len(top) - len(weights))
        self.steps.append(Step(layer, bottom, top, down, needs_backward, weights))

    def _set_up_parameters(self, layer: Layer) -> None:
        for i, options in enumerate(layer.spec.param[: len(layer.blobs)]):
            blob = layer.blobs[i]
            name = options.get("name")
            if name:
                owner = self._shared.setdefault(name, blob)
                if owner.shape != blob.shape:
                    raise ShapeError(
                        f"layer {layer.spec.name!r} shares the parameter {name!r} of shape "
                        f"{list(owner.shape)}, and needs {list(blob.shape)}"
                    )
                layer.blobs[i] = blob = owner
            blob.lr_mult = float(options.get("lr_mult", blob.lr_mult))
            blob.decay_mult = float(options.get("decay_mult", blob.decay_mult))
        if layer.blobs:
            self.params[layer.spec.name] = layer.blobs

    def _leave_out_what_no_loss_needs(self, force: bool) -> None:
        """Run no layer backward whose tops lead to no loss."""
        if force:
            return
        wanted: set[int] = set()
        for step in reversed(self.steps):
            if any(step.loss_weight) or any(id(b) in wanted for b in step.top):
                wanted |= {id(b) for b in step.bottom}
            else:
                step.needs_backward = False

    # Running

    def forward(
        self, blobs: Sequence[str] = (), start: str = "", end: str = "", **values: Any
    ) -> dict[str, Array]:
        """Compute all tops.

        Args:
            blobs: names of further blobs to return.
            start: name of the first layer to run.
            end: name of the last one.
            values: new values of blobs, by name, which are reshaped to them.

        Returns:
            The values of the outputs, by name.

        Raises:
            NeedleError: what a layer says, with its name.
        """
        self._fill(values, "data")
        if self.whole is not None:
            self._check_whole(start, end, blobs)
            self.whole.forward()
            return {name: self.blobs[name].data for name in self.outputs}
        for step in self._between(start, end):
            with _named(step.layer):
                step.layer.reshape(step.bottom, step.top)
                step.layer.forward(step.bottom, step.top)
        names = [self._step(end).layer.spec.top[0]] if end else self.outputs
        return {name: self.blobs[name].data for name in [*names, *blobs]}

    def backward(
        self, diffs: Sequence[str] = (), start: str = "", end: str = "", **values: Any
    ) -> dict[str, Array]:
        """Compute the gradients of blobs, and add to those of parameters.

        Args:
            diffs: names of blobs whose gradients to return.
            start: name of the first layer to run: a later one.
            end: name of the last one: an earlier one.
            values: gradients to begin with, by the name of a blob. Those of losses are their
                weights.

        Returns:
            Gradients by the name of the blob: of the inputs, if they are wanted.
        """
        for blob, weight in self.losses:
            blob.diff[...] = weight
        self._fill(values, "diff")
        if self.whole is not None:
            self._check_whole(start, end, diffs)
            self.whole.backward()
            return {name: self.blobs[name].diff for name in self.inputs if self._is_input(name)}
        for step in reversed(self._between(end, start)):
            if step.needs_backward or values:
                with _named(step.layer):
                    step.layer.backward(step.top, step.propagate_down, step.bottom)
        names = [name for name in self.inputs if self._is_input(name)]
        return {name: self.blobs[name].diff for name in [*names, *diffs]}

    def compile(self) -> Net:
        """Run all layers as one compiled function from now on; return the net.

        A solver's step on the net is one native call, too: forward, backward and update. Blobs
        between the layers get no values then, gradients that a step uses up are not kept, and parts
        of the net cannot be run.

        Raises:
            CompileError: a layer computes in NumPy.
        """
        self.whole = Whole(self)
        return self

    def _check_whole(self, start: str, end: str, names: Sequence[str]) -> None:
        if start or end or names:
            raise CompileError(
                "Net: a compiled net runs as a whole, and keeps no blobs in between; make another "
                "net to look at its parts"
            )

    def is_wanted(self, blob: Blob) -> bool:
        """Whether the gradient of a blob is wanted."""
        return id(blob) in self._needs

    def _is_input(self, name: str) -> bool:
        return self.is_wanted(self.blobs[name])

    def _between(self, start: str, end: str) -> list[Step]:
        names = [s.name for s in self.steps]
        for name in (start, end):
            if name:
                self._step(name)
        first = names.index(start) if start else 0
        last = names.index(end) if end else len(names) - 1
        return self.steps[first : last + 1]

    def _fill(self, values: Mapping[str, Any], what: str) -> None:
        for name, value in values.items():
            if name not in self.blobs:
                raise ArgumentError(f"Net: there is no blob {name!r}; there are {list(self.blobs)}")
            array = np.asarray(value)
            if what == "data":
                self.blobs[name].reshape(*array.shape)
                self.blobs[name].data[...] = array
            else:
                self.blobs[name].diff[...] = array

    @property
    def loss(self) -> float:
        """The sum of all losses, of the last forward pass."""
        total = 0.0
        for blob, weight in self.losses:
            data = blob.data
            total += weight * float(data.item() if data.size == 1 else data.sum())
        return total

    def clear_param_diffs(self) -> None:
        """Set the gradients of all parameters to 0."""
        for blob in self.learnable():
            blob.diff[...] = 0

    def learnable(self) -> list[Blob]:
        """Return all parameters, each once."""
        return list({id(b): b for blobs in self.params.values() for b in blobs}.values())

    # Parameters in files

    def save(self, path: str | Path) -> None:
        """Write all parameters as safetensors."""
        arrays = {
            f"{name}.{i}": np.array(blob.data, order="C")
            for name, blobs in self.params.items()
            for i, blob in enumerate(blobs)
        }
        save_file(arrays, path)

    def copy_from(self, path: str | Path) -> None:
        """Read the parameters of layers that have the names of those in a file.

        Raises:
            CheckpointError: the file cannot be read, or a shape differs.
        """
        try:
            arrays = load_file(path)
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        for name, blobs in self.params.items():
            for i, blob in enumerate(blobs):
                array = arrays.get(f"{name}.{i}")
                if array is None:
                    continue
                if array.shape != blob.shape:
                    raise CheckpointError(
                        f"{path}: parameter {i} of layer {name!r} is {list(array.shape)}, and the "
                        f"net's is {list(blob.shape)}"
                    )
                blob.data[...] = array

    def share_with(self, other: Net) -> None:
        """Use the parameters of another net, by the layers' names: to test what it trains."""
        for name, blobs in self.params.items():
            for blob, theirs in zip(blobs, other.params.get(name, ()), strict=False):
                if blob.shape != theirs.shape:
                    raise ShapeError(
                        f"Net: layer {name!r} has {list(blob.shape)}, and the other net "
                        f"{list(theirs.shape)}"
                    )
                blob.share(theirs)

    def __repr__(self) -> str:
        phase = "TRAIN" if self.phase == TRAIN else "TEST"
        return f"<net of {len(self.steps)} layers, {phase}>"


def _with_data(spec: LayerSpec, data: Mapping[str, Any]) -> LayerSpec:
    if spec.name not in data:
        return spec
    return replace(spec, options={**spec.options, "loader": data[spec.name]})


class _named:
    """Names the layer in errors."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, NeedleError) and "layer '" not in error.message:
            error.message = f"layer {self.layer.spec.name!r} ({self.layer.type}): {error.message}"
