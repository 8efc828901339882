"""Samples have the distribution that they claim, tested by moments, χ² and Kolmogorov-Smirnov.

Seeds are fixed, so a test passes or fails for good; the bounds are those of a test at 10⁻⁴.
"""

import math

import numpy as np
import pytest

import needle as ndl
from needle.errors import ArgumentError, DTypeError, ShapeError

N = 100_000
FLOATS = ["float16", "bfloat16", "float32", "float64"]


def gen(seed=0):
    return ndl.random.Generator(seed)


def kolmogorov(samples, cdf):
    """Return √n times the largest distance between empirical and true distribution function."""
    x = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(x)
    f = cdf(x)
    distance = max((np.arange(1, n + 1) / n - f).max(), (f - np.arange(n) / n).max())
    return math.sqrt(n) * distance


KOLMOGOROV_LIMIT = 2.23  # P(D √n > 2.23) = 10⁻⁴


def chi_square(counts, expected):
    """Return the χ² statistic as a normal score (Wilson and Hilferty)."""
    k = len(counts) - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return ((statistic / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))


normal_cdf = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))


def test_bits_are_fair_and_independent():
    bits = gen(1).random_bits(N).numpy()
    planes = (bits[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    scores = (planes.mean(0) - 0.5) * 2 * math.sqrt(N)
    assert np.abs(scores).max() < 4.9
    correlation = np.corrcoef(planes.T) - np.eye(32)
    assert np.abs(correlation).max() * math.sqrt(N) < 5.5
    assert len(np.unique(bits)) > N - 20  # birthdays: about 1.2 repeats


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform(dtype):
    x = ndl.random.uniform((N,), dtype=dtype, generator=gen(2))
    assert x.dtype == ndl.dtypes.as_dtype(dtype)
    values = x.numpy().astype(np.float64)
    assert values.min() >= 0
    assert values.max() < 1
    digits = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}[dtype]
    assert (values * 2.0**digits % 1 == 0).all()
    counts = np.bincount((values * 128).astype(int), minlength=128)
    assert abs(chi_square(counts, N / 128)) < 4
    if digits > 20:
        assert kolmogorov(values, lambda v: v) < KOLMOGOROV_LIMIT
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) * math.sqrt(N) < 4


def test_uniform_float64_uses_all_its_bits():
    x = ndl.random.uniform(1000, dtype="float64", generator=gen())
    last = (x.numpy() * 2.0**53).astype(np.int64) & 0xFFFF
    assert len(np.unique(last)) > 950


def test_uniform_bounds():
    x = ndl.random.uniform((N,), -3.0, 5.0, generator=gen()).numpy()
    assert x.dtype == np.float32
    assert x.min() >= -3
    assert x.max() <= 5
    assert abs(x.mean() - 1) < 4 * 8 / math.sqrt(12 * N)
    assert (ndl.random.uniform(5, 2.0, 2.0).numpy() == 2).all()
    low = ndl.Tensor([0.0, 10.0])
    y = ndl.random.uniform((4, 2), low, ndl.asarray([1.0, 20.0]), generator=gen())
    assert y.shape == (4, 2)
    assert (y.numpy()[:, 1] >= 10).all()
    y.sum().backward()
    u = ndl.random.uniform((4, 2), generator=gen()).numpy()
    np.testing.assert_allclose(low.grad.numpy(), (1 - u).sum(0), rtol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_normal(dtype):
    x = ndl.random.normal((N,), dtype=dtype, generator=gen(3))
    assert x.dtype == ndl.dtypes.as_dtype(dtype)
    z = x.numpy().astype(np.float64)
    assert abs(z.mean()) < 4 / math.sqrt(N)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / N)
    assert abs((z**3).mean()) < 4 * math.sqrt(15 / N)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / N)
    if dtype in ("float32", "float64"):
        assert kolmogorov(z, normal_cdf) < KOLMOGOROV_LIMIT
    half = N // 2  # the two halves come of the same pairs
    assert abs(np.corrcoef(z[:half], z[half:])[0, 1]) * math.sqrt(half) < 4
    assert abs(np.corrcoef(z[:half] ** 2, z[half:] ** 2)[0, 1]) * math.sqrt(half) < 4


