"""cond and switch: the same in eager execution and compiled, with gradients."""

import numpy as np
import pytest
from control_tools import check, check_all, gradients, normal, run_optimised

import needle as ndl
from needle.compiler import pipeline
from needle.errors import ArgumentError, DTypeError, ShapeError, TraceError
from needle.graph import trace


@pytest.mark.parametrize("shift", [-50.0, 50.0])
def test_cond_chooses_when_it_runs(shift):
    x = normal(3, 4)

    def choose(x, shift):
        return ndl.cond(x.sum() + shift > 0, ndl.sin, lambda x: x * x * x, x)

    check_all(choose, x, ndl.asarray(np.float64(shift)))


@pytest.mark.parametrize("flag", [False, True])
def test_branches_capture_tensors_from_outside(flag):
    def choose(x, w, flag):
        y = ndl.exp(x * 0.1)
        return ndl.cond(flag, lambda: (y * w).sum(axis=0), lambda: y[0] - w * w)

    check_all(choose, normal(3, 4), normal(4), ndl.asarray(flag))


@pytest.mark.parametrize("flag", [False, True])
def test_a_branch_need_not_use_all_that_the_other_uses(flag):
    def choose(x, y, flag):
        return ndl.cond(flag, lambda x, y: x * 2, lambda x, y: y * y * y, x, y)

    check_all(choose, normal(3), normal(3, seed=1), ndl.asarray(flag))


@pytest.mark.parametrize("flag", [False, True])
def test_structures_in_and_out(flag):
    def choose(x, flag):
        def yes(parts):
            a, b = parts["a"], parts["rest"][0]
            return {"sum": a + b, "pair": (a, b * 2), "n": ndl.asarray(1)}

        def no(parts):
            return {
                "sum": parts["a"] * 3,
                "pair": (parts["rest"][0], parts["a"]),
                "n": ndl.asarray(2),
            }

        return ndl.cond(flag, yes, no, {"a": x, "rest": [x * x]})

    check_all(choose, normal(3), ndl.asarray(flag))


@pytest.mark.parametrize("index", [-3, 0, 1, 2, 9])
def test_switch_clamps_its_index(index):
    def choose(x, index):
        return ndl.switch(index, [ndl.sin, lambda x: x * x, ndl.exp], x)

    x = normal(5)
    check_all(choose, x, ndl.asarray(index))
    expected = [ndl.sin, lambda x: x * x, ndl.exp][min(max(index, 0), 2)](x)
    np.testing.assert_array_equal(choose(x, index).numpy(), expected.numpy())


@pytest.mark.parametrize("a", [-1.0, 1.0])
@pytest.mark.parametrize("b", [-1.0, 1.0])
def test_nested(a, b):
    def choose(x, a, b):
        def inner(x):
            return ndl.cond(b > 0, lambda x: x * a * a, lambda x: ndl.sin(x) * b, x)

        return ndl.cond(a > 0, inner, lambda x: ndl.cond(b > 0, ndl.cos, lambda x: x, x * x), x)

    check_all(choose, normal(4), *(ndl.Tensor(np.asarray(n)) for n in (a, b)))


def test_a_python_bool_is_a_constant():
    graph = trace(lambda x: ndl.cond(True, ndl.sin, ndl.cos, x), normal(2)).graph
    assert [n.op.name for n in graph.nodes] == ["sin"]


def test_a_constant_predicate_is_decided_by_the_compiler():
    def choose(x):
        flag = ndl.asarray(2.0) > 1.0
        return ndl.cond(flag, lambda x: x + 1, lambda x: x * 3, x)

    graph = pipeline.run(trace(choose, normal(2)).graph)
    assert [n.op.name for n in graph.nodes] == ["add"]
    check_all(choose, normal(2))


def test_only_the_chosen_branch_runs_eagerly():
    def fails(x):
        raise AssertionError

    assert ndl.cond(ndl.asarray(True), ndl.sin, fails, ndl.zeros(2)).shape == (2,)


@pytest.mark.parametrize("flag", [False, True])
def test_detached_branches_have_no_gradient(flag):
    def choose(x, flag):
        return ndl.cond(flag, lambda x: x * x.detach(), lambda x: x.detach() * x.sum(), x)

    check_all(choose, normal(3), ndl.asarray(flag))


