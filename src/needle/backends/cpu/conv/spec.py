"""What a generated convolution is to be: form, extents, and what becomes of its elements.

All arrays are row-major, channels last: images ``x [N, H, W, C]``, kernels ``w [KH, KW, C/groups,
O]``, results ``y [N, OH, OW, O]``. Extents are those of the forward convolution in all forms.

| form | first operand | second operand | result | sum of an element, in this order |
|---|---|---|---|---|
| ``"forward"`` | x | w | y | one chain over (tap row, tap column, input channel) |
| ``"input_grad"`` | g, as y | w | as x | the same over (tap row, tap column, channel of g) |
| ``"weight_grad"`` | x | g, as y | as w | blocks of pixels |

Outside of an image, or of a cotangent, there are zeros, and they are multiplied like other
elements: an infinite weight makes NaN of them. So does the reference; but of the gradient by the
input only for some shapes, where it gathers from the cotangent and does not scatter it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from needle import dtypes
from needle.backends.cpu.llvm import Function, Index, Operand
from needle.dtypes import DType
from needle.ops.unfolding import Pads, Pair, Sweep, Window

#: Which of the three partial derivatives of ``Σ y · conv(x, w)``.
Form: TypeAlias = Literal["forward", "input_grad", "weight_grad"]


class Place(NamedTuple):
    """Where a vector of elements stands: channels ``channel … channel + lanes − 1`` of one pixel.

    Of a gradient by the weight: ``image`` is the row of the kernel, ``row`` its column, ``column``
    the input channel within its group, and ``channel`` the first output channel.

    Attributes:
        image: which image.
        row: row of the pixel.
        column: column of the pixel.
        channel: channel of the first lane.
        lanes: lanes of the vector; 0 for a scalar.
        mask: the lanes that exist, if not all do: to be given to `Function.load` and `store`.
    """

    image: Index
    row: Index
    column: Index
    channel: Index
    lanes: int
    mask: Operand | None


@dataclass(frozen=True)
class Epilogue:
    """What is done with finished sums: fused into the kernel, run once per element of the result.

    Its code is emitted into functions that have the pointers ``%out`` and ``%extra``; it does the
    storing itself, to as many places as it likes.

    Attributes:
        store: ``store(f, sums, place, state)``.
        key: equal keys promise equal code, so that kernels can share functions.
        begin: ``begin(f)`` emits what all vectors of a tile share and returns it: the ``state``.
        instructions: about how many instructions `store` emits. Longer ones are run in a loop over
            the tile instead of being repeated for each of its vectors.
        end: ``end(f, state)`` emits what is done after the last vector of a tile.
    """

    store: Callable[[Function, Operand, Place, Any], None]
    key: Hashable
    begin: Callable[[Function], Any] | None = None
    instructions: int = 8
    end: Callable[[Function, Any], None] | None = None


@dataclass(frozen=True)
class Prologue:
    """Computes the elements of the first operand, instead of their being read from memory.

    Each is computed about once: when an image is copied to the workspace. The code is emitted into
    functions that have the pointers ``%image`` (the first operand) and ``%extra``.

    Attributes:
        load: ``load(f, place, state)`` returns the elements at a place, in the product's dtype.
        key: equal keys promise equal code.
        begin: ``begin(f)`` emits what the elements of an image share, and returns it.
    """

    load: Callable[[Function, Place, Any], Operand]
    key: Hashable
    begin: Callable[[Function], Any] | None = None


@dataclass(frozen=True)
class ConvSpec:
    """A convolution, or one of its gradients, of known extents.

    Attributes:
        form: which of the three.
        images, height, width: extents of x.
        in_channels, out_channels: C and O.
        kernel: rows and columns of the kernel.
        stride, pads, dilation, groups: as those of the op.
        dtype: of all operands: float32, float64, or (if `in_pairs`) bfloat16, whose sums are
            float32 and whose weight is in tiles of pairs; see `needle.ops.paired_convolution`.
        epilogue: what becomes of the sums; by default they are stored to the result.
        prologue: computes the first operand's elements.
        by_winograd: whether the weight is transformed, see `needle.ops.winograd_convolution`; or a
            gradient by the weight gives sums over tiles, see `needle.ops.winograd_sums`.

    Example:
        >>> ConvSpec("forward", 8, 32, 32, 16, 32, (3, 3), (2, 2), ((1, 1), (1, 1))).result
        (8, 16, 16, 32)
    """

    form: Form
    images: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    pads: Pads = ((0, 0), (0, 0))
    dilation: Pair = (1, 1)
    groups: int = 1
    dtype: DType = dtypes.float32
    epilogue: Epilogue | None = field(default=None)
    prologue: Prologue | None = field(default=None)
    by_winograd: bool = False

    def __post_init__(self) -> None:
        if self.in_channels % self.groups or self.out_channels % self.groups:
            channels = f"{self.in_channels} and {self.out_channels}"
            raise ValueError(f"{self.groups} groups do not divide {channels} channels")
        if self.dtype not in (dtypes.float32, dtypes.float64) and not self.in_pairs:
            raise ValueError(
                "only float32 and float64, and bfloat16 forward and, without strides and groups, "
                f"in gradients by the weight, are convolved so, not {self.dtype} ({self.form})"
            )

    @property
    def in_pairs(self) -> bool:
        """Whether factors are bfloat16, taken pair by pair."""
        is_moved = self.form == "weight_grad" and self.stride == (1, 1) and self.groups == 1
        return self.dtype == dtypes.bfloat16 and (self.form == "forward" or is_moved)

    @property
    def counts(self) -> Pair:
        """Rows and columns of y."""
        window = Window(self.kernel, self.stride, self.pads, self.dilation, self.groups)
        return window.counts((self.height, self.width), "conv2d")

    @property
    def sweeps(self) -> tuple[Sweep, Sweep]:
        """How the kernel moves down and across."""
        window = Window(self.kernel, self.stride, self.pads, self.dilation, self.groups)
        return window.sweeps(self.counts)

    @property
    def depth(self) -> int:
        """Input channels of a group."""
        return self.in_channels // self.groups

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of x."""
        return (self.images, self.height, self.width, self.in_channels)

    @property
    def w_shape(self) -> tuple[int, ...]:
        """Shape of w, as it is without tiles and untransformed."""
        return (*self.kernel, self.depth, self.out_channels)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of y."""
        return (self.images, *self.counts, self.out_channels)

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of what is computed."""
        shapes = {"forward": self.y_shape, "input_grad": self.x_shape, "weight_grad": self.w_shape}
        return shapes[self.form]
