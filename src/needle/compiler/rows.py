"""Rows: an extent that is given when a program is called.

A program can be made for any number of rows: its graph is traced with `ROWS` of them, and the code
that is generated reads the real number where the extent stands. So extents, and nothing else, may
depend on it: it is the first axis of everything that has rows, and no stride contains it.
"""

from __future__ import annotations

#: Stands for the number of rows in the shapes of a graph. A prime that is no other extent.
ROWS = 1_000_000_007


def rows_in(extent: int) -> int:
    """Return how many times the number of rows an extent is; 0 for one that is known.

    Example:
        >>> from needle.compiler.rows import ROWS, rows_in
        >>> rows_in(3 * ROWS), rows_in(12)
        (3, 0)
    """
    return extent // ROWS if extent and extent % ROWS == 0 else 0
