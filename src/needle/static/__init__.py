"""static: declare a graph, then run parts of it in a session, as in TensorFlow 1.

    import needle.static as tf

    x = tf.placeholder((None, 784), name="x")
    w = tf.Variable(tf.zeros((784, 10)), name="w")
    y = tf.nn.softmax(x @ w)
    session = tf.Session()
    session.run(tf.global_variables_initializer())
    session.run(y, feed_dict={x: images})

Every op of the array namespace is here, over symbols, and so is `needle.nn.functional`, as
``static.nn``. Each pair of fetches and feeds is pruned to what it needs, and compiled once by the
compiler that `needle.compile` uses.
"""

from __future__ import annotations

import functools
from typing import Any

from needle import creation as _creation, dtypes as _dtypes
from needle.ops.record import REGISTRY as _REGISTRY
from needle.static import nn as nn, train as train
from needle.static.declare import (
    constant as constant,
    declared as _declared,
    placeholder as placeholder,
)
from needle.static.export import Exported as Exported
from needle.static.flow import (
    case as case,
    cond as cond,
    scan as scan,
    while_loop as while_loop,
)
from needle.static.gradients import gradients as gradients
from needle.static.graph import (
    Graph as Graph,
    Operation as Operation,
    control_dependencies as control_dependencies,
    get_default_graph as get_default_graph,
    name_scope as name_scope,
    reset_default_graph as reset_default_graph,
)
from needle.static.module import function as function
from needle.static.names import NAMES as _NAMES
from needle.static.saver import Saver as Saver
from needle.static.session import InteractiveSession as InteractiveSession, Session as Session
from needle.static.state import (
    assign as assign,
    assign_add as assign_add,
    assign_sub as assign_sub,
    global_variables as global_variables,
    global_variables_initializer as global_variables_initializer,
    group as group,
    variables_initializer as variables_initializer,
)
from needle.static.symbol import Symbol as Symbol, Variable as Variable
from needle.static.train import trainable_variables as trainable_variables


def __getattr__(name: str) -> Any:
    return _found(name)


@functools.cache
def _found(name: str) -> Any:
    if name in _NAMES:
        return _declared(_NAMES[name])
    for entry in _REGISTRY.values():
        if name in (entry.name, *entry.aliases):
            return _declared(entry.function)
    if name in _DTYPES:
        return getattr(_dtypes, name)
    if name in _CREATORS:
        return _declared(getattr(_creation, name))
    raise AttributeError(f"module 'needle.static' has no attribute {name!r}")


_DTYPES = (
    *("bool", "float16", "bfloat16", "float32", "float64"),
    *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
)
_CREATORS = (
    "arange",
    "eye",
    "full",
    "full_like",
    "linspace",
    "ones_like",
    "zeros_like",
    "tril",
    "triu",
)


def __dir__() -> list[str]:
    names = {name for entry in _REGISTRY.values() for name in (entry.name, *entry.aliases)}
    return sorted({*globals(), *names, *_NAMES, *_DTYPES, *_CREATORS})
