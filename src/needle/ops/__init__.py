"""The ops: one record each, one file per family. See `needle.ops.record` for how to add one."""

from types import ModuleType
from typing import TYPE_CHECKING

from needle.ops.activation import *
from needle.ops.affine_standardization import *
from needle.ops.arithmetic import *
from needle.ops.attend import *
from needle.ops.attention import *
from needle.ops.bitwise import *
from needle.ops.channel_normalization import *
from needle.ops.checks import *
from needle.ops.comparison import *
from needle.ops.contraction import *
from needle.ops.convolution import *
from needle.ops.copying import *
from needle.ops.cross_entropy import *
from needle.ops.dropout import *
from needle.ops.gather import *
from needle.ops.indexing import *
from needle.ops.joining import *
from needle.ops.label_cross_entropy import *
from needle.ops.labels import *
from needle.ops.layer_normalization import *
from needle.ops.loss import *
from needle.ops.movement import *
from needle.ops.nhwc_convolution import *
from needle.ops.normalization import *
from needle.ops.places import *
from needle.ops.pooling import *
from needle.ops.random import *
from needle.ops.rearrange import *
from needle.ops.reduce import *
from needle.ops.scan import *
from needle.ops.signals import *
from needle.ops.slicing import *
from needle.ops.softmax import *
from needle.ops.sorting import *
from needle.ops.transcendental import *
from needle.ops.transposed_convolution import *
from needle.ops.unstack import *
from needle.ops.updates import *
from needle.ops.window_extrema import *
from needle.ops.window_sums import *
from needle.ops.windows import *

_OWN = ("ModuleType", "TYPE_CHECKING")

if not TYPE_CHECKING:  # a computed list tells type checkers nothing
    # Not the submodules, which `import *` would take along: `needle.random` is another module than
    # the family.
    __all__ = [
        name
        for name, value in globals().items()
        if not name.startswith("_") and not isinstance(value, ModuleType) and name not in _OWN
    ]
