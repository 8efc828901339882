"""The compiler: from a traced graph to fused groups and a memory plan."""
