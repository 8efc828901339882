"""Module: a tree of layers with their parameters, found by looking through attributes.

A module registers nothing. Whoever asks for its parameters looks through ``vars(module)``, where
parameters, buffers, modules, and lists, tuples and dicts of them stand, as anybody put them there.
So a subclass need not call ``super().__init__()``, and what is in an attribute is what is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from needle.config import changes, modes
from needle.devices import Device, as_device
from needle.dtypes import DType, as_dtype, is_float
from needle.errors import ArgumentTypeError, DTypeError, NeedleError
from needle.nn.hooks import ForwardHook, ForwardPreHook, HookHandle, Hooks
from needle.nn.parameter import Buffer, Parameter, rebound, replace_storage
from needle.tensor import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from needle.nn.state import LoadReport
    from needle.nn.summary import Summary

M = TypeVar("M", bound="Module")
T = TypeVar("T")

_MISSING = object()

#: What the outermost module is called in the path of an error.
ROOT = "model"


class Module:
    """Base class of all layers and models: define `forward`, and call the module.

    Parameters, buffers and modules in attributes belong to the module, also inside of lists, tuples
    and dicts. One that stands in several places is one parameter, named after the first place.

    A plain tensor in an attribute is not trained, saved or moved. Because `Tensor` requires a
    gradient unless told otherwise, assigning a leaf that does is an error: it would look like a
    parameter that no optimizer ever sees.

    Attributes:
        training: whether the module is in training mode, which `Dropout` and batch norms ask for;
            set by `train` and `eval`.

    Example:
        >>> class Scale(ndl.nn.Module):
        ...     def __init__(self, n):
        ...         self.weight = ndl.nn.Parameter(ndl.ones(n))
        ...     def forward(self, x):
        ...         return x * self.weight
        >>> model = ndl.nn.Sequential(ndl.nn.Linear(3, 2), Scale(2))
        >>> [name for name, _ in model.named_parameters()]
        ['0.weight', '0.bias', '1.weight']
        >>> model(ndl.ones((4, 3))).shape
        (4, 2)
    """

    # Defaults stand in the class, so that a module works without super().__init__().
    training: bool = True
    _hooks: Hooks | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the result; every subclass defines this.

        Raises:
            NotImplementedError: the subclass does not.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no forward(); define `def forward(self, x): ...` in it"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = modes.state.trace
        around = None if trace is None else trace.enter(self)
        try:
            if self._hooks is None:
                return self.forward(*args, **kwargs)
            return self._hooks.run(self, args, kwargs)
        except NeedleError as error:
            _locate(error, self)
            raise
        finally:
            if trace is not None:
                trace.leave(around)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Tensor, list, tuple, dict)):
            value = self._checked(name, value)
        if getattr(self, name, _MISSING) is not value:
            changes.note()
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        changes.note()
        object.__delattr__(self, name)

    def _checked(self, name: str, value: Any) -> Any:
        """Return what to store for ``value``; refuse what looks like a parameter and is none."""
        if isinstance(value, Tensor) and not isinstance(value, (Parameter, Buffer)):
            old = vars(self).get(name)
            if isinstance(old, Parameter):
                raise ArgumentTypeError(
                    f"{type(self).__name__}.{name} is a Parameter, and a plain tensor in its place "
                    f"would not be trained; write into it with `with ndl.no_grad(): "
                    f"self.{name}.copy_(value)`, or assign nn.Parameter(value)"
                )
            if isinstance(old, Buffer):
                return rebound(old, value)
        for place, tensor in plain_tensors(value, name):
            if tensor._requires_grad and tensor.is_leaf:
                raise ArgumentTypeError(
                    f"{type(self).__name__}.{place} is a plain tensor that requires a gradient, "
                    "and no optimizer would see it; use nn.Parameter(value) to train it, "
                    "nn.Buffer(value) to keep it with the module, or detach() it"
                )
        return value

    # What is inside

    def _members(self) -> Iterable[tuple[str, Any]]:
        """Return names and values of the attributes; containers override how they are named."""
        return vars(self).items()

    def _entries(self) -> Iterator[tuple[str, Parameter | Buffer | Module]]:
        """Yield the parameters, buffers and modules that stand in the attributes."""
        for name, value in self._members():
            yield from _entries(value, name)

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield all modules with their paths, this one (its path is ``prefix``) first.

        Args:
            prefix: what all paths start with.
        """
        return self._walk(prefix, set(), once=True)

    def modules(self) -> Iterator[Module]:
        """Yield all modules, this one first, each once."""
        for _, module in self.named_modules():
            yield module

    def _walk(self, prefix: str, seen: set[int], once: bool) -> Iterator[tuple[str, Module]]:
        """Yield all modules that are not in ``seen``.

        Args:
            prefix: what all paths start with.
            seen: ids of modules to leave out: those that came before, or (not ``once``) those
                around this one.
            once: False to yield a shared module for each place in which it stands.
        """
        if id(self) in seen:
            return
        if once:
            seen.add(id(self))
        else:
            seen = {*seen, id(self)}
        yield prefix, self
        for name, value in self._entries():
            if isinstance(value, Module):
                yield from value._walk(_join(prefix, name), seen, once)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Yield the modules that stand in the attributes, each once."""
        return _unique((n, v) for n, v in self._entries() if isinstance(v, Module))

    def children(self) -> Iterator[Module]:
        """Yield the modules that stand in the attributes, each once."""
        for _, module in self.named_children():
            yield module

    def _all_tensors(
        self, prefix: str = "", once: bool = True
    ) -> Iterator[tuple[str, Parameter | Buffer]]:
        """Yield the parameters and buffers of all modules.

        Args:
            prefix: what all paths start with.
            once: False to yield those of a shared module for each place in which it stands.
        """
        for path, module in self._walk(prefix, set(), once):
            for name, value in module._entries():
                if not isinstance(value, Module):
                    yield _join(path, name), value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Yield the parameters with their paths; a shared one once, under its first.

        Args:
            prefix: what all paths start with.
            recurse: False for those of this module only, without those of modules inside.
        """
        return _unique(self._tensors_of(Parameter, prefix, recurse))

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Yield the parameters, each once.

        Args:
            recurse: False for those of this module only, without those of modules inside.
        """
        for _, parameter in self.named_parameters(recurse=recurse):
            yield parameter

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Buffer]]:
        """Yield the buffers with their paths; a shared one once, under its first.

        Args:
            prefix: what all paths start with.
            recurse: False for those of this module only, without those of modules inside.
        """
        return _unique(self._tensors_of(Buffer, prefix, recurse))

    def buffers(self, recurse: bool = True) -> Iterator[Buffer]:
        """Yield the buffers, each once.

        Args:
            recurse: False for those of this module only, without those of modules inside.
        """
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    def _tensors_of(self, kind: type[T], prefix: str, recurse: bool) -> Iterator[tuple[str, T]]:
        if recurse:
            found: Iterable[tuple[str, Any]] = self._all_tensors(prefix)
        else:
            found = ((_join(prefix, name), value) for name, value in self._entries())
        return ((name, value) for name, value in found if isinstance(value, kind))

    # Changing all that is inside

    def train(self: M, mode: bool = True) -> M:
        """Set `training` of this module and all inside, and return the module.

        Args:
            mode: True for training, False for evaluation.

        Raises:
            ArgumentTypeError: the mode is no bool.
        """
        if not isinstance(mode, bool):
            raise ArgumentTypeError(f"train() takes True or False, got {type(mode).__name__}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: M) -> M:
        """Set evaluation mode, for this module and all inside, and return the module."""
        return self.train(False)

    def apply(self: M, function: Callable[[Module], Any]) -> M:
        """Call ``function`` with each module, those inside before those around them.

        Args:
            function: its result is ignored.
        """
        for module in list(self._inside_out(set())):
            function(module)
        return self

    def _inside_out(self, seen: set[int]) -> Iterator[Module]:
        if id(self) not in seen:
            seen.add(id(self))
            for child in self.children():
                yield from child._inside_out(seen)
            yield self

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Set whether the parameters are trained, and return the module.

        Args:
            requires_grad: False to freeze them.
        """
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Drop the gradients of all parameters."""
        for parameter in self.parameters():
            parameter.grad = None

    def to(self: M, *args: DType | Device | str | type, dtype: Any = None, device: Any = None) -> M:
        """Convert or move parameters and buffers, in place, and return the module.

        The tensors stay the same objects, so an optimizer that holds them goes on. Integer buffers
        keep their dtype.

        Args:
            args: a floating dtype or a device, in either order.
            dtype: dtype to convert to.
            device: device to move to; ``"meta"`` drops the values.

        Raises:
            DTypeError: the dtype is not floating.
            DeviceError: from the meta device, where there are no values, to another.

        Example:
            >>> layer = ndl.nn.Linear(2, 3).to(ndl.float64)
            >>> layer.weight.dtype
            dtype('float64')
        """
        for argument in args:
            if isinstance(argument, Device) or argument in ("cpu", "meta"):
                device = argument
            else:
                dtype = argument
        target = None if dtype is None else as_dtype(dtype)
        if target is not None and not is_float(target):
            raise DTypeError(f"Module.to: modules compute in floating dtypes, got {target.name}")
        place = None if device is None else as_device(device)
        for _, tensor in _unique(self._all_tensors()):
            moved = _moved(tensor, target, place)
            if moved is not None:
                replace_storage(tensor, moved)
                if tensor.grad is not None:
                    gradient = _moved(tensor.grad, target, place)
                    tensor.grad = tensor.grad if gradient is None else gradient
        return self

    # State

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Return parameters and persistent buffers by their paths.

        The tensors share their storage with the module: clone() them to keep the values of now. A
        shared parameter is there once, under its first path.

        Args:
            prefix: what all keys start with.

        Raises:
            StateDictError: two tensors have the same path.

        Example:
            >>> {k: v.shape for k, v in ndl.nn.Linear(2, 3).state_dict().items()}
            {'weight': (2, 3), 'bias': (3,)}
        """
        from needle.nn.state import state_dict

        return state_dict(self, prefix)

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> LoadReport:
        """Copy values into parameters and persistent buffers; all of them, or none on an error.

        Args:
            state: tensors or arrays by path, as `state_dict` gives them; cast to the module's
                dtypes.
            strict: whether missing and unexpected keys are an error. Values of another shape always
                are.

        Returns:
            The missing and the unexpected keys.

        Raises:
            StateDictError: it does not fit; the message lists all that is wrong.

        Example:
            >>> a, b = ndl.nn.Linear(2, 3), ndl.nn.Linear(2, 3)
            >>> b.load_state_dict(a.state_dict())
            LoadReport(missing=[], unexpected=[])
            >>> bool((a.weight == b.weight).all())
            True
        """
        from needle.nn.state import load_state_dict

        return load_state_dict(self, state, strict)

    # Hooks

    def register_forward_pre_hook(self, hook: ForwardPreHook) -> HookHandle:
        """Call ``hook(module, args)`` before each `forward`.

        Args:
            hook: may return the arguments to use instead, a tuple or a single one.

        Returns:
            A handle whose `remove()` removes the hook.
        """
        return self._add_hook("before", hook)

    def register_forward_hook(self, hook: ForwardHook) -> HookHandle:
        """Call ``hook(module, args, result)`` after each `forward`.

        Args:
            hook: may return another result.

        Returns:
            A handle whose `remove()` removes the hook.

        Example:
            >>> layer = ndl.nn.Linear(2, 3)
            >>> with layer.register_forward_hook(lambda module, args, result: result.sum()):
            ...     layer(ndl.ones((1, 2))).shape
            ()
        """
        return self._add_hook("after", hook)

    def _add_hook(self, when: str, hook: Any) -> HookHandle:
        if not callable(hook):
            raise ArgumentTypeError(f"a hook must be callable, got {type(hook).__name__}")
        if self._hooks is None:
            self._hooks = Hooks()
        changes.note()
        hooks: list[Any] = getattr(self._hooks, when)
        hooks.append(hook)
        return HookHandle(hooks, hook)

    # For people

    def summary(self, *inputs: Any, dtype: Any = None) -> Summary:
        """Return shapes, parameters, FLOPs and memory of each layer, without running data.

        Args:
            inputs: the shape of each input, or a tensor or `Spec` like it.
            dtype: dtype of the inputs given by shape; the parameters' if not given.

        Example:
            >>> ndl.nn.Linear(2, 3).summary((5, 2)).parameters
            9
        """
        from needle.nn.summary import summary

        return summary(self, *inputs, dtype=dtype)

    def extra_repr(self) -> str:
        """Return what `repr` shows between the parentheses: the arguments that made the module."""
        return ""

    def __repr__(self) -> str:
        children = [(name, repr(child)) for name, child in self._shown()]
        extra = self.extra_repr()
        if not children:
            return f"{type(self).__name__}({extra})"
        lines = [extra] if extra else []
        for first, last, text in _runs(children):
            label, count = first, ""
            if first != last:
                stop = last.rpartition(".")[2]
                label = f"{first}-{stop}"
                count = f"{int(stop) - int(first.rpartition('.')[2]) + 1} × "
            lines.append(f"({label}): {count}" + text.replace("\n", "\n  "))
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"

    def _shown(self) -> Iterator[tuple[str, Module]]:
        return ((n, v) for n, v in self._entries() if isinstance(v, Module))


