"""Decoding: the cache against whole sequences, compiled against eager, and how tokens are drawn."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import needle as ndl
from needle import models, nn
from needle.errors import ArgumentError, ArgumentTypeError
from needle.models.generation import choose_tokens

VOCABULARY, CONTEXT = 13, 24


def gpt(seed=3, dropout=0.0):
    config = models.GPTConfig(VOCABULARY, CONTEXT, layers=2, heads=2, width=16, dropout=dropout)
    with nn.defaults(generator=ndl.Generator(seed)):
        model = models.GPT(config)
    # Sharper than at the start of training, where all tokens are about equally probable.
    with ndl.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p *= 12
    return model


@pytest.fixture(scope="module")
def model():
    return gpt()


PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11, 0, 1, 1]]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-4), ("float64", 1e-12)])
@pytest.mark.parametrize("pieces", [[10], [1] * 10, [4, 1, 5], [8, 2]])
def test_logits_with_and_without_cache_are_equal(pieces, dtype, tolerance):
    model = gpt().to(dtype)
    tokens = ndl.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (3, 10)))
    with ndl.no_grad():
        whole = model(tokens).numpy()
        cache = model.new_cache(3)
        done = 0
        for piece in pieces:
            part = np.zeros((3, piece + 2), np.int64)  # with padding that must not count
            part[:, :piece] = tokens.numpy()[:, done : done + piece]
            part = part if piece > 1 else part[:, :1]
            logits = model.next_logits(ndl.asarray(part), cache, piece)
            done += piece
            np.testing.assert_allclose(
                logits.numpy(), whole[:, done - 1], rtol=tolerance, atol=tolerance
            )
    assert cache.position.item() == 10


OPTIONS = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 4},
    {"temperature": 1.3, "top_p": 0.8},
    {"top_k": 6, "top_p": 0.6},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_compiled_tokens_are_the_eager_ones(model, options):
    eager, compiled = (
        model.generate(PROMPTS, 12, generator=ndl.Generator(5), compiled=c, **options)
        for c in (False, True)
    )
    assert eager == compiled
    assert [t[: len(p)] for t, p in zip(eager, PROMPTS, strict=True)] == PROMPTS
    assert [len(t) - len(p) for t, p in zip(eager, PROMPTS, strict=True)] == [12] * 3


def test_greedy_takes_the_best_of_whole_forward_passes(model):
    expected = list(PROMPTS[1])
    with ndl.no_grad():
        for _ in range(10):
            expected.append(int(model(ndl.asarray([expected])).numpy()[0, -1].argmax()))
    assert model.generate([PROMPTS[1]], 10, temperature=0) == [expected]


def test_all_positions_share_a_program():
    model = gpt()
    model.generate([[1, 2, 3]], 15, temperature=0)
    model.generate([[4, 4, 4, 4]], 20, temperature=0)
    (step,) = model.decoder._steps.values()
    assert len(step.specializations) == 2  # single tokens, and prompts of up to four


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_p": 0.9}], ids=str)
def test_a_sequence_does_not_depend_on_those_behind_it(model, options, compiled):
    runs = [
        model.generate(p, 9, generator=ndl.Generator(2), compiled=compiled, **options)
        for p in ([PROMPTS[0]], PROMPTS[:2], PROMPTS, [PROMPTS[0], [12]])
    ]
    assert all(run[0] == runs[0][0] for run in runs)
    assert runs[1][1] == runs[2][1]


def test_seeds(model):
    def run(seed):
        return model.generate(PROMPTS, 12, generator=ndl.Generator(seed))

    assert run(1) == run(1)
    assert run(1) != run(2)
    generator = ndl.Generator(1)
    first = model.generate(PROMPTS, 12, generator=generator)
    assert first == run(1)
    assert model.generate(PROMPTS, 12, generator=generator) != first


def test_narrow_choices_are_greedy(model):
    greedy = model.generate(PROMPTS, 12, temperature=0)
    assert model.generate(PROMPTS, 12, top_k=1) == greedy
    assert model.generate(PROMPTS, 12, top_p=1e-6) == greedy


def test_stop(model):
    free = model.generate(PROMPTS, 12, temperature=0)
    stop = free[0][len(PROMPTS[0]) + 3]
    stopped = model.generate(PROMPTS, 12, temperature=0, stop=stop)
    for prompt, a, b in zip(PROMPTS, free, stopped, strict=True):
        new = a[len(prompt) :]
        length = new.index(stop) + 1 if stop in new else len(new)
        assert b == prompt + new[:length]
    assert len(stopped[0]) < len(free[0])


def test_mode_state_and_copies():
    model = gpt(dropout=0.5)
    model.blocks[0].eval()
    names = set(model.state_dict())
    first = model.generate(PROMPTS, 5, temperature=0)
    assert set(model.state_dict()) == names
    assert [m.training for m in (model, *model.blocks)] == [True, False, True]
    twin = copy.deepcopy(model)
    assert twin.decoder.model is twin
    with ndl.no_grad():
        twin.tokens.weight[...] = twin.tokens.weight.flip(0)
    assert twin.generate(PROMPTS, 5, temperature=0) != first
    assert model.generate(PROMPTS, 5, temperature=0) == first


def test_new_weights_count():
    model = gpt()
    first = model.generate(PROMPTS, 6, temperature=0)
    model.load_state_dict(gpt(seed=4).state_dict())
    second = model.generate(PROMPTS, 6, temperature=0)
    assert second != first
    assert second == gpt(seed=4).generate(PROMPTS, 6, temperature=0, compiled=False)
    assert model.to("float64").generate(PROMPTS, 6, temperature=0, compiled=False) == second


def test_threads_take_turns(model):
    alone = [model.generate([p], 8, temperature=0) for p in PROMPTS]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda p: model.generate([p], 8, temperature=0), PROMPTS))
    assert together == alone


def test_the_whole_context_can_be_used(model):
    tokens = [1] * (CONTEXT - 3)
    (result,) = model.generate([tokens], 4, temperature=0)
    assert len(result) == CONTEXT + 1
    with pytest.raises(ArgumentError, match="ask for 4"):
        model.generate([tokens], 5)


def shares(tokens, size):
    return np.bincount(tokens.numpy(), minlength=size) / tokens.size


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.05, 0.3, 0.15]),
        ({"temperature": 0.5}, np.array([0.25, 0.0025, 0.09, 0.0225]) / 0.365),
        ({"top_k": 2}, [0.625, 0, 0.375, 0]),
        ({"top_p": 0.79}, [0.625, 0, 0.375, 0]),
        ({"top_p": 0.81}, np.array([0.5, 0, 0.3, 0.15]) / 0.95),
        ({"top_k": 3, "top_p": 0.5}, [1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.55}, [0.625, 0, 0.375, 0]),
    ],
)
def test_shares_of_drawn_tokens(options, expected):
    n = 4000
    logits = ndl.asarray(np.tile(np.log([0.5, 0.05, 0.3, 0.15]), (n, 1)).astype("float32"))
    draws = ndl.asarray(((np.arange(n) + 0.5) / n).astype("float32"))
    np.testing.assert_allclose(
        shares(choose_tokens(logits, draws, **options), 4), expected, atol=1e-3
    )


def test_the_last_draw_never_takes_what_is_impossible():
    logits = ndl.asarray(np.array([[0.3, -np.inf, 0.1, -np.inf]] * 2, np.float32))
    draws = ndl.asarray(np.array([np.nextafter(np.float32(1), np.float32(0)), 0], np.float32))
    assert choose_tokens(logits, draws).tolist() == [2, 0]
    assert choose_tokens(logits, draws, top_k=4).tolist() == [2, 0]


def test_bad_input(model):
    bad = [
        ([[1]], 0, {}, "count must be at least 1"),
        ([[1]], 3, {"temperature": -1.0}, "temperature"),
        ([[1]], 3, {"temperature": float("nan")}, "temperature"),
        ([[1]], 3, {"top_k": 0}, "top_k"),
        ([[1]], 3, {"top_k": VOCABULARY + 1}, "top_k"),
        ([[1]], 3, {"top_p": 0.0}, "top_p"),
        ([], 3, {}, "no prompt"),
        ([[]], 3, {}, "empty"),
        ([[VOCABULARY]], 3, {}, "0 … 12"),
        ([1, 2], 3, {}, "list of lists"),
        (np.zeros(3, np.int64), 3, {}, r"\[batch, time\]"),
    ]
    for prompts, count, options, message in bad:
        with pytest.raises(ArgumentError, match=message):
            model.generate(prompts, count, **options)
    with pytest.raises(ArgumentTypeError, match="integers"):
        model.generate([[0.5]], 3)
