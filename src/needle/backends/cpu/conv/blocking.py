"""Blocks: what is copied, and used, together."""

from __future__ import annotations

import math

from needle.backends.cpu.conv.phase import Correlations


class Blocking:
    """What the plans have in common that go from block to block.

    Attributes:
        work: what is computed.
        images: of a block.
        rows: of a block's results: all of them if there are several images.
        grid: into how many parts the work is split: the tasks.
    """

    work: Correlations
    images: int
    rows: int
    grid: tuple[int, int]

    @property
    def tasks(self) -> int:
        """How many tasks."""
        return math.prod(self.grid)

    @property
    def bands(self) -> int:
        """How many blocks an image has."""
        return -(-self.work.down.extent // self.rows)

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.work.source[0] // self.images) * self.bands
