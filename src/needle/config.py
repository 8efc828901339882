"""Modes: whether gradients are recorded, whether anomalies are looked for. One set for each
thread."""

from __future__ import annotations

import contextvars
import functools
import inspect
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from needle.dtypes import DType, as_dtype, bfloat16
from needle.errors import DTypeError

if TYPE_CHECKING:
    from needle.gradnode import SavedValueHook

F = TypeVar("F", bound=Callable[..., Any])


class State:
    """The modes of one thread.

    Attributes:
        grad: whether ops on tensors that require gradients are recorded.
        inference: whether results may never take part in a backward pass.
        anomaly: whether each result is checked for NaN and infinity.
        autocast: the dtype that sums of products take their factors in; None outside of `autocast`.
        saved_value_hook: replaces the values kept for the backward pass (rematerialisation).
        trace: what ops are recorded in while a function is traced, else None: see `needle.graph`.
        quiet: runs a function with NumPy's floating-point warnings off. NumPy keeps that setting in
            a context variable, so running in a context of our own costs 40 ns, where
            ``np.errstate`` costs 1,100 ns, and leaves the user's setting alone.
    """

    __slots__ = ("anomaly", "autocast", "grad", "inference", "quiet", "saved_value_hook", "trace")

    def __init__(self) -> None:
        self.grad = True
        self.inference = False
        self.anomaly = False
        self.autocast: DType | None = None
        self.saved_value_hook: SavedValueHook | None = None
        self.trace: Any = None  # a Trace, or whatever else records ops
        context = contextvars.copy_context()
        context.run(functools.partial(np.seterr, all="ignore"))
        self.quiet = context.run


class Modes(threading.local):
    """Holds the `State` of each thread: ``modes.state`` is the current thread's."""

    def __init__(self) -> None:
        self.state = State()


modes = Modes()


class Changes:
    """Tells compiled functions when to look whether what they were traced with is still so.

    Attributes:
        token: another object after every change of what shapes a program but is no tensor's values:
            attributes of modules, `requires_grad`, the options of an optimizer.
    """

    __slots__ = ("token",)

    def __init__(self) -> None:
        self.token = object()

    def note(self) -> None:
        """Say that something has changed."""
        self.token = object()


changes = Changes()


class Mode:
    """Base of the mode switches: a context manager, also usable as a decorator."""

    #: The modes to set while inside.
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self._previous: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        settings = self.chosen()
        self._previous.append({name: getattr(modes.state, name) for name in settings})
        for name, value in settings.items():
            setattr(modes.state, name, value)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for name, value in self._previous.pop().items():
            setattr(modes.state, name, value)

    def chosen(self) -> dict[str, Any]:
        """Return the modes to set while inside."""
        return self.settings

    def again(self) -> Mode:
        """Return a new switch of the same kind."""
        return type(self)()

    def __call__(self, function: F) -> F:
        """Return ``function`` as it runs under the mode; a generator does so at each step."""

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with self.again():
                return function(*args, **kwargs)

        @functools.wraps(function)
        def steps(*args: Any, **kwargs: Any) -> Any:
            return _steps(function(*args, **kwargs), self.again)

        is_generator = inspect.isgeneratorfunction(function)
        return steps if is_generator else inside  # type: ignore[return-value]


def _steps(generator: Generator[Any, Any, Any], mode: Callable[[], Mode]) -> Any:
    """Yield what ``generator`` does, with the mode on while it runs and off in between."""
    resume: Callable[[Any], Any] = generator.send
    value: Any = None
    while True:
        with mode():
            try:
                item = resume(value)
            except StopIteration as end:
                return end.value
        try:
            value = yield item
            resume = generator.send
        except GeneratorExit:
            with mode():
                generator.close()
            raise
        except BaseException as error:
            value, resume = error, generator.throw


class Switch(Mode):
    """Base of the modes that are set when the object is made, so that a statement does it, too."""

    name: ClassVar[str]

    def __init__(self, mode: bool) -> None:
        super().__init__()
        self.mode = mode
        self._is_set = True
        self._previous.append({self.name: getattr(modes.state, self.name)})
        setattr(modes.state, self.name, mode)

    def __enter__(self) -> None:
        if not self._is_set:
            self._previous.append({self.name: getattr(modes.state, self.name)})
            setattr(modes.state, self.name, self.mode)
        self._is_set = False

    def again(self) -> Mode:
        return type(self)(self.mode)

    def __call__(self, function: F) -> F:
        if self._is_set:  # a decorator is for its function only
            self._is_set = False
            self.__exit__(None, None, None)
        return super().__call__(function)


class no_grad(Mode):
    """Do not record ops: results require no gradient.

    Example:
        >>> w = ndl.Tensor([1.0, 2.0])
        >>> with ndl.no_grad():
        ...     w -= 0.5
        >>> w
        Tensor([0.5, 1.5], requires_grad=True)
    """

    settings: ClassVar[dict[str, Any]] = {"grad": False}


class enable_grad(Mode):
    """Record ops again, inside of `no_grad`.

    Example:
        >>> w = ndl.Tensor(3.0)
        >>> with ndl.no_grad(), ndl.enable_grad():
        ...     (w * w).requires_grad
        True
    """

    settings: ClassVar[dict[str, Any]] = {"grad": True, "inference": False}


