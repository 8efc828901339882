"""Compiled functions: what `needle.compile` gives, and what happens when they are called."""

from needle.compiled.dim import Dim as Dim
from needle.compiled.front import Compiled as Compiled, compile as compile
from needle.compiled.specialization import Specialization as Specialization
