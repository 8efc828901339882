"""MultiheadAttention, against PyTorch's."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
from needle import nn
from needle.errors import ArgumentError, DTypeError, ShapeError
from needle.testing import check_grads

from .peer import assert_same, both, normal, pair


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
    plain, none = ours(*(a for a, _ in inputs), **our_masks, need_weights=False)
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


@pytest.mark.peers
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_attention_over_keys_and_values_of_other_widths(batch_first, bias):
    torch = pytest.importorskip("torch")
    ours, theirs, parameters = pair(
        torch, "MultiheadAttention", 6, 2, kdim=5, vdim=3, batch_first=batch_first, bias=bias
    )
    inputs = [both(torch, normal(4, 4, n, seed=n)) for n in (6, 5, 3)]
    got = ours(*(a for a, _ in inputs))
    assert_same(got, theirs(*(b for _, b in inputs)), inputs, parameters)
    assert ours.in_proj_weight is None
    assert "in_proj_weight" not in ours.state_dict()
    with pytest.raises(ShapeError, match=r"last axis 5 \(kdim\), got 6"):
        ours(*[ndl.ones((4, 4, 6))] * 3)
    with pytest.raises(ShapeError, match=r"value of shape \[4, 4, 3\]: the key's, with vdim"):
        ours(ndl.ones((4, 4, 6)), ndl.ones((4, 4, 5)), ndl.ones((4, 4, 5)))


@pytest.mark.peers
@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    target=st.integers(1, 4),
    source=st.integers(1, 4),
    heads=st.integers(1, 3),
    width=st.integers(1, 3),
    needs_weights=st.booleans(),
    batch_first=st.booleans(),
)
def test_attention_of_any_size_is_pytorchs(
    batch, target, source, heads, width, needs_weights, batch_first
):
    torch = pytest.importorskip("torch")
    embed = heads * width
    ours, theirs, parameters = pair(
        torch, "MultiheadAttention", embed, heads, batch_first=batch_first
    )
    shapes = [(batch, n, embed) if batch_first else (n, batch, embed) for n in (target, source)]
    (a, b), (c, d) = (both(torch, normal(*s, seed=i)) for i, s in enumerate(shapes))
    got = ours(a, c, c, need_weights=needs_weights)
    expected = theirs(b, d, d, need_weights=needs_weights)
    # With one key, all that goes through the softmax has no gradient but rounding.
    assert_same(
        [t for t in got if t is not None],
        [t for t in expected if t is not None],
        [(a, b), (c, d)],
        parameters,
        atol=1e-10,
    )


def test_gradients_of_second_order():
    layer = nn.MultiheadAttention(4, 2, dtype="float64")
    mask = ndl.asarray([[False, True, False], [False, False, False], [True, False, False]])
    check_grads(lambda x: layer(x, x, x, attn_mask=mask), [normal(3, 2, 4)], order=2)


@pytest.mark.parametrize("needs_weights", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_query_that_may_attend_to_nothing_gets_the_bias(needs_weights, kind):
    """PyTorch gives NaN, which spreads to all weights in the backward pass."""
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    with ndl.no_grad():
        layer.out_proj.bias += 1
    forbidden = np.array([[True, True, True], [False, True, False], [False, False, False]])
    mask = forbidden if kind == "bool" else np.where(forbidden, -np.inf, 0.0).astype("float32")
    x = ndl.Tensor(normal(2, 3, 4).astype("float32"))
    y, weights = layer(x, x, x, attn_mask=ndl.asarray(mask), need_weights=needs_weights)
    np.testing.assert_array_equal(y[:, 0].numpy(), np.ones((2, 4), dtype="float32"))
    if needs_weights:
        np.testing.assert_allclose(weights.sum(axis=-1).numpy(), [[0, 1, 1]] * 2, rtol=1e-6)
        assert not weights.numpy()[:, forbidden].any()
    y.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    assert all(np.isfinite(p.grad.numpy()).all() for p in layer.parameters())


def test_causal_and_mask_both_hold():
    layer = nn.MultiheadAttention(4, 2, batch_first=True)
    x = ndl.asarray(normal(2, 3, 4).astype("float32"))
    mask = ndl.asarray([[False] * 3, [True, False, False], [False, True, False]])
    _, weights = layer(x, x, x, attn_mask=mask, is_causal=True)
    allowed = np.tril(~mask.numpy())
    np.testing.assert_array_equal(weights.numpy() > 0, np.broadcast_to(allowed, (2, 3, 3)))


def test_the_weights_returned_are_those_used():
    layer = nn.MultiheadAttention(4, 1, dropout=0.5, batch_first=True, dtype="float64")
    with ndl.no_grad():
        layer.in_proj_weight[...] = ndl.concat([ndl.eye(4, dtype="float64")] * 3, axis=1)
        layer.out_proj.weight[...] = ndl.eye(4, dtype="float64")
    x = ndl.asarray(normal(2, 5, 4))
    y, weights = layer(x, x, x)
    assert (weights.numpy() == 0).any()
    np.testing.assert_allclose(y.numpy(), (weights @ x).numpy(), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("needs_weights", [True, False])
def test_dtypes_stay(dtype, needs_weights):
    layer = nn.MultiheadAttention(4, 2, dtype=dtype)
    x = ndl.ones((3, 2, 4), dtype=dtype)
    y, weights = layer(x, x, x, need_weights=needs_weights)
    assert y.dtype == dtype
    assert weights is None or weights.dtype == dtype
    y.sum().backward()
    assert {p.grad.dtype.name for p in layer.parameters()} == {dtype}
