"""An op without a lowering is an error that names it, the line, the layer and the way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle import nn
from needle.errors import CompileError
from needle.ops import engine, record
from needle.ops.record import Kind, op


def declared(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a user's op that doubles its input, of a kind, with nothing but a reference."""
    # Other tests run every op that is registered.
    monkeypatch.setattr(record, "register", lambda entry: None)

    @op(kind=kind, infer=lambda x: x, reference=lambda x: x + x, samples=list, is_method=False)
    def doubled(x: Any) -> Any:
        return engine.apply(doubled, x)

    return doubled


class Twice(nn.Module):
    """A layer around the op."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x * 2)


# Elements of the one are computed where they are used; the other would be a kernel of its own.
@pytest.mark.parametrize("kind", [Kind.ELEMENTWISE, Kind.REDUCTION], ids=lambda k: k.name)
def test_the_error_says_what_and_where(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.ReLU(), Twice(declared(kind, monkeypatch)))
    x = ndl.ones(3)
    np.testing.assert_array_equal(model(x).numpy(), [4.0, 4.0, 4.0])
    compiled = ndl.compile(lambda x: model(x) + 1)
    said = r"doubled at .*test_no_lowering\.py:\d+ in layer \S*1\S*: .* outside of the compiled"
    with pytest.raises(CompileError, match=said):
        compiled(x)
