"""Backends: what makes machine code of graphs."""

import time

#: When needle was imported; sources that are younger are not those that run.
IMPORTED = time.time()
