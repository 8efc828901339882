"""A search for faster plans of kernels, for `needle.compile` with ``tune=True``.

`candidates` says which plans are worth a try; `alone` makes kernels of them that run on arrays of
their own; `search` times them, and `results` keeps what was found; `choices` does so for a program.
No bit of a result depends on what is found.
"""

from needle.backends.cpu.tuning.tuning import Tuning

__all__ = ["Tuning"]
