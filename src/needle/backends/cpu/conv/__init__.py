"""Correlation of images with kernels: implicit matrix products on padded copies of images.

`microkernel` holds a tile of channels × pixels in registers over all taps; `correlation` emits the
loops around it. `geometry` finds what both work on: the copy's layout, and where in it a tap reads.
"""

from needle.backends.cpu.conv.correlation import WORDS, emit_correlation, slack
from needle.backends.cpu.conv.geometry import Geometry, make_geometry, tasks_of

__all__ = ["WORDS", "Geometry", "emit_correlation", "make_geometry", "slack", "tasks_of"]
