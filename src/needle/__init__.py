"""needle: a deep-learning framework whose every line, kernels included, is Python."""

from needle import dtypes, errors, random
from needle.autograd import grad
from needle.config import (
    detect_anomaly,
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_detect_anomaly,
    set_grad_enabled,
)
from needle.creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    full,
    full_like,
    is_tensor,
    linspace,
    meshgrid,
    ones,
    ones_like,
    tril,
    triu,
    zeros,
    zeros_like,
)
from needle.devices import Device
from needle.dtypes import (
    bfloat16,
    bool,
    float16,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from needle.eager import apply as _apply
from needle.errors import NeedleError
from needle.function import Function, checkpoint
from needle.operators import attach_aliases, attach_methods
from needle.ops import *
from needle.random import Generator, manual_seed, rand, randint, randn, randperm
from needle.tensor import Tensor

__version__ = "0.1.0"
__array_api_version__ = "2024.12"

e = 2.718281828459045
inf = float("inf")
nan = float("nan")
newaxis = None
pi = 3.141592653589793

attach_methods()
attach_aliases(globals())
del attach_methods, attach_aliases, _apply
