"""Every record is complete: without samples or documentation an op does not pass."""

import inspect
from collections import Counter

import pytest

import needle as ndl
from needle.ops.record import REGISTRY, Op
from needle.testing import assert_close, cases_under_test, ops_under_test

OPS = ops_under_test()
each_op = pytest.mark.parametrize("entry", OPS, ids=lambda entry: entry.name)


def test_names_and_aliases_are_unique():
    counts = Counter(name for entry in OPS for name in (entry.name, *entry.aliases))
    assert [name for name, count in counts.items() if count > 1] == []


@each_op
def test_has_samples(entry):
    assert len(cases_under_test([entry])) >= 1, f"{entry.name} has no samples of good input"


@each_op
def test_differentiable_ops_have_smooth_samples(entry):
    """Or their gradients would not be compared with finite differences."""
    cases = [case for case in cases_under_test([entry]) if case.floating_arrays()]
    if entry.differentiable and cases:
        assert any(case.sample.is_smooth for case in cases)


@each_op
def test_is_documented(entry):
    doc = inspect.getdoc(entry.function) or ""
    summary = doc.split("\n\n")[0]
    assert summary
    assert summary.rstrip().endswith((".", "``")), summary
    for section in ("Args:", "Example:"):
        assert section in doc, f"{entry.name}: no section {section}"
    arguments = doc.partition("Args:")[2]
    for name in inspect.signature(entry.function).parameters:
        assert f"{name}: " in arguments, f"{entry.name}: the argument {name!r} is not described"


@each_op
def test_raises_is_documented(entry):
    """What bad samples must raise is named in the docstring (or a base of it is)."""
    doc = (inspect.getdoc(entry.function) or "").partition("Raises:")[2]
    for case in cases_under_test([entry], bad=True):
        names = [base.__name__ for base in case.sample.error.__mro__]
        assert any(f"{name}:" in doc for name in names), f"{case}: {names[0]} is not in Raises:"


@each_op
def test_is_in_the_namespace(entry):
    for name in (entry.name, *entry.aliases):
        assert getattr(ndl, name) is entry.function


@each_op
def test_is_a_method(entry):
    for name in (entry.name, *entry.aliases):
        if entry.is_method:
            assert callable(getattr(ndl.Tensor, name))


@pytest.mark.parametrize("entry", [e for e in OPS if e.is_method], ids=lambda entry: entry.name)
def test_method_and_function_are_one(entry):
    case = cases_under_test([entry])[0]
    args, kwargs = case.arguments()
    if not isinstance(args[0], ndl.Tensor):
        pytest.fail("a method's first parameter must be a tensor")
    expected = entry.function(*args, **kwargs)
    for name in (entry.name, *entry.aliases):
        assert_close(getattr(args[0], name)(*args[1:], **kwargs), expected, ulp=0)


@pytest.mark.parametrize(
    "entry", [e for e in OPS if isinstance(e, Op)], ids=lambda entry: entry.name
)
def test_primitive_names_its_inputs(entry):
    assert entry.inputs
    for name, rule in (entry.vjp or {}).items():
        assert name in entry.inputs
        for parameter in inspect.signature(rule).parameters.values():
            assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, f"rule for {name}"


def test_attributes_are_no_inputs() -> None:
    """Not even if a record's `infer` takes any of them."""
    for op in REGISTRY.values():
        if isinstance(op, Op):
            taken = inspect.signature(op.infer).parameters.values()
            rest = {p.name for p in taken if p.kind is p.VAR_KEYWORD}
            assert rest.isdisjoint(op.inputs), op.name
