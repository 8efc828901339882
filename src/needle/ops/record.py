"""The op record: everything that needle knows about an op, in one place.

    @op(kind=…, infer=…, reference=…, vjp={"x": lambda g, …: …}, samples=…)
    def name(x: TensorLike, …) -> Tensor:
        '''Public documentation.'''
        …normalise the arguments…
        return apply(name, x, axis=…)

The decorated function stays an ordinary function, the public one; its record hangs on it as
``name.op`` and in the `REGISTRY`. Tensor methods, generated tests, the NumPy oracle, the reference
page and the type stub are derived from the registry. Composite functions, written with other ops,
register with `composite` to get the same, except what only a primitive has.

A vjp rule is a function of what it names, and only what a rule names is kept alive for the backward
pass:

========================  ====================================================================
parameter                 receives
========================  ====================================================================
``g``                     the cotangent of the result (a tuple, for several results)
``out``                   the result (a tuple, for several results)
``out_1``                 the result at place 1 of several, counted from 0, without the others
an input's name           that input, as a tensor
``x_shape``, ``x_dtype``  shape or dtype of the input ``x``, without keeping its values
an attribute's name       that attribute
``attrs``                 all attributes, by name
``i``                     which of the variadic inputs the cotangent is asked for
========================  ====================================================================
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, cast

import numpy as np

from needle.ops.convolution_form import Convolution, WeightTransform
from needle.ops.fold import Fold
from needle.ops.ordered import Ordered
from needle.ops.precision import Precision, under
from needle.ops.samples import Sample, Samples
from needle.shapes import Spec

if TYPE_CHECKING:
    pass

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Rule = Callable[..., Any]
Infer = Callable[..., Any]
#: How the compiler builds the op: from a builder, the inputs' values and the attributes to the
#: value of one element or one tile. What the values are depends on the kind. Ops import no backend.
Lowering = Callable[..., Any]


class Kind(enum.Enum):
    """The trait by which passes and engines treat ops alike, so that nobody lists op names."""

    ELEMENTWISE = (
        "elementwise"  #: broadcasts its inputs; cotangents are summed back to their shapes
    )
    REDUCTION = "reduction"  #: combines the elements along axes
    NORMALIZATION = "normalization"  #: shifts and scales elements by statistics along axes
    MOVEMENT = "movement"  #: only moves elements, and adds none up; may return a view
    CONTRACTION = "contraction"  #: sums of products: matmul, convolution
    INDEXING = "indexing"  #: reads elements at places that are computed, or adds them up there
    SCAN = "scan"  #: runs along an axis: cumulative sums, sorting
    RANDOM = "random"  #: a pure function of a generator's state
    ATTENTION = "attention"  #: weights of a softmax, times values, tile by tile; or gradients of it
    CONTROL = "control"  #: runs graphs, which are among its attributes


#: The precision of ops that do not name one.
_PRECISIONS = {
    Kind.CONTRACTION: Precision.LOW,
    Kind.REDUCTION: Precision.FULL,
    Kind.NORMALIZATION: Precision.FULL,
    Kind.SCAN: Precision.FULL,
}


@dataclass(eq=False)
class Entry:
    """What primitives and composites have in common: a public function, samples, a peer.

    Attributes:
        name: the public name, which is also the Tensor method's.
        function: the public function.
        samples: yields inputs that exercise it.
        aliases: further names of the function and method.
        is_method: whether `Tensor` has it as a method (its first parameter is then the tensor).
        unpacks: whether the method also takes its shape or axes one by one: ``x.reshape(2, 3)``.
        peer: how PyTorch spells it, as a path below ``torch`` or a function of ``torch`` and the
            sample's arguments; None when PyTorch has no such thing.
        precision: in which dtype it computes under `autocast`; an op that does not say has that of
            its kind.
        module: where the function is defined.
    """

    name: str
    function: Callable[..., Any]
    samples: Samples
    aliases: tuple[str, ...] = ()
    is_method: bool = True
    unpacks: bool = False
    peer: str | Callable[..., Any] | None = None
    differentiable: bool = True
    precision: Precision = Precision.FOLLOW

    @property
    def module(self) -> str:
        """The module that defines the function."""
        return self.function.__module__

    def draw_samples(self) -> list[Sample]:
        """Return the samples, each with a label unique within the entry."""
        return list(self.samples())


@dataclass(eq=False)
class Op(Entry):
    """The record of a primitive op.

    Attributes:
        kind: the trait that engines and passes dispatch on.
        infer: from the specs of the inputs (positional) and the attributes (keyword) to the spec of
            the result or a tuple of specs; raises the error for inputs that do not fit.
        reference: from arrays and attributes to an array or a tuple: plain and obvious. The oracle
            of all tests, and the eager path where it is fast enough. Written with NumPy functions,
            which dispatch on the array's type.
        vjp: a rule for each differentiable input, see the module's docstring; None for an op whose
            results carry no gradients.
        lower: how the compiler builds it.
        decompose: for a compound op, the same written with simpler ops: from its input tensors
            (positional) and attributes (keyword) to what the reference returns. The compiler
            expands it, so that its parts fuse with their surroundings; eager execution does not.
        fault: for an op whose values may be refused when it runs: from the value that was refused,
            its place and the attributes to the exception that the reference raises. Compiled code
            reports value and place, and raises this exception after the call.
        commutes: whether exchanging its two inputs changes no bit of the result.
        exact: whether there is one right result for floats, the exact one rounded once, so that all
            who compute it agree bit for bit. Elementwise ops say it; others are not asked.
        chooses: whether each element of a float result is one of the inputs' elements, perhaps with
            another sign, or 0: it then needs no rounding. Elementwise ops say it.
        row_axes: of an op with one input, how many last axes belong together; those before are a
            batch. 0 where that is not so, or depends on the attributes.
        flops: arithmetic operations, from the specs of inputs and result and the attributes.
        may_alias: whether the reference may return a view of its first input.
        per_axis: for an op that treats each axis by itself: the attributes that hold an entry for
            each axis of the result. With the axes of the inputs permuted, and these entries, and
            ``axis`` renumbered, the result is permuted alike. None for all other ops.
        kernel: what eager execution runs instead of the reference, with the same arguments; None
            from it leaves the call to the reference. Set by the backend, when needle is imported.
        backward: what eager execution runs instead of vjp rules that nobody differentiates: from
            pairs of a rule and its arguments to their cotangents; None from it leaves them to the
            rules. Set by the backend, as the kernel is.
        refuses: whether the reference itself refuses all that `infer` refuses. Eager execution then
            infers only to explain an error, and saves the time otherwise.
        inputs: names of the tensor inputs; the last may be variadic.
    """

    kind: Kind = Kind.ELEMENTWISE
    infer: Infer = lambda: None
    reference: Callable[..., Any] = lambda: None
    vjp: Mapping[str, Rule] | None = None
    lower: Lowering | Fold | Ordered | Convolution | WeightTransform | None = None
    decompose: Callable[..., Any] | None = None
    fault: Callable[..., Exception] | None = None
    commutes: bool = False
    exact: bool = False
    chooses: bool = False
    row_axes: int = 0
    flops: Callable[..., int] | None = None
    may_alias: bool = False
    per_axis: tuple[str, ...] | None = None
    refuses: bool = False
    inputs: tuple[str, ...] = ()
    is_variadic: bool = False
    kernel: Callable[..., Any] | None = field(init=False, default=None)
    backward: Callable[[list[tuple[BoundRule, list[Any]]]], list[Any] | None] | None = field(
        init=False, default=None
    )
    #: Elementwise ops only: the categories of dtypes to which its inputs are promoted.
    promotion: frozenset[str] | None = None
    rules: dict[str, BoundRule] = field(init=False, default_factory=dict)
    #: Whether the reference is a NumPy ufunc, which broadcasts and refuses as the op does.
    is_ufunc: bool = field(init=False, default=False)
    _rules_at: dict[int, list[BoundRule | None]] = field(init=False, default_factory=dict)
    _plans: dict[tuple[bool, ...], SavePlan] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.differentiable = self.vjp is not None
        self.is_ufunc = isinstance(self.reference, np.ufunc)
        # Elementwise references broadcast and refuse as their ops do.
        self.refuses = self.refuses or self.kind is Kind.ELEMENTWISE
        for name, rule in (self.vjp or {}).items():
            if name not in self.inputs:
                raise TypeError(f"op {self.name}: vjp rule for {name!r}, which is no input")
            self.rules[name] = BoundRule(rule, self)

    @property
    def attributes(self) -> tuple[str, ...]:
        """The names of the attributes."""
        parameters = inspect.signature(self.infer).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def input_name(self, position: int) -> str:
        """Return the name of the input at ``position``; variadic inputs share the last name."""
        return self.inputs[min(position, len(self.inputs) - 1)]

    def rules_at(self, count: int) -> list[BoundRule | None]:
        """Return the rule of each of ``count`` inputs, None where there is none."""
        rules = self._rules_at.get(count)
        if rules is None:
            rules = self._rules_at[count] = [
                self.rules.get(self.input_name(i)) for i in range(count)
            ]
        return rules

    def save_plan(self, needed: tuple[bool, ...]) -> SavePlan:
        """Return what the rules of the ``needed`` inputs want kept for the backward pass."""
        plan = self._plans.get(needed)
        if plan is None:
            plan = self._plans[needed] = SavePlan(self, needed)
        return plan


class JointRule:
    """What one input gets of a vjp rule that gives the cotangents of several at once.

    Attributes:
        rule: returns a tuple.
        place: of this input's cotangent in it.
    """

    def __init__(self, rule: Rule, place: int) -> None:
        self.rule, self.place = rule, place
        self.__wrapped__ = rule

    def __call__(self, *arguments: Any) -> Any:
        """Return the input's cotangent alone."""
        return self.rule(*arguments)[self.place]


