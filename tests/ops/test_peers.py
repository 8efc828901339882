"""Values and gradients against PyTorch."""

import functools

import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.testing import assert_close, cases_under_test

pytestmark = [
    pytest.mark.peers,
    # PyTorch says that it copies for even kernels with padding="same".
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]

CASES = [c for c in cases_under_test() if c.entry.peer is not None and c.sample.has_peer]
DIFFERENTIABLE = [c for c in CASES if c.entry.differentiable and c.floating_arrays()]
SPECIAL = [c for c in DIFFERENTIABLE if not c.sample.is_smooth]
SMOOTH = [c for c in DIFFERENTIABLE if c.sample.is_smooth]

PEER_IS_WRONG = {("gelu-special", "float32"): "gelu(inf) is NaN where PyTorch vectorises it"}
# The padding is −inf, too, and comes before them: it gets their gradient.
NO_CONVENTION = {"max_pool2d--inf"}


def call_peer(torch, case, convert):
    """Call PyTorch's function with the converted arguments of a case."""
    peer = case.entry.peer
    if isinstance(peer, str):
        function = functools.reduce(getattr, peer.split("."), torch)
    else:
        function = functools.partial(peer, torch)
    args, kwargs = case.arguments(convert)
    return function(*args, **kwargs)


def as_tuple(outcome):
    return tuple(outcome) if isinstance(outcome, tuple | list) else (outcome,)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value(case, torch):
    for dtype in (np.float32, np.float64):
        if (case.id, dtype.__name__) in PEER_IS_WRONG:
            continue

        def array(a, dtype=dtype):
            return a.astype(dtype if dtypes.is_float(a.dtype) else a.dtype, order="C")

        actual = as_tuple(case.call(lambda a: ndl.Tensor(array(a), requires_grad=False)))
        expected = as_tuple(call_peer(torch, case, lambda a: torch.from_numpy(array(a))))
        assert_close(actual, expected, check_dtype=True, label=dtype.__name__)


def second_order(grad, first, weights, targets):
    """Return the gradients of the first ones, weighted, by ``targets``."""
    pairs = [(g, w) for g, w in zip(first, weights, strict=True) if g is not None]
    pairs = [(g, w) for g, w in pairs if g.requires_grad]
    if not pairs:
        return [None] * len(targets)
    outputs, seeds = zip(*pairs, strict=True)
    return grad(outputs, targets, seeds, allow_unused=True)


def our_gradients(case, points, seeds, weights, order):
    """Return the gradients in random directions, of first and (if asked for) second order."""
    function, _ = case.as_function()
    inputs = [ndl.Tensor(p.copy()) for p in points]
    results = [r for r in as_tuple(function(*inputs)) if r.requires_grad]
    seeds = [ndl.Tensor(s) for s in seeds]
    first = ndl.grad(results, inputs, seeds, create_graph=True, allow_unused=True)
    if order == 1:
        return first
    return second_order(ndl.grad, first, [ndl.asarray(w) for w in weights], [*inputs, *seeds])


def peer_gradients(torch, case, points, seeds, weights, order):
    """Return what `our_gradients` does, from PyTorch."""
    inputs = [torch.from_numpy(p.copy()).requires_grad_() for p in points]
    rest = iter(inputs)

    def convert(a):
        return next(rest) if dtypes.is_float(a.dtype) else torch.from_numpy(a.copy())

    results = [r for r in as_tuple(call_peer(torch, case, convert)) if r.requires_grad]
    seeds = [torch.from_numpy(s.copy()).requires_grad_() for s in seeds]
    grad = torch.autograd.grad
    first = grad(results, inputs, seeds, create_graph=True, allow_unused=True)
    if order == 1:
        return first
    weights = [torch.from_numpy(w) for w in weights]
    return second_order(grad, first, weights, [*inputs, *seeds])


def compare_gradients(torch, case, points, order):
    rng = np.random.default_rng(0)
    function, _ = case.as_function()
    results = [r for r in as_tuple(function(*map(ndl.Tensor, points))) if r.requires_grad]
    seeds = [np.asarray(rng.standard_normal(r.shape)) for r in results]
    weights = [np.asarray(rng.standard_normal(p.shape)) for p in points]
    ours = our_gradients(case, points, seeds, weights, order)
    try:
        theirs = peer_gradients(torch, case, points, seeds, weights, order)
    except RuntimeError as error:
        pytest.skip(f"PyTorch cannot: {error}")
    for i, (a, e) in enumerate(zip(ours, theirs, strict=True)):
        # One may know that there is no dependence where the other computes zeros.
        if a is None and e is None:
            continue
        actual = 0.0 * e.numpy(force=True) if a is None else a.detach().numpy()
        expected = 0.0 * actual if e is None else e.numpy(force=True)
        assert_close(actual, expected, rtol=1e-9, atol=1e-11, label=f"gradient {i}")


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_first_order(case, torch):
    compare_gradients(torch, case, case.floating_arrays(), 1)


@pytest.mark.parametrize("case", SMOOTH, ids=str)
def test_second_order(case, torch):
    compare_gradients(torch, case, case.floating_arrays(), 2)


@pytest.mark.parametrize("case", [c for c in SPECIAL if c.id not in NO_CONVENTION], ids=str)
def test_first_order_at_special_values(case, torch):
    """At ties, zeros and infinities; not at NaN, where gradients mean nothing."""
    points = [np.where(np.isnan(a), 0.25, a) for a in case.floating_arrays()]
    compare_gradients(torch, case, points, 1)
