"""Benchmarks of needle beside its peers: ``make bench``.

Each framework runs in a process of its own, so that their thread pools do not disturb each other;
the processes take turns every few milliseconds, so that all see the same machine. What counts are
medians and their ratios.
"""
