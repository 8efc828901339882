"""Containers: modules made of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, overload

from needle.config import changes
from needle.errors import ArgumentError, ArgumentTypeError, OutOfRangeError, ShapeError
from needle.nn.module import Module
from needle.shapes import as_index


def _as_module(value: Any, owner: str, place: object) -> Module:
    if isinstance(value, Module):
        changes.note()
        return value
    if isinstance(value, type) and issubclass(value, Module):
        raise ArgumentTypeError(
            f"{owner}: item {place} is the class {value.__name__}, not an instance; "
            f"write {value.__name__}(…)"
        )
    raise ArgumentTypeError(
        f"{owner}: item {place} must be a module, got {type(value).__name__}; wrap a function in a "
        "Module whose forward calls it"
    )


class _Container(Module):
    """Modules by name, which appear in paths without the name of the attribute that holds them."""

    _items: dict[str, Module]

    def _members(self) -> Iterable[tuple[str, Any]]:
        for name, value in vars(self).items():
            if name == "_items":
                yield from value.items()
            else:
                yield name, value

    def __getattr__(self, name: str) -> Any:
        # Only for names that are no attributes: the modules inside.
        items = vars(self).get("_items", {})
        if name in items:
            return items[name]
        way_out = "; call super().__init__() first" if "_items" not in vars(self) else ""
        raise AttributeError(f"{type(self).__name__} has no attribute or module {name!r}{way_out}")

    def __len__(self) -> int:
        return len(self._items)

    def __bool__(self) -> bool:
        # An empty container is still a module that is there.
        return True

    def _renumber(self, modules: Iterable[Module]) -> None:
        self._items = {str(i): m for i, m in enumerate(modules)}

    def _key(self, index: Any) -> str:
        """Return the name of the module at a place, negative ones counted from the end."""
        place = as_index(index, f"{type(self).__name__}: index")
        if not -len(self) <= place < len(self):
            raise OutOfRangeError(
                f"{type(self).__name__}: index {place} is out of range, it has {len(self)} modules"
            )
        return list(self._items)[place]


class Sequential(_Container):
    """Modules one after the other: each takes the result of the one before.

    Args:
        modules: modules, or a single dict of them by name.

    Raises:
        ArgumentTypeError: one is no module.

    Example:
        >>> nn = ndl.nn
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> model(ndl.ones((5, 4))).shape
        (5, 2)
        >>> model[:2]
        Sequential(
          (0): Linear(in_features=4, out_features=3)
          (1): ReLU()
        )
        >>> nn.Sequential({"fc": nn.Linear(4, 3), "act": nn.ReLU()}).fc
        Linear(in_features=4, out_features=3)
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        self._items = {}
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, named in modules[0].items():
                _check_name(self, name)
                self._items[name] = _as_module(named, type(self).__name__, repr(name))
            return
        for i, module in enumerate(modules):
            if isinstance(module, (list, tuple)):
                raise ArgumentTypeError(
                    f"{type(self).__name__}: item {i} is a {type(module).__name__}; "
                    "unpack it: Sequential(*modules)"
                )
            self._items[str(i)] = _as_module(module, type(self).__name__, i)

    def forward(self, x: Any) -> Any:
        """Pass ``x`` through all modules in turn."""
        for module in self._items.values():
            x = module(x)
        return x

    @overload
    def __getitem__(self, index: int | str) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    def __getitem__(self, index: int | str | slice) -> Module:
        if isinstance(index, slice):
            names = list(self._items)[index]
            if names and all(name.isdecimal() for name in self._items):
                return Sequential(*(self._items[name] for name in names))
            return Sequential({name: self._items[name] for name in names})
        if isinstance(index, str):
            if index not in self._items:
                raise OutOfRangeError(
                    f"Sequential: there is no module {index!r}; it has {', '.join(self._items)}"
                )
            return self._items[index]
        return self._items[self._key(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self._items[self._key(index)] = _as_module(module, "Sequential", index)

    def __delitem__(self, index: int) -> None:
        is_numbered = all(name.isdecimal() for name in self._items)
        changes.note()
        del self._items[self._key(index)]
        if is_numbered:
            self._renumber(list(self._items.values()))

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items.values())

    def append(self, module: Module) -> Sequential:
        """Add a module at the end, and return the container.

        Args:
            module: what to add; its name is its number.
        """
        name = str(len(self))
        if name in self._items:
            raise ArgumentError(f"Sequential: there is a module {name!r} already")
        self._items[name] = _as_module(module, "Sequential", len(self))
        return self

    def extend(self, modules: Iterable[Module]) -> Sequential:
        """Add several modules at the end, and return the container.

        Args:
            modules: what to add.
        """
        for module in modules:
            self.append(module)
        return self


class ModuleList(_Container):
    """A list of modules. A plain list in an attribute does the same; this one is a module itself.

    Args:
        modules: the modules.

    Raises:
        ArgumentTypeError: one is no module.

    Example:
        >>> layers = ndl.nn.ModuleList(ndl.nn.Linear(2, 2) for _ in range(3))
        >>> layers
        ModuleList(
          (0-2): 3 × Linear(in_features=2, out_features=2)
        )
    """

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        self._items = {}
        self.extend(modules)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> ModuleList: ...
    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return ModuleList(list(self._items.values())[index])
        return self._items[self._key(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self._items[self._key(index)] = _as_module(module, "ModuleList", index)

    def __delitem__(self, index: int) -> None:
        changes.note()
        del self._items[self._key(index)]
        self._renumber(list(self._items.values()))

    def __iter__(self) -> Iterator[Module]:
        return iter(self._items.values())

    def append(self, module: Module) -> ModuleList:
        """Add a module at the end, and return the list.

        Args:
            module: what to add.
        """
        self._items[str(len(self))] = _as_module(module, "ModuleList", len(self))
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add several modules at the end, and return the list.

        Args:
            modules: what to add.
        """
        for module in modules:
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Insert a module before the one at ``index``.

        Args:
            index: the place, as in `list.insert`.
            module: what to insert.
        """
        modules = list(self._items.values())
        modules.insert(index, _as_module(module, "ModuleList", index))
        self._renumber(modules)


class ModuleDict(_Container):
    """Modules by name. A plain dict in an attribute does the same; this one is a module itself.

    Args:
        modules: the modules.

    Raises:
        ArgumentTypeError: one is no module, or a name is no string.

    Example:
        >>> heads = ndl.nn.ModuleDict({"digit": ndl.nn.Linear(8, 10), "odd": ndl.nn.Linear(8, 2)})
        >>> [name for name, _ in heads.named_parameters()]
        ['digit.weight', 'digit.bias', 'odd.weight', 'odd.bias']
    """

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        self._items = {}
        self.update(modules or {})

    def __getitem__(self, name: str) -> Module:
        if name not in self._items:
            raise OutOfRangeError(
                f"ModuleDict: there is no module {name!r}; it has {', '.join(self._items)}"
            )
        return self._items[name]

    def __setitem__(self, name: str, module: Module) -> None:
        _check_name(self, name)
        self._items[name] = _as_module(module, "ModuleDict", repr(name))

    def __delitem__(self, name: str) -> None:
        self[name]
        changes.note()
        del self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def keys(self) -> Iterable[str]:
        """Return the names."""
        return self._items.keys()

    def values(self) -> Iterable[Module]:
        """Return the modules."""
        return self._items.values()

    def items(self) -> Iterable[tuple[str, Module]]:
        """Return names and modules."""
        return self._items.items()

    def update(self, modules: Mapping[str, Module]) -> None:
        """Add or replace modules.

        Args:
            modules: by name.
        """
        for name, module in modules.items():
            self[name] = module


def _check_name(owner: Module, name: object) -> None:
    kind = type(owner).__name__
    if not isinstance(name, str):
        raise ArgumentTypeError(f"{kind}: names are strings, got {name!r}")
    if not name or "." in name:
        raise ArgumentError(f"{kind}: {name!r} is no name for a module: paths are joined with dots")
    if name in vars(owner) or hasattr(type(owner), name):
        raise ArgumentError(
            f"{kind}: a module cannot be called {name!r}, that is an attribute of {kind} itself"
        )


class Identity(Module):
    """Returns its input: a layer that is switched off.

    Example:
        >>> ndl.nn.Identity()(ndl.ones(2))
        Tensor([1., 1.])
    """

    def forward(self, x: Any) -> Any:
        """Return ``x``."""
        return x


class Residual(Module):
    """Adds its input to the result of another module: ``x + module(x)``.

    Source: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", 2015.

    Args:
        module: what computes the difference; its result must have the shape of its input.

    Example:
        >>> ndl.nn.Residual(ndl.nn.ReLU())(ndl.asarray([-1.0, 2.0]))
        Tensor([-1.,  4.])
    """

    def __init__(self, module: Module) -> None:
        self.module = _as_module(module, "Residual", 0)

    def forward(self, x: Any) -> Any:
        """Return ``x + module(x)``.

        Args:
            x: what the module takes.

        Raises:
            ShapeError: the module changes the shape.
        """
        y = self.module(x)
        if y.shape != x.shape:
            raise ShapeError(
                f"Residual: the module turns {list(x.shape)} into {list(y.shape)}, which cannot be "
                "added to its input; both shapes must be equal"
            )
        return x + y
