"""The inner loop of a correlation: a tile of channels × neighbouring pixels, over all taps.

Pixels lie along the lanes. A tap of the kernel, of one channel, is a place in the table: how far
from the first pixel it reads, and where its weights are. Its weight for each of the tile's channels
is broadcast, and multiplied with what it sees of the pixels: as in a matrix product whose right
matrix is never written out.
"""

from __future__ import annotations

from dataclasses import dataclass

from needle import dtypes
from needle.backends.cpu.llvm import Function, Index, Module, Operand
from needle.backends.cpu.target import Target
from needle.dtypes import DType

ARGUMENTS = {
    "weight": "ptr noalias readonly",
    "image": "ptr noalias readonly",
    "table": "ptr noalias readonly",
    "sums": "ptr noalias",
    "taps": "i64",
    "weight_row": "i64",
}

#: Most vectors of pixels in a tile.
VECTORS = 4


def tile_rows(target: Target, vectors: int) -> tuple[int, ...]:
    """Return the numbers of channels that tiles of so many vectors have, the largest first."""
    largest = {1: 8, 2: 8, 3: 8, 4: 6} if target.registers >= 32 else {1: 6, 2: 6, 3: 4, 4: 2}
    return tuple(sorted({largest[vectors], 4, 2, 1} - set(range(largest[vectors] + 1, 9)))[::-1])


@dataclass(frozen=True)
class Tile:
    """A tile of ``rows`` channels × ``vectors`` vectors of pixels.

    Its sums go to a buffer whose rows are `VECTORS` vectors long. Each is one chain of fused
    multiply-adds over the taps in their order, from 0: no other pixel or channel changes its bits.
    """

    rows: int
    vectors: int
    dtype: DType

    def function(self, module: Module) -> str:
        """Return the name of the function, with `ARGUMENTS`; it is emitted once."""
        name = module.memo.get(self)
        if name is None:
            name = module.memo[self] = self._emit(module)
        return name

    def _emit(self, module: Module) -> str:
        name = module.unique(f"taps_{self.rows}x{self.vectors}")
        f = Function(module, name, ARGUMENTS, inline="noinline")
        lanes = f.target.lanes(self.dtype)
        step = f.argument("weight_row")
        rows = [f.mul_index(row, step) for row in range(self.rows)]

        def turn(i: Index, sums: list[Operand]) -> list[Operand]:
            at = f.mul_index(i, 2)
            seen = f.load("%table", at, dtypes.int64)
            image = f.pointer("%image", seen, self.dtype)
            chosen = f.load("%table", f.add_index(at, 1), dtypes.int64)
            weight = f.pointer("%weight", chosen, self.dtype)
            pixels = [f.load(image, v * lanes, self.dtype, lanes) for v in range(self.vectors)]
            result = []
            for row, offset in enumerate(rows):
                w = f.splat(f.load(weight, offset, self.dtype), lanes)
                for v, x in enumerate(pixels):
                    result.append(f.fma(w, x, sums[row * self.vectors + v]))
            return result

        zeros = [f.constant(0, self.dtype, lanes)] * (self.rows * self.vectors)
        sums = f.loop(0, f.argument("taps"), 1, zeros, turn)
        for place, x in enumerate(sums):
            row, v = divmod(place, self.vectors)
            f.store(x, "%sums", (row * VECTORS + v) * lanes)
        return f.end()
