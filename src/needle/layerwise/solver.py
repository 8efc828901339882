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
from needle.layerwise.net import Net
from needle.ops.samples import Array


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
        self.history = [
            [np.zeros_like(blob.data) for _ in range(self.history_count)] for blob in self.params
        ]

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        c = self.config
        return float(c.base_lr * POLICIES[c.lr_policy](c, self.iter))

    def update(self, data: Array, diff: Array, rate: float, history: Sequence[Array]) -> None:
        """Change a parameter in place.

        Args:
            data: its values.
            diff: its gradient, with the regularisation.
            rate: the learning rate, times the parameter's factor.
            history: its state, changed in place.
        """
        raise NotImplementedError  # abstract

    def step(self, count: int) -> None:
        """Take some steps."""
        c = self.config
        for _ in range(count):
            self.net.clear_param_diffs()
            if self.test_nets and c.test_interval and self.iter % c.test_interval == 0:
                self.test()
            total = 0.0
            for _ in range(c.iter_size):
                self.net.forward()
                self.net.backward()
                total += self.net.loss
            self.losses.append(total / c.iter_size)
            self.apply_update()
            self.iter += 1
            if c.snapshot and self.iter % c.snapshot == 0:
                self.snapshot()

    def solve(self) -> None:
        """Step until ``max_iter``, and make a snapshot if a prefix says where."""
        self.step(max(self.config.max_iter - self.iter, 0))
        c = self.config
        if c.snapshot_prefix and not (c.snapshot and self.iter % c.snapshot == 0):
            self.snapshot()

    def apply_update(self) -> None:
        """Change all parameters by their gradients."""
        c = self.config
        trained = [(b, h) for b, h in zip(self.params, self.history, strict=True) if b.lr_mult]
        if c.clip_gradients >= 0:
            norm = math.sqrt(sum(float((b.diff.astype(np.float64) ** 2).sum()) for b, _ in trained))
            if norm > c.clip_gradients:
                for blob, _ in trained:
                    blob.diff[...] *= c.clip_gradients / norm
        rate = self.learning_rate
        for blob, history in trained:
            diff = blob.diff
            if c.iter_size > 1:
                diff /= c.iter_size
            decay = c.weight_decay * blob.decay_mult
            if decay:
                diff += decay * (blob.data if c.regularization_type == "L2" else np.sign(blob.data))
            self.update(blob.data, diff, rate * blob.lr_mult, history)

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


class SGDSolver(Solver):
    """``h ← momentum · h + rate · g; w ← w − h``."""

    def update(self, data: Array, diff: Array, rate: float, history: Sequence[Array]) -> None:
        (h,) = history
        h *= np.float32(self.config.momentum)
        h += np.float32(rate) * diff
        data -= h


class NesterovSolver(Solver):
    """``h' ← momentum · h + rate · g; w ← w − (1 + momentum) · h' + momentum · h``."""

    def update(self, data: Array, diff: Array, rate: float, history: Sequence[Array]) -> None:
        (h,), momentum = history, np.float32(self.config.momentum)
        before = h.copy()
        h *= momentum
        h += np.float32(rate) * diff
        data -= (1 + momentum) * h - momentum * before


class AdaGradSolver(Solver):
    """``h ← h + g²; w ← w − rate · g / (√h + delta)``."""

    def update(self, data: Array, diff: Array, rate: float, history: Sequence[Array]) -> None:
        (h,) = history
        h += diff * diff
        data -= np.float32(rate) * diff / (np.sqrt(h) + np.float32(self.config.delta))


class RMSPropSolver(Solver):
    """``h ← rms_decay · h + (1 − rms_decay) · g²; w ← w − rate · g / (√h + delta)``."""

    def update(self, data: Array, diff: Array, rate: float, history: Sequence[Array]) -> None:
        (h,), decay = history, np.float32(self.config.rms_decay)
        h *= decay
        h += (1 - decay) * diff * diff
        data -= np.float32(rate) * diff / (np.sqrt(h) + np.float32(self.config.delta))


class AdamSolver(Solver):
    """Adam; ``delta`` is added to the root of the second moment before its correction.

    Source: D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", 2015.
    """

    history_count = 2

    def update(self, data: Array, diff: Array, rate: float, history: Sequence[Array]) -> None:
        m, v = history
        c, t = self.config, self.iter + 1
        first, second = np.float32(c.momentum), np.float32(c.momentum2)
        m *= first
        m += (1 - first) * diff
        v *= second
        v += (1 - second) * diff * diff
        correction = math.sqrt(1 - c.momentum2**t) / (1 - c.momentum**t)
        data -= np.float32(rate * correction) * m / (np.sqrt(v) + np.float32(c.delta))
