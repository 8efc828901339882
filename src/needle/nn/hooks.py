"""Forward hooks: functions called before and after a module's `forward`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from needle.config import changes

#: ``hook(module, args)``: may return new arguments, a tuple or a single one.
ForwardPreHook = Callable[[Any, tuple[Any, ...]], Any]
#: ``hook(module, args, result)``: may return another result.
ForwardHook = Callable[[Any, tuple[Any, ...], Any], Any]


class Hooks:
    """The hooks of one module, in the order in which they were added."""

    def __init__(self) -> None:
        self.before: list[ForwardPreHook] = []
        self.after: list[ForwardHook] = []

    def run(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module's `forward` with all hooks around it."""
        # Copies of the lists: a hook may remove itself.
        for pre_hook in tuple(self.before):
            replaced = pre_hook(module, args)
            if replaced is not None:
                args = replaced if isinstance(replaced, tuple) else (replaced,)
        result = module.forward(*args, **kwargs)
        for hook in tuple(self.after):
            replaced = hook(module, args, result)
            if replaced is not None:
                result = replaced
        return result


class HookHandle:
    """What adding a hook returns; `remove()`, a call or the end of a ``with`` block removes it."""

    def __init__(self, hooks: list[Any], hook: Any) -> None:
        self._hooks = hooks
        self._hook = hook

    def remove(self) -> None:
        """Remove the hook; a second time does nothing."""
        # By identity: hooks may compare equal to each other.
        for i, hook in enumerate(self._hooks):
            if hook is self._hook:
                changes.note()
                del self._hooks[i]
                return

    def __call__(self) -> None:
        self.remove()

    def __enter__(self) -> HookHandle:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
