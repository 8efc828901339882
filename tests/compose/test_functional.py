"""needle.nn.functional: PyTorch's names, in PyTorch's argument order."""

import inspect

import numpy as np
import pytest

import needle as ndl
import needle.nn.functional as F

#: What PyTorch calls the same, or keeps only for old code.
RENAMED = {"input": "x", "dim": "axis"}
OBSOLETE = {"size_average", "reduce", "_stacklevel", "inplace", "threshold", "dtype"}


@pytest.mark.peers
@pytest.mark.parametrize("name", F.__all__)
def test_the_leading_arguments_are_those_of_pytorch(name):
    import torch.nn.functional as peer

    try:
        theirs = inspect.signature(getattr(peer, name)).parameters
    except ValueError:
        pytest.skip("PyTorch does not tell the signature of a builtin")
    renamed = RENAMED | ({"input": "indices"} if name == "embedding" else {})
    wanted = [renamed.get(p, p) for p in theirs if p not in OBSOLETE]
    ours = list(inspect.signature(getattr(F, name)).parameters)
    common = [p for p in ours if p in wanted]
    assert common == [p for p in wanted if p in ours]
    assert common == ours[: len(common)]


def test_every_name_is_public_and_documented():
    for name in F.__all__:
        assert inspect.getdoc(getattr(F, name))


@pytest.mark.peers
@pytest.mark.parametrize("widths", [(1, 2), (1, 0, 2, 3), (0, 0, 0, 0, 1, 1), ()])
def test_pad_agrees_with_pytorch(widths):
    import torch

    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    expected = torch.nn.functional.pad(torch.from_numpy(x), widths, value=7.0).numpy()
    assert np.array_equal(F.pad(ndl.asarray(x), widths, value=7.0).numpy(), expected)


def test_pad_tells_what_it_needs():
    x = ndl.ones((2, 3))
    with pytest.raises(ndl.errors.ShapeError, match="pairs"):
        F.pad(x, (1, 2, 3))
    with pytest.raises(ndl.errors.ShapeError, match="pairs"):
        F.pad(x, (1, 1) * 3)
    with pytest.raises(ndl.errors.ArgumentError, match="mode"):
        F.pad(x, (1, 1), mode="reflect")
    with pytest.raises(ndl.errors.ArgumentError, match="negative"):
        F.pad(x, (-1, 1))
