"""Layers that bring data into a net: Input, DummyData, and batches of a needle loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from needle import tree
from needle.errors import ArgumentError, DataError
from needle.layerwise.blob import Blob
from needle.layerwise.fillers import fill
from needle.layerwise.layer import Layer, layer
from needle.tensor import Tensor


def _shapes(options: Any, count: int) -> list[tuple[int, ...]]:
    """Return the shape of each top."""
    given = options("shape", ())
    listed = [given] if hasattr(given, "get") or (given and not _is_nested(given)) else list(given)
    shapes = [tuple(int(n) for n in (s.get("dim", ()) if hasattr(s, "get") else s)) for s in listed]
    if len(shapes) == 1:
        shapes *= count
    return shapes


def _is_nested(given: Any) -> bool:
    return all(hasattr(s, "get") or isinstance(s, (list, tuple)) for s in given)


class Source(Layer):
    """A layer without bottoms, and so without a gradient."""

    def backward(
        self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]
    ) -> None:
        pass


@layer("Input")
class Input(Source):
    """Tops that are filled from outside. Options: shape, of each top."""

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        shapes = _shapes(self.option, len(top))
        if len(shapes) != len(top):
            raise ArgumentError(
                f"layer {self.spec.name!r} (Input): {len(shapes)} shapes for {len(top)} tops"
            )
        for blob, shape in zip(top, shapes, strict=True):
            blob.reshape(*shape)

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        pass  # as who fills the tops wants them

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        pass


@layer("DummyData")
class DummyData(Input):
    """Tops filled by fillers: once if they are constants, else each time.

    Options: shape, data_filler.
    """

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        super().setup(bottom, top)
        given = self.option("data_filler", ())
        fillers = [given] if hasattr(given, "get") else list(given)
        self.fillers = (fillers or [{}]) * (len(top) if len(fillers) <= 1 else 1)
        for blob, filler in zip(top, self.fillers, strict=True):
            fill(blob.data, filler)

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        for blob, filler in zip(top, self.fillers, strict=True):
            if filler.get("type", "constant") != "constant":
                fill(blob.data, filler)


@layer("Data", "ImageData", "HDF5Data", "MemoryData")
class Data(Source):
    """Batches of a loader or any other iterable that can be gone through again and again.

    Options: loader. Databases that Caffe reads are replaced by needle's data sets: give the loader
    in the options, or to the net by the layer's name.
    """

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        loader = self.option("loader")
        if loader is None:
            raise DataError(
                f"layer {self.spec.name!r} ({self.type}) has no data: pass "
                f"Net(..., data={{{self.spec.name!r}: loader}}) with a needle.data.DataLoader, or "
                "any iterable of batches"
            )
        self.loader: Iterable[Any] = loader
        self._iterator: Iterator[Any] = iter(loader)
        self._first: Any = None

    def _next(self) -> list[Any]:
        if self._first is not None:
            batch, self._first = self._first, None
            return list(batch)
        for _ in range(2):
            for batch in self._iterator:
                leaves = tree.flatten(batch)[0]
                return [x.numpy() if isinstance(x, Tensor) else np.asarray(x) for x in leaves]
            self._iterator = iter(self.loader)
        raise DataError(f"layer {self.spec.name!r} ({self.type}): its loader has no batches")

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        if self._first is None:
            self._first = self._next()
        if len(self._first) < len(top):
            raise DataError(
                f"layer {self.spec.name!r} ({self.type}): batches have {len(self._first)} parts, "
                f"and the net names {len(top)} tops"
            )
        for blob, part in zip(top, self._first, strict=False):
            blob.reshape(*part.shape)

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        for blob, part in zip(top, self._next(), strict=False):
            blob.reshape(*part.shape)
            blob.data[...] = part
