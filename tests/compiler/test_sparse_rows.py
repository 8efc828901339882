"""Gradients of tables that are computed for the rows that were read: values, bits, kernels."""

import numpy as np
import pytest

import needle as ndl
from needle import nn, optim
from needle.nn import functional as F

ROWS, WIDTH, CLASSES = 2500, 33, 4
TABLE_BYTES = ROWS * WIDTH * 4

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, lr=0.5),
    "SGD uphill": lambda p: optim.SGD(p, lr=0.5, maximize=True),
    "momentum": lambda p: optim.SGD(p, lr=0.5, momentum=0.9),
    "weight decay": lambda p: optim.SGD(p, lr=0.5, weight_decay=0.1),
    "Adam": lambda p: optim.Adam(p, lr=0.1),
}
TOKENS = {
    "few": np.random.default_rng(0).integers(0, ROWS, (7, 5)),
    "the same ones again and again": np.random.default_rng(0).integers(0, 3, (7, 5)),
    "one": np.array([[ROWS - 1]]),
}


def training(make_optimizer, tokens, norm_type=None, padding=None, dtype="float32"):
    """Return a step, its arguments but for the last, and the parameters."""
    ndl.manual_seed(0)
    embedding = nn.Embedding(ROWS, WIDTH, padding_idx=padding).to(dtype=dtype)
    head = nn.Linear(WIDTH, CLASSES).to(dtype=dtype)
    with ndl.no_grad():
        embedding.weight[5:9] = -0.0  # whose sign may not get lost
    parameters = [*embedding.parameters(), *head.parameters()]
    optimizer = make_optimizer(parameters)
    x = ndl.asarray(tokens)
    y = ndl.asarray(np.arange(tokens.size) % CLASSES)

    def step(x, y, factor):
        optimizer.zero_grad()
        scores = head(embedding(x)).reshape(-1, CLASSES)
        loss = F.cross_entropy(scores, y) * factor
        loss.backward()
        if norm_type is not None:
            optim.clip_grad_norm_(parameters, 0.01, norm_type)
        optimizer.step()
        return loss

    return step, (x, y), parameters


def trained(is_compiled, *arguments, factor=1.0, **options):
    """Return the losses of three steps, and the parameters after them."""
    step, given, parameters = training(*arguments, **options)
    chosen = ndl.compile(step) if is_compiled else step
    scale = ndl.asarray(np.asarray(factor, parameters[0].dtype))
    losses = [chosen(*given, scale).item() for _ in range(3)]
    return losses, [p.numpy().copy() for p in parameters]


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("norm_type", [None, 2.0, float("inf")])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_is_eager_training(optimizer, norm_type, tokens):
    arguments = (OPTIMIZERS[optimizer], TOKENS[tokens], norm_type)
    (eager, expected), (losses, found) = (trained(c, *arguments) for c in (False, True))
    np.testing.assert_allclose(losses, eager, rtol=1e-5)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_rows_that_were_not_read_keep_their_bits():
    step, given, (weight, *_) = training(OPTIMIZERS["SGD"], TOKENS["few"], 2.0)
    before = weight.numpy().copy()
    ndl.compile(step)(*given, ndl.asarray(1.0))
    rest = np.setdiff1d(np.arange(ROWS), TOKENS["few"])
    assert (weight.numpy()[TOKENS["few"]] != before[TOKENS["few"]]).any()
    np.testing.assert_array_equal(weight.numpy()[rest].view(np.int32), before[rest].view(np.int32))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_what_is_not_finite_spreads_as_it_does_eagerly(optimizer, factor):
    arguments = (OPTIMIZERS[optimizer], TOKENS["few"], 2.0)
    (_, expected), (_, found) = (trained(c, *arguments, factor=factor) for c in (False, True))
    assert np.isnan(expected[0]).all()  # the scale of all gradients is NaN
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))


