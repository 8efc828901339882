"""compile: trace a function once for each signature, and run what was compiled from then on."""

from __future__ import annotations

import functools
import threading
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from needle import tree
from needle.arrays import to_array
from needle.compiled.branches import Answers, Branched
from needle.compiled.check import Checked
from needle.compiled.dim import Dims, as_dims, generalise
from needle.compiled.executable import Executable, as_tuning, build, generates_code
from needle.compiled.preparation import fixed_inputs
from needle.compiled.signature import (
    TENSOR,
    is_hashable,
    leaf_key,
    unhashable_error,
    what_changes,
)
from needle.compiled.specialization import Specialization, changed_error
from needle.compiled.varying import Varying
from needle.config import modes
from needle.devices import META
from needle.errors import ArgumentError, ArgumentTypeError, TraceError
from needle.graph.ir import Graph
from needle.graph.trace import argument_names, function_name, parameters_of, trace_call
from needle.graph.traced import Traced, is_array
from needle.graph.tracing import anomaly_error
from needle.shapes import Shape
from needle.tensor import Tensor

if TYPE_CHECKING:
    from needle.compiled.explain import Explanation
    from needle.compiled.memory_plan import Memory

P = ParamSpec("P")
R = TypeVar("R")

#: One trace at a time: a trace sets gradients and versions of the state, and puts them back.
_tracing = threading.RLock()


