"""Solvers: training by Caffe's update rules and learning rate policies, with snapshots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from needle.errors import ArgumentError, CheckpointError
from needle.layerwise.blob import Blob
from needle.layerwise.native_step import NativeStep
from needle.layerwise.net import Net
from needle.ops.samples import Array

#: A tensor or an array: what update rules compute with.
Values = Any
#: The least norm that gradients are divided by.
TINY = float(np.finfo(np.float64).tiny)


@dataclass
class SolverConfig:
    """How a net is trained; the names and defaults are those of Caffe's SolverParameter.

    Attributes:
        base_lr: the learning rate that the policy begins with.
        lr_policy: fixed, step, exp, inv, multistep, poly or sigmoid.
        gamma, power, stepsize, stepvalue: of the policy.
        max_iter: how many steps `Solver.solve` takes.
        momentum: of the gradients; of Adam the decay of the first moment.
        momentum2: of Adam, the decay of the second moment.
        delta: what is added to roots that are divided by.
        rms_decay: of RMSProp.
        weight_decay: factor of the regularisation.
        regularization_type: L2 or L1.
        clip_gradients: the largest norm of all gradients together; below 0 there is none.
        iter_size: over how many batches gradients are added up for a step.
        test_iter: how many batches each test goes over.
        test_interval: steps between tests; 0 does not test.
        snapshot: steps between snapshots; 0 makes none.
        snapshot_prefix: where they go.
    """

    base_lr: float = 0.01
    lr_policy: str = "fixed"
    gamma: float = 0.1
    power: float = 1.0
    stepsize: int = 1
    stepvalue: Sequence[int] = field(default_factory=list)
    max_iter: int = 0
    momentum: float = 0.0
    momentum2: float = 0.999
    delta: float = 1e-8
    rms_decay: float = 0.99
    weight_decay: float = 0.0
    regularization_type: str = "L2"
    clip_gradients: float = -1.0
    iter_size: int = 1
    test_iter: int = 0
    test_interval: int = 0
    snapshot: int = 0
    snapshot_prefix: str = ""

    def __post_init__(self) -> None:
        if self.lr_policy not in POLICIES:
            raise ArgumentError(
                f"there is no lr_policy {self.lr_policy!r}; there are {', '.join(POLICIES)}"
            )
        if self.regularization_type not in ("L1", "L2"):
            raise ArgumentError(
                f"regularization_type must be L1 or L2, got {self.regularization_type!r}"
            )
        if self.iter_size < 1:
            raise ArgumentError(f"iter_size must be at least 1, got {self.iter_size}")


def _steps_done(c: SolverConfig, it: int) -> int:
    return sum(it >= value for value in c.stepvalue)


#: From the configuration and the number of the step to the factor of the learning rate.
POLICIES: dict[str, Any] = {
    "fixed": lambda c, it: 1.0,
    "step": lambda c, it: c.gamma ** (it // max(c.stepsize, 1)),
    "exp": lambda c, it: c.gamma**it,
    "inv": lambda c, it: (1 + c.gamma * it) ** -c.power,
    "multistep": lambda c, it: c.gamma ** _steps_done(c, it),
    "poly": lambda c, it: (1 - it / max(c.max_iter, 1)) ** c.power,
    "sigmoid": lambda c, it: 1 / (1 + math.exp(-c.gamma * (it - c.stepsize))),
}


class Solver:
    """Trains a net; subclasses say how a parameter changes.

    Args:
        config: how; also as keyword arguments.
        net: what is trained.
        test_nets: share its parameters, and are run by `test`.
        options: fields of `SolverConfig`.

    Attributes:
        iter: how many steps have been taken.
        net: what is trained.
        losses: of each step.

    Example:
        >>> import numpy as np
        >>> from needle.layerwise import LayerSpec, Net, SGDSolver
        >>> net = Net([
        ...     LayerSpec("data", "Input", top=["x", "y"], options={"shape": [[4, 2], [4, 1]]}),
        ...     LayerSpec("fc", "InnerProduct", ["x"], ["out"], options={"num_output": 1}),
        ...     LayerSpec("loss", "EuclideanLoss", ["out", "y"], ["loss"]),
        ... ])
        >>> net.blobs["x"].data[...] = [[0, 1], [1, 0], [1, 1], [2, 1]]
        >>> net.blobs["y"].data[...] = [[1], [2], [3], [5]]
        >>> solver = SGDSolver(net=net, base_lr=0.3, momentum=0.5)
        >>> solver.step(100)
        >>> np.round(net.params["fc"][0].data, 2).tolist()
        [[2.0, 1.0]]
    """

    #: How many arrays of state each parameter has.
    history_count = 1

    def __init__(
        self,
        config: SolverConfig | None = None,
        net: Net | None = None,
        test_nets: Sequence[Net] = (),
        **options: Any,
    ) -> None:
        if net is None:
            raise ArgumentError(f"{type(self).__name__}: needs a net")
        if config is not None and options:
            raise ArgumentError(f"{type(self).__name__}: give a config or options, not both")
        self.config = config or SolverConfig(**options)
        self.net = net
        self.test_nets = list(test_nets)
        for other in self.test_nets:
            other.share_with(net)
        self.iter = 0
        self.losses: list[float] = []
        #: The outcome of each test, with the step before which it was made.
        self.tests: list[tuple[int, list[dict[str, float]]]] = []
        self.params = net.learnable()
        self.history = [[b.zeros() for _ in range(self.history_count)] for b in self.params]
        self._native: NativeStep | None = None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        c = self.config
        return float(c.base_lr * POLICIES[c.lr_policy](c, self.iter))

    def correction(self) -> float:
        """Return by how much the rule multiplies the learning rate of this step."""
        return 1.0

    def update(
        self, xp: Any, data: Values, diff: Values, rate: Values, history: Sequence[Values]
    ) -> None:
        """Change a parameter in place.

        The rule is written with operators and functions of ``xp`` only, since it runs on NumPy's
        arrays, or on tensors as a part of a compiled step. What changes between steps is in
        ``rate``.

        Args:
            xp: ``numpy`` or `needle.ops`.
            data: its values.
            diff: its gradient, with the regularisation.
            rate: the learning rate, times `correction` and the parameter's factor.
            history: its state, changed in place.
        """
        raise NotImplementedError  # abstract

    def step(self, count: int) -> None:
        """Take some steps."""
        c = self.config
        for _ in range(count):
            if self.test_nets and c.test_interval and self.iter % c.test_interval == 0:
                self.test()
            native = self._native_step()
            self.losses.append(self._step_by_layers() if native is None else native.run())
            self.iter += 1
            if c.snapshot and self.iter % c.snapshot == 0:
                self.snapshot()

    def _step_by_layers(self) -> float:
        """Take a step layer by layer; return the loss."""
        self.net.clear_param_diffs()
        total = 0.0
        for _ in range(self.config.iter_size):
            self.net.forward()
            self.net.backward()
            total += self.net.loss
        self.apply_update()
        return total / self.config.iter_size

    def _native_step(self) -> NativeStep | None:
        """Return what steps as one native call: if the net is compiled, and the update ours."""
        whole = self.net.whole
        if whole is None or type(self).apply_update is not Solver.apply_update:
            return None
        if self._native is None or self._native.whole is not whole:
            self._native = NativeStep(self, whole)
        return self._native

    def solve(self) -> None:
        """Step until ``max_iter``, and make a snapshot if a prefix says where."""
        self.step(max(self.config.max_iter - self.iter, 0))
        c = self.config
        if c.snapshot_prefix and not (c.snapshot and self.iter % c.snapshot == 0):
            self.snapshot()

    def trained(self) -> list[tuple[Blob, list[Array]]]:
        """Return the parameters that change, with their history."""
        return [(b, h) for b, h in zip(self.params, self.history, strict=True) if b.lr_mult]

    @property
    def corrected_rate(self) -> float:
        """The learning rate of the next step, with the correction of the rule."""
        return self.learning_rate * self.correction()

    def rates(self) -> Array:
        """Return the learning rate of each parameter that changes, for the next step."""
        rate = self.corrected_rate
        return np.array([rate * b.lr_mult for b in self.params if b.lr_mult], np.float32)

    def signature(self) -> Any:
        """Return what a compiled step depends on, besides values: a new one compiles anew."""
        c = self.config
        return (
            [(b.lr_mult, b.decay_mult) for b in self.params],
            *(c.momentum, c.momentum2, c.delta, c.rms_decay, c.iter_size),
            *(c.weight_decay, c.regularization_type, c.clip_gradients),
        )

    def directions(
        self, xp: Any, data: Sequence[Values], diffs: Sequence[Values]
    ) -> Sequence[Values]:
        """Return the gradients that updates take: clipped, averaged, with the regularisation.

        Args:
            xp: ``numpy`` or `needle.ops`.
            data: the values of each parameter that changes.
            diffs: the gradient of each.
        """
        c = self.config
        if c.clip_gradients >= 0 and diffs:
            squares = [xp.sum(diff.astype(np.float64) ** 2) for diff in diffs]
            norm = xp.sqrt(sum(squares[1:], squares[0]))
            factor = c.clip_gradients / xp.maximum(norm, max(c.clip_gradients, TINY))
            diffs = [diff * factor.astype(diff.dtype) for diff in diffs]
        if c.iter_size > 1:
            diffs = [diff / c.iter_size for diff in diffs]
        decays = [c.weight_decay * b.decay_mult for b, _ in self.trained()]
        is_square = c.regularization_type == "L2"
        return [
            diff + decay * (values if is_square else xp.sign(values)) if decay else diff
            for values, diff, decay in zip(data, diffs, decays, strict=True)
        ]

    def apply_update(self) -> None:
        """Change all parameters by their gradients."""
        trained = self.trained()
        if not trained:
            return
        directions = self.directions(np, [b.data for b, _ in trained], [b.diff for b, _ in trained])
        for (blob, history), new, rate in zip(trained, directions, self.rates(), strict=True):
            blob.diff[...] = new
            self.update(np, blob.data, blob.diff, rate, history)

    def test(self) -> list[dict[str, float]]:
        """Return the mean of each output of the test nets, over ``test_iter`` batches."""
        found = []
        for net in self.test_nets:
            total: dict[str, float] = {}
            for _ in range(max(self.config.test_iter, 1)):
                for name, value in net.forward().items():
                    total[name] = total.get(name, 0.0) + float(np.mean(value))
            count = max(self.config.test_iter, 1)
            found.append({name: value / count for name, value in total.items()})
        self.tests.append((self.iter, found))
        return found

    def snapshot(self, path: str | Path | None = None) -> Path:
        """Write parameters and state; return the file.

        Args:
            path: where; by default the prefix with the number of the step.
        """
        file = Path(path or f"{self.config.snapshot_prefix}_iter_{self.iter}.safetensors")
        arrays = {}
        for i, (blob, history) in enumerate(zip(self.params, self.history, strict=True)):
            arrays[f"param.{i}"] = np.array(blob.data, order="C")
            arrays |= {f"history.{i}.{k}": np.array(h, order="C") for k, h in enumerate(history)}
        arrays["iter"] = np.array([self.iter], np.int64)
        temporary = file.with_suffix(".partial")
        save_file(arrays, temporary, {"solver": type(self).__name__, **_texts(self.config)})
        temporary.replace(file)
        return file

    def restore(self, path: str | Path) -> None:
        """Go on from a snapshot: as if nothing had happened in between.

        Raises:
            CheckpointError: the file cannot be read, or is of another net or solver.
        """
        try:
            arrays = load_file(path)
        except Exception as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from None
        places = [(f"param.{i}", b.data) for i, b in enumerate(self.params)]
        places += [
            (f"history.{i}.{k}", h) for i, hs in enumerate(self.history) for k, h in enumerate(hs)
        ]
        if {name for name, _ in places} | {"iter"} != set(arrays):
            raise CheckpointError(f"{path}: is of another net or another solver")
        for name, array in places:
            if arrays[name].shape != array.shape:
                raise CheckpointError(
                    f"{path}: {name} is {list(arrays[name].shape)}, here it is {list(array.shape)}"
                )
        for name, array in places:
            array[...] = arrays[name]
        self.iter = int(arrays["iter"][0])


def _texts(config: SolverConfig) -> Mapping[str, str]:
    return {name: json.dumps(value) for name, value in asdict(config).items()}


def _rest(fraction: float) -> float:
    """Return what is left of 1, in float32, as Caffe computes it."""
    return float(np.float32(1) - np.float32(fraction))


class SGDSolver(Solver):
    """``h ← momentum · h + rate · g; w ← w − h``; without momentum ``h`` stays as it is."""

    def update(
        self, xp: Any, data: Values, diff: Values, rate: Values, history: Sequence[Values]
    ) -> None:
        (h,) = history
        if not self.config.momentum:
            data -= rate * diff
            return
        h *= self.config.momentum
        h += rate * diff
        data -= h


class NesterovSolver(Solver):
    """``h' ← momentum · h + rate · g; w ← w − (1 + momentum) · h' + momentum · h``."""

    def update(
        self, xp: Any, data: Values, diff: Values, rate: Values, history: Sequence[Values]
    ) -> None:
        (h,), momentum = history, self.config.momentum
        new = h * momentum + rate * diff
        data -= (1 + momentum) * new - momentum * h
        h[...] = new


class AdaGradSolver(Solver):
    """``h ← h + g²; w ← w − rate · g / (√h + delta)``."""

    def update(
        self, xp: Any, data: Values, diff: Values, rate: Values, history: Sequence[Values]
    ) -> None:
        (h,) = history
        h += diff * diff
        data -= rate * diff / (xp.sqrt(h) + self.config.delta)


class RMSPropSolver(Solver):
    """``h ← rms_decay · h + (1 − rms_decay) · g²; w ← w − rate · g / (√h + delta)``."""

    def update(
        self, xp: Any, data: Values, diff: Values, rate: Values, history: Sequence[Values]
    ) -> None:
        (h,), decay = history, self.config.rms_decay
        h *= decay
        h += _rest(decay) * diff * diff
        data -= rate * diff / (xp.sqrt(h) + self.config.delta)


class AdamSolver(Solver):
    """Adam; ``delta`` is added to the root of the second moment before its correction.

    Source: D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", 2015.
    """

    history_count = 2

    def correction(self) -> float:
        c, t = self.config, self.iter + 1
        return math.sqrt(1 - c.momentum2**t) / (1 - c.momentum**t)

    def update(
        self, xp: Any, data: Values, diff: Values, rate: Values, history: Sequence[Values]
    ) -> None:
        m, v = history
        c = self.config
        m *= c.momentum
        m += _rest(c.momentum) * diff
        v *= c.momentum2
        v += _rest(c.momentum2) * diff * diff
        data -= rate * m / (xp.sqrt(v) + c.delta)
