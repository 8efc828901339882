"""Passes: each takes a graph and returns one that computes the same. One file for each pass."""
