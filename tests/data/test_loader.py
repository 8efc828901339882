"""The loader: batches, order, fast path, and resumed equals uninterrupted."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    Digits,
    ImageDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    sample_generator,
    transforms,
)
from needle.errors import ArgumentError, ArgumentTypeError, OutOfRangeError, StateDictError


def numbers(n=10):
    return TensorDataset(np.arange(n))


def epoch(loader):
    return [batch[0].tolist() for batch in loader]


AUGMENT = transforms.Compose(
    [
        transforms.RandomCrop(8, padding=2),
        transforms.RandomHorizontalFlip(),
        transforms.ToFloat(16),
        transforms.Normalize(0.3, 0.4),
    ]
)


class OneByOne(Dataset):
    """The same samples, without the fast path."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index]


class Noisy(Dataset):
    """Samples whose random numbers come from the sample's NumPy generator."""

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return index, float(sample_generator().normal())


def test_batches_in_order():
    loader = DataLoader(numbers(), batch_size=4)
    assert epoch(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(loader) == 3
    loader = DataLoader(numbers(), batch_size=4, drop_last=True)
    assert epoch(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(loader) == 2


def test_shuffling_visits_everything_anew_each_epoch():
    loader = DataLoader(numbers(50), 7, shuffle=True, generator=ndl.random.Generator(3))
    first, second = epoch(loader), epoch(loader)
    assert first != second
    for one in (first, second):
        assert sorted(itertools.chain(*one)) == list(range(50))
    again = DataLoader(numbers(50), 7, shuffle=True, generator=ndl.random.Generator(3))
    assert [epoch(again), epoch(again)] == [first, second]


def test_manual_seed_makes_a_run_reproducible():
    def run():
        ndl.manual_seed(0)
        loader = DataLoader(numbers(30), 4, shuffle=True)
        return [epoch(loader) for _ in range(2)]

    assert run() == run()


def test_own_generator_ignores_what_else_is_drawn():
    def run(disturb):
        ndl.manual_seed(0)
        loader = DataLoader(numbers(30), 4, shuffle=True)
        out = [epoch(loader)]
        if disturb:
            ndl.random.permutation(5)
        return [*out, epoch(loader)]

    assert run(disturb=False) == run(disturb=True)


def test_order_does_not_depend_on_batch_size():
    def order(size):
        loader = DataLoader(numbers(31), size, shuffle=True, generator=ndl.random.Generator(1))
        return list(itertools.chain(*epoch(loader)))

    assert order(1) == order(5) == order(31) == order(64)


def images(transform=AUGMENT):
    return Digits(train=False, transform=transform)


def samples_by_index(dataset, batch_size, generator_seed=4, epochs=2):
    """Return {(epoch, index): image bytes} for a loader whose labels are indices."""
    wrapped = WithIndex(dataset)
    generator = ndl.random.Generator(generator_seed)
    loader = DataLoader(wrapped, batch_size, shuffle=batch_size != 1, generator=generator)
    return {
        (e, int(index)): image.tobytes()
        for e in range(epochs)
        for batch, at in loader
        for image, index in zip(batch.numpy(), at.tolist(), strict=True)
    }


class WithIndex(Dataset):
    def __init__(self, dataset):
        self.dataset = dataset
        self.batched = dataset.batched

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return self.dataset[index][0], index

    def get_batch(self, indices):
        return self.dataset.get_batch(indices)[0], indices


def test_augmentation_depends_on_seed_epoch_and_index_only():
    part = Subset(images(), range(60))
    reference = samples_by_index(part, 1)
    assert len(reference) == 120
    for size in (7, 32, 60):
        assert samples_by_index(part, size) == reference
    slow = OneByOne(part)
    assert samples_by_index(slow, 7) == reference
    other = samples_by_index(part, 7, generator_seed=5)
    assert sum(other[k] != reference[k] for k in reference) > 100
    changed = sum(reference[0, i] != reference[1, i] for i in range(60))
    assert changed > 50  # a new crop in each epoch


def test_fast_path_equals_sample_by_sample():
    data = TensorDataset(
        np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32),
        np.arange(20, dtype=np.int32),
        np.arange(20) % 2 == 0,
        np.arange(20) * 0.5,
    )
    for dataset in (data, Subset(data, range(19, 0, -2)), images(), images(None)):
        fast = list(DataLoader(dataset, 6, generator=ndl.random.Generator(0)))
        slow = list(DataLoader(OneByOne(dataset), 6, generator=ndl.random.Generator(0)))
        for a, b in zip(fast, slow, strict=True):
            for x, y in zip(a, b, strict=True):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x.numpy(), y.numpy())


