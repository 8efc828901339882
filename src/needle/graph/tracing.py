"""Trace: run a function on tensors without values, and write down the ops it applies.

While a thread traces, every op comes here instead of running (`Trace.apply`): `infer` gives shape
and dtype of the results, and a `Node` is appended. Autograd goes on as always, over traced tensors,
so that a backward pass is recorded like everything else.

Tensors from outside of the function keep their arrays, which a trace never writes to. It gives each
of them a `Cell`, the storage that it has inside of the traced program, and reads and writes that.
What has been written at the end is state to be updated by whoever runs the graph; see
`needle.graph.trace`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from needle.config import autocast, modes, no_grad
from needle.devices import META
from needle.dtypes import DType
from needle.eager import finish, is_number, user_line
from needle.errors import DeviceError, TraceError
from needle.extents import Formula
from needle.graph.cell import Cell, describe
from needle.graph.guide import Guide, is_guardable
from needle.graph.ir import Node, Value
from needle.graph.surroundings import frozen
from needle.ops.copying import astype
from needle.ops.record import Op
from needle.ops.samples import Array
from needle.shapes import Spec
from needle.tensor import Tensor, initialise, wrap
from needle.writes import put_back

if TYPE_CHECKING:
    from needle.gradnode import SavedValueHook


class Capture:
    """A tensor from outside of the traced function that it read or wrote.

    Attributes:
        array: its array, or its cell in the trace around this one.
        value: the graph's input for it.
        cell: its storage in the trace.
        holders: the tensors that were seen to have the array.
        is_number: whether it is a Python number in disguise, which never changes.
        location: the line that first read it.
    """

    def __init__(self, array: Any, cell: Cell, location: str) -> None:
        self.array = array
        self.value = cell.value
        self.cell = cell
        self.holders: list[weakref.ref[Tensor]] = []
        self.is_number = False
        self.location = location

    def note(self, tensor: Tensor) -> None:
        """Remember that ``tensor`` has the array."""
        if not any(ref() is tensor for ref in self.holders):
            self.holders.append(weakref.ref(tensor))

    def tensors(self) -> list[Tensor]:
        """Return the tensors that still have the array."""
        found = [ref() for ref in self.holders]
        return [t for t in found if t is not None and t._data is self.array]

    @property
    def is_written(self) -> bool:
        """Whether the traced function overwrote it."""
        return self.cell.last() is not self.value


class GradSlot:
    """The `grad` of a tensor from outside, as the traced function sees it.

    Attributes:
        owner: the tensor.
        before: what it was when the trace began.
        now: what it is now.
        is_read: whether the function asked for what it was before.
    """

    def __init__(self, owner: Tensor) -> None:
        self.owner = owner
        self.before = self.now = owner._grad
        self.is_read = False
        self.is_set = False


@dataclass(eq=False)
class Watched:
    """Something that is no tensor and shaped the traced program.

    Attributes:
        what: what errors call it.
        probe: returns what is to be compared.
        before: what it returned at first; None if the function may change it.
        value: what it returned at the end of the trace.
        is_guard: whether the function is traced anew when it is something else.
    """

    what: str
    probe: Callable[[], Any]
    before: Any = None
    value: Any = None
    is_guard: bool = True


class Restart(Exception):
    """Ends a trace that is to be made again.

    Attributes:
        has_effects: whether that is because the function has changed something around it, which is
            all right if it does so only once; otherwise state was made that it should begin with.
    """

    def __init__(self, has_effects: bool = False) -> None:
        super().__init__()
        self.has_effects = has_effects


def anomaly_error() -> TraceError:
    """Return the error for tracing a function, or running it, while anomalies are looked for."""
    return TraceError(
        "anomalies are looked for in values, which a traced function does not have; call "
        "the function itself, without compile, inside of detect_anomaly"
    )


class Trace:
    """The record of one run of a function on traced tensors.

    Args:
        name: of the function, for errors.
        around: the trace that this one runs inside of.

    Attributes:
        nodes: what was applied, in order.
        captures: tensors from outside, by the id of their array.
        origin: the id of the GradNode whose rules run now; −1 elsewhere in a backward pass, None
            outside of one.
        scope: the path of the module that is being called.
        guide: answers what Python asks of traced values; None where that is an error.
    """

    def __init__(self, name: str, around: Trace | None = None) -> None:
        self.name = name
        self.around = around
        self.guide: Guide | None = None
        self.nodes: list[Node] = []
        self.captures: dict[int, Capture] = {}
        self.origin: int | None = None
        self.scope = ""
        self.is_closed = False
        #: Traces of functions that this one runs as parts, such as bodies of loops.
        self.parts: list[Trace] = []
        #: A node whose place in the user's program new nodes take, instead of looking for theirs.
        self.like: Node | None = None
        self.grads: dict[int, GradSlot] = {}
        #: Tensors that stand for the arguments, by id.
        self.arguments: dict[int, Tensor] = {}
        #: Names of those that have a history outside, by id.
        self.computed: dict[int, str] = {}
        self.reads: list[tuple[Array, weakref.ref[Tensor], str, str]] = []
        #: What the program depends on besides tensors, by what it is called.
        self.watched: dict[str, Watched] = {}
        #: What is to be called after each run of the graph.
        self.after: list[Callable[[], Any]] = []
        self.labels: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        #: What depends on an extent that varies: see `number`.
        self.numbers: dict[tuple[str, Any], tuple[Formula, Any]] = {}
        self._roots: list[Any] = []
        self._stack: list[Any] = []
        self._paths: dict[int, str] = {}
        self._origins: dict[int, tuple[str, str]] = {}
        self._recomputations: list[SavedValueHook] = []
        #: Tensors from outside that were written to, with what they were before.
        self._touched: dict[int, tuple[Tensor, dict[str, Any], list[int] | None]] = {}

    # Ops

    def apply(self, op: Op, inputs: tuple[Tensor, ...], attrs: dict[str, Any]) -> Any:
        """Record ``op``; the result is a traced tensor, or a tuple of them."""
        if modes.state.anomaly:  # switched on inside of the function
            raise anomaly_error()
        cells = [self.cell_of(t) for t in inputs]
        node, is_tuple = self.append(op, [c.read() for c in cells], attrs)
        made = [Cell(self, value) for value in node.results]
        if op.may_alias:
            made[0].make_view(cells[0], op, attrs)
        results = tuple([wrap(cell) for cell in made])
        if op.may_alias:
            results[0]._version = inputs[0]._version
            results[0]._history = inputs[0]._history
        finish(op, inputs, attrs, cells, results)
        for result in results:
            if result._node is not None:
                self._origins[result._node.id] = node.location, node.scope
                break
        return results if is_tuple else results[0]

    def append(
        self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any]
    ) -> tuple[Node, bool]:
        """Append a node; return it, and whether the op's results are a tuple."""
        try:
            specs = op.infer(*[v.spec for v in inputs], **attrs)
        except DeviceError as error:
            raise TraceError(
                f"{op.name} at {user_line()}: {error.message}".replace(
                    "which a meta tensor has not", "which a traced tensor has not"
                )
            ) from None
        several = not isinstance(specs, Spec)
        node = Node(op, inputs, attrs, specs if several else (specs,))
        if self.like is None:
            node.location, node.scope, node.is_backward = self._place()
            node.recomputation = self._recomputation()
        else:
            node.take_place(self.like)
        self.nodes.append(node)
        return node, several

    def emit(self, op: Op, inputs: Sequence[Value], attrs: Mapping[str, Any]) -> Value:
        """Append a node of one result, and return that."""
        return self.append(op, inputs, attrs)[0].result

    def _place(self) -> tuple[str, str, bool]:
        if self.origin is None:
            return user_line(), self.scope, False
        location, scope = self._origins.get(self.origin, ("", ""))
        return location or user_line(), scope, True

    def _recomputation(self) -> int:
        """Return the number of the recomputation that runs, counted in this trace; 0 for none."""
        hook = modes.state.saved_value_hook
        if hook is None or not hook.recomputes:
            return 0
        if hook not in self._recomputations:
            self._recomputations.append(hook)
        return self._recomputations.index(hook) + 1

    def rewrite(
        self, function: Callable[..., Tensor], values: Sequence[Value], attrs: Mapping[str, Any]
    ) -> Value:
        """Return the value of ``function``, written with ops, of tensors that hold ``values``."""
        with no_grad():
            result = function(*[wrap(Cell(self, v)) for v in values], **attrs)
        return self.cell_of(result).read()

    def converted(self, cell: Cell, dtype: DType) -> Cell:
        """Return a new cell with the values of another in ``dtype``."""
        return Cell(self, self.emit(astype.op, [cell.read()], {"dtype": dtype}))

    # Tensors

    def cell_of(self, tensor: Tensor) -> Cell:
        """Return the storage that ``tensor`` has in this trace."""
        data = tensor._data
        if data.__class__ is Cell:
            if data.trace is self:
                return data
            if not self._is_around(data.trace):
                data.refuse("this op")
        elif data.__class__ is not np.ndarray:
            if tensor.device is META:
                raise DeviceError("a tensor on the meta device has no values to compute with")
            data.refuse("this op")
        return self.capture(tensor).cell

    def _is_around(self, other: Trace) -> bool:
        trace = self.around
        while trace is not None:
            if trace is other:
                return not other.is_closed
            trace = trace.around
        return False

    def capture(self, tensor: Tensor) -> Capture:
        """Return the capture of a tensor from outside; a new one for a new array."""
        data = tensor._data
        capture = self.captures.get(id(data))
        if capture is None:
            spec = Spec(data.shape, data.dtype)
            if data.__class__ is np.ndarray and tensor._node is not None and modes.state.grad:
                raise self.unsupported(
                    f"a tensor of shape {list(tensor.shape)} (result of {tensor._node.name}), "
                    "computed outside with its history; detach() it, compute it inside, or pass "
                    "it as an argument"
                )
            is_contiguous = data.__class__ is np.ndarray and data.flags.c_contiguous
            cell = Cell(self, Value(spec), is_contiguous)
            capture = self.captures[id(data)] = Capture(data, cell, user_line())
            if data.__class__ is np.ndarray and is_number(data):
                capture.is_number = True
                capture.value.constant = data
        if not capture.is_number:
            capture.note(tensor)
        return capture

    def argument(self, spec: Spec, requires_grad: bool, name: str = "") -> Tensor:
        """Return a leaf that stands for an argument."""
        cell = Cell(self, Value(spec, name=name))
        tensor = initialise(Tensor.__new__(Tensor), cell, not modes.state.inference)
        tensor._requires_grad = requires_grad
        self.arguments[id(tensor)] = tensor
        return tensor

    def number(self, formula: Formula, dtype: DType) -> Tensor:
        """Return a 0-d tensor of what a formula is worth in each call: an input of the graph."""
        numbers = self.numbers = formula.symbol.numbers
        key = formula.text, dtype
        if key not in numbers:
            numbers[key] = formula, Value(Spec((), dtype), name=formula.text)
        return wrap(Cell(self, numbers[key][1]))

    def own(self, tensor: Tensor) -> Tensor:
        """Return a leaf with the values of ``tensor`` in storage of its own."""
        return wrap(self.cell_of(tensor).copy())

    def write(self, target: Tensor, value: Tensor) -> None:
        """Overwrite ``target`` with ``value``, of the same shape and dtype."""
        cell, new = self.cell_of(target), self.cell_of(value).read()
        data = target._data
        if data.__class__ is not Cell or data.trace is not self:
            if data.__class__ is np.ndarray and not data.flags.writeable:
                raise TraceError(
                    f"in-place write to a read-only tensor at {user_line()} (expanded from fewer "
                    "elements, or made from a read-only array); clone() it first"
                )
            self.touch(target)
        cell.write(new, user_line())

    def touch(self, tensor: Tensor) -> None:
        """Remember what ``tensor`` is, to put it back when the trace ends."""
        if id(tensor) in self._touched:
            return
        slots = ("_node", "_index", "_requires_grad", "_history")
        version = tensor._version
        before = {name: getattr(tensor, name) for name in slots}
        self._touched[id(tensor)] = tensor, before, None if version is None else list(version)

    def is_same_place(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors are the same view of the same storage."""
        return self.cell_of(a).path() == self.cell_of(b).path()

    # Gradients

    def begin_backward(self) -> int | None:
        """Note that a backward pass begins, and return `origin` as it was."""
        before = self.origin
        self.origin = -1
        return before

    def _slot(self, tensor: Tensor) -> GradSlot | None:
        """Return the slot of a tensor from outside or an argument; None for computed tensors."""
        data = tensor._data
        is_inside = data.__class__ is Cell and data.trace is self
        if is_inside and id(tensor) not in self.arguments:
            return None
        slot = self.grads.get(id(tensor))
        if slot is None:
            slot = self.grads[id(tensor)] = GradSlot(tensor)
        return slot

    def read_grad(self, tensor: Tensor) -> Tensor | None:
        """Return ``tensor.grad`` as the traced function left it."""
        slot = self._slot(tensor)
        if slot is None:
            return tensor._grad
        if not slot.is_set:
            slot.is_read = True
        return slot.now

    def write_grad(self, tensor: Tensor, value: Tensor | None) -> None:
        """Set ``tensor.grad`` inside of the traced function."""
        slot = self._slot(tensor)
        if slot is None:
            tensor._grad = value
        elif id(tensor) in self.computed:
            raise TraceError(
                f"{self.name}: a backward pass at {user_line()} reaches the argument "
                f"{self.computed[id(tensor)]} of the function, which was computed outside, so that "
                "the pass would have to go on there; detach() the argument, or call backward() "
                "outside, on the result"
            )
        else:
            slot.now, slot.is_set = value, True

    # Modules, and what else shapes the program

    def enter(self, module: Any) -> str:
        """Note that ``module`` is being called, and return the scope around it."""
        around = self.scope
        if not self._stack and not any(root is module for root in self._roots):
            self._roots.append(module)
            for path, inside in module.named_modules():
                self._paths.setdefault(id(inside), path)
            for path, tensor in (*module.named_parameters(), *module.named_buffers()):
                self.label(tensor, path)
        self._stack.append(module)
        path = self._paths.get(id(module))
        if path is None:  # made within a call
            path = ".".join(part for part in (around, type(module).__name__) if part)
        self.scope = path or around
        self.watch_module(module, path)
        return around

    def watch_module(self, module: Any, path: str = "") -> None:
        """Have the program traced anew when an attribute of ``module`` changes."""
        key = f"module {id(module)}"
        if key not in self.watched:
            what = f"layer {path}" if path else type(module).__name__
            before = attributes_of(module)
            self.watched[key] = Watched(what, lambda: attributes_of(module), before)

    def leave(self, around: str) -> None:
        """Note that the call of a module is over."""
        self._stack.pop()
        self.scope = around

    def restart(self) -> NoReturn:
        """Trace the function again from its beginning."""
        raise Restart

    def watch(self, what: str, probe: Callable[[], Any]) -> None:
        """Have the program traced anew when ``probe()`` returns something else than now."""
        if what not in self.watched:
            self.watched[what] = Watched(what, probe)

    def label(self, tensor: Tensor, name: str, owner: Tensor | None = None) -> None:
        """Say what people call a tensor from outside: ``name``, of ``owner`` if there is one."""
        if owner is not None:
            ref, of = self.labels.get(id(owner), (None, ""))
            name = f"{of}.{name}" if ref is not None and ref() is owner else name
        self.labels.setdefault(id(tensor), (weakref.ref(tensor), name))

    def after_call(self, callback: Callable[[], Any], writes: Sequence[Tensor], what: str) -> None:
        """Have ``callback`` called after each run of the graph.

        Args:
            callback: called with nothing, outside of the trace.
            writes: the tensors that it will change, which must not be read later in the trace.
            what: what errors call it.
        """
        self.after.append(callback)
        for tensor in writes:
            self.cell_of(tensor).bar(
                f"{what} at {user_line()} runs after each call of {self.name}, because it is no "
                "tensor program; so nothing that it changes can be used after it: call it last, "
                "or outside"
            )

    # Values that are asked for

    def answer(self, tensor: Tensor, use: str) -> Any:
        """Return what a ``use`` of the only element of ``tensor`` gives; None if nobody knows."""
        if self.guide is None or not is_guardable(use, tensor.dtype) or is_number(tensor._data):
            return None
        return self.guide.answer(self, self.cell_of(tensor).read(), use)

    def note_read(self, tensor: Tensor, use: str) -> None:
        """Remember that the values of a tensor with an array were used in Python."""
        array = tensor._data
        capture = self.captures.get(id(array))
        if capture is not None and capture.is_written:
            raise self.error_for(capture.cell.read(), use)
        if not is_number(array):
            self.reads.append((array, weakref.ref(tensor), use, user_line()))

    def error_for(self, value: Value, use: str) -> TraceError:
        """Return the error for a ``use`` of a value that a traced tensor does not have."""
        what = describe(value.node) or (f"{value.name!r}" if value.name else "an input")
        if self.is_closed:
            return TraceError(
                f"{use}: this tensor ({what}, {value.spec}) was left behind by the traced function "
                f"{self.name}, and has no values outside of it; return it from the function, or "
                "write it into a tensor that exists before, such as an nn.Buffer: "
                "buffer.copy_(value)"
            )
        ways = (
            "compute with tensors instead: ndl.where, ndl.cond, ndl.while_loop or ndl.scan for "
            "control flow, or return the tensor and read it outside"
        )
        if is_guardable(use, value.dtype) and self.guide is None and self.around is None:
            ways += '; compile(..., branches="specialise") compiles each path that Python takes'
        return TraceError(
            f"{use} at {user_line()}: while {self.name} is traced, tensors have no values; this "
            f"one is {what}, {value.spec}; {ways}"
        )

    def unsupported(self, what: str) -> TraceError:
        """Return the error for something that a traced function cannot do."""
        return TraceError(f"{user_line()}: {self.name} cannot be traced: it uses {what}")

    # The end

    def touched(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Return the tensors from outside that were written to, with what they were before."""
        return [(tensor, before) for tensor, before, _ in self._touched.values()]

    def restore(self) -> None:
        """Put the tensors that were written to back to what they were."""
        for tensor, slots, version in self._touched.values():
            for name, value in slots.items():
                setattr(tensor, name, value)
            if version is not None and tensor._version is not None:
                put_back(tensor._version, version)
        self._touched.clear()

    def close_parts(self) -> None:
        """End the traces of the parts: none of them is differentiated any more."""
        for part in self.parts:
            part.close()
        self.parts.clear()

    def close(self) -> None:
        """End the trace: from now on its tensors are errors."""
        self.is_closed = True
        self.close_parts()
        self.arguments.clear()
        self.captures.clear()
        self.grads.clear()
        self._origins.clear()
        self._roots.clear()
        self._paths.clear()
        self.labels.clear()
        self.reads.clear()

    def __enter__(self) -> Trace:
        state = modes.state
        self._before = state.trace, state.anomaly
        # Nothing here has values to look for anomalies in, and constants may well be infinite.
        state.trace, state.anomaly = self, False
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        modes.state.trace, modes.state.anomaly = self._before
        self.restore()
        if kind is not None:
            self.close()


def attributes_of(module: Any) -> dict[str, Any]:
    """Return the attributes of a module, in a form that compares unequal when one changes."""
    hooks = module._hooks
    found = {name: frozen(value) for name, value in vars(module).items() if name != "_hooks"}
    if hooks is not None:
        found["_hooks"] = (tuple(map(id, hooks.before)), tuple(map(id, hooks.after)))
    found["training"] = module.training
    return found


def expand(
    function: Callable[..., Any], inputs: Sequence[Value], attrs: Mapping[str, Any], like: Node
) -> list[Value]:
    """Return the values of ``function``, written with public ops, of values of a graph.

    For passes: the new nodes hang on ``inputs`` and are found from what is returned.

    Args:
        function: from tensors (positional) and attributes (keyword) to a tensor or a tuple.
        inputs: values of the graph.
        attrs: the attributes.
        like: the node whose place the new ones take: they get its location and scope.

    Example:
        >>> from needle.graph import expand, trace
        >>> graph = trace(ndl.exp, ndl.zeros(2)).graph
        >>> (y,) = expand(lambda x: x * x + 1, graph.inputs, {}, graph.nodes[0])
        >>> y.node.op.name, y.node.inputs[0].node.op.name
        ('add', 'multiply')
    """
    trace = Trace(like.op.name, modes.state.trace)
    trace.like = like
    with trace, no_grad(), autocast(enabled=False):
        result = function(*[wrap(Cell(trace, v)) for v in inputs], **attrs)
        tensors = result if isinstance(result, tuple) else (result,)
        values = [trace.cell_of(t).read() for t in tensors]
    # Arrays that the function made, such as masks, are constants of the graph.
    for capture in trace.captures.values():
        capture.value.constant = capture.array
    trace.close()
    return values
