"""Splits: a blob that several layers read gets a top for each, so that gradients can be added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from needle.layerwise.layer import LayerSpec


def insert_splits(specs: Sequence[LayerSpec]) -> list[LayerSpec]:
    """Return the layers with `Split` layers behind those whose tops have several readers.

    A layer may write where it reads (``top == bottom``): what it writes is another blob of the same
    name.

    Example:
        >>> from needle.layerwise.splits import insert_splits
        >>> specs = [LayerSpec("in", "Input", top=["x"]), LayerSpec("a", "ReLU", ["x"], ["y"]),
        ...          LayerSpec("b", "ReLU", ["x"], ["z"])]
        >>> [(s.name, list(s.bottom), list(s.top)) for s in insert_splits(specs)][1]
        ('x_in_split', ['x'], ['x_in_split_0', 'x_in_split_1'])
    """
    # Who wrote a blob of a name last, for each reader.
    writer: dict[str, int] = {}
    sources: list[list[tuple[int, str]]] = []
    readers: Counter[tuple[int, str]] = Counter()
    for i, spec in enumerate(specs):
        own = [(writer[name], name) for name in spec.bottom if name in writer]
        sources.append(own)
        readers.update(own)
        for name in spec.top:
            writer[name] = i
    result: list[LayerSpec] = []
    taken: Counter[tuple[int, str]] = Counter()
    for i, spec in enumerate(specs):
        bottoms = list(spec.bottom)
        known = iter(sources[i])
        renamed: dict[str, str] = {}
        for k, name in enumerate(bottoms):
            if name not in {n for _, n in sources[i]}:
                continue
            source = next(known)
            if readers[source] > 1:
                bottoms[k] = f"{name}_{specs[source[0]].name}_split_{taken[source]}"
                renamed.setdefault(name, bottoms[k])
                taken[source] += 1
        result.append(replace(spec, bottom=bottoms) if renamed else spec)
        for name in spec.top:
            count = readers[i, name]
            if count > 1:
                stem = f"{name}_{spec.name}_split"
                tops = [f"{stem}_{n}" for n in range(count)]
                result.append(LayerSpec(stem, "Split", [name], tops))
    return result
