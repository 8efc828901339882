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
