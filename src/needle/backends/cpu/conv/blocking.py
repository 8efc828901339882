"""Blocks: what is copied, and used, together."""

from __future__ import annotations

import math

from needle.backends.cpu.conv.phase import Correlations


class Bands:
    """What the plans have in common that cut images into bands of rows.

    Attributes:
        work: what is computed.
        rows: of a band's results.
        grid: into how many parts the work is split: the tasks.
    """

    work: Correlations
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


class Blocking(Bands):
    """What those have in common whose blocks are bands, or several images.

    Attributes:
        images: of a block, which then has all of their rows.
    """

    images: int

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.work.source[0] // self.images) * self.bands
