"""Into needle and out: numbers, lists, arrays, other libraries; shared where that is possible."""

import numpy as np
import pytest

import needle as ndl
from needle import dtypes
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    DTypeError,
    GradientError,
    NeedleError,
    ShapeError,
)
from needle.testing import assert_close

NUMPY_DTYPES = [d for d in dtypes.ALL if d != dtypes.bfloat16]


# Sharing


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=lambda d: d.name)
def test_arrays_are_shared_both_ways(dtype):
    array = np.ones((2, 3)).astype(dtype)
    for make in (ndl.asarray, lambda a: ndl.Tensor(a, requires_grad=False)):
        t = make(array)
        assert np.shares_memory(t.numpy(), array)
        assert np.shares_memory(np.asarray(t), array)
    array[0, 0] = 0
    assert t.numpy()[0, 0] == 0
    t[0, 1] = False
    assert array[0, 1] == 0


def test_views_of_arrays_are_shared():
    array = np.arange(12.0).reshape(3, 4)
    for view in (array[::2], array.T, array[::-1, ::-2], array[1:1], array[0, 0:1]):
        t = ndl.asarray(view)
        assert t.shape == view.shape
        assert_close(t, view)
        assert view.size == 0 or np.shares_memory(t.numpy(), array)


def test_conversion_copies():
    array = np.ones(2)
    assert not np.shares_memory(ndl.asarray(array, dtype="float32").numpy(), array)
    assert np.shares_memory(ndl.asarray(array, dtype="float64").numpy(), array)
    swapped = ndl.asarray(np.array([1.0, 2.0], dtype=">f4"))
    assert_close(swapped, [1.0, 2.0])
    assert swapped.dtype == ndl.float32
    assert swapped.dtype.isnative


def test_copy_argument():
    array = np.ones(2)
    assert not np.shares_memory(ndl.asarray(array, copy=True).numpy(), array)
    assert np.shares_memory(ndl.asarray(array, copy=False).numpy(), array)
    with pytest.raises(ArgumentError, match="needs a copy"):
        ndl.asarray(array, dtype="float32", copy=False)
    with pytest.raises(ArgumentError, match="needs a copy"):
        ndl.asarray([1.0], copy=False)


def test_tensor_from_tensor():
    x = ndl.Tensor([1.0, 2.0])
    y = ndl.asarray(x)
    assert not y.requires_grad
    assert np.shares_memory(y.numpy(), x.detach().numpy())
    assert ndl.Tensor(x).is_leaf
    with pytest.raises(DeviceError, match="no values"):
        ndl.asarray(x.to("meta"))


def test_array_protocol():
    x = ndl.asarray([1.0, 2.0])
    assert np.asarray(x).dtype == np.float32
    assert np.shares_memory(np.asarray(x), x.numpy())
    assert not np.shares_memory(np.array(x), x.numpy())
    assert_close(np.asarray(x, dtype=np.int64), np.array([1, 2]), check_dtype=True)
    with pytest.raises(ValueError, match="needs a copy"):
        np.asarray(x, dtype=np.int64, copy=False)
    assert_close(np.sin(x), np.sin(x.numpy()))
    assert_close(np.stack([x, x]), np.stack([x.numpy()] * 2))
    w = ndl.Tensor([1.0])
    assert not np.asarray(w).flags.writeable


def test_namespace_protocol():
    x = ndl.ones(1)
    assert x.__array_namespace__() is ndl
    assert x.__array_namespace__(api_version="2024.12") is ndl
    with pytest.raises(ArgumentError, match=r"2024\.12 is"):
        x.__array_namespace__(api_version="2030.12")


@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda d: d.name)
def test_dlpack_with_numpy(dtype):
    array = np.ones((2, 3)).astype(dtype)
    t = ndl.from_dlpack(array)
    assert t.dtype == dtype
    assert np.shares_memory(t.numpy(), array)
    back = np.from_dlpack(t)
    assert back.dtype == dtype
    assert np.shares_memory(back, array)
    assert not np.shares_memory(ndl.from_dlpack(array, copy=True).numpy(), array)
    assert t.__dlpack_device__() == (1, 0)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda d: d.name)
