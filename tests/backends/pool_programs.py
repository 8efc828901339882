"""Programs that use the thread pool, for its tests and for processes that they start."""

import ctypes

from needle.backends.cpu import jit
from needle.backends.cpu.module import Module

#: count: task t adds 1 to element t. long: to element 32t, 20,000 times, and it stores where its
#: stack is in the next. nested: it runs 8 tasks of its own, on elements 8t and after.
IR = """
declare void @needle_parallel(ptr, ptr, i64)
define internal void @count_task(ptr %p, i64 %t) #0 {
  %q = getelementptr i64, ptr %p, i64 %t
  %v = load i64, ptr %q
  %w = add i64 %v, 1
  store i64 %w, ptr %q
  ret void
}
define void @count(ptr %p, i64 %n) #0 {
  call void @needle_parallel(ptr @count_task, ptr %p, i64 %n)
  ret void
}
define void @count_often(ptr %p, i64 %n, i64 %times) #0 {
entry:
  br label %turn
turn:
  %i = phi i64 [0, %entry], [%j, %turn]
  call void @needle_parallel(ptr @count_task, ptr %p, i64 %n)
  %j = add i64 %i, 1
  %c = icmp slt i64 %j, %times
  br i1 %c, label %turn, label %done
done:
  ret void
}
define internal void @long_task(ptr %p, i64 %t) #0 {
entry:
  %line = mul i64 %t, 32
  %q = getelementptr i64, ptr %p, i64 %line
  %local = alloca i64
  %stack = ptrtoint ptr %local to i64
  %q1 = getelementptr i64, ptr %q, i64 1
  store i64 %stack, ptr %q1
  br label %turn
turn:
  %i = phi i64 [0, %entry], [%j, %turn]
  %v = load volatile i64, ptr %q
  %w = add i64 %v, 1
  store volatile i64 %w, ptr %q
  %j = add i64 %i, 1
  %c = icmp slt i64 %j, 20000
  br i1 %c, label %turn, label %done
done:
  ret void
}
define void @long(ptr %p, i64 %n) #0 {
  call void @needle_parallel(ptr @long_task, ptr %p, i64 %n)
  ret void
}
define internal void @nested_task(ptr %p, i64 %t) #0 {
  %o = mul i64 %t, 8
  %q = getelementptr i64, ptr %p, i64 %o
  call void @needle_parallel(ptr @count_task, ptr %q, i64 8)
  ret void
}
define void @nested(ptr %p, i64 %n) #0 {
  call void @needle_parallel(ptr @nested_task, ptr %p, i64 %n)
  ret void
}
"""


class Kernels:
    def __init__(self):
        module = Module()
        module.add_text(IR)
        library = jit.load(module)
        pair = (ctypes.c_void_p, ctypes.c_int64)
        self.count = library.function("count", *pair)
        self.count_often = library.function("count_often", *pair, ctypes.c_int64)
        self.long = library.function("long", *pair)
        self.nested = library.function("nested", *pair)
