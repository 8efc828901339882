"""The base of all optimizers: parameter groups, state, steps, and saving them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from needle.arrays import as_lies
from needle.config import changes, enable_grad, modes, no_grad, untraced
from needle.creation import full, zeros, zeros_like
from needle.dtypes import accumulation_dtype, int64, is_float
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    DTypeError,
    GradientError,
    ShapeError,
)
from needle.inplace import assign
from needle.optim import foreach
from needle.optim.foreach import Options, Row, Values
from needle.optim.param_group import Hyperparameters, ParamGroup
from needle.optim.restore import load
from needle.tensor import Tensor, wrap

#: What the constructors take: parameters, (name, parameter) pairs, or groups with "params".
Params = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[Mapping[str, Any]]


class Optimizer(ABC):
    """Changes parameters, step by step, so as to make a loss small.

    A subclass says which hyper-parameters and state tensors it has, and gives the arithmetic as two
    functions, `coefficients` and `update`; see `needle.optim.foreach`.

    Args:
        params: an iterable of parameters, of (name, parameter) pairs, or of dicts, each with the
            key ``"params"`` and the hyper-parameters that differ from the defaults.
        defaults: the hyper-parameters of groups that do not say otherwise.

    Attributes:
        param_groups: the groups. ``group["lr"]`` is a 0-d tensor; assigning a number writes into
            it.
        state: for each parameter its state tensors, once it has been stepped.

    Raises:
        ArgumentError: no parameters, a parameter twice, or a hyper-parameter out of its range.
        ArgumentTypeError: something that is not a parameter.
        GradientError: a tensor that was computed, and so is no leaf.
    """

    hyperparameters: ClassVar[Hyperparameters]
    #: Whether ``state[p]["step"]`` counts the steps that a parameter has taken.
    counts_steps: ClassVar[bool] = True

    def __init__(self, params: Params, defaults: Mapping[str, Any]) -> None:
        self.defaults = dict(defaults)
        self.param_groups: list[ParamGroup] = []
        self.state: dict[Tensor, dict[str, Tensor]] = {}
        for group in _as_groups(params, type(self).__name__):
            self.add_param_group(group)

    # What a subclass defines

    @abstractmethod
    def state_names(self, options: Options) -> tuple[str, ...]:
        """Return the names of the state tensors, each of the shape of its parameter."""

    def initial_value(self, group: ParamGroup) -> float:
        """Return what the state tensors are filled with when they are made."""
        return 0.0

    @abstractmethod
    def coefficients(self, xp: Any, options: Options, **numbers: Values) -> tuple[Values, ...]:
        """Return what the updates of all parameters share: a named tuple of 0-d values."""

    @abstractmethod
    def update(
        self, xp: Any, options: Options, c: Any, param: Values, grad: Values, **state: Values
    ) -> None:
        """Overwrite one parameter and its state, element by element."""

    def check_group(self, group: ParamGroup) -> None:  # noqa: B027 - most need no check
        """Raise for hyper-parameters that make no sense together."""

    # Groups

    def add_param_group(self, group: Mapping[str, Any]) -> None:
        """Add parameters, with hyper-parameters of their own.

        Args:
            group: ``"params"`` (a tensor or an iterable of them, or of (name, tensor) pairs), and
                what differs from the defaults.

        Raises:
            ArgumentError: no parameters, one that is there already, or an unknown or invalid
                hyper-parameter.
            ArgumentTypeError: something that is not a tensor.
            GradientError: a tensor that was computed.

        Example:
            >>> w, b = ndl.Tensor([1.0, 2.0]), ndl.Tensor([0.0])
            >>> optimizer = ndl.optim.SGD([w], lr=0.1, weight_decay=0.01)
            >>> optimizer.add_param_group({"params": [b], "weight_decay": 0.0})
            >>> [g["weight_decay"].item() for g in optimizer.param_groups]
            [0.01, 0.0]
        """
        owner = type(self).__name__
        if "params" not in group:
            raise ArgumentError(f'{owner}: a parameter group needs the key "params"')
        params, names = _as_params(group["params"], owner)
        names = names or (tuple(group["param_names"]) if group.get("param_names") else None)
        if names is not None and len(names) != len(params):
            raise ArgumentError(f"{owner}: {len(names)} param_names for {len(params)} parameters")
        new = ParamGroup(owner, self.hyperparameters, params, names, {**self.defaults, **group})
        self.check_group(new)
        seen = {id(p) for g in self.param_groups for p in g["params"]}
        for i, p in enumerate(params):
            _check_param(p, new.name_of(i), owner)
            if id(p) in seen:
                raise ArgumentError(
                    f"{owner}: {new.name_of(i)} was given twice; each step would update it twice"
                )
            seen.add(id(p))
        self.param_groups.append(new)
        changes.note()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters.

        Args:
            set_to_none: whether to drop them, which saves memory and time; otherwise they are
                filled with zeros, and then `step` also moves parameters that took no part in the
                loss.

        Example:
            >>> w = ndl.Tensor(3.0)
            >>> (w * w).backward()
            >>> ndl.optim.SGD([w], lr=0.1).zero_grad()
            >>> w.grad is None
            True
        """
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None and p.grad._data.__class__ is np.ndarray:
                    p.grad = p.grad.detach()
                    assign(p.grad, zeros_like(p.grad), "zero_grad")
                elif p.grad is not None:  # traced, or not kept by a compiled step
                    p.grad = zeros_like(p.grad)

    # Steps

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss and its gradients; called first, if given.

        Returns:
            What ``closure`` returned.

        Raises:
            ShapeError: a gradient of another shape than its parameter.
            DTypeError: a gradient of another dtype than its parameter.

        Example:
            >>> w = ndl.Tensor([1.0, -2.0])
            >>> optimizer = ndl.optim.SGD([w], lr=0.1)
            >>> (w * w).sum().backward()
            >>> optimizer.step()
            >>> w
            Tensor([ 0.8, -1.6], requires_grad=True)
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with no_grad():
            for group in self.param_groups:
                members = _with_gradient(group)
                if members:
                    self._step_group(group, members)
        return loss

    def _step_group(self, group: ParamGroup, members: list[Tensor]) -> None:
        self._ensure_state(group, members)
        trace = modes.state.trace
        if trace is not None:
            self._describe(trace, group)
        names = self.state_names(group.options)
        for step, params in self._counters(group, members):
            rows = []
            for p in params:
                state = self.state[p]
                grad: Any = p.grad
                rows.append(Row(p, grad, {name: state[name] for name in names}))
            foreach.run(self, group.options, group.numbers, step, rows)

    def _describe(self, trace: Any, group: ParamGroup) -> None:
        """Tell a trace what shapes the arithmetic of a step, and what its tensors are called."""
        trace.watch(
            f"the options of {type(self).__name__}",
            lambda: [self._layout(g) for g in self.param_groups],
        )
        for name, number in group.numbers.items():
            trace.label(number, name)
        for p in group["params"]:
            for name, t in self.state.get(p, {}).items():
                trace.label(t, name, p)

    def _layout(self, group: ParamGroup) -> Any:
        """Return what shapes a step besides values: options, and which tensors there are."""
        params = group["params"]
        state = [{n: id(t) for n, t in self.state.get(p, {}).items()} for p in params]
        return group.options, [id(p) for p in params], state

    def init_state(self) -> None:
        """Create the state of all parameters now, instead of when they are first stepped.

        Example:
            >>> w = ndl.Tensor([1.0, 2.0])
            >>> optimizer = ndl.optim.Adam([w])
            >>> optimizer.init_state()
            >>> sorted(optimizer.state[w])
            ['exp_avg', 'exp_avg_sq', 'step']
        """
        for group in self.param_groups:
            self._ensure_state(group, group["params"])

    def _ensure_state(self, group: ParamGroup, params: Iterable[Tensor]) -> None:
        """Make the state tensors that are missing; a switch turned on later asks for more."""
        with untraced():
            self._make_state(group, params)

    def _make_state(self, group: ParamGroup, params: Iterable[Tensor]) -> None:
        names = self.state_names(group.options)
        counter: Tensor | None = None
        for p in params:
            state = self.state.setdefault(p, {})
            if self.counts_steps and "step" not in state:
                counter = zeros((), dtype=int64) if counter is None else counter
                state["step"] = counter
            for name in names:
                if name not in state:
                    changes.note()
                    dtype = accumulation_dtype(p.dtype)
                    value = full(p.shape, self.initial_value(group), dtype=dtype, device=p.device)
                    if p._data.__class__ is np.ndarray:
                        value = wrap(as_lies(value._data, p._data))
                    state[name] = value

    def _counters(
        self, group: ParamGroup, members: list[Tensor]
    ) -> list[tuple[Tensor | None, list[Tensor]]]:
        """Return the step counters of the parameters to be stepped, each with its parameters.

        Parameters of a group that have always been stepped together share one counter, so that what
        depends on the count is computed once for all of them.
        """
        if not self.counts_steps:
            return [(None, members)]
        sharing: dict[int, list[Tensor]] = {}
        for p in members:
            sharing.setdefault(id(self.state[p]["step"]), []).append(p)
        if len(members) < len(group["params"]):
            for p in group["params"]:
                step = self.state[p]["step"] if p in self.state else None
                if p.grad is None and id(step) in sharing:
                    # This one stays behind: the others go on with a counter of their own.
                    together = sharing.pop(id(step))
                    changes.note()
                    with untraced():
                        own = self.state[together[0]]["step"].clone()
                    for q in together:
                        self.state[q]["step"] = own
                    sharing[id(own)] = together
                    if modes.state.trace is not None:
                        modes.state.trace.restart()  # it may have counted with the old one
        return [(self.state[params[0]]["step"], params) for params in sharing.values()]

    # Saving

    def state_dict(self) -> dict[str, Any]:
        """Return hyper-parameters and state, for saving.

        Returns:
            ``{"state": {"0": {"step": …, …}, …}, "param_groups": [{"lr": 0.1, …, "params": [0, …]},
            …]}``. Parameters are numbered in the order of the groups. The tensors share their
            storage with the optimizer's, and so change with the next step; everything else is what
            JSON can hold.

        Example:
            >>> ndl.optim.SGD([ndl.Tensor([1.0])], lr=0.1).state_dict()["param_groups"][0]["params"]
            [0]
        """
        groups: list[dict[str, Any]] = []
        state: dict[str, dict[str, Tensor]] = {}
        count = 0
        for group in self.param_groups:
            params = group["params"]
            self._ensure_state(group, (p for p in params if p in self.state))
            for i, p in enumerate(params, count):
                if p in self.state:
                    state[str(i)] = {name: t.detach() for name, t in self.state[p].items()}
            groups.append({**group.plain(), "params": list(range(count, count + len(params)))})
            count += len(params)
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over hyper-parameters and state that `state_dict` returned.

        The optimizer then goes on, bit for bit, as the one that was saved. Parameters are matched
        by their order. Values are copied; nothing is changed if anything does not fit.

        Args:
            state_dict: what `state_dict` returned, perhaps saved and loaded; arrays do for tensors.

        Raises:
            StateDictError: other groups, parameters, hyper-parameters or state; the message lists
                what differs.

        Example:
            >>> w = ndl.Tensor([1.0])
            >>> saved = ndl.optim.SGD([w], lr=0.1, momentum=0.9).state_dict()
            >>> optimizer = ndl.optim.SGD([w], lr=1.0)
            >>> optimizer.load_state_dict(saved)
            >>> optimizer.param_groups[0]["lr"].item()
            0.1
        """
        load(self, state_dict)

    def __repr__(self) -> str:
        lines = [f"{type(self).__name__}("]
        for i, group in enumerate(self.param_groups):
            count = len(group["params"])
            lines.append(f"  ({i}): {count} parameter{'s' * (count != 1)}, {group.describe()}")
        return "\n".join([*lines, ")"])


def _as_groups(params: Any, owner: str) -> list[Mapping[str, Any]]:
    """Return the first argument of an optimizer as groups."""
    if isinstance(params, Mapping):
        raise ArgumentTypeError(f"{owner}: put the parameter group into a list: [{{...}}]")
    entries = _listed(params, owner)
    if entries and isinstance(entries[0], Mapping):
        for i, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                raise ArgumentTypeError(
                    f"{owner}: params[0] is a group but params[{i}] is a {type(entry).__name__}; "
                    "give groups only, or parameters only"
                )
        groups = [dict(entry) for entry in entries]
        for group in groups:
            if "params" in group and not isinstance(group["params"], Tensor):
                group["params"] = _listed(group["params"], owner)
        if all(
            "params" in g and not isinstance(g["params"], Tensor) and not g["params"]
            for g in groups
        ):
            entries = []
    else:
        groups = [{"params": entries}]
    if not entries:
        raise ArgumentError(
            f"{owner}: there are no parameters to optimize; pass model.parameters() (a generator "
            "that was read before is empty: make a list of it)"
        )
    return list(groups)


def _listed(params: Any, owner: str) -> list[Any]:
    if isinstance(params, Tensor):
        raise ArgumentTypeError(f"{owner}: params is a single tensor; put it into a list: [w]")
    if isinstance(params, (set, frozenset)):
        raise ArgumentTypeError(
            f"{owner}: params is a set, whose order differs from run to run, and state is saved by "
            "order; pass a list"
        )
    if not isinstance(params, Iterable) or isinstance(params, str):
        hint = "; pass its parameters()" if hasattr(params, "parameters") else ""
        raise ArgumentTypeError(
            f"{owner}: params must be an iterable of tensors or of groups, got "
            f"{type(params).__name__}{hint}"
        )
    return list(params)


def _as_params(params: Any, owner: str) -> tuple[tuple[Tensor, ...], tuple[str, ...] | None]:
    """Return the parameters of a group, and their names if they were given as pairs."""
    entries: list[Any] = [params] if isinstance(params, Tensor) else _listed(params, owner)
    named = [isinstance(e, tuple) and len(e) == 2 and isinstance(e[0], str) for e in entries]
    if any(named) and not all(named):
        raise ArgumentTypeError(f"{owner}: name all parameters of a group or none")
    tensors = tuple(e[1] for e in entries) if any(named) else tuple(entries)
    for i, p in enumerate(tensors):
        if not isinstance(p, Tensor):
            raise ArgumentTypeError(
                f"{owner}: params[{i}] must be a tensor, got {type(p).__name__} ({p!r:.60})"
            )
    return tensors, tuple(e[0] for e in entries) if any(named) else None


def _check_param(p: Tensor, name: str, owner: str) -> None:
    if not is_float(p.dtype):
        raise DTypeError(
            f"{owner}: {name} is {p.dtype.name}; only floating tensors can be optimized"
        )
    if not p.is_leaf:
        raise GradientError(
            f"{owner}: {name} is no leaf but was computed, so it has no gradient of its own; "
            "pass the tensors that it was computed from, or detach() it"
        )


def _with_gradient(group: ParamGroup) -> list[Tensor]:
    """Return the parameters that have a gradient, after checking it."""
    members = []
    for i, p in enumerate(group["params"]):
        grad = p.grad
        if grad is None:
            continue
        if grad._data.shape != p._data.shape:
            raise ShapeError(
                f"step: the gradient of {group.name_of(i)} has shape {list(grad.shape)}"
            )
        if grad._data.dtype != p._data.dtype:
            raise DTypeError(
                f"step: the gradient of {group.name_of(i)} is {grad.dtype.name}, the parameter "
                f"{p.dtype.name}; convert it with astype()"
            )
        members.append(p)
    return members
