"""Philox4x32-10: the published vectors, the stream, and the generator that keeps its state."""

import copy
import threading

import numpy as np
import pytest

import needle as ndl
from needle.ops import random as ops_random

ONES = 0xFFFFFFFF


# The known-answer tests of Random123 1.14 (kat_vectors, "philox4x32 10").
@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter, key, block):
    state = np.array([*key, *counter], dtype=np.uint32)
    bits, _ = ndl.random_bits(state, 4)
    assert bits.tolist() == list(block)


def philox_by_hand(key, counter):
    """The cipher as the paper writes it, one block at a time, on Python integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 & ONES, (p0 >> 32) ^ c[3] ^ k1, p0 & ONES]
        k0, k1 = (k0 + 0x9E3779B9) & ONES, (k1 + 0xBB67AE85) & ONES
    return c


def test_element_i_is_word_i_mod_4_of_block_i_div_4(monkeypatch):
    state = np.array([3, 5, ONES - 1, 7, 11, 13], dtype=np.uint32)
    expected = []
    for block in range(6):
        number = (ONES - 1 + (7 << 32)) + block
        expected += philox_by_hand((3, 5), (number & ONES, number >> 32, 11, 13))
    for batch in (1, 2, 5, 16384):  # how the work is cut changes nothing
        monkeypatch.setattr(ops_random, "_BATCH", batch)
        bits, after = ndl.random_bits(state, (3, 7))
        assert bits.shape == (3, 7)
        assert bits.dtype == ndl.uint32
        assert bits.reshape(-1).tolist() == expected[:21]
        assert after.tolist() == [3, 5, 4, 8, 11, 13]


def test_counter_wraps_without_touching_the_stream():
    state = np.array([1, 2, ONES, ONES, 5, 6], dtype=np.uint32)
    bits, after = ndl.random_bits(state, 8)
    assert after.tolist() == [1, 2, 1, 0, 5, 6]
    first, _ = ndl.random_bits(np.array([1, 2, 0, 0, 5, 6], dtype=np.uint32), 4)
    assert bits.tolist()[4:] == first.tolist()


def test_state_is_checked():
    with pytest.raises(ndl.errors.DTypeError, match="uint32"):
        ndl.random_bits(np.zeros(6, dtype=np.int64), 3)
    with pytest.raises(ndl.errors.ShapeError, match=r"\[4\]"):
        ndl.random_bits(np.zeros(4, dtype=np.uint32), 3)
    with pytest.raises(ndl.errors.ShapeError, match="negative extent"):
        ndl.random_bits(np.zeros(6, dtype=np.uint32), (-1,))


def test_draws_continue_where_the_last_ended():
    a, b = ndl.random.Generator(5), ndl.random.Generator(5)
    parts = [a.random_bits(n).tolist() for n in (4, 8, 12)]
    assert [w for part in parts for w in part] == b.random_bits(24).tolist()
    # A draw takes whole blocks.
    a.random_bits(1)
    assert a.state.tolist() == [5, 0, 7, 0, 0, 0]


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (5,), (2, 3, 4)])
def test_shapes(shape):
    generator = ndl.random.Generator(0)
    bits = generator.random_bits(shape)
    assert bits.shape == shape
    assert generator.state.tolist()[2] == -(-bits.size // 4)
    assert ndl.random.random_bits(shape, device="meta").shape == shape


def test_state_is_advanced_in_place():
    generator = ndl.random.Generator(0)
    state = generator.state
    generator.random_bits(3)
    assert generator.state is state
    assert state.tolist()[2] == 1
    generator.set_state(np.arange(6, dtype=np.uint32))
    assert state.tolist() == list(range(6))
    generator.manual_seed(2**64 - 1)
    assert state.tolist() == [ONES, ONES, 0, 0, 0, 0]


def test_state_round_trips():
    generator = ndl.random.Generator(123)
    generator.random_bits(10)
    saved = generator.state.clone()
    expected = generator.random_bits(10).tolist()
    other = ndl.random.Generator(0)
    other.set_state(saved)
    assert other.random_bits(10).tolist() == expected
    assert saved.tolist()[2] == 3  # the copy was not advanced


@pytest.mark.parametrize("copied", [lambda g: g.clone(), copy.deepcopy, copy.copy])
def test_clones_are_independent(copied):
    generator = ndl.random.Generator(1)
    generator.random_bits(5)
    twin = copied(generator)
    assert twin.random_bits(9).tolist() == generator.random_bits(9).tolist()
    twin.random_bits(4)
    assert twin.random_bits(9).tolist() != generator.random_bits(9).tolist()


def test_bad_seeds_and_states():
    for seed in (-1, 2**64):
        with pytest.raises(ndl.errors.ArgumentError, match="seed"):
            ndl.random.Generator(seed)
    with pytest.raises(ndl.errors.ArgumentTypeError, match="integer"):
        ndl.manual_seed(1.5)
    generator = ndl.random.Generator(0)
    with pytest.raises(ndl.errors.DTypeError, match="uint32"):
        generator.set_state(np.zeros(6))
    with pytest.raises(ndl.errors.ShapeError, match=r"\[6\]"):
        generator.set_state(np.zeros(4, dtype=np.uint32))
    with pytest.raises(ndl.errors.ArgumentError, match="negative"):
        generator.split(-1)


def test_unseeded_generators_differ():
    a, b = ndl.random.Generator(), ndl.random.Generator()
    assert a.random_bits(4).tolist() != b.random_bits(4).tolist()
    assert a.seed() != b.seed()


def test_default_generator():
    assert ndl.manual_seed(3) is ndl.random.default_generator()
    a = ndl.random.uniform(5).tolist()
    assert ndl.random.uniform(5).tolist() != a
    ndl.manual_seed(3)
    assert ndl.random.uniform(5).tolist() == a
    assert ndl.random.uniform(5, generator=ndl.Generator(3)).tolist() == a
    number = ndl.random.seed()
    a = ndl.random.uniform(5).tolist()
    assert ndl.random.uniform(5, generator=ndl.Generator(number)).tolist() == a


def test_split_gives_streams_of_their_own():
    parent = ndl.random.Generator(0)
    children = parent.split(3)
    assert parent.state.tolist()[2] == 3
    assert children[0].state.tolist()[2:4] == [0, 0]
    again = ndl.random.Generator(0).split(3)
    draws = [g.random_bits(64).tolist() for g in children]
    assert draws == [g.random_bits(64).tolist() for g in again]
    words = [w for draw in draws for w in draw]
    words += parent.random_bits(64).tolist() + parent.split(1)[0].random_bits(64).tolist()
    assert len(set(words)) == len(words)
    assert parent.split(0) == ()


def test_threads_never_draw_the_same_bits():
    generator = ndl.random.Generator(0)
    drawn = []

    def draw():
        drawn.extend(tuple(generator.random_bits(4).tolist()) for _ in range(200))

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(drawn)) == 800
    expected = ndl.random.Generator(0).random_bits((800, 4)).tolist()
    assert set(drawn) == {tuple(block) for block in expected}


def test_repr_tells_key_and_counter():
    generator = ndl.random.Generator(255)
    generator.random_bits(5)
    assert repr(generator) == "Generator(key=0xff, counter=2, stream=0x0)"


@pytest.mark.parametrize("words", [0, 1, 4, 13])
def test_reserved_words_are_those_of_the_next_draw(words):
    drawn, reserved = ndl.random.Generator(3), ndl.random.Generator(3)
    for generator in (drawn, reserved):
        generator.set_state(np.array([1, 2, 2**32 - 2, 2**32 - 1, 5, 6], np.uint32))
    expected = drawn.random_bits(words)
    state = reserved.reserve(words)
    assert np.array_equal(ndl.random_bits(state, words)[0].numpy(), expected.numpy())
    assert np.array_equal(drawn.state.numpy(), reserved.state.numpy())