def test_dlpack_with_pytorch(dtype, torch):
    t = ndl.ones((2, 3), dtype=dtype)
    peer = torch.from_dlpack(t)
    assert str(peer.dtype) == f"torch.{dtype.name}"
    peer[0, 0] = 0
    assert t.numpy()[0, 0] == 0
    back = ndl.from_dlpack(peer)
    assert back.dtype == dtype
    assert np.shares_memory(back.numpy(), t.numpy())
    assert_close(ndl.from_dlpack(peer.T), t.numpy().T)


def test_dlpack_refuses_what_it_cannot_carry():
    with pytest.raises(GradientError, match=r"export x\.detach\(\)"):
        np.from_dlpack(ndl.Tensor([1.0]))
    with pytest.raises(DTypeError, match="bfloat16"):
        np.from_dlpack(ndl.ones(1, dtype="bfloat16"))


@pytest.mark.peers
def test_pytorch_tensors_are_taken(torch):
    peer = torch.ones(3)
    t = ndl.asarray(peer)
    assert np.shares_memory(t.numpy(), peer.numpy())
    assert_close(ndl.asarray([peer.numpy(), peer.numpy()]), np.ones((2, 3)))
    with pytest.raises(DTypeError, match=r"torch\.Tensor: .*detach\(\)"):
        ndl.asarray(torch.ones(1, requires_grad=True))
    with pytest.raises(DTypeError, match=r"torch\.Tensor: .*BFloat16"):
        ndl.asarray(torch.ones(1, dtype=torch.bfloat16))


# Python numbers and sequences


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        (1, "int64"),
        (1.5, "float32"),
        (True, "bool"),
        ([1, 2], "int64"),
        ([1, 2.5], "float32"),
        ([True, False], "bool"),
        ([True, 2], "int64"),
        ([], "float32"),
        ([[], []], "float32"),
        ((1, (2)), "int64"),
        (range(3), "int64"),
        ((i for i in (1.0, 2.0)), "float32"),
        ([np.float32(1), 2.0], "float32"),
        ([np.int8(1), 2], "int8"),
        ([np.int8(1), 0.5], "float32"),
        ([np.float64(1), np.float64(2)], "float32"),
        ([np.ones(2), [1, 2]], "float64"),
        ([ndl.ones(2), [1, 2]], "float32"),
        ([ndl.ones(2, dtype="float16"), ndl.ones(2, dtype="bfloat16")], "float32"),
        ([ndl.ones(()), 2.0], "float32"),
        (np.float32(1), "float32"),
        (np.int8(1), "int8"),
        (np.array(1.5), "float64"),
        (np.array([1], dtype="float16"), "float16"),
        (bytearray(b"ab"), "int64"),
    ],
)
def test_dtype_of_what_is_given(data, dtype):
    assert ndl.asarray(data).dtype == dtype


def test_tensor_makes_floats_of_python_integers_only():
    assert ndl.Tensor([1, 2]).dtype == ndl.float32
    assert ndl.Tensor(3).dtype == ndl.float32
    assert ndl.Tensor([True]).dtype == ndl.bool
    assert ndl.Tensor(np.arange(2)).dtype == ndl.int64
    assert ndl.Tensor([1, 2], dtype="int32").dtype == ndl.int32
    assert ndl.Tensor([1, 2]).requires_grad
    assert not ndl.Tensor(np.arange(2)).requires_grad


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([[1], [2, 3]], r"data\[0\] has shape \[1\] but data\[1\] has \[2\]"),
        ([[[1, 2]], [[3]]], r"data\[0\] has shape \[1, 2\] but data\[1\] has \[1, 1\]"),
        ([[[1, 2], [3]], [[1, 2], [3, 4]]], r"data\[0\]\[0\] has shape \[2\]"),
        ([1, [2]], r"data\[0\] has shape \[\] but data\[1\] has \[1\]"),
        ([np.ones(2), np.ones(3)], r"data\[0\] has shape \[2\] but data\[1\] has \[3\]"),
        ([ndl.ones(2), ndl.ones(3)], r"data\[0\] has shape \[2\] but data\[1\] has \[3\]"),
    ],
)
def test_ragged_sequences_are_explained(data, message):
    with pytest.raises(ShapeError, match=message):
        ndl.asarray(data)
    with pytest.raises(ValueError, match="equal lengths"):
        ndl.Tensor(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "NoneType"),
        ("text", "str"),
        (b"bytes", "bytes"),
        ({"a": 1}, "dict"),
        ({1, 2}, "set"),
        (1 + 2j, "complex"),
        (len, "builtin_function_or_method"),
        ([1, "a"], "text"),
        ([None], "objects that are no numbers"),
        ([1 + 2j], "complex numbers"),
        (np.array(["2020"], dtype="datetime64[Y]"), "dates"),
        (np.array([object()]), "objects"),
        (np.zeros(2, dtype=[("a", "i4")]), "records"),
        (np.longdouble(1), "is not a dtype of needle"),
        (np.zeros(1, dtype="complex64"), "complex numbers"),
    ],
)
def test_what_is_no_number_is_refused(data, message):
    for make in (ndl.asarray, ndl.Tensor):
        with pytest.raises(DTypeError, match=message):
            make(data)


