"""Which kernels read across the order in which they write."""

from __future__ import annotations

from needle.compiler import index as ix
from needle.compiler.fusion import Fusion


def transposing(graph):
    """Return pairs of values: what a kernel computes, and what it reads along other neighbours."""
    found = []
    for group in Fusion(graph).run():
        loops = [v for v in (*group.kept, *group.inner) if v.extent > 1]
        for piece in group.pieces:
            own = ix.ravel(piece.at, piece.value.shape)
            written = [v for v in loops if own.stride(v) == 1]
            for value, at in piece.reads:
                if not at:
                    continue
                read = ix.ravel(at, value.shape)
                along = [v for v in loops if read.stride(v) == 1 and v not in group.inner]
                if written and along and along[0] is not written[0] and read.stride(written[0]):
                    found.append((piece.value, value))
    return found
