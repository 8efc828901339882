"""Scaled dot-product attention beyond the samples of its record."""

import numpy as np
import pytest

import needle as ndl
import needle.nn.functional as F


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def by_definition(q, k, v, allowed):
    """Return attention of one head, query by query, over the keys that are allowed."""
    result = np.zeros((len(q), v.shape[1]))
    for i, query in enumerate(q):
        keys = np.flatnonzero(allowed[i])
        if len(keys):
            scores = k[keys] @ query / np.sqrt(len(query))
            weights = np.exp(scores - scores.max())
            result[i] = weights / weights.sum() @ v[keys]
    return result


@pytest.mark.parametrize("kind", ["bool", "additive"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_agrees_with_the_definition_where_queries_have_no_keys(kind, is_causal):
    q, k, v = draw(5, 4), draw(6, 4, seed=1), draw(6, 3, seed=2)
    allowed = np.random.default_rng(3).random((5, 6)) < 0.5
    allowed[2] = False
    allowed[0, 0] = False  # with the causal mask, query 0 has no key either
    mask = allowed if kind == "bool" else np.where(allowed, 0.0, -np.inf)
    if is_causal:
        allowed = allowed & np.tri(5, 6, dtype=bool)
    result = F.scaled_dot_product_attention(
        *(ndl.asarray(t) for t in (q, k, v, mask)), is_causal=is_causal
    )
    np.testing.assert_allclose(result.numpy(), by_definition(q, k, v, allowed), rtol=1e-10)


@pytest.mark.peers
@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_gradients_where_a_query_has_no_keys_agree_with_pytorch(kind):
    import torch

    arrays = draw(1, 2, 3, 4), draw(1, 2, 5, 4, seed=1), draw(1, 2, 5, 2, seed=2)
    mask = np.random.default_rng(3).random((3, 5)) < 0.6
    mask[1] = False
    mask = mask if kind == "bool" else np.where(mask, 0.3, -np.inf)
    ours = [ndl.Tensor(a) for a in arrays]
    theirs = [torch.from_numpy(a).requires_grad_() for a in arrays]
    with ndl.detect_anomaly():
        result = F.scaled_dot_product_attention(*ours, attn_mask=ndl.asarray(mask))
        gradients = ndl.grad((result**3).sum(), ours)
    peer = torch.nn.functional.scaled_dot_product_attention(
        *theirs, attn_mask=torch.from_numpy(mask)
    )
    expected = torch.autograd.grad((peer**3).sum(), theirs)
    np.testing.assert_allclose(result.numpy(), peer.detach().numpy(), rtol=1e-9, atol=1e-12)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-12)


def test_grouped_heads_equal_repeated_ones():
    q, k, v = draw(2, 6, 4, 8), draw(2, 2, 5, 8, seed=1), draw(2, 2, 5, 3, seed=2)
    mask = np.random.default_rng(3).random((2, 6, 4, 5)) < 0.7
    grouped = F.scaled_dot_product_attention(
        *(ndl.asarray(t) for t in (q, k, v, mask)), enable_gqa=True
    )
    repeated = F.scaled_dot_product_attention(
        *(ndl.asarray(t) for t in (q, k.repeat(3, axis=1), v.repeat(3, axis=1), mask))
    )
    np.testing.assert_allclose(grouped.numpy(), repeated.numpy(), rtol=1e-12)


def test_causal_attention_does_not_look_ahead():
    q, k, v = (draw(7, 4, seed=i) for i in range(3))
    before = F.scaled_dot_product_attention(*map(ndl.asarray, (q, k, v)), is_causal=True).numpy()
    k[4:], v[4:] = 100.0, -100.0
    after = F.scaled_dot_product_attention(*map(ndl.asarray, (q, k, v)), is_causal=True).numpy()
    assert np.array_equal(before[:4], after[:4])
    assert not np.allclose(before[4:], after[4:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_inputs_are_computed_in_float32(dtype):
    arrays = [draw(2, 16, 8, seed=i).astype(ndl.dtypes.as_dtype(dtype)) for i in range(3)]
    exact = F.scaled_dot_product_attention(*(ndl.asarray(a.astype(np.float64)) for a in arrays))
    result = F.scaled_dot_product_attention(*map(ndl.asarray, arrays))
    assert result.dtype == arrays[0].dtype
    half_ulp = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
    np.testing.assert_allclose(
        result.numpy().astype(np.float64), exact.numpy(), rtol=half_ulp * 1.01, atol=1e-6
    )


def test_dropout_zeroes_weights_and_repeats_itself():
    q, k = ndl.asarray(draw(2, 3, 4)), ndl.asarray(draw(2, 50, 4, seed=1))
    v = ndl.asarray(np.broadcast_to(np.eye(50), (2, 50, 50)).copy())  # the result is the weights
    plain = F.scaled_dot_product_attention(q, k, v).numpy()
    first, again = (
        F.scaled_dot_product_attention(
            q, k, v, dropout_p=0.5, generator=ndl.random.Generator(1)
        ).numpy()
        for _ in range(2)
    )
    assert np.array_equal(first, again)
    kept = first != 0
    assert 0.3 < kept.mean() < 0.7
    np.testing.assert_allclose(first[kept], 2 * plain[kept], rtol=1e-12)


def test_no_keys_at_all_give_zeros():
    result = F.scaled_dot_product_attention(
        ndl.ones((2, 3, 4)), ndl.ones((2, 0, 4)), ndl.ones((2, 0, 5))
    )
    assert result.shape == (2, 3, 5)
    assert (result == 0).all()


def test_the_meta_device_gives_shapes():
    q, k = (ndl.zeros(shape, device="meta") for shape in ((2, 8, 5, 4), (2, 2, 7, 4)))
    result = F.scaled_dot_product_attention(q, k, k, dropout_p=0.1, is_causal=True, enable_gqa=True)
    assert result.shape == (2, 8, 5, 4)