def joint(rule: Rule, *names: str) -> dict[str, Rule]:
    """Return the entries of a record's ``vjp`` for inputs whose cotangents one rule computes.

    It runs once for all of them.
    """
    return {name: JointRule(rule, place) for place, name in enumerate(names)}


class BoundRule:
    """A vjp rule with its parameters resolved: which value each of them receives.

    Attributes:
        function: the rule.
        place: of the input's cotangent in what a rule for several inputs returns; −1 for others.
    """

    __slots__ = ("function", "inputs", "place", "results", "sources", "wants_out")

    def __init__(self, function: Rule, op: Op) -> None:
        self.function: Rule = function.rule if isinstance(function, JointRule) else function
        self.place = function.place if isinstance(function, JointRule) else -1
        self.inputs: set[int] = set()
        self.results: set[int] = set()
        self.wants_out = False
        self.sources: list[tuple[str, Any]] = []
        for parameter in inspect.signature(function).parameters:
            self.sources.append(self._source(parameter, op))

    def cotangent(self, arguments: Sequence[Any]) -> Any:
        """Return the input's cotangent alone."""
        found = self.function(*arguments)
        return found if self.place < 0 else found[self.place]

    def _source(self, parameter: str, op: Op) -> tuple[str, Any]:
        if parameter in ("g", "i", "attrs"):
            return parameter, None
        if parameter == "out":
            self.wants_out = True
            return "out", None
        if parameter in op.inputs:
            position = op.inputs.index(parameter)
            self.inputs.add(position)
            variadic = op.is_variadic and position == len(op.inputs) - 1
            return ("inputs" if variadic else "input"), position
        stem, _, suffix = parameter.rpartition("_")
        if stem == "out" and suffix.isdigit():
            self.results.add(int(suffix))
            return "result", int(suffix)
        if stem in op.inputs and suffix in ("shape", "dtype"):
            position = op.inputs.index(stem)
            variadic = op.is_variadic and position == len(op.inputs) - 1
            return (f"{suffix}s" if variadic else suffix), position
        return "attr", parameter


