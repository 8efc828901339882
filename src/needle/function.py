"""Function: a user's own forward and backward pair. checkpoint: recompute instead of keeping
values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from needle import tree
from needle.config import enable_grad, modes, no_grad
from needle.dtypes import FLOAT_SET
from needle.errors import ArgumentTypeError, GradientError, ShapeError
from needle.gradnode import GradNode, SavedValue, connect, edge_of
from needle.ops.samples import Array
from needle.tensor import Tensor, wrap


class Context:
    """What a `Function` keeps between its forward and backward pass.

    Attributes:
        needs_input_grad: for each argument of `Function.apply`, whether its gradient is wanted.
    """

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self._to_save: tuple[Tensor, ...] = ()
        self._node: FunctionNode | None = None

    def save_for_backward(self, *tensors: Tensor) -> None:
        """Keep tensors, with version checks; other attributes may be set freely on the context."""
        for t in tensors:
            if not isinstance(t, Tensor):
                raise ArgumentTypeError(
                    f"save_for_backward takes tensors, got {type(t).__name__}; "
                    "set other things as attributes of the context"
                )
        self._to_save = tensors

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """The tensors given to `save_for_backward`.

        Raises:
            GradientError: one was overwritten since, or the graph was freed.
        """
        if self._node is None:
            return self._to_save
        return self._node.saved_tensors()


class Function:
    """A differentiable function with its own backward pass.

    Subclass it with two static methods and call ``MyFunction.apply(...)``:

    - ``forward(ctx, *args)`` computes the results; nothing in it is recorded.
    - ``backward(ctx, *cotangents)`` returns one cotangent (or None) for each argument of
    ``forward``. It
      is written with ops, so that it can be differentiated again and compiled.

    Example:
        >>> class Cube(ndl.Function):
        ...     @staticmethod
        ...     def forward(ctx, x):
        ...         ctx.save_for_backward(x)
        ...         return x * x * x
        ...
        ...     @staticmethod
        ...     def backward(ctx, g):
        ...         (x,) = ctx.saved_tensors
        ...         return g * 3 * x * x
        >>> x = ndl.Tensor(2.0)
        >>> Cube.apply(x).backward()
        >>> x.grad
        Tensor(12.)
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> Any:
        """Compute the result, a tensor or a tuple of tensors. A subclass defines it."""
        raise GradientError("a Function needs a static method forward(ctx, *args)")

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Return the cotangent of each argument. A subclass defines it."""
        raise GradientError("a Function needs a static method backward(ctx, *cotangents)")

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run `forward`, and record `backward` if a gradient is wanted."""
        needed = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        ctx = Context(needed)
        with no_grad():
            outcome = cls.forward(ctx, *args)
        several = isinstance(outcome, tuple)
        results: tuple[Any, ...] = outcome if several else (outcome,)
        for r in results:
            if not isinstance(r, Tensor):
                raise ArgumentTypeError(
                    f"{cls.__name__}.forward must return tensors, got {type(r).__name__}"
                )
        if not (modes.state.grad and any(needed)):
            return outcome
        # An argument returned as it is must not become its own ancestor.
        results = tuple(r.detach() if any(r is a for a in args) else r for r in results)
        node = FunctionNode(cls, ctx, args, results)
        for index, result in enumerate(results):
            if result.dtype in FLOAT_SET:
                connect(result, node, index)
        return results if several else results[0]


class FunctionNode(GradNode):
    """The node of a `Function`: cotangents come from its `backward`."""

    __slots__ = ("context", "function", "needed", "places", "results", "saved", "shapes")

    def __init__(
        self,
        function: type[Function],
        context: Context,
        args: tuple[Any, ...],
        results: tuple[Tensor, ...],
    ) -> None:
        name = function.__name__
        edges = tuple(edge_of(a, name) if isinstance(a, Tensor) else None for a in args)
        super().__init__(name, edges, len(results))
        self.function = function
        self.context: Context | None = context
        self.shapes = [a.shape if isinstance(a, Tensor) else None for a in args]
        self.results = [(r.shape, r.dtype) for r in results]
        saved = context._to_save
        self.saved = [SavedValue(t, name) for t in saved]
        # Which argument or result each saved tensor is, to connect it again for higher derivatives.
        self.places: list[tuple[str, int] | None] = [_place(t, args, results) for t in saved]
        context._to_save = ()
        context._node = self

    def saved_tensors(self) -> tuple[Tensor, ...]:
        """Return the saved tensors, with their history where gradients are recorded."""
        if self.context is None:
            raise GradientError(
                f"{self.name}: the graph was freed by an earlier backward pass; "
                "pass retain_graph=True to the earlier one"
            )
        tensors = []
        for saved, place in zip(self.saved, self.places, strict=True):
            tensor = wrap(saved.restore(self.name))
            tensor._version = saved.version
            if modes.state.grad and place is not None:
                kind, index = place
                edge = self.edges[index] if kind == "argument" else (self, index)
                if isinstance(edge, Tensor):
                    tensor = edge
                elif edge is not None:
                    connect(tensor, *edge)
            tensors.append(tensor)
        return tuple(tensors)

    def vjp(
        self, cotangents: list[Tensor | None], needed: Sequence[Any], create_graph: bool
    ) -> list[Tensor | None]:
        if self.context is None:
            self.saved_tensors()
        full = [
            wrap(np.zeros(shape, dtype)) if c is None else c
            for c, (shape, dtype) in zip(cotangents, self.results, strict=True)
        ]
        outcome = self.function.backward(self.context, *full)
        returned = list(outcome) if isinstance(outcome, tuple) else [outcome]
        if len(returned) != len(self.shapes):
            raise GradientError(
                f"{self.name}.backward returned {len(returned)} cotangents, but forward took "
                f"{len(self.shapes)} arguments; return one for each (None where there is none)"
            )
        for i, (c, shape) in enumerate(zip(returned, self.shapes, strict=True)):
            if c is not None and shape is not None and c.shape != shape:
                raise ShapeError(
                    f"{self.name}.backward returned a cotangent of shape {list(c.shape)} for "
                    f"argument {i} of shape {list(shape)}"
                )
        return returned

    def free(self) -> None:
        super().free()
        if self.context is not None:
            self.context._node = None
        self.context = None
        self.saved = []


