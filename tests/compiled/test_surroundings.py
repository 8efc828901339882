"""What a compiled function takes from around it is looked at; what it changes there is an error."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import TraceError
from needle.graph.surroundings import Same, difference, frozen, is_plain

X = ndl.ones(2)
scale = 2.0
settings = {"factor": 3.0, "names": ("a", "b")}
losses: list[Any] = []


def scaled(x: Any) -> Any:
    return x * scale


def test_globals(monkeypatch: pytest.MonkeyPatch) -> None:
    f = ndl.compile(scaled)
    assert f(X).tolist() == [2.0, 2.0]
    monkeypatch.setitem(globals(), "scale", 5.0)
    assert f(X).tolist() == [5.0, 5.0]
    monkeypatch.setitem(globals(), "scale", 2.0)
    assert f(X).tolist() == [2.0, 2.0]
    assert len(f.specializations) == 2
    monkeypatch.setitem(globals(), "scale", ndl.asarray([1.0, 3.0]))
    assert f(X).tolist() == [1.0, 3.0]


def test_equal_numbers_need_no_new_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    f = ndl.compile(scaled)
    for number in ("2.5", "2.50", "2.5"):
        monkeypatch.setitem(globals(), "scale", float(number))
        assert f(X).tolist() == [2.5, 2.5]
    assert len(f.specializations) == 1


def test_contents_of_plain_containers() -> None:
    f = ndl.compile(lambda x: x * settings["factor"])
    assert f(X).tolist() == [3.0, 3.0]
    settings["factor"] = 4.0
    try:
        assert f(X).tolist() == [4.0, 4.0]
    finally:
        settings["factor"] = 3.0
    assert f(X).tolist() == [3.0, 3.0]
    assert len(f.specializations) == 2


def test_variables_of_the_closure() -> None:
    offset: Any = ndl.zeros(2)
    parts = [1.0]

    @ndl.compile
    def f(x: Any) -> Any:
        return x + offset + sum(parts)

    assert f(X).tolist() == [2.0, 2.0]
    offset = ndl.asarray([5.0, 6.0])
    assert f(X).tolist() == [7.0, 8.0]
    parts.append(1.0)
    assert f(X).tolist() == [8.0, 9.0]
    assert len(f.specializations) == 3


def test_attributes_of_the_object() -> None:
    class Trainer:
        def __init__(self) -> None:
            self.rate = 1.0
            self.w = ndl.ones(2)
            self.steps = 0
            self.step = ndl.compile(self._step)

        def _step(self, x: Any) -> Any:
            return self.w * x * self.rate

        @ndl.compile
        def other(self, x: Any) -> Any:
            return self.w + x * self.rate

    trainer = Trainer()
    for call in (trainer.step, trainer.other):
        trainer.rate, trainer.w = 1.0, ndl.ones(2)
        assert call(X).tolist() in ([1.0, 1.0], [2.0, 2.0])
        trainer.rate = 3.0
        assert call(X).tolist() in ([3.0, 3.0], [4.0, 4.0])
        trainer.w = ndl.full(2, 2.0)
        assert call(X).tolist() in ([6.0, 6.0], [5.0, 5.0])
    # What the function does not mention may change.
    before = len(trainer.step.specializations)
    for _ in range(3):
        trainer.steps += 1
        trainer.step(X)
    assert len(trainer.step.specializations) <= before + 1


def test_a_method_that_is_compiled_sees_the_mode_of_its_module() -> None:
    class Noise(nn.Module):
        @ndl.compile
        def forward(self, x: Any) -> Any:
            return x * 2 if self.training else x

    layer = Noise()
    assert layer(X).tolist() == [2.0, 2.0]
    assert layer.eval()(X).tolist() == [1.0, 1.0]
    assert layer.train()(X).tolist() == [2.0, 2.0]
    assert len(Noise.forward.specializations) == 2


def test_lists_are_not_appended_to() -> None:
    def step(x: Any) -> Any:
        loss = (x * x).sum()  # here
        losses.append(loss)
        return loss

    with pytest.raises(TraceError) as caught:
        ndl.compile(step)(X)
    message = str(caught.value)
    assert "step: it changes the global losses each time it runs (a list of " in message
    assert "the result of sum at " in message
    assert "test_surroundings.py" in message
    assert "return the value and change the global losses outside" in message
    losses.clear()


def test_numbers_are_not_counted() -> None:
    count = 0
    seen: dict[str, Any] = {}

    def counting(x: Any) -> Any:
        nonlocal count
        count += 1
        return x

    def remembering(x: Any) -> Any:
        seen["shape"] = len(seen) + count
        seen[str(len(seen))] = x
        return x

    with pytest.raises(TraceError, match=r"the variable count each time .* \(1 is 2 now\)"):
        ndl.compile(counting)(X)
    with pytest.raises(TraceError, match=r"the variable seen each .* \(a dict of"):
        ndl.compile(remembering)(X)


def test_tensors_are_not_rebound() -> None:
    total = ndl.zeros(2)

    def rebind(x: Any) -> None:
        nonlocal total
        total = total + x

    def update(x: Any) -> None:
        nonlocal total
        total += x

    with pytest.raises(TraceError, match=r"the variable total .*another object: the result of add"):
        ndl.compile(rebind)(X)
    total = ndl.zeros(2)
    f = ndl.compile(update)
    f(X)
    f(X)
    assert total.tolist() == [2.0, 2.0]


def test_attributes_are_not_counted() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            self.calls = 0

        def forward(self, x: Any) -> Any:
            self.calls += 1
            return x

    model = nn.Sequential(nn.Identity(), Counting())
    with pytest.raises(TraceError, match=r"it changes layer 1 each time .*its attribute 'calls'"):
        ndl.compile(model)(X)


def test_what_is_set_once_is_fine() -> None:
    class Lazy(nn.Module):
        table: Any = None

        def forward(self, x: Any) -> Any:
            if self.table is None:
                with ndl.config.untraced():
                    self.table = ndl.full(x.shape, 7.0)
            return x * self.table

    model = Lazy()
    f = ndl.compile(model)
    assert f(X).tolist() == [7.0, 7.0]
    model.table = ndl.zeros(2)
    assert f(X).tolist() == [0.0, 0.0]


def test_frozen_values() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert frozen(loop) == frozen(loop)
    thing = object()
    pairs = [
        (1, 1.0),
        (True, 1),
        ([1], (1,)),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        ([thing], [object()]),
        ("1", b"1"),
    ]
    for a, b in pairs:
        assert frozen(a) != frozen(b)
        assert frozen(a) == frozen(a)
    assert not is_plain([thing])
    assert is_plain({"a": [1, (2.0, None)]})
    assert frozen([0] * 5000) != frozen([0] * 5001)
    assert Same(thing) == Same(thing)
    assert difference(frozen([1]), frozen([1, 2])) == "a list of 1 items has 2 now"
    assert difference(frozen("a"), frozen("b")) == "'a' is 'b' now"


def test_a_weight_that_is_taken_from_a_module_which_is_not_called() -> None:
    """The module is found by its name; it, or one inside of it, may get another weight."""
    head = nn.Linear(2, 2, bias=False)
    whole = nn.Sequential(nn.ReLU(), head)
    functions = [
        ndl.compile(lambda x: x @ head.weight),
        ndl.compile(lambda x: x @ whole[1].weight),
    ]
    x = ndl.eye(2)
    for scale in (1.0, 2.0, 3.0):
        head.weight = nn.Parameter(ndl.full((2, 2), scale))
        for function in functions:
            np.testing.assert_array_equal(function(x).numpy(), np.full((2, 2), scale))
