"""Indexing: ``x[key]`` and its functional counterpart of ``x[key] = v``.

A key is read once, into a `Selection`: a slice along each axis, an arrangement that drops and
inserts axes of extent 1, and tensors of indices for some of the axes that then are there. Slices
give views, as in NumPy and PyTorch; indices and masks give copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from needle import dtypes
from needle.errors import (
    ArgumentError,
    ArgumentTypeError,
    AxisError,
    DTypeError,
    OutOfRangeError,
    ShapeError,
)
from needle.extents import is_single, is_varying
from needle.ops.comparison import where
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor, engine
from needle.ops.movement import broadcast_to, reshape
from needle.ops.places import as_indices, front_of, nonzero, take_at, taken_shape
from needle.ops.record import composite
from needle.ops.samples import Sample, bad, bools, integers, normal
from needle.ops.slicing import strided_slice
from needle.ops.updates import update_at, update_slice
from needle.shapes import Shape, Spec, slice_bounds, steps_in

if TYPE_CHECKING:
    from needle.tensor import Tensor


class Selection(NamedTuple):
    """What a key selects.

    Attributes:
        starts, stops, steps: the slice along each axis of the tensor, as `strided_slice` takes it.
        sliced: shape of that slice.
        shape: shape after dropping and inserting axes.
        indices: tensors of int64; empty for a key of ints and slices alone.
        axes: the axes of ``shape`` that they index, rising.
        taken: shape of what they take there.
        result: shape of ``x[key]``; that of ``taken`` but for axes of extent 1.
    """

    starts: tuple[int, ...]
    stops: tuple[int, ...]
    steps: tuple[int, ...]
    sliced: Shape
    shape: Shape
    indices: tuple[Tensor, ...]
    axes: tuple[int, ...]
    taken: Shape
    result: Shape


def select(shape: Shape, key: Any) -> Selection:
    """Read ``key`` as an index into a tensor of ``shape``.

    Raises:
        AxisError: more indices than axes.
        OutOfRangeError: an int outside of its axis.
        DTypeError: indices that are neither integers nor bools.
        ShapeError: a mask of another shape than the axes it stands for.
        ArgumentTypeError: something that is no index.
    """
    parts: list[Any] = []
    used = ellipses = 0
    # With tensors about, an int is an index like them: it counts for where their axes go.
    has_tensors = False
    for given in key if isinstance(key, tuple) else (key,):
        part: Any = given if given.__class__ is slice or given.__class__ is int else _part(given)
        parts.append(part)
        if part is Ellipsis:
            ellipses += 1
        elif _is_tensor(part):
            has_tensors = True
            used += part.ndim if part.dtype == dtypes.bool else 1
        elif part is not None:
            used += 1
    if used > len(shape):
        raise AxisError(
            f"index: {used} indices for a tensor of {len(shape)} axes (shape {list(shape)})"
        )
    if ellipses > 1:
        raise ArgumentError("index: only one Ellipsis (...) can stand in a key")
    if not ellipses:
        parts.append(Ellipsis)
    reader = _Reader(shape)
    for part in parts:
        if part is Ellipsis:
            for _ in range(len(shape) - used):
                reader.take_whole()
            if len(shape) == used and ellipses and has_tensors:
                reader.separate()
        elif part is None:
            reader.insert_axis()
        elif isinstance(part, slice):
            reader.take_slice(part)
        elif isinstance(part, int):
            reader.take_int(part, as_index=has_tensors)
        elif part.dtype == dtypes.bool:
            reader.take_mask(part)
        else:
            reader.take_tensor(part)
    return reader.selection()


def _is_tensor(part: Any) -> bool:
    return not (isinstance(part, (int, slice)) or part is None or part is Ellipsis)


def _part(part: Any) -> Any:
    """Return one part of a key as None, Ellipsis, a slice, an int or a tensor of ints or bools."""
    if part is None or part is Ellipsis or isinstance(part, slice):
        return part
    if isinstance(part, bool):
        return as_tensor(np.asarray(part))
    if isinstance(part, int):
        return part
    if isinstance(part, (float, str, bytes, dict, set)):
        raise ArgumentTypeError(
            "index: a key is made of ints, slices, None, ..., tensors of ints and masks of bools; "
            f"got {part!r:.60}"
        )
    if isinstance(part, np.integer):
        return int(part)
    t = as_tensor(part)
    return t if t.dtype == dtypes.bool else as_indices(part, "index")


class _Reader:
    """Goes through the parts of a key, and the axes with it."""

    def __init__(self, shape: Shape) -> None:
        self.extents = shape
        self.slices: list[tuple[int, int, int]] = []
        self.shape: list[int] = []
        self.indices: list[Tensor] = []
        self.axes: list[int] = []
        self.separator: int | None = None

    def selection(self) -> Selection:
        """Return what was read."""
        starts, stops, steps = zip(*self.slices, strict=True) if self.slices else ((), (), ())
        sliced = tuple(steps_in(*s) for s in self.slices)
        shape, indices, axes = tuple(self.shape), tuple(self.indices), tuple(self.axes)
        taken = result = shape
        if indices:
            specs = [Spec(i.shape, i.dtype) for i in indices]
            taken = result = taken_shape("index", shape, specs, axes)
            if self.separator is not None:
                before = sum(a < self.separator for a in range(len(shape)) if a not in axes)
                place = before + (len(taken) - len(shape) + len(axes)) * (before >= front_of(axes))
                result = taken[:place] + taken[place + 1 :]
        return Selection(starts, stops, steps, sliced, shape, indices, axes, taken, result)

    def take_whole(self) -> None:
        """Read the next axis as it is."""
        extent = self.extents[len(self.slices)]
        self.slices.append((0, extent, 1))
        self.shape.append(extent)

    def take_slice(self, part: slice) -> None:
        """Read a slice of the next axis."""
        try:
            bounds = slice_bounds(part, self.extents[len(self.slices)])
        except TypeError:
            raise ArgumentTypeError(
                f"index: the parts of a slice must be integers or None, got {part}"
            ) from None
        except ValueError:
            raise ArgumentError(f"index: the step of a slice cannot be 0, got {part}") from None
        count = steps_in(*bounds)
        # Empty slices may have bounds that mean something else as attributes.
        self.slices.append(bounds if count else (0, 0, 1))
        self.shape.append(count)

    def take_int(self, part: int, *, as_index: bool) -> None:
        """Read an int, which drops the next axis."""
        axis = len(self.slices)
        extent = self.extents[axis]
        if not -extent <= part < extent:
            raise _out_of_range(part, axis, extent)
        if as_index:
            self.take_tensor(as_tensor(part, dtypes.int64))
            return
        part %= extent
        self.slices.append((part, part + 1, 1))

    def take_tensor(self, part: Tensor) -> None:
        """Read a tensor of indices into the next axis."""
        extent = self.extents[len(self.slices)]
        self.slices.append((0, extent, 1))
        self._index(part, extent)

    def insert_axis(self) -> None:
        """Read None."""
        self.shape.append(1)

    def separate(self) -> None:
        """Read an ellipsis for no axes, which NumPy takes to part the tensors on its sides."""
        self.separator = len(self.shape)
        self.shape.append(1)

    def take_mask(self, part: Tensor) -> None:
        """Read a mask of bools, which stands for as many axes as it has."""
        first = len(self.slices)
        covered = self.extents[first : first + part.ndim]
        if part.shape != covered:
            raise ShapeError(
                f"index: a mask of shape {list(part.shape)} for axes {first} to "
                f"{first + part.ndim - 1} of a tensor of shape {list(self.extents)}; they must be "
                "equal"
            )
        if part.ndim == 0:
            # True or False as a whole: a new axis of extent 1, taken once or not at all.
            self._index(nonzero(reshape(part, (1,)))[0], 1)
            return
        for extent, index in zip(covered, nonzero(part), strict=True):
            self.slices.append((0, extent, 1))
            self._index(index, extent)

    def _index(self, index: Tensor, extent: int) -> None:
        self.axes.append(len(self.shape))
        self.indices.append(index)
        self.shape.append(extent)


def _out_of_range(index: int, axis: int, extent: int) -> OutOfRangeError:
    valid = f"valid are {-extent} to {extent - 1}" if extent else "it has no elements"
    return OutOfRangeError(
        f"index: index {index} is out of range for axis {axis} of extent {extent}; {valid}"
    )


def _getitem_samples() -> Iterable[Sample]:
    x = normal(4, 5, 3)
    yield Sample((x, 1))
    yield Sample((x, (slice(1, 3), -1)), label="slice and int")
    yield Sample((x, (Ellipsis, slice(None, None, 2))), label="steps")
    yield Sample((x, (slice(None, None, -2), 0)), label="backwards", has_peer=False)
    yield Sample((x, (slice(3, 1), 0)), label="empty")
    yield Sample((x, (None, Ellipsis, None, 0)), label="new axes")
    yield Sample((x, integers(-4, 4, 2, 3)), label="indices")
    yield Sample((x, (integers(0, 4, 3), integers(0, 5, 3))), label="two indices")
    yield Sample((x, (integers(0, 4, 3), slice(None), 1)), label="indices apart")
    yield Sample((x, bools(4, 5)), label="mask")
    yield Sample((x, (slice(None), bools(5), 0)), label="mask and int")
    yield Sample((normal(), Ellipsis), label="0-d")
    yield bad(OutOfRangeError, "index 4 is out of range for axis 0", x, 4)
    yield bad(AxisError, "4 indices for a tensor of 3 axes", x, (0, 0, 0, 0))
    yield bad(DTypeError, "must be integers, got float64", x, normal(2))
    yield bad(ShapeError, r"a mask of shape \[3\]", x, bools(3))
    yield bad(ArgumentTypeError, "made of ints", x, 1.5)
    yield bad(ArgumentError, "cannot be 0", x, slice(None, None, 0))


@composite(samples=_getitem_samples, peer=lambda torch, x, key: x[key])
def getitem(x: TensorLike, key: Any) -> Tensor:
    """Select elements: ``x[key]``, with NumPy's rules.

    Ints and slices give a view, which shares the storage; tensors of indices and masks give a copy.
    Where indices name an element twice, its gradients add up.

    Args:
        x: any shape.
        key: ints, slices of any step, ``...``, None (a new axis), tensors, arrays or lists of
            integers (they broadcast together), masks of bools, or a tuple of these.

    Raises:
        OutOfRangeError: an index is outside of its axis.
        AxisError: more indices than axes.
        DTypeError: indices that are neither integers nor bools.
        ShapeError: a mask of the wrong shape, or indices that do not broadcast.
        ArgumentError: a slice with step 0, or several ``...``.

    Example:
        >>> x = ndl.asarray([[1, 2, 3], [4, 5, 6]])
        >>> x[:, -1].tolist(), x[[1, 1], [0, 2]].tolist(), x[x > 4].tolist()
        ([3, 6], [4, 6], [5, 6])
    """
    t = as_tensor(x)
    shape = t.shape
    if shape:
        simple = _getitem_first(t, shape, key)
        if simple is not None:
            return simple
    chosen = select(shape, key)
    if chosen.sliced != shape or any(step < 0 for step in chosen.steps):
        t = apply(strided_slice, t, starts=chosen.starts, stops=chosen.stops, steps=chosen.steps)
    # A key that changes nothing still gives a new tensor.
    if chosen.shape != chosen.sliced or (t is x and not chosen.indices):
        t = apply(reshape, t, shape=chosen.shape)
    if not chosen.indices:
        return t
    t = take_at(t, chosen.indices, chosen.axes)
    return t if chosen.result == chosen.taken else reshape(t, chosen.result)


def _getitem_first(t: Tensor, shape: Shape, key: Any) -> Tensor | None:
    """Return ``t[key]`` for the commonest keys: one int, slice or tensor of ints; else None."""
    kind = key.__class__
    extent, rest = shape[0], shape[1:]
    if is_varying(extent) and (kind is int or kind is slice):
        return None
    result: Tensor
    if kind is int:
        if not -extent <= key < extent:
            raise _out_of_range(key, 0, extent)
        bounds = (key % extent, key % extent + 1, 1)
    elif kind is slice:
        try:
            bounds = key.indices(extent)
        except (TypeError, ValueError):
            return None
        if not range(*bounds):
            return None
    else:
        if getattr(key, "dtype", None) != dtypes.int64 or kind is not t.__class__:
            return None
        result = engine.apply(take_at.op, (t, key), _ALONG_FIRST)
        return result
    start, stop, step = bounds
    attrs: dict[str, Any] = {"starts": (start,), "stops": (stop,), "steps": (step,)}
    if rest:
        zeros, ones = (0,) * len(rest), (1,) * len(rest)
        attrs = {"starts": (start, *zeros), "stops": (stop, *rest), "steps": (step, *ones)}
    result = engine.apply(strided_slice.op, (t,), attrs)
    return engine.apply(reshape.op, (result,), {"shape": rest}) if kind is int else result


_ALONG_FIRST = {"axes": (0,), "signed": True}


def _setitem_samples() -> Iterable[Sample]:
    x = normal(4, 5, 3)
    yield Sample((x, 1, normal(5, 3)))
    yield Sample((x, (slice(1, 3), -1), normal(3)), label="broadcast")
    yield Sample((x, (slice(None, None, -2), 0), normal(2, 1)), label="backwards")
    yield Sample((x, (None, Ellipsis, 0), normal(1, 4, 5)), label="new axes")
    yield Sample((x, 0, 2.5), label="Python number")
    yield Sample((x, np.array([2, 0]), normal(2, 5, 3)), label="indices")
    yield Sample((x, np.array([2, 0, 2]), normal(3, 5, 3)), label="the last stays")
    yield Sample((x, (np.array([0, 3, 1]), slice(None), 1), normal(5)), label="indices apart")
    yield Sample((x, bools(4, 5), normal(3)), label="mask")
    yield Sample((x, bools(4), normal(bools(4).sum(), 5, 3)), label="mask, a value for each")
    yield bad(ShapeError, r"does not broadcast to \[5, 3\]", x, 1, normal(4))
    yield bad(OutOfRangeError, "index 4", x, 4, 0.0)


@composite(samples=_setitem_samples)
def setitem(x: TensorLike, key: Any, value: TensorLike) -> Tensor:
    """Copy with some elements replaced: what ``x[key] = value`` does in place.

    Gradients flow to ``value``, and to ``x`` where it was not replaced. Where indices name an
    element twice, the last value stays, and only that one gets a gradient.

    Args:
        x: any shape.
        key: as for ``x[key]``.
        value: broadcasts to the shape of ``x[key]``; converted to the dtype of ``x``.

    Raises:
        ShapeError: the value does not broadcast to the shape of ``x[key]``.
        OutOfRangeError: an index is outside of its axis.

    Example:
        >>> ndl.setitem(ndl.zeros(4), slice(1, 3), 5.0)
        Tensor([0., 5., 5., 0.])
    """
    t = as_tensor(x)
    v = as_tensor(value, t.dtype) if isinstance(value, (int, float)) else as_tensor(value)
    v = v.astype(t.dtype, copy=False)
    mask = _single_mask(key)
    if mask is not None and mask.shape == t.shape[: mask.ndim] and v.ndim <= t.ndim - mask.ndim:
        # One value for all: no need to know how many places there are.
        return where(reshape(mask, mask.shape + (1,) * (t.ndim - mask.ndim)), v, t)
    chosen = select(t.shape, key)
    v = fit_value(v, chosen.result)
    if not chosen.indices:
        v = reshape(v, chosen.sliced)
        return update_slice(t, v, chosen.starts, chosen.stops, chosen.steps)
    whole = chosen.sliced == t.shape and all(step > 0 for step in chosen.steps)
    part = t if whole else strided_slice(t, chosen.starts, chosen.stops, chosen.steps)
    v = reshape(v, chosen.taken)
    part = update_at(reshape(part, chosen.shape), v, chosen.indices, chosen.axes)
    part = reshape(part, chosen.sliced)
    return part if whole else update_slice(t, part, chosen.starts, chosen.stops, chosen.steps)


def _single_mask(key: Any) -> Tensor | None:
    if isinstance(key, tuple):
        if len(key) != 1:
            return None
        (key,) = key
    if key is None or key is Ellipsis or isinstance(key, (int, slice, str, float, dict, set)):
        return None
    mask = as_tensor(key)
    return mask if mask.dtype == dtypes.bool and mask.ndim else None


def fit_value(v: Tensor, shape: Shape) -> Tensor:
    """Return ``v`` broadcast to ``shape``; leading axes of extent 1 may be too many, as in NumPy.

    Raises:
        ShapeError: it does not broadcast.
    """
    if v.shape == shape:
        return v
    given = v.shape
    while len(given) > len(shape) and given[0] == 1:
        given = given[1:]
    lead = len(shape) - len(given)
    if lead < 0 or any(
        not is_single(n) and n != m for n, m in zip(given, shape[lead:], strict=True)
    ):
        raise ShapeError(
            f"x[key] = value: the value of shape {list(v.shape)} does not broadcast to "
            f"{list(shape)}, the shape of x[key]"
        )
    return broadcast_to(reshape(v, given), shape)


__all__ = ["getitem", "setitem"]