def _entries(
    value: Any, name: str, above: tuple[int, ...] = ()
) -> Iterator[tuple[str, Parameter | Buffer | Module]]:
    """Yield what is a parameter, a buffer or a module in ``value``: itself, or its parts."""
    if isinstance(value, (Parameter, Buffer, Module)):
        yield name, value
    elif isinstance(value, (list, tuple, dict)) and id(value) not in above:
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in parts:
            yield from _entries(part, f"{name}.{key}", (*above, id(value)))


def plain_tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in an attribute's value that are neither parameters nor buffers."""
    if isinstance(value, Tensor):
        if not isinstance(value, (Parameter, Buffer)):
            yield name, value
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            if isinstance(part, (Tensor, list, tuple, dict)) and part is not value:
                yield from plain_tensors(part, f"{name}[{i}]")
    elif isinstance(value, dict):
        for key, part in value.items():
            if isinstance(part, (Tensor, list, tuple, dict)) and part is not value:
                yield from plain_tensors(part, f"{name}[{key!r}]")


def _unique(entries: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    seen: set[int] = set()
    for name, value in entries:
        if id(value) not in seen:
            seen.add(id(value))
            yield name, value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _moved(tensor: Tensor, dtype: DType | None, device: Device | None) -> Tensor | None:
    """Return ``tensor`` in another dtype and place, or None if it is so already."""
    new_dtype = dtype if dtype is not None and is_float(tensor.dtype) else tensor.dtype
    new_device = device or tensor.device
    if new_dtype == tensor.dtype and new_device is tensor.device:
        return None
    return tensor.detach().astype(new_dtype, copy=False).to(device=new_device)


def _runs(children: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    """Merge neighbours that look the same and are numbered: first name, last name, text."""
    i = 0
    while i < len(children):
        name, text = children[i]
        stem, dot, number = name.rpartition(".")
        j = i + 1
        if number.isdecimal():
            while j < len(children) and children[j] == (f"{stem}{dot}{int(number) + j - i}", text):
                j += 1
        yield name, children[j - 1][0], text
        i = j


def _locate(error: NeedleError, module: Module) -> None:
    """Add to the path of ``error`` how the module that raised it is called inside of ``module``."""
    child = error.module
    if child is module:
        return
    if child is None:
        error.path = [ROOT]
    else:
        for name, inside in module.named_modules():
            if inside is child:
                # The path is innermost first, and its last name is the root's.
                error.path[-1:] = [*reversed(name.split(".")), ROOT]
                break
    error.module = module
