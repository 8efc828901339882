"""The ops: one record each, one file per family. See `needle.ops.record` for how to add one."""

from needle.ops.activation import *
from needle.ops.arithmetic import *
from needle.ops.comparison import *
from needle.ops.contraction import *
from needle.ops.movement import *
from needle.ops.reduce import *
from needle.ops.transcendental import *
