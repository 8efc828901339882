"""What cannot be compiled is an error that names the line and the way out."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import AnomalyError, ArgumentError, ArgumentTypeError, TraceError

X = ndl.asarray(np.arange(4, dtype=np.float32) + 1)


def line_of(function: Any, text: str) -> str:
    """Return ``file:line`` of the first line of ``function`` that contains ``text``."""
    lines, first = inspect.getsourcelines(function)
    place = next(i for i, line in enumerate(lines) if text in line)
    return f"{__file__}:{first + place}"


def branch(x: Any) -> Any:
    total = x.sum()
    if total > 0:  # here
        return x
    return -x


def loop(x: Any) -> Any:
    while (x * x).sum() < 100.0:  # here
        x = x * 2
    return x


def to_number(x: Any) -> Any:
    return x * float(x.max())  # here


def to_item(x: Any) -> Any:
    return x * x.max().item()  # here


def to_numpy(x: Any) -> Any:
    return np.sin((x * 2).numpy())  # here


def numpy_function(x: Any) -> Any:
    return np.asarray(x)  # here


def as_index(x: Any) -> Any:
    return [1, 2, 3][x.astype(ndl.int64).sum()]  # here


def as_extent(x: Any) -> Any:
    return x.reshape(x.astype(ndl.int64).sum())  # here


def mask(x: Any) -> Any:
    return x[x > 0]  # here


def positions(x: Any) -> Any:
    return ndl.nonzero(x)  # here


def to_list(x: Any) -> Any:
    return (x + 1).tolist()  # here


def membership(x: Any) -> Any:
    return 3.0 in x  # here


READS = [branch, loop, to_number, to_item, to_numpy, numpy_function, to_list, as_index, as_extent]


@pytest.mark.parametrize(
    "function", [*READS, mask, positions, membership], ids=lambda f: f.__name__
)
def test_values_are_asked_for(function: Any) -> None:
    with pytest.raises(TraceError) as caught:
        ndl.compile(function)(X)
    message = str(caught.value)
    assert line_of(function, "# here") in message
    assert "where" in message
    if function in READS:
        assert function.__name__ in message
        assert "while_loop" in message


def test_the_value_is_named() -> None:
    with pytest.raises(TraceError, match=r"bool\(\) at .* the result of greater at .*, bool\[\]"):
        ndl.compile(branch)(X)
    with pytest.raises(TraceError, match="this one is 'x', float32"):
        ndl.compile(numpy_function)(X)


def test_the_layer_is_named() -> None:
    class Gate(nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), Gate()))
    with pytest.raises(TraceError, match=r"model\.1\.1: bool\(\) at .*test_errors.py"):
        ndl.compile(model)(ndl.ones((2, 4)))


def test_a_shape_that_keeps_changing() -> None:
    @ndl.compile(budget=3)
    def total(scale: Any, batch: Any) -> Any:
        return (batch["x"] * scale).sum()

    for n in (1, 2, 3):
        total(X[:1], {"x": ndl.ones(n)})
    assert len(total.specializations) == 3
    with pytest.raises(TraceError) as caught:
        total(X[:1], {"x": ndl.ones(4)})
    message = str(caught.value)
    assert "the shape of the argument batch['x'] keeps changing ([1], [2], [3], [4], …)" in message
    for way in ("ndl.Dim", "budget=6", "Pad", "total.specializations"):
        assert way in message
    total(X[:1], {"x": ndl.ones(2)})  # those that are there go on


def test_a_number_that_keeps_changing() -> None:
    scaled = ndl.compile(lambda x, factor: x * factor, budget=2)
    scaled(X, 1.0)
    scaled(X, 2.0)
    with pytest.raises(TraceError, match=r"the argument factor keeps changing .* 0-d tensor"):
        scaled(X, 3.0)
    general = ndl.compile(lambda x, factor: x * factor)
    for factor in (np.float32(3), np.float32(4), ndl.asarray(5.0), np.array(6.0, np.float32)):
        assert general(X, factor)[0].item() == float(factor)
    assert len(general.specializations) == 1
    assert general(X, np.float64(2)).dtype == ndl.float32


def test_a_layer_that_keeps_changing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
    compiled = ndl.compile(model, budget=2)
    for i in range(2):
        model[1].p = 0.2 + i / 10
        compiled(X)
    model[1].p = 0.2
    compiled(X)  # as it was before: that specialisation is still there
    model[1].p = 0.5
    with pytest.raises(TraceError, match=r"from outside keeps changing \(layer 1\)"):
        compiled(X)


def test_a_leaked_tensor() -> None:
    kept: list[Any] = []

    def keep(value: Any) -> None:
        kept.append(value)

    def remember(x: Any) -> Any:
        y = x.exp()  # here
        keep(y)
        return y * 2

    compiled = ndl.compile(remember)
    assert compiled(X).shape == (4,)
    assert "traced" in repr(kept[0])
    assert kept[0].shape == (4,)
    uses = [
        lambda t: t + 1,
        lambda t: 1 - t,
        lambda t: t.sum(),
        lambda t: t.numpy(),
        lambda t: t[0],
        lambda t: bool(t.sum() > 0),
        lambda t: ndl.concat([t, t]),
        lambda t: np.sin(t),
        lambda t: t.copy_(X),
        lambda t: X.clone().copy_(t),
        lambda t: ndl.compile(lambda: t * 2)(),
    ]
    for use in uses:
        with pytest.raises(TraceError) as caught:
            use(kept[0])
        assert f"the result of exp at {line_of(remember, '# here')}" in str(caught.value)
        assert "left behind by the traced function remember" in str(caught.value)
        assert "nn.Buffer" in str(caught.value)


def test_a_tensor_kept_by_a_module() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            self.hidden = ndl.zeros(4)

        def forward(self, x: Any) -> Any:
            self.hidden = (self.hidden + x).tanh()
            return self.hidden

    with pytest.raises(TraceError, match=r"Recurrent keeps .* 'hidden' .* tanh .* nn\.Buffer"):
        ndl.compile(Recurrent())(X)


def test_values_of_state_are_read() -> None:
    temperature = ndl.asarray([2.0])

    def cool(x: Any) -> Any:
        return x / temperature.item()  # here

    with pytest.raises(TraceError) as caught:
        ndl.compile(cool)(X)
    assert line_of(cool, "# here") in str(caught.value)
    assert "would stay what they are now" in str(caught.value)


def test_values_of_what_the_function_makes_may_be_read() -> None:
    compiled = ndl.compile(lambda x: x * sum(ndl.arange(3).tolist()))
    np.testing.assert_array_equal(compiled(X).numpy(), 3 * X.numpy())


def test_outer_history() -> None:
    w = ndl.Tensor([1.0, 2.0])
    y = w * 2
    with pytest.raises(TraceError, match=r"result of multiply.*detach\(\)"):
        ndl.compile(lambda: y + 1)()
    with ndl.no_grad():
        assert ndl.compile(lambda: y + 1)().tolist() == [3.0, 5.0]


def test_backward_into_an_argument_with_a_history() -> None:
    w = ndl.Tensor([1.0, 2.0])

    @ndl.compile
    def f(x: Any) -> None:
        (x * x).sum().backward()

    with pytest.raises(TraceError, match=r"argument x .* was computed outside"):
        f(w * 2)
    f(w)
    assert w.grad is not None
    assert w.grad.tolist() == [2.0, 4.0]


def test_state_with_gradients() -> None:
    hidden = ndl.zeros(4)
    w = ndl.Tensor(1.0)

    def f(x: Any) -> Any:
        hidden.copy_(hidden + w * x)
        return hidden * 2

    with pytest.raises(TraceError, match=r"value.detach\(\)"):
        ndl.compile(f)(X)
    assert hidden.is_leaf
    assert not hidden.requires_grad
    assert hidden.tolist() == [0.0] * 4


def test_unhashable_arguments() -> None:
    with pytest.raises(ArgumentTypeError, match=r"the argument names is a set"):
        ndl.compile(lambda x, names: x)(X, {"a"})


def test_bad_options() -> None:
    with pytest.raises(ArgumentTypeError, match="needs a function"):
        ndl.compile(3)  # type: ignore[call-overload]
    with pytest.raises(ArgumentError, match="budget"):
        ndl.compile(branch, budget=0)
    with pytest.raises(ArgumentError, match="backend"):
        ndl.compile(lambda x: x, backend="abacus")(X)


def test_anomalies_are_looked_for_eagerly() -> None:
    """Whether the function is compiled already or not, and however it is called."""

    @ndl.compile(budget=1)
    def f(x: Any, scale: float = 1.0) -> Any:
        return x / 0.0 * scale

    def refused(*args: Any, **kwargs: Any) -> None:
        with ndl.detect_anomaly(), pytest.raises(TraceError, match="without compile"):
            f(*args, **kwargs)

    x = ndl.asarray([1.0, 2.0])
    refused(x)
    refused(x, scale=2.0)  # what is refused takes nothing of the budget
    assert f.specializations == []
    for _ in range(2):
        np.testing.assert_array_equal(f(x).numpy(), np.full(2, np.inf))
        refused(x)
        refused(ndl.ones(3))
        refused(x=x)
        refused(x.numpy())
    assert [s.calls for s in f.specializations] == [2]
    with pytest.raises(TraceError, match="budget"):
        f(ndl.ones(3))
    with ndl.detect_anomaly(), pytest.raises(AnomalyError, match="divide: inf appeared"):
        f.function(x)


def test_anomalies_are_not_looked_for_inside() -> None:
    def careful(x: Any) -> Any:
        with ndl.detect_anomaly():
            return x / 0.0

    @ndl.set_detect_anomaly(True)
    def decorated(x: Any) -> Any:
        return x / 0.0

    for function in (careful, decorated):
        with pytest.raises(TraceError, match="without compile"):
            ndl.compile(function)(ndl.ones(2))
        with pytest.raises(AnomalyError):
            function(ndl.ones(2))


def test_errors_of_ops_keep_their_kind() -> None:
    with pytest.raises(ndl.errors.ShapeError, match="do not broadcast"):
        ndl.compile(lambda x: x + ndl.ones(3))(X)


def test_an_exception_puts_everything_back() -> None:
    w = ndl.Tensor([1.0, 2.0])
    w.grad = grad = ndl.asarray([5.0, 5.0])
    count = ndl.zeros(())
    version = list(w._version or ())

    @ndl.compile
    def f(x: Any) -> None:
        nonlocal count
        with ndl.no_grad():
            w.copy_(w + x)
            count += 1
        (w * x).sum().backward()
        raise ValueError("after all")

    with pytest.raises(ValueError, match="after all"):
        f(ndl.ones(2))
    assert w.tolist() == [1.0, 2.0]
    assert w.grad is grad
    assert w._version is not None
    assert w._version[0] == version[0]
    assert count.item() == 0
    assert ndl.is_grad_enabled()
    assert (w * 2).tolist() == [2.0, 4.0]


def test_a_scheduler_that_is_not_last() -> None:
    w = ndl.Tensor([1.0])
    optimizer = ndl.optim.SGD([w], lr=0.1)
    scheduler = ndl.optim.StepLR(optimizer, step_size=1)

    @ndl.compile
    def step() -> None:
        optimizer.zero_grad()
        w.sum().backward()
        scheduler.step()
        optimizer.step()

    with pytest.raises(TraceError, match=r"StepLR.step\(\) at .* call it last"):
        step()
    assert scheduler.last_epoch == 0
