"""The exceptions of needle: each is a subclass of the builtin that fits, and each teaches.

A message says what was wrong (with the shapes, and what they mean), where (the path of the layer,
when it happened inside a module), and the way out.
"""

from __future__ import annotations


class NeedleError(Exception):
    """Base of all errors that needle raises.

    Attributes:
        path: names of the modules that were being called, innermost first; modules add their own
            name while the exception passes through them, so that the message can say
            ``model.blocks.2.fc``.
        module: the outermost module that the exception has passed so far.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.path: list[str] = []
        self.module: object | None = None

    def __str__(self) -> str:
        if not self.path:
            return self.message
        return f"{'.'.join(reversed(self.path))}: {self.message}"


class ShapeError(NeedleError, ValueError):
    """Shapes that do not fit the op or each other."""


class DTypeError(NeedleError, TypeError):
    """A dtype that the op does not take, or that does not exist."""


class AxisError(NeedleError, ValueError, IndexError):
    """An axis outside of the tensor's rank, or given twice."""


class OutOfRangeError(NeedleError, IndexError):
    """An index or a class label outside of the valid range."""


class ArgumentError(NeedleError, ValueError):
    """An argument (not a tensor) whose value makes no sense."""


class ArgumentTypeError(NeedleError, TypeError):
    """An argument of a type that is not accepted."""


class DeviceError(NeedleError, RuntimeError):
    """A device that does not exist, or tensors on different devices."""


class GradientError(NeedleError, RuntimeError):
    """Automatic differentiation was asked for something it cannot do."""


class AnomalyError(NeedleError, ArithmeticError):
    """A NaN or an infinity appeared while anomaly detection was on."""


class TraceError(NeedleError, RuntimeError):
    """A traced function did what a graph cannot hold, or a traced tensor was used outside of it."""


class CompileError(NeedleError, RuntimeError):
    """The compiler cannot make code of something in a graph."""


class MemoryBudgetError(CompileError):
    """A program that does not fit ``memory_budget`` however much it computes again.

    Attributes:
        least: the bytes that it takes then.
    """

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least


class DivergenceError(NeedleError, ArithmeticError):
    """Compiled code gave another result than the references of the ops: a fault of the compiler."""


class GraphError(NeedleError, RuntimeError):
    """A graph that breaks a rule of graphs: a fault of a pass, not of the traced function."""


class DataError(NeedleError, ValueError):
    """A data file that is corrupt, truncated, or not what it says it is."""


class DataNotFoundError(NeedleError, FileNotFoundError):
    """A data file that is not where it was looked for."""


class DownloadError(NeedleError, OSError):
    """A file that could not be fetched, or did not have the content that was expected."""


class CheckpointError(NeedleError, ValueError):
    """A checkpoint that is corrupt, incomplete, or does not fit."""


class StateDictError(NeedleError, RuntimeError):
    """A state dict whose keys or shapes do not fit the module."""


class MissingExtraError(NeedleError, ImportError):  # type: ignore[misc]  # both have a `path`
    """An optional dependency that is not installed; the message names the extra."""

    def __init__(self, module: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {module!r}, which is not installed; "
            f"install it with: pip install 'needle-dl[{extra}]'"
        )


class ProfileError(NeedleError, RuntimeError):
    """A profile is asked for while one is being taken."""
