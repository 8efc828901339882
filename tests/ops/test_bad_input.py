"""Bad input: the error that the sample names, and never an error that teaches nothing."""

import numpy as np
import pytest

import needle as ndl
from needle.errors import NeedleError
from needle.testing import cases_under_test, ops_under_test


@pytest.mark.parametrize("case", cases_under_test(bad=True), ids=str)
def test_raises_what_it_says(case):
    with pytest.raises(case.sample.error, match=case.sample.match) as caught:
        case.call()
    assert isinstance(caught.value, NeedleError)
    assert len(str(caught.value)) > 20, "a message that says little"


@pytest.mark.parametrize("case", cases_under_test(bad=True), ids=str)
def test_raises_on_tensors_that_require_gradients(case):
    with pytest.raises(case.sample.error):
        case.call(ndl.Tensor)


NO_TENSORS = {
    "None": None,
    "text": "abc",
    "dict": {"a": 1},
    "complex": np.array([1 + 2j]),
    "strings": np.array(["a", "b"]),
    "objects": np.array([object()]),
    "dates": np.array(["2020-01-01"], dtype="datetime64[D]"),
    "ragged": [[1.0, 2.0], [3.0]],
    "function": len,
}


@pytest.mark.parametrize("value", NO_TENSORS.values(), ids=NO_TENSORS)
@pytest.mark.parametrize("entry", ops_under_test(), ids=lambda entry: entry.name)
def test_refuses_what_is_no_tensor(entry, value):
    """In place of the first argument of an ordinary call."""
    args, kwargs = cases_under_test([entry])[0].arguments()
    first = [value] if isinstance(args[0], list) else value
    with pytest.raises(NeedleError):
        entry.function(first, *args[1:], **kwargs)
