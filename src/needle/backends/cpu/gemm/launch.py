"""A product as a function of one pointer, that runs its tasks on the threads."""

from __future__ import annotations

from needle import dtypes
from needle.backends.cpu.gemm.kernel import GemmKernel
from needle.backends.cpu.llvm import Function, Module

#: The words that a launched product gets, in order: addresses of the operands, of what its epilogue
#: reads, of the workspace and the sizes; the bytes of each task's workspace; the number of tasks.
WORDS = ("a", "b", "c", "extra", "workspace", "sizes", "bytes", "tasks")


def emit_launch(module: Module, kernel: GemmKernel, name: str = "launch") -> str:
    """Add ``void name(ptr words)`` to the module, which computes the whole product.

    Args:
        module: the kernel's.
        kernel: the product.
        name: made unique; the function can be called from outside.

    Returns:
        Its name.
    """
    task = Function(module, module.unique(f"{name}_task"), {"words": "ptr", "task": "i64"})
    pointers = [_pointer(task, i) for i in range(6)]
    bytes_ = task.load("%words", WORDS.index("bytes"), dtypes.int64)
    offset = task.mul_index(task.argument("task"), bytes_)
    pointers[4] = task.pointer(pointers[4], offset, dtypes.uint8)
    a, b, c, extra, workspace, sizes = pointers
    kernel.call(
        task, a, b, c, extra=extra, workspace=workspace, sizes=sizes, task=task.argument("task")
    )
    task.end()

    f = Function(module, module.unique(name), {"words": "ptr"}, internal=False)
    tasks = f.load("%words", WORDS.index("tasks"), dtypes.int64)

    def alone() -> None:
        f.emit(f"call void @{task.name}(ptr %words, i64 0)")

    def together() -> None:
        module.declare("needle_parallel", "void", ["ptr", "ptr", "i64"])
        f.emit(f"call void @needle_parallel(ptr @{task.name}, ptr %words, {tasks.typed})")

    f.branch(f.compare("eq", tasks, f.operand(1)), alone, together)
    return f.end()


def _pointer(f: Function, index: int) -> str:
    return f.value(f"load ptr, ptr {f.pointer('%words', index, dtypes.int64)}")