class SavePlan:
    """Which inputs, and whether the result, the backward pass of one call needs.

    Attributes:
        inputs: positions of the inputs to keep.
        out: whether to keep all results.
        results: places of results to keep.
        dtypes: whether a rule asks for the dtype of an input.
        reaches: whether there is a rule for an input that wants a cotangent.
    """

    __slots__ = ("dtypes", "inputs", "out", "reaches", "results")

    def __init__(self, op: Op, needed: tuple[bool, ...]) -> None:
        inputs: set[int] = set()
        self.out = False
        self.results: set[int] = set()
        self.dtypes = False
        self.reaches = False
        for position, is_needed in enumerate(needed):
            rule = op.rules.get(op.input_name(position)) if is_needed else None
            if rule is None:
                continue
            self.reaches = True
            for index in rule.inputs:
                variadic = op.is_variadic and index == len(op.inputs) - 1
                inputs.update(range(index, len(needed)) if variadic else (index,))
            self.out = self.out or rule.wants_out
            self.results |= rule.results
            self.dtypes = self.dtypes or any(s in ("dtype", "dtypes") for s, _ in rule.sources)
        self.inputs = tuple(sorted(inputs))


#: Every public op and composite by name, in the order of definition.
REGISTRY: dict[str, Entry] = {}
_NAMES: set[str] = set()


