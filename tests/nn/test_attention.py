"""MultiheadAttention and the transformer blocks, against PyTorch's."""

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, DTypeError, ShapeError

from .peer import adopt, assert_same, both, normal


def pair(torch, name, *args, **settings):
    ours = getattr(nn, name)(*args, **settings, dtype="float64")
    theirs = getattr(torch.nn, name)(*args, **settings, dtype=torch.float64)
    return ours, theirs, adopt(torch, ours, theirs)


def masks(torch, kind):
    """Return keyword arguments for both: 2 examples, 2 heads, 4 targets, 5 sources."""
    rng = np.random.default_rng(0)
    if kind == "none":
        return {}, {}
    values = {
        "bool": {"attn_mask": rng.uniform(size=(4, 5)) > 0.7},
        "float": {"attn_mask": rng.normal(size=(4, 5))},
        "heads": {"attn_mask": rng.uniform(size=(4, 4, 5)) > 0.7},
        "padding": {"key_padding_mask": np.array([[False] * 5, [False] * 3 + [True] * 2])},
        "both": {
            "attn_mask": rng.uniform(size=(4, 5)) > 0.8,
            "key_padding_mask": np.array([[False] * 5, [False] * 4 + [True]]),
        },
        "mixed": {
            "attn_mask": rng.normal(size=(4, 5)),
            "key_padding_mask": np.where(np.array([[0] * 5, [0] * 4 + [1]]), -np.inf, 0.0),
        },
    }[kind]
    return (
        {k: ndl.asarray(v) for k, v in values.items()},
        {k: torch.tensor(v) for k, v in values.items()},
    )


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["none", "bool", "float", "heads", "padding", "both", "mixed"])
@pytest.mark.parametrize("average", [True, False])
def test_attention_is_pytorchs(kind, average):
    torch = pytest.importorskip("torch")
    ours, theirs, parameters = pair(torch, "MultiheadAttention", 6, 2, batch_first=True)
    inputs = [both(torch, normal(2, n, 6, seed=i)) for i, n in enumerate((4, 5, 5))]
    our_masks, their_masks = masks(torch, kind)
    settings = {"need_weights": True, "average_attn_weights": average}
    expected = theirs(*(b for _, b in inputs), **their_masks, **settings)
    got = ours(*(a for a, _ in inputs), **our_masks, **settings)
    assert_same(got, expected, inputs, parameters)
    plain, none = ours(*(a for a, _ in inputs), **our_masks)
    assert none is None
    np.testing.assert_allclose(plain.numpy(), got[0].numpy(), rtol=1e-10, atol=1e-13)


@pytest.mark.peers
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"batch_first": True}])
def test_self_attention_is_pytorchs(settings):
    torch = pytest.importorskip("torch")
    ours, theirs, parameters = pair(torch, "MultiheadAttention", 6, 3, **settings)
    x, y = both(torch, normal(4, 2, 6))
    length = 2 if settings.get("batch_first") else 4
    causal = torch.nn.Transformer.generate_square_subsequent_mask(length, dtype=torch.float64)
    got = ours(x, x, x, is_causal=True)[0]
    expected = theirs(y, y, y, attn_mask=causal, is_causal=True, need_weights=False)[0]
    assert_same(got, expected, [(x, y)], parameters)


@pytest.mark.peers
def test_attention_without_a_batch():
    torch = pytest.importorskip("torch")
    ours, theirs, parameters = pair(torch, "MultiheadAttention", 6, 2)
    a, b = both(torch, normal(4, 6))
    c, d = both(torch, normal(5, 6))
    got = ours(a, c, c, need_weights=True, key_padding_mask=ndl.asarray([False] * 4 + [True]))
    padding = torch.tensor([False] * 4 + [True])
    assert_same(got, theirs(b, d, d, key_padding_mask=padding), [(a, b), (c, d)], parameters)


