"""Cases: the samples of the op records, one by one, and their conversion to tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

import needle.ops  # noqa: F401  (fills the registry)
from needle import tree
from needle.dtypes import is_float
from needle.ops.record import REGISTRY, Entry
from needle.ops.samples import Array, Sample
from needle.tensor import Tensor


@dataclass(frozen=True)
class Case:
    """One sample of one op.

    Attributes:
        entry: the record.
        sample: what to call it with.
        id: the op's name and the sample's label, unique.
    """

    entry: Entry
    sample: Sample
    id: str

    def __str__(self) -> str:
        return self.id

    def arguments(
        self, convert: Callable[[Array], Any] | None = None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments, each array replaced by ``convert(array)``.

        Without ``convert``, arrays become constant tensors over copies of them.
        """
        change = convert or (lambda array: Tensor(array.copy(), requires_grad=False))

        def leaf(value: Any) -> Any:
            return (
                change(np.asarray(value)) if isinstance(value, np.ndarray | np.generic) else value
            )

        args, kwargs = tree.tree_map(leaf, (tuple(self.sample.args), dict(self.sample.kwargs)))
        return args, kwargs

    def call(self, convert: Callable[[Array], Any] | None = None) -> Any:
        """Call the public function with the converted arguments."""
        args, kwargs = self.arguments(convert)
        return self.entry.function(*args, **kwargs)

    def floating_arrays(self) -> list[Array]:
        """Return the floating arrays among the arguments, in the order of `arguments`."""
        found: list[Array] = []
        self.arguments(lambda array: found.append(array) if is_float(array.dtype) else None)
        return found

    def as_function(self) -> tuple[Callable[..., Any], list[Array]]:
        """Return a function of the floating arguments alone, and those arguments."""

        def function(*values: Any) -> Any:
            rest = iter(values)
            return self.call(
                lambda a: next(rest) if is_float(a.dtype) else Tensor(a, requires_grad=False)
            )

        return function, self.floating_arrays()


def ops_under_test(entries: Iterable[Entry] | None = None) -> list[Entry]:
    """Return the records of ``entries``; of all ops and composites if not given."""
    return list(REGISTRY.values() if entries is None else entries)


def cases_under_test(entries: Iterable[Entry] | None = None, *, bad: bool = False) -> list[Case]:
    """Return the cases of ``entries`` (all, if not given): ordinary ones, or those of bad input.

    Example:
        >>> from needle.testing import cases_under_test
        >>> [case.id for case in cases_under_test() if case.entry.name == "exp"][:3]
        ['exp', 'exp-0-d', 'exp-empty']
    """
    cases: list[Case] = []
    for entry in ops_under_test(entries):
        taken: set[str] = set()
        for sample in entry.draw_samples():
            stem = f"{entry.name}-{sample.label}" if sample.label else entry.name
            name, number = stem, 2
            while name in taken:
                name, number = f"{stem}-{number}", number + 1
            taken.add(name)
            if (sample.error is not None) == bad:
                cases.append(Case(entry, sample, name))
    return cases