class OpFunction(Protocol[P, R_co]):
    """A public function that carries its record."""

    op: Op
    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Apply the op."""


def register(entry: Entry) -> None:
    """Add ``entry`` to the registry.

    Raises:
        TypeError: the name is taken.
    """
    for name in (entry.name, *entry.aliases):
        if name in _NAMES:
            raise TypeError(f"two ops of the name {name!r}")
        _NAMES.add(name)
    REGISTRY[entry.name] = entry


def op(
    *,
    kind: Kind,
    infer: Infer,
    reference: Callable[..., Any],
    samples: Samples,
    vjp: Mapping[str, Rule] | None = None,
    lower: Lowering | Fold | Ordered | Convolution | WeightTransform | None = None,
    decompose: Callable[..., Any] | None = None,
    fault: Callable[..., Exception] | None = None,
    exact: bool = False,
    chooses: bool = False,
    row_axes: int = 0,
    flops: Callable[..., int] | None = None,
    may_alias: bool = False,
    per_axis: tuple[str, ...] | None = None,
    refuses: bool = False,
    precision: Precision | None = None,
    aliases: Iterable[str] = (),
    is_method: bool = True,
    unpacks: bool = False,
    peer: str | Callable[..., Any] | None = None,
) -> Callable[[Callable[P, R]], OpFunction[P, R]]:
    """Declare the decorated public function as a primitive op; see `Op` for the arguments.

    The names of the tensor inputs are the positional parameters of ``infer``; its keyword-only
    parameters are the attributes.
    """

    def decorate(function: Callable[P, R]) -> OpFunction[P, R]:
        parameters = inspect.signature(infer).parameters.values()
        named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
        positional = [p for p in parameters if p.kind not in named]
        record = Op(
            name=function.__name__,
            function=function,
            samples=samples,
            aliases=tuple(aliases),
            is_method=is_method,
            unpacks=unpacks,
            peer=peer,
            kind=kind,
            infer=infer,
            reference=reference,
            vjp=vjp,
            lower=lower,
            decompose=decompose,
            fault=fault,
            exact=exact,
            chooses=chooses,
            row_axes=row_axes,
            flops=flops,
            may_alias=may_alias,
            per_axis=per_axis,
            refuses=refuses,
            precision=precision or _PRECISIONS.get(kind, Precision.FOLLOW),
            inputs=tuple(p.name for p in positional),
            is_variadic=bool(positional)
            and positional[-1].kind is inspect.Parameter.VAR_POSITIONAL,
        )
        return attach(record, function)

    return decorate


def attach(record: Op, function: Callable[P, R]) -> OpFunction[P, R]:
    """Register ``record`` and hang it on its public function."""
    register(record)
    decorated = cast("OpFunction[P, R]", function)
    decorated.op = record
    return decorated


def composite(
    *,
    samples: Samples,
    aliases: Iterable[str] = (),
    is_method: bool = False,
    unpacks: bool = False,
    peer: str | Callable[..., Any] | None = None,
    differentiable: bool = True,
    precision: Precision = Precision.FOLLOW,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register the decorated function, written with other ops, for tests, docs and methods.

    With a ``precision``, it takes its tensors as `autocast` gives them to an op of that precision.
    Without, the ops that it is written with take theirs.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        if precision is not Precision.FOLLOW:
            function = under(precision, function)
        register(
            Entry(
                name=function.__name__,
                function=function,
                samples=samples,
                aliases=tuple(aliases),
                is_method=is_method,
                unpacks=unpacks,
                peer=peer,
                differentiable=differentiable,
                precision=precision,
            )
        )
        return function

    return decorate


def flops_of(record: Op, inputs: tuple[Spec, ...], result: Spec, attrs: dict[str, Any]) -> int:
    """Return the arithmetic operations of one call: by the record, else one for each element.

    Movement, indexing and random ops count as none: they are bound by memory.
    """
    if record.flops is not None:
        return record.flops(*inputs, result, **attrs)
    if record.kind is Kind.ELEMENTWISE:
        return result.size
    if record.kind is Kind.REDUCTION:
        return inputs[0].size
    return 0


__all__ = ["REGISTRY", "Entry", "Kind", "Op", "OpFunction", "composite", "op"]