@pytest.mark.parametrize(
    ("data", "dtype"), [(2**63, None), (2**70, None), ([2**63], None), (-1, "uint8"),
                        ([256], "uint8"), ([np.int8(1), 300], None), (2**2000, "float32")]
)  # fmt: skip
def test_numbers_must_fit(data, dtype):
    with pytest.raises(DTypeError, match="does not fit into"):
        ndl.asarray(data, dtype=dtype)


def test_large_numbers_that_fit():
    assert ndl.asarray(2**63, dtype="uint64").item() == 2**63
    assert ndl.asarray([2**70, 1], dtype="float64").tolist() == [2.0**70, 1.0]


# Factories


def test_factories():
    assert_close(ndl.full(2, 7), np.array([7, 7]), check_dtype=True)
    assert_close(ndl.full((), 0.5), np.float32(0.5), check_dtype=True)
    assert np.signbit(ndl.full(2, -0.0).numpy()).all()
    assert np.isnan(ndl.full(1, float("nan")).item())
    assert np.isinf(ndl.full(1, 1e10, dtype="float16").item())
    assert_close(ndl.arange(np.int64(3)), np.arange(3), check_dtype=True)
    assert_close(ndl.arange(0, 1, 0.25), np.arange(0, 1, 0.25))
    assert_close(ndl.arange(5, 0, -2), np.array([5, 3, 1]))
    assert ndl.arange(5, 0).shape == (0,)
    assert_close(ndl.linspace(0, 1, 5), np.linspace(0, 1, 5))
    assert_close(ndl.linspace(0, 1, 5, endpoint=False), np.linspace(0, 1, 5, endpoint=False))
    assert ndl.linspace(0, 1, 0).shape == (0,)
    for k in (-1, 0, 2):
        square = np.arange(12.0).reshape(3, 4)
        assert_close(ndl.tril(square, k=k), np.tril(square, k=k))
        assert_close(ndl.triu(square, k=k), np.triu(square, k=k))
        assert_close(ndl.eye(3, 4, k=k), np.eye(3, 4, k=k))
    vectors = [np.arange(2.0), np.arange(3.0), np.arange(4.0)]
    for indexing in ("xy", "ij"):
        expected = np.meshgrid(*vectors, indexing=indexing)
        actual = ndl.meshgrid(*map(ndl.asarray, vectors), indexing=indexing)
        assert_close(list(actual), list(expected))
    like = ndl.zeros((2, 3), dtype="bfloat16")
    assert ndl.ones_like(like).dtype == ndl.bfloat16
    assert ndl.full_like(like, 2, dtype="int8").dtype == ndl.int8
    assert ndl.zeros_like(like.to("meta")).device == like.to("meta").device
    for t in (ndl.zeros(2), ndl.ones(2), ndl.full(2, 1.0), ndl.arange(2.0), ndl.eye(2)):
        assert not t.requires_grad


