"""The verifier finds what a pass may break; each test breaks one thing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import needle as ndl
from needle.errors import GraphError
from needle.graph import Graph, Node, Value, trace, verify
from needle.shapes import Spec


def graph() -> Graph:
    state = ndl.ones((2, 3))

    def f(x: Any) -> Any:
        nonlocal state
        state += x
        return (state * 2.0).sum(axis=0)

    made = verify(trace(f, ndl.ones((2, 3))).graph)
    made.inputs[1].name = "state"
    return made


def other_order(g: Graph) -> None:
    g.nodes.reverse()


def lost_node(g: Graph) -> None:
    del g.nodes[0]


def twice(g: Graph) -> None:
    g.nodes.append(g.nodes[0])


def wrong_spec(g: Graph) -> None:
    g.nodes[1].results[0].spec = Spec((2, 3), ndl.float64)


def wrong_attribute(g: Graph) -> None:
    g.nodes[2].attrs["axes"] = (5,)


def wrong_shape(g: Graph) -> None:
    g.nodes[0].inputs = (g.inputs[0], Value(Spec((4,), ndl.float32), constant=np.ones(4, "f4")))


def stranger(g: Graph) -> None:
    g.nodes[0].inputs = (g.inputs[0], Value(Spec((2, 3), ndl.float32)))


def strange_output(g: Graph) -> None:
    g.outputs[0] = Value(Spec((3,), ndl.float32))


def wrong_constant(g: Graph) -> None:
    g.nodes[1].inputs[1].constant = np.ones(2, "f4")


def no_array(g: Graph) -> None:
    g.nodes[1].inputs[1].constant = 2.0  # type: ignore[assignment]


def input_is_result(g: Graph) -> None:
    g.inputs.append(g.nodes[0].result)


def same_input_twice(g: Graph) -> None:
    g.inputs.append(g.inputs[0])


def borrowed_result(g: Graph) -> None:
    old = g.nodes[0]
    g.nodes[0] = node = Node(old.op, old.inputs, old.attrs, [v.spec for v in old.results])
    node.results = old.results


def donated_twice(g: Graph) -> None:
    g.donations = {1: 0, 0: 0}
    g.outputs[0] = g.outputs[1]


def wrong_donation(g: Graph) -> None:
    g.donations[0] = 0


def no_such_donation(g: Graph) -> None:
    g.donations[5] = 0


BREAKS = {
    other_order: "is read before it is defined, in: v",
    lost_node: "is read before it is defined, in: v",
    twice: "is defined twice, by the node add",
    wrong_spec: "infer says float32[2, 3], the results have float64[2, 3], in: v",
    wrong_attribute: "infer says float32[2, 3], the results have float32[3], in: v",
    wrong_shape: "the op refuses its inputs: add: shapes [2, 3] and [4] do not broadcast",
    stranger: "input 1, <value: float32[2, 3]>, is read before it is defined, in: v",
    strange_output: "output 0, <value: float32[3]>, is defined nowhere",
    wrong_constant: "input 1, float32[], is a constant of float32[2]",
    no_array: "a constant that is no array but float",
    input_is_result: "the input <add: float32[2, 3]> is defined in the graph",
    same_input_twice: "is defined twice, by the inputs",
    borrowed_result: "result 0 does not know that this node defines it",
    donated_twice: "input 0 is donated twice",
    wrong_donation: "output 0, float32[3], cannot take over input 0, float32[2, 3]",
    no_such_donation: "there is no output 5 or no input 0 to donate",
}


@pytest.mark.parametrize("damage", BREAKS, ids=lambda f: f.__name__)
def test_damage_is_found(damage: Callable[[Graph], None]) -> None:
    broken = graph()
    damage(broken)
    with pytest.raises(GraphError, match=re.escape(BREAKS[damage])):
        verify(broken)


def test_errors_show_the_node_and_the_line() -> None:
    broken = graph()
    wrong_spec(broken)
    with pytest.raises(GraphError, match=r"in: v\d: .* = multiply\(v\d, 2.0\) \(from .*\.py:\d+\)"):
        verify(broken)
