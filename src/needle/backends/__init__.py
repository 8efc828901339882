"""Backends: what makes machine code of graphs."""
