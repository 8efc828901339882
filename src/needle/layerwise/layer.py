"""Layer: a forward and a backward function over blobs, the interface of Caffe and pycaffe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from needle.errors import ArgumentError
from needle.layerwise.blob import Blob, Blobs

#: The phases of a net.
TRAIN, TEST = 0, 1

L = TypeVar("L", bound="type[Layer]")


@dataclass
class LayerSpec:
    """What a net is told of a layer; Caffe's LayerParameter.

    Attributes:
        name: of the layer.
        type: of the layer: ``"InnerProduct"``.
        bottom: names of the blobs that it reads.
        top: names of the blobs that it writes.
        options: of its type: ``{"num_output": 10}``; fillers are dicts themselves.
        param: for each parameter multipliers of learning rate and decay, and a name to share it by:
            ``{"lr_mult": 1, "decay_mult": 0, "name": "w"}``.
        phases: in which phases it is part of the net.
        loss_weight: factor of each top in the loss; by default 1 for the first top of a loss layer.
        propagate_down: for each bottom, whether to propagate to it; by default where it is needed.
        make: makes the layer, instead of its type: a subclass of `Layer`.
    """

    name: str
    type: str = ""
    bottom: Sequence[str] = ()
    top: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    param: Sequence[Mapping[str, Any]] = ()
    phases: Sequence[int] = (TRAIN, TEST)
    loss_weight: Sequence[float] = ()
    propagate_down: Sequence[bool] = ()
    make: Callable[[], Layer] | None = None


class Layer:
    """Base of layers; your own override `setup`, `reshape`, `forward` and `backward`.

    Code written for pycaffe's Python layers runs as it is.

    Attributes:
        spec: what the net says of it.
        phase: `TRAIN` or `TEST`.
        param_str: a string from the net's definition, for Python layers.
        blobs: its parameters; ``self.blobs.add_blob(*shape)`` in `setup` adds one.

    Example:
        >>> from needle.layerwise import Blob, Layer
        >>> class Double(Layer):
        ...     def reshape(self, bottom, top):
        ...         top[0].reshape(*bottom[0].shape)
        ...     def forward(self, bottom, top):
        ...         top[0].data[...] = 2 * bottom[0].data
        ...     def backward(self, top, propagate_down, bottom):
        ...         if propagate_down[0]:
        ...             bottom[0].diff[...] = 2 * top[0].diff
        >>> bottom, top = [Blob(3)], [Blob()]
        >>> layer = Double()
        >>> layer.prepare(bottom, top)
        >>> bottom[0].data[...] = 1, 2, 3
        >>> layer.forward(bottom, top)
        >>> top[0].data.tolist()
        [2.0, 4.0, 6.0]
    """

    #: Whether its first top is part of the loss.
    is_loss: ClassVar[bool] = False
    #: Bottoms that have no gradient, such as labels.
    fixed_bottoms: ClassVar[tuple[int, ...]] = ()

    def __init__(self, spec: LayerSpec | None = None, phase: int = TRAIN) -> None:
        self.spec = spec or LayerSpec(type(self).__name__)
        self.phase = phase
        self.param_str = str(self.spec.options.get("param_str", ""))
        self.blobs = Blobs()

    @property
    def type(self) -> str:
        """The name of its type."""
        return self.spec.type or type(self).__name__

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Check the bottoms, and make parameters."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Give the tops their shapes."""
        raise NotImplementedError(f"{self.type}.reshape(bottom, top) is missing")

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Compute ``top[i].data`` of ``bottom[i].data``."""
        raise NotImplementedError(f"{self.type}.forward(bottom, top) is missing")

    def backward(
        self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]
    ) -> None:
        """Compute ``bottom[i].diff`` of ``top[i].diff``, and add to the diffs of parameters."""
        raise NotImplementedError(
            f"{self.type}.backward(top, propagate_down, bottom) is missing: it has no gradient"
        )

    def prepare(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Set the layer up for its blobs: what a net does first."""
        self.setup(bottom, top)
        self.reshape(bottom, top)

    def option(self, name: str, default: Any = None) -> Any:
        """Return an option, or what it is if the net's definition does not name it."""
        return self.spec.options.get(name, default)


#: Layers by the name of their type.
CATALOGUE: dict[str, type[Layer]] = {}


def layer(*names: str) -> Callable[[L], L]:
    """Register a class of layers under the names of its type."""

    def register(cls: L) -> L:
        for name in names:
            CATALOGUE[name] = cls
        return cls

    return register


def make_layer(spec: LayerSpec, phase: int) -> Layer:
    """Return a new layer.

    Raises:
        ArgumentError: there is no such type.
    """
    if spec.make is not None:
        made = spec.make()
        made.spec, made.phase = spec, phase
        made.param_str = str(spec.options.get("param_str", made.param_str))
        return made
    cls = CATALOGUE.get(spec.type)
    if cls is None:
        known = ", ".join(sorted(CATALOGUE))
        raise ArgumentError(
            f"layer {spec.name!r}: there is no type {spec.type!r}; there are {known}. A layer of "
            "your own is given as make=YourLayer"
        )
    return cls(spec, phase)
