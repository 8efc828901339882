"""Generated attention against its reference: shapes, masks, dropout, threads, batches, layouts."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

import needle as ndl
import needle.nn.functional as F
from needle.backends.cpu.attention import KEY_SLOPE, QUERY_SLOPE, backward_work, forward_work
from needle.backends.cpu.attention.spec import KEYS, QUERIES
from needle.ops.attend import attend, attend_slopes

STATE = np.array([7, 1, 9, 0, 3, 2], np.uint32)


def draw(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def attributes(**given):
    defaults = {"masked": False, "shifted": False, "causal": False, "scale": 0.3, "dropout": 0.0}
    return {**defaults, **given}


def random_mask(rng, shape, kind, dtype):
    allowed = rng.random(shape) < 0.6
    if kind == "bool":
        return allowed
    return np.where(allowed, rng.standard_normal(shape), -np.inf).astype(dtype)


class Problem:
    """Inputs of both ops."""

    def __init__(self, sizes, dtype=np.float32, mask=None, offset=None, seed=0, **attrs):
        batch, length, source, groups, group, width, value_width = sizes
        rng = np.random.default_rng(seed)
        heads = groups * group
        shapes = (
            (batch, length, heads, width),
            (batch, source, groups, width),
            (batch, source, groups, value_width),
            (batch, length, heads, value_width),
        )
        *self.qkv, self.g = (rng.standard_normal(s).astype(dtype) for s in shapes)
        self.rest = []
        if mask is not None:
            kind, varies = mask
            full = (batch, heads, length, source)
            shape = [n if v else 1 for n, v in zip(full, varies, strict=True)]
            self.rest.append(random_mask(rng, shape, kind, dtype))
        if offset is not None:
            self.rest.append(np.array(offset))
        if attrs.get("dropout"):
            self.rest.append(STATE)
        self.attrs = attributes(masked=mask is not None, shifted=offset is not None, **attrs)

    def forward(self, run):
        return run(*self.qkv, *self.rest, **self.attrs)

    def backward(self, run, lse, out):
        delta = np.ascontiguousarray((self.g * out).sum(-1).transpose(0, 2, 1))
        return run(self.g, *self.qkv, lse, delta, *self.rest, **self.attrs)

    def all(self, forward, backward):
        out, lse = self.forward(forward)
        return out, lse, *self.backward(backward, lse, out)

    def kernels(self):
        return self.all(attend.op.kernel, attend_slopes.op.kernel)

    def references(self):
        with np.errstate(divide="ignore"):
            return self.all(attend.op.reference, attend_slopes.op.reference)


def assert_same(actual, expected, dtype):
    step = float(np.finfo(dtype).eps)
    for name, a, e in zip(("out", "lse", "dq", "dk", "dv"), actual, expected, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype), name
        size = np.abs(e).max(initial=1.0)
        np.testing.assert_allclose(a, e, rtol=64 * step, atol=64 * step * size, err_msg=name)


SIZES = [  # batch, length, source, groups, heads of a group, width, value width
    (1, 1, 1, 1, 1, 1, 1),
    (2, 3, 5, 2, 1, 7, 3),
    (1, 64, 64, 1, 2, 64, 64),
    (2, 65, 129, 1, 3, 33, 17),
    (1, 200, 70, 3, 1, 16, 80),
    (1, 70, 300, 2, 2, 130, 5),
]
MASKS = [
    None,
    ("bool", (1, 1, 1, 1)),
    ("bool", (1, 0, 0, 1)),
    ("bool", (0, 1, 1, 0)),
    ("float", (0, 0, 1, 1)),
    ("float", (1, 1, 0, 1)),
]


@pytest.mark.parametrize("sizes", SIZES)
def test_agrees_with_the_reference(sizes):
    problem = Problem(sizes)
    assert_same(problem.kernels(), problem.references(), np.float32)


@pytest.mark.parametrize("mask", [None, ("bool", (1, 0, 1, 1)), ("float", (0, 1, 1, 1))])
def test_in_float64(mask):
    problem = Problem((2, 70, 101, 2, 2, 20, 33), np.float64, mask, causal=True, dropout=0.2)
    assert_same(problem.kernels(), problem.references(), np.float64)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, causal):
    problem = Problem((2, 70, 101, 2, 2, 20, 40), mask=mask, causal=causal)
    assert_same(problem.kernels(), problem.references(), np.float32)


@pytest.mark.parametrize("offset", [None, 0, 5, 40, 1000, -3, -1000, 2**40])
def test_causal_offsets(offset):
    problem = Problem((2, 70, 101, 2, 1, 16, 16), causal=True, offset=offset)
    assert_same(problem.kernels(), problem.references(), np.float32)


@pytest.mark.parametrize("source", [1, 4, 63, 66, 128])
def test_dropout(source):
    """The words that are drawn are those of the stream, whatever the length of a row."""
    problem = Problem((2, 67, source, 2, 2, 16, 16), dropout=0.4, causal=True)
    assert_same(problem.kernels(), problem.references(), np.float32)


def test_rows_without_keys_are_zero_and_have_no_gradients():
    problem = Problem((1, 66, 70, 1, 1, 8, 8), mask=("bool", (0, 0, 1, 1)))
    problem.rest[0][0, 0, [3, 65]] = False
    out, lse, dq, *_ = problem.kernels()
    for rows in (out, dq):
        assert (rows[0, [3, 65]] == 0).all()
    assert (lse[0, 0, [3, 65]] == 0).all()
    assert_same(problem.kernels(), problem.references(), np.float32)


@pytest.mark.parametrize("offset", [None, 0, 5, 63, 64, 130, 1000, -1])
@pytest.mark.parametrize("mask", [None, ("bool", (1, 1, 1, 1)), ("float", (0, 0, 0, 1)),
                                  ("bool", (1, 0, 0, 0))])  # fmt: skip
def test_a_single_query(mask, offset):
    problem = Problem((2, 1, 131, 2, 2, 20, 33), mask=mask, causal=True, offset=offset)
    assert_same(problem.kernels(), problem.references(), np.float32)
    turned = Problem((2, 1, 131, 2, 2, 20, 33), mask=mask, causal=True, offset=offset)
    turned.qkv = [np.asfortranarray(x) for x in problem.qkv]
    if mask is not None:
        turned.rest[0] = np.repeat(problem.rest[0], 2, axis=3)[..., ::2]
    for a, b in zip(turned.kernels(), problem.kernels(), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("sizes", [(0, 3, 4, 1, 1, 2, 2), (1, 0, 4, 1, 1, 2, 2),
                                   (1, 3, 0, 1, 1, 2, 2), (1, 3, 4, 1, 1, 0, 2),
                                   (1, 3, 4, 1, 1, 2, 0)])  # fmt: skip
def test_empty(sizes):
    problem = Problem(sizes)
    assert_same(problem.kernels(), problem.references(), np.float32)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_fuzz(data):
    # Widths and kinds decide about code, which takes a while to make: few of them.
    extents = [(1, 3), (1, 150), (1, 150), (1, 3), (1, 3)]
    sizes = (*(data.draw(st.integers(*bounds)) for bounds in extents), 20, 33)
    causal = data.draw(st.booleans())
    mask = data.draw(st.sampled_from([None, "bool", "float"]))
    if mask is not None:
        mask = mask, data.draw(st.tuples(*[st.booleans()] * 4))
    offset = data.draw(st.none() | st.integers(-20, 200)) if causal else None
    dropout = data.draw(st.sampled_from([0.0, 0.3]))
    seed = data.draw(st.integers(0, 9))
    problem = Problem(sizes, np.float32, mask, offset, seed, causal=causal, dropout=dropout)
    assert_same(problem.kernels(), problem.references(), np.float32)


@pytest.mark.parametrize("batch", [1, 2])
def test_no_bit_depends_on_the_number_of_threads(batch):
    """Also where a few heads are split among the threads, and weights computed twice."""
    problem = Problem((batch, 200, 300, 1, 3, 24, 40), causal=True, dropout=0.2)
    found = []
    before = ndl.get_num_threads()
    try:
        for threads in (1, 2, 4):
            ndl.set_num_threads(threads)
            found.append(problem.kernels())
    finally:
        ndl.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a.tobytes() == b.tobytes()


def test_no_bit_depends_on_the_batch():
    whole = Problem((4, 70, 90, 2, 2, 24, 24), mask=("bool", (1, 0, 1, 1)))
    together = whole.kernels()
    for i in range(4):
        alone = Problem((1, 70, 90, 2, 2, 24, 24), mask=("bool", (1, 0, 1, 1)))
        alone.qkv, alone.g = [x[i : i + 1] for x in whole.qkv], whole.g[i : i + 1]
        alone.rest = [whole.rest[0][i : i + 1]]
        for a, b in zip(alone.kernels(), together, strict=True):
            assert a.tobytes() == b[i : i + 1].tobytes()


def test_a_causal_row_does_not_depend_on_what_follows():
    long = Problem((1, 200, 200, 1, 2, 32, 32), causal=True)
    short = Problem((1, 90, 90, 1, 2, 32, 32), causal=True)
    short.qkv = [x[:, :90].copy() for x in long.qkv]
    a, b = (p.forward(attend.op.kernel) for p in (long, short))
    assert np.array_equal(a[0][:, :90], b[0])
    assert np.array_equal(a[1][..., :90], b[1])


def test_layouts_do_not_matter():
    problem = Problem((2, 70, 90, 2, 2, 24, 12), mask=("bool", (1, 1, 1, 1)))
    expected = problem.kernels()
    mask = problem.rest[0]
    turned = [
        lambda x: np.ascontiguousarray(x.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3),
        np.asfortranarray,
        lambda x: np.repeat(x, 2, axis=1)[:, ::2],
        lambda x: x[::-1].copy()[::-1],
    ]
    for change in turned:
        other = Problem((2, 70, 90, 2, 2, 24, 12), mask=("bool", (1, 1, 1, 1)))
        other.qkv = [change(x) for x in problem.qkv]
        other.g, other.rest = change(problem.g), [change(mask)]
        for a, b in zip(other.kernels(), expected, strict=True):
            assert a.tobytes() == b.tobytes()


def test_compiled_attention_has_the_bits_of_eager_attention():
    q, k, v = draw(2, 3, 70, 16), draw(2, 3, 90, 16, seed=1), draw(2, 3, 90, 8, seed=2)

    def call(q, k, v):
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=0.3, is_causal=True, generator=ndl.random.Generator(4)
        )

    tensors = [ndl.asarray(x) for x in (q, k, v)]
    assert np.array_equal(call(*tensors).numpy(), ndl.compile(call)(*tensors).numpy())


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)])
def test_compiled_gradients_of_some_inputs(wanted):
    arrays = [draw(1, 2, 70, 16, seed=i) for i in range(3)]

    def step(*tensors):
        out = F.scaled_dot_product_attention(*tensors, is_causal=True)
        return ndl.grad((out**2).sum(), [tensors[i] for i in wanted])

    tensors = [ndl.Tensor(x, requires_grad=i in wanted) for i, x in enumerate(arrays)]
    for a, e in zip(ndl.compile(step)(*tensors), step(*tensors), strict=True):
        np.testing.assert_allclose(a.numpy(), e.numpy(), rtol=1e-4, atol=1e-5)


def test_operands_of_any_layout_in_a_program():
    """A cotangent that is one number, a query turned round, a mask that is computed."""
    arrays = [draw(2, 16, 70, seed=i) for i in range(3)]

    def step(q, k, v):
        q, k = q.mT, k.mT
        mask = (ndl.arange(70) >= ndl.arange(70).reshape(-1, 1)).mT
        out = F.scaled_dot_product_attention(q, k, v.mT, mask)
        return out, *ndl.grad(out.sum(), [q, k])

    tensors = [ndl.Tensor(x) for x in arrays]
    for a, e in zip(ndl.compile(step)(*tensors), step(*tensors), strict=True):
        np.testing.assert_allclose(a.numpy(), e.numpy(), rtol=1e-4, atol=1e-5)


def test_memory_grows_with_the_length():
    """Of a program with gradients, with no room for a matrix of weights."""
    length = 1024
    q = ndl.Tensor(draw(1, 2, length, 16))

    @ndl.compile
    def step(q):
        out = F.scaled_dot_product_attention(q, q, q, is_causal=True)
        return ndl.grad((out**2).sum(), [q])[0]

    step(q)
    weights = 2 * length * length * 4
    assert step.memory_plan(q).peak_bytes < weights / 4


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1000, 1000), (2, 6, 3, 200, 500), (3, 4, 4, 64, 64)])
@pytest.mark.parametrize("causal", [False, True])
def test_work_is_shared_without_gaps(sizes, causal, threads):
    batch, heads, groups, length, _ = sizes
    work = forward_work(*sizes, causal, threads)
    assert list(work.bounds) == sorted(work.bounds)
    assert (work.bounds[0], work.bounds[-1]) == (0, len(work.items))
    blocks = {(b, h, i) for b, _, h, _, start, stop, *_ in work.items for i in range(start, stop)}
    assert len(blocks) == batch * heads * -(-length // QUERIES)
    both = backward_work(*sizes, causal, threads, QUERY_SLOPE | KEY_SLOPE)
    for bit, extent, size in ((QUERY_SLOPE, length, QUERIES), (KEY_SLOPE, sizes[4], KEYS)):
        seen = []
        for b, g, h, h_stop, q, q_stop, k, k_stop, wants in both.items:
            if wants & bit:
                first, last = (q, q_stop) if bit == QUERY_SLOPE else (k, k_stop)
                heads_of = range(h, h_stop) if bit == QUERY_SLOPE else [g * (heads // groups)]
                seen += [(b, x, i) for x in heads_of for i in range(first, last)]
        count = heads if bit == QUERY_SLOPE else groups
        assert len(seen) == len(set(seen)) == batch * count * -(-extent // size)