def test_normal_parameters():
    x = ndl.random.normal((N,), 5.0, 2.0, generator=gen()).numpy()
    assert x.dtype == np.float32
    assert abs(x.mean() - 5) < 8 / math.sqrt(N)
    assert abs(x.std() - 2) < 8 / math.sqrt(N)
    assert (ndl.random.normal(3, 1.5, 0.0).numpy() == 1.5).all()
    mean, std = ndl.Tensor([1.0, -1.0]), ndl.Tensor([0.5, 2.0])
    y = ndl.random.normal((3, 2), mean, std, generator=gen())
    z = ndl.random.normal((3, 2), generator=gen()).numpy()
    np.testing.assert_allclose(y.numpy(), z * [0.5, 2.0] + [1.0, -1.0], rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(mean.grad.numpy(), [3, 3])
    np.testing.assert_allclose(std.grad.numpy(), z.sum(0), rtol=1e-6)


def test_normal_is_finite_at_the_ends_of_the_bits(monkeypatch):
    for word in (0, 0xFFFFFFFF):
        monkeypatch.setattr(
            ndl.random,
            "random_bits",
            lambda shape, word=word, **_: ndl.full(shape, word, dtype="uint32"),
        )
        for dtype in FLOATS:
            x = ndl.random.normal(4, dtype=dtype).numpy().astype(np.float64)
            assert np.isfinite(x).all()
            assert np.abs(x).max() < 9


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_normal_of_odd_sizes(n):
    assert ndl.random.normal((n,), generator=gen()).shape == (n,)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (0, 10, "int64"),
        (-7, 6, "int32"),
        (0, 256, "uint8"),
        (-128, 128, "int8"),
        (0, 2**32, "int64"),
        (-(2**63), 2**63, "int64"),
        (0, 2**64, "uint64"),
        (5, 5 + 3 * 2**61, "int64"),
        (0, 2**32 + 1, "uint64"),
        (2**63, 2**63 + 7, "uint64"),
    ],
)
def test_randint(low, high, dtype):
    n = 20_000
    x = ndl.random.randint(low, high, (n,), dtype=dtype, generator=gen(4))
    assert x.dtype == ndl.dtypes.as_dtype(dtype)
    values = [int(v) - low for v in x.numpy()]
    span = high - low
    assert min(values) >= 0
    assert max(values) < span
    bins = min(span, 64)
    counts = np.bincount([v * bins // span for v in values], minlength=bins)
    sizes = [-((-(i + 1) * span) // bins) - -((-i * span) // bins) for i in range(bins)]
    assert abs(chi_square(counts, n * np.array([s / span for s in sizes]))) < 4
    if span > 2**40:  # the low bits are random, too
        low_bits = np.bincount([v % 16 for v in values], minlength=16)
        assert abs(chi_square(low_bits, n / 16)) < 4


def test_randint_multiplies_exactly():
    for span in (1, 3, 2**31, 2**32 - 1, 2**32, 2**32 + 5, 2**63 + 9, 2**64 - 1, 2**64):
        limbs = -(-span.bit_length() // 32)
        rows = gen(9).random_bits((2 * limbs, 50)).numpy()
        expected = [
            sum(int(rows[i, j]) << 32 * i for i in range(2 * limbs)) * span >> 64 * limbs
            for j in range(50)
        ]
        dtype = "uint64"
        got = ndl.random.randint(0, span, (50,), dtype=dtype, generator=gen(9))
        assert got.numpy().tolist() == expected


def test_bernoulli():
    for p in (0.0, 1e-3, 0.1, 0.5, 0.9, 1.0):
        x = ndl.random.bernoulli((N,), p, generator=gen(5))
        assert x.dtype == ndl.bool
        assert abs(x.numpy().mean() - p) <= 4 * math.sqrt(p * (1 - p) / N)
    p = np.array([0.0, 0.25, 1.0])
    x = ndl.random.bernoulli((N, 3), p, dtype="float32", generator=gen(6))
    assert x.dtype == ndl.float32
    mean = x.numpy().mean(0)
    assert mean[0] == 0
    assert mean[2] == 1
    assert abs(mean[1] - 0.25) < 4 * math.sqrt(0.25 * 0.75 / N)
    same = ndl.random.bernoulli((9, 3), np.float64(0.25), generator=gen(6))
    assert same.tolist() == ndl.random.bernoulli((9, 3), 0.25, generator=gen(6)).tolist()


def test_permutation():
    counts = {}
    generator = gen(7)
    for _ in range(2400):
        order = tuple(ndl.random.permutation(4, generator).tolist())
        assert sorted(order) == [0, 1, 2, 3]
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert abs(chi_square(np.array(list(counts.values())), 100)) < 4
    assert ndl.random.permutation(0).tolist() == []
    assert ndl.random.permutation(1).tolist() == [0]
    big = ndl.random.permutation(10_000, generator).numpy()
    assert big.dtype == np.int64
    assert (np.sort(big) == np.arange(10_000)).all()
    assert abs(np.corrcoef(big, np.arange(10_000))[0, 1]) < 0.04


def test_split_streams_do_not_correlate():
    parent = gen(8)
    children = [*parent.split(4), parent, *gen(9).split(1), gen(9)]
    draws = np.stack([ndl.random.normal((N,), generator=g).numpy() for g in children])
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() * math.sqrt(N) < 4.5


FUNCTIONS = {
    "uniform": ndl.random.uniform,
    "uniform64": lambda shape, **kw: ndl.random.uniform(shape, dtype="float64", **kw),
    "normal": ndl.random.normal,
    "normal64": lambda shape, **kw: ndl.random.normal(shape, dtype="float64", **kw),
    "randint": lambda shape, **kw: ndl.random.randint(0, 9, shape, **kw),
    "bernoulli": ndl.random.bernoulli,
    "rand": ndl.rand,
    "randn": ndl.randn,
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0), (3, 5), [2, 2]])
def test_every_function_takes_every_shape(name, shape):
    function = FUNCTIONS[name]
    a = function(shape, generator=gen(1))
    assert a.shape == tuple(shape)
    assert not a.requires_grad
    assert a.tolist() == function(shape, generator=gen(1)).tolist()
    generator = gen(1)
    meta = function(shape, generator=generator, device="meta")
    assert (meta.shape, meta.dtype) == (a.shape, a.dtype)
    assert meta.device.type == "meta"
    assert generator.state.tolist() == gen(1).state.tolist()


def test_aliases():
    assert ndl.rand(2, 3, dtype="float64").shape == (2, 3)
    assert ndl.randn(4).shape == (4,)
    assert sorted(ndl.randperm(5).tolist()) == list(range(5))
    assert ndl.randint is ndl.random.randint


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda r: r.uniform(3, dtype="int32"), DTypeError, "uniform: samples are floating"),
        (lambda r: r.normal(3, dtype="bool"), DTypeError, "normal: samples are floating"),
        (lambda r: r.uniform(3, 2.0, 1.0), ArgumentError, "low ≤ high, got 2.0 and 1.0"),
        (lambda r: r.uniform(3, 0.0, math.inf), ArgumentError, "finite"),
        (lambda r: r.uniform(3, math.nan), ArgumentError, "finite"),
        (lambda r: r.normal(3, 0.0, -1.0), ArgumentError, "std must not be negative"),
        (lambda r: r.normal(3, np.zeros((2, 3))), ShapeError, r"broadcast to \[2, 3\]"),
        (lambda r: r.uniform((2,), np.zeros(3)), ShapeError, "do not broadcast"),
        (lambda r: r.bernoulli(3, 1.5), ArgumentError, "probability, got 1.5"),
        (lambda r: r.bernoulli(3, math.nan), ArgumentError, "probability"),
        (lambda r: r.bernoulli(3, np.array([0.1, -0.2, 0.3])), ArgumentError, "outside"),
        (lambda r: r.bernoulli(3, np.zeros((2, 3))), ShapeError, "does not broadcast"),
        (lambda r: r.randint(5, 5), ArgumentError, "low must be below high"),
        (lambda r: r.randint(0, 300, dtype="uint8"), ArgumentError, "uint8 holds 0 to 255"),
        (lambda r: r.randint(0, 3, dtype="float32"), DTypeError, "integers"),
        (lambda r: r.permutation(-1), ArgumentError, "negative"),
        (lambda r: r.uniform(-1), ShapeError, "negative extent"),
        (lambda r: r.uniform(2.5), TypeError, "int"),
    ],
)
def test_bad_arguments(call, error, match):
    with pytest.raises(error, match=match):
        call(ndl.random)
