"""Graphs of ops: traced, printed, checked, interpreted."""
