"""Write the reference pages of all ops, one for each family, from the op records.

Run as ``python -m needle.testing.reference FOLDER``.
"""

from __future__ import annotations

import inspect
import sys
from collections import defaultdict
from pathlib import Path

from needle.ops.record import REGISTRY, Entry, Op


def page(title: str, entries: list[Entry]) -> str:
    """Return the page of one family as Markdown."""
    module = sys.modules[entries[0].module]
    lines = [f"# {title}", "", inspect.getdoc(module) or "", ""]
    for entry in entries:
        lines += [f"## {entry.name}", "", f"```python\n{_call(entry)}\n```", ""]
        lines += [_facts(entry), "", "```text", inspect.getdoc(entry.function) or "", "```", ""]
    return "\n".join(lines)


def _call(entry: Entry) -> str:
    return f"ndl.{entry.name}{inspect.signature(entry.function)}".replace("'", "")


def _facts(entry: Entry) -> str:
    facts = []
    if isinstance(entry, Op):
        facts.append(f"primitive ({entry.kind.value})")
    else:
        facts.append("written with other ops")
    if entry.aliases:
        facts.append("also " + ", ".join(f"`{alias}`" for alias in entry.aliases))
    if entry.is_method:
        facts.append(f"method `x.{entry.name}`")
    facts.append("differentiable" if entry.differentiable else "no gradient")
    facts.append(f"{len(entry.draw_samples())} samples tested")
    return "; ".join(facts) + "."


def write_pages(folder: Path) -> list[Path]:
    """Write all pages and an index into ``folder``; return their paths."""
    families: dict[str, list[Entry]] = defaultdict(list)
    for entry in REGISTRY.values():
        families[entry.module.rpartition(".")[2]].append(entry)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    index = ["# Reference of the ops", ""]
    for family, entries in sorted(families.items()):
        path = folder / f"{family}.md"
        path.write_text(page(family, entries))
        names = ", ".join(f"[{e.name}]({family}.md#{e.name})" for e in entries)
        index.append(f"- **{family}**: {names}")
        paths.append(path)
    path = folder / "index.md"
    path.write_text("\n".join(index) + "\n")
    return [*paths, path]


if __name__ == "__main__":
    for written in write_pages(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/reference")):
        print(written)