@pytest.mark.parametrize("flag", [False, True])
def test_functions_with_gradients_of_their_own(flag):
    class Double(ndl.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            return g * 7

    def choose(x, flag):
        return ndl.cond(flag, Double.apply, ndl.sin, x)

    x = normal(3)
    check(gradients(choose), x, ndl.asarray(flag))
    if flag:
        (g,) = gradients(choose)(x, ndl.asarray(flag))
        np.testing.assert_allclose(g.numpy(), 7 * np.cos(np.arange(3.0)))


@pytest.mark.parametrize("flag", [False, True])
def test_gradients_inside_of_a_branch(flag):
    def choose(x, flag):
        def slope(x):
            return ndl.grad((x * x * x).sum(), x, create_graph=True)

        return ndl.cond(flag, slope, ndl.cos, x)

    check_all(choose, normal(3), ndl.asarray(flag))


@pytest.mark.parametrize("flag", [False, True])
def test_writes_to_state(flag):
    state = ndl.zeros(3)
    other = ndl.ones(2)

    def update(x, flag):
        def yes(x):
            state.copy_(state + x)
            return x * 2

        def no(x):
            other.copy_(other * 3)
            return x

        return ndl.cond(flag, yes, no, x)

    x, chosen = ndl.asarray([1.0, 2.0, 3.0]), ndl.asarray(flag)
    compiled = ndl.compile(update)
    result = [compiled(x, chosen).numpy() for _ in range(2)][-1]
    got = state.numpy().copy(), other.numpy().copy()
    state.copy_(ndl.zeros(3))
    other.copy_(ndl.ones(2))
    expected = [update(x, chosen).numpy() for _ in range(2)][-1]
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(got[0], state.numpy())
    np.testing.assert_array_equal(got[1], other.numpy())
    assert got[1].tolist() == ([1.0, 1.0] if flag else [9.0, 9.0])


def test_writes_are_seen_after_the_branch():
    def program(x, flag):
        y = x * 1

        def yes():
            y.copy_(y + 1)
            return y * 2

        z = ndl.cond(flag, yes, lambda: y * 1)
        return y + z

    for flag in (False, True):
        check(program, normal(3, grad=False), ndl.asarray(flag))


# Errors


def traced(function, *args):
    return trace(function, *args)


@pytest.mark.parametrize(
    ("yes", "no", "match"),
    [
        (lambda x: x, lambda x: (x, x), r"in the same structure: \(\*, \*\), not \*"),
        (lambda x: x, lambda x: x[:2], r"result is float64\[2\] in one and float64\[3\]"),
        (lambda x: [x], lambda x: [x.astype("float32")], r"result\[0\] is float32\[3\]"),
        (lambda x: {"a": x}, lambda x: {"b": x}, "'b'"),
        (lambda x: (x, None), lambda x: (x, "no"), r"result\[1\] is 'no' in one and None"),
    ],
)
def test_branches_of_different_results(yes, no, match):
    with pytest.raises(ShapeError, match=match):
        traced(lambda x: ndl.cond(x.sum() > 0, yes, no, x), normal(3))


def test_predicates_are_scalars():
    for call in (lambda f, x: f(x), traced):
        with pytest.raises(ShapeError, match=r"0-d, got shape \[3\].*any\(\).*where"):
            call(lambda x: ndl.cond(x > 0, ndl.sin, ndl.cos, x), normal(3))


def test_numbers_are_predicates_too():
    for value in (0, 3):
        check(lambda n, x: ndl.cond(n, ndl.sin, ndl.cos, x), ndl.asarray(value), normal(3))


def test_the_index_of_a_switch():
    with pytest.raises(DTypeError, match="integer, got float64"):
        ndl.switch(normal(), [ndl.sin], normal(3))
    with pytest.raises(ArgumentError, match="at least one branch"):
        ndl.switch(0, [])


def test_a_tensor_left_behind_in_a_list():
    kept = []

    def program(x):
        def yes(x):
            kept.append(x * 2)
            return x

        ndl.cond(x.sum() > 0, yes, lambda x: x, x)
        return kept[0] + 1

    with pytest.raises(TraceError, match=r"multiply.*left behind by the traced function yes"):
        traced(program, normal(3))


def test_backward_inside_of_a_branch():
    w = ndl.Tensor([1.0, 2.0])

    def program(x):
        def yes(x):
            (w * x).sum().backward()
            return x

        return ndl.cond(x.sum() > 0, yes, lambda x: x, x)

    with pytest.raises(TraceError, match=r"yes sets the grad of a tensor.*call ndl\.grad"):
        traced(program, ndl.ones(2))
    assert w.grad is None


def test_state_overwritten_with_history():
    state = ndl.zeros(2)

    def program(x):
        def yes(x):
            state.copy_(x * 2)
            return x

        return ndl.cond(x.sum() > 0, yes, lambda x: x, x)

    with pytest.raises(TraceError, match=r"gradients flow; pass it in.*detach"):
        traced(program, ndl.Tensor([1.0, 2.0]))
    assert not state.requires_grad


def test_an_overwritten_tensor_seen_twice():
    def program(x):
        y = x * 1
        row = y[0]

        def yes():
            y.copy_(y * 0)
            return row * 2

        return ndl.cond(x.sum() > 0, yes, lambda: row * 1)

    with pytest.raises(TraceError, match="shares its storage"):
        traced(program, normal(3, 4, grad=False))


def test_only_what_is_used_is_passed_in():
    def program(x, y, flag):
        a, _ = ndl.cond(flag, lambda: (x * 2, y.sum()), lambda: (x, y.max()))
        return a

    graph = pipeline.run(trace(program, normal(3), normal(4), ndl.asarray(True)).graph)
    (node,) = [n for n in graph.nodes if n.op.name == "switch"]
    assert len(node.inputs) == 2
    assert len(node.results) == 1
    run_optimised(program, normal(3), normal(4), ndl.asarray(True))