class inference_mode(Mode):
    """Like `no_grad`, for pure inference: results may never enter a backward pass.

    Saves the bookkeeping that a tensor needs to take part in one later.

    Example:
        >>> w = ndl.Tensor(3.0)
        >>> with ndl.inference_mode():
        ...     y = w * w
        >>> y.requires_grad
        False
    """

    settings: ClassVar[dict[str, Any]] = {"grad": False, "inference": True}


class untraced(Mode):
    """Run ops now, on values, even while a function is traced: to make state when it is needed.

    What is made becomes state of the traced program, with these values to begin with.
    """

    settings: ClassVar[dict[str, Any]] = {"trace": None}


class detect_anomaly(Mode):
    """Raise at the op in which a NaN or an infinity first appears, forward or backward.

    Raises:
        AnomalyError: with the op and the user's line. Every op is checked, so this is slow.

    Example:
        >>> x = ndl.Tensor([1.0, 0.0])
        >>> with ndl.detect_anomaly():
        ...     x.log()
        Traceback (most recent call last):
        ...
        needle.errors.AnomalyError: log: -inf appeared in the result at ...
    """

    settings: ClassVar[dict[str, Any]] = {"anomaly": True}


class autocast(Mode):
    """Multiply in bfloat16 what gains from it, and compute the rest in float32.

    Inside, each op takes its floating inputs in the dtype that suits it, which its record names:

    - matrix products, convolutions, `linear` and attention take bfloat16, add up in float32 and
      give bfloat16;
    - sums and other reductions, normalisation, softmax, losses, `exp`, `log`, `pow` and their like
      take float32 and give float32;
    - all others follow their inputs, which are promoted as always: bfloat16 plus float32 is
      float32.

    Parameters stay float32, and so do their gradients: conversions are ops, whose derivatives
    convert back. float64, integers and bools are left alone. A backward pass computes each
    gradient in the dtypes of the forward pass, inside and outside; call it outside. For `compile`
    the mode is part of the signature, whether it is entered outside of the function or inside.

    A product in bfloat16 has factors of 8 significant bits. Where the processor multiplies pairs of
    them (AMX, AVX-512-BF16), factors and sums below 1.2e-38 count as zero; elsewhere they do not.

    Source: P. Micikevicius et al., "Mixed Precision Training", 2018; the names are PyTorch's.

    Args:
        dtype: "bfloat16". float16 has so small a range that losses need to be scaled, which needle
            does not do.
        enabled: False computes in the dtypes of the inputs again, inside of another `autocast`.

    Raises:
        DTypeError: another dtype.

    Example:
        >>> weight = ndl.Tensor([[0.5], [0.25]])
        >>> with ndl.autocast("bfloat16"):
        ...     y = ndl.ones((1, 2)) @ weight
        ...     loss = y.sum()
        >>> y.dtype.name, loss.dtype.name
        ('bfloat16', 'float32')
        >>> loss.backward()
        >>> weight.grad.dtype.name
        'float32'
    """

    def __init__(self, dtype: Any = bfloat16, enabled: bool = True) -> None:
        super().__init__()
        self.dtype = as_dtype(dtype)
        self.enabled = enabled
        if self.dtype != bfloat16:
            raise DTypeError(
                f"autocast: multiplies in bfloat16, got {self.dtype.name}; "
                "autocast(enabled=False) switches it off"
            )

    def chosen(self) -> dict[str, Any]:
        return {"autocast": self.dtype if self.enabled else None}

    def again(self) -> Mode:
        return autocast(self.dtype, self.enabled)


class set_grad_enabled(Switch):
    """Switch recording on or off: as a statement, for a ``with`` block, or as a decorator.

    Args:
        mode: whether to record.

    Example:
        >>> w = ndl.Tensor(3.0)
        >>> with ndl.set_grad_enabled(False):
        ...     (w * w).requires_grad
        False
    """

    name = "grad"


class set_detect_anomaly(Switch):
    """Switch anomaly detection on or off: as a statement, for a ``with`` block, or as a decorator.

    Args:
        mode: whether to check the result of every op; see `detect_anomaly`.

    Example:
        >>> with ndl.set_detect_anomaly(True):
        ...     ndl.exp(ndl.asarray(1e4))
        Traceback (most recent call last):
        ...
        needle.errors.AnomalyError: exp: inf appeared in the result at ...
    """

    name = "anomaly"


def is_grad_enabled() -> bool:
    """Return whether ops are being recorded in this thread.

    Example:
        >>> ndl.is_grad_enabled()
        True
    """
    return modes.state.grad


def is_autocast_enabled() -> bool:
    """Return whether this thread is inside of `autocast`.

    Example:
        >>> with ndl.autocast("bfloat16"):
        ...     ndl.is_autocast_enabled()
        True
    """
    return modes.state.autocast is not None


def is_inference_mode_enabled() -> bool:
    """Return whether this thread is inside of `inference_mode`.

    Example:
        >>> ndl.is_inference_mode_enabled()
        False
    """
    return modes.state.inference
