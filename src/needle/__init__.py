"""needle: a deep-learning framework whose every line, kernels included, is Python."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from needle import (
    dtypes as dtypes,
    eager as _eager,  # installs the engine
    errors as errors,
    random as random,
)
from needle.autograd import grad as grad
from needle.backends.cpu import eager_kernels as _eager_kernels  # installs them
from needle.backends.cpu.threads import (
    get_num_threads as get_num_threads,
    set_num_threads as set_num_threads,
)
from needle.compiled import Compiled as Compiled, Dim as Dim, compile as compile
from needle.compiled.profile import profile as profile
from needle.config import (
    autocast as autocast,
    detect_anomaly as detect_anomaly,
    enable_grad as enable_grad,
    inference_mode as inference_mode,
    is_autocast_enabled as is_autocast_enabled,
    is_grad_enabled as is_grad_enabled,
    is_inference_mode_enabled as is_inference_mode_enabled,
    no_grad as no_grad,
    set_detect_anomaly as set_detect_anomaly,
    set_grad_enabled as set_grad_enabled,
)
from needle.control import (
    cond as cond,
    fori_loop as fori_loop,
    scan as scan,
    switch as switch,
    while_loop as while_loop,
)
from needle.creation import (
    arange as arange,
    asarray as asarray,
    empty as empty,
    empty_like as empty_like,
    eye as eye,
    from_dlpack as from_dlpack,
    full as full,
    full_like as full_like,
    is_tensor as is_tensor,
    linspace as linspace,
    meshgrid as meshgrid,
    ones as ones,
    ones_like as ones_like,
    tril as tril,
    triu as triu,
    zeros as zeros,
    zeros_like as zeros_like,
)
from needle.devices import Device as Device
from needle.dtype_functions import (
    can_cast as can_cast,
    finfo as finfo,
    iinfo as iinfo,
    isdtype as isdtype,
    result_type as result_type,
)
from needle.dtypes import (
    bfloat16 as bfloat16,
    bool as bool,
    float16 as float16,
    float32 as float32,
    float64 as float64,
    int8 as int8,
    int16 as int16,
    int32 as int32,
    int64 as int64,
    uint8 as uint8,
    uint16 as uint16,
    uint32 as uint32,
    uint64 as uint64,
)
from needle.errors import NeedleError as NeedleError
from needle.function import Function as Function, checkpoint as checkpoint
from needle.operators import attach_aliases, attach_methods
from needle.ops import *
from needle.random import (
    Generator as Generator,
    manual_seed as manual_seed,
    rand as rand,
    randint as randint,
    randn as randn,
    randperm as randperm,
)
from needle.tensor import Tensor as Tensor

if TYPE_CHECKING:
    from needle import data as data, models as models, nn as nn, optim as optim, train as train

__version__ = "0.1.0"
__array_api_version__ = "2024.12"

e = 2.718281828459045
inf = float("inf")
nan = float("nan")
newaxis = None
pi = 3.141592653589793

attach_methods()
attach_aliases(globals())
del attach_methods, attach_aliases, _eager

#: Loaded when first asked for, as `needle.nn`, so that importing needle stays quick.
_SUBPACKAGES = ("data", "layerwise", "models", "nn", "optim", "static", "train")


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"needle.{name}")
    raise AttributeError(f"module 'needle' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SUBPACKAGES})
