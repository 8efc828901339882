"""backward and grad: what accumulates, what is freed, what is refused."""

import gc
import weakref

import numpy as np
import pytest

import needle as ndl
from needle.errors import ArgumentError, DTypeError, GradientError, ShapeError
from needle.testing import assert_close


def test_gradients_accumulate_over_passes_and_paths():
    x = ndl.Tensor([1.0, 2.0])
    (x * x + 3 * x).backward(ndl.ones(2))
    assert_close(x.grad, [5.0, 7.0])
    first = x.grad
    (2 * x).sum().backward()
    assert_close(x.grad, [7.0, 9.0])
    assert x.grad is first, "accumulated in place, so that optimizers may hold on to it"
    x.grad = None
    x.sum().backward()
    assert_close(x.grad, [1.0, 1.0])


def test_missing_cotangent_is_ones_for_any_shape():
    x = ndl.Tensor(np.arange(6.0).reshape(2, 3))
    (x * x).backward()
    assert_close(x.grad, 2 * x.numpy())


def test_leaf_as_output():
    x = ndl.Tensor([1.0, 2.0])
    x.backward()
    x.backward(ndl.asarray([3.0, 4.0]))
    assert_close(x.grad, [4.0, 5.0])
    assert_close(ndl.grad(x, x), [1.0, 1.0])


def test_cotangent_is_converted_or_refused():
    x = ndl.Tensor([1.0, 2.0], dtype="float64")
    (x * 1).backward(ndl.asarray([1, 2]))
    assert_close(x.grad, np.array([1.0, 2.0]), check_dtype=True)
    (x * 1).backward([1.0, 1.0])
    assert_close(x.grad, [2.0, 3.0])
    with pytest.raises(ShapeError, match=r"gradient has shape \[3\], the tensor has \[2\]"):
        (x * 1).backward(ndl.ones(3))


def test_callers_cotangent_is_left_alone():
    x = ndl.Tensor([1.0, 2.0])
    seed = ndl.ones(2)
    (x + 0).backward(seed)
    x.backward(seed)
    (x + 0).backward(seed)
    assert_close(seed, [1.0, 1.0])
    assert_close(x.grad, [3.0, 3.0])


def test_second_pass_needs_retain_graph():
    x = ndl.Tensor([1.0, 2.0])
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    assert_close(x.grad, [4.0, 8.0])
    with pytest.raises(GradientError, match="retain_graph=True"):
        y.backward()
    with pytest.raises(GradientError, match="retain_graph=True"):
        ndl.grad(y, x)


def test_second_pass_through_a_shared_part_needs_retain_graph():
    x = ndl.Tensor([1.0, 2.0])
    shared = x * x
    a, b = shared.sum(), shared.exp().sum()
    a.backward()
    with pytest.raises(GradientError, match="multiply: the graph was freed"):
        b.backward()


def test_what_lies_behind_the_targets_may_be_freed():
    x = ndl.Tensor(2.0)
    h = x * x
    h.exp().backward()
    y = h * x
    assert_close(ndl.grad(y, h, retain_graph=True), 2.0)
    # For x only the path that is left would count, so the gradient would be wrong.
    with pytest.raises(GradientError, match="freed"):
        ndl.grad(y, [h, x])


def test_grad_is_freed_even_where_nothing_was_kept():
    """A chain of additions keeps no values; a second pass is an error all the same."""
    x = ndl.Tensor([1.0])
    y = x + 1 + 2
    y.backward()
    with pytest.raises(GradientError, match="freed"):
        y.backward()


def test_third_order():
    x = ndl.Tensor(2.0, dtype="float64")
    y = x**4 + x.sin()
    first = ndl.grad(y, x, create_graph=True)
    second = ndl.grad(first, x, create_graph=True)
    third = ndl.grad(second, x, create_graph=True)
    fourth = ndl.grad(third, x)
    assert_close(first, 4 * 8 + np.cos(2.0))
    assert_close(second, 12 * 4 - np.sin(2.0))
    assert_close(third, 24 * 2 - np.cos(2.0))
    assert_close(fourth, 24 + np.sin(2.0))
    assert not fourth.requires_grad


