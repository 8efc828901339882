"""Class labels: integers that say which of the scores along an axis counts.

Labels are checked as they are used, at the cost of one comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from needle.dtypes import int32, int64, is_float, is_integer
from needle.errors import DTypeError, OutOfRangeError, ShapeError
from needle.ops.checks import expect_range
from needle.ops.comparison import equal, where
from needle.ops.elementwise import TensorLike
from needle.ops.engine import apply, as_tensor
from needle.ops.gather import take_along_axis
from needle.ops.movement import broadcast_to, expand_dims, reshape
from needle.ops.record import Kind, op
from needle.ops.reduce import sum
from needle.ops.samples import Array, Sample, bad, integers, normal
from needle.shapes import Shape, Spec, as_shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from needle.tensor import Tensor


def class_axis(scores: Shape, name: str) -> int:
    """Return the axis of the classes: 1 as in PyTorch, or the only one."""
    if not scores:
        raise ShapeError(f"{name}: needs an axis of classes, [N, C, …] or [C], got a 0-d tensor")
    return min(1, len(scores) - 1)


def check_labels(scores: Tensor | Spec, target: Tensor | Spec, axis: int, name: str) -> None:
    """Raise unless dtype and shape of ``target`` suit labels for the classes of ``scores``."""
    shape = scores.shape
    if not is_integer(target.dtype):
        raise DTypeError(
            f"{name}: class labels must be integers, got {target.dtype.name} of shape "
            f"{list(target.shape)}; check that they are whole numbers (not NaN) and convert them "
            f"with astype('int64'). Class probabilities must have the logits' shape {list(shape)}"
        )
    expected = shape[:axis] + shape[axis + 1 :]
    if target.shape != expected:
        raise ShapeError(
            f"{name}: predictions {list(shape)}, with {shape[axis]} classes on axis {axis}, need "
            f"labels of shape {list(expected)}, got {list(target.shape)}"
        )


def safe_labels(target: Array, classes: int, ignore_index: int) -> tuple[Array, Array | None]:
    """Return flat labels that are safe as indices, and where they are ignored (None: nowhere).

    Raises:
        OutOfRangeError: a label that is neither a class nor ``ignore_index``.
    """
    labels = target.astype(np.int64, copy=False).reshape(-1)
    # As unsigned numbers, negative labels are too large: one comparison finds all that are bad.
    outside = labels.view(np.uint64) >= classes
    if not (0 <= ignore_index < classes or np.count_nonzero(outside)):
        return labels, None
    ignored = labels == ignore_index
    outside &= ~ignored
    if np.count_nonzero(outside):
        flat = int(np.argmax(outside))
        place = [int(i) for i in np.unravel_index(flat, target.shape)]
        raise OutOfRangeError(
            f"cross_entropy: label {target.reshape(-1)[flat]} at position {place} is no class: "
            f"with {classes} classes, labels go from 0 to {classes - 1} ({ignore_index} is ignored)"
        )
    return np.where(ignored, 0, labels), ignored


def tensor_labels(
    target: Tensor, classes: int, ignore_index: int, name: str = "cross_entropy"
) -> tuple[Tensor, Tensor]:
    """Return what `safe_labels` does, written with ops: labels, and where they are ignored.

    The labels are int32, of the shape of ``target``, 0 where they are ignored.
    """
    given = target.astype(int64, copy=False)
    ignored = equal(given, ignore_index)
    valid = f"labels go from 0 to {classes - 1} ({ignore_index} is ignored)"
    labels = expect_range(
        where(ignored, 0, given),
        0,
        max(classes, 1),
        f"{name}: label {{value}}{{where}} is no class: with {classes} classes, {valid}",
    )
    return labels.astype(int32), ignored


def is_class(labels: Tensor, axis: int, classes: int) -> Tensor:
    """Return a one-hot mask: bools with an axis of ``classes`` inserted, true at the labels."""
    shape = [1] * (labels.ndim + 1)
    shape[axis] = classes
    return equal(
        expand_dims(labels, axis), as_tensor(np.arange(classes, dtype=int32).reshape(shape))
    )


def as_rows(logits: Array, axis: int) -> Array:
    """Return the logits as a matrix, the classes along its rows."""
    if axis == 1 and logits.ndim == 2:
        return logits
    return np.moveaxis(logits, axis, -1).reshape(-1, logits.shape[axis])


def _infer_selected(scores: Spec, target: Spec, *, axis: int, ignore_index: int) -> Spec:
    check_labels(scores, target, axis, "nll_loss")
    return Spec(target.shape, scores.dtype)


def _selected(scores: Array, target: Array, *, axis: int, ignore_index: int) -> Array:
    rows = as_rows(scores, axis)
    labels, ignored = safe_labels(target, rows.shape[1], ignore_index)
    chosen = (
        rows[np.arange(len(labels)), labels] if rows.size else np.zeros(len(labels), rows.dtype)
    )
    if ignored is not None:
        chosen[ignored] = 0
    return chosen.reshape(target.shape)


def _select(scores: Tensor, target: Tensor, *, axis: int, ignore_index: int) -> Tensor:
    classes = scores.shape[axis]
    labels, ignored = tensor_labels(target, classes, ignore_index)
    if not classes:
        return broadcast_to(as_tensor(0, scores.dtype), target.shape)
    if is_float(scores.dtype):
        # Fuses with what computes the scores, which a gather does not.
        chosen = sum(where(is_class(labels, axis, classes), scores, 0), axis)
    else:
        chosen = reshape(
            take_along_axis(scores, expand_dims(labels, axis), axis=axis), target.shape
        )
    return where(ignored, 0, chosen)


def _selected_samples() -> Iterable[Sample]:
    yield Sample((normal(5, 4), integers(0, 4, 5)))
    yield Sample((normal(2, 3, 4), integers(0, 3, 2, 4)), label="places")
    yield Sample((normal(4), np.array(2)), label="one example")
    yield Sample((normal(5, 4), np.array([0, -1, 3, 2, -1]), -1), label="ignored")
    yield Sample((normal(0, 4), integers(0, 4, 0)), label="empty")
    yield bad(OutOfRangeError, "label 4 at position", normal(2, 4), np.array([0, 4]))
    yield bad(ShapeError, "need labels of shape", normal(2, 4), integers(0, 4, 2, 1))


def _torch_selected(torch: Any, scores: Any, target: Any, ignore_index: int = -100) -> Any:
    return -torch.nn.functional.nll_loss(
        scores, target, reduction="none", ignore_index=ignore_index
    )


def _selected_vjp(
    g: Tensor, scores_shape: Shape, target: Tensor, axis: int, ignore_index: int
) -> Tensor:
    return apply(place_labels, g, target, shape=scores_shape, axis=axis, ignore_index=ignore_index)


@op(
    kind=Kind.INDEXING,
    infer=_infer_selected,
    reference=_selected,
    decompose=_select,
    vjp={"scores": _selected_vjp},
    samples=_selected_samples,
    is_method=False,
    peer=_torch_selected,
)
def select_labels(scores: TensorLike, target: TensorLike, ignore_index: int = -100) -> Tensor:
    """Score of each example's labelled class; 0 where the label is ignored.

    Args:
        scores: [N, C, …], or [C] for one example.
        target: [N, …], or 0-d: integers from 0 to C − 1.
        ignore_index: label of the places that do not count.

    Returns:
        The shape of ``target``.

    Raises:
        OutOfRangeError: a label that is no class.
        DTypeError: labels that are not integers.
        ShapeError: shapes that do not fit.

    Example:
        >>> ndl.select_labels(ndl.asarray([[1.0, 2.0], [3.0, 4.0]]), ndl.asarray([1, 0]))
        Tensor([2., 3.])
    """
    t = as_tensor(scores)
    axis = class_axis(t.shape, "select_labels")
    return apply(select_labels, t, as_tensor(target), axis=axis, ignore_index=ignore_index)


def _infer_placed(x: Spec, target: Spec, *, shape: Shape, axis: int, ignore_index: int) -> Spec:
    check_labels(Spec(shape, x.dtype), target, axis, "place_labels")
    if x.shape != target.shape:
        raise ShapeError(
            f"place_labels: {list(x.shape)} values for {list(target.shape)} labels; the shapes "
            "must be equal"
        )
    return Spec(shape, x.dtype)


def _placed(x: Array, target: Array, *, shape: Shape, axis: int, ignore_index: int) -> Array:
    labels, ignored = safe_labels(target, shape[axis], ignore_index)
    rows = np.zeros((len(labels), shape[axis]), x.dtype)
    values = x.reshape(-1)
    if rows.size:
        rows[np.arange(len(labels)), labels] = (
            values if ignored is None else np.where(ignored, rows.dtype.type(0), values)
        )
    return np.moveaxis(rows.reshape((*target.shape, shape[axis])), -1, axis)


def _place(x: Tensor, target: Tensor, *, shape: Shape, axis: int, ignore_index: int) -> Tensor:
    labels, ignored = tensor_labels(target, shape[axis], ignore_index)
    values = expand_dims(where(ignored, 0, x), axis)
    return where(is_class(labels, axis, shape[axis]), values, 0)


@op(
    kind=Kind.INDEXING,
    infer=_infer_placed,
    reference=_placed,
    decompose=_place,
    vjp={
        "x": lambda g, target, axis, ignore_index: apply(
            select_labels, g, target, axis=axis, ignore_index=ignore_index
        )
    },
    samples=lambda: [
        Sample((normal(5), integers(0, 4, 5), (5, 4))),
        Sample((normal(2, 4), integers(0, 3, 2, 4), (2, 3, 4)), label="places"),
        Sample((normal(3), np.array([0, -1, 1]), (3, 2), -1), label="ignored"),
        bad(OutOfRangeError, "label 4 at position", normal(2), np.array([0, 4]), (2, 4)),
        bad(ShapeError, "must be equal", normal(3), integers(0, 4, 2), (2, 4)),
    ],
    is_method=False,
)
def place_labels(
    x: TensorLike, target: TensorLike, shape: Sequence[int], ignore_index: int = -100
) -> Tensor:
    """Put values at the labelled classes into zeros: the adjoint of `select_labels`.

    Args:
        x: a value for each label.
        target: [N, …], or 0-d: integers from 0 to C − 1.
        shape: shape of the result, [N, C, …] or [C].
        ignore_index: label of the places that do not count.

    Raises:
        OutOfRangeError: a label that is no class.
        DTypeError: labels that are not integers.
        ShapeError: shapes that do not fit.

    Example:
        >>> ndl.place_labels(ndl.ones(2), ndl.asarray([1, 0]), (2, 2))
        Tensor([[0., 1.],
                [1., 0.]])
    """
    exact = as_shape(shape, "place_labels")
    return apply(
        place_labels,
        as_tensor(x),
        as_tensor(target),
        shape=exact,
        axis=class_axis(exact, "place_labels"),
        ignore_index=ignore_index,
    )


__all__ = ["place_labels", "select_labels"]
