"""Attention without its matrix of weights: tiles of scores, a running softmax, and the way back.

`forward` and `backward` emit the loops over heads and blocks; `products` multiplies, and `weights`
does what is between the products: masks, exponentials, dropout. One function serves all lengths,
strides and numbers of heads; `spec` says what it is specialised for, and shares the work out.
"""

from needle.backends.cpu.attention.backward import backward_bytes, emit_backward
from needle.backends.cpu.attention.forward import emit_forward, forward_bytes
from needle.backends.cpu.attention.spec import (
    BACKWARD,
    FORWARD,
    KEY_SLOPE,
    QUERY_SLOPE,
    AttentionSpec,
    Work,
    backward_work,
    common_numbers,
    forward_work,
    stride_words,
)

__all__ = [
    "BACKWARD",
    "FORWARD",
    "KEY_SLOPE",
    "QUERY_SLOPE",
    "AttentionSpec",
    "Work",
    "backward_bytes",
    "backward_work",
    "common_numbers",
    "emit_backward",
    "emit_forward",
    "forward_bytes",
    "forward_work",
    "stride_words",
]
