"""Random expressions: values against NumPy, gradients against PyTorch and finite differences."""

import math
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import needle as ndl
from needle.testing import assert_close, check_grads

EXAMPLES = 2_000 if os.environ.get("NEEDLE_NIGHTLY") else 150
quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# Name → the same function in needle, NumPy and PyTorch; all smooth, and tame for moderate values.
UNARY = {
    "sin": (ndl.sin, np.sin, lambda t, x: t.sin(x)),
    "tanh": (ndl.tanh, np.tanh, lambda t, x: t.tanh(x)),
    "sigmoid": (ndl.sigmoid, sigmoid, lambda t, x: t.sigmoid(x)),
    "negative": (ndl.negative, np.negative, lambda t, x: -x),
    "square": (ndl.square, np.square, lambda t, x: x * x),
    "exp of tanh": (
        lambda x: ndl.exp(ndl.tanh(x)),
        lambda x: np.exp(np.tanh(x)),
        lambda t, x: t.exp(t.tanh(x)),
    ),
    "log of 1 + x²": (
        lambda x: ndl.log1p(x * x),
        lambda x: np.log1p(x * x),
        lambda t, x: t.log1p(x * x),
    ),
    "number": (lambda x: 1.5 - x * 0.5, lambda x: 1.5 - x * 0.5, lambda t, x: 1.5 - x * 0.5),
}
BINARY = {
    "add": (ndl.add, np.add, lambda t, x, y: x + y),
    "subtract": (ndl.subtract, np.subtract, lambda t, x, y: x - y),
    "multiply": (ndl.multiply, np.multiply, lambda t, x, y: x * y),
    "divide": (
        lambda x, y: x / (1 + y * y),
        lambda x, y: x / (1 + y * y),
        lambda t, x, y: x / (1 + y * y),
    ),
}
REDUCTIONS = {
    "sum": (ndl.sum, np.sum, lambda t, x, a, k: t.sum(x, a, keepdim=k)),
    "mean": (ndl.mean, np.mean, lambda t, x, a, k: t.mean(x, a, keepdim=k)),
    "var": (ndl.var, np.var, lambda t, x, a, k: t.var(x, a, correction=0, keepdim=k)),
    "logsumexp": (
        ndl.logsumexp,
        lambda x, axis, keepdims: np.log(np.exp(x).sum(axis, keepdims=keepdims)),
        lambda t, x, a, k: t.logsumexp(x, a, keepdim=k),
    ),
}