class Compiled(Generic[P, R]):
    """A function that is traced and compiled when it is first called; what `compile` returns.

    Attributes:
        function: the function as it was written: call it to run eagerly.
        specializations: what it has been compiled for.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        check: bool = False,
        budget: int = 8,
        keep_grads: bool = False,
        backend: str | None = None,
        dims: Dims | None = None,
        memory_budget: int | None = None,
        branches: str | None = None,
        path_budget: int = 16,
        tune: bool | float = False,
    ) -> None:
        if not callable(function):
            raise ArgumentTypeError(
                f"compile: needs a function or a module, got {type(function).__name__}"
            )
        if budget < 1:
            raise ArgumentError(f"compile: the budget must be at least 1, got {budget}")
        self.function = function
        self.check = check
        self.budget = budget
        self.dims = as_dims(dims)
        self._check_names()
        self._signatures: set[Any] = set()
        self.keep_grads = keep_grads
        self.backend = backend
        self.memory_budget = memory_budget
        self.branches = branches
        self.path_budget = path_budget
        self.tuning = as_tuning(tune, backend, is_frugal=memory_budget is not None)
        self._check_branches()
        self._varying = self._make_varying() if any(any(d) for d in self.dims.values()) else None
        self._table: dict[Any, list[Specialization | Branched]] = {}
        self._last: Specialization | Branched | None = None
        functools.update_wrapper(self, function, updated=())

    @property
    def specializations(self) -> list[Specialization]:
        """What the function has been compiled for, in order.

        Of those that share one program for all extents of a `Dim`, it is the first. With
        ``branches="specialise"`` there is one for each path.
        """
        entries = [entry for entries in self._table.values() for entry in entries]
        found = [s for entry in entries for s in entry.specializations]
        return list({id(s.family or s): s for s in reversed(found)}.values())[::-1]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        state = modes.state
        if state.trace is not None:
            return self.function(*args, **kwargs)
        last = self._last
        if last is not None and not kwargs:
            arrays = last.accept(args, state)
            if arrays is not None:
                found: R = last.call(args, arrays)
                return found
        result: R = self._call(args, kwargs)
        return result

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        leaves, structure = tree.flatten((args, kwargs))
        if any(isinstance(leaf, Tensor) and leaf.device is META for leaf in leaves):
            return self.function(*args, **kwargs)
        if modes.state.anomaly:  # before the signature counts for the budget
            raise anomaly_error()
        found = self._specialize(args, kwargs, leaves, structure)
        self._last = found
        arrays = [to_array(leaf, None) for leaf in leaves if is_array(leaf)]
        return found.call_any(leaves, arrays)

    def _specialize(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        leaves: list[Any],
        structure: tree.TreeDef,
    ) -> Specialization | Branched:
        """Return the specialisation for these arguments; make it if there is none."""
        key = self._key(args, kwargs, leaves, structure)
        found = self._find(key, leaves)
        if found is not None:
            return found
        with _tracing:
            found = self._find(key, leaves)  # another thread may have made it meanwhile
            if found is None:
                self._check_budget(key, args, kwargs)
                found = self._make(key, args, kwargs, leaves, structure)
                if not found.is_valid():
                    raise changed_error(function_name(self.function))
                self._table.setdefault(key, []).append(found)
            return found

    def _make(
        self,
        key: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        leaves: list[Any],
        structure: tree.TreeDef,
    ) -> Specialization | Branched:
        """Trace and compile the function for these arguments."""
        start = time.perf_counter()
        is_flat = not kwargs and len(leaves) == len(args)
        found: Specialization | None = None
        if self._varying is not None:
            found = self._find_varying(key, args, kwargs, leaves, self._varying)
            self._varying.drop_oldest(self._table)
        if self.branches is not None:
            return self._make_branched(leaves, structure, is_flat)
        if found is None:
            found = Specialization(self._trace(args, kwargs), leaves, is_flat, self._build)
        found.seconds = time.perf_counter() - start
        return found

    def _make_branched(
        self, leaves: Sequence[Any], structure: tree.TreeDef, is_flat: bool
    ) -> Branched:
        """Trace and compile the path that a call with these arguments takes."""
        return Branched(
            function_name(self.function),
            leaves,
            structure,
            is_flat,
            lambda given, answers: self._trace(given[0], given[1], (), answers),
            self._build,
            self._call_again,
            self.path_budget,
        )

    def _call_again(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], branched: Branched, missing: Any
    ) -> Any:
        """Have a path traced that is missing, and call the function."""
        with _tracing:
            branched.extend(tree.flatten((args, kwargs))[0], missing)
        return self._call(args, kwargs)

    def _check_branches(self) -> None:
        """Raise unless the options for branches make sense."""
        if self.branches not in (None, "specialise"):
            raise ArgumentError(
                f"compile: branches is {self.branches!r}; it is None, so that Python's branches on "
                "values are errors, or 'specialise', to compile each path that is taken"
            )
        if self.path_budget < 1:
            raise ArgumentError(
                f"compile: the path budget must be at least 1, got {self.path_budget}"
            )
        if self.branches is not None and self.memory_budget is not None:
            raise ArgumentError(
                "compile: memory_budget plans for one program, and with branches='specialise' each "
                "path has several; choose by hand what is computed again, with ndl.checkpoint"
            )

    def _check_names(self) -> None:
        """Raise if an axis is declared of an argument that the function does not have."""
        parameters = parameters_of(self.function)
        if not parameters or any(p.kind is p.VAR_KEYWORD for p in parameters):
            return
        known = [p.name for p in parameters]
        for name in self.dims:
            if name.partition("[")[0] not in known:
                raise ArgumentError(
                    f"compile: dims declares axes of {name!r}, but "
                    f"{function_name(self.function)} takes {', '.join(known)}"
                )

    def _make_varying(self) -> Varying:
        refusal = ""
        if self.branches is not None:
            refusal = "branches='specialise' follows what Python asks for single values"
        elif self.check:
            refusal = "check=True compares single ops"
        elif self.memory_budget is not None:
            refusal = "memory_budget plans for one extent"
        elif not generates_code(self.backend):
            refusal = "the backend generates no code"
        return Varying(self.dims, refusal)

    def _find_varying(
        self,
        key: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        leaves: list[Any],
        varying: Varying,
    ) -> Specialization | None:
        """Return a specialisation that shares its program with other extents of a `Dim`."""
        names, shapes, rest = self._shapes(key, args, kwargs)
        is_flat = not kwargs and len(leaves) == len(args)
        named = list(zip(names, shapes, strict=True))
        return varying.find(
            key, named, rest, leaves, is_flat, lambda varied: self._trace(args, kwargs, varied)
        )

    def _shapes(
        self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[list[str], list[Shape | None], Any]:
        """Return name and shape of each leaf, and what else makes the signature."""
        shapes = [part[1] if part[0] is TENSOR else None for part in key[1]]
        rest = tuple([part[2:] if part[0] is TENSOR else part for part in key[1]])
        return argument_names(self.function, args, kwargs), shapes, (key[0], rest, key[2:])

    def _trace(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shapes: Sequence[Shape | None] = (),
        guide: Answers | None = None,
    ) -> Traced:
        if guide is None and self.branches is not None:
            guide = Answers(function_name(self.function), {})
        traced = trace_call(
            self.function,
            args,
            kwargs,
            keep_grads=self.keep_grads,
            differentiable=True,
            shapes=shapes,
            guide=guide,
        )
        if self.memory_budget is None:
            return traced
        from needle.compiled.memory_budget import fit

        return fit(traced, self.memory_budget)

    def _build(self, graph: Graph, fixed: tuple[int, ...] = ()) -> Executable:
        if self.check:
            return Checked(graph, lambda g: build(g, self.backend, self.tuning))
        return build(graph, self.backend, self.tuning, fixed)

    def _find(self, key: Any, leaves: Sequence[Any]) -> Specialization | Branched | None:
        for candidate in reversed(self._table.get(key, ())):
            if candidate.is_valid() and candidate._fits_grads(leaves):
                return candidate
        return None

    def _key(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        leaves: list[Any],
        structure: tree.TreeDef,
    ) -> Any:
        parts = tuple([leaf_key(leaf) for leaf in leaves])
        if not is_hashable(parts):
            names = argument_names(self.function, args, kwargs)
            raise unhashable_error(function_name(self.function), names, leaves)
        state = modes.state
        return structure, parts, state.grad, state.inference, state.autocast

    def _check_budget(self, key: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        signature: Any = (key, len(self._table.get(key, ())))
        if self.dims:
            names, shapes, rest = self._shapes(key, args, kwargs)
            general = generalise(list(zip(names, shapes, strict=True)), self.dims)
            signature = (general, rest, signature[1])
        if signature in self._signatures:
            return
        made = self._signatures
        if len(made) < self.budget:
            made.add(signature)
            return
        name = function_name(self.function)
        changed = {w.what for s in self.specializations for w in s.changed()}
        names = argument_names(self.function, args, kwargs)
        what, way_out = what_changes([*self._table, key], names, changed)
        raise TraceError(
            f"{name} has been compiled for {len(made)} signatures, which is its budget, and now "
            f"comes another one: {what}. {way_out}, or allow more with compile(..., "
            f"budget={2 * self.budget}); {name}.specializations lists them"
        )

    # Looking inside

    def trace(self, *args: P.args, **kwargs: P.kwargs) -> Traced:
        """Return what the function is traced to for these arguments, without running it."""
        with _tracing:
            return self._trace(args, kwargs)

    def graph(self, *args: P.args, **kwargs: P.kwargs) -> Graph:
        """Return the graph of the function for these arguments, without running it.

        Example:
            >>> double = ndl.compile(lambda x: x * 2)
            >>> len(double.graph(ndl.ones(3)).nodes)
            1
        """
        return self.trace(*args, **kwargs).graph

    def explain(self, *args: P.args, **kwargs: P.kwargs) -> Explanation:
        """Return what the compiler makes of the function for these arguments, without running it.

        It is traced and compiled anew, which tells the times; nothing is kept.

        Example:
            >>> scale = ndl.compile(lambda x: ndl.exp(x) * 2)
            >>> report = scale.explain(ndl.ones(1000))
            >>> len(report.groups), report.groups[0].ops, report.bytes_moved
            (1, ('exp', 'multiply'), 8000)
        """
        found, extents = self._preview(args, kwargs)
        if self.branches is not None:
            from needle.compiled.branches.report import explain_path, guards_with

            known, path = self._preview_path(args, kwargs)
            return explain_path(path, guards_with(known, path), extents, self.tuning)
        from needle.compiled.explain import explain

        start = time.perf_counter()
        traced = self.trace(*args, **kwargs)
        seconds = time.perf_counter() - start
        tuning = None if found is not None else self.tuning
        if found is not None and self.tuning is not None:
            extents += "; its tiles are the model's, since only known extents can be measured"
        fixed = fixed_inputs(traced)
        return explain(traced.graph, traced.arguments, seconds, extents, tuning, fixed)

    def guards(self) -> str:
        """Return the paths of a function that is compiled with ``branches="specialise"``, as text.

        For each signature a tree: the user's line and what it asks, where each answer leads, and
        how often.

        Example:
            >>> @ndl.compile(branches="specialise")
            ... def shrink(x):
            ...     return x / 2 if (x * x).sum() > 1 else x
            >>> for x in ([3.0, 4.0], [0.5, 0.5], [6.0, 8.0]):
            ...     _ = shrink(ndl.asarray(x))
            >>> print(shrink.guards())
            shrink(x: float32[2]): 2 paths of at most 16
            ...  # greater(sum(multiply(x, x)), 1.0)
            ├─ True (2 calls): path 1
            └─ False (1 call): path 2
        """
        from needle.compiled.branches.report import guards_text

        entries = [entry for entries in self._table.values() for entry in entries]
        return "\n".join(guards_text(e) for e in entries if isinstance(e, Branched))

    def _preview_path(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Branched | None, Branched]:
        """Return what serves the arguments, if there is anything, and the path that they take."""
        leaves, structure = tree.flatten((args, kwargs))
        with _tracing:
            known = self._find(self._key(args, kwargs, leaves, structure), leaves)
            path = self._make_branched(leaves, structure, not kwargs)
        return known if isinstance(known, Branched) else None, path

    def _preview(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Specialization | None, str]:
        """Return what serves the arguments if their extent may vary, and how, in words."""
        if self._varying is None:
            return None, ""
        leaves, structure = tree.flatten((args, kwargs))
        key = self._key(args, kwargs, leaves, structure)
        varying = self._make_varying()
        with _tracing:
            found = self._find_varying(key, args, kwargs, leaves, varying)
        return found, varying.describe()

    def memory_plan(self, *args: P.args, **kwargs: P.kwargs) -> Memory:
        """Return how much memory a call with these arguments takes, without running it.

        Example:
            >>> scale = ndl.compile(lambda x: ndl.exp(x) * 2)
            >>> scale.memory_plan(ndl.ones(1000)).peak_bytes
            8000
        """
        from needle.compiled.memory_plan import memory_at, plan_memory

        found, extents = self._preview(args, kwargs)
        if self.branches is not None:
            from needle.compiled.branches.report import memory_of_path

            return memory_of_path(self._preview_path(args, kwargs)[1], extents, self.tuning)
        if found is None:
            traced = self.trace(*args, **kwargs)
            fixed = fixed_inputs(traced)
            memory = plan_memory(traced.graph, traced.arguments, self.tuning, fixed)
            return replace(memory, extents=extents)
        executable: Any = found.executable
        memory = memory_at(executable.program, executable.rows, found.traced.arguments)
        return replace(memory, extents=extents)

    def max_batch(self, budget_bytes: int, *args: Any, axis: int = 0, **kwargs: Any) -> int:
        """Return for how large a batch the planned memory of a call fits a budget.

        The function is traced and planned for some sizes; nothing runs, and arguments of these
        sizes are never made. Memory is taken to grow with the batch.

        Args:
            budget_bytes: the most that arguments, state, results and values in between may take.
            args: arguments for a batch of any size. Those whose extent along ``axis`` is that of
                the first tensor's are resized together; all others stay as they are.
            axis: of the batch.
            kwargs: keyword arguments.

        Raises:
            ArgumentError: not even a batch of 1 fits, or no argument has such an axis.

        Example:
            >>> scale = ndl.compile(lambda x: ndl.exp(x) * 2)
            >>> scale.max_batch(80_000, ndl.ones((5, 100)))
            100
        """
        from needle.compiled.memory_plan import max_batch

        return max_batch(self.memory_plan, budget_bytes, args, kwargs, axis)

    def __repr__(self) -> str:
        name = function_name(self.function)
        return f"<compiled {name}: {len(self.specializations)} specializations>"


@overload
def compile(function: Callable[P, R], /) -> Compiled[P, R]: ...


@overload
def compile(
    function: None = None,
    /,
    *,
    check: bool = ...,
    budget: int = ...,
    keep_grads: bool = ...,
    backend: str | None = ...,
    dims: Dims | None = ...,
    memory_budget: int | None = ...,
    branches: str | None = ...,
    path_budget: int = ...,
    tune: bool | float = ...,
) -> Callable[[Callable[P, R]], Compiled[P, R]]: ...


@overload
def compile(
    function: Callable[P, R],
    /,
    *,
    check: bool = ...,
    budget: int = ...,
    keep_grads: bool = ...,
    backend: str | None = ...,
    dims: Dims | None = ...,
    memory_budget: int | None = ...,
    branches: str | None = ...,
    path_budget: int = ...,
    tune: bool | float = ...,
) -> Compiled[P, R]: ...


def compile(function: Any = None, /, **options: Any) -> Any:
    """Compile a function over tensors, up to a whole training step; also as a decorator.

    The function is traced when it is first called with arguments of some signature: it runs once,
    on tensors without values, and what it does to tensors is written down. From then on a call runs
    the compiled program, and the Python of the function does not run again. Tensors that the
    function takes from outside (parameters, buffers, optimizer state, learning rate, random state)
    are read at each call and updated in place.

    The signature is the structure of the arguments, shapes and dtypes of tensors and arrays, the
    value of everything else, and the modes (`no_grad`, `train()`). What cannot be compiled is an
    error that names the line and the way out; nothing falls back to eager execution.

    Args:
        function: what to compile; a module is compiled as its call.
        check: whether each call also runs op by op, and the first op whose result differs is an
            error.
        budget: for how many signatures at most it may be compiled.
        keep_grads: whether `grad` of a parameter that the function itself updates is kept. Without,
            its values are not written to memory, and using them is an error.
        dims: axes whose extent varies, by the name of the argument: ``{"x": ndl.Dim("batch")}`` for
            the first axis, or a `Dim` or None for each axis. They do not count for the budget, and
            one program serves all their extents, where that can be.
        memory_budget: bytes that a call may take, as `Compiled.memory_plan` counts them. What the
            backward pass needs is then computed again instead of being kept, as far as necessary,
            what costs least for its memory first; see `checkpoint` to choose by hand.
        branches: ``"specialise"`` lets the function ask for single values in Python, by `if`,
            `while`, `bool`, `int`, or `item` of an integer: each path that calls take is traced
            when it is first met, and guarded by the answers; see docs/CONTROL_FLOW.md. By default
            it is an error to ask.
        path_budget: how many paths there may be for a signature.
        backend: what runs the program; ``"interpret"`` runs it op by op, for comparison.
        tune: whether tiles, blocks and tasks of matrix products and convolutions are searched by
            running them, instead of being chosen by a model: when a program is compiled, for two
            minutes at most, or for so many seconds. What has been found is kept in the compiler's
            cache, for all functions that are compiled so. No bit of a result depends on it. What
            cannot be measured is left to the model (kernels for extents that vary, see ``dims``);
            `Compiled.explain` says what was searched.

    Returns:
        A `Compiled`; its `function` is the one given.

    Raises:
        ArgumentTypeError: it cannot be called, or an option has a value of another kind.
        ArgumentError: options contradict each other, or are out of range.

    Example:
        >>> w = ndl.Tensor([1.0, 2.0])
        >>> optimizer = ndl.optim.SGD([w], lr=0.1)
        >>> @ndl.compile
        ... def step(x):
        ...     optimizer.zero_grad()
        ...     loss = (w * x).sum()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> step(ndl.ones(2)), step(ndl.ones(2))
        (Tensor(3.), Tensor(2.8))
        >>> w
        Tensor([0.8, 1.8], requires_grad=True)
        >>> @ndl.compile(tune=5.0)
        ... def layer(x, w):
        ...     return ndl.relu(x @ w)
        >>> layer(ndl.ones((8, 32)), ndl.ones((32, 16))).shape
        (8, 16)
        >>> print(layer.explain(ndl.ones((8, 32)), ndl.ones((32, 16))).tuning)
        1 of 1 kinds of products and convolutions searched...
    """
    if function is None:
        return lambda f: Compiled(f, **options)
    return Compiled(function, **options)