def test_fast_path_asks_once_per_batch():
    class Counting(TensorDataset):
        calls = 0

        def get_batch(self, indices):
            Counting.calls += 1
            return super().get_batch(indices)

        def __getitem__(self, index):
            raise AssertionError("must not be read one by one")

    list(DataLoader(Counting(np.arange(10)), 4))
    assert Counting.calls == 3


def test_unbatched_transform_is_called_per_sample():
    shapes = []

    def look(image):
        shapes.append(image.shape)
        return image.astype(np.float32)

    data = ImageDataset(np.zeros((5, 1, 4, 4), np.uint8), [0] * 5, ["a"], transform=look)
    assert not data.batched
    assert [x.shape for x, _ in DataLoader(data, 3)] == [(3, 1, 4, 4), (2, 1, 4, 4)]
    assert shapes == [(1, 4, 4)] * 5


def test_collate_function_sees_the_samples():
    seen = list(DataLoader(numbers(5), 2, collate_fn=lambda samples: samples))
    assert [[int(x) for (x,) in batch] for batch in seen] == [[0, 1], [2, 3], [4]]


def test_repeated_samples_are_augmented_anew():
    class Draw(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return index, float(sample_generator().random())

    sampler = WeightedRandomSampler([1.0, 5.0, 1.0], 40)

    def run(size):
        loader = DataLoader(Draw(), size, sampler=sampler, generator=ndl.random.Generator(0))
        pairs = [(x.tolist(), y.tolist()) for x, y in loader]
        return list(itertools.chain(*[zip(x, y, strict=True) for x, y in pairs]))

    draws = run(1)
    assert len({d for _, d in draws}) == 40
    assert run(7) == draws


def test_sampler_and_batch_sampler():
    loader = DataLoader(numbers(), 2, sampler=[3, 1, 2])
    assert epoch(loader) == [[3, 1], [2]]
    loader = DataLoader(numbers(), batch_sampler=[[1, 2, 3], [9]])
    assert epoch(loader) == [[1, 2, 3], [9]]
    generator = ndl.random.Generator(2)
    shuffled = BatchSampler(RandomSampler(range(10), generator=generator), 3, False)
    loader = DataLoader(numbers(), batch_sampler=shuffled)
    assert loader.generator is generator
    assert sorted(itertools.chain(*epoch(loader))) == list(range(10))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shuffle": True, "sampler": [0]}, "not both"),
        ({"batch_size": 0}, "positive"),
        ({"batch_size": -1}, "positive"),
        ({"batch_size": 2.5}, "positive integer"),
        ({"batch_size": 11, "drop_last": True}, "leaves no batch at all of 10 samples"),
        ({"batch_sampler": [[0]], "batch_size": 2}, "batch_sampler decides"),
        ({"batch_sampler": [[0]], "shuffle": True}, "batch_sampler decides"),
        ({"batch_sampler": [[0]], "sampler": [0]}, "batch_sampler decides"),
        ({"batch_sampler": [[0]], "drop_last": True}, "batch_sampler decides"),
    ],
)
def test_contradictions(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        DataLoader(numbers(), **arguments)


def test_length_may_be_unknown():
    loader = DataLoader(numbers(), 2, sampler=iter([1, 2]))
    assert epoch(loader) == [[1, 2]]
    with pytest.raises(ArgumentTypeError, match="no length"):
        len(loader)


def test_empty_dataset_and_bad_indices():
    assert epoch(DataLoader(numbers(0), 4)) == []
    assert epoch(DataLoader(numbers(0), 4, shuffle=True)) == []
    with pytest.raises(OutOfRangeError, match="index 12"):
        epoch(DataLoader(numbers(), 2, sampler=[0, 12]))
    with pytest.raises(ArgumentError, match="no samples"):
        epoch(DataLoader(numbers(), batch_sampler=[[]]))


def collect(loader, epochs):
    """Return all batches of some epochs as nested lists."""
    return [[leaf.tolist() for leaf in batch] for _ in range(epochs) for batch in loader]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 8), st.booleans(), st.sampled_from(["own", "given", "weighted"]))
