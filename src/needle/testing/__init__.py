"""Checks for tensors, gradients and ops: for needle's own tests, and for those of your ops.

from needle.testing import assert_close, check_grads

check_grads(my_function, [x, y])
assert_close(my_function(x, y), expected)
"""

from needle.testing.cases import Case, cases_under_test, ops_under_test
from needle.testing.compare import Tolerance, assert_close, tolerance_of
from needle.testing.gradients import check_grads

__all__ = [
    "Case",
    "Tolerance",
    "assert_close",
    "cases_under_test",
    "check_grads",
    "ops_under_test",
    "tolerance_of",
]
