"""Nets and solvers in Caffe's text format: from `.prototxt` to `LayerSpec` and `Solver`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from needle.errors import ArgumentError, DataError
from needle.layerwise.layer import TEST, TRAIN, Layer, LayerSpec
from needle.layerwise.net import Net
from needle.layerwise.schema import message
from needle.layerwise.solver import (
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    Solver,
    SolverConfig,
)
from needle.random import manual_seed

#: Solvers by the name that a definition gives.
SOLVERS: dict[str, type[Solver]] = {
    "SGD": SGDSolver,
    "Nesterov": NesterovSolver,
    "AdaGrad": AdaGradSolver,
    "RMSProp": RMSPropSolver,
    "Adam": AdamSolver,
}

#: Python layers by the name of their class, for layers of the type Python.
Layers = Mapping[str, Callable[[], Layer]]


def _parsed(source: str | Path, name: str) -> tuple[Any, str]:
    """Return a message and what to call where it comes from; a text has braces or line breaks."""
    found = message(name)
    from google.protobuf import text_format

    is_text = isinstance(source, str) and any(c in source for c in "{\n:")
    if is_text and not Path(source).suffix.startswith(".prototxt"):
        text, where = str(source), "the text"
    else:
        where = str(source)
        try:
            text = Path(source).read_text(encoding="utf-8")
        except OSError as error:
            raise DataError(f"{where}: cannot be read: {error.strerror}") from None
    try:
        text_format.Parse(text, found)
    except text_format.ParseError as error:
        raise ArgumentError(f"{where} is no {name}: {error}") from None
    return found, where


def read_net(source: str | Path, layers: Layers | None = None) -> list[LayerSpec]:
    """Return the layers of a net's definition, for `Net`.

    Args:
        source: a `.prototxt` file, or its text.
        layers: your own layers, for those of the type Python, by the name of their class.

    Raises:
        MissingExtraError: protobuf is not installed (extra ``caffe``).
        DataError: the file cannot be read.
        ArgumentError: it is no definition of a net.

    Example:
        >>> from needle.layerwise import Net, read_net
        >>> text = '''
        ... layer { name: "in" type: "Input" top: "x" input_param { shape: { dim: 2 dim: 3 } } }
        ... layer { name: "fc" type: "InnerProduct" bottom: "x" top: "y"
        ...         inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
        ... '''
        >>> Net(read_net(text)).forward()["y"].shape
        (2, 4)
    """
    net, _ = _parsed(source, "NetParameter")
    return _specs(net, layers or {})


def _specs(net: Any, layers: Layers) -> list[LayerSpec]:
    specs = []
    if net.input:
        shapes = [list(s.dim) for s in net.input_shape]
        dims = list(net.input_dim)
        shapes = shapes or [dims[4 * i : 4 * i + 4] for i in range(len(dims) // 4)]
        specs.append(LayerSpec("input", "Input", top=list(net.input), options={"shape": shapes}))
    return [*specs, *(_spec(layer, layers) for layer in net.layer)]


def _spec(layer: Any, layers: Layers) -> LayerSpec:
    options: dict[str, Any] = {}
    for field, value in layer.ListFields():
        if field.name.endswith("_param"):
            found = _plain(value)
            if field.name in ("transform_param", "data_param"):
                options[field.name] = found  # of data that a loader stands for
            else:
                options |= found
    return LayerSpec(
        layer.name,
        layer.type,
        list(layer.bottom),
        list(layer.top),
        options,
        [_plain(p) for p in layer.param],
        _phases(layer),
        list(layer.loss_weight),
        list(layer.propagate_down),
        _maker(layer, layers),
    )


def _maker(layer: Any, layers: Layers) -> Callable[[], Layer] | None:
    if layer.type != "Python":
        return None
    name = layer.python_param.layer
    if name not in layers:
        raise ArgumentError(
            f"layer {layer.name!r} is the Python layer {name!r} of {layer.python_param.module!r}, "
            f"which a definition cannot make needle import: pass layers={{{name!r}: {name}}}"
        )
    return layers[name]


def _phases(layer: Any) -> list[int]:
    """Return the phases that a layer is part of."""

    def holds(rule: Any, phase: int) -> bool:
        return not rule.HasField("phase") or rule.phase == phase

    for rule in (*layer.include, *layer.exclude):
        for name in ("min_level", "max_level", "stage", "not_stage"):
            if any(field.name == name for field, _ in rule.ListFields()):
                raise ArgumentError(f"layer {layer.name!r}: rules by {name} are not supported")
    phases = [TRAIN, TEST]
    if layer.HasField("phase"):
        phases = [layer.phase]
    if layer.include:
        phases = [p for p in phases if any(holds(rule, p) for rule in layer.include)]
    return [p for p in phases if not any(holds(rule, p) for rule in layer.exclude)]


def _plain(item: Any) -> dict[str, Any]:
    """Return the fields of a message that are set, enumerations by name."""
    values = {}
    for field, value in item.ListFields():
        if field.message_type is not None:
            plain: Any = [_plain(v) for v in value] if field.is_repeated else _plain(value)
        elif field.enum_type is not None:
            plain = field.enum_type.values_by_number[value].name
        else:
            plain = list(value) if field.is_repeated else value
        values[field.name] = plain
    return values


def read_solver(
    source: str | Path,
    *,
    data: Mapping[str, Any] | None = None,
    test_data: Mapping[str, Any] | None = None,
    layers: Layers | None = None,
) -> Solver:
    """Return the solver that a definition describes, with its nets.

    Args:
        source: a `.prototxt` file, or its text. The file of its net is looked for beside it, then
            in the folders above, as the definitions name it from the root of a project.
        data: loaders for the data layers of the net that is trained, by the layer's name.
        test_data: the same for the net that is tested; the training net's if not given.
        layers: your own layers; see `read_net`.

    Raises:
        MissingExtraError: protobuf is not installed (extra ``caffe``).
        DataError: a file cannot be read, or a data layer has no loader.
        ArgumentError: it is no definition of a solver, or names one that there is not.
    """
    found, where = _parsed(source, "SolverParameter")
    folder = Path(source).parent if where == str(source) else Path()
    kind = found.type or ""
    if not kind and found.HasField("solver_type"):
        names = {name.upper(): name for name in SOLVERS}
        number = found.DESCRIPTOR.fields_by_name["solver_type"].enum_type
        kind = names.get(number.values_by_number[found.solver_type].name, "ADADELTA")
    kind = kind or "SGD"
    if kind not in SOLVERS:
        raise ArgumentError(f"{where}: there is no solver {kind!r}; there are {', '.join(SOLVERS)}")
    if found.HasField("random_seed") and found.random_seed >= 0:
        manual_seed(found.random_seed)
    train = _net_of(found, folder, layers or {}, ("train_net", "net"))
    test = _net_of(found, folder, layers or {}, ("test_net", "net")) if found.test_iter else None
    net = Net(train, TRAIN, data=data)
    tests = [] if test is None else [Net(test, TEST, data=test_data or data)]
    return SOLVERS[kind](_config(found), net, tests)


def _config(found: Any) -> SolverConfig:
    values = _plain(found)
    if "test_iter" in values:
        values["test_iter"] = values["test_iter"][0]
    known = {f.name for f in fields(SolverConfig)}
    return SolverConfig(**{k: v for k, v in values.items() if k in known})


def _net_of(found: Any, folder: Path, layers: Layers, names: tuple[str, ...]) -> list[LayerSpec]:
    """Return the layers of the net that a solver names first, or holds."""
    for name in names:
        held = getattr(found, f"{name}_param")
        held = held[0] if name == "test_net" and held else held
        if name == "test_net" and not found.test_net_param:
            held = None
        if held is not None and held.ListFields():
            return _specs(held, layers)
        file = getattr(found, name)
        file = (file[0] if file else "") if name == "test_net" else file
        if file:
            return read_net(_located(file, folder), layers)
    raise ArgumentError("the solver names no net: give net, or train_net and test_net")


def _located(file: str, folder: Path) -> Path:
    """Return where a file is that a definition in ``folder`` names."""
    places = [folder / file, *(above / file for above in folder.resolve().parents)]
    places.append(folder / Path(file).name)
    for place in places:
        if place.is_file():
            return place
    raise DataError(
        f"the net {file!r} is not there: looked beside the solver's definition in {folder}"
    )
