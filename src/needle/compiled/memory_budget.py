"""memory_budget: what a call keeps is chosen so that its planned memory fits."""

from __future__ import annotations

from dataclasses import replace

from needle.compiled.memory_plan import plan_memory
from needle.compiled.preparation import fixed_inputs
from needle.compiler.rematerialise import gaps, rematerialise
from needle.errors import MemoryBudgetError
from needle.graph.traced import Traced


def fit(traced: Traced, budget: int) -> Traced:
    """Return a trace that computes the same, with planned memory of at most ``budget`` bytes.

    As few values as possible are computed again instead of being kept, those first that take most
    memory for the time that they cost. Each attempt is planned as it would run.

    Raises:
        MemoryBudgetError: that is not enough.
    """

    def attempt(count: int) -> tuple[int, Traced]:
        made = traced
        if count:
            made = replace(traced, graph=rematerialise(traced.graph, found[:count]))
        return plan_memory(made.graph, made.arguments, fixed=fixed).peak_bytes, made

    fixed = fixed_inputs(traced)
    peak = plan_memory(traced.graph, traced.arguments, fixed=fixed).peak_bytes
    if peak <= budget:
        return traced
    found = gaps(traced.graph)
    low, high = 0, len(found)  # how many are too few, and how many are enough
    least, fitting = attempt(high)
    if least > budget:
        raise MemoryBudgetError(
            f"{traced.graph.name}: a call takes {peak:,} bytes, {least:,} with everything computed "
            f"again that can be, and memory_budget is {budget:,}: allow at least {least:,}, or "
            "make the batch smaller (max_batch tells the largest that fits)",
            least,
        )
    while high - low > max(1, high // 16):
        middle = (low + high) // 2
        size, made = attempt(middle)
        if size <= budget:
            high, fitting = middle, made
        else:
            low = middle
    return fitting