def test_backward_with_create_graph_gives_grads_with_history():
    x = ndl.Tensor(3.0)
    (x**3).backward(create_graph=True)
    assert x.grad.requires_grad
    slope = x.grad
    x.grad = None
    slope.backward()
    assert_close(x.grad, 18.0)


def test_gradient_penalty():
    """A loss that contains a gradient, as in training Wasserstein GANs."""
    w = ndl.Tensor([0.5, -1.0], dtype="float64")
    x = ndl.Tensor([2.0, 3.0], dtype="float64")
    slope = ndl.grad((w * x).tanh().sum(), x, create_graph=True)
    ((slope * slope).sum() - 1).backward()
    s = 1 - np.tanh(w.numpy() * x.numpy()) ** 2
    tanh = np.tanh(w.numpy() * x.numpy())
    expected = 2 * (w.numpy() * s) * (s + w.numpy() * -2 * tanh * s * x.numpy())
    assert_close(w.grad, expected)


def test_grad_of_computed_inputs_and_several_outputs():
    x = ndl.Tensor([1.0, 2.0], dtype="float64")
    h = x * x
    a, b = h.exp(), h * 3
    gh, gx = ndl.grad([a, b], [h, x], [ndl.ones(2, dtype="float64"), None])
    assert_close(gh, np.exp(x.numpy() ** 2) + 3)
    assert_close(gx, gh.numpy() * 2 * x.numpy())
    assert x.grad is None
    assert h.grad is None


def test_grad_stops_at_computed_inputs_only_for_them():
    x = ndl.Tensor(2.0)
    h = x * x
    y = h * x
    assert_close(ndl.grad(y, h, retain_graph=True), 2.0)
    assert_close(ndl.grad(y, x, retain_graph=True), 12.0)
    assert_close(ndl.grad(y, [x, h])[1], 2.0)


def test_grad_with_one_tensor_given_twice():
    x = ndl.Tensor(3.0)
    a, b = ndl.grad(x * x, [x, x])
    assert_close(a, 6.0)
    assert_close(b, 6.0)
    assert not np.shares_memory(a.numpy(), b.numpy())
    assert_close(ndl.grad([x * 2, x * 2], x), 4.0)


def test_unused_inputs():
    x, y = ndl.Tensor([1.0]), ndl.Tensor([2.0, 3.0])
    with pytest.raises(GradientError, match=r"inputs\[1\] \(shape \[2\]\).*allow_unused=True"):
        ndl.grad((x * x).sum(), [x, y])
    first, second = ndl.grad((x * x).sum(), [x, y], allow_unused=True)
    assert_close(first, [2.0])
    assert second is None


def test_grad_refuses_what_makes_no_sense():
    x, constant = ndl.Tensor([1.0]), ndl.ones(1)
    with pytest.raises(GradientError, match=r"inputs\[0\] does not require a gradient"):
        ndl.grad(x * 2, constant)
    with pytest.raises(GradientError, match="requires no gradient"):
        ndl.grad(constant * 2, x)
    with pytest.raises(ArgumentError, match="2 outputs but 1 grad_outputs"):
        ndl.grad([x * 2, x * 3], x, [ndl.ones(1)])
    with pytest.raises(GradientError, match="requires no gradient"):
        constant.backward()
    with pytest.raises(GradientError, match="requires no gradient"):
        (x > 0).backward()


def test_one_cotangent_for_a_single_output_of_zero_size_or_value_zero():
    x = ndl.Tensor([1.0])
    assert_close(ndl.grad(x * 2, x, ndl.zeros(1)), [0.0])
    empty = ndl.Tensor(np.zeros((0, 2)))
    assert ndl.grad(empty * 2, empty, ndl.zeros((0, 2), dtype="float64")).shape == (0, 2)


def test_several_results_with_unused_ones():
    x = ndl.Tensor(np.arange(6.0))
    first, _, third = ndl.split(x, 2)
    (first * 2 + third).backward()
    assert_close(x.grad, [2.0, 2.0, 0.0, 0.0, 1.0, 1.0])


