"""Cross-entropy and negative log-likelihood beyond the samples of their records."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

import needle as ndl


def by_definition(x, labels, *, weight=None, ignore=-100, smoothing=0.0):
    """Return the loss and the weight of each label, example by example, in float64."""
    losses, counts = [], []
    for row, label in zip(x.astype(np.float64), labels, strict=True):
        if label == ignore:
            losses.append(0.0)
            counts.append(0.0)
            continue
        log_p = row - row.max() - np.log(np.exp(row - row.max()).sum())
        w = np.ones(len(row)) if weight is None else weight
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        losses.append(-(target * w * log_p).sum())
        counts.append(w[label])
    return np.array(losses), np.array(counts)


@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([0.0, 0.2, 1.0]))
def test_agrees_with_the_definition(seed, weighted, smoothing):
    rng = np.random.default_rng(seed)
    n, classes = rng.integers(1, 6, 2)
    x = rng.normal(0, 3, (n, classes))
    labels = rng.integers(0, classes, n)
    labels[rng.random(n) < 0.2] = -100
    labels[0] = 0
    weight = rng.uniform(0.1, 2, classes) if weighted else None
    losses, counts = by_definition(x, labels, weight=weight, smoothing=smoothing)
    arguments = {"weight": weight, "label_smoothing": smoothing}
    for reduction, expected in (
        ("none", losses),
        ("sum", losses.sum()),
        ("mean", losses.sum() / counts.sum()),
    ):
        result = ndl.cross_entropy(
            ndl.asarray(x), ndl.asarray(labels), reduction=reduction, **arguments
        )
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10, atol=1e-12)


def test_labels_may_be_of_any_integer_dtype():
    x = ndl.asarray(np.eye(3, dtype=np.float32))
    expected = ndl.cross_entropy(x, ndl.asarray([2, 1, 0])).item()
    for dtype in ndl.dtypes.INTEGERS:
        assert ndl.cross_entropy(x, ndl.asarray([2, 1, 0], dtype=dtype)).item() == expected


@pytest.mark.parametrize("label", [-1, 3, 2**63 - 1, -(2**63)])
def test_a_label_that_is_no_class_is_named_with_its_place(label):
    target = np.zeros((2, 4), dtype=np.int64)
    target[1, 2] = label
    x = ndl.Tensor(np.zeros((2, 3, 4), dtype=np.float32))
    message = rf"label {label} at position \[1, 2\] is no class: with 3 classes"
    with pytest.raises(ndl.errors.OutOfRangeError, match=message):
        ndl.cross_entropy(x, ndl.asarray(target))
    with pytest.raises(ndl.errors.OutOfRangeError, match=message):
        ndl.nll_loss(x, ndl.asarray(target))


def test_labels_that_are_nan_bool_or_float_are_refused():
    x = ndl.zeros((2, 3))
    for labels in ([0.0, np.nan], [True, False], [0.0, 1.0]):
        with pytest.raises(ndl.errors.DTypeError, match="class labels must be integers"):
            ndl.cross_entropy(x, ndl.asarray(np.array(labels)))


def test_the_mean_over_an_empty_batch_is_an_error_and_the_sum_is_zero():
    x, labels = ndl.zeros((0, 3)), ndl.zeros((0,), dtype="int64")
    with pytest.raises(ndl.errors.ShapeError, match="batch is empty"):
        ndl.cross_entropy(x, labels)
    assert ndl.cross_entropy(x, labels, reduction="sum").item() == 0


def test_ignored_places_get_no_gradient_whatever_their_logits():
    x = ndl.Tensor(np.array([[1.0, 2.0], [np.nan, np.inf]]))
    labels = ndl.asarray([1, -100])
    for loss in (
        ndl.cross_entropy(x, labels),
        ndl.cross_entropy(x, labels, reduction="sum"),
    ):
        assert np.isfinite(loss.item())
        gradient = ndl.grad(loss, x).numpy()
        assert gradient[1].tolist() == [0.0, 0.0]
        assert np.isfinite(gradient).all()


def test_class_weights_are_differentiable():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    weight = np.array([0.5, 1.0, 2.0])

    def loss(w):
        return ndl.cross_entropy(ndl.asarray(x), ndl.asarray(labels), weight=w, label_smoothing=0.1)

    w = ndl.Tensor(weight)
    gradient = ndl.grad(loss(w), w).numpy()
    for i in range(3):
        step = np.zeros(3)
        step[i] = 1e-6
        up, down = loss(ndl.asarray(weight + step)), loss(ndl.asarray(weight - step))
        assert gradient[i] == pytest.approx((up.item() - down.item()) / 2e-6, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_logits_lose_nothing_in_the_sum(dtype):
    # 4,096 losses of ln 8 add up to 8,517: in 16 bits the sum would stall long before.
    x = ndl.zeros((4096, 8), dtype=dtype)
    labels = ndl.zeros((4096,), dtype="int64")
    result = ndl.cross_entropy(x, labels)
    assert result.dtype == x.dtype
    assert result.item() == pytest.approx(np.log(8), rel=2**-8)


def test_the_meta_device_gives_shape_and_dtype():
    x = ndl.zeros((4, 10, 2), device="meta")
    labels = ndl.zeros((4, 2), dtype="int64", device="meta")
    assert ndl.cross_entropy(x, labels).shape == ()
    smooth = ndl.cross_entropy(x, labels, reduction="none", label_smoothing=0.1)
    assert smooth.shape == (4, 2)