def _place(
    tensor: Tensor, args: tuple[Any, ...], results: tuple[Tensor, ...]
) -> tuple[str, int] | None:
    for kind, candidates in (("argument", args), ("result", results)):
        for index, candidate in enumerate(candidates):
            if candidate is tensor:
                return kind, index
    return None


# Rematerialisation


class _Recorder:
    """Saved-value hook of the recomputation: collects the values in the order they are kept."""

    recomputes = True

    def __init__(self) -> None:
        self.values: list[Any] = []

    def pack(self, data: Array, is_leaf: bool) -> Callable[[], Array] | None:
        if not is_leaf:
            self.values.append(data)
        return None


class _Frame:
    """Saved-value hook of a checkpointed call: forgets the values, and recomputes them all when one
    is needed."""

    recomputes = False

    def __init__(self, function: Callable[..., Any], leaves: list[Any], structure: Any) -> None:
        self.function = function
        self.structure = structure
        # The arguments are kept, without their history: the recomputed graph is thrown away.
        self.leaves = [_frozen(leaf) for leaf in leaves]
        #: The function runs again as it ran first, though backward passes leave autocast.
        self.autocast = modes.state.autocast
        self.count = 0
        self.values: list[Any] | None = None
        self.taken = 0

    def pack(self, data: Array, is_leaf: bool) -> Callable[[], Array] | None:
        if is_leaf:
            return None
        index = self.count
        self.count += 1
        return lambda: self.value(index)

    def value(self, index: int) -> Any:
        """Return the value that was kept as number ``index``."""
        if self.values is None:
            self.values = self.recompute()
            self.taken = 0
        self.taken += 1
        value = self.values[index]
        if self.taken >= self.count:
            # All were handed out; another backward pass (retain_graph) recomputes them.
            self.values = None
        return value

    def recompute(self) -> list[Any]:
        """Run the function again and return what its ops keep."""
        from needle.random import default_generator

        args, kwargs = tree.unflatten(self.structure, [_thawed(leaf) for leaf in self.leaves])
        recorder = _Recorder()
        generator = default_generator()
        now = generator.state.clone()
        generator.set_state(self.random_state)
        state = modes.state
        previous, autocast = state.saved_value_hook, state.autocast
        state.saved_value_hook, state.autocast = recorder, self.autocast
        try:
            with enable_grad():
                self.function(*args, **kwargs)
        finally:
            state.saved_value_hook, state.autocast = previous, autocast
            generator.set_state(now)
        if len(recorder.values) != self.count:
            raise GradientError(
                f"checkpoint: the recomputation keeps {len(recorder.values)} values, the first "
                "run kept "
                f"{self.count}; the function must do the same each time (no state that changes)"
            )
        return recorder.values

    random_state: Any = None


def _frozen(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor) or (leaf.is_leaf and leaf.requires_grad):
        return leaf
    return SavedValue(leaf, "checkpoint"), leaf.requires_grad


def _thawed(leaf: Any) -> Any:
    if not (isinstance(leaf, tuple) and len(leaf) == 2 and isinstance(leaf[0], SavedValue)):
        return leaf
    saved, requires_grad = leaf
    tensor = wrap(saved.restore("checkpoint"))
    if requires_grad:
        # Stands in for a computed tensor: it must be kept like one, not like a leaf.
        connect(tensor, GradNode("checkpoint", (), 1), 0)
    return tensor


def checkpoint(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call ``function`` without keeping its intermediate values; recompute them in the backward
    pass.

    Trades time for memory: one more forward pass of ``function`` for the memory of everything
    inside it. Random numbers from the default generator are the same in both runs. The values and
    gradients are those of the plain call, to any order.

    Source: T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016.

    Args:
        function: what to call; it must do the same each time.
        args: its arguments: tensors, nested lists and dicts of them, or anything else.
        kwargs: its keyword arguments.

    Raises:
        GradientError: the recomputation differs from the first run.

    Example:
        >>> x = ndl.Tensor(2.0)
        >>> ndl.checkpoint(lambda t: (t * t).exp(), x).backward()
        >>> round(x.grad.item(), 3)
        218.393
    """
    if not modes.state.grad:
        return function(*args, **kwargs)
    from needle.random import default_generator

    leaves, structure = tree.flatten((args, kwargs))
    frame = _Frame(function, leaves, structure)
    frame.random_state = default_generator().state.clone()
    previous = modes.state.saved_value_hook
    modes.state.saved_value_hook = frame
    try:
        return function(*args, **kwargs)
    finally:
        modes.state.saved_value_hook = previous