class Program:
    """Draws steps; each is a function of (library index, values so far) → a new value."""

    def __init__(self, data):
        self.data = data
        shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
        self.shapes = [data.draw(shapes), data.draw(shapes)]
        self.steps = []
        for _ in range(data.draw(st.integers(1, 6))):
            self.add_step()

    def pick(self, condition=lambda shape: True):
        places = [i for i, s in enumerate(self.shapes) if condition(s)]
        return self.data.draw(st.sampled_from(places)) if places else None

    def add_step(self):
        kind = self.data.draw(st.sampled_from(["unary", "binary", "reduce", "move", "matmul"]))
        step = getattr(self, kind)()
        if step is not None:
            shape, functions = step
            self.shapes.append(shape)
            self.steps.append(functions)

    def unary(self):
        i = self.pick()
        name = self.data.draw(st.sampled_from(sorted(UNARY)))
        ours, numpys, peers = UNARY[name]
        return self.shapes[i], (
            lambda v: ours(v[i]),
            lambda v: numpys(v[i]),
            lambda v, t: peers(t, v[i]),
        )

    def binary(self):
        i = self.pick()

        def fits(shape):
            try:
                np.broadcast_shapes(shape, self.shapes[i])
            except ValueError:
                return False
            return True

        j = self.pick(fits)
        ours, numpys, peers = BINARY[self.data.draw(st.sampled_from(sorted(BINARY)))]
        return np.broadcast_shapes(self.shapes[i], self.shapes[j]), (
            lambda v: ours(v[i], v[j]),
            lambda v: numpys(v[i], v[j]),
            lambda v, t: peers(t, v[i], v[j]),
        )

    def reduce(self):
        i = self.pick(lambda shape: shape)
        if i is None:
            return None
        shape = self.shapes[i]
        axes = self.data.draw(
            st.lists(st.integers(-len(shape), len(shape) - 1), min_size=1, unique_by=abs).filter(
                lambda axes: len({a % len(shape) for a in axes}) == len(axes)
            )
        )
        keep = self.data.draw(st.booleans())
        ours, numpys, peers = REDUCTIONS[self.data.draw(st.sampled_from(sorted(REDUCTIONS)))]
        axis = tuple(axes)
        return np.sum(np.zeros(shape), axis=axis, keepdims=keep).shape, (
            lambda v: ours(v[i], axis=axis, keepdims=keep),
            lambda v: numpys(v[i], axis=axis, keepdims=keep),
            lambda v, t: peers(t, v[i], axis, keep),
        )

    def move(self):
        i = self.pick(lambda shape: shape)
        if i is None:
            return None
        shape = self.shapes[i]
        rank = len(shape)
        name = self.data.draw(st.sampled_from(["permute", "reshape", "slice", "flip", "concat"]))
        if name == "permute":
            axes = tuple(self.data.draw(st.permutations(range(rank))))
            functions = (
                lambda v: v[i].permute_dims(axes),
                lambda v: v[i].transpose(axes),
                lambda v, t: v[i].permute(axes),
            )
            return tuple(shape[a] for a in axes), functions
        if name == "reshape":
            new = self.data.draw(st.sampled_from([(-1,), (1, *shape), (math.prod(shape), 1)]))
            function = lambda v: v[i].reshape(new)  # noqa: E731
            return np.zeros(shape).reshape(new).shape, (
                function,
                function,
                lambda v, t: v[i].reshape(new),
            )
        if name == "slice":
            key = tuple(slice(self.data.draw(st.integers(0, n - 1)), None) for n in shape)
            function = lambda v: v[i][key]  # noqa: E731
            return np.zeros(shape)[key].shape, (function, function, lambda v, t: v[i][key])
        if name == "flip":
            axis = self.data.draw(st.integers(0, rank - 1))
            return shape, (
                lambda v: ndl.flip(v[i], axis),
                lambda v: np.flip(v[i], axis),
                lambda v, t: t.flip(v[i], (axis,)),
            )
        axis = self.data.draw(st.integers(0, rank - 1))
        return np.concatenate([np.zeros(shape)] * 2, axis).shape, (
            lambda v: ndl.concat([v[i], v[i] * 2], axis),
            lambda v: np.concatenate([v[i], v[i] * 2], axis),
            lambda v, t: t.cat([v[i], v[i] * 2], axis),
        )

    def matmul(self):
        i = self.pick(lambda shape: len(shape) >= 2)
        if i is None:
            return None
        *batch, m, _ = self.shapes[i]
        return (*batch, m, m), (
            lambda v: v[i] @ v[i].mT,
            lambda v: v[i] @ v[i].swapaxes(-1, -2),
            lambda v, t: v[i] @ v[i].mT,
        )

    def inputs(self):
        rng = np.random.default_rng(self.data.draw(st.integers(0, 2**32 - 1)))
        return [np.asarray(rng.uniform(-1, 1, shape)) for shape in self.shapes[:2]]

    def run(self, library, values, *extra):
        values = list(values)
        for functions in self.steps:
            values.append(functions[library](values, *extra))
        return values

    def loss(self, values):
        """Return a scalar in which every value counts, differently."""
        return sum((v * (k + 1)).sum() for k, v in enumerate(values))


@quick
@given(data=st.data())
def test_values_are_numpys(data):
    program = Program(data)
    points = program.inputs()
    with np.errstate(all="ignore"):
        expected = program.run(1, points)
    actual = program.run(0, [ndl.Tensor(p) for p in points])
    assert [v.shape for v in actual] == [np.shape(v) for v in expected]
    assert_close(actual, expected, rtol=1e-9, atol=1e-11)
    # Without recording, and on the meta device, nothing else comes out.
    with ndl.no_grad():
        again = program.run(0, [ndl.Tensor(p) for p in points])
    for a, b in zip(actual, again, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
    meta = program.run(0, [ndl.Tensor(p).to("meta") for p in points])
    assert [(v.shape, v.dtype) for v in meta] == [(v.shape, v.dtype) for v in actual]


@pytest.mark.peers
@quick
@given(data=st.data())
def test_gradients_are_pytorchs(torch, data):
    program = Program(data)
    points = program.inputs()
    ours = [ndl.Tensor(p) for p in points]
    theirs = [torch.tensor(p, requires_grad=True) for p in points]
    loss = program.loss(program.run(0, ours))
    expected = program.loss(program.run(2, theirs, torch))
    first = ndl.grad(loss, ours, create_graph=True)
    first_peer = torch.autograd.grad(expected, theirs, create_graph=True)
    assert_close(first, first_peer, rtol=1e-8, atol=1e-10)
    second = sum((g * g).sum() for g in first)
    second_peer = sum((g * g).sum() for g in first_peer)
    if not second.requires_grad:
        return
    for a, e in zip(
        ndl.grad(second, ours, allow_unused=True),
        torch.autograd.grad(second_peer, theirs, allow_unused=True),
        strict=True,
    ):
        if a is not None and e is not None:
            assert_close(a, e, rtol=1e-7, atol=1e-9)
        else:
            given = a if e is None else e
            assert given is None or not given.detach().numpy().any()


@settings(quick, max_examples=EXAMPLES // 3)
@given(data=st.data())
def test_gradients_are_finite_differences(data):
    program = Program(data)
    check_grads(
        lambda *inputs: program.loss(program.run(0, inputs)), program.inputs(), order=2, rtol=1e-5
    )
