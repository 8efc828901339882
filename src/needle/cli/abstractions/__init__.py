"""`needle compare-abstractions`: the same networks in three styles, timed side by side.

`programs` has the networks, as docs/three-abstractions.md shows them, `styles` makes training steps
of them, `measure` takes times and memory in turns, and `report` makes tables.
"""
