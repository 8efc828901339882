"""The CPU backend: kernels generated as LLVM IR."""
