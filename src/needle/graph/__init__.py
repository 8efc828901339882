"""Graphs of ops: traced, printed, checked, interpreted."""

from needle.graph.interpret import interpret as interpret
from needle.graph.ir import Graph as Graph, Node as Node, Value as Value
from needle.graph.trace import trace as trace
from needle.graph.traced import Traced as Traced
from needle.graph.tracing import expand as expand
from needle.graph.verify import verify as verify
