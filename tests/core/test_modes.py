"""no_grad, enable_grad, inference_mode, set_grad_enabled: as statements, blocks, decorators."""

import threading

import pytest

import needle as ndl
from needle.errors import GradientError
from needle.testing import assert_close


def records() -> bool:
    return (ndl.Tensor(1.0) * 2).requires_grad


def test_no_grad_and_enable_grad_nest():
    assert records()
    with ndl.no_grad():
        assert not records()
        with ndl.enable_grad():
            assert records()
        assert not records()
    assert records()


def test_modes_are_restored_after_an_error():
    for mode in (ndl.no_grad, ndl.inference_mode, lambda: ndl.set_grad_enabled(False)):
        with pytest.raises(KeyError), mode():
            raise KeyError
        assert ndl.is_grad_enabled()
        assert not ndl.is_inference_mode_enabled()


def test_as_decorators():
    @ndl.no_grad()
    def quiet(a, *, b):
        """Say."""
        return records(), a, b

    assert quiet(1, b=2) == (False, 1, 2)
    assert quiet.__name__ == "quiet"
    assert quiet.__doc__ == "Say."
    assert records()

    @ndl.inference_mode()
    def infer():
        return ndl.is_inference_mode_enabled()

    assert infer()
    assert not ndl.is_inference_mode_enabled()

    @ndl.set_grad_enabled(False)
    def switched():
        return records()

    assert records(), "a decorator changes nothing outside of its function"
    assert switched() is False
    assert records()


def test_decorated_function_calls_itself():
    @ndl.no_grad()
    def down(n):
        return [*down(n - 1), records()] if n else [records()]

    assert down(3) == [False] * 4
    assert records()


@pytest.mark.parametrize("make", [ndl.no_grad, lambda: ndl.set_grad_enabled(False)])
def test_one_mode_object_entered_several_times(make):
    mode = make()
    with mode, mode:
        assert not records()
    assert records()
    with mode:
        assert not records()
    assert records()


@pytest.mark.parametrize("make", [ndl.no_grad, lambda: ndl.set_grad_enabled(False)])
def test_decorated_generator_has_the_mode_at_each_of_its_steps_only(make):
    log = []

    @make()
    def count():
        try:
            got = yield records()
            log.append((got, records()))
            yield records()
        except KeyError:
            log.append(("thrown", records()))
            yield records()
        finally:
            log.append(("closed", records()))
        return "end"

    assert records()
    steps = count()
    assert next(steps) is False
    assert records()
    assert steps.send("sent") is False
    assert steps.throw(KeyError()) is False
    assert records()
    with pytest.raises(StopIteration, match="end"):
        next(steps)
    assert log == [("sent", False), ("thrown", False), ("closed", False)]
    early = count()
    next(early)
    early.close()
    assert log[-1] == ("closed", False)
    assert records()


def test_set_grad_enabled_as_statement_and_block():
    try:
        ndl.set_grad_enabled(False)
        assert not records()
        ndl.set_grad_enabled(True)
        assert records()
    finally:
        ndl.set_grad_enabled(True)
    with ndl.set_grad_enabled(False):
        assert not records()
        with ndl.set_grad_enabled(True):
            assert records()
        assert not records()
    assert records()


def test_new_leaves_may_want_gradients_under_no_grad():
    with ndl.no_grad():
        x = ndl.Tensor(1.0)
        assert x.requires_grad, "only recording is off: a new leaf may still want gradients"
        y = x * 2
    assert y.is_leaf
    assert not y.requires_grad
    assert (x * 2).requires_grad


def test_modes_belong_to_their_thread():
    inside, done = threading.Event(), threading.Event()
    seen = {}

    def other():
        with ndl.no_grad():
            inside.set()
            done.wait(5)
            seen["other"] = records()

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(5)
    seen["here"] = records()
    done.set()
    thread.join()
    assert seen == {"here": True, "other": False}

    with ndl.no_grad(), ndl.set_detect_anomaly(True):
        found = []
        thread = threading.Thread(target=lambda: found.append(records()))
        thread.start()
        thread.join()
    assert found == [True], "a new thread starts with the defaults"


def test_backward_in_several_threads_at_once():
    results = {}

    def work(k):
        x = ndl.Tensor([float(k)])
        for _ in range(200):
            x.grad = None
            (x * x * k).backward()
        results[k] = x.grad.item()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == {k: 2.0 * k * k for k in range(1, 5)}


def test_floating_point_warnings_stay_the_users():
    """needle computes quietly, and leaves NumPy's setting as it was, in threads, too."""
    import numpy as np

    with np.errstate(all="raise"):
        assert ndl.asarray([1.0]).divide(0).item() == float("inf")
        with pytest.raises(FloatingPointError):
            np.ones(1) / 0
    found = []
    thread = threading.Thread(target=lambda: found.append(ndl.asarray([0.0]).log().item()))
    thread.start()
    thread.join()
    assert found == [float("-inf")]


def test_inference_tensors_may_not_enter_a_backward_pass():
    w = ndl.Tensor([2.0])
    with ndl.inference_mode():
        x = ndl.ones(1) * 3
        assert not (w * 2).requires_grad
    with pytest.raises(GradientError, match=r"inference_mode.*clone\(\) it outside"):
        w * x
    (w * x.clone()).backward()
    assert_close(w.grad, [3.0])
    assert_close(w.detach() + x, [5.0])
    assert_close((w + x), [5.0])  # addition keeps no values


def test_writes_in_inference_mode():
    with ndl.inference_mode():
        x = ndl.zeros(2)
        x += 1
        x[0] = 5.0
    assert_close(x, [5.0, 1.0])
    x += 1
    assert_close(x, [6.0, 2.0])


def test_writes_to_ordinary_tensors_in_inference_mode_are_counted():
    w, x = ndl.Tensor([2.0]), ndl.ones(1)
    y = w * x
    with ndl.inference_mode():
        x += 1
    with pytest.raises(GradientError, match="overwritten"):
        y.backward()


def test_views_of_ordinary_tensors_in_inference_mode_count_their_writes():
    w, x = ndl.Tensor([2.0, 2.0]), ndl.ones(2)
    y = w * x
    with ndl.inference_mode():
        x[0:1].zero_()
    with pytest.raises(GradientError, match="overwritten"):
        y.sum().backward()
