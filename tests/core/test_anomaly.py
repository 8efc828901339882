"""Anomaly detection: the op and the user's line where NaN or an infinity first appears."""

import inspect

import numpy as np
import pytest

import needle as ndl
from needle.errors import AnomalyError


def line() -> int:
    return inspect.currentframe().f_back.f_lineno


def test_forward_names_op_value_and_line():
    x = ndl.Tensor([1.0, 0.0])
    with ndl.detect_anomaly(), pytest.raises(AnomalyError) as caught:
        here = line() + 1
        x.log()
    assert "log: -inf appeared in the result" in str(caught.value)
    assert f"{__file__}:{here}" in str(caught.value)


def test_line_is_the_users_inside_of_composites_and_operators():
    x = ndl.Tensor([0.0, 0.0])
    with ndl.detect_anomaly(), pytest.raises(AnomalyError) as caught:
        here = line() + 1
        x / x
    assert f"divide: nan appeared in the result at {__file__}:{here}" in str(caught.value)
    with ndl.detect_anomaly(), pytest.raises(AnomalyError) as caught:
        here = line() + 1
        ndl.zeros((2, 0)).mean()
    assert f"{__file__}:{here}" in str(caught.value)


def test_backward_names_the_line_of_the_forward_call():
    x = ndl.Tensor([0.0])
    with ndl.detect_anomaly():
        here = line() + 1
        y = x.sqrt()
        with pytest.raises(AnomalyError) as caught:
            (y * 1).sum().backward()
    message = str(caught.value)
    assert "sqrt: inf appeared in the gradient" in message
    assert f"{__file__}:{here}" in message


def test_backward_of_a_graph_recorded_before():
    x = ndl.Tensor([0.0])
    y = x.sqrt().sum()
    with (
        ndl.detect_anomaly(),
        pytest.raises(AnomalyError, match=r"sqrt: inf .* \(not recorded"),
    ):
        y.backward()


def test_what_was_infinite_already_is_no_news():
    x = ndl.Tensor([np.inf, np.nan])
    with ndl.detect_anomaly():
        y = x * 2 + 1
        y.sum().backward()
    assert np.isnan(y.numpy()[1])


def test_off_by_default_and_switched_as_a_statement():
    ndl.Tensor([0.0]).log()
    try:
        ndl.set_detect_anomaly(True)
        with pytest.raises(AnomalyError):
            ndl.Tensor([0.0]).log()
    finally:
        ndl.set_detect_anomaly(False)
    ndl.Tensor([0.0]).log()


def test_integers_and_bfloat16_are_checked_as_they_can():
    with ndl.detect_anomaly():
        ndl.arange(3) + 1
        with pytest.raises(AnomalyError, match="inf"):
            ndl.asarray([3e38], dtype="bfloat16") * 10
        with pytest.raises(AnomalyError, match="inf"):
            ndl.asarray([6e4], dtype="float16") * 10


def test_kernels_are_made_while_anomalies_are_looked_for():
    """Lengths that no other test uses: the first call of each compiles a kernel."""
    functional = ndl.nn.functional
    with ndl.detect_anomaly():
        x = ndl.Tensor(np.linspace(-1, 1, 6 * 61, dtype=np.float32).reshape(6, 61))
        functional.softmax(x, axis=1).square().sum().backward()
        functional.cross_entropy(x, ndl.arange(6)).backward()
        ndl.nn.LayerNorm(61)(x).square().sum().backward()
        assert np.isfinite(x.grad.numpy()).all()
        with pytest.raises(AnomalyError, match="inf appeared"):
            functional.softmax(x[:, :59], axis=1) / 0.0


def test_a_scan_of_no_steps():
    with ndl.detect_anomaly():
        _, ys = ndl.scan(lambda c, x: (c + x, c / 0.0), ndl.zeros(3), ndl.zeros((0, 3)))
    assert ys.shape == (0, 3)
