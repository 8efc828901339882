"""The algebra of Winograd's F(2×2, 3×3), which convolution and its gradients share.

Of a kernel of 3×3 that moves pixel by pixel, the result is cut into tiles of 2×2, each of which
sees 4×4 pixels. With g = a kernel, d = what a tile sees, y = a tile of results,

- forward: y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A, see `needle.ops.winograd_convolution`;
- gradient by the kernel: Gᵀ [(A y Aᵀ) ⊙ (Bᵀ d B)] G, summed over tiles before the last
  transformation, see `needle.ops.winograd_sums`.

In both there are 16 products, where the definition has 36.

Source: A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
"""

from __future__ import annotations

import numpy as np

from needle.ops.unfolding import Pads, Pair, Window

#: Rows, and columns, of the kernel, of a tile of results, of a tile of pixels; and the elements of
#: a transformed tile.
KERNEL, TILE, SIDE, ELEMENTS = 3, 2, 4, 16

#: Transforms pixels: Bᵀ. Its last row is turned round, and so is A's: so nothing is negated alone.
PIXELS = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]], np.float32)
#: Transforms results: A.
RESULTS = np.array([[1, 0], [1, 1], [1, -1], [0, 1]], np.float32)
#: Transforms sums to gradients of kernels: Gᵀ.
SUMS_TO_WEIGHTS = np.array([[1, 0.5, 0.5, 0], [0, 0.5, -0.5, 0], [0, 0.5, 0.5, 1]], np.float32)


def tiles_of(counts: Pair) -> Pair:
    """Return how many tiles of results there are, down and across."""
    return -(-counts[0] // TILE), -(-counts[1] // TILE)


def moving_by_one(pads: Pads) -> Window:
    """Return the kernels of 3×3 that move pixel by pixel over all channels."""
    return Window((KERNEL, KERNEL), (1, 1), pads, (1, 1), 1)
