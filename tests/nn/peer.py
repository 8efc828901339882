"""What comparisons with PyTorch's modules share."""

import numpy as np

import needle as ndl
from needle import nn


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def both(torch, x):
    """Return ``x`` as a tensor of needle and one of PyTorch, which both require gradients."""
    return ndl.Tensor(x), torch.tensor(x, requires_grad=True)


def adopt(torch, ours, theirs):
    """Copy the parameters of our module, made random, into PyTorch's: [in, out] is [out, in] there.

    Returns:
        Pairs of parameters, ours and PyTorch's, and whether the latter is transposed.
    """
    peers = dict(theirs.named_parameters())
    assert [n for n, _ in ours.named_parameters() if n not in peers] == []
    pairs = []
    with torch.no_grad(), ndl.no_grad():
        for i, (name, p) in enumerate(ours.named_parameters()):
            is_linear = p.ndim == 2 and not type(ours).__name__.endswith(("Norm", "Embedding"))
            p += ndl.asarray(normal(*p.shape, seed=100 + i) * 0.3)
            value = p.numpy().T if is_linear else p.numpy()
            assert tuple(peers[name].shape) == value.shape, name
            peers[name].copy_(torch.tensor(np.ascontiguousarray(value)))
            pairs.append((p, peers[name], is_linear))
    assert len(pairs) == len(peers)
    return pairs


def assert_same(ours, theirs, inputs, parameters=(), rtol=1e-9, atol=1e-12):
    """Compare values, and the gradients of a weighted sum by inputs and parameters."""
    ours = [ours] if isinstance(ours, ndl.Tensor) else list(ours)
    theirs = [theirs] if not isinstance(theirs, (list, tuple)) else list(theirs)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=rtol, atol=atol)
        weights = normal(*a.shape, seed=9 + i)
        is_last = i == len(ours) - 1
        (a * ndl.asarray(weights)).sum().backward(retain_graph=not is_last)
        (b * b.new_tensor(weights)).sum().backward(retain_graph=not is_last)
    for a, b in inputs:
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=rtol, atol=atol)
    for a, b, is_transposed in parameters:
        grad = b.grad.numpy().T if is_transposed else b.grad.numpy()
        np.testing.assert_allclose(a.grad.numpy(), grad, rtol=rtol, atol=atol)


def pair(torch, name, *args, **settings):
    """Return our module and PyTorch's of a name, in float64, and their parameters."""
    ours = getattr(nn, name)(*args, **settings, dtype="float64")
    theirs = getattr(torch.nn, name)(*args, **settings, dtype=torch.float64)
    return ours, theirs, adopt(torch, ours, theirs)