def test_only_what_requires_gradients_gets_them():
    x, constant = ndl.Tensor([1.0]), ndl.ones(1)
    frozen = ndl.Tensor([1.0], requires_grad=False)
    (x * constant * frozen).backward()
    assert constant.grad is None
    assert frozen.grad is None
    assert ndl.Tensor([1, 2], dtype="int64").requires_grad is False
    with pytest.raises(DTypeError, match="only floating tensors"):
        ndl.arange(3).requires_grad_()


def test_requires_grad_can_be_switched_only_on_leaves():
    x = ndl.Tensor([1.0])
    y = x * 2
    with pytest.raises(GradientError, match="use detach"):
        y.requires_grad = False
    x.requires_grad_(False)
    assert not (x * 2).requires_grad


def test_detach_shares_values_but_not_history():
    x = ndl.Tensor([1.0, 2.0])
    y = (x * 2).detach()
    assert y.is_leaf
    assert not y.requires_grad
    (x * y).sum().backward()
    assert_close(x.grad, [2.0, 4.0])
    base = ndl.zeros(2)
    assert np.shares_memory(base.detach().numpy(), base.numpy())


def test_gradients_flow_through_dtypes():
    x = ndl.Tensor([1.5, 2.5], dtype="float16")
    y = (x.astype("float64") * x.astype("float32")).sum()
    assert y.dtype == ndl.float64
    y.backward()
    assert_close(x.grad, np.array([3.0, 5.0], dtype=np.float16), check_dtype=True)


def test_integer_branches_do_not_break_the_graph():
    x = ndl.Tensor([1.0, 3.0, 2.0])
    best = x.argmax()
    assert not best.requires_grad
    x[best].backward()
    assert_close(x.grad, [0.0, 1.0, 0.0])


# Hooks


def test_hook_on_a_leaf_sees_the_complete_gradient_once():
    x = ndl.Tensor([1.0, 2.0])
    seen = []
    x.register_hook(lambda g: seen.append(g.numpy().copy()))
    (x * x + x * 3 + x.exp() * 0).sum().backward()
    assert len(seen) == 1
    assert_close(seen[0], [5.0, 7.0])


def test_hook_on_a_computed_tensor_sees_the_complete_gradient_once_and_may_replace_it():
    x = ndl.Tensor([1.0, 2.0])
    h = x * 2
    seen = []

    def hook(g):
        seen.append(g.numpy().copy())
        return g * 10

    h.register_hook(hook)
    (h + h * h).sum().backward()
    assert len(seen) == 1
    assert_close(seen[0], [5.0, 9.0])
    assert_close(x.grad, [100.0, 180.0])


def test_hooks_run_in_order_and_can_be_removed():
    x = ndl.Tensor(1.0)
    remove = x.register_hook(lambda g: g + 1)
    x.register_hook(lambda g: g * 2)
    (x * 1).backward()
    assert_close(x.grad, 4.0)
    remove()
    x.grad = None
    (x * 1).backward()
    assert_close(x.grad, 2.0)


def test_hook_that_writes_to_its_gradient_changes_nothing_else():
    x, y = ndl.Tensor([1.0]), ndl.Tensor([1.0])

    def spoil(g):
        g *= 100

    x.register_hook(spoil)
    (x + y).backward()
    assert_close(y.grad, [1.0])


def test_hook_must_keep_the_shape_and_the_tensor_must_require_gradients():
    x = ndl.Tensor([1.0, 2.0])
    x.register_hook(lambda g: g.sum())
    with pytest.raises(ShapeError, match=r"returned a gradient of shape \[\]"):
        (x * 1).backward(ndl.ones(2))
    with pytest.raises(GradientError, match="requires a gradient"):
        ndl.ones(1).register_hook(print)


def test_hooks_apply_to_grad_as_well():
    x = ndl.Tensor(2.0)
    h = x * x
    h.register_hook(lambda g: g * 3)
    y = h * 5
    assert_close(ndl.grad(y, x, retain_graph=True), 60.0)
    assert_close(ndl.grad(y, h), 15.0)