def test_attention_errors():
    layer = nn.MultiheadAttention(6, 2, batch_first=True)
    x = ndl.ones((2, 4, 6))
    with pytest.raises(ArgumentError, match="do not divide into 4 heads"):
        nn.MultiheadAttention(6, 4)
    with pytest.raises(ShapeError, match=r"last axis 6 \(embed_dim\), got 5"):
        layer(ndl.ones((2, 4, 5)), x, x)
    with pytest.raises(ShapeError, match="value of the key's shape"):
        layer(x, x, ndl.ones((2, 3, 6)))
    with pytest.raises(ShapeError, match="one batch, got 2 and 3"):
        layer(x, ndl.ones((3, 4, 6)), ndl.ones((3, 4, 6)))
    with pytest.raises(ShapeError, match=r"attn_mask as \[4, 4\]"):
        layer(x, x, x, attn_mask=ndl.zeros((3, 3)))
    with pytest.raises(ShapeError, match=r"key_padding_mask as \[2, 4\]"):
        layer(x, x, x, key_padding_mask=ndl.zeros((2, 3)))
    with pytest.raises(DTypeError, match="attn_mask: expected bools"):
        layer(x, x, x, attn_mask=ndl.zeros((4, 4), dtype="int64"))
    with pytest.raises(ShapeError, match=r"expected query and key as \[batch, length, embed_dim\]"):
        layer(ndl.ones(6), x, x)


def test_attention_dropout_only_in_training():
    layer = nn.MultiheadAttention(6, 2, dropout=0.5)
    x = ndl.asarray(normal(4, 2, 6).astype("float32"))
    assert layer(x, x, x)[0].tolist() != layer(x, x, x)[0].tolist()
    layer.eval()
    assert layer(x, x, x)[0].tolist() == layer(x, x, x)[0].tolist()


BLOCKS = [
    {"norm_first": False},
    {"norm_first": True},
    {"activation": "gelu", "batch_first": True},
    {"bias": False},
]


@pytest.mark.peers
@pytest.mark.parametrize("settings", BLOCKS)
def test_encoder_blocks_are_pytorchs(settings):
    torch = pytest.importorskip("torch")
    ours, theirs, parameters = pair(
        torch, "TransformerEncoderLayer", 6, 2, 10, dropout=0.0, **settings
    )
    x, y = both(torch, normal(4, 4, 6))
    mask = np.random.default_rng(0).uniform(size=(4, 4)) > 0.8
    assert_same(ours(x, ndl.asarray(mask)), theirs(y, torch.tensor(mask)), [(x, y)], parameters)


@pytest.mark.peers
@pytest.mark.parametrize("settings", BLOCKS)
def test_decoder_blocks_are_pytorchs(settings):
    torch = pytest.importorskip("torch")
    ours, theirs, parameters = pair(
        torch, "TransformerDecoderLayer", 6, 2, 10, dropout=0.0, **settings
    )
    a, b = both(torch, normal(3, 3, 6))
    c, d = both(torch, normal(3, 3, 6, seed=1))
    causal = torch.nn.Transformer.generate_square_subsequent_mask(3, dtype=torch.float64)
    got = ours(a, c, tgt_is_causal=True)
    expected = theirs(b, d, tgt_mask=causal, tgt_is_causal=True)
    assert_same(got, expected, [(a, b), (c, d)], parameters)


def test_blocks_name_their_layers_in_errors():
    block = nn.TransformerEncoderLayer(6, 2, 10)
    with pytest.raises(ShapeError, match=r"^model\.self_attn: expected last axis 6 \(embed_dim\)"):
        block(ndl.ones((4, 2, 5)))
    with pytest.raises(ArgumentError, match="activation"):
        nn.TransformerEncoderLayer(6, 2, activation="swish")


def test_an_encoder_is_a_sequence_of_blocks():
    with nn.defaults(device="meta"):
        encoder = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(3)))
    assert encoder(ndl.zeros((5, 2, 8), device="meta")).shape == (5, 2, 8)
