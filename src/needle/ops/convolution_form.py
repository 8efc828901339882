"""The three forms of a convolution, and what prepares weights: the ``lower`` of their records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Convolution:
    """A kernel that slides over images whose channels come last.

    Attributes:
        form: which partial derivative of the trilinear form the op is; see
            `needle.ops.convolution`. The inputs and attributes are those of `conv2d_nhwc` and its
            gradients.
        in_pairs: whether the weight is in tiles of pairs; see `needle.ops.paired_convolution`.
        by_winograd: whether its operands are those of Winograd's algorithm. Gradients by weights
            give sums over tiles then, see `needle.ops.winograd_sums`; the others take a transformed
            weight, see `needle.ops.winograd_convolution`.
    """

    form: Literal["forward", "input_grad", "weight_grad"]
    in_pairs: bool = False
    by_winograd: bool = False

    @property
    def is_special(self) -> bool:
        """Whether a pass has chosen how it is computed, for operands of its own."""
        return self.in_pairs or self.by_winograd


@dataclass(frozen=True)
class WeightTransform:
    """The transformation of a weight for Winograd's algorithm, turned round first if the attribute
    ``is_turned`` says so; see `needle.ops.winograd_convolution`."""