def test_triangles_are_differentiable():
    x = ndl.Tensor(np.ones((2, 2)))
    ndl.tril(x).sum().backward()
    assert_close(x.grad, [[1.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    "call",
    [
        lambda: ndl.zeros(-1),
        lambda: ndl.zeros((2, "a")),
        lambda: ndl.zeros(2.5),
        lambda: ndl.zeros(None),
        lambda: ndl.full(2, None),
        lambda: ndl.full(2, 300, dtype="uint8"),
        lambda: ndl.arange(0, 10, 0),
        lambda: ndl.arange("a"),
        lambda: ndl.linspace(0, 1, -1),
        lambda: ndl.linspace(0, 1, 2.5),
        lambda: ndl.tril(ndl.ones(3)),
        lambda: ndl.meshgrid(ndl.ones(1), indexing="zz"),
        lambda: ndl.zeros(2, dtype="foo"),
        lambda: ndl.zeros(2, device="gpu"),
        lambda: ndl.ones(2).to("gpu"),
        lambda: ndl.ones(2).to("meta").to("cpu"),
        lambda: ndl.ones(2).to("meta").numpy(),
    ],
)
def test_bad_arguments_raise_what_teaches(call):
    with pytest.raises(NeedleError) as caught:
        call()
    assert len(str(caught.value)) > 20


# Single elements


def test_python_numbers_out_of_tensors():
    x = ndl.asarray([[2.5]])
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    assert type(x.item()) is float
    assert type(ndl.asarray(3).item()) is int
    assert type(ndl.asarray(True).item()) is bool
    assert type(ndl.ones((), dtype="bfloat16").item()) is float
    assert range(5)[ndl.asarray(3)] == 3
    assert f"{ndl.asarray(1.2345):.2f}" == "1.23"
    assert ndl.arange(4).reshape((2, 2)).tolist() == [[0, 1], [2, 3]]
    with pytest.raises(ShapeError, match=r"exactly one element, got shape \[2\]"):
        ndl.ones(2).item()
    with pytest.raises(ShapeError, match=r"use any\(\) or all\(\)"):
        bool(ndl.ones(2))
    with pytest.raises(ShapeError):
        bool(ndl.ones(0))
    with pytest.raises(ArgumentTypeError, match="only integer tensors"):
        range(5)[ndl.asarray(3.0)]
    with pytest.raises(TypeError, match="0-d"):
        len(ndl.ones(()))


def test_iteration_and_membership():
    x = ndl.Tensor([1.0, 2.0])
    first, second = x
    (first * second).backward()
    assert_close(x.grad, [2.0, 1.0])
    assert 2.0 in x
    assert 3.0 not in x
    assert x in [x]
    assert len({x, x, ndl.ones(1)}) == 2
    assert (x == None) is False  # noqa: E711
    assert (x != "a") is True


def test_copies():
    import copy
    import pickle

    x = ndl.Tensor([1.0, 2.0])
    (x * x).backward()
    twin = copy.deepcopy(x)
    assert twin.requires_grad
    assert_close(twin.grad, [2.0, 4.0])
    assert not np.shares_memory(twin.numpy(), x.numpy())
    assert not np.shares_memory(twin.grad.numpy(), x.grad.numpy())
    assert copy.copy(x) is not x
    pair = copy.deepcopy([x, x])
    assert pair[0] is pair[1]
    with pytest.raises(GradientError, match="only leaves can be deep-copied"):
        copy.deepcopy(x * 2)
    with pytest.raises(ArgumentTypeError, match="not pickled"):
        pickle.dumps(x)


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (ndl.asarray([1.0, 2.5]), "Tensor([1. , 2.5])"),
        (ndl.asarray(3), "Tensor(3, dtype=int64)"),
        (ndl.Tensor([1.0]), "Tensor([1.], requires_grad=True)"),
        (ndl.Tensor([1.0]) * 2, "Tensor([2.], grad_node=multiply)"),
        (ndl.zeros(2, dtype="bfloat16"), "Tensor([0., 0.], dtype=bfloat16)"),
        (ndl.zeros((0, 3)), "Tensor([], shape=[0, 3])"),
        (ndl.zeros(0), "Tensor([])"),
        (ndl.zeros(2).to("meta"), "Tensor(..., shape=[2], device='meta')"),
        (ndl.asarray([[1, 2], [3, 4]]), "Tensor([[1, 2],\n        [3, 4]], dtype=int64)"),
    ],
)
def test_repr(tensor, text):
    assert repr(tensor) == text


def test_long_tensors_are_cut_in_repr():
    assert len(repr(ndl.ones(100_000))) < 100
    assert "..." in repr(ndl.ones((1000, 1000)))


def test_unsupported_operands_are_left_to_python():
    x = ndl.ones(2)
    for other in (None, "a", 1j, object(), {}):
        with pytest.raises(TypeError):
            x + other
        with pytest.raises(TypeError):
            other * x


def test_other_classes_may_answer_for_the_tensor():
    class Wins:
        def __radd__(self, other):
            return "mine"

    assert ndl.ones(1) + Wins() == "mine"
