"""How reports write amounts and lists."""

from __future__ import annotations

from collections.abc import Sequence

#: Names that are listed before the rest is counted.
LISTED = 6


def quantity(amount: float, unit: str) -> str:
    """Return an amount with a prefix: ``12.3 MB``."""
    for prefix in ("", "k", "M", "G"):
        if abs(amount) < 999.5:
            return f"{amount:.3g} {prefix}{unit}"
        amount /= 1000
    return f"{amount:.4g} T{unit}"


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Return names in a row; of very many, the first."""
    more = f"{separator}… ({len(names) - LISTED} more)" if len(names) > LISTED else ""
    return separator.join(names[:LISTED]) + more
