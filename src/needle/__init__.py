"""needle: a deep-learning framework whose every line, kernels included, is Python."""

__version__ = "0.1.0"