@pytest.mark.parametrize("optimizer", ["SGD", "momentum"])
def test_threads_change_no_bit(optimizer):
    before = ndl.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            ndl.set_num_threads(threads)
            results.append(trained(True, OPTIMIZERS[optimizer], TOKENS["few"], 2.0))
    finally:
        ndl.set_num_threads(before)
    (losses, first), *others = results
    for again, other in others:
        assert again == losses
        for a, b in zip(first, other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtypes(dtype):
    arguments = (OPTIMIZERS["SGD"], TOKENS["few"], 2.0)
    (_, expected), (_, found) = (trained(c, *arguments, dtype=dtype) for c in (False, True))
    tolerance = 0.02 if dtype == "bfloat16" else 1e-9
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(
            a.astype("float64"), b.astype("float64"), rtol=tolerance, atol=tolerance
        )


def test_padding_gets_no_gradient():
    tokens = TOKENS["the same ones again and again"]
    step, given, (weight, *_) = training(OPTIMIZERS["SGD"], tokens, padding=1)
    before = weight.numpy()[1].copy()
    ndl.compile(step)(*given, ndl.asarray(1.0))
    np.testing.assert_array_equal(weight.numpy()[1], before)


def two_lookups(weight, i, j):
    return ndl.grad((weight[i] * 2).sum() + (weight[j] ** 2).sum(), weight)


def negative_indices(weight, i, j):
    return ndl.grad((ndl.take(weight, i - ROWS, axis=0) ** 3).sum(), weight)


def tied(weight, i, j):
    rows = ndl.nn.functional.embedding(i, weight)
    return ndl.grad((rows @ weight.T).sum(), weight)


def sums(weight, i, j):
    g = ndl.grad((weight[i] ** 2).sum(), weight)
    return g.sum(), (g * g).sum(0), (g + 1).sum(), g.max(), g.abs().sum(1), ndl.cos(g).sum()


def of_more_axes(weight, i, j):
    table = weight.reshape(ROWS, 3, 11)
    return ndl.grad((table[i] ** 2).sum(), weight)


@pytest.mark.parametrize(
    "program", [two_lookups, negative_indices, tied, sums, of_more_axes], ids=lambda p: p.__name__
)
def test_other_uses(program):
    rng = np.random.default_rng(1)
    weight = ndl.Tensor(rng.standard_normal((ROWS, WIDTH)))
    i, j = (ndl.asarray(rng.integers(0, ROWS, n)) for n in ((4, 30), (50,)))
    expected, found = program(weight, i, j), ndl.compile(program)(weight, i, j)
    pairs = zip(found, expected, strict=True) if program is sums else [(found, expected)]
    for a, b in pairs:
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-12, atol=1e-12)


def kernels(optimizer, norm_type=None):
    step, given, _ = training(OPTIMIZERS[optimizer], TOKENS["few"], norm_type)
    return ndl.compile(step).explain(*given, ndl.asarray(1.0)).groups


def test_a_step_of_sgd_passes_over_no_table():
    found = kernels("SGD", 2.0)
    assert all(k.bytes_moved < TABLE_BYTES for k in found)


@pytest.mark.parametrize("optimizer", ["momentum", "Adam"])
def test_the_gradient_is_never_in_memory(optimizer):
    state = {"momentum": 1, "Adam": 2}[optimizer]
    large = [k for k in kernels(optimizer) if k.bytes_moved >= TABLE_BYTES]
    assert len(large) == 1
    # Parameter and state, in and out.
    assert large[0].bytes_moved < (2 * (1 + state) + 0.5) * TABLE_BYTES


def test_small_tables_stay_dense():
    weight, i = ndl.Tensor(np.ones((ROWS, WIDTH))), ndl.zeros(ROWS, dtype="int64")
    report = ndl.compile(lambda w, i: ndl.grad(w[i].sum(), w)).explain(weight, i)
    assert any("untake_at" in k.ops and k.loops == (ROWS, WIDTH) for k in report.groups)
