"""The streams of samples: equal to NumPy's Philox, and a function of their names alone."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import needle as ndl
from needle.data.streams import (
    SampleStreams,
    philox4x64,
    random_bits,
    sample_generator,
    sample_scope,
    sample_streams,
)
from needle.errors import ArgumentError, ShapeError

word = st.integers(0, 2**64 - 1)


@given(st.lists(st.tuples(word, word, word, word), min_size=1, max_size=5), word, word)
def test_vector_philox_equals_numpys(counters, key0, key1):
    blocks = philox4x64(np.array(counters, np.uint64).T, (key0, key1))
    for column, counter in enumerate(counters):
        bits = np.random.Philox(
            counter=np.array(counter, np.uint64), key=np.array([key0, key1], np.uint64)
        )
        # NumPy advances the counter before the first block, all 256 bits of it.
        wide = sum(w << 64 * i for i, w in enumerate(counter)) - 1
        start = [wide % 2**256 >> 64 * i & (2**64 - 1) for i in range(4)]
        state = bits.state
        state["state"]["counter"] = np.array(start, np.uint64)
        bits.state = state
        np.testing.assert_array_equal(blocks[:, column], bits.random_raw(4))


def test_known_answer():
    # From the test vectors of Random123 (philox4x64, 10 rounds): all zeros and all ones.
    zeros = philox4x64(np.zeros((4, 1), np.uint64), (0, 0))[:, 0]
    assert [hex(w) for w in zeros.tolist()] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]
    ones = philox4x64(np.full((4, 1), 2**64 - 1, np.uint64), (2**64 - 1, 2**64 - 1))[:, 0]
    assert [hex(w) for w in ones.tolist()] == [
        "0x87b092c3013fe90b",
        "0x438c3c67be8d0224",
        "0x9cc7d7c69cd777b6",
        "0xa09caebf594f0ba0",
    ]


@pytest.mark.parametrize("batch", [1, 2, 13, 14, 100])
def test_a_sample_draws_the_same_in_any_batch(batch):
    indices = np.random.default_rng(batch).permutation(1000)[:batch]
    together = SampleStreams(5, 2, indices)
    draws = np.stack([together.uniform() for _ in range(9)])  # across block boundaries
    for place, index in enumerate(indices):
        alone = SampleStreams(5, 2, [int(index)])
        assert [float(alone.uniform()[0]) for _ in range(9)] == draws[:, place].tolist()


def test_indices_may_count_from_the_end():
    indices = list(range(-20, 20))
    together = SampleStreams(0, 0, indices).uniform()
    assert len(set(together.tolist())) == 40
    assert together.tolist() == [float(SampleStreams(0, 0, [i]).uniform()[0]) for i in indices]


def test_names_give_different_streams():
    def first(*name):
        seed, epoch, index, repeat = name
        return float(SampleStreams(seed, epoch, [index], [repeat]).uniform()[0])

    names = [(s, e, i, r) for s in (0, 1) for e in (0, 1) for i in (0, 1) for r in (0, 1)]
    assert len({first(*name) for name in names}) == len(names)


def test_uniform_is_uniform():
    draws = SampleStreams(1, 0, range(20_000)).uniform()
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    chi_squared = float(((counts - 1000) ** 2 / 1000).sum())
    assert chi_squared < 43.8  # the 0.1 % point at 19 degrees of freedom


def test_integers_cover_the_range():
    draws = SampleStreams(1, 0, range(2000)).integers(-2, 3)
    assert draws.dtype == np.int64
    assert set(draws.tolist()) == {-2, -1, 0, 1, 2}
    with pytest.raises(ArgumentError, match=r"\[3, 3\)"):
        SampleStreams(1, 0, [0]).integers(3, 3)


def test_generator_is_the_samples_own():
    def normals(index, warm_up):
        streams = SampleStreams(3, 1, [index])
        for _ in range(warm_up):
            streams.uniform()
        with sample_scope(streams):
            first = sample_generator().normal(size=3).tolist()
            return [*first, float(sample_generator().random())]

    assert normals(4, 0) == normals(4, 6)
    assert normals(4, 0) != normals(5, 0)
    with pytest.raises(ShapeError, match="3 are being transformed at once"):
        SampleStreams(0, 0, [1, 2, 3]).generator()


def test_scopes_nest_and_end():
    outer, inner = SampleStreams(0, 0, [0]), SampleStreams(0, 0, [1])
    with sample_scope(outer):
        with sample_scope(inner):
            assert sample_streams() is inner
        assert sample_streams() is outer
        with pytest.raises(ZeroDivisionError), sample_scope(inner):
            1 / 0  # noqa: B018
        assert sample_streams() is outer


def test_outside_of_a_loader_the_default_generator_decides():
    ndl.manual_seed(3)
    first = [float(sample_streams().uniform()[0]) for _ in range(3)]
    ndl.manual_seed(3)
    assert [float(sample_streams().uniform()[0]) for _ in range(3)] == first
    assert len(set(first)) == 3


def test_wrong_number_of_samples():
    with (
        sample_scope(SampleStreams(0, 0, [0, 1, 2])),
        pytest.raises(ShapeError, match="3 samples are being read, but the transform was given 5"),
    ):
        sample_streams(5)


def test_random_bits_never_change():
    # NumPy guarantees the raw stream; a change would make old runs impossible to resume.
    assert random_bits(42, 3).tolist() == [
        8185685891515899014,
        15059776042128308896,
        9389875783783897555,
    ]
