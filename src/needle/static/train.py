"""Optimizers that are declared: `minimize` is an operation that a session runs for each step.

The arithmetic is that of `needle.optim`, whose optimizers hold the state, one for each session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from needle import optim
from needle.config import no_grad
from needle.errors import ArgumentError
from needle.static.gradients import gradients
from needle.static.graph import Operation
from needle.static.symbol import Symbol, Variable
from needle.tensor import Tensor

if TYPE_CHECKING:
    from needle.static.session import Session


class Optimizer:
    """Declares steps that make a loss small.

    Args:
        make: from parameters and a learning rate to an optimizer of `needle.optim`.
        learning_rate: a number, or a symbol, which is read in each step.
        name: what to call its operations.
    """

    def __init__(self, make: Callable[..., optim.Optimizer], learning_rate: Any, name: str) -> None:
        self.make = make
        self.learning_rate = learning_rate
        self.name = name

    def minimize(
        self,
        loss: Symbol,
        global_step: Variable | None = None,
        var_list: Sequence[Variable] | None = None,
    ) -> Operation:
        """Declare a step along the gradients of ``loss``.

        Args:
            loss: what is to become small.
            global_step: a variable that counts the steps.
            var_list: which variables are changed; the graph's trainable ones if not given.

        Raises:
            ArgumentError: the loss depends on none of the variables.
        """
        return self.apply_gradients(self.compute_gradients(loss, var_list), global_step)

    def compute_gradients(
        self, loss: Symbol, var_list: Sequence[Variable] | None = None
    ) -> list[tuple[Symbol | None, Variable]]:
        """Declare the gradients of ``loss``; return pairs of a gradient and its variable."""
        chosen = trainable_variables(loss) if var_list is None else list(var_list)
        found = gradients(loss, chosen, name=f"{self.name}/gradients")
        if not any(g is not None for g in found):
            raise ArgumentError(f"minimize: {loss} depends on none of the variables {chosen}")
        return list(zip(found, chosen, strict=True))

    def apply_gradients(
        self,
        grads_and_vars: Sequence[tuple[Symbol | None, Variable]],
        global_step: Variable | None = None,
    ) -> Operation:
        """Declare a step along gradients; those that are None leave their variable alone."""
        pairs = [(g, v) for g, v in grads_and_vars if g is not None]
        if not pairs:
            raise ArgumentError("apply_gradients: there is no gradient for any variable")
        rate = self.learning_rate if isinstance(self.learning_rate, Symbol) else None
        function = _Step(self, [v for _, v in pairs])
        operation = Operation(
            pairs[0][1].graph,
            self.name,
            function,
            [[g for g, _ in pairs], rate],
            needs_evaluation=True,
        )
        if global_step is None:
            return operation
        with operation.graph.control_dependencies([operation]):
            return global_step.assign_add(1).operation


class _Step:
    """Updates variables by their gradients."""

    def __init__(self, optimizer: Optimizer, variables: Sequence[Variable]) -> None:
        self.optimizer, self.variables = optimizer, list(variables)

    def prepare(self, session: Session) -> None:
        """Make the optimizer that holds the state in a session."""
        if self not in session.objects:
            rate = self.optimizer.learning_rate
            start = 1.0 if isinstance(rate, Symbol) else rate
            params = [session.values[v] for v in self.variables]
            session.objects[self] = self.optimizer.make(params, lr=start)

    def __call__(self, evaluation: Any, grads: Sequence[Tensor], rate: Tensor | None) -> None:
        optimizer = evaluation.objects[self]
        if rate is not None:
            with no_grad():
                for group in optimizer.param_groups:
                    group["lr"].copy_(rate.astype(group["lr"].dtype))
        params = [evaluation.values[v] for v in self.variables]
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.detach()
        optimizer.step()
        for param in params:
            param.grad = None


def trainable_variables(item: Any = None) -> list[Variable]:
    """Return the variables that optimizers change: of a symbol's graph, or of the default one."""
    from needle.static.graph import get_default_graph

    graph = get_default_graph() if item is None else item.graph
    return [v for v in graph.variables if v.trainable]


class GradientDescentOptimizer(Optimizer):
    """``v ← v − learning_rate · gradient``.

    Example:
        >>> import needle.static as tf
        >>> with tf.Graph().as_default():
        ...     w = tf.Variable(4.0)
        ...     step = tf.train.GradientDescentOptimizer(0.25).minimize(w ** 2)
        ...     session = tf.Session()
        ...     session.run(tf.global_variables_initializer())
        ...     [session.run([step, w])[1] for _ in range(2)]
        [np.float32(2.0), np.float32(1.0)]
    """

    def __init__(self, learning_rate: Any, name: str = "GradientDescent") -> None:
        super().__init__(optim.SGD, learning_rate, name)


class MomentumOptimizer(Optimizer):
    """``u ← momentum · u + gradient; v ← v − learning_rate · u``, or with Nesterov's form of it."""

    def __init__(
        self,
        learning_rate: Any,
        momentum: float,
        use_nesterov: bool = False,
        name: str = "Momentum",
    ) -> None:
        def make(params: Sequence[Tensor], lr: float) -> optim.Optimizer:
            return optim.SGD(params, lr=lr, momentum=momentum, dampening=0.0, nesterov=use_nesterov)

        super().__init__(make, learning_rate, name)


class AdamOptimizer(Optimizer):
    """Adam with bias correction; ``epsilon`` is added to the root of the second moment."""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        name: str = "Adam",
    ) -> None:
        def make(params: Sequence[Tensor], lr: float) -> optim.Optimizer:
            return optim.Adam(params, lr=lr, betas=(beta1, beta2), eps=epsilon)

        super().__init__(make, learning_rate, name)


class AdagradOptimizer(Optimizer):
    """Adagrad, whose sum of squares begins with ``initial_accumulator_value``."""

    def __init__(
        self, learning_rate: Any, initial_accumulator_value: float = 0.1, name: str = "Adagrad"
    ) -> None:
        def make(params: Sequence[Tensor], lr: float) -> optim.Optimizer:
            return optim.Adagrad(params, lr=lr, initial_accumulator_value=initial_accumulator_value)

        super().__init__(make, learning_rate, name)


class RMSPropOptimizer(Optimizer):
    """RMSprop with a mean of squares that decays by ``decay``."""

    def __init__(
        self,
        learning_rate: Any,
        decay: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-10,
        name: str = "RMSProp",
    ) -> None:
        def make(params: Sequence[Tensor], lr: float) -> optim.Optimizer:
            return optim.RMSprop(params, lr=lr, alpha=decay, momentum=momentum, eps=epsilon)

        super().__init__(make, learning_rate, name)


def __getattr__(name: str) -> Any:
    if name == "Saver":
        from needle.static.saver import Saver

        return Saver
    raise AttributeError(f"module 'needle.static.train' has no attribute {name!r}")