def test_hooks_are_differentiable():
    x = ndl.Tensor(2.0)
    h = x * x
    h.register_hook(lambda g: g * x)
    slope = ndl.grad(h * 1, x, create_graph=True)  # x · 2x
    assert_close(ndl.grad(slope, x), 8.0)


def test_error_in_a_hook_leaves_the_mode_as_it_was():
    x = ndl.Tensor(1.0)

    def fail(g):
        raise ValueError("from the hook")

    h = x * 2
    h.register_hook(fail)
    with pytest.raises(ValueError, match="from the hook"):
        h.backward()
    assert ndl.is_grad_enabled()


def test_retain_grad():
    x = ndl.Tensor([1.0, 2.0])
    h = x * 2
    h.retain_grad()
    (h * h).sum().backward()
    assert_close(h.grad, [4.0, 8.0])
    assert_close(x.grad, [8.0, 16.0])


# Lifetimes


def test_graph_is_freed_as_the_backward_pass_goes():
    x = ndl.Tensor(np.ones(3))
    alive = []
    middle = x * 2
    node = weakref.ref(middle.grad_node)
    late = middle.exp()
    late_node = weakref.ref(late.grad_node)
    y = late.sum()
    x.register_hook(lambda g: alive.append(late_node()))
    middle.register_hook(lambda g: alive.append(late_node()))
    del middle, late
    y.backward()
    # When the gradient of `middle` came, the node of `late` was gone already.
    assert alive == [None, None]
    assert node() is None


def test_values_are_freed_with_the_last_tensor():
    x = ndl.Tensor(np.ones(3))
    y = (x * 2).exp()
    data = weakref.ref(y._data)
    z = y.sum()
    del y
    assert data() is not None, "exp keeps its result for the backward pass"
    del z
    assert data() is None


def test_values_are_freed_by_the_backward_pass():
    x = ndl.Tensor(np.ones(3))
    y = (x * 2).exp()
    data = weakref.ref(y._data)
    z = y.sum()
    del y
    z.backward()
    assert data() is None


def test_no_cycles_are_left_behind():
    """So memory is freed at once, not when the collector runs."""
    gc.collect()
    gc.disable()
    try:
        x = ndl.Tensor(np.ones(3))
        h = x * 2
        h.retain_grad()
        h.register_hook(lambda g: g * 2)
        y = (h.tanh() @ ndl.ones((3, 2), dtype="float64")).sum()
        nodes = [weakref.ref(t.grad_node) for t in (h, y)]
        slope = ndl.grad(y, x, create_graph=True)
        slope.sum().backward()
        del h, y, slope
        assert [n() for n in nodes] == [None, None]
    finally:
        gc.enable()


def test_add_keeps_no_values_and_multiply_only_what_it_needs():
    x, constant = ndl.Tensor(np.ones(3)), ndl.asarray(np.ones(3))
    total = x + constant
    data = weakref.ref(total._data)
    y = total + 1
    del total
    assert data() is None
    product = (x * 2) * constant
    assert product.grad_node.saved.keys() == {1}, "the constant alone"
    assert y.requires_grad


def test_gradient_does_not_keep_the_graph_alive():
    x = ndl.Tensor(np.ones(3))
    y = (x * 2).exp().sum()
    node = weakref.ref(y.grad_node)
    y.backward(retain_graph=True)
    del y
    assert node() is None
    assert x.grad.is_leaf


def test_a_rule_for_several_inputs_runs_once(monkeypatch):
    calls = []
    rules = ndl.attend.op.rules
    rule = rules["query"].function

    def counted(*arguments):
        calls.append(1)
        return rule(*arguments)

    for name in ("query", "key", "value"):
        monkeypatch.setattr(rules[name], "function", counted)
    inputs = [ndl.Tensor(np.ones((1, 2, 1, 3))) for _ in range(3)]
    out, _ = ndl.attend(*inputs)
    out.sum().backward()
    assert len(calls) == 1
    assert all(x.grad is not None for x in inputs)
