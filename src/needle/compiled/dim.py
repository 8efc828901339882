"""Dim: an extent that varies from call to call, declared by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from needle.errors import ArgumentError, ArgumentTypeError, ShapeError
from needle.shapes import Shape

#: For each argument, the varying axes: one entry for each leading axis, None for a fixed one.
Dims = Mapping[str, "Dim | Sequence[Dim | None] | None"]


@dataclass(frozen=True)
class Dim:
    """An extent that varies, such as that of the batch.

    Axes that are declared with one name have one extent in each call. A compiled function takes any
    extent in the range, without one more signature counting against its budget: one program serves
    them all. Where that cannot be, each extent gets a program of its own, compiled when it is first
    met, and `explain` says why; see docs/EXTENTS.md. Of several `Dim`, it is the first that is
    declared whose extents share a program.

    Args:
        name: what errors call it.
        low: the smallest extent.
        high: the largest; None for no limit.

    Raises:
        ArgumentError: the range is empty.

    Example:
        >>> batch = ndl.Dim("batch")
        >>> total = ndl.compile(lambda x: x.sum(), dims={"x": batch}, budget=1)
        >>> [total(ndl.ones((n, 2))).item() for n in (1, 2, 3)], len(total.specializations)
        ([2.0, 4.0, 6.0], 1)
    """

    name: str
    low: int = 0
    high: int | None = None

    def __post_init__(self) -> None:
        if self.low < 0 or (self.high is not None and self.high < self.low):
            raise ArgumentError(
                f"Dim {self.name!r}: no extent lies between {self.low} and {self.high}"
            )

    def __str__(self) -> str:
        return self.name

    def check(self, extent: int, where: str) -> None:
        """Raise if an extent is out of the range."""
        if extent < self.low or (self.high is not None and extent > self.high):
            limit = "more" if self.high is None else str(self.high)
            raise ShapeError(
                f"{where} has extent {extent}, but {self.name} goes from {self.low} to {limit}"
            )


def as_dims(dims: Dims | None) -> dict[str, tuple[Dim | None, ...]]:
    """Return declared axes in one form.

    Raises:
        ArgumentTypeError: something that is neither a `Dim` nor None.
    """
    result: dict[str, tuple[Dim | None, ...]] = {}
    for name, declared in (dims or {}).items():
        axes = (declared,) if isinstance(declared, Dim) or declared is None else tuple(declared)
        for d in axes:
            if d is not None and not isinstance(d, Dim):
                raise ArgumentTypeError(
                    f"compile: dims[{name!r}] must hold Dim objects or None for each axis, got "
                    f"{type(d).__name__}"
                )
        result[name] = axes
    return result


def extent_of(
    shapes: Sequence[tuple[str, Shape | None]], dims: Mapping[str, tuple[Dim | None, ...]]
) -> int | None:
    """Return the first extent on a declared axis; None if there is none.

    Args:
        shapes: of each leaf of the arguments, with its name; None for what is no tensor.
        dims: the declared axes, by the name of a leaf or of the argument that it belongs to.
    """
    for name, shape in shapes:
        declared = dims.get(name, dims.get(name.split("[")[0], ()))
        for d, extent in zip(declared, shape or (), strict=False):
            if d is not None:
                return extent
    return None


def generalise(
    shapes: Sequence[tuple[str, Shape | None]], dims: Mapping[str, tuple[Dim | None, ...]]
) -> tuple[Any, ...]:
    """Return shapes with the declared axes replaced by their names, after checking them.

    Args:
        shapes: of each leaf of the arguments, with its name: ``x``, ``batch[0]``; None for what is
            no tensor.
        dims: the declared axes, by the name of a leaf or of the argument that it belongs to.

    Raises:
        ShapeError: an extent is out of its range, two extents of one name differ, or a tensor has
            fewer axes than are declared.
    """
    seen: dict[str, tuple[int, str]] = {}
    result: list[Any] = []
    for name, shape in shapes:
        declared = dims.get(name, dims.get(name.split("[")[0], ()))
        if shape is None or not declared:
            result.append(shape)
            continue
        if len(shape) < len(declared):
            raise ShapeError(
                f"{name} has shape {list(shape)}, but dims declares {len(declared)} axes of it"
            )
        general: list[Any] = list(shape)
        for axis, d in enumerate(declared):
            if d is None:
                continue
            where = f"axis {axis} of {name}"
            d.check(shape[axis], where)
            extent, first = seen.setdefault(d.name, (shape[axis], where))
            if extent != shape[axis]:
                raise ShapeError(
                    f"{where} has extent {shape[axis]}, {first} has {extent}; both are declared to "
                    f"be {d.name}, so they must be equal"
                )
            general[axis] = d.name
        result.append(tuple(general))
    return tuple(result)
