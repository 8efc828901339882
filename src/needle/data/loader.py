"""The loader: batches of a dataset, in an order that can be reproduced and resumed.

An epoch is three steps: the sampler plans which indices make up each batch, `fetch` reads the
samples of one batch, and the collate function makes Tensors of them. `fetch` is a pure function of
its arguments, so where it runs (here, or in other processes) cannot change a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from needle.creation import asarray
from needle.data.collate import default_collate
from needle.data.dataset import Dataset
from needle.data.sampler import (
    BatchSampler,
    RandomSampler,
    SequentialSampler,
    epoch_order,
)
from needle.data.streams import SampleStreams, draw_seed, sample_scope
from needle.errors import ArgumentError, ArgumentTypeError, StateDictError
from needle.random import Generator
from needle.tree import tree_map

T_co = TypeVar("T_co", covariant=True)
Collate = Callable[[list[Any]], Any]

_STATE_KEYS = frozenset(
    {"epoch", "position", "seed", "generator", "sampler", "samples", "batch_size"}
)


@dataclass(frozen=True)
class BatchPlan:
    """What makes up one batch: enough to fetch it anywhere.

    Attributes:
        seed: of the epoch.
        epoch: from 0.
        indices: the samples, in order.
        repeats: how often the epoch visited each sample before; None means never.
    """

    seed: int
    epoch: int
    indices: Sequence[int]
    repeats: Sequence[int] | None = None


def fetch(dataset: Dataset[Any], plan: BatchPlan, collate: Collate = default_collate) -> Any:
    """Return the batch that ``plan`` describes.

    A dataset that reads many samples at once is asked for the whole batch, as long as nobody wants
    to see the samples one by one (a collate function of the user's).
    """
    if collate is default_collate and getattr(dataset, "batched", False) and len(plan.indices) > 0:
        with sample_scope(SampleStreams(plan.seed, plan.epoch, plan.indices, plan.repeats)):
            batch = dataset.get_batch(np.asarray(plan.indices, np.int64))
        return tree_map(asarray, batch)
    samples = []
    for i, index in enumerate(plan.indices):
        repeats = None if plan.repeats is None else plan.repeats[i : i + 1]
        with sample_scope(SampleStreams(plan.seed, plan.epoch, (index,), repeats)):
            samples.append(dataset[index])
    return collate(samples)


class DataLoader(Generic[T_co]):
    """Iterate over a dataset in batches; each ``for`` loop over the loader is one epoch.

    Each epoch draws one seed from the generator. The seed decides the epoch's order and, with the
    index of a sample, the random numbers of that sample's transforms: nothing depends on the batch
    size or on who else draws random numbers. ``state_dict()`` in the middle of an epoch and
    ``load_state_dict()`` in another process continue with exactly the batches that were left. (A
    loop that was left by ``break`` counts as unfinished until the next one starts.)

    Args:
        dataset: samples by index.
        batch_size: samples in a batch.
        shuffle: a new random order each epoch.
        sampler: the order, instead of ``shuffle``: an iterable of indices with a length.
        batch_sampler: the order in batches, instead of the four arguments that it takes the place
            of.
        drop_last: leave out a last batch that is smaller.
        collate_fn: makes a batch of a list of samples; None means `default_collate`.
        generator: source of the epochs' seeds. None means the sampler's if it has one, else one of
            the loader's own, seeded by the default generator when it is first needed; the data
            order then does not depend on what else draws random numbers, say dropout.

    Raises:
        ArgumentError: arguments that contradict each other, a batch size below 1, or ``drop_last``
            with fewer samples than one batch (there would be nothing to iterate over).

    Example:
        >>> import needle as ndl
        >>> from needle.data import DataLoader, Digits
        >>> loader = DataLoader(Digits(train=True), batch_size=64, shuffle=True)
        >>> images, labels = next(iter(loader))
        >>> len(loader), images.shape, labels.shape, labels.dtype
        (23, (64, 1, 8, 8), (64,), dtype('int64'))
    """

    def __init__(
        self,
        dataset: Dataset[T_co],
        batch_size: int = 1,
        shuffle: bool = False,
        sampler: Iterable[int] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        *,
        drop_last: bool = False,
        collate_fn: Collate | None = None,
        generator: Generator | None = None,
    ) -> None:
        if batch_sampler is None:
            if sampler is not None and shuffle:
                raise ArgumentError("DataLoader: give shuffle=True or a sampler, not both")
            if sampler is None:
                sampler = RandomSampler(dataset) if shuffle else SequentialSampler(dataset)
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
            _check_not_empty(batch_sampler, batch_size, drop_last)
        elif batch_size != 1 or shuffle or sampler is not None or drop_last:
            raise ArgumentError(
                "DataLoader: a batch_sampler decides the order and the batches by itself; leave "
                "out batch_size, shuffle, sampler and drop_last"
            )
        self.dataset = dataset
        self.batch_sampler = batch_sampler
        self.batch_size: int | None = getattr(batch_sampler, "batch_size", None)
        self.collate_fn: Collate = default_collate if collate_fn is None else collate_fn
        if generator is None:
            generator = getattr(batch_sampler, "generator", None)
        self._generator: Generator | None = generator
        self._epoch = 0
        self._running: _Epoch | None = None
        self._resumed: _Epoch | None = None

    @property
    def generator(self) -> Generator:
        """The source of the epochs' seeds."""
        if self._generator is None:
            self._generator = Generator(draw_seed(None))
        return self._generator

    @property
    def epoch(self) -> int:
        """The number of the epoch that is running, or of the next if none is."""
        running = self._resumed or self._running
        return self._epoch if running is None else running.number

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        try:
            return len(self.batch_sampler)  # type: ignore[arg-type]
        except TypeError:
            raise ArgumentTypeError(
                "DataLoader: the number of batches is not known, as the sampler has no length"
            ) from None

    def __iter__(self) -> Iterator[Any]:
        """Start an epoch, or go on with the one that `load_state_dict` left unfinished."""
        if self._resumed is not None:
            epoch, self._resumed = self._resumed, None
        else:
            number = self._epoch if self._running is None else self._running.number + 1
            epoch = _Epoch(self, number, draw_seed(self.generator))
        self._running = epoch
        epoch.start()
        return epoch

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands, as JSON-like values.

        Taken in the body of the loop, it counts the batch at hand as seen. After the last batch of
        an epoch, but still in its body, the epoch has no batches left: a resumed loop has nothing
        more to iterate over and goes on to what follows the epoch.
        """
        running = self._resumed or self._running
        return {
            "epoch": self.epoch,
            "position": 0 if running is None else running.position,
            "seed": None if running is None else running.seed,
            "generator": self.generator.state.numpy().tolist(),
            "sampler": _sampler_state(self) if running is None else running.sampler_state,
            "samples": len(self.dataset),
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`: the next loop sees the batches that were left.

        Raises:
            StateDictError: keys are missing or unknown, or the state is that of a loader with
                another number of samples or another batch size.
        """
        if state.keys() != _STATE_KEYS:
            raise StateDictError(
                f"DataLoader: the state must have the keys {sorted(_STATE_KEYS)}, got "
                f"{sorted(state)}"
            )
        for name, mine in (("samples", len(self.dataset)), ("batch_size", self.batch_size)):
            if state[name] != mine:
                raise StateDictError(
                    f"DataLoader: the state was saved with {name}={state[name]}, but this loader "
                    f"has {name}={mine}; the rest of an epoch is the same only with the same data "
                    "and batch size"
                )
        self.generator.set_state(asarray(np.array(state["generator"], np.uint32)))
        self._epoch = state["epoch"]
        self._running = self._resumed = None
        if state["seed"] is not None:
            resumed = _Epoch(self, state["epoch"], state["seed"])
            resumed.position = state["position"]
            resumed.sampler_state = state["sampler"]
            self._resumed = resumed
        elif state["sampler"] is not None:
            _user_sampler(self).load_state_dict(state["sampler"])

    def _finish(self, epoch: _Epoch) -> None:
        """Note that ``epoch`` came to its end; one that a newer epoch replaced does not count."""
        if self._running is epoch:
            self._epoch, self._running = epoch.number + 1, None

    def __repr__(self) -> str:
        return f"DataLoader({self.dataset!r}, batch_size={self.batch_size})"


class _Epoch(Iterator[Any]):
    """One pass over the data: an iterator that knows how many batches it has handed out."""

    def __init__(self, loader: DataLoader[Any], number: int, seed: int) -> None:
        self.loader = loader
        self.number = number
        self.seed = seed
        self.position = 0
        self.sampler_state: Any = None
        self._plans: Iterator[BatchPlan] = iter(())

    def start(self) -> None:
        """Plan the epoch, passing over the batches that were handed out before."""
        if self.sampler_state is None:
            self.sampler_state = _sampler_state(self.loader)
        else:
            _user_sampler(self.loader).load_state_dict(self.sampler_state)
        self._plans = self._plan()
        for _ in range(self.position):
            next(self._plans, None)

    def _plan(self) -> Iterator[BatchPlan]:
        sampler = self.loader.batch_sampler
        visits: dict[int, int] | None = None if getattr(sampler, "distinct", False) else {}
        for indices in epoch_order(sampler, self.seed):
            repeats: list[int] | None = None
            if visits is not None:
                repeats = [_visit(visits, i) for i in indices]
            yield BatchPlan(self.seed, self.number, indices, repeats)

    def __next__(self) -> Any:
        plan = next(self._plans, None)
        if plan is None:
            self.loader._finish(self)
            raise StopIteration
        batch = fetch(self.loader.dataset, plan, self.loader.collate_fn)
        self.position += 1
        return batch


def _visit(visits: dict[int, int], index: int) -> int:
    """Return how often ``index`` was visited before, and count this visit."""
    before = visits.get(index, 0)
    visits[index] = before + 1
    return before


def _user_sampler(loader: DataLoader[Any]) -> Any:
    """Return the sampler below our own grouping into batches."""
    sampler = loader.batch_sampler
    return sampler.sampler if isinstance(sampler, BatchSampler) else sampler


def _sampler_state(loader: DataLoader[Any]) -> Any:
    """Return the state of a sampler that has one of its own; needle's need none."""
    save = getattr(_user_sampler(loader), "state_dict", None)
    return None if save is None else save()


def _check_not_empty(batches: BatchSampler, batch_size: int, drop_last: bool) -> None:
    if not drop_last:
        return
    try:
        samples = len(batches.sampler)  # type: ignore[arg-type]
    except TypeError:
        return
    if 0 < samples < batch_size:
        raise ArgumentError(
            f"DataLoader: drop_last=True with batch_size={batch_size} leaves no batch at all of "
            f"{samples} samples; use a smaller batch_size, or keep the last batch"
        )
