"""Recipes: all that is needed to call a program, besides its code. They go to the cache with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.arrays import aligned
from needle.backends.cpu.fault import Fault
from needle.dtypes import as_dtype
from needle.ops.samples import Array
from needle.shapes import Spec

if TYPE_CHECKING:
    from needle.backends.cpu.program import Program

_NUMBERS = (
    "first_constant",
    "addressed",
    "arena_slot",
    "arena_bytes",
    "status_slot",
    "rows_slot",
    "row_bytes",
    "prepared_slot",
    "prepared_bytes",
    "slots",
)


@dataclass(frozen=True)
class Output:
    """An output of a program.

    Attributes:
        spec: shape and dtype.
        slot: of the table, for a new array; None if it is written to an input.
        source: the input whose storage it takes over; None for a new array.
        copy: what is copied to it after the call: ``("input", i)``, ``("output", i)`` or
            ``("constant", i)``.
    """

    spec: Spec
    slot: int | None
    source: int | None
    copy: tuple[str, int] | None = None


@dataclass(frozen=True)
class Recipe:
    """How a program is called: all that is not code. It can be written as JSON.

    Attributes:
        inputs: shapes and dtypes.
        outputs: what is returned.
        constants: the arrays that the code addresses, and those that outputs are copied from.
        first_constant: slot of the first; they follow each other.
        addressed: how many of the constants the code addresses.
        arena_slot, arena_bytes: the arena of temporary values.
        status_slot: slot of the status.
        rows_slot, row_bytes: the arena of temporary values that have rows: bytes for each row.
        prepared_slot, prepared_bytes: memory of what is prepared for many calls.
        origins: the inputs that this is computed from.
        slots: how many slots the table has.
        faults: what the status may report.
    """

    inputs: tuple[Spec, ...]
    outputs: tuple[Output, ...]
    constants: tuple[Array, ...]
    first_constant: int
    addressed: int
    arena_slot: int
    arena_bytes: int
    status_slot: int
    rows_slot: int
    row_bytes: int
    prepared_slot: int
    prepared_bytes: int
    slots: int
    origins: tuple[int, ...]
    faults: tuple[Fault, ...]

    @classmethod
    def of(cls, program: Program) -> Recipe:
        """Return the recipe of a program."""
        graph, layout = program.graph, program.layout
        constants = list(layout.constants)
        outputs: list[Output] = []
        for i, (value, slot) in enumerate(zip(graph.outputs, layout.outputs, strict=True)):
            copy: tuple[str, int] | None = None
            if i in layout.copies:
                if value.constant is not None:
                    copy = ("constant", len(constants))
                    constants.append(np.asarray(value.constant, order="C"))
                elif value.node is None:
                    copy = ("input", graph.inputs.index(value))
                else:
                    computed = (
                        k
                        for k, v in enumerate(graph.outputs)
                        if v is value and k not in layout.copies
                    )
                    copy = ("output", next(computed))
            outputs.append(Output(value.spec, slot, graph.donations.get(i), copy))
        return cls(
            tuple(v.spec for v in graph.inputs),
            tuple(outputs),
            tuple(constants),
            layout.first_constant,
            len(layout.constants),
            layout.arena_slot,
            layout.memory.nbytes,
            layout.status_slot,
            layout.rows_slot,
            layout.rows_memory.nbytes,
            layout.prepared_slot,
            layout.prepared_bytes,
            layout.slots,
            tuple(i for i, v in enumerate(graph.inputs) if v in program.preparing.origins),
            tuple(program.faults),
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything but the values of the constants."""
        return {
            "inputs": [_spec_to_json(s) for s in self.inputs],
            "outputs": [[_spec_to_json(o.spec), o.slot, o.source, o.copy] for o in self.outputs],
            "constants": [_spec_to_json(Spec(c.shape, c.dtype)) for c in self.constants],
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
            "origins": self.origins,
            "faults": [[f.op, f.attrs, f.shape, f.location] for f in self.faults],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], values: bytes) -> Recipe:
        """Return what `to_json` was made from; ``values`` are the constants' bytes in a row."""
        constants = []
        place = 0
        for listed in data["constants"]:
            spec = _spec_from_json(listed)
            array = aligned(*spec)
            array.reshape(-1).view(np.uint8)[:] = np.frombuffer(
                values, np.uint8, spec.nbytes, place
            )
            place += spec.nbytes
            constants.append(array)
        return cls(
            tuple(_spec_from_json(s) for s in data["inputs"]),
            tuple(
                Output(_spec_from_json(spec), slot, source, tuple(copy) if copy else None)
                for spec, slot, source, copy in data["outputs"]
            ),
            tuple(constants),
            **{name: int(data["numbers"][name]) for name in _NUMBERS},
            origins=tuple(data["origins"]),
            faults=tuple(
                Fault(op, attrs, tuple(shape), location)
                for op, attrs, shape, location in data["faults"]
            ),
        )


def _spec_to_json(spec: Spec) -> list[Any]:
    return [list(spec.shape), spec.dtype.name]


def _spec_from_json(data: Sequence[Any]) -> Spec:
    return Spec(tuple(data[0]), as_dtype(data[1]))