def test_resumed_equals_uninterrupted(stop, shuffle, source):
    def build(seed):
        ndl.manual_seed(seed)
        if source == "given":
            return DataLoader(Noisy(), 5, shuffle=shuffle, generator=ndl.random.Generator(seed))
        if source == "weighted":
            return DataLoader(Noisy(), 5, sampler=WeightedRandomSampler(np.arange(12.0), 12))
        return DataLoader(Noisy(), 5, shuffle=shuffle)

    whole = collect(build(1), 3)  # three batches in each of three epochs

    interrupted = build(1)
    seen = []
    state = interrupted.state_dict()
    for _ in range(3):
        for batch in interrupted:
            if len(seen) == stop:
                break
            seen.append([leaf.tolist() for leaf in batch])
            state = json.loads(json.dumps(interrupted.state_dict()))
        if len(seen) == stop:
            break

    resumed = build(99)
    resumed.load_state_dict(state)
    rest = []
    while resumed.epoch < 3:
        rest += collect(resumed, 1)
    assert seen + rest == whole


def test_resume_between_epochs():
    loader = DataLoader(numbers(9), 2, shuffle=True)
    first = epoch(loader)
    state = loader.state_dict()
    assert (state["epoch"], state["position"], state["seed"]) == (1, 0, None)
    second = epoch(loader)
    other = DataLoader(numbers(9), 2, shuffle=True)
    other.load_state_dict(state)
    assert epoch(other) == second != first


def test_after_the_last_batch_nothing_is_left_of_the_epoch():
    loader = DataLoader(numbers(4), 2, shuffle=True)
    for _ in loader:
        state = loader.state_dict()
    following = epoch(loader)
    other = DataLoader(numbers(4), 2, shuffle=True)
    other.load_state_dict(state)
    assert other.epoch == 0
    assert epoch(other) == []
    assert other.epoch == 1
    assert epoch(other) == following


def test_state_of_a_resumed_loader_before_it_runs():
    loader = DataLoader(numbers(9), 2, shuffle=True)
    next(iter(loader))
    state = loader.state_dict()
    other = DataLoader(numbers(9), 2, shuffle=True)
    other.load_state_dict(state)
    assert other.state_dict() == state


def test_broken_loop_starts_a_new_epoch():
    loader = DataLoader(numbers(6), 2)
    for _ in loader:
        break
    assert loader.epoch == 0
    assert epoch(loader) == [[0, 1], [2, 3], [4, 5]]
    assert loader.epoch == 2


def test_two_iterators_do_not_disturb_each_other():
    loader = DataLoader(numbers(4), 2)
    pairs = zip(loader, loader, strict=True)
    assert [(a[0].tolist(), b[0].tolist()) for a, b in pairs] == [
        ([0, 1], [0, 1]),
        ([2, 3], [2, 3]),
    ]
    assert loader.epoch == 2


class Rotating(Sampler):
    """A sampler of a user's, with a state of its own."""

    def __init__(self):
        self.start = 0

    def __iter__(self):
        order = [(self.start + i) % 6 for i in range(6)]
        self.start += 1
        return iter(order)

    def __len__(self):
        return 6

    def state_dict(self):
        return {"start": self.start}

    def load_state_dict(self, state):
        self.start = state["start"]


def test_a_users_sampler_resumes_by_its_own_state():
    loader = DataLoader(numbers(6), 2, sampler=Rotating())
    whole = [b for _ in range(3) for b in epoch(loader)]

    first = DataLoader(numbers(6), 2, sampler=Rotating())
    seen = epoch(first)
    running = iter(first)
    seen.append(next(running)[0].tolist())
    state = first.state_dict()
    second = DataLoader(numbers(6), 2, sampler=Rotating())
    second.load_state_dict(state)
    assert seen + epoch(second) + epoch(second) == whole

    between = DataLoader(numbers(6), 2, sampler=Rotating())
    epoch(between)
    state = between.state_dict()
    third = DataLoader(numbers(6), 2, sampler=Rotating())
    third.load_state_dict(state)
    assert epoch(third) == whole[3:6]


def test_state_of_another_loader_is_refused():
    state = DataLoader(numbers(10), 2).state_dict()
    with pytest.raises(StateDictError, match="samples=10, but this loader has samples=11"):
        DataLoader(numbers(11), 2).load_state_dict(state)
    with pytest.raises(StateDictError, match="batch_size=2, but this loader has batch_size=3"):
        DataLoader(numbers(10), 3).load_state_dict(state)
    with pytest.raises(StateDictError, match="must have the keys"):
        DataLoader(numbers(10), 2).load_state_dict({"epoch": 1})


def test_repr():
    text = repr(DataLoader(Subset(numbers(), [1, 2]), 2))
    assert text == "DataLoader(Subset(2 of TensorDataset(int64[10])), batch_size=2)"
