"""The pipeline: graphs come out smaller, and compute the same."""

import numpy as np
from compiler_tools import assert_same_bits, graph_of, interpret, ops_of

import needle as ndl
from needle.compiler import pipeline
from needle.compiler.passes.canonicalise import canonicalise
from needle.compiler.passes.fold import fold_constants
from needle.compiler.passes.share import frozen, share
from needle.ops.engine import apply

RNG = np.random.default_rng(0)
X = RNG.standard_normal((8, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 8)


def test_loss_and_its_gradient_share_their_statistics():
    """But not the exponentials: to keep them would take a matrix as large as the logits."""

    def both(x, labels):
        loss = ndl.label_cross_entropy(x, labels)
        return loss, ndl.label_cross_entropy_slope(ndl.ones(()), x, labels)

    graph = graph_of(both, X, LABELS)
    result = pipeline.run(graph)
    counts = ops_of(result)
    assert counts["max"] == counts["log"] == counts["expect_range"] == 1
    assert counts["exp"] == 2
    assert counts["equal"] == 2  # labels with ignore_index, and with the classes
    for a, e in zip(interpret(result, X, LABELS), interpret(graph, X, LABELS), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-7)


def test_observer_sees_each_pass_and_the_given_graph_stays():
    graph = graph_of(lambda x: ndl.softmax(x) + 0, X)
    before = list(graph.nodes)
    seen = []
    result = pipeline.run(graph, lambda p, g: seen.append((p.name, len(g.nodes))))
    assert [name for name, _ in seen] == [p.name for p in pipeline.PASSES]
    assert seen[-1][1] == len(result.nodes)
    assert graph.nodes == before
    assert ops_of(graph)["softmax"] == 1


def test_inputs_that_nothing_reads_stay_inputs():
    graph = graph_of(lambda x, y: x * 2, X, X)
    graph.donations = {0: 1}
    result = pipeline.run(graph)
    assert len(result.inputs) == 2
    assert result.donations == {0: 1}


def test_constants_are_folded_up_to_a_bound():
    def function(x):
        small = ndl.exp(ndl.asarray(np.arange(4, dtype=np.float32))) + 1
        moved = ndl.reshape(ndl.asarray(np.arange(100_000)), (1000, 100))
        return x + small, moved, ndl.one_hot(ndl.asarray(np.arange(1000) % 100), 100)

    x = np.zeros(4, np.float32)
    graph = graph_of(function, x)
    result = fold_constants(graph)
    assert set(ops_of(result)) == {"add", "one_hot"}
    for a, e in zip(interpret(result, x), interpret(graph, x), strict=True):
        assert_same_bits(a, e)


def test_constants_are_folded_through_views():
    def causal(x):
        n = x.shape[0]
        places = ndl.cumulative_sum(ndl.broadcast_to(ndl.asarray(1), (n,)))
        return ndl.where(ndl.expand_dims(places, 1) >= places, x, 0.0)

    result = pipeline.run(graph_of(causal, X[:, :8]))
    assert ops_of(result) == {"where": 1}
    assert_same_bits(interpret(result, X[:, :8])[0], np.tril(X[:, :8]))


def test_constant_indices_are_slices():
    def function(table, g):
        rows = ndl.embedding(ndl.asarray(np.arange(3)), table)
        return rows, ndl.untake_at(g, [np.array([6, 4, 2])], (8, 10), (0,))

    graph = graph_of(function, X, X[:3])
    result = pipeline.run(graph)
    assert ops_of(result) == {"strided_slice": 1, "unslice": 1}
    for a, e in zip(interpret(result, X, X[:3]), interpret(graph, X, X[:3]), strict=True):
        assert_same_bits(a, e)


def test_constants_whose_op_refuses_them_stay():
    graph = graph_of(lambda x: x + ndl.one_hot(ndl.asarray(np.array([5])), 3), np.zeros(3))
    assert ops_of(fold_constants(graph))["one_hot"] == 1


def test_sharing_tells_apart_what_differs():
    def function(x):
        a = ndl.pad(x, 1, 0.0)
        b = ndl.pad(x, 1, -0.0)
        return a, b, ndl.pad(x, 1, 0.0), x * 2 + 1, 1 + 2 * x, x - 2, 2 - x

    counts = ops_of(share(graph_of(function, X)))
    assert counts == {"pad": 2, "multiply": 1, "add": 1, "subtract": 2}
    assert frozen({"a": 1}) != frozen({"a": True})
    assert frozen({"a": 1}) != frozen({"a": 1.0})
    assert frozen({"a": [np.zeros(2)]}) == frozen({"a": [np.zeros(2)]})


def test_random_numbers_of_one_state_are_shared_and_of_two_are_not():
    state = np.zeros(6, np.uint32)

    def function(s):
        first, after = ndl.random_bits(s, 4)
        again, _ = ndl.random_bits(s, 4)
        second, _ = ndl.random_bits(after, 4)
        return first, again, second

    result = pipeline.run(graph_of(function, state))
    assert ops_of(result)["random_bits"] == 2
    first, again, second = interpret(result, state)
    assert_same_bits(first, again)
    assert (first != second).any()


def test_small_operands_are_computed_small():
    def function(x, row):
        wide = ndl.broadcast_to(ndl.reshape(row, (1, 10)), (8, 10))
        return ndl.exp(wide) * 2 + x

    row = X[0]
    graph = graph_of(function, X, row)
    result = canonicalise(graph)
    exp = next(n for n in result.nodes if n.op.name == "exp")
    assert exp.result.size == 10
    assert_same_bits(interpret(result, X, row)[0], interpret(graph, X, row)[0])


def test_constants_of_one_number_become_scalars():
    def function(x):
        mixed = np.ones((8, 10), np.float32)
        mixed[0, 0] = 2
        twice = ndl.asarray(np.full((8, 10), 2, np.float32))
        return x * ndl.ones((8, 10)) + np.full(10, -0.0, np.float32), x * mixed, x * twice

    graph = graph_of(function, X)
    result = pipeline.run(graph)
    assert ops_of(result) == {"multiply": 2}  # x · 1 + −0 is x
    assert [n.inputs[1].shape for n in result.nodes] == [(8, 10), ()]
    for a, e in zip(interpret(result, X), interpret(graph, X), strict=True):
        assert_same_bits(a, e)


def test_results_of_several_values_survive():
    graph = graph_of(lambda x: ndl.unstack(x)[3] + 0.0, X)
    result = pipeline.run(graph)
    assert_same_bits(interpret(result, X)[0], X[3] + np.float32(0))


def test_an_op_applied_through_attrs_of_its_own_is_kept():
    graph = graph_of(lambda x: apply(ndl.sum, x, axes=(0,), keepdims=True), X)
    assert_same_bits(interpret(pipeline.run(graph), X)[0], X.sum(0, keepdims=True))
