"""The transformer's blocks and stacks, against PyTorch's."""

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, ArgumentTypeError, ShapeError
from needle.testing import check_grads

from .peer import adopt, assert_same, both, normal, pair

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


def encoders(torch, **options):
    """Return two stacks of two layers with a norm, and their parameters."""
    stacks = []
    for library, dtype in ((nn, "float64"), (torch.nn, torch.float64)):
        layer = library.TransformerEncoderLayer(6, 2, 10, dropout=0.0, **options, dtype=dtype)
        norm = library.LayerNorm(6, dtype=dtype)
        extra = {} if library is nn else {"enable_nested_tensor": False}
        stacks.append(library.TransformerEncoder(layer, 2, norm, **extra))
    return (*stacks, adopt(torch, *stacks))


@pytest.mark.peers
@pytest.mark.parametrize("options", BLOCKS)
def test_encoders_are_pytorchs(options):
    torch = pytest.importorskip("torch")
    ours, theirs, parameters = encoders(torch, **options)
    x, y = both(torch, normal(4, 4, 6))
    padding = np.zeros((4, 4), dtype=bool)
    padding[1, 2:] = True
    causal = np.triu(np.ones((4, 4), dtype=bool), 1)
    got = ours(x, src_key_padding_mask=ndl.asarray(padding), is_causal=True)
    expected = theirs(y, mask=torch.tensor(causal), src_key_padding_mask=torch.tensor(padding))
    assert_same(got, expected, [(x, y)], parameters)


@pytest.mark.peers
@pytest.mark.parametrize("options", BLOCKS)
def test_decoders_are_pytorchs(options):
    torch = pytest.importorskip("torch")
    stacks = []
    for library, dtype in ((nn, "float64"), (torch.nn, torch.float64)):
        layer = library.TransformerDecoderLayer(6, 2, 10, dropout=0.0, **options, dtype=dtype)
        stacks.append(library.TransformerDecoder(layer, 2))
    ours, theirs = stacks
    parameters = adopt(torch, ours, theirs)
    (a, b), (c, d) = (both(torch, normal(3, 3, 6, seed=i)) for i in range(2))
    padding = np.zeros((3, 3), dtype=bool)
    padding[0, 2] = True
    mask = np.random.default_rng(1).normal(size=(3, 3))
    causal = np.triu(np.ones((3, 3), dtype=bool), 1)
    got = ours(
        a, c, None, ndl.asarray(mask), None, ndl.asarray(np.where(padding, -np.inf, 0)), True
    )
    expected = theirs(
        b,
        d,
        torch.tensor(causal),
        torch.tensor(mask),
        None,
        torch.tensor(np.where(padding, -np.inf, 0)),
    )
    assert_same(got, expected, [(a, b), (c, d)], parameters)


def test_the_layers_of_a_stack_are_copies():
    layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 3)
    names = [n for n, _ in encoder.named_parameters()]
    assert len(names) == 3 * len(list(layer.parameters()))
    assert names[0] == "layers.0.self_attn.in_proj_weight"
    with ndl.no_grad():
        encoder.layers[0].linear1.weight[...] = 0.0
    assert encoder.layers[1].linear1.weight.any()
    assert layer.linear1.weight.any()
    encoder.eval()
    assert not any(m.training for m in encoder.modules())
    assert "3 × TransformerEncoderLayer" in repr(encoder)


def test_stack_errors():
    layer = nn.TransformerEncoderLayer(4, 2, 5)
    with pytest.raises(ArgumentError, match="num_layers must be at least 1, got 0"):
        nn.TransformerEncoder(layer, 0)
    with pytest.raises(ArgumentTypeError, match="the layer must be a module, got <class"):
        nn.TransformerEncoder(nn.TransformerEncoderLayer, 2)
    with pytest.raises(ShapeError, match=r"^model\.layers\.0\.self_attn: expected last axis 4"):
        nn.TransformerEncoder(layer, 2)(ndl.ones((3, 2, 5)))


def test_gradients_of_second_order():
    block = nn.TransformerEncoderLayer(
        4, 2, 5, dropout=0.0, activation="gelu", norm_first=True, dtype="float64"
    )
    check_grads(block, [normal(3, 2, 4)], order=2)
